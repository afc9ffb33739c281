"""Vectors of texts, from the served model's hidden states or from the encoder beside it.

Used by every dialect that embeds. Knows no dialect's JSON.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxllama.encoder import Encoder
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Prompt
from jaxllama.scoring import Pooling, as_embedding
from jaxllama.service import Caller, GenerationService, Model, Question, ServedEncoder
from jaxllama.service.asking import estimate_characters

TOKENS_AT_A_TIME = 4096  # of an encoder's question; then it is another client's turn


async def vectors_of_model(
    texts: Sequence[Prompt],
    service: GenerationService,
    caller: Caller,
    *,
    pooling: Pooling = Pooling.MEAN,
    truncate: bool = False,
) -> tuple[Sequence[np.ndarray], int]:
    """Return a vector per text from the served model's hidden states, and the total token count.

    `pooling` names the hidden states that make the vector: the mean of all, or the last. `truncate`
    cuts a text that exceeds the context, which is refused otherwise.
    """
    all_ids = await service.off_loop(
        lambda model: [encode_input(model, text, truncate=truncate) for text in texts],
        caller,
        size=estimate_characters(texts),
    )
    total = count_tokens(all_ids, service)
    questions = [embedding_question(ids) for ids in all_ids]
    found = await service.ask_engine(questions, caller)
    return [as_embedding(pooled, pooling) for pooled in found], total


async def vectors_of_encoder(  # noqa: PLR0913 - options of the encoder
    texts: Sequence[Prompt],
    served: ServedEncoder,
    service: GenerationService,
    caller: Caller,
    *,
    prompt_name: str | None = None,
    truncate: bool = False,
    dimensions: int | None = None,
) -> tuple[Sequence[np.ndarray], int]:
    """Return a vector per text, made by the encoder model, and the total token count.

    `prompt_name` chooses one of the encoder's prefixes for texts, None: its default. `truncate`
    cuts texts that are too long; `dimensions` keeps so many numbers of each vector, None: all. The
    engine's thread computes the vectors when it is the client's turn in the queue, without a slot.
    """
    encoder = served.encoder
    to_ids = partial(encoder.ids, prompt_name=prompt_name, truncate=truncate)
    all_ids = await service.off_loop(
        lambda _: [to_ids(text) for text in texts], caller, size=estimate_characters(texts)
    )
    total = count_tokens(all_ids, service)
    questions = [question_of(encoder, part) for part in parts_of(all_ids)]
    vectors = np.concatenate(await service.ask_engine(questions, caller))
    return list(encoder.finished(vectors, dimensions)), total


def question_of(encoder: Encoder, part: list[list[int]]) -> Question[np.ndarray]:
    """Return the engine task that computes the vectors of several texts; it occupies no slot.

    `part` has the token ids of each text.
    """
    return Question(lambda _: encoder.encode_in_steps(part), sum(map(len, part)), slots=0)


def parts_of(all_ids: Sequence[list[int]]) -> list[list[list[int]]]:
    """Group texts (as token ids), in order, into batches of at most TOKENS_AT_A_TIME tokens.

    A text with more tokens is a batch of its own.
    """
    parts: list[list[list[int]]] = []
    size = 0
    for ids in all_ids:
        if not parts or size + len(ids) > TOKENS_AT_A_TIME:
            parts.append([])
            size = 0
        parts[-1].append(ids)
        size += len(ids)
    return parts


def count_tokens(all_ids: Sequence[list[int]], service: GenerationService) -> int:
    """Return the number of tokens of all texts; raise InvalidParameter above the server's limit."""
    total, most = sum(map(len, all_ids)), service.bounds.request_tokens
    if total > most:
        raise InvalidParameter(
            f"input has {total} tokens; this server allows {most} for one request", "input"
        )
    return total


def encode_input(model: Model, text: Prompt, *, truncate: bool) -> list[int]:
    """Convert a text to token ids; refuse one that exceeds the context, or cut it if `truncate`."""
    if truncate:
        return model.intake.ids(text, fits=False)[: model.intake.most]
    ids = model.intake.ids(text)
    model.engine.config.check_length(len(ids), 0)
    return ids


def embedding_question(ids: list[int]) -> Question[tuple[np.ndarray, np.ndarray]]:
    """Return the engine task that computes the pooled hidden states of one text (token ids)."""
    return Question(lambda engine: engine.probes.embed(ids), len(ids))
