"""Beams of `/v1/completions`: the likeliest answers to prompts, found with `use_beam_search`.

Part of the OpenAI dialect. Each step of a search is a round of requests in the fair queue, so that
a search delays no other client. The search is that of `beams.py`. Without knobs of samplers it uses
the model's probabilities; with them, those that the samplers leave of each prefix's next tokens, as
ExLlama's does. It draws nothing, so knobs are refused that depend on draws, or that treat prompt
and answer differently.
"""

import math
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
from jaxllama.sampling import knobs_of
from jaxllama.service import Caller, GenerationService, Model
from jaxllama.service.rounds import Rounds

OBEYED = ("max_tokens", "stop_ids", "ignore_eos", "lora", "lora_scale")


@dataclass(frozen=True)
class BeamOptions:
    """The settings of a search."""

    width: int
    length_penalty: float
    early_stopping: EarlyStopping
    beam_length: int | None = None


@dataclass(frozen=True)
class FoundBeams:
    """The answers to one prompt, best first, and their token counts."""

    prompt: TokenIds
    answers: Sequence[BeamAnswer]
    rules: SearchRules
    usage: Usage


def sampling_knobs(model: Model) -> frozenset[str]:
    """Return the names of the sampler parameters that a beam search obeys."""
    kinds = model.intake.bank.samplers.values()
    suited = (knobs_of(kind) for kind in kinds if kind.suits_beams)
    return frozenset({"temperature"}.union(*suited))


def check_obeyed(knobs: Mapping[str, object], sampling: frozenset[str]) -> None:
    """Raise InvalidParameter for a request parameter that beam search would not obey.

    `knobs` are the parameters by name. `sampling` names the sampler parameters that beam search
    obeys. If the temperature is 0, no other sampler parameter is accepted.
    """
    for name, value in knobs.items():
        if value is None or name in OBEYED or name in sampling:
            continue
        raise InvalidParameter(
            f"{name} is not supported with use_beam_search: a search draws no tokens, its answers "
            f"end at tokens alone, and of samplers it obeys {', '.join(sorted(sampling))}",
            name,
        )
    if knobs.get("temperature") == 0 and given_of(knobs, sampling).keys() - {"temperature"}:
        raise InvalidParameter(
            "temperature is 0, which leaves one token to each prefix; with use_beam_search and "
            "other knobs of samplers it must be above 0",
            "temperature",
        )


def given_of(knobs: Mapping[str, object], sampling: frozenset[str]) -> dict[str, object]:
    """Return the request parameters in `knobs` that are named in `sampling` and not None."""
    return {name: knobs[name] for name in sampling if knobs.get(name) is not None}


async def find_beams(
    prompts: Sequence[Prompt],
    knobs: Mapping[str, object],
    options: BeamOptions,
    service: GenerationService,
    caller: Caller,
) -> list[FoundBeams]:
    """Search for the likeliest answers to each prompt, one prompt after the other.

    `knobs` are the request's parameters, `options` the settings of the search. Raises
    InvalidParameter for a parameter that the search would not obey, or if all beams together may
    exceed the server's token limit.
    """
    sampling = sampling_knobs(service.model)
    check_obeyed(knobs, sampling)

    own = given_of(knobs, sampling)
    sampled = bool(own) and own.get("temperature") != 0  # 0 alone: vLLM's, as without

    def prepare(model: Model) -> list[GenerationRequest]:
        given = {**knobs, "temperature": (own.get("temperature") or 1.0) if sampled else 0.0}
        found = [model.intake.completion(prompt, given)[0] for prompt in prompts]
        return [replace(one, knobs=given_only(one.knobs, own)) for one in found]

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
    """Return the checked settings of a beam search; raise InvalidParameter for wrong ones.

    `options` has the settings as the client sent them. Errors about the number of beams name the
    field best_of, which sets this number.
    """
    try:
        return rules_of(
            request,
            width=options.width,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            beam_length=options.beam_length,
            listed=model.engine.config.max_top_logprobs,
        )
    except InvalidParameter as error:
        if error.field != "width":
            raise
        raise InvalidParameter(f"best_of, the width of the search: {error}", "best_of") from error


async def find_for_one(
    request: GenerationRequest, rules: SearchRules, rounds: Rounds
) -> FoundBeams:
    """Search for the likeliest answers to one prompt; return them with their token counts.

    `rules` has the settings of the search. Each step of the search is a round of engine requests,
    sent through `rounds`.
    """
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


def candidates_in(token: Token, *, is_sampled: bool) -> Likeliest:
    """Return the likeliest tokens at the position of `token`, with their log-probabilities.

    Without `is_sampled`, the log-probabilities are those of the model. With it, they are those
    after the samplers, and tokens that the samplers drop are left out.
    """
    if token.logprobs is None:
        return ()
    if not is_sampled:
        return token.logprobs.top
    return [each for each in token.logprobs.top_sampled if each[1] > -math.inf]


def given_only(values: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return the request parameters in `values` whose names are in `own`, the client's parameters.

    The model's recommended values, which `values` has too, are left out: they are for sampling.
    """
    return {name: value for name, value in values.items() if name in own}


async def likeliest_after(
    request: GenerationRequest, prefixes: Sequence[TokenIds], rules: SearchRules, rounds: Rounds
) -> tuple[list[Likeliest], int]:
    """Return the likeliest next tokens of each prefix, and the number of cached prompt tokens.

    A prefix is a beginning of an answer to the prompt of `request`; `rules` says how many tokens
    are needed; the engine requests are sent through `rounds`. Prefixes that share their first
    tokens are requested one after the other, so that a slot's KV cache can be copied. The number is
    how many tokens the first request found in the KV cache.
    """
    prompts = [(*request.prompt, *prefix) for prefix in prefixes]
    order = first_of_each_stem(prompts)
    one = replace(request, max_tokens=1, top_logprobs=rules.candidates, stop_ids=(), contrast=None)
    answers = await rounds.ask([replace(one, prompt=prompts[index]) for index in order])
    found: dict[int, Likeliest] = {}
    cached = 0
    for index, events in zip(order, answers, strict=True):
        for event in events:
            if isinstance(event, Token):
                found[index] = candidates_in(event, is_sampled=request.temperature > 0)
            elif index == order[0]:
                cached = event.usage.reused
    return [found[index] for index in range(len(prompts))], cached
