"""Facts about the model and the engine: `/tokenizer_info`, `/props` and `/slots`.

`/tokenizer_info` has the form of vLLM's route, the others of llama.cpp's, for clients made for
those servers. Shows numbers of other clients' requests, never their texts, tokens or seeds.
"""

from importlib.metadata import version
from typing import Any, Literal

import msgspec
from aiohttp import web

from jaxllama.config import EngineConfig
from jaxllama.errors import NotReady
from jaxllama.limits import LIMITS
from jaxllama.serve.aliases import ALIASES
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, Model, SlotState

NO_TASK = -1
NO_LIMIT = -1
# Fields that llama.cpp's clients expect as numbers, and its number for "no limit" or "random".
NUMBERS_THERE, UNSET_THERE = ("max_tokens", "seed"), -1


class TokenizerInfo(msgspec.Struct):
    """The tokenizer's settings, in the form of a tokenizer_config.json."""

    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool
    additional_special_tokens: list[str]
    chat_template: str | None
    model_max_length: int
    vocab_size: int
    pad_token: None = None
    unk_token: None = None
    add_eos_token: bool = False
    clean_up_tokenization_spaces: bool = False
    tokenizer_class: Literal["PreTrainedTokenizerFast"] = "PreTrainedTokenizerFast"


class DefaultSettings(msgspec.Struct):
    """Default parameters of a request."""

    n_ctx: int
    params: dict[str, Any]


class Modalities(msgspec.Struct):
    """Inputs of the model besides text: none."""

    vision: bool = False
    audio: bool = False


class Properties(msgspec.Struct):
    """Properties of the server; `model_path` is only the model's name: paths are private."""

    default_generation_settings: DefaultSettings
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    modalities: Modalities = msgspec.field(default_factory=Modalities)
    is_sleeping: bool = False


class NextToken(msgspec.Struct):
    """Progress of the answer in a slot; `n_remain` is -1 if the slot is free."""

    has_next_token: bool
    n_remain: int
    n_decoded: int


class SlotCard(msgspec.Struct):
    """State of one slot; `params` has the numeric knobs of the request that holds it."""

    id: int
    id_task: int
    n_ctx: int
    is_processing: bool
    n_prompt_tokens: int
    n_cached_tokens: int
    params: dict[str, Any]
    next_token: NextToken
    speculative: bool  # whether its steps may draft tokens


TOKENIZER_INFO = Endpoint(
    "GET", "/tokenizer_info", "Describe the tokenizer, in vLLM's form", answer=TokenizerInfo
)
PROPS = Endpoint("GET", "/props", "Describe the server, in llama.cpp's form", answer=Properties)
SLOTS = Endpoint(
    "GET",
    "/slots",
    "Describe the state of each slot, in llama.cpp's form",
    answer=list[SlotCard],
    uses=Uses.LOADED_MODEL,
)


async def tokenizer_info(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /tokenizer_info with the tokenizer's settings, in vLLM's form."""
    del request
    model = service.model
    tokenizer, text = model.intake.tokenizer, model.intake.tokenizer.text
    return one_json(
        TokenizerInfo(
            bos_token=text.begin or None,
            eos_token=text.end or None,
            add_bos_token=tokenizer.adds_begin,
            additional_special_tokens=sorted(text.special),
            chat_template=text.template,
            model_max_length=model.engine.config.context,
            vocab_size=tokenizer.vocab_size,
        )
    )


async def props(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /props with the server's properties, in llama.cpp's form."""
    del request
    model = service.model
    config, text = model.engine.config, model.intake.tokenizer.text
    return one_json(
        Properties(
            DefaultSettings(config.context, default_params(model)),
            config.slots,
            model.name,
            model.name,
            text.template or "",
            text.begin,
            text.end,
            f"jaxllama {version('jaxllama')}",
        )
    )


async def slots(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /slots with the state of each slot; `?fail_on_no_slot=1`: 503 if none is free."""
    states = service.slots()
    if request.query.get("fail_on_no_slot") == "1" and all(one.is_held for one in states):
        raise NotReady(f"all {len(states)} slots are busy; try again later")
    config = service.model.engine.config
    return one_json([slot_card(one, config) for one in states])


def default_params(model: Model) -> dict[str, Any]:
    """Return the defaults of all knobs (request parameters), under our names and llama.cpp's."""
    found: dict[str, Any] = {name: limit.default for name, limit in LIMITS.items()}
    found |= {
        name: spec.off if spec.width is None else []
        for name, spec in model.intake.bank.knobs.items()
        if spec.text is None
    }
    found |= model.intake.defaults
    for name, alias in ALIASES.items():
        if "llama.cpp" in alias.origin and alias.own in found:
            value = found[alias.own]
            theirs = {ours: number for number, ours in reversed([*alias.values.items()])}
            found[name] = theirs.get(value, value)
    found |= dict.fromkeys(NUMBERS_THERE, UNSET_THERE)
    return {name: value for name, value in found.items() if value is not None}


def slot_card(state: SlotState, config: EngineConfig) -> SlotCard:
    """Describe one slot in llama.cpp's form."""
    return SlotCard(
        id=state.index,
        id_task=NO_TASK if state.task is None else state.task,
        n_ctx=config.context,
        is_processing=state.is_held,
        n_prompt_tokens=state.prompt,
        n_cached_tokens=state.cached,
        params=dict(state.numbers),
        next_token=NextToken(
            state.is_held, state.most - state.decoded if state.is_held else NO_LIMIT, state.decoded
        ),
        speculative=config.draft_tokens > 0,
    )
