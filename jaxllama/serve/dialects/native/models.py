"""`/models/load` and `/models/unload`: load and unload one of several models while serving.

Only models that the operator lists in --models-file can be loaded, as only the adapters of
--lora-folder can.
"""

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import MODELS
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService
from jaxllama.service.served_models import ModelState, ServedModel


class LoadModelBody(RequestShape, kw_only=True):
    """The name of a model, and whether the answer comes only when it is loaded."""

    model: str
    wait: bool = True


class UnloadModelBody(RequestShape, kw_only=True):
    """The name of a model."""

    model: str


class ModelStatus(msgspec.Struct):
    """The state of a model."""

    model: str
    state: ModelState
    requests: int  # that use it, or wait until it is loaded
    memory_bytes: int  # while it is loaded, as estimated; 0: not known yet
    reason: str | UnsetType = UNSET  # why loading failed


LOAD_MODEL = Endpoint(
    "POST",
    "/models/load",
    "Load one of several models; the answer comes when it is loaded",
    body=LoadModelBody,
    answer=ModelStatus,
    uses=Uses.NOTHING,
)
UNLOAD_MODEL = Endpoint(
    "POST",
    "/models/unload",
    "Unload one of several models, which no request uses",
    body=UnloadModelBody,
    answer=ModelStatus,
    uses=Uses.NOTHING,
)


async def load_model(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /models/load: load a model, and return its state."""
    body, _ = await LOAD_MODEL.read(request, service, LoadModelBody)
    return one_json(status_of(await request.app[MODELS].load(body.model, waits=body.wait)))


async def unload_model(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /models/unload: unload a model, and return its state."""
    body, _ = await UNLOAD_MODEL.read(request, service, UnloadModelBody)
    return one_json(status_of(await request.app[MODELS].unload(body.model)))


def status_of(served: ServedModel) -> ModelStatus:
    """Describe the state of a model."""
    return ModelStatus(
        served.name, served.state, served.users, served.memory, served.reason or UNSET
    )
