"""LoRA adapters while serving: lists, loads and unloads them.

Paths and bodies are vLLM's. Adapters are loaded from the folder that the operator allows with
`--lora-folder`, and from nowhere else.
"""

from pathlib import Path

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService


class LoadAdapterBody(RequestShape, kw_only=True):
    """The name for requests, and a PEFT folder inside the allowed one."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False  # replace a loaded adapter of this name


class UnloadAdapterBody(RequestShape, kw_only=True):
    """The name of a loaded adapter."""

    lora_name: str


class AdapterCard(msgspec.Struct):
    """A loaded adapter."""

    name: str
    requests: int  # accepted so far


class AdapterList(msgspec.Struct):
    """All loaded adapters, and the room for adapters."""

    adapters: list[AdapterCard]
    slots: int  # adapters that can be loaded together
    rank: int  # the highest rank of one


ADAPTERS = Endpoint(
    "GET", "/v1/lora_adapters", "List the LoRA adapters", answer=AdapterList, uses=Uses.LOADED_MODEL
)
LOAD_ADAPTER = Endpoint(
    "POST",
    "/v1/load_lora_adapter",
    "Load a LoRA adapter from the allowed folder",
    body=LoadAdapterBody,
    answer=AdapterList,
)
UNLOAD_ADAPTER = Endpoint(
    "POST",
    "/v1/unload_lora_adapter",
    "Unload a LoRA adapter; requests that use it go on to their end",
    body=UnloadAdapterBody,
    answer=AdapterList,
)


async def list_adapters(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /v1/lora_adapters with the loaded LoRA adapters."""
    del request
    return one_json(adapter_list(service))


async def load_adapter(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /v1/load_lora_adapter: load a LoRA adapter, and list all that are loaded."""
    body, _ = await LOAD_ADAPTER.read(request, service, LoadAdapterBody)
    folder = allowed_folder(request.app[SETTINGS].lora_folder, body.lora_path)
    model = service.model
    if body.lora_name in model.names:
        raise InvalidParameter(
            f"lora_name is {body.lora_name!r}, the name of the model; expected another", "lora_name"
        )
    if body.lora_name in model.adapters and not body.load_inplace:
        raise InvalidParameter(
            f"an adapter named {body.lora_name!r} is loaded already; unload it first, or set "
            f"load_inplace to replace it",
            "lora_name",
        )
    await service.load_adapter(body.lora_name, folder, request[CALLER])
    return one_json(adapter_list(service))


async def unload_adapter(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /v1/unload_lora_adapter: unload a LoRA adapter; list those still loaded."""
    body, _ = await UNLOAD_ADAPTER.read(request, service, UnloadAdapterBody)
    allowed_folder(request.app[SETTINGS].lora_folder, "")
    await service.unload_adapter(body.lora_name, request[CALLER])
    return one_json(adapter_list(service))


def allowed_folder(root: str | None, path: str) -> Path:
    """Return the folder `path` below `root`; raise InvalidParameter if it is outside.

    `root` is the value of --lora-folder. If it is None, no folder is allowed: raises
    InvalidParameter.
    """
    if root is None:
        raise InvalidParameter(
            "adapters cannot be changed while this server runs; start it with --lora-folder PATH "
            "to allow those of one folder",
            "lora_name",
        )
    allowed = Path(root).resolve()
    try:
        folder = (allowed / path).resolve()
    except (OSError, ValueError):
        folder = Path("/")
    if not folder.is_relative_to(allowed):
        raise InvalidParameter(
            f"lora_path is {path[:200]!r}; expected a folder inside the one that --lora-folder "
            f"allows",
            "lora_path",
        )
    return folder


def adapter_list(service: GenerationService) -> AdapterList:
    """Return the loaded LoRA adapters with their request counts.

    The list also says how many adapters can be loaded together, and the highest rank of one.
    """
    engine = service.model.engine
    counts = {} if engine.adapters is None else engine.adapters.requests
    cards = [AdapterCard(name, counts.get(name, 0)) for name in service.model.adapters]
    return AdapterList(cards, engine.config.adapter_slots, engine.config.adapter_rank)
