"""`jaxllama batch`: answer a file of prompts, as fast as the slots allow.

Every line of the input is checked before the model is loaded. Answers are appended in the order in
which they finish; a second run computes only the answers that the first one did not write.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from jaxllama.cli.options import GenerationCommand
from jaxllama.cli.results import Results
from jaxllama.cli.terminal import completion_fields, note, open_llm, progress_bars
from jaxllama.completion import Completion
from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.messages import as_message

SHOWN = 5
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PROMPT, MESSAGES = "prompt", "messages"
Check = Callable[[Mapping[str, Any]], None]  # raises InvalidParameter for bad knobs of a line


@dataclass(frozen=True)
class Item:
    """One line of the input: a prompt or a conversation with its knobs, or the error in it."""

    index: int  # among the lines that are not blank
    line: int
    id: object = None
    kind: str = PROMPT
    content: Any = None
    knobs: Mapping[str, Any] | None = None
    error: str | None = None  # why the line cannot be answered


@click.command("batch", cls=GenerationCommand)
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    *("-o", "--output"),
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write answers to this file, one JSON object per line; answers in it are kept.",
)
@click.option(
    "--keep-going", is_flag=True, help="Write errors to the output, too, and continue after them."
)
@click.pass_context
def command(
    context: click.Context,
    *,
    prompts: Path,
    output: Path,
    keep_going: bool,
    loading: Mapping[str, Any],
    knobs: Mapping[str, Any],
) -> int:
    """Answer every line of PROMPTS, a file with one JSON object per line.

    A line is {"prompt": TEXT or token ids} or {"messages": [{"role", "content"}]}; it may also hold
    knobs and an "id". Options set the knobs that a line does not set. Every answer has the index
    (and id) of its line. If the output already holds answers, only the missing ones are computed.
    """
    assert isinstance(context.command, GenerationCommand)
    check = context.command.check
    if output.exists() and output.samefile(prompts):
        raise click.UsageError("PROMPTS and --output are the same file.")

    def items() -> Iterator[Item]:
        return read_items(prompts, knobs, check)

    ids, problems = read_ids_and_errors(items())
    if problems and not keep_going:
        raise InvalidParameter(f"{prompts} {'; '.join(problems[:SHOWN])}{hidden_count(problems)}")
    with Results(output, ids) as results:
        if results.done:
            note(f"{len(results.done)} of {len(ids)} answers are there already")
        if len(results.done) < len(ids):
            BatchRun(prompts, items, results, keep_going).run(loading, len(ids))
        return 1 if results.failed else 0


class BatchRun:
    """A run over the items that have no answer yet: generates answers and writes them to disk."""

    def __init__(
        self, path: Path, items: Callable[[], Iterator[Item]], results: Results, keep_going: bool
    ) -> None:
        self.path = path
        self.items = items
        self.results = results
        self.keep_going = keep_going
        self.tokens = 0
        self.answered = 0

    def run(self, loading: Mapping[str, Any], total: int) -> None:
        """Load the model, answer all items, and print counts and speed."""
        with open_llm(loading) as llm, progress_bars() as report:
            started = time.perf_counter()
            for kind, ask in ((PROMPT, llm.generate_each), (MESSAGES, llm.chat_each)):
                for _ in self.ask(kind, ask):
                    if report is not None:
                        done = len(self.results.done) + self.answered
                        report("prompts", done, total)
            seconds = time.perf_counter() - started
        note(
            f"{self.answered - self.results.failed} answers, {self.results.failed} failed, "
            f"{self.tokens} tokens in {seconds:.1f} s: {self.tokens / seconds:.1f} tok/s"
        )

    def ask(
        self, kind: str, each: Callable[..., Iterator[tuple[int, Completion]]]
    ) -> Iterator[None]:
        """Send the items of one kind to the engine and write the answers; yield once per answer.

        Without `keep_going` the first item that fails raises InvalidParameter.
        """
        running: dict[int, Item] = {}  # by position in the stream of requests
        positions = itertools.count()

        def feed() -> Iterator[tuple[Any, Mapping[str, Any]]]:
            for item in self.items():
                if item.index in self.results.done or item.kind != kind:
                    continue
                if item.error is not None:
                    self.fail(item, item.error)
                    continue
                running[next(positions)] = item
                yield item.content, item.knobs or {}

        def on_error(position: int, error: JaxLlamaError) -> None:
            item = running.pop(position)
            if not self.keep_going:
                raise InvalidParameter(f"{self.path} line {item.line}: {error}") from error
            self.fail(item, str(error))

        for position, completion in each(feed(), on_error=on_error):
            self.write(running.pop(position), completion_fields(completion))
            self.tokens += completion.usage.generated
            yield

    def fail(self, item: Item, error: str) -> None:
        """Write an item's error to the output in place of an answer."""
        self.write(item, {"error": error})

    def write(self, item: Item, fields: Mapping[str, Any]) -> None:
        """Append one item's answer or error to the output, with its index and id."""
        named = {} if item.id is None else {"id": item.id}
        self.results.write({"index": item.index, **named, **fields})
        self.answered += 1


def read_ids_and_errors(items: Iterator[Item]) -> tuple[list[object], list[str]]:
    """Read all items; return the id of each, and the errors with their line numbers."""
    ids, problems = [], []
    for item in items:
        ids.append(item.id)
        if item.error is not None:
            problems.append(f"line {item.line}: {item.error}")
    return ids, problems


def read_items(path: Path, defaults: Mapping[str, Any], check: Check) -> Iterator[Item]:
    """Yield the lines of the input one at a time; blank lines are skipped.

    A line that cannot be used is yielded with its error.
    """
    index = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(BYTE_ORDER_MARK).strip()
            if line:
                yield read_item(Item(index, number), line, defaults, check)
                index += 1


def read_item(item: Item, line: bytes, defaults: Mapping[str, Any], check: Check) -> Item:
    """Parse one line into its prompt or messages and its knobs, or into its error."""
    id_ = None
    try:
        fields = parse(line)
        id_ = fields.pop("id", None)
        kinds = [kind for kind in (PROMPT, MESSAGES) if kind in fields]
        if len(kinds) != 1:
            named = ", ".join(map(repr, fields)) or "nothing"
            raise InvalidParameter(f"holds {named}; expected one of prompt and messages")
        kind = kinds[0]
        content = fields.pop(kind)
        check_content(kind, content)
        check(fields)
    except InvalidParameter as error:
        return Item(item.index, item.line, id_, error=str(error))
    return Item(item.index, item.line, id_, kind, content, {**defaults, **fields})


def parse(line: bytes) -> dict[str, Any]:
    """Return a line's JSON object; raise InvalidParameter for any other line."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InvalidParameter('is no JSON object; expected {"prompt": ...}')
    return fields


def check_content(kind: str, content: Any) -> None:
    """Raise InvalidParameter unless the content is text or token ids, or a list of messages."""
    if kind == MESSAGES:
        if not isinstance(content, list) or not content:
            raise InvalidParameter("messages is no list of {role, content}, or an empty one")
        for message in content:
            if not isinstance(message, dict):
                raise InvalidParameter(f"messages holds {message!r}; expected {{role, content}}")
            as_message(message)
        return
    is_ids = isinstance(content, list) and all(type(each) is int for each in content)
    if not is_ids and not isinstance(content, str):
        raise InvalidParameter("prompt is neither text nor a list of token ids")


def hidden_count(problems: list[str]) -> str:
    """Return a note with the number of problems that are not shown, or an empty text."""
    return f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
