"""`jaxllama classify`: choose an answer to each question for each text of a file.

The probability of every choice follows from the model's own probabilities: nothing is drawn, so a
second run gives the same numbers. Rows, questions and choices are checked before the model loads.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from jaxllama.cli.advance import advance_shown
from jaxllama.cli.options import ModelCommand
from jaxllama.cli.rows import CSV, JSONL, TEXT, FileRow, RowWriter, kind_of, read_rows
from jaxllama.cli.terminal import note, open_llm
from jaxllama.completion import Classification
from jaxllama.errors import ConfigError, InvalidParameter, RequestError
from jaxllama.scoring import check_choices

if TYPE_CHECKING:
    from jaxllama.llm import LLM

SHOWN = 5
FRAME = "\n{}\nAnswer:"  # around a question; its answer begins with a space


@dataclass(frozen=True)
class ClassifiedQuestion:
    """A question about every text, its choices, and the column that has the right one."""

    text: str
    choices: tuple[str, ...]
    gold: str | None
    suffix: str  # of the names of its columns

    def values(self, found: Classification) -> dict[str, object]:
        """Return the columns that this question adds to a row of the output, by column name.

        They hold the likeliest choice, its probability and the probability of each choice. `found`
        has these probabilities.
        """
        chances = dict(zip(self.choices, found.probabilities, strict=True))
        best = max(self.choices, key=chances.__getitem__)
        named = {f"probability{self.suffix}:{each}": chance for each, chance in chances.items()}
        return {f"label{self.suffix}": best, f"probability{self.suffix}": chances[best], **named}


@dataclass
class Tally:
    """Counts of right and wrong choices for a question."""

    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)  # of (right, chosen)

    def lines(self, choices: Sequence[str]) -> Iterator[str]:
        """Yield the accuracy as a line of text, then a line for each choice.

        The line of a choice says how many texts have this choice as the right answer, for how many
        of these the model chose it, and how often the model chose it in all.
        """
        total = self.pairs.total()
        if not total:
            yield "accuracy: no row has a right answer"
            return
        right = sum(count for (gold, chosen), count in self.pairs.items() if gold == chosen)
        yield f"accuracy: {right / total:.1%} ({right} of {total})"
        for each in choices:
            own = sum(count for (gold, _), count in self.pairs.items() if gold == each)
            chosen = sum(count for (_, choice), count in self.pairs.items() if choice == each)
            yield (f"  {each}: {self.pairs[each, each]} of {own} found, {chosen} times chosen")


EXAMPLE = """\b
Example:
  jaxllama classify reviews.csv --question 'Did the guest like it?' --choices yes,no
"""


@click.command(
    "classify",
    cls=ModelCommand,
    slots=1,
    leave_out=("load_prompt_format", "load_sampling_defaults"),
    epilog=EXAMPLE,
)
@click.argument("texts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    *("--question", "questions"),
    multiple=True,
    required=True,
    metavar="TEXT",
    help="Ask this about each text. May be given again.",
)
@click.option(
    "--choices",
    multiple=True,
    required=True,
    metavar="A,B,...",
    help="Choose among these, with commas between them or as a JSON list; once for all questions, "
    "or once for each.",
)
@click.option(
    "--gold",
    "golds",
    multiple=True,
    metavar="COLUMN",
    help="Compare the choice with this column and print the accuracy; once for each question. "
    "Rows without a value do not count.",
)
@click.option("--column", default=TEXT, show_default=True, help="Read the texts in this column.")
@click.option(
    *("-o", "--output"),
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the rows to this file, .csv or .jsonl, in place of what it holds [default: "
    "standard output, in the form of TEXTS].",
)
@click.option(
    "--raw",
    is_flag=True,
    help="Put text, question and choice together as they are [default: the question on a line of "
    'its own, and the choice after "Answer:"].',
)
@click.option(
    "--length-normalize",
    is_flag=True,
    help="Compare the mean log-probability of the choices' tokens, not the sum: for choices of "
    "different length.",
)
@click.option("--keep-going", is_flag=True, help="Write errors as rows, and continue after them.")
def command(  # noqa: PLR0913 - an argument for each option
    *,
    texts: Path,
    questions: Sequence[str],
    choices: Sequence[str],
    golds: Sequence[str],
    column: str,
    output: Path | None,
    raw: bool,
    length_normalize: bool,
    keep_going: bool,
    loading: Mapping[str, Any],
) -> int:
    """Classify every text of TEXTS: a .csv file with a column "text", .jsonl, or .txt.

    Each row is written with its own columns, the chosen label and the probability of each choice.
    --gold names the column with the right answers, for the accuracy; with --raw, text, question and
    choice are put together as they are. With several questions the names of the new columns end in
    _1, _2 and so on.
    """
    asked = read_questions(questions, choices, golds)
    kind = kind_of(output, (CSV, JSONL)) if output else form_of(texts)
    if output is not None and output.exists() and output.samefile(texts):
        raise click.UsageError("TEXTS and --output are the same file.")
    total = check_rows(texts, column, asked)
    with open_llm(loading, is_short=True) as llm, opened(output) as file:
        run = ClassifyRun(llm, asked, RowWriter(file, kind), column)
        run.is_raw, run.length_normalize, run.keep_going = raw, length_normalize, keep_going
        return run.over(texts, total)


class ClassifyRun:
    """A run over all texts: classifies them one after the other and writes their rows."""

    def __init__(
        self,
        llm: "LLM",
        questions: Sequence[ClassifiedQuestion],
        writer: RowWriter,
        column: str,
    ) -> None:
        self.llm = llm
        self.questions = questions
        self.writer = writer
        self.column = column
        self.is_raw = False  # text, question and choice are put together as they are
        self.length_normalize = False
        self.keep_going = False
        self.tallies = [Tally() for _ in questions]
        self.failed = 0

    def over(self, texts: Path, total: int) -> int:
        """Classify and write all `total` rows of the file `texts`, and print the accuracy.

        Returns the exit code: 1 if a row failed.
        """
        started = time.perf_counter()
        with advance_shown("texts", total) as report:
            for done, row in enumerate(read_rows(texts), 1):
                try:
                    values = self.classify(row.values)
                except RequestError as error:
                    if not self.keep_going:
                        raise InvalidParameter(f"{texts} line {row.line}: {error}") from error
                    self.failed += 1
                    values = {name: None for each in self.questions for name in new_columns(each)}
                    values["error"] = str(error)
                self.writer.write({**row.values, **values})
                report(done)
        seconds = time.perf_counter() - started
        note(
            f"{total - self.failed} texts, {self.failed} failed, "
            f"in {seconds:.1f} s: {total / seconds:.1f} texts/s"
        )
        self.print_accuracy()
        return 1 if self.failed else 0

    def classify(self, values: Mapping[str, Any]) -> dict[str, object]:
        """Classify one row of the input, and return the columns that are added to it, by name.

        `values` are the row's values by column. Where the row also holds the right answer to a
        question, the model's choice is counted as right or wrong for the accuracy.
        """
        text = values[self.column]
        items = [(text, *self.asked(question)) for question in self.questions]
        found = self.llm.classify_each(items, length_normalize=self.length_normalize)
        new: dict[str, object] = {}
        for question, tally, each in zip(self.questions, self.tallies, found, strict=True):
            new |= question.values(each)
            right = "" if question.gold is None else gold_of(values, question.gold)
            if right:
                tally.pairs[right, str(new[f"label{question.suffix}"])] += 1
        return {**new, "error": None} if self.keep_going else new

    def asked(self, question: ClassifiedQuestion) -> tuple[str, list[str]]:
        """Return the texts of a question and of its choices, as the prompt of a row holds them."""
        if self.is_raw:
            return question.text, list(question.choices)
        return FRAME.replace("{}", question.text), [f" {each}" for each in question.choices]

    def print_accuracy(self) -> None:
        """Print the accuracy for each question that has a column with the right answers."""
        for question, tally in zip(self.questions, self.tallies, strict=True):
            if question.gold is None:
                continue
            if len(self.questions) > 1:
                note(question.text)
            for line in tally.lines(question.choices):
                note(line)


def read_questions(
    questions: Sequence[str], choices: Sequence[str], golds: Sequence[str]
) -> list[ClassifiedQuestion]:
    """Return the questions that the command line asks about every text, with their choices.

    The arguments are the values of the options --question, --choices and --gold, which names the
    column of the input file that holds the right answers. --choices must be given once for all
    questions or once for each, --gold never or once for each; otherwise raises UsageError.
    """
    for name, given, fits in (
        ("--choices", choices, {1, len(questions)}),
        ("--gold", golds, {0, len(questions)}),
    ):
        if len(given) not in fits:
            raise click.UsageError(
                f"{name} is given {len(given)} times and --question {len(questions)} times."
            )
    lists = [read_choices(each) for each in choices]
    many = len(questions) > 1
    return [
        ClassifiedQuestion(
            text,
            lists[number if len(lists) > 1 else 0],
            golds[number] if golds else None,
            f"_{number + 1}" if many else "",
        )
        for number, text in enumerate(questions)
    ]


def read_choices(text: str) -> tuple[str, ...]:
    """Parse a --choices option: a JSON list of texts, or texts with commas between them."""
    found: Any = [each.strip() for each in text.split(",")]
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InvalidParameter(f"--choices {text!r} is no JSON list ({error})") from error
        if not all(isinstance(each, str) for each in found):
            raise InvalidParameter(f"--choices {text!r} holds more than texts")
    check_choices(found)
    return tuple(found)


def new_columns(question: ClassifiedQuestion) -> list[str]:
    """Return the names of the columns that a question adds to the output."""
    none = Classification(question.choices, (0.0,) * len(question.choices), ())
    return list(question.values(none))


def check_rows(path: Path, column: str, questions: Sequence[ClassifiedQuestion]) -> int:
    """Check all rows of the file `path` and return their number.

    `column` is the name of the column with the texts. Raises InvalidParameter, which lists the
    first rows that cannot be classified, if there are any.
    """
    problems, total = [], 0
    own = [name for each in questions for name in new_columns(each)] + ["error"]
    for row in read_rows(path):
        total += 1
        problem = problem_of(row, column, questions, own)
        if problem is not None:
            problems.append(f"line {row.line}: {problem}")
    if not total:
        raise InvalidParameter(f"{path} has no texts")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InvalidParameter(f"{path} {'; '.join(problems[:SHOWN])}{more}")
    return total


def problem_of(
    row: FileRow, column: str, questions: Sequence[ClassifiedQuestion], own: Sequence[str]
) -> str | None:
    """Return in words why a row cannot be classified; None if it can.

    `column` is the name of the column with the texts; `own` are the names of the columns that the
    command adds to the output, which the row must not have yet.
    """
    if not isinstance(row.values.get(column), str):
        return f"has no text in {column!r}; it has {', '.join(map(repr, row.values))} (--column)"
    taken = [name for name in own if name in row.values]
    if taken:
        return f"has a column {taken[0]!r}, which the result would replace; rename it"
    for each in questions:
        if each.gold is None:
            continue
        if each.gold not in row.values:
            return f"has no column {each.gold!r}"
        right = gold_of(row.values, each.gold)
        if right and right not in each.choices:
            return f"{each.gold} is {right!r}; expected one of {', '.join(each.choices)}"
    return None


def gold_of(values: Mapping[str, Any], column: str) -> str:
    """Return the right answer, from a row's `column`, without spaces around it; "" for none."""
    value = values[column]
    return "" if value is None else str(value).strip()


def form_of(texts: Path) -> str:
    """Return the form of rows on standard output: CSV if the input is CSV, else JSON lines.

    `texts` is the path of the input.
    """
    return CSV if kind_of(texts) == CSV else JSONL


@contextmanager
def opened(path: Path | None) -> Iterator[IO[str]]:
    """Yield the file at `path`, opened for writing; standard output if `path` is None."""
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
