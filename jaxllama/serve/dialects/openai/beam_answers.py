"""Beams of `/v1/completions`: the likeliest answers to prompts, found with `use_beam_search`.

Part of the OpenAI dialect. Each step of a search is a round of requests in the fair queue, so that
a search delays no other client. The search is that of `beams.py`: it uses the model's probabilities
alone, so samplers' knobs are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxllama.beams import (
    BeamAnswer,
    EarlyStopping,
    Likeliest,
    SearchRules,
    TokenIds,
    first_of_each_stem,
    rules_of,
    searching,
)
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.request import GenerationRequest, Token, Usage
from jaxllama.service import Caller, GenerationService, Model
from jaxllama.service.rounds import Rounds

# Knobs that a search obeys; temperature may only be 0, as vLLM wants it.
OBEYED = ("max_tokens", "stop_ids", "ignore_eos", "lora", "lora_scale", "temperature")


@dataclass(frozen=True)
class BeamOptions:
    """The settings of a search."""

    width: int
    length_penalty: float
    early_stopping: EarlyStopping


@dataclass(frozen=True)
class FoundBeams:
    """The answers to one prompt, best first, and their token counts."""

    prompt: TokenIds
    answers: Sequence[BeamAnswer]
    rules: SearchRules
    usage: Usage


def check_obeyed(knobs: Mapping[str, object]) -> None:
    """Raise InvalidParameter for a knob that a search would not obey."""
    for name, value in knobs.items():
        if value is None or name in OBEYED:
            continue
        raise InvalidParameter(
            f"{name} is not supported with use_beam_search: a search draws no tokens, and its "
            f"answers end at tokens alone",
            name,
        )
    if knobs.get("temperature") not in (None, 0):
        raise InvalidParameter(
            f"temperature is {knobs['temperature']}; with use_beam_search it may only be 0: a "
            f"search draws no tokens",
            "temperature",
        )


async def find_beams(
    prompts: Sequence[Prompt],
    knobs: Mapping[str, object],
    options: BeamOptions,
    service: GenerationService,
    caller: Caller,
) -> list[FoundBeams]:
    """Search for the likeliest answers to each prompt, one prompt after the other."""
    check_obeyed(knobs)

    def prepare(model: Model) -> list[GenerationRequest]:
        given = {**knobs, "temperature": 0.0}
        return [model.intake.completion(prompt, given)[0] for prompt in prompts]

    size = sum(map(len, prompts))
    requests = await service.off_loop(prepare, caller, size=size)
    rules = [search_rules(request, options, service.model) for request in requests]
    cost = sum(options.width * request.cost for request in requests)
    if cost > service.bounds.request_tokens:
        raise InvalidParameter(
            f"prompts and max_tokens of all beams come to {cost} tokens; this server allows "
            f"{service.bounds.request_tokens} for one request (lower max_tokens or best_of)",
            "max_tokens",
        )
    async with service.open_rounds(caller) as rounds:
        return [
            await find_for_one(request, each, rounds)
            for request, each in zip(requests, rules, strict=True)
        ]


def search_rules(request: GenerationRequest, options: BeamOptions, model: Model) -> SearchRules:
    """Check the settings of a search, and name the fields as the client does."""
    try:
        return rules_of(
            request,
            width=options.width,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            listed=model.engine.config.max_top_logprobs,
        )
    except InvalidParameter as error:
        if error.field != "width":
            raise
        raise InvalidParameter(f"best_of, the width of the search: {error}", "best_of") from error


async def find_for_one(
    request: GenerationRequest, rules: SearchRules, rounds: Rounds
) -> FoundBeams:
    """Search for the likeliest answers to one prompt."""
    search = searching(rules)
    prefixes, reused = next(search), None
    while True:
        following, cached = await likeliest_after(request, prefixes, rules, rounds)
        reused = cached if reused is None else reused
        try:
            prefixes = search.send(following)
        except StopIteration as end:
            found: list[BeamAnswer] = end.value
            generated = sum(len(each.tokens) for each in found)
            usage = Usage(len(request.prompt), reused, generated)
            return FoundBeams(request.prompt, found, rules, usage)


async def likeliest_after(
    request: GenerationRequest, prefixes: Sequence[TokenIds], rules: SearchRules, rounds: Rounds
) -> tuple[list[Likeliest], int]:
    """Return the likeliest tokens after each prefix, and how many tokens the first had cached.

    Prefixes that share their stem follow each other in the order in which slots can be copied.
    """
    prompts = [(*request.prompt, *prefix) for prefix in prefixes]
    order = first_of_each_stem(prompts)
    one = replace(
        request, max_tokens=1, top_logprobs=rules.candidates, stop_ids=(), knobs={}, contrast=None
    )
    answers = await rounds.ask([replace(one, prompt=prompts[index]) for index in order])
    found: dict[int, Likeliest] = {}
    cached = 0
    for index, events in zip(order, answers, strict=True):
        for event in events:
            if isinstance(event, Token):
                found[index] = () if event.logprobs is None else event.logprobs.top
            elif index == order[0]:
                cached = event.usage.reused
    return [found[index] for index in range(len(prompts))], cached
