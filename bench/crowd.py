"""A crowd: requests that fill every slot and decode together, timed through the engine's own step.

Used by the scripts that measure the engine. Counts what a caller gets: sampling, host work and
reading back included.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np

from jaxllama.engine.engine import Engine
from jaxllama.request import Event, Finished, FinishReason, GenerationRequest, Token

SEED = 0


def random_prompt(vocab: int, length: int, seed: int = SEED) -> list[int]:
    """Token ids; prompts of different seeds share no beginning."""
    ids = np.random.default_rng(seed).integers(0, vocab, length)
    ids[0] = seed % vocab
    return [int(token) for token in ids]


def prompts_of(vocab: int, count: int, length: int) -> list[list[int]]:
    """Prompts that differ in their last token only: that one is never taken from the cache."""
    shared = random_prompt(vocab, length - 1)
    return [[*shared, row % vocab] for row in range(count)]


def decode_rate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    count: int,
    knobs: Mapping[str, Any] | None = None,
) -> float:
    """Tokens per second of all prompts together, `count` each.

    The clock runs from where all have their first tokens to where one has its last: what is
    counted in between took whole steps.
    """
    told = {submit(engine, prompt, count, knobs or {}): 0 for prompt in prompts}
    started, counted, rate = 0.0, 0, 0.0
    while not engine.idle:
        tokens = taken(engine.step())
        now = time.perf_counter()
        for token in tokens:
            told[token.id] += 1
        if started:
            counted += len(tokens)
        elif all(told.values()):
            started = now
        if not rate and counted and max(told.values()) == count:
            rate = counted / (now - started)
    return rate


def seconds_to_first(engine: Engine, prompt: Sequence[int]) -> float:
    """From handing a prompt in to its first token."""
    started = time.perf_counter()
    submit(engine, prompt, 1, {})
    first = 0.0
    while not engine.idle:
        events = engine.step()
        if not first and taken(events):
            first = time.perf_counter() - started
        for event in events:
            if isinstance(event, Finished) and event.usage.reused:
                raise click.ClickException(f"{event.usage.reused} tokens came from the cache")
    return first


def submit(engine: Engine, prompt: Sequence[int], count: int, knobs: Mapping[str, Any]) -> int:
    """Queue one prompt, greedy unless told otherwise, that nothing but its length ends."""
    return engine.submit(request(prompt, count, knobs)).id


def request(prompt: Sequence[int], count: int, knobs: Mapping[str, Any]) -> GenerationRequest:
    """A request that nothing but its length ends."""
    own = {name: value for name, value in knobs.items() if name != "temperature"}
    heat = float(knobs.get("temperature", 0.0))
    return GenerationRequest(tuple(prompt), count, temperature=heat, knobs=own)


def taken(events: Sequence[Event]) -> list[Token]:
    """The tokens among events; a failure stops the benchmark."""
    for event in events:
        if isinstance(event, Finished) and event.reason is FinishReason.FAILED:
            raise click.ClickException(f"a request failed: {event.error}")
    return [event for event in events if isinstance(event, Token)]
