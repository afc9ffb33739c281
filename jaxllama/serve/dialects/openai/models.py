"""`/v1/models`: lists the served model, and the encoder beside it if there is one."""

from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jaxllama.serve.answering.models import check_adapted
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model, ServedEncoder


class ModelCard(msgspec.Struct):
    """Description of a model."""

    id: str
    created: int
    context_length: int  # tokens of prompt and answer together
    sampling_defaults: dict[str, Any]  # knobs that a request gets if it does not set them
    object: Literal["model"] = "model"
    owned_by: str = "jaxllama"
    dimensions: int | UnsetType = UNSET  # numbers of a vector; of encoders only
    parent: str | UnsetType = UNSET  # the model that an adapter changes; of adapters only


class ModelList(msgspec.Struct):
    """Response with all models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


MODELS = Endpoint("GET", "/v1/models", "List the models", answer=ModelList)
MODEL = Endpoint("GET", "/v1/models/{model:.+}", "Describe a model", answer=ModelCard)


async def list_models(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /v1/models with the served model, its LoRA adapters, and the encoder."""
    del request
    model = service.model
    cards = [card(model, each) for each in (model.name, *model.adapters)]
    if model.encoder is not None:
        cards.append(encoder_card(model.encoder, model.encoder.name))
    return one_json(ModelList(cards))


async def describe_model(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /v1/models/{model} with the description of that model; 404 for other names."""
    asked, served = request.match_info["model"], service.model.encoder
    if served is not None and asked in served.names:
        return one_json(encoder_card(served, asked))
    name = check_adapted(asked, service.model, {})
    return one_json(card(service.model, name))


def card(model: Model, name: str) -> ModelCard:
    """Describe the served model under `name`: its own, an alias, or that of a LoRA adapter."""
    return ModelCard(
        id=name,
        created=int(model.loaded),
        context_length=model.engine.config.context,
        sampling_defaults=model.intake.defaults,
        parent=UNSET if name in model.names else model.name,
    )


def encoder_card(served: ServedEncoder, name: str) -> ModelCard:
    """Describe the encoder under `name`, its own or an alias."""
    config = served.encoder.config
    return ModelCard(
        id=name,
        created=int(served.loaded),
        context_length=config.max_length,
        sampling_defaults={},
        dimensions=config.width,
    )
