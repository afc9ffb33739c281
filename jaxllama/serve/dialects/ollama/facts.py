"""`/api/tags`, `/api/show`, `/api/ps`, `/api/pull` and `/api/version`: facts about the models.

Part of the Ollama dialect. No route here loads a model, as clients describe all of the list.
Pulling a model that the server does not have is refused.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import HttpError
from jaxllama.serve.dialects.ollama.shapes import check_name
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import CALLER, MODELS
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import JSON_LINES, ResponseStream, one_json
from jaxllama.service import GenerationService, Model
from jaxllama.service.served_models import LATEST, ServedModel

API_VERSION = "0.12.6"  # of the Ollama whose API this is: clients ask for a lowest one
FOREVER = "2318-01-01T00:00:00Z"  # as Ollama says of a model that it never unloads
MILLION, BILLION = 10**6, 10**9


class ModelDetails(msgspec.Struct):
    """Format, family and size of a model."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


UNKNOWN = ModelDetails("", "jaxllama", "llama", ["llama"], "unknown", "unknown")


class TaggedModel(msgspec.Struct):
    """A model that can be used."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class TaggedModels(msgspec.Struct):
    """All models that can be used."""

    models: list[TaggedModel]


class RunningModel(msgspec.Struct):
    """A model that is loaded."""

    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(msgspec.Struct):
    """All models that are loaded."""

    models: list[RunningModel]


class ShowBody(RequestShape, kw_only=True):
    """The model to describe; `name` is the older name of the field."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None  # adds the vocabulary to model_info


class ShownModel(msgspec.Struct):
    """Description of a model."""

    modelfile: str
    parameters: str
    template: str
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str = ""


class PullBody(RequestShape, kw_only=True):
    """The model to fetch; `name` is the older name of the field."""

    model: str | None = None
    name: str | None = None
    insecure: bool | None = None  # of no effect where nothing is fetched
    stream: bool | None = None  # None: true


class PullProgress(msgspec.Struct):
    """One line of the progress."""

    status: str


class VersionAnswer(msgspec.Struct):
    """The version of the API."""

    version: str


TAGS = Endpoint(
    "GET",
    "/api/tags",
    "List the models, in Ollama's form",
    answer=TaggedModels,
    uses=Uses.NOTHING,
)
PS = Endpoint(
    "GET",
    "/api/ps",
    "List the loaded models, in Ollama's form",
    answer=RunningModels,
    uses=Uses.NOTHING,
)
SHOW = Endpoint(
    "POST",
    "/api/show",
    "Describe a model, in Ollama's form",
    body=ShowBody,
    answer=ShownModel,
    uses=Uses.NOTHING,
    any_type=True,
)
PULL = Endpoint(
    "POST",
    "/api/pull",
    "Make sure that a model is here, in Ollama's form",
    body=PullBody,
    answer=PullProgress,
    events=(PullProgress,),
    framing=JSON_LINES,
    uses=Uses.NOTHING,
    any_type=True,
)
VERSION = Endpoint(
    "GET",
    "/api/version",
    "The version of Ollama whose API this is",
    answer=VersionAnswer,
    uses=Uses.NOTHING,
)


async def tags(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /api/tags with the served models and, if there is one, the encoder model."""
    del service
    found: list[TaggedModel] = []
    for served in request.app[MODELS].all:
        if not served.is_present:
            found.append(tagged_waiting(served))
            continue
        model = served.service.model
        names = [model.name, *([model.encoder.name] if model.encoder is not None else [])]
        found += [tagged(model, name) for name in names]
    return one_json(TaggedModels(found))


async def ps(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /api/ps with the loaded models, and when each will be unloaded."""
    del service
    return one_json(
        RunningModels([running(each) for each in request.app[MODELS].all if each.is_present])
    )


def running(served: ServedModel) -> RunningModel:
    """Describe a loaded model."""
    model = served.service.model
    one = tagged(model, model.name)
    return RunningModel(
        name=one.name,
        model=one.model,
        size=one.size,
        digest=one.digest,
        details=one.details,
        expires_at=FOREVER if served.expires is None else time_text(served.expires),
        size_vram=0,
        context_length=model.engine.config.context,
    )


async def show(request: web.Request, service: GenerationService) -> web.Response:
    """Answer POST /api/show with the description of a model; a short one if it is not loaded."""
    body, _ = await SHOW.read(request, service, ShowBody)
    asked, verbose = asked_of(body.model, body.name), bool(body.verbose)
    served = request.app[MODELS].find(asked)
    if not served.is_present:
        return one_json(describe_waiting(served))
    check_name(asked, served.service.model)
    return one_json(
        await served.service.off_loop(lambda each: describe(each, verbose), request[CALLER])
    )


async def pull(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer POST /api/pull with the progress of fetching a model, which is complete at once.

    Only served models can be named.
    """
    body, _ = await PULL.read(request, service, PullBody)
    asked = asked_of(body.model, body.name)
    served = request.app[MODELS].find(asked)
    if served.is_present:
        check_name(asked, served.service.model)
    steps = [PullProgress(each) for each in ("pulling manifest", "verifying", "success")]
    if body.stream is False:
        return one_json(steps[-1])
    async with ResponseStream(request, JSON_LINES) as lines:
        await lines.finish(steps)
    return lines.response


async def tell_version(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /api/version with the version of Ollama whose API this is."""
    del request, service
    return one_json(VersionAnswer(API_VERSION))


def asked_of(model: str | None, name: str | None) -> str:
    """Return the model's name from either field of a body; raise HttpError if both are empty."""
    asked = model or name
    if not asked:
        raise HttpError("model is required", 400, "model_required")
    return asked


def tagged(model: Model, name: str) -> TaggedModel:
    """Describe a loaded model, or its encoder, as an entry of a list.

    `name` is the name in the entry. If `name` is the encoder's name, the encoder is described.
    """
    encoder = model.encoder if model.encoder is not None and model.encoder.name == name else None
    loaded = model.loaded if encoder is None else encoder.loaded
    return TaggedModel(
        name=f"{name}{LATEST}",
        model=f"{name}{LATEST}",
        modified_at=time_text(loaded),
        size=model.weight_bytes if encoder is None else 0,
        digest=digest_of(name),
        details=details_of(model) if encoder is None else encoder_details(),
    )


def tagged_waiting(served: ServedModel) -> TaggedModel:
    """Describe a model that is not loaded as an entry of a list.

    Facts that only a loaded model has are left out.
    """
    return TaggedModel(
        name=f"{served.name}{LATEST}",
        model=f"{served.name}{LATEST}",
        modified_at=time_text(served.made),
        size=served.memory,
        digest=digest_of(served.name),
        details=UNKNOWN,
    )


def describe_waiting(served: ServedModel) -> ShownModel:
    """Describe a model that is not loaded; facts that only a loaded model has are left out."""
    return ShownModel(
        modelfile=f"# jaxllama: {served.name} is {served.state}",
        parameters="",
        template="",
        details=UNKNOWN,
        model_info={} if served.needs is None else {"llama.context_length": served.needs.context},
        capabilities=["completion"],
        modified_at=time_text(served.made),
    )


def digest_of(name: str) -> str:
    """Return a hash of the model's name, which is shown in place of a digest of its files."""
    return hashlib.sha256(name.encode()).hexdigest()


def time_text(seconds: float) -> str:
    """Return a time in seconds since 1970 as Ollama writes it."""
    return f"{datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()}Z"


def details_of(model: Model) -> ModelDetails:
    """Return the family and the number of parameters of the served model, in Ollama's form."""
    count = model.shape.parameters
    size = f"{count / BILLION:.1f}B" if count >= BILLION else f"{count / MILLION:.2f}M"
    return ModelDetails("", "jaxllama", "llama", ["llama"], size, "unknown")


def encoder_details() -> ModelDetails:
    """Return the family of an encoder model, in Ollama's form."""
    return ModelDetails("", "jaxllama", "bert", ["bert"], "unknown", "unknown")


def describe(model: Model, verbose: bool) -> ShownModel:
    """Describe the served model for /api/show; `verbose` adds the vocabulary."""
    text, intake, shape = model.intake.tokenizer.text, model.intake, model.shape
    defaults = intake.defaults
    parameters = "\n".join(f"{name} {json.dumps(value)}" for name, value in defaults.items())
    tools = intake.with_format(intake.format_for(None, [], [{}])).format.calls is not None
    info: dict[str, Any] = {
        "general.architecture": "llama",
        "general.parameter_count": shape.parameters,
        "general.name": model.name,
        "llama.context_length": model.engine.config.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.vocab_size": intake.tokenizer.vocab_size,
    }
    if verbose:
        pieces = range(intake.tokenizer.vocab_size)
        info["tokenizer.ggml.tokens"] = [
            intake.tokenizer.piece(id_, special=True).decode("utf-8", "replace") for id_ in pieces
        ]
    return ShownModel(
        modelfile=f"FROM {model.name}\n",
        parameters=parameters,
        template=text.template or "",
        details=details_of(model),
        model_info=info,
        capabilities=[
            "completion",
            "embedding",
            *(["tools"] if tools else []),
            *(["thinking"] if model.intake.format.thinks else []),
        ],
        modified_at=tagged(model, model.name).modified_at,
    )
