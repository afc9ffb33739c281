"""SentencePiece, tiktoken and llama2.c files against the libraries that they come from."""

import pytest

from tests.text.golden_files import FILES, built, goldens

TEXTS = goldens()["texts"]


def differing(kind: str, *, special: bool = False) -> list[str]:
    """Texts whose ids are not those of the library."""
    expected = list(goldens()[kind]["ids"])
    if special:
        for place, ids in goldens()[kind]["special"].items():
            expected[int(place)] = ids
    return [
        text
        for text, ids in zip(TEXTS, expected, strict=True)
        if built(kind).encode(text, special=special, begin=False) != ids
    ]


@pytest.mark.parametrize("kind", FILES)
def test_texts_have_the_ids_of_the_library(kind):
    assert differing(kind) == []
