"""Facts about this server as one worker of several: `/server_info` and `/get_model_info`.

In the form of SGLang's routes, which routers read when a worker joins them.
"""

from importlib.metadata import version

import msgspec
from aiohttp import web

from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService


class ServerInfo(msgspec.Struct):
    """Model, size and version of a worker; paths are the model's name: real ones are private."""

    model_path: str
    served_model_name: str
    tokenizer_path: str
    max_running_requests: int
    max_total_num_tokens: int
    context_length: int
    tp_size: int
    dp_size: int
    version: str


class ModelInfo(msgspec.Struct):
    """The model of a worker."""

    model_path: str
    tokenizer_path: str
    is_generation: bool = True
    preferred_sampling_params: None = None


SERVER_INFO = Endpoint(
    "GET", "/server_info", "Describe this server to a router, in SGLang's form", answer=ServerInfo
)
MODEL_INFO = Endpoint(
    "GET", "/get_model_info", "Describe the model to a router, in SGLang's form", answer=ModelInfo
)


async def server_info(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /server_info with the server's model, size and version."""
    del request
    model = service.model
    config = model.engine.config
    return one_json(
        ServerInfo(
            model_path=model.name,
            served_model_name=model.name,
            tokenizer_path=model.name,
            max_running_requests=config.slots,
            max_total_num_tokens=config.slots * config.context,
            context_length=config.context,
            # The mesh is inside this server: to a router it is one worker.
            tp_size=1,
            dp_size=1,
            version=f"jaxllama {version('jaxllama')}",
        )
    )


async def model_info(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /get_model_info with the model's name."""
    del request
    return one_json(ModelInfo(service.model.name, service.model.name))
