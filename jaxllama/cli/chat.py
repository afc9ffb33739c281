"""`jaxllama chat`: a conversation in the terminal.

Reads lines, answers them, and runs commands that begin with a slash. Ctrl-C ends an answer, not
the program: a flag is set, and checked between two tokens, never in the middle of an engine step.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import click

from jaxllama.cli.colours import TokenColours, show_probabilities
from jaxllama.cli.completing import CompletionWords, readline, tab_completes
from jaxllama.cli.conversation import Conversation, NamedTurns, PlainText
from jaxllama.cli.figures import Figures
from jaxllama.cli.options import GenerationCommand, read_knob
from jaxllama.cli.placeholders import fill, read_variables
from jaxllama.cli.terminal import close_llm, load_llm, note, progress_bars, quiet, show
from jaxllama.errors import GenerationFailed, InvalidParameter, JaxLlamaError, RequestError
from jaxllama.limits import LIMITS
from jaxllama.messages import ContextOverflow
from jaxllama.weights import store
from jaxllama.weights.named import DEFAULT

if TYPE_CHECKING:
    from jaxllama.llm import LLM

PROMPT = "> "
PLAIN = "--prompt, --prompt-file, --prefix, --postfix and names make a plain text"
UNSET = "default"  # the value with which /set resets a knob

EXAMPLE = """\b
Example of a plain text:
  jaxllama chat --prefix 'Q: ' --postfix $'\\nA:' --stop 'Q:'
"""


@click.command("chat", cls=GenerationCommand, slots=1, epilog=EXAMPLE)
@click.option("--system", help="Set the system message, which comes before the conversation.")
@click.option("--prompt", help="Plain text: begin the text with this.")
@click.option("--prefix", help="Plain text: put this before each line you type.")
@click.option("--postfix", help="Plain text: put this after each line you type.")
@click.option(
    "--prompt-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Plain text: begin the text with this file, in which {username}, {bot_name} and the names "
    "of --variable are replaced.",
)
@click.option(
    "--variable",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="With --prompt-file: replace {NAME}. May be given again.",
)
@click.option(
    "--user-name", metavar="NAME", help='Plain text of lines "Name: message": you have this name.'
)
@click.option(
    "--bot-name",
    metavar="NAME",
    help='Plain text of lines "Name: message": the name of the model.',
)
@click.option("--bot-first", is_flag=True, help="With names: let the model speak first.")
@click.option(
    "--no-newline",
    is_flag=True,
    help="With names: do not end the model's turn at a line break, but at your name.",
)
@click.option("--first", metavar="TEXT", help="Send this first, as if you had typed it.")
@click.option(
    "--context-overflow",
    type=click.Choice([each.value for each in ContextOverflow]),
    help="When the conversation fills the context: drop_oldest leaves out the oldest turns but not "
    "the system message; keep_fixed keeps the first turn, too; error stops [default: drop_oldest].",
)
@show_probabilities
@quiet
@click.pass_context
def command(  # noqa: PLR0913 - an argument for each option
    context: click.Context,
    /,
    *,
    user_name: str | None,
    bot_name: str | None,
    bot_first: bool,
    no_newline: bool,
    first: str | None,
    context_overflow: str | None,
    show_probabilities: str | None,
    loading: Mapping[str, Any],
    knobs: Mapping[str, Any],
    **begin: Any,
) -> None:
    """Chat with a model in the terminal; type /help for the commands.

    With --prompt, --prompt-file, --prefix, --postfix or names the conversation is one plain text
    that the model continues. This is for models without a prompt format; end the model's turns with
    --stop. The stop text is kept in the conversation once. --first sends a first message before you
    type; --show-probabilities colours each token by its probability.
    """
    names = names_of(user_name, bot_name)
    if names is None and (bot_first or no_newline):
        raise click.UsageError("--bot-first and --no-newline need --user-name and --bot-name.")
    conversation = conversation_of(names, **begin)
    if conversation.plain_text and loading.get("prompt_format", "plain") != "plain":
        raise click.UsageError(f"{PLAIN}; with no --format but plain.")
    if context_overflow is not None:
        if conversation.plain_text:
            raise click.UsageError(
                "--context-overflow leaves out turns; a plain text of one piece has none."
            )
        conversation.overflow = ContextOverflow(context_overflow)
    if names is not None:
        end = f"\n{names.user}:" if no_newline else "\n"
        knobs = {**knobs, "stop": (*knobs.get("stop", ()), end)}
    assert isinstance(context.command, GenerationCommand)
    context.command.check(knobs)
    colours = TokenColours(show_probabilities)
    colours.check()
    with ChatModel(loading) as loaded:
        note("Type a message; /help lists the commands, Ctrl-C stops an answer.")
        session = Session(loaded, conversation, colours.knobs(knobs), context.command)
        session.colours = colours
        if bot_first:
            session.listen_first()
        if first is not None:
            session.say(first)
        session.run()


def conversation_of(  # noqa: PLR0913 - an argument for each option
    names: NamedTurns | None,
    *,
    system: str | None,
    prompt: str | None,
    prefix: str | None,
    postfix: str | None,
    prompt_file: Path | None,
    variables: Sequence[str],
) -> Conversation:
    """Return the conversation, still without turns, that the options describe.

    `names` are those of user and bot in a text where each line begins with a name; None: no names.
    The others are the values of the options of the same name, None if not given; `variables` are
    texts NAME=VALUE. Raises UsageError if the options do not fit together.
    """
    if variables and prompt_file is None:
        raise click.UsageError("--variable needs --prompt-file.")
    if names is not None and (prefix, postfix) != (None, None):
        raise click.UsageError("names are put before messages; without --prefix and --postfix.")
    if prompt_file is not None:
        if prompt is not None:
            raise click.UsageError("Give one beginning: --prompt or --prompt-file.")
        values = placeholders(names, variables)
        prompt = read_text(prompt_file)
        prompt = fill(prompt, values) if values else prompt
    if names is None and (prompt, prefix, postfix) == (None, None, None):
        return Conversation(system=system)
    if system is not None:
        raise click.UsageError(f"{PLAIN}; without --system.")
    return Conversation(prompt, plain_text=names or PlainText(prefix or "", postfix or ""))


def names_of(user: str | None, bot: str | None) -> NamedTurns | None:
    """Return the names of user and bot, with a default for one; None if neither is given."""
    if user is None and bot is None:
        return None
    return NamedTurns(user or "User", bot or "Assistant")


def placeholders(names: NamedTurns | None, variables: Sequence[str]) -> dict[str, str]:
    """Return the values for the placeholders of a prompt file, by the placeholders' names.

    They are the names of user and bot (if not None), and `variables`, texts NAME=VALUE.
    """
    named = {} if names is None else {"username": names.user, "bot_name": names.bot}
    return named | read_variables(variables)


def read_text(path: Path) -> str:
    """Return the text of a file without the line break at its end."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{path} is not UTF-8 text: {error}", "prompt") from error


class ChatModel:
    """The loaded model, which can be replaced by another one; a context manager."""

    def __init__(self, loading: Mapping[str, Any]) -> None:
        self.loading = dict(loading)
        self.llm = load_llm(self.loading)

    @property
    def name(self) -> str:
        """The name, path or address with which the model was requested."""
        return str(self.loading.get("model") or DEFAULT)

    def change(self, name: str) -> None:
        """Load another model with the same settings, but with its own tokenizer.

        On failure, loads the old one again and raises.
        """
        with progress_bars() as report:
            store.resolve(name, progress=report)
        changed = {**self.loading, "model": name}
        changed.pop("tokenizer", None)
        close_llm(self.llm)  # first: there may not be memory for both
        try:
            self.llm = load_llm(changed)
        except JaxLlamaError:
            self.llm = load_llm(self.loading)
            raise
        self.loading = changed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        close_llm(self.llm)


class Session:
    """One user at one terminal: the loop that reads lines, and the commands."""

    def __init__(
        self,
        loaded: ChatModel,
        conversation: Conversation,
        knobs: Mapping[str, Any],
        options: GenerationCommand,
    ) -> None:
        self.loaded = loaded
        self.conversation = conversation
        self.knobs = dict(knobs)
        self.options = options  # knows every knob and preset
        self.figures = Figures()
        self.colours = TokenColours(None)
        self.dropped = 0  # messages that the last prompt left out
        self.over = False

    @property
    def llm(self) -> "LLM":
        """The loaded model."""
        return self.loaded.llm

    def vocabulary(self) -> CompletionWords:
        """Return the words that the Tab key completes.

        These are commands, request parameters with their values, and names of models.
        """
        values: dict[str, Iterable[str]] = {
            **{name: named_values(each.kind) for name, each in LIMITS.items()},
            **{name: named_values(each.kind) for name, each in self.options.specs.items()},
        }
        values["preset"] = self.options.presets
        named = {name: [*each, UNSET] for name, each in values.items()}
        return CompletionWords(list(COMMANDS), named, list(store.NAMES))

    def run(self) -> None:
        """Read lines and answer them, with Tab completion on a terminal."""
        if not sys.stdin.isatty():
            self.read_and_answer()
            return
        with tab_completes(self.vocabulary().completions):
            self.read_and_answer()

    def read_and_answer(self) -> None:
        """Read lines and answer them until the end of the input, /exit, or Ctrl-C twice."""
        impatient = False
        while not self.over:
            try:
                line = read_line(self.sign)
                impatient = False
                self.take(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                if impatient:
                    raise
                impatient = True
                note("\nCtrl-C again, or /exit, to leave.")
            except UnicodeDecodeError as error:
                complain(f"that line is not text: {error}")
            except (RequestError, GenerationFailed) as error:
                complain(str(error))

    def take(self, line: str) -> None:
        """Run the line if it is a command, else answer it as a message."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, argument = line[1:].partition(" ")
            obey = COMMANDS.get(name)
            if obey is None:
                raise RequestError(f"there is no command /{name}; /help lists them")
            obey(self, argument.strip())
        elif line.strip():
            self.say(line.removeprefix("/"))

    @property
    def sign(self) -> str:
        """The text printed before the user types: the user's name, or a fixed sign."""
        turns = self.conversation.plain_text
        return f"{turns.user}: " if isinstance(turns, NamedTurns) else PROMPT

    def listen_first(self) -> None:
        """Generate the model's first message, before the user has written anything."""
        self.conversation.answer(self.listen())

    def say(self, text: str) -> None:
        """Add a question, and print the answer; remove the question again if there is no answer."""
        self.conversation.ask(text)
        try:
            spoken = self.listen()
        except BaseException:
            self.conversation.undo()
            raise
        self.conversation.answer(spoken)

    def listen(self) -> str:
        """Print the answer while it is generated; return its text, to add to the conversation."""
        parts: list[str] = []
        turns = self.conversation.plain_text
        if isinstance(turns, NamedTurns):
            show(f"{turns.bot}:")
        stream = self.conversation.stream(self.llm, self.knobs)
        dropped = stream.generation.request.dropped
        if dropped > self.dropped:
            note(f"the context is full: the oldest {dropped} messages are left out from now on")
        self.dropped = dropped
        with ctrl_c_noted() as was_pressed:
            for delta in stream:
                parts.append(delta.text)
                self.colours.show(delta)
                if was_pressed():
                    stream.close()
                    self.figures.add(stream.generation.usage())
                    show("\n")
                    note("stopped")
                    return "".join(parts)
        show("\n")
        self.figures.add(stream.completion.usage)
        return "".join(parts) + self.conversation.ending(stream.completion.stop)

    def undo(self, _: str) -> None:
        """Forget the last question and its answer."""
        question = self.conversation.undo()
        note("nothing to undo" if question is None else f"forgotten: {question}")

    def retry(self, _: str) -> None:
        """Answer the last question again."""
        self.again(self.last_question())

    def edit(self, text: str) -> None:
        """TEXT: Ask this instead of the last question; without TEXT, edit it."""
        question = self.last_question()
        text = text or edited(question)
        if text.strip():
            self.again(text)

    def again(self, text: str) -> None:
        """Replace the last question by this text and answer it; on failure the old turns stay."""
        turns = list(self.conversation.turns)
        if self.knobs.get("seed") is not None:
            self.knobs["seed"] += 1  # or the answer would be the same
        self.conversation.undo()
        try:
            self.say(text)
        except BaseException:
            self.conversation.turns = turns
            raise

    def system(self, text: str) -> None:
        """TEXT: Change the system message; without TEXT, show it."""
        if text:
            self.conversation.system = text
        note(f"system: {self.conversation.system or 'none'}")

    def save(self, name: str) -> None:
        """FILE: Save the conversation."""
        self.conversation.save(path_of(name))
        note(f"saved {len(self.conversation.turns)} messages")

    def load(self, name: str) -> None:
        """FILE: Continue a saved conversation."""
        self.conversation.load(path_of(name))
        note(f"loaded {len(self.conversation.turns)} messages")

    def set(self, text: str) -> None:
        """KNOB VALUE: Set a knob or preset; default resets it; alone, show settings."""
        name, _, value = (part.strip() for part in text.partition(" "))
        name = name.removeprefix("--").replace("-", "_")
        if name and value == UNSET:
            read_knob(name, "", self.options.specs)  # raises for an unknown name
            self.knobs.pop(name, None)
        elif value:
            found = read_knob(name, value, self.options.specs)
            self.options.check({name: found})
            self.knobs[name] = found
        elif name and name not in self.knobs:
            raise RequestError(f"{name} is not set; set it with /set {name} VALUE")
        for each in [name] if name in self.knobs else self.knobs:
            note(f"{each}: {self.knobs[each]}")
        if not self.knobs:
            note("no knob is set")

    def model(self, name: str) -> None:
        """NAME: Continue with another model; alone, show the model's name."""
        if name:
            try:
                self.loaded.change(name)
            except JaxLlamaError as error:
                complain(str(error))
        note(f"model: {self.loaded.name}")

    def stats(self, _: str) -> None:
        """Show tokens and seconds of the last answer and the session."""
        for line in self.figures.lines(self.llm.engine_config.context):
            note(line)

    def help(self, _: str) -> None:
        """Show this list."""
        for name, obey in COMMANDS.items():
            words = (obey.__doc__ or "").strip()
            argument, colon, rest = words.partition(": ")
            usage = f"/{name} {argument}" if colon else f"/{name}"
            note(f"{usage:16}  {rest if colon else words}")
        note(f"{'//...':16}  Send a message that begins with a slash.")

    def exit(self, _: str) -> None:
        """Leave; so does Ctrl-D."""
        self.over = True

    def last_question(self) -> str:
        """Return the last question; raise RequestError if there is none."""
        question = self.conversation.question
        if question is None:
            raise RequestError("there is no question yet; type one")
        return question


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "undo": Session.undo,
    "retry": Session.retry,
    "edit": Session.edit,
    "system": Session.system,
    "set": Session.set,
    "model": Session.model,
    "save": Session.save,
    "load": Session.load,
    "stats": Session.stats,
    "help": Session.help,
    "exit": Session.exit,
}


def named_values(kind: type) -> tuple[str, ...]:
    """Return the words that a knob (request parameter) of this type accepts.

    They are true and false for bool; other types have none.
    """
    return ("true", "false") if kind is bool else ()


def read_line(sign: str = PROMPT) -> str:
    """Read one line from standard input; the prompt sign is shown only on a terminal."""
    return input(sign if sys.stdin.isatty() else "")


def edited(text: str) -> str:
    """Let the user edit a line in the terminal and return the result.

    Raises RequestError without a terminal or without readline.
    """
    if not sys.stdin.isatty():
        raise RequestError("/edit needs the new text here: /edit TEXT")
    if readline is None:
        raise RequestError("this Python cannot edit lines; write the new text: /edit TEXT")
    reader = readline
    reader.set_startup_hook(lambda: reader.insert_text(text))
    try:
        return read_line()
    finally:
        reader.set_startup_hook(None)


def path_of(name: str) -> Path:
    """Return the path that the user gave to a command; raise RequestError if it is empty."""
    if not name:
        raise RequestError("which file? expected its name after the command")
    return Path(name).expanduser()


def complain(message: str) -> None:
    """Print an error in one line on standard error; the conversation continues."""
    click.secho(f"error: {message}", err=True, fg="red")


@contextmanager
def ctrl_c_noted() -> Iterator[Callable[[], bool]]:
    """Within the context, let the first Ctrl-C set a flag, and the second one interrupt.

    Yields a function that returns the flag. At the end the old signal handler is restored.
    """
    pressed = False

    def note_it(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    before = signal.signal(signal.SIGINT, note_it)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
