"""What is installed: `/v1/plugins`, out of which the page makes its controls."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from aiohttp import web

from jaxllama.formats import PromptFormat
from jaxllama.limits import LIMITS, Limit
from jaxllama.registry import FORMATS, load_plugins
from jaxllama.sampling import Adjuster, Filter, KnobSpec, Sampler, Shaper, knobs_of
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model

Socket = Literal["adjuster", "filter", "shaper"]
SOCKETS: dict[Socket, type[Sampler]] = {"adjuster": Adjuster, "filter": Filter, "shaper": Shaper}


class KnobCard(msgspec.Struct):
    """A parameter of a sampler."""

    name: str
    type: Literal["int", "float", "bool"]
    off: int | float | bool
    recommended: Any  # by the model's maker, used where a request does not set it; or null
    low: int | float | None
    high: int | float | None
    width: int | None  # None: one number; n: a list of at most n
    by_token: bool  # an object of token ids and numbers
    tokens: bool  # a list of token ids
    phrases: bool  # a list of texts, or of lists of token ids
    switch: bool  # whether it turns the sampler on
    help: str


class SamplerCard(msgspec.Struct):
    """An installed sampler."""

    name: str
    doc: str
    kind: Socket
    order: int
    knobs: list[KnobCard]


class FormatCard(msgspec.Struct):
    """An installed prompt format; `chosen` is the one in use."""

    name: str
    doc: str
    chosen: bool


class PresetCard(msgspec.Struct):
    """A named set of knobs."""

    name: str
    doc: str
    knobs: dict[str, Any]


class CoreCard(msgspec.Struct):
    """A field that every request may have."""

    name: str
    type: Literal["int", "float", "bool", "str"]
    default: Any
    recommended: Any  # by the model's maker, used where a request does not set it; or null
    low: int | float | None
    high: int | float | None
    many: bool
    most: int
    longest: int
    help: str


class PluginCards(msgspec.Struct):
    """What is installed, with every knob and its bounds."""

    samplers: list[SamplerCard]
    formats: list[FormatCard]
    presets: list[PresetCard]
    core: list[CoreCard]


PLUGINS = Endpoint("GET", "/v1/plugins", "What is installed, with bounds", answer=PluginCards)


async def plugins(request: web.Request, service: GenerationService) -> web.Response:
    """What is installed."""
    return one_json(await service.off_loop(cards, request[CALLER]))


def cards(model: Model) -> PluginCards:
    """Everything that is installed, described."""
    return PluginCards(
        samplers=[
            sampler_card(*item, model.intake.defaults)
            for item in model.intake.bank.samplers.items()
        ],
        formats=[
            FormatCard(name, doc_of(kind), name == model.intake.format.name)
            for name, kind in load_plugins(FORMATS, PromptFormat).loaded.items()  # type: ignore[type-abstract]
            if name in model.intake.formats
        ],
        presets=[
            PresetCard(name, doc_of(kind), dict(kind.knobs))
            for name, kind in model.intake.presets.items()
        ],
        core=[core_card(*item, model.intake.defaults) for item in LIMITS.items()],
    )


def sampler_card(name: str, kind: type[Sampler], defaults: Mapping[str, Any]) -> SamplerCard:
    """One sampler."""
    specs: Mapping[str, KnobSpec] = knobs_of(kind)
    return SamplerCard(
        name=name,
        doc=doc_of(kind),
        kind=next(word for word, socket in SOCKETS.items() if issubclass(kind, socket)),
        order=kind.order,
        knobs=[knob_card(*item, defaults) for item in specs.items()],
    )


def knob_card(name: str, spec: KnobSpec, defaults: Mapping[str, Any]) -> KnobCard:
    """One knob."""
    return KnobCard(
        name=name,
        type=spec.kind.__name__,  # type: ignore[arg-type]
        off=spec.off,
        recommended=defaults.get(name),
        low=spec.low,
        high=spec.high,
        width=spec.width,
        by_token=spec.by_token,
        tokens=spec.tokens,
        phrases=spec.phrases,
        switch=spec.switch,
        help=spec.help,
    )


def core_card(name: str, limit: Limit, defaults: Mapping[str, Any]) -> CoreCard:
    """One field of every request."""
    return CoreCard(
        name=name,
        type=limit.kind.__name__,  # type: ignore[arg-type]
        default=limit.default,
        recommended=defaults.get(name),
        low=limit.low,
        high=limit.high,
        many=limit.many,
        most=limit.most,
        longest=limit.longest,
        help=limit.help,
    )


def doc_of(kind: type) -> str:
    """What a plugin says about itself."""
    return inspect.getdoc(kind) or ""
