"""Names of models in requests: which of them this server serves.

Used by every dialect whose requests name a model.
"""

from jaxllama.errors import HttpError
from jaxllama.serve.endpoints import RequestShape
from jaxllama.service import Model


class ModelBody(RequestShape, kw_only=True):
    """Base of request bodies with a `model` field."""

    model: str | None = None


def check_model(asked: str | None, model: Model) -> str:
    """Return the model name for the answer; raises HttpError if `asked` is another model."""
    if asked is None or asked == model.name:
        return model.name
    if asked in model.aliases:
        return asked
    if model.encoder is not None and asked in model.encoder.names:
        raise HttpError(
            f"model {asked!r} only makes vectors of texts; use it with /v1/embeddings, and "
            f"{model.name!r} here",
            404,
            "model_not_found",
        )
    raise HttpError(
        f"model {asked[:100]!r} does not exist here; this server serves {model.name!r}",
        404,
        "model_not_found",
    )
