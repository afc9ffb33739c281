"""Sampling: the cost of choosing tokens - greedy, by temperature, through every installed sampler.

Times the bank of samplers alone, on the model's own logits, and reports its share of a whole decode
step, and the share that one more unused sampler adds to a step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from crowd import decode_rate, request
from harness import (
    Board,
    Measure,
    Peer,
    how_often,
    in_turn,
    repeated,
    script,
    seconds,
)
from jax import lax
from llamacpp import SUPPORTED, LlamaCppSamplers
from subject import LLAMA_CPP, Subject, peer_options

from jaxllama import LLM
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import TokenChooser
from jaxllama.engine.probes import finish
from jaxllama.engine.state import DecodeState, row_start
from jaxllama.kernels import body_named
from jaxllama.sampling import KnobSpec, knobs_of

Knobs = dict[str, Any]

# Prompts are text, not random tokens: over flat distributions filters keep thousands of tokens.
TEXT = (
    "The harbour was quiet when the last of the fishing boats came in. Two men carried the nets "
    "up to the wall while a third counted the boxes and wrote the numbers in a small book. It "
    "had been a good week. The wind had held from the west, the ice had lasted, and the price at "
    "the market in the morning was said to be better than at any time since the spring."
)
HEAT = 0.8
TYPICAL: Knobs = {
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "min_tokens": 1000,
}
COMMON = ("top_k", "top_p", "min_p", "repetition_penalty")
COMMON_CASE = "top_k + top_p + min_p + repetition"
WHOLE = (*COMMON, "presence_penalty", "frequency_penalty")
WHOLE_CASE = "the whole chain, penalties included"
FEW = 24  # number of samplers to which one more is added
CALLS = 10  # calls of the bank for one figure
QUICKEST_OF = 10  # number of figures whose minimum counts, to compare two almost equal times
STEPS = 32  # steps of the engine for one figure


@click.command()
@script("sampling")
@repeated
@peer_options(LLAMA_CPP)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Slots; all of them sample.",
)
def main(*, board: Board, repetitions: int | None, subject: Subject, rows: int) -> None:
    """Measure the choice of one token for each of --rows rows, and its share of a decode step.

    The peer's samplers run on the same logits, row by row as in llama.cpp.
    """
    times = how_often(board, repetitions)
    with subject.load(slots=rows, length=len(TEXT) + STEPS) as llm:
        prompts = prefixes(llm.tokenize(TEXT), rows)
        logits = np.stack(
            [finish(llm.engine.probes.peek(prompt, len(prompt)))[1] for prompt in prompts]
        )
        choose = jax.jit(partial(choose_again, llm.bank, llm.engine_config.kernels))
        for name, knobs in cases(llm, short=board.short):
            case = f"{subject.name}, {rows} rows, {name}"
            with board.doing(case), ExitStack() as opened:
                bank = choosing(choose, llm, (logits, prompts, knobs))
                step = partial(decode_rate, llm.engine, prompts, STEPS, knobs)
                other = None
                if subject.peer and knobs.keys() <= SUPPORTED:
                    chain = opened.enter_context(LlamaCppSamplers(knobs, logits, prompts[0]))
                    other = per_row_of(chain.seconds, rows)
                ours, theirs, rates = in_turn(times, bank, other, step)
            board.add(case, "us/row", ours, theirs, Peer(subject.peer) if subject.peer else None)
            pairs = zip(ours, rates, strict=True)
            board.add(f"{case}, share of a step", "%", [us * rate / 1e4 for us, rate in pairs])
        if not board.short:
            case = f"{subject.name}, {rows} rows, sampler {FEW + 1}, which nobody uses"
            with board.doing(case):
                few, more = (unused(llm, (logits, prompts), FEW + i) for i in (0, 1))
                step = partial(decode_rate, llm.engine, prompts, STEPS, {"temperature": HEAT})
                less, ours, rates = in_turn(times, few, more, step)
            each = zip(ours, less, rates, strict=True)
            shares = [max(us - before, 0.0) * rate / 1e4 for us, before, rate in each]
            board.add(f"{case}, share of a step", "%", shares)


def prefixes(ids: Sequence[int], rows: int) -> list[list[int]]:
    """Return `rows` prefixes of one text, each a token longer than the one before."""
    shortest = max(2, len(ids) - rows)
    return [list(ids[: min(shortest + row, len(ids))]) for row in range(rows)]


def cases(llm: LLM, *, short: bool) -> Iterator[tuple[str, Knobs]]:
    """Yield names and knobs: greedy, temperature, the usual chains, and every sampler alone."""
    yield "greedy", {}
    yield "temperature", {"temperature": HEAT}
    yield COMMON_CASE, {"temperature": HEAT} | {name: TYPICAL[name] for name in COMMON}
    yield WHOLE_CASE, {"temperature": HEAT} | {name: TYPICAL[name] for name in WHOLE}
    if not short:
        for name, kind in llm.bank.samplers.items():
            values = {
                knob: TYPICAL.get(knob, example(spec))
                for knob, spec in knobs_of(kind).items()
                if spec.switch
            }
            yield f"{name} alone", {"temperature": HEAT, **values}


def example(spec: KnobSpec) -> object:
    """Return a value that switches a knob on."""
    number = next((each for each in (spec.low, spec.high) if each not in (None, spec.off)), 1)
    value = spec.kind(number if spec.off != number else spec.off + 1)
    if spec.text is not None:
        return spec.text.examples[0]
    if spec.by_token:
        return dict.fromkeys(range(8), value)
    if spec.phrases:
        return [[1, 2], [3]]
    if spec.tokens:
        return [1]
    return value if spec.width is None else [value]


def choosing(
    choose: Callable[..., Any], llm: LLM, given: tuple[np.ndarray, list[list[int]], Knobs]
) -> Measure:
    """Return a measure of the bank's microseconds per row, with admitted rows."""
    logits, prompts, knobs = given
    state = admitted(llm, prompts, knobs)
    arguments = (state.bank, jax.device_put(logits), state.rows())
    return alone(choose, arguments, llm.engine_config.kernels)


def unused(llm: LLM, given: tuple[np.ndarray, list[list[int]]], count: int) -> Measure:
    """Return a measure of a bank of `count` samplers, all off, in microseconds per row.

    The figure is the minimum of several runs.
    """
    logits, prompts = given
    size = llm.engine_config
    bank = SamplerBank(
        dict(sorted(llm.bank.samplers.items())[:count]),
        vocab=llm.bank.vocab,
        candidates=size.candidates,
        top_logprobs=size.max_top_logprobs,
        body=size.kernels,
        texts=llm.tokenizer.texts,
    )
    choose = jax.jit(partial(choose_again, bank, size.kernels))
    rows = admitted(llm, prompts, {"temperature": HEAT}).rows()
    arguments = (bank.empty(size.slots), jax.device_put(logits), rows)
    whole = alone(choose, arguments, size.kernels)
    return lambda: min(whole() for _ in range(QUICKEST_OF))


def alone(choose: Callable[..., Any], arguments: tuple[Any, ...], body: str) -> Measure:
    """Return a measure of a choice in microseconds per row, without the time to make its logits."""
    _, logits, _ = arguments
    make = jax.jit(partial(loop_without_choice, body))
    both = per_row(lambda: jax.block_until_ready(choose(*arguments)), len(logits))
    making = per_row(lambda: jax.block_until_ready(make(logits)), len(logits))
    return lambda: (both() - making()) / CALLS


def admitted(llm: LLM, prompts: Sequence[Sequence[int]], knobs: Knobs) -> DecodeState:
    """Return a decode state in which every prompt has a row."""
    programs, config = llm.engine.programs, llm.engine_config
    state = programs.empty()
    for slot, prompt in enumerate(prompts):
        row = row_start(request(prompt, STEPS, knobs), tuple(prompt), config, llm.bank)
        state = programs.admit(state, np.int32(slot), row)
    return programs.tree_of(state)


def choose_again(bank: SamplerBank, body: str, leaves: Any, logits: Any, rows: Any) -> Any:
    """Choose for every row CALLS times in one program, as the decode program does."""
    chooser = TokenChooser(bank)

    def one(index: Any, carry: Any) -> Any:
        given, leaves, _ = carry
        given, now = fresh_logits(body, given, index)
        return given, *chooser.choose(leaves, now, rows._replace(length=rows.length + index))

    shapes = jax.eval_shape(chooser.choose, leaves, logits, rows)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[1])
    return lax.fori_loop(0, CALLS, one, (logits, leaves, blank))[1:]


def loop_without_choice(body: str, logits: Any) -> Any:
    """Run the loop of `choose_again` without the choice, to subtract its time."""

    def one(index: Any, carry: Any) -> Any:
        given, ends = carry
        given, now = fresh_logits(body, given, index)
        return given, ends + now[:, -1]

    return lax.fori_loop(0, CALLS, one, (logits, logits[:, -1]))[1]


def fresh_logits(body: str, logits: Any, index: Any) -> tuple[Any, Any]:
    """Return the logits, and a copy of them for one step, which the bank may overwrite."""
    # The barrier hides that the logits are equal: XLA cannot move work out of the loop.
    logits, _ = lax.optimization_barrier((logits, index))
    return body_named(body).choosing.set_aside(logits, jnp.ones(len(logits), jnp.bool_))


def per_row(action: Callable[[], object], rows: int) -> Measure:
    """Return a measure of an action that serves all rows, in microseconds per row."""
    return per_row_of(lambda: seconds(action), rows)


def per_row_of(measure: Measure, rows: int) -> Measure:
    """Convert a measure in seconds for all rows to microseconds per row."""
    return lambda: measure() / rows * 1e6


if __name__ == "__main__":
    main()
