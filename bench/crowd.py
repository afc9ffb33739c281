"""Concurrent requests that fill all slots and decode together, timed through the engine's step.

Used by the scripts that measure the engine. The time includes sampling, host work and reading back,
as for a caller.
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
    """Return random token ids; prompts with different seeds differ from the first token on."""
    ids = np.random.default_rng(seed).integers(0, vocab, length)
    ids[0] = seed % vocab
    return [int(token) for token in ids]


def prompts_of(vocab: int, count: int, length: int) -> list[list[int]]:
    """Return prompts that differ in the last token only, which is never read from the cache."""
    shared = random_prompt(vocab, length - 1)
    return [[*shared, row % vocab] for row in range(count)]


def decode_rate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    count: int,
    knobs: Mapping[str, Any] | None = None,
) -> float:
    """Measure the tokens per second of all prompts together, with `count` tokens each.

    The clock runs from the time when all prompts have their first token until one of them has its
    last: in between, all slots are busy.
    """
    received = {submit(engine, prompt, count, knobs or {}): 0 for prompt in prompts}
    started, counted, rate = 0.0, 0, 0.0
    while not engine.idle:
        tokens = tokens_of(engine.step())
        now = time.perf_counter()
        for token in tokens:
            received[token.id] += 1
        if started:
            counted += len(tokens)
        elif all(received.values()):
            started = now
        if not rate and counted and max(received.values()) == count:
            rate = counted / (now - started)
    return rate


def seconds_to_first(engine: Engine, prompt: Sequence[int]) -> float:
    """Measure the seconds from submitting a prompt to its first token.

    Raises ClickException if tokens came from the cache.
    """
    started = time.perf_counter()
    submit(engine, prompt, 1, {})
    first = 0.0
    while not engine.idle:
        events = engine.step()
        if not first and tokens_of(events):
            first = time.perf_counter() - started
        for event in events:
            if isinstance(event, Finished) and event.usage.reused:
                raise click.ClickException(f"{event.usage.reused} tokens came from the cache")
    return first


def submit(engine: Engine, prompt: Sequence[int], count: int, knobs: Mapping[str, Any]) -> int:
    """Submit one prompt that only ends by its length, greedy by default; return its id."""
    return engine.submit(request(prompt, count, knobs)).id


def request(prompt: Sequence[int], count: int, knobs: Mapping[str, Any]) -> GenerationRequest:
    """Return a request that only ends by its length, greedy by default."""
    own = {name: value for name, value in knobs.items() if name != "temperature"}
    heat = float(knobs.get("temperature", 0.0))
    return GenerationRequest(tuple(prompt), count, temperature=heat, knobs=own)


def tokens_of(events: Sequence[Event]) -> list[Token]:
    """Return the tokens among events; raise ClickException if a request failed."""
    for event in events:
        if isinstance(event, Finished) and event.reason is FinishReason.FAILED:
            raise click.ClickException(f"a request failed: {event.error}")
    return [event for event in events if isinstance(event, Token)]
