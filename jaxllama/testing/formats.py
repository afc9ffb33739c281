"""Conformance checks of prompt formats, for their authors.

`check_format(MyFormat)` raises AssertionError that names the broken rule. Called by the tests of
this project and of plugin authors; must not know any format.
"""

from collections.abc import Sequence

from jaxllama.errors import TemplateError
from jaxllama.formats import CallStyle, Message, ModelText, PromptFormat, Tool, ToolCall

SAMPLE = ModelText(
    template=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    begin="<s>",
    end="</s>",
    name="sample",
    special=frozenset({"<s>", "</s>", "<|im_start|>", "<|im_end|>"}),
)
BARE = ModelText()  # a base model

CONVERSATION = (
    Message("system", "Answer in one word; {{ braces }} and {% tags %} are text."),
    Message("user", "What is the capital of France?"),
    Message("assistant", "Paris."),
    Message("user", "Und von Österreich? 🙂\nIn two lines."),
)

TOOL: Tool = {
    "type": "function",
    "function": {"name": "look_up_weather", "description": "{{ braces }}", "parameters": {}},
}
CALLING = (
    Message("user", "Is it raining in Linz?"),
    Message("assistant", "", (ToolCall("ask_the_sky", {"town": "Linz"}, "call_1"),)),
    Message("tool", "Pouring, 9 degrees.", tool_call_id="call_1", name="ask_the_sky"),
)


def check_format(cls: type[PromptFormat], model: ModelText = SAMPLE) -> None:
    """Raise AssertionError unless `cls` keeps the contract of `PromptFormat` for `model`."""
    check_declaration(cls, model)
    prompt_format = cls.for_model(model)
    text = render(prompt_format, CONVERSATION)
    require(
        text == render(prompt_format, CONVERSATION) == render(cls.for_model(model), CONVERSATION),
        cls,
        "renders the same messages differently; expected the same text every time",
    )
    check_contents(cls, text, CONVERSATION)
    check_answer(cls, prompt_format)
    check_odd_conversations(prompt_format)
    check_tools(cls, prompt_format)


def check_declaration(cls: type[PromptFormat], model: ModelText) -> None:
    """Check the class attributes (name, stop texts), and that `suits` returns True or False."""
    name = getattr(cls, "name", None)
    require(
        isinstance(name, str) and name.isidentifier() and name == name.lower(),
        cls,
        f"is named {name!r}; expected a lower-case word, such as 'chatml'",
    )
    require(
        isinstance(cls.stop, tuple) and all(isinstance(stop, str) and stop for stop in cls.stop),
        cls,
        f"stops at {cls.stop!r}; expected a tuple of texts",
    )
    for known in (model, BARE):
        suits = cls.suits(known)
        require(isinstance(suits, bool), cls, f".suits gives {suits!r}; expected True or False")


def check_contents(cls: type[PromptFormat], text: str, messages: Sequence[Message]) -> None:
    """Check that the prompt `text` holds every message's content once, in order, unchanged."""
    place = 0
    for message in messages:
        count = text.count(message.content)
        require(count == 1, cls, f"renders {message.content!r} {count} times; expected once")
        found = text.index(message.content)
        require(found >= place, cls, f"renders {message.content!r} before what was said earlier")
        place = found + len(message.content)


def check_answer(cls: type[PromptFormat], prompt_format: PromptFormat) -> None:
    """Check that `answer=True` only appends text to the prompt made with `answer=False`.

    The prompt made with `answer=False` must also hold every message's content.
    """
    for length in (2, len(CONVERSATION)):
        asked = render(prompt_format, CONVERSATION[:length])
        recorded = prompt_format.render(CONVERSATION[:length], answer=False)
        require(
            isinstance(recorded, str) and asked.startswith(recorded),
            cls,
            f"renders {recorded!r:.200} without the answer's head and {asked!r:.200} with it; "
            f"expected the second to continue the first",
        )
        check_contents(cls, recorded, CONVERSATION[:length])


def check_odd_conversations(prompt_format: PromptFormat) -> None:
    """Check that unusual conversations are rendered or refused with TemplateError."""
    odd: tuple[tuple[Message, ...], ...] = (
        (),
        (Message("user", ""),),
        (Message("system", "Only rules."),),
        (Message("assistant", "I speak first."),),
        (Message("user", "One."), Message("user", "Two.")),
        (Message("critic", "Unknown role."),),
    )
    for messages in odd:
        try:
            render(prompt_format, messages)
        except TemplateError:
            continue
        except Exception as error:
            raise AssertionError(
                f"{name_of(type(prompt_format))} raises {type(error).__name__} on {messages}; "
                f"expected a text or TemplateError"
            ) from error


def check_tools(cls: type[PromptFormat], prompt_format: PromptFormat) -> None:
    """Check that a format with tools renders the tools, calls and results."""
    style = prompt_format.calls
    if style is None:
        return
    require(
        isinstance(style, CallStyle),
        cls,
        f"has calls {style!r}; expected a CallStyle, or None for a format without tools",
    )
    text = prompt_format.render_tools(CALLING, [TOOL])
    for shown in ("look_up_weather", "{{ braces }}", "ask_the_sky", "Linz", "Pouring, 9 degrees."):
        require(shown in text, cls, f"does not show {shown!r} of a conversation with tools")


def render(prompt_format: PromptFormat, messages: Sequence[Message]) -> str:
    """Render the messages; raise AssertionError unless the prompt is text."""
    text = prompt_format.render(messages)
    require(
        isinstance(text, str),
        type(prompt_format),
        f"renders a {type(text).__name__}; expected text",
    )
    return text


def require(holds: bool, cls: type[PromptFormat], broken: str) -> None:
    """Raise AssertionError with the format's name and `broken` unless `holds`.

    Unlike assert, also under `python -O`.
    """
    if not holds:
        raise AssertionError(f"{name_of(cls)} {broken}")


def name_of(cls: type) -> str:
    """Return the module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
