"""`/v1/plugins`: the installed samplers, formats and presets; the page builds controls from it."""

import functools
import inspect
from collections.abc import Mapping
from importlib.resources import files
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
    """Description of a knob, a parameter of a sampler."""

    name: str
    type: Literal["int", "float", "bool", "str"]  # str: a text that the sampler reads
    off: int | float | bool | None
    recommended: Any  # the model maker's value, used if a request does not set it; or null
    low: int | float | None
    high: int | float | None
    width: int | None  # None: one number; n: a list of at most n
    by_token: bool  # an object from token ids to numbers
    tokens: bool  # a list of token ids
    phrases: bool  # a list of texts, or of lists of token ids
    longest: int | None  # characters of a text
    examples: list[str]  # of a text
    words: dict[str, str]  # names that a text may contain, with their meaning
    switch: bool  # whether it switches the sampler on
    help: str


class MeasuredCost(msgspec.Struct):
    """The time that a sampler adds to each row of a decode step, as its package measured it."""

    microseconds: float
    where: str  # how and on what it was measured


class SamplerCard(msgspec.Struct):
    """Description of an installed sampler."""

    name: str
    doc: str
    kind: Socket
    order: int
    knobs: list[KnobCard]
    cost: MeasuredCost | None  # null: its package has no costs.json, or does not name it


class FormatCard(msgspec.Struct):
    """Description of an installed prompt format; `chosen` if it is the model's."""

    name: str
    doc: str
    chosen: bool


class PresetCard(msgspec.Struct):
    """Description of a preset, a named set of knob values."""

    name: str
    doc: str
    knobs: dict[str, Any]


class CoreCard(msgspec.Struct):
    """Description of a core field, which every request may have."""

    name: str
    type: Literal["int", "float", "bool", "str"]
    default: Any
    recommended: Any  # the model maker's value, used if a request does not set it; or null
    low: int | float | None
    high: int | float | None
    many: bool
    most: int
    longest: int
    words: list[str]  # accepted in place of a number
    help: str


class PluginCards(msgspec.Struct):
    """Installed samplers, formats and presets, with all knobs and their bounds."""

    samplers: list[SamplerCard]
    formats: list[FormatCard]
    presets: list[PresetCard]
    core: list[CoreCard]


PLUGINS = Endpoint(
    "GET",
    "/v1/plugins",
    "List the installed samplers, formats and presets, with all knobs and their bounds",
    answer=PluginCards,
)


async def plugins(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /v1/plugins with the description of all plugins."""
    return one_json(await service.off_loop(cards, request[CALLER]))


def cards(model: Model) -> PluginCards:
    """Describe all installed plugins, and the request fields that belong to no plugin."""
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
    """Describe the sampler class `kind`, installed as `name`, and its knobs (request parameters).

    `defaults` has the values of knobs that the model's maker recommends.
    """
    specs: Mapping[str, KnobSpec] = knobs_of(kind)
    return SamplerCard(
        name=name,
        doc=doc_of(kind),
        kind=next(word for word, socket in SOCKETS.items() if issubclass(kind, socket)),
        order=kind.order,
        knobs=[knob_card(*item, defaults) for item in specs.items()],
        cost=measured_cost(name, kind.__module__.partition(".")[0]),
    )


def measured_cost(name: str, package: str) -> MeasuredCost | None:
    """Return the cost of the sampler `name` from costs.json of its Python package.

    `package` is the name of that package. The result is None if the file has no cost for it.
    """
    stated = stated_costs(package)
    if stated is None or name not in stated.microseconds:
        return None
    return MeasuredCost(stated.microseconds[name], stated.where)


class StatedCosts(msgspec.Struct):
    """The content of a package's costs.json."""

    where: str
    microseconds: dict[str, float]


@functools.cache
def stated_costs(package: str) -> StatedCosts | None:
    """Read costs.json, the costs of a Python package's samplers; None if it cannot be read."""
    try:
        raw = (files(package) / "costs.json").read_bytes()
        return msgspec.json.decode(raw, type=StatedCosts)
    except (OSError, ValueError, ImportError, TypeError):  # also msgspec's errors
        return None


def knob_card(name: str, spec: KnobSpec, defaults: Mapping[str, Any]) -> KnobCard:
    """Describe the knob (request parameter) `name`, which its sampler declares with `spec`.

    `defaults` has the values that the model's maker recommends.
    """
    text = spec.text
    return KnobCard(
        name=name,
        type=spec.kind.__name__ if text is None else "str",  # type: ignore[arg-type]
        off=spec.off if text is None else None,
        recommended=defaults.get(name),
        low=spec.low,
        high=spec.high,
        width=spec.width if text is None else None,
        by_token=spec.by_token,
        tokens=spec.tokens,
        phrases=spec.phrases,
        longest=None if text is None else text.longest,
        examples=[] if text is None else list(text.examples),
        words={} if text is None else dict(text.words),
        switch=spec.switch,
        help=spec.help,
    )


def core_card(name: str, limit: Limit, defaults: Mapping[str, Any]) -> CoreCard:
    """Describe the request field `name`, which belongs to no plugin.

    `limit` has the field's bounds and default, `defaults` the values that the model's maker
    recommends.
    """
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
        words=list(limit.words),
        help=limit.help,
    )


def doc_of(kind: type) -> str:
    """Return the docstring of a plugin class."""
    return inspect.getdoc(kind) or ""
