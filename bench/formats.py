"""Formats: size, memory and perplexity of a model in every form that convert and export write.

With --write, the table goes into README.md.
"""

import dataclasses
import gc
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import jax
from child import importing_bench
from environment import ROOT
from harness import Board, script
from memory import RESET, resident
from subject import Loading, Subject, subject_options

from jaxllama import LLM
from jaxllama.cli.heap import give_back
from jaxllama.cli.memory import weight_bytes
from jaxllama.loading import read_weights
from jaxllama.model.params import Tree
from jaxllama.sharding import make_mesh
from jaxllama.weights import open_checkpoint
from jaxllama.weights.convert import Recipe, convert
from jaxllama.weights.export import export
from jaxllama.weights.store import cache_folder

README, TEXT = ROOT / "README.md", ROOT / "tests/golden/english.txt"
BEGIN = "<!-- The table is written by bench/formats.py --write. -->"
END = "<!-- End of the table. -->"
HEADER = "| Written by | Size | Memory | Perplexity |\n|---|---:|---:|---:|\n"
LINE = re.compile(r"\| (.+) \| ([\d.]+) MB \| ([\d.]+) MB \| ([\d.]+) \|")
ITSELF = "the model's own file"
RECIPES = {
    "`convert --dtype bf16`": Recipe("bf16"),
    "`convert --dtype int8`": Recipe("int8"),
    "`convert --dtype int4`": Recipe("int4"),
    "`convert --dtype int4 --minimise-error`": Recipe("int4", minimises_error=True),
}
EXPORTS = {f"`export --to {to}`": to for to in ("gguf-f16", "gguf-q8_0", "gguf-q4_1", "gguf-q4_0")}
FORMS = (ITSELF, *RECIPES, *EXPORTS)
MB, MIB = 1e6, 1 << 20
# The allocator is set before anything is imported: large blocks of the imports count as well.
ELSEWHERE = """
from jaxllama.cli.heap import keep_large_blocks_apart
keep_large_blocks_apart()
import formats, sys
formats.print_figures(*sys.argv[1:])
"""


@dataclass(frozen=True)
class FormFigures:
    """Measurements of a model in one form."""

    size: float  # bytes on disk
    memory: float  # bytes by which the process grows when the weights are loaded
    stated: float  # bytes that `jaxllama inspect` states
    perplexity: float


@dataclass(frozen=True)
class FormLine:
    """One line of the table, with numbers as they are printed."""

    form: str
    size: str
    memory: str
    perplexity: str

    @classmethod
    def of(cls, form: str, figures: FormFigures) -> "FormLine":
        """Round the figures of a form."""
        size, memory = (f"{each / MB:.0f}" for each in (figures.size, figures.memory))
        return cls(form, size, memory, f"{figures.perplexity:.2f}")


@click.command()
@script("formats")
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), help="Only this form.")
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=TEXT,
    show_default="tests/golden/english.txt", help="Text of which the perplexity is measured.",
)  # fmt: skip
@click.option("--write", is_flag=True, help="Write the table into README.md; needs all forms.")
@subject_options
def main(
    *, board: Board, subject: Subject, forms: tuple[str, ...], text: Path, write: bool
) -> None:
    """Write the model in every form, load each in a process of its own, and measure it."""
    if not RESET.exists():
        raise click.ClickException("this benchmark reads /proc/self/status; it runs on Linux only")
    if write and (forms or board.short):
        raise click.UsageError("--write needs all forms; leave --form and --short out.")
    found = {}
    for form in forms or (FORMS[:2] if board.short else FORMS):
        with board.doing(form):
            found[form] = figures = measured(form, subject, text)
        case = f"{subject.name}, {form.strip('`')}"
        board.add(case, "perplexity", [figures.perplexity])
        board.add(f"{case}, size", "MiB", [figures.size / MIB])
        board.add(f"{case}, memory", "MiB", [figures.memory / MIB])
        board.add(
            f"{case}, memory over what inspect states", "x", [figures.memory / figures.stated]
        )
    if write:
        lines = [FormLine.of(form, figures) for form, figures in found.items()]
        README.write_text(with_table(README.read_text(encoding="utf-8"), lines), encoding="utf-8")


def measured(form: str, subject: Subject, text: Path) -> FormFigures:
    """Write the model in one form and measure it in a new process."""
    home = cache_folder() / "bench"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="formats-", dir=home) as folder:
        path = subject.path if form == ITSELF else written(form, subject.path, Path(folder))
        arguments = (str(path.resolve()), str(text.resolve()), json.dumps(vars(subject.loading)))
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, *arguments],
            env=importing_bench(),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise click.ClickException(done.stderr.strip())
    return FormFigures(**json.loads(done.stdout.splitlines()[-1]))


def written(form: str, source: Path, folder: Path) -> Path:
    """Write a model in one form below a folder; return its path."""
    target = folder / ("model.gguf" if form in EXPORTS else "model")
    if form in EXPORTS:
        export(source, target, EXPORTS[form], progress=lambda *_: None)
    else:
        convert(source, target, RECIPES[form], progress=lambda *_: None)
    return target


def print_figures(path: str, text: str, loading: str) -> None:
    """Measure a model in this process and print the figures as JSON."""
    subject = Subject(Path(path), Loading(**json.loads(loading)))
    found = figures_of(subject, Path(text).read_text(encoding="utf-8"))
    click.echo(json.dumps(dataclasses.asdict(found)))


def figures_of(subject: Subject, text: str) -> FormFigures:
    """Measure a model in this process."""
    memory, stated = loaded_bytes(subject)
    with LLM.load(
        subject.path, slots=1, sampling_defaults="none", compile_behind=False,
        **subject.loading.arguments,
    ) as llm:  # fmt: skip
        perplexity = llm.perplexity(text).value
    return FormFigures(bytes_of(subject.path), memory, stated, perplexity)


def loaded_bytes(subject: Subject) -> tuple[int, int]:
    """Return the bytes by which loading the weights grows the process, and what inspect states.

    The weights are loaded twice: the first time also starts threads of the reader and of JAX, a few
    MiB that do not depend on the model.
    """
    delete(load_weights(subject))
    with open_checkpoint(subject.path) as checkpoint:
        stated = weight_bytes(checkpoint, subject.engine_config(checkpoint.config))
    before = held_bytes()
    params = load_weights(subject)
    memory = held_bytes() - before
    delete(params)
    return memory, stated


def load_weights(subject: Subject) -> Tree:
    """Read the weights and lay them out for the kernels."""
    with open_checkpoint(subject.path) as checkpoint:
        engine = subject.engine_config(checkpoint.config)
        mesh = make_mesh(engine, checkpoint.config)
        return jax.block_until_ready(read_weights(checkpoint, engine, mesh, None))


def delete(params: Tree) -> None:
    """Free the memory of weights."""
    for leaf in jax.tree.leaves(params):
        leaf.delete()


def held_bytes() -> int:
    """Return the memory of the process after a clean-up as a server does it when it is ready."""
    gc.collect()
    give_back()
    return resident("RssAnon")


def bytes_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())


def table(lines: Iterable[FormLine]) -> str:
    """Return the table in Markdown."""
    return HEADER + "".join(
        f"| {each.form} | {each.size} MB | {each.memory} MB | {each.perplexity} |\n"
        for each in lines
    )


def with_table(readme: str, lines: Sequence[FormLine]) -> str:
    """Return the README with a new table between its two marks."""
    before, _, rest = readme.partition(f"{BEGIN}\n")
    _, mark, after = rest.partition(END)
    if not mark:
        raise click.ClickException(f"README.md has no place for the table: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(lines)}{END}{after}"


def lines_of(readme: str) -> list[FormLine]:
    """Return the lines of the table in the README."""
    _, _, rest = readme.partition(BEGIN)
    matches = map(LINE.fullmatch, rest.partition(END)[0].splitlines())
    return [FormLine(*match.groups()) for match in matches if match]


if __name__ == "__main__":
    main()
