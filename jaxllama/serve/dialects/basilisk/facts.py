"""`/basilisk/ping`, `/config`, `/embed` and `/tokenize`."""

import msgspec
from aiohttp import web

from jaxllama.errors import HttpError
from jaxllama.serve.answering.vectors import vectors_of_encoder
from jaxllama.serve.dialects.basilisk.encoding import encode, fragments_of
from jaxllama.serve.dialects.basilisk.options import BasiliskDefaults
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import CALLER
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model


class BasiliskConfig(BasiliskDefaults, frozen=True, kw_only=True):
    """The operator's defaults, and the sizes of the engine."""

    length: int  # tokens of prompt and answer together
    beams: int = 1
    beam_length: int = 1


class BasiliskEmbedBody(RequestShape, kw_only=True):
    """A text to embed."""

    prompt: str


class BasiliskVector(msgspec.Struct):
    """The vector of a text, and the model that made it."""

    embedding: list[float]
    dimensions: int
    model: str


class BasiliskTokenizeBody(RequestShape, kw_only=True):
    """A text to convert to tokens."""

    prompt: str
    special_convert: bool = False


class BasiliskTokens(msgspec.Struct):
    """Token ids, and the text of each."""

    tokens: list[int]
    fragments: list[str]


class BasiliskError(msgspec.Struct):
    """Body of an error."""

    error: str


PING = Endpoint(
    "GET", "/basilisk/ping", "Whether the server answers", answer=str, uses=Uses.NOTHING
)
CONFIG = Endpoint(
    "GET", "/basilisk/config", "The operator's defaults, in basilisk's form", answer=BasiliskConfig
)
EMBED = Endpoint(
    "POST",
    "/basilisk/embed",
    "Turn a text into a vector, in basilisk's form; needs --embedding-model",
    body=BasiliskEmbedBody,
    answer=BasiliskVector,
    any_type=True,
)
TOKENIZE = Endpoint(
    "POST",
    "/basilisk/tokenize",
    "Convert a text to tokens, in basilisk's form",
    body=BasiliskTokenizeBody,
    answer=BasiliskTokens,
    any_type=True,
)


class BasiliskFacts:
    """The handler of the configuration."""

    def __init__(self, defaults: BasiliskDefaults) -> None:
        self._defaults = defaults

    async def config(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /basilisk/config with the operator's default values for requests."""
        del request
        context = service.model.engine.config.context
        return one_json(BasiliskConfig(**msgspec.structs.asdict(self._defaults), length=context))


async def ping(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /basilisk/ping, a health check: the server runs."""
    del request, service
    return web.Response(text="pong")


async def embed(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /basilisk/embed with the vector of a text, made by the encoder model."""
    body, _ = await EMBED.read(request, service, BasiliskEmbedBody)
    served = service.model.encoder
    if served is None:
        raise HttpError("embedding model not loaded", 501, "no_embedding_model")
    vectors, _ = await vectors_of_encoder(
        [body.prompt], served, service, request[CALLER], truncate=True
    )
    vector = vectors[0].tolist()
    return one_json(BasiliskVector(vector, len(vector), served.name))


async def tokenize(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /basilisk/tokenize with the token ids of a text, and the text of each."""
    body, _ = await TOKENIZE.read(request, service, BasiliskTokenizeBody)

    def work(model: Model) -> BasiliskTokens:
        ids = encode(model, body.prompt, special_convert=body.special_convert)
        return BasiliskTokens(ids, fragments_of(model.intake.tokenizer, ids))

    return one_json(await service.off_loop(work, request[CALLER], size=len(body.prompt)))
