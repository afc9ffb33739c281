"""The traffic of a soak: one errand of a client of any API, chosen at random.

Prompts are new or shared, answers short or long, streamed or not; some clients leave early.
"""

import random
from dataclasses import dataclass
from typing import Any

from tests.chaos.asking import words

Body = dict[str, Any]
LEAVES = 0.1  # share of the clients that leave before the end
LONGEST_STAY = 2.0  # seconds
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SAMPLERS: tuple[Body, ...] = (
    {},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.1},
    {"temperature": 1.2, "top_k": 40, "presence_penalty": 0.5},
    {"temperature": 0.7, "dry_multiplier": 0.8},
    {"temperature": 0.9, "mirostat": 2, "mirostat_tau": 4.0},
    {"expression": "p > 0.1 * p_max and rank < 40"},
)


@dataclass(frozen=True)
class Errand:
    """One request: where it goes, what it says, and how long its client stays."""

    name: str  # of the API
    path: str
    body: Body | None = None  # None: a GET
    stay: float | None = None  # seconds; None: until the end
    ends: str = ""  # for a WebSocket, whose client stops the answer: what the last message contains

    @property
    def is_socket(self) -> bool:
        """Whether it goes over a WebSocket."""
        return bool(self.ends)

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers with this key."""
        return {"Authorization": f"Bearer {key}"}


def errand(chance: random.Random) -> Errand:
    """Choose an errand."""
    text = words(chance.choice((5, 30, 200)), chance.choice((0, 1, chance.random())))
    kinds = errands(text, chance)
    name, path, body, *ends = chance.choice(kinds)
    leaves = not ends and chance.random() < LEAVES
    stay = chance.uniform(0.01, LONGEST_STAY) if leaves else None
    return Errand(name, path, body, stay, ends[0] if ends else "")


def errands(text: str, chance: random.Random) -> list[tuple[Any, ...]]:
    """Return an errand of every kind about a text: API, path, body, for a WebSocket its end."""
    tokens, seed = chance.choice((1, 8, 40)), chance.randrange(1000)
    talk = {"messages": [{"role": "user", "content": text}]}
    knobs = {"max_tokens": tokens, "seed": seed, **chance.choice(SAMPLERS)}
    stream = {"stream": chance.random() < 0.5}
    return [
        ("openai completions", "/v1/completions", {"prompt": text, **knobs, **stream}),
        ("openai completions", "/v1/completions", {"prompt": text, "n": 2, **knobs}),
        ("openai completions", "/v1/completions", {"prompt": text, "regex": "[a-z ]+", **knobs}),
        ("openai completions", "/v1/completions", {"prompt": text, "logprobs": 3, **knobs}),
        ("openai chat", "/v1/chat/completions", {**talk, **knobs, **stream}),
        ("openai chat", "/v1/chat/completions", {**talk, **knobs, "json_schema": SCHEMA}),
        ("openai responses", "/v1/responses", {"input": text, "max_output_tokens": 16, **stream}),
        ("openai embeddings", "/v1/embeddings", {"input": [text]}),
        ("openai models", "/v1/models", None),
        ("native score", "/score", {"prompt": text, "continuations": [" one", " two"]}),
        ("native classify", "/classify", {"prompt": text, "labels": [" yes", " no"]}),
        ("native tokenize", "/tokenize", {"text": text}),
        ("native explain", "/explain", {"prompt": text, "max_tokens": 2, "top_p": 0.9}),
        ("native plugins", "/v1/plugins", None),
        ("anthropic", "/v1/messages", {"model": "smollm2-135m", **talk, "max_tokens": 8, **stream}),
        ("ollama chat", "/api/chat", {"model": "smollm2-135m", **talk, **stream, **options(8)}),
        (
            "ollama generate",
            "/api/generate",
            {"model": "smollm2-135m", "prompt": text, **options(8)},
        ),
        ("ollama embed", "/api/embed", {"model": "smollm2-135m", "input": text}),
        ("ollama tags", "/api/tags", None),
        ("llamba chat", "/chat/completion", {**talk, "max_tokens": 8, **stream}),
        ("llamba batch", "/batch", {"completionQueries": [{"prompt": text, "max_tokens": 4}] * 3}),
        ("rllama", "/rllama/v1/inference", {"prompt": text, "max_new_tokens": 8}),
        ("llama-burn", "/generate", {"prompt": text, "max_tokens": 8}),
        ("rama gen", "/gen?prompt=" + text[:100].replace(" ", "+"), None),
        (
            "rama socket",
            "/ws",
            {"type": "message", "content": text[:200]},
            '"done"',
        ),
        ("basilisk", "/basilisk/infer", {"prompt": text, "max_new_tokens": 8}),
        ("exllama", "/api/userinput", {"user_input": text[:200]}),
    ]


def options(tokens: int) -> Body:
    """Return Ollama's options for an answer of so many tokens."""
    return {"options": {"num_predict": tokens}}
