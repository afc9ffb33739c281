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
    """Return vectors from the hidden states of the served model, and the tokens of all texts."""
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
    """Return vectors of the encoder, and the tokens of all texts.

    The engine's thread computes them in the client's turn, many texts at a time, beside the slots.
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
    """Return a task for the service that computes the vectors of some texts, without a slot."""
    return Question(lambda _: encoder.encode_in_steps(part), sum(map(len, part)), slots=0)


def parts_of(all_ids: Sequence[list[int]]) -> list[list[list[int]]]:
    """Cut texts into runs of at most TOKENS_AT_A_TIME tokens, or one longer text."""
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
    """Return the tokens of all texts; raise InvalidParameter if they are too many."""
    total, most = sum(map(len, all_ids)), service.bounds.request_tokens
    if total > most:
        raise InvalidParameter(
            f"input has {total} tokens; this server allows {most} for one request", "input"
        )
    return total


def encode_input(model: Model, text: Prompt, *, truncate: bool) -> list[int]:
    """Tokenize a text; one that exceeds the context is cut with `truncate`, else refused."""
    if truncate:
        return model.intake.ids(text, fits=False)[: model.intake.most]
    ids = model.intake.ids(text)
    model.engine.config.check_length(len(ids), 0)
    return ids


def embedding_question(ids: list[int]) -> Question[tuple[np.ndarray, np.ndarray]]:
    """Build the question that asks the engine for the hidden states of one text."""
    return Question(lambda engine: engine.probes.embed(ids), len(ids))
