"""Names of models in requests: which of them this server serves.

Used by every dialect whose requests name a model.
"""

from typing import Any

from jaxllama.errors import HttpError, InvalidParameter
from jaxllama.serve.endpoints import RequestShape
from jaxllama.service import Model


class ModelBody(RequestShape, kw_only=True):
    """Base of request bodies with a `model` field."""

    model: str | None = None


def check_model(asked: str | None, model: Model) -> str:
    """Return the model name for the answer; raise HttpError if `asked` is another model.

    `asked` is the model that the request names; None stands for the served model. For endpoints
    that cannot apply a LoRA adapter: raises InvalidParameter for an adapter's name.
    """
    if asked in model.adapters and asked not in model.names:
        raise InvalidParameter(
            f"model is {asked!r}, a LoRA adapter, which this endpoint cannot apply; expected "
            f"{model.name!r}",
            "model",
        )
    return check_adapted(asked, model, {})


def check_adapted(asked: str | None, model: Model, knobs: dict[str, Any]) -> str:
    """Return the model name for the answer; a LoRA adapter's name also sets `lora` in `knobs`.

    `asked` is the model that the request names; None stands for the served model. Raises HttpError
    if `asked` is neither the model nor a loaded adapter, InvalidParameter if `knobs` names another
    adapter.
    """
    if asked is None or asked == model.name:
        return model.name
    if asked in model.aliases:
        return asked
    if asked in model.adapters:
        if knobs.setdefault("lora", asked) != asked:
            raise InvalidParameter(
                f"model is the adapter {asked!r}, and lora is {knobs['lora']!r}; expected one of "
                f"them, or the same",
                "lora",
            )
        return asked
    if model.encoder is not None and asked in model.encoder.names:
        raise HttpError(
            f"model {asked!r} only makes vectors of texts; use it with /v1/embeddings, and "
            f"{model.name!r} here",
            404,
            "model_not_found",
        )
    raise HttpError(
        f"model {asked[:100]!r} does not exist here; this server serves "
        f"{', '.join(map(repr, (model.name, *model.adapters)))}",
        404,
        "model_not_found",
    )
