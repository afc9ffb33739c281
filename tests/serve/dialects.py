"""How each route that generates is asked, and what its answer and its errors look like.

`test_dialects.py` runs all of them through the same tests. A new dialect is one more `Way`.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxllama.serve.dialect import Dialect
from jaxllama.serve.installed import open_dialects
from jaxllama.serve.settings import Settings
from tests.serve.conftest import events_of

HI = [{"role": "user", "content": "hi"}]
ANSWER = "A \u20ac sign, and more."

Body = dict[str, Any]


SESSIONS = tempfile.TemporaryDirectory(prefix="jaxllama-sessions-")


def everyone(**settings: Any) -> list[Dialect]:
    """All installed dialects, or the chosen ones; sessions are in a new folder."""
    chosen, options = settings.pop("dialects", ()), settings.pop("dialect_options", ())
    if not chosen or "exllama" in chosen:
        folder = tempfile.mkdtemp(dir=SESSIONS.name)
        options = (f"exllama.sessions={folder}", *options)
    return open_dialects(Settings(dialects=chosen, dialect_options=options, **settings))


@dataclass(frozen=True)
class Way:
    """One route that generates."""

    name: str
    path: str
    body: Body
    text: Callable[[Any], str]  # of a whole answer: JSON, or text if it is none
    stream: Body | None = None  # what to add to the body for a stream; None: there are none
    pieces: Callable[[str], list[str]] | None = None  # the texts of a stream
    message: Callable[[Any], str] = lambda error: error["error"]["message"]
    key: Callable[[str], Mapping[str, str]] = lambda key: {"Authorization": f"Bearer {key}"}
    # A value out of its bounds; {}: the body is plain text, without fields.
    limit: Body = field(default_factory=lambda: {"max_tokens": -1})
    limited: str | None = None  # its name in the error, if it is not that of the field
    statuses: Mapping[int, int] = field(default_factory=dict)  # the usual ones -> its own
    least: int = 6  # pieces of a stream


def read(raw: str) -> Any:
    """The JSON of an answer, or its text if it is none."""
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def deltas(raw: str) -> list[str]:
    """The texts of a stream of OpenAI's chat."""
    events = [event for event in events_of(raw) if event != "[DONE]"]
    return [event["choices"][0]["delta"].get("content", "") for event in events]


def lines(raw: str) -> list[Any]:
    """The lines of a stream of JSON."""
    return [json.loads(line) for line in raw.splitlines()]


def ollama_message(error: Any) -> str:
    """The message of an error of Ollama."""
    assert set(error) == {"error"}
    return error["error"]


def anthropic_message(error: Any) -> str:
    """The message of an error of Anthropic."""
    assert error["type"] == "error" and error["error"]["type"].endswith(("_error", "_large"))
    return error["error"]["message"]


def plain(text: Any) -> str:
    """The text of an answer or error that is no JSON."""
    assert isinstance(text, str)
    return text


def rllama_piece(line: dict[str, Any]) -> str:
    """The spelling of the only token in a line of RLLaMA."""
    ((piece, value),) = line.items()
    assert 0 <= value["p"] <= 1
    return "" if value.get("is_end_token") else piece.replace("\u2581", " ")


def rllama_text(raw: Any) -> str:
    """The text of RLLaMA's lines: bytes of a character have lines of their own."""
    text = raw if isinstance(raw, str) else json.dumps(raw)
    joined = "".join(rllama_piece(line) for line in lines(text))
    return joined.replace("<0xE2><0x82><0xAC>", "\u20ac")


def burn_text(raw: Any) -> str:
    """The text of llama-burn's events."""
    assert raw.endswith("event: done\ndata: done\n\n")
    blocks = raw.removesuffix("event: done\ndata: done\n\n")
    return "".join(event["token"] for event in events_of(blocks))


def session_text(raw: Any) -> str:
    """The text of a reply in a session of ExLlama."""
    assert isinstance(raw, str), raw
    return "".join(line.get("text", "") for line in lines(raw))


WAYS = [
    Way(
        "openai-chat",
        "/v1/chat/completions",
        {"messages": HI},
        lambda answer: answer["choices"][0]["message"]["content"],
        {"stream": True},
        deltas,
    ),
    Way(
        "openai-completions",
        "/v1/completions",
        {"prompt": "hi"},
        lambda answer: answer["choices"][0]["text"],
        {"stream": True},
        lambda raw: [each["choices"][0]["text"] for each in events_of(raw) if each != "[DONE]"],
    ),
    Way(
        "openai-responses",
        "/v1/responses",
        {"input": "hi"},
        lambda answer: answer["output"][0]["content"][0]["text"],
        {"stream": True},
        lambda raw: [
            event["delta"]
            for event in events_of(raw)
            if event["type"] == "response.output_text.delta"
        ],
        limit={"max_output_tokens": -1},
    ),
    Way(
        "native-explain",
        "/explain",
        {"prompt": "hi", "max_tokens": 40},
        lambda answer: answer["text"],
    ),
    Way(
        "ollama-chat",
        "/api/chat",
        {"model": "scripted:latest", "messages": HI, "stream": False},
        lambda answer: answer["message"]["content"],
        {"stream": True},
        lambda raw: [line["message"]["content"] for line in lines(raw)],
        message=ollama_message,
        limit={"options": {"num_predict": -5}},
        limited="options.num_predict",
    ),
    Way(
        "ollama-generate",
        "/api/generate",
        {"model": "scripted", "prompt": "hi", "stream": False},
        lambda answer: answer["response"],
        {"stream": None},
        lambda raw: [line["response"] for line in lines(raw)],
        message=ollama_message,
        limit={"options": {"top_k": -1}},
        limited="options.top_k",
    ),
    Way(
        "anthropic-messages",
        "/v1/messages",
        {"model": "scripted", "max_tokens": 100, "messages": HI},
        lambda answer: answer["content"][0]["text"],
        {"stream": True},
        lambda raw: [
            event["delta"]["text"]
            for event in events_of(raw)
            if event["type"] == "content_block_delta"
        ],
        key=lambda key: {"X-Api-Key": key},
        message=anthropic_message,
    ),
    Way(
        "llamba-chat",
        "/chat/completion",
        {"messages": HI},
        plain,
        {"stream": True},
        lambda raw: [event["delta"] for event in events_of(raw)],
        message=plain,
    ),
    Way(
        "llamba-completion",
        "/text-completion/completion",
        {"prompt": "hi"},
        plain,
        {"stream": True},
        lambda raw: [event["delta"] for event in events_of(raw)],
        message=plain,
    ),
    Way(
        "llamba-batch",
        "/batch",
        {"completionQueries": [{"prompt": "hi"}]},
        lambda answer: answer[0]["response"]["content"],
        {"stream": True},
        lambda raw: [
            each["response"]["delta"] for event in events_of(raw) for each in event["responses"]
        ],
        message=plain,
        least=1,  # what has arrived of an answer is one piece
        limit={"chatQueries": [{"messages": HI, "max_tokens": -1}], "completionQueries": []},
        limited="max_tokens",
    ),
    Way(
        "rllama",
        "/rllama/v1/inference",
        {"prompt": "hi"},
        rllama_text,
        {"top_k": 20},
        lambda raw: [*rllama_text(raw)],
        message=plain,
        limit={"max_new_tokens": -1},
    ),
    Way(
        "llama-burn",
        "/generate",
        {"prompt": "hi"},
        burn_text,
        {"temperature": 0.5},
        lambda raw: [*burn_text(raw)],
        message=plain,
        statuses={400: 422},
    ),
    Way(
        "rama-chat",
        "/chat",
        {"a": "message"},
        plain,
        message=plain,
        limit={},
        statuses={200: 201},
    ),
    Way(
        "basilisk",
        "/basilisk/infer",
        {"prompt": "hi"},
        lambda answer: answer["text"],
        message=lambda error: error["error"],
        key=lambda key: {"Authorization": key},
        limit={"max_new_tokens": -1},
        statuses={401: 403},
    ),
    Way(
        "exllama-userinput",
        "/api/userinput",
        {"user_input": "hi"},
        session_text,
        {"user_input": "hello"},
        lambda raw: [line["text"] for line in lines(raw) if line["cmd"] == "append"],
        message=lambda error: error["error"],
        limit={"user_input": 5},
    ),
]
