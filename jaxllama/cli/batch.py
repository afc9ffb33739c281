"""`jaxllama batch`: answer a file of prompts, as fast as the slots allow.

Every line of the input is checked before the model is loaded. Answers are appended in the order in
which they finish; a second run computes only the answers that the first one did not write. The
model is one of this process, or one behind a server.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from jaxllama.cli.advance import advance_shown
from jaxllama.cli.batch_file import (
    MOST,
    SHOWN,
    BatchFile,
    Item,
    PromptTemplate,
    hidden_count,
    read_ids_and_errors,
)
from jaxllama.cli.options import GenerationCommand
from jaxllama.cli.placeholders import text_or_file
from jaxllama.cli.remote import MESSAGES, PROMPT, RemoteModel
from jaxllama.cli.results import Results, Row
from jaxllama.cli.rows import CSV
from jaxllama.cli.terminal import completion_fields, note, open_llm
from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.streams import OnError

if TYPE_CHECKING:
    from jaxllama.llm import LLM

CONCURRENCY = 16  # requests to a server at a time


class BatchModel(Protocol):
    """The model that answers the items: of this process, or of a server."""

    def answers(
        self, kind: str, items: Iterable[tuple[Any, Mapping[str, Any]]], on_error: OnError
    ) -> Iterator[tuple[int, Row]]:
        """Generate an answer to each item; yield (position in `items`, fields of the answer).

        An item is a pair (content, knobs); knobs are request parameters. `kind` is "prompt" or
        "messages", the form of all contents. Answers are yielded in the order in which they are
        completed. `on_error` is called with the position and the error of an item that fails.
        """


class LocalModel:
    """The model of this process."""

    def __init__(self, llm: "LLM") -> None:
        self.llm = llm

    def answers(
        self, kind: str, items: Iterable[tuple[Any, Mapping[str, Any]]], on_error: OnError
    ) -> Iterator[tuple[int, Row]]:
        """Generate an answer to each item; yield (position in `items`, fields of the answer).

        An item is a pair (content, knobs); knobs are request parameters. `kind` is "prompt" or
        "messages", the form of all contents. Answers are yielded in the order in which they are
        completed. `on_error` is called with the position and the error of an item that fails.
        """
        each = self.llm.generate_each if kind == PROMPT else self.llm.chat_each
        for position, completion in each(items, on_error=on_error):
            yield position, completion_fields(completion)


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
@click.option(
    "--count",
    type=click.IntRange(1, MOST),
    default=1,
    show_default=True,
    metavar="N",
    help="Generate N answers to each prompt; a line's own count has the last word.",
)
@click.option(
    "--template",
    metavar="TEXT|@FILE",
    help="Make the prompts of this text, or of that of a file: {name} stands for the value of a "
    "row. PROMPTS is then a .csv file, or one with any JSON object per line.",
)
@click.option("--chat", is_flag=True, help="With --template: the text is the message of a user.")
@click.option(
    "--system",
    metavar="TEXT|@FILE",
    help="With --chat: the system message, which may have placeholders, too.",
)
@click.option(
    "--deduplicate",
    is_flag=True,
    help="Answer equal prompts with equal knobs once; the others get a copy (same_as).",
)
@click.option(
    "--server",
    metavar="URL",
    help="Ask the server at this address, ours or another one with OpenAI's API, in place of "
    "loading a model.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="With --server: send up to N requests at a time [default: 16].",
)
@click.option(
    "--server-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --server: send the API key in this file.",
)
@click.pass_context
def command(  # noqa: PLR0913 - an argument for each option
    context: click.Context,
    *,
    prompts: Path,
    output: Path,
    keep_going: bool,
    count: int,
    template: str | None,
    chat: bool,
    system: str | None,
    deduplicate: bool,
    server: str | None,
    concurrency: int | None,
    server_key_file: Path | None,
    loading: Mapping[str, Any],
    knobs: Mapping[str, Any],
) -> int:
    """Answer every line of PROMPTS, a file with one JSON object per line.

    A line is {"prompt": TEXT or token ids} or {"messages": [{"role", "content"}]}; it may also hold
    knobs, a "count" and an "id". Options set the knobs that a line does not set. Every answer has
    the index (and id) of its line; of several answers each has its number. If the output already
    holds answers, only the missing ones are computed. With --template, the file has values instead,
    which fill the placeholders in a text. With --server, a model on a running server answers.
    """
    assert isinstance(context.command, GenerationCommand)
    if output.exists() and output.samefile(prompts):
        raise click.UsageError("PROMPTS and --output are the same file.")
    source = BatchFile(prompts, context.command.check, knobs, count)
    source.template = read_template(prompts, template, system, is_chat=chat)
    opened = model_opener(server, concurrency, server_key_file, loading)

    ids, counts, problems = read_ids_and_errors(source.items())
    if problems and not keep_going:
        raise InvalidParameter(f"{prompts} {'; '.join(problems[:SHOWN])}{hidden_count(problems)}")
    total = sum(counts)
    with Results(output, ids, counts) as results:
        if results.done:
            note(f"{len(results.done)} of {total} answers are there already")
        if len(results.done) < total:
            run = BatchRun(source, results, keep_going=keep_going)
            if deduplicate:
                run.find_repeated()
            with opened() as model:
                run.run(model, total)
        return 1 if results.failed else 0


def read_template(
    prompts: Path, template: str | None, system: str | None, *, is_chat: bool
) -> PromptTemplate | None:
    """Return the template that the options describe; None without --template.

    `prompts` is the input file; `template` and `system` are the texts of --template and --system,
    or @FILE; `is_chat`: --chat is given. Raises UsageError if the options do not fit together or do
    not fit the file.
    """
    if template is None:
        if is_chat or system is not None:
            raise click.UsageError("--chat and --system need --template.")
        if prompts.suffix.lower() == CSV:
            raise click.UsageError("a .csv file has values for --template, which is missing.")
        return None
    if system is not None and not is_chat:
        raise click.UsageError("--system needs --chat.")
    text = text_or_file(template, "--template")
    return PromptTemplate(
        text, is_chat, None if system is None else text_or_file(system, "--system")
    )


def model_opener(
    server: str | None,
    concurrency: int | None,
    key_file: Path | None,
    loading: Mapping[str, Any],
) -> Callable[[], Any]:
    """Return a function that returns the model as a context manager: a local or a remote one.

    `server` is the address of a server; None: the model runs in this process. `concurrency`, the
    number of requests at a time (None: the default), and `key_file`, the file with the API key,
    need a server. `loading` holds arguments of `LLM.load`; with a server it may hold only `model`.
    Raises UsageError if the options do not fit together.
    """
    if server is None:
        if concurrency is not None or key_file is not None:
            raise click.UsageError("--concurrency and --server-key-file need --server.")

        @contextmanager
        def local() -> Iterator[LocalModel]:
            with open_llm(loading) as llm:
                yield LocalModel(llm)

        return local
    for name in loading:
        if name != "model":
            raise click.UsageError(
                f"--{name.replace('_', '-')} loads a model here; with --server give it to the "
                f"server."
            )
    remote = RemoteModel(
        server,
        concurrency=concurrency or CONCURRENCY,
        key=None if key_file is None else key_file.read_text().strip(),
        model=loading.get("model"),
    )
    return lambda: remote


class BatchRun:
    """A run over the items that have no answer yet: generates answers and writes them to disk."""

    def __init__(self, source: BatchFile, results: Results, *, keep_going: bool) -> None:
        self.source = source
        self.results = results
        self.keep_going = keep_going
        self.tokens = 0
        self.answered = 0
        self.copied = 0
        # Of items that are there several times: the answer, None while it is being generated.
        self.repeated: dict[bytes, Row | None] = {}
        self.waiting: dict[bytes, list[Item]] = {}  # for that answer

    def find_repeated(self) -> None:
        """Note the items that occur several times in the input, with their answers on disk."""
        counts = Counter(each.digest for each in self.source.items() if each.error is None)
        self.repeated = {digest: None for digest, count in counts.items() if count > 1}
        for item in self.source.items():
            row = self.results.done.get(item.place)
            if row is not None and item.digest in self.repeated:
                self.repeated[item.digest] = row

    def run(self, model: BatchModel, total: int) -> None:
        """Generate the answers that are missing; print progress, counts and speed.

        `total` counts all answers, also those that are on disk already.
        """
        already = len(self.results.done)
        with advance_shown("answers", total, already) as report:
            started = time.perf_counter()
            for kind in (PROMPT, MESSAGES):
                for _ in self.ask(kind, model):
                    report(already + self.answered)
            seconds = time.perf_counter() - started
        copies = f", {self.copied} of them copies" if self.copied else ""
        note(
            f"{self.answered - self.results.failed} answers{copies}, {self.results.failed} failed, "
            f"{self.tokens} tokens in {seconds:.1f} s: {self.tokens / seconds:.1f} tok/s"
        )

    def ask(self, kind: str, model: BatchModel) -> Iterator[None]:
        """Send the items of one kind (prompts or messages) to the model and write the answers.

        Yields once for each answer received. Without `keep_going` the first item that fails raises
        InvalidParameter.
        """
        running: dict[int, Item] = {}  # by position in the stream of requests
        positions = itertools.count()

        def feed() -> Iterator[tuple[Any, Mapping[str, Any]]]:
            for item in self.source.items():
                if item.place in self.results.done or item.kind != kind:
                    continue
                if item.error is not None:
                    self.write(item, {"error": item.error})
                    continue
                if self.is_copied(item):
                    continue
                running[next(positions)] = item
                yield item.content, item.knobs or {}

        def on_error(position: int, error: JaxLlamaError) -> None:
            item = running.pop(position)
            if not self.keep_going:
                where = f"{self.source.path} line {item.line}"
                raise InvalidParameter(f"{where}: {error}") from error
            self.finish(item, {"error": str(error)})

        for position, fields in model.answers(kind, feed(), on_error):
            self.tokens += fields["usage"]["generated"]
            self.finish(running.pop(position), fields)
            yield

    def is_copied(self, item: Item) -> bool:
        """Say whether this item gets a copy of an equal item's answer instead of its own.

        The copy is written now if that answer exists, else when it arrives (`finish`).
        """
        if not self.repeated or item.digest not in self.repeated:
            return False
        digest = item.digest
        row = self.repeated[digest]
        if row is not None:
            self.copy(item, row)
        elif digest in self.waiting:
            self.waiting[digest].append(item)
        else:
            self.waiting[digest] = []
            return False
        return True

    def finish(self, item: Item, fields: Mapping[str, Any]) -> None:
        """Write an item's answer or error, and copies of it for equal items that were not sent."""
        row = self.write(item, fields)
        if not self.repeated or item.digest not in self.repeated:
            return
        self.repeated[item.digest] = row
        for each in self.waiting.pop(item.digest, ()):
            self.copy(each, row)

    def copy(self, item: Item, row: Row) -> None:
        """Write `row`, an equal item's answer, as this item's answer.

        Its field `same_as` is the index of the prompt that the model answered.
        """
        own = ("index", "id", "answer", "same_as")
        fields = {name: value for name, value in row.items() if name not in own}
        self.copied += 1
        self.write(item, {**fields, "same_as": row.get("same_as", row["index"])})

    def write(self, item: Item, fields: Mapping[str, Any]) -> Row:
        """Append one item's answer or error to the output file, and return the row written.

        The row is `fields` with the index and id of the prompt and, of several answers, the number.
        """
        named = {} if item.id is None else {"id": item.id}
        number = {"answer": item.answer} if item.count > 1 else {}
        row = {"index": item.index, **named, **number, **fields}
        self.results.write(row)
        self.answered += 1
        return row
