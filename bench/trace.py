"""Trace: a profile of one prefill and some decode steps, for Perfetto and XProf.

Measures nothing else. Events of XLA carry the names of its instructions; here they get the names of
the scopes in the source (`block_0/attention/attend_step`), which each compiled program knows.
"""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import click
import jax
from crowd import random_prompt, submit, tokens_of
from subject import Loading, loading_options, subject_of

from jaxllama import LLM

PROGRAMS = ("prefill", "decode")
KNOBS = {"temperature": 0.8, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1}
# An instruction in the text of a compiled program, and the operation in the source it comes from.
INSTRUCTION = re.compile(r'%?([\w.-]+) = [^\n]*?metadata=\{[^}\n]*?op_name="([^"]+)"')
NO_SCOPE = re.compile(r"(jit|vmap|transpose)\(.*\)|while|body|cond|closed_call|branch_\d+_fun|pjit")


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench/results/trace"),
    show_default=True,
    help="Folder to write to.",
)
@click.option("--steps", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--slots", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--prompt", type=click.IntRange(min=2), default=512, show_default=True)
@loading_options
def main(*, loading: Loading, out: Path, steps: int, slots: int, prompt: int) -> None:
    """Write a profile of one prefill of --prompt tokens and --steps decode steps of all slots."""
    with subject_of(loading).load(slots=slots, length=prompt + steps + 1) as llm:
        run(llm, prompt, steps, seed=0)  # the first calls are slower
        with jax.profiler.trace(str(out), create_perfetto_trace=True):
            run(llm, prompt, steps, seed=1)
        scopes = {f"jit_{name}": scopes_of(llm, name) for name in PROGRAMS}
    found = newest(out, "perfetto_trace.json.gz")
    named = rename(found, scopes)
    click.echo(f"{found}: open in https://ui.perfetto.dev; {named} events have names of scopes")
    click.echo(f"{out}: open with XProf (xprof --logdir) or TensorBoard's profile plugin")


def run(llm: LLM, prompt: int, steps: int, *, seed: int) -> None:
    """Prefill one prompt, which the other slots copy but for its last token, and decode."""
    vocab = llm.config.vocab_size
    shared = random_prompt(vocab, prompt - 1, seed)
    for row in range(llm.engine_config.slots):
        submit(llm.engine, [*shared, row % vocab], steps, KNOBS)
    while not llm.engine.idle:
        tokens_of(llm.engine.step())


def scopes_of(llm: LLM, program: str) -> dict[str, str]:
    """Return the scope of every instruction of a compiled program that has one."""
    text = llm.engine.programs.compiled(program).as_text()
    found = {}
    for instruction, operation in INSTRUCTION.findall(text):
        parts = [part for part in operation.split("/") if not NO_SCOPE.fullmatch(part)]
        found[instruction] = "/".join(parts)
    return found


def rename(path: Path, scopes: dict[str, dict[str, str]]) -> int:
    """Give the events of a Perfetto file the names of their scopes; return how many have one."""
    trace: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    named = 0
    for event in trace["traceEvents"]:
        about = event.get("args", {})
        scope = scopes.get(about.get("hlo_module", ""), {}).get(about.get("hlo_op", ""))
        if scope:
            event["name"] = scope
            named += 1
    path.write_bytes(gzip.compress(json.dumps(trace).encode()))
    return named


def newest(folder: Path, name: str) -> Path:
    """Return the newest file with this name below a folder."""
    return max(folder.rglob(name), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    main()
