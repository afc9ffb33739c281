"""`/v1/models`: lists the served models with their states, and the encoder if there is one."""

from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jaxllama.serve.answering.models import check_adapted
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import MODELS
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model, ServedEncoder
from jaxllama.service.served_models import ModelState, ServedModel


class ModelCard(msgspec.Struct):
    """Description of a model."""

    id: str
    created: int
    # Tokens of prompt and answer together; unset until a model has been measured.
    context_length: int | UnsetType
    sampling_defaults: dict[str, Any]  # knobs that a request gets if it does not set them
    object: Literal["model"] = "model"
    owned_by: str = "jaxllama"
    dimensions: int | UnsetType = UNSET  # numbers of a vector; of encoders only
    parent: str | UnsetType = UNSET  # the model that an adapter changes; of adapters only
    state: ModelState = ModelState.LOADED
    reason: str | UnsetType = UNSET  # why loading failed


class ModelList(msgspec.Struct):
    """Response with all models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


LIST_MODELS = Endpoint(
    "GET", "/v1/models", "List the models, with their states", answer=ModelList, uses=Uses.NOTHING
)
DESCRIBE_MODEL = Endpoint(
    "GET", "/v1/models/{model:.+}", "Describe a model", answer=ModelCard, uses=Uses.NOTHING
)


async def list_models(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /v1/models with the served models, the default one first, and their adapters."""
    del service
    models = request.app[MODELS]
    ordered = sorted(models.all, key=lambda each: each is not models.default)
    return one_json(ModelList([one for served in ordered for one in cards(served)]))


async def describe_model(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /v1/models/{model} with the description of that model; 404 for other names."""
    del service
    asked = request.match_info["model"]
    served = request.app[MODELS].find(asked)
    if not served.is_present:
        return one_json(waiting_card(served, asked))
    model = served.service.model
    if model.encoder is not None and asked in model.encoder.names:
        return one_json(encoder_card(model.encoder, asked))
    return one_json(card(model, check_adapted(asked, model, {})))


def cards(served: ServedModel) -> list[ModelCard]:
    """Describe a model, each of its LoRA adapters, and its embedding encoder, if it has one.

    A model that is not loaded is described without an encoder.
    """
    if not served.is_present:
        names = (served.name, *served.adapters)
        return [waiting_card(served, each) for each in names]
    model = served.service.model
    found = [card(model, each) for each in (model.name, *model.adapters)]
    if model.encoder is not None:
        found.append(encoder_card(model.encoder, model.encoder.name))
    return found


def card(model: Model, name: str) -> ModelCard:
    """Describe a loaded model, or one of its LoRA adapters.

    `name` is the name in the description: the model's, an alias of it, or the adapter's.
    """
    return ModelCard(
        id=name,
        created=int(model.loaded),
        context_length=model.engine.config.context,
        sampling_defaults=model.intake.defaults,
        parent=UNSET if name in model.names else model.name,
    )


def waiting_card(served: ServedModel, name: str) -> ModelCard:
    """Describe a model that is not loaded, without the facts that only a loaded model has.

    `name` is the name in the description: the model's, an alias, or that of a LoRA adapter.
    """
    return ModelCard(
        id=name,
        created=int(served.made),
        context_length=UNSET if served.needs is None else served.needs.context,
        sampling_defaults={},
        state=served.state,
        reason=served.reason or UNSET,
        parent=served.name if name in served.adapters else UNSET,
    )


def encoder_card(served: ServedEncoder, name: str) -> ModelCard:
    """Describe an embedding encoder.

    `name` is the name in the description: the encoder's own, or an alias of it.
    """
    config = served.encoder.config
    return ModelCard(
        id=name,
        created=int(served.loaded),
        context_length=config.max_length,
        sampling_defaults={},
        dimensions=config.width,
    )
