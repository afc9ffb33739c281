"""Echo: returns prompts before their answers, with log-probabilities if requested.

Used by the completions endpoint. Evaluation harnesses score texts this way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxllama.intake import Prompt
from jaxllama.limits import check
from jaxllama.request import AdapterUse, TokenLogprobs
from jaxllama.serve.dialects.openai.logprobs import LogprobsWriter, OldLogprobs
from jaxllama.service import Caller, GenerationService, Model, Question


@dataclass(frozen=True)
class Echo:
    """A prompt to return before its answers."""

    text: str
    ids: list[int]
    logprobs: OldLogprobs | None


async def make_echoes(
    prompts: Sequence[Prompt],
    knobs: Mapping[str, object],
    service: GenerationService,
    caller: Caller,
) -> list[Echo]:
    """Return the echo of each prompt, with log-probabilities if `logprobs` is in `knobs`.

    `knobs` are the request's parameters.
    """
    asked = check("logprobs", knobs.get("logprobs"))
    count = asked if isinstance(asked, int) else None
    adapter = service.model.intake.adapter(knobs.get("lora"), knobs.get("lora_scale"))
    return [await make_echo(prompt, service, caller, count, adapter) for prompt in prompts]


async def make_echo(
    prompt: Prompt,
    service: GenerationService,
    caller: Caller,
    count: int | None,
    adapter: AdapterUse | None,
) -> Echo:
    """Return the echo of one prompt: its text, its tokens and, if asked for, log-probabilities.

    `count`: how many likeliest tokens to list at each position, beside the log-probability of the
    prompt's own token; None: no log-probabilities. `adapter` is the LoRA adapter to compute them
    with, None: none.
    """
    tokenizer = service.model.intake.tokenizer

    def read(model: Model) -> tuple[list[int], str]:
        ids = model.intake.ids(prompt)
        model.engine.config.check_length(len(ids), 0)
        return ids, prompt if isinstance(prompt, str) else tokenizer.decode(ids)

    ids, text = await service.off_loop(read, caller, size=len(prompt))
    if count is None:
        return Echo(text, ids, None)
    tops: list[tuple[tuple[int, float], ...]] = []

    def note_top(logits: np.ndarray) -> None:
        tops.extend(top_tokens(row, count) for row in logits)

    on_logits = note_top if count else None
    question = Question(
        lambda engine: engine.probes.peek(ids, 1, on_logits, adapter=adapter), len(ids)
    )
    ((values, _),) = await service.ask_engine([question], caller)
    logprobs, writer = OldLogprobs(), LogprobsWriter(tokenizer)
    writer.add(logprobs, ids[0], None)
    for index, (token, value) in enumerate(zip(ids[1:], values.tolist(), strict=True)):
        writer.add(logprobs, token, TokenLogprobs(value, value, tops[index] if count else ()))
    return Echo(text, ids, logprobs)


def top_tokens(logits: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    """Return the `count` likeliest (token id, log-probability) of one position, best first."""
    count = min(count, len(logits))
    best = np.argpartition(-logits, count - 1)[:count]
    best = best[np.argsort(-logits[best], kind="stable")]
    top = float(logits[best[0]])
    total = top + math.log(np.exp(logits - top).sum(dtype=np.float64))
    return tuple((int(id_), float(logits[id_]) - total) for id_ in best)
