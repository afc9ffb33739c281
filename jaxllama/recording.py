"""Recording: an answer and the logits from which it was drawn - all that a replay needs.

Made by the command line and the server after an engine has answered; replayed by `explain.py`.
Knows token ids and files; draws nothing.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from jaxllama.engine.engine import Engine
from jaxllama.engine.probes import InSteps
from jaxllama.errors import ConfigError, InvalidParameter
from jaxllama.intake import Intake
from jaxllama.request import GenerationRequest

FORMAT = 1  # of saved recordings


@dataclass(frozen=True)
class Recording:
    """An answer, the logits from which it was drawn, and the settings of the draw."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: np.ndarray  # [tokens V]
    temperature: float
    temperature_last: bool
    seed: int
    stop_ids: tuple[int, ...]
    knobs: Mapping[str, object]
    texts: tuple[str, ...]  # of every token of the vocabulary
    columns: int  # tokens a row can hold
    candidates: int
    body: str  # of the kernels

    def save(self, path: Path) -> None:
        """Write the recording to a file; raise ConfigError if that fails."""
        about = {**asdict(replace(self, logits=np.zeros(0))), "format": FORMAT}
        del about["logits"]
        try:
            with path.open("wb") as file:
                np.savez(file, logits=self.logits, about=np.array(json.dumps(about)))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read a recording from a file; raise ConfigError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                about, logits = json.loads(str(file["about"])), file["logits"]
            if about.pop("format") != FORMAT:
                raise ValueError("it is of another version")
            lists = ("prompt", "tokens", "stop_ids", "texts")
            about |= {name: tuple(about[name]) for name in lists}
            return cls(logits=logits, **about)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path} is no recording of `jaxllama explain --save`: {error}"
            ) from error


def check_recordable(request: GenerationRequest) -> None:
    """Raise InvalidParameter for a request with a constraint or guidance (a negative prompt).

    A replay cannot explain the answer, which depends on more than the logits after the prompt.
    """
    if request.constraint is not None:
        raise InvalidParameter(
            "an answer with a constraint cannot be explained; leave out json_schema, json_object, "
            "regex, choices and grammar"
        )
    if request.contrast is not None:
        raise InvalidParameter(
            "an answer with a negative prompt cannot be explained; leave out negative_prompt and "
            "guidance_scale",
            "negative_prompt",
        )


def peek_at_answer(
    engine: Engine, request: GenerationRequest, tokens: Sequence[int], first: int = 0
) -> InSteps[np.ndarray]:
    """Compute the logits [tokens V] from which the tokens of an answer to `request` were drawn.

    `tokens` are the answer's; logits for those before the index `first` are left out. A generator:
    it yields how many tokens each device call computed, and returns the logits. Raises QueueFull at
    once if no slot is free.
    """
    found = [np.zeros((0, engine.bank.vocab), np.float32)]
    if len(tokens) > first:
        known = [*request.prompt, *tokens[:-1]]
        start = len(request.prompt) + first
        yield from engine.probes.peek(known, start, found.append, adapter=request.adapter)
    return np.concatenate(found)


def make_recording(
    intake: Intake, request: GenerationRequest, tokens: Sequence[int], logits: np.ndarray
) -> Recording:
    """Build the recording of a request and its answer, for a later replay.

    `tokens` are the answer's; `logits` [tokens V] are those from which they were drawn. `intake`
    has the settings of the engine and the texts of the tokens.
    """
    config = intake.engine
    return Recording(
        prompt=request.prompt,
        tokens=tuple(tokens),
        logits=logits,
        temperature=request.temperature,
        temperature_last=request.temperature_last,
        seed=request.seed,
        stop_ids=request.stop_ids,
        knobs=dict(request.knobs),
        texts=intake.tokenizer.texts(),
        columns=config.columns,
        candidates=config.candidates,
        body=config.kernels,
    )
