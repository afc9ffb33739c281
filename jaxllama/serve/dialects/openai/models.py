"""`/v1/models`: lists the one served model."""

from typing import Any, Literal

import msgspec
from aiohttp import web

from jaxllama.serve.dialects.openai.shapes import check_model
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model


class ModelCard(msgspec.Struct):
    """Description of a model."""

    id: str
    created: int
    context_length: int  # tokens of prompt and answer together
    sampling_defaults: dict[str, Any]  # knobs that a request gets if it does not set them
    object: Literal["model"] = "model"
    owned_by: str = "jaxllama"


class ModelList(msgspec.Struct):
    """Response with all models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


MODELS = Endpoint("GET", "/v1/models", "List the models", answer=ModelList)
MODEL = Endpoint("GET", "/v1/models/{model:.+}", "Describe a model", answer=ModelCard)


async def list_models(request: web.Request, service: GenerationService) -> web.Response:
    """Answer with the list of models."""
    del request
    return one_json(ModelList([card(service.model, service.model.name)]))


async def describe_model(request: web.Request, service: GenerationService) -> web.Response:
    """Answer with the description of a model by its name; 404 for other names."""
    name = check_model(request.match_info["model"], service.model)
    return one_json(card(service.model, name))


def card(model: Model, name: str) -> ModelCard:
    """Describe the model under `name`, its own or an alias."""
    return ModelCard(
        id=name,
        created=int(model.loaded),
        context_length=model.engine.config.context,
        sampling_defaults=model.intake.defaults,
    )
