"""Memory: the peak while a model is loaded, and the growth while it decodes."""

from collections.abc import Iterator
from pathlib import Path

import click
import jax
from crowd import prompts_of, submit, tokens_of
from harness import Board, script
from subject import Subject, subject_options

from jaxllama import LLM
from jaxllama.cli.heap import keep_large_blocks_apart
from jaxllama.loading import read_weights
from jaxllama.sharding import make_mesh
from jaxllama.weights import open_checkpoint

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS, SHORT_STEPS = 10_000, 500
SLOTS, PROMPT, ANSWER = 4, 16, 500
MIB = 1 << 20


@click.command()
@script("memory")
@click.option("--steps", type=click.IntRange(min=1), help="Decode steps [default: 10000].")
@subject_options
def main(*, board: Board, subject: Subject, steps: int | None) -> None:
    """Measure the peak of loading and the growth over many decode steps, on Linux.

    The allocator is tuned as in `jaxllama serve`.
    """
    if not RESET.exists():
        raise click.ClickException("this benchmark reads /proc/self/status; it runs on Linux only")
    keep_large_blocks_apart()
    with board.doing("loading"):
        peak, held = loading(subject)
    board.add(f"{subject.name}, weights", "MiB", [held / MIB])
    board.add(f"{subject.name}, peak while loading, over the weights", "x", [peak / held])
    count = steps or (SHORT_STEPS if board.short else STEPS)
    with board.doing("decoding"), subject.load(slots=SLOTS, length=PROMPT + ANSWER) as llm:
        for _ in decode(llm, ANSWER):  # warm-up
            pass
        before = resident("VmRSS")
        sizes = [resident("VmRSS") for _ in decode(llm, count)]
    case = f"{subject.name}, {SLOTS} slots, growth over {count} steps"
    # A leak grows in both halves; memory that the allocator keeps for reuse grows in the first.
    first, most = (max(before, *sizes[:end]) for end in (-(-len(sizes) // 2), len(sizes)))
    board.add(case, "MiB", [(most - before) / MIB])
    board.add(f"{case}, in their second half", "MiB", [(most - first) / MIB])


def loading(subject: Subject) -> tuple[int, int]:
    """Return the bytes by which memory grew at most during loading, and the weights' bytes."""
    with open_checkpoint(subject.path) as checkpoint:
        engine = subject.engine_config(checkpoint.config)
        mesh = make_mesh(engine, checkpoint.config)
        jax.device_put(0).block_until_ready()
        RESET.write_text("5")  # the peak is counted from here
        before = resident("VmRSS")
        params = read_weights(checkpoint, engine, mesh, None)
        jax.block_until_ready(params)
        leaves = jax.tree.leaves(params)
        peak, held = resident("VmHWM") - before, sum(leaf.nbytes for leaf in leaves)
    for leaf in leaves:
        leaf.delete()
    return peak, held


def decode(llm: LLM, steps: int) -> Iterator[None]:
    """Run at least `steps` decode steps with all slots busy; yield after each round of answers."""
    prompts = prompts_of(llm.config.vocab_size, SLOTS, PROMPT)
    done = 0
    while done < steps:
        count = min(ANSWER, steps - done)
        for prompt in prompts:
            submit(llm.engine, prompt, count, {})
        while not llm.engine.idle:
            tokens_of(llm.engine.step())
        done += count
        yield


def resident(name: str) -> int:
    """Return the bytes in one line of /proc/self/status."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
