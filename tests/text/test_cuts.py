"""Long texts go through in pieces: the same tokens, with bounded work at a time."""

import random

import pytest
from tokenizers import AddedToken

from jaxllama.errors import InvalidParameter, PromptTooLong
from jaxllama.testing.byte_tokenizer import ByteTokenizer
from jaxllama.text import cuts, tokenizer
from jaxllama.text.cuts import ATOMS, LONGEST_UNCUT, PIECE, Cuts
from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.text.tokenizer import Tokenizer
from tests.text.vocabularies import BYTE_LEVEL_RULES, SCORED, metadata

KINDS = (*BYTE_LEVEL_RULES, *SCORED)
WORDS = ("hello", " world", " the", " quick", "\nBrown", " it's", " été", " да", "\nnew line")


@pytest.fixture
def small(monkeypatch):
    """Pieces of a few characters."""
    monkeypatch.setattr(cuts, "PIECE", 8)
    monkeypatch.setattr(tokenizer, "PIECE", 8)


def random_text(seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(WORDS + ATOMS, k=rng.randint(1, 60)))


def given_to_library(built: Tokenizer, monkeypatch) -> list[str]:
    """What the library is given from now on."""
    seen: list[str] = []
    run = tokenizer.run
    built._cuts  # noqa: B018 - its probes are not counted
    monkeypatch.setattr(tokenizer, "run", lambda *args: seen.append(args[1]) or run(*args))
    return seen


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_tokens_of_the_whole(kind, monkeypatch):
    built = tokenizer_from_gguf(metadata(kind))
    assert built._cuts.place is not None
    seen = given_to_library(built, monkeypatch)
    texts = [random_text(seed) for seed in range(300)]
    in_pieces = [built.encode(text, special=special) for text in texts for special in (0, 1)]
    assert len(seen) > 2.2 * len(texts)  # they were cut
    monkeypatch.setattr(tokenizer, "PIECE", 10**9)
    assert in_pieces == [
        built.encode(text, special=special) for text in texts for special in (0, 1)
    ]


@pytest.mark.usefixtures("small")
def test_a_cut_where_tokens_reach_across_would_change_them():
    """The comparison above can fail."""
    built = tokenizer_from_gguf(metadata("llama"))
    wrong = Cuts(built._cuts.place, drops_space=not built._cuts.drops_space)
    right = [built.encode(random_text(seed)) for seed in range(20)]
    built.__dict__["_cuts"] = wrong
    assert right != [built.encode(random_text(seed)) for seed in range(20)]


@pytest.mark.parametrize("kind", ["smollm", "llama"])
def test_the_library_is_given_a_bounded_piece_at_a_time(kind, monkeypatch):
    built = tokenizer_from_gguf(metadata(kind))
    seen = given_to_library(built, monkeypatch)
    built.encode("The quick brown fox jumps over it\n" * 10_000)
    assert max(map(len, seen)) <= PIECE + 64
    assert len(seen) >= 350_000 // PIECE


def test_a_text_that_cannot_fit_is_refused_before_all_of_it_is_read(monkeypatch):
    built = tokenizer_from_gguf(metadata("smollm"))
    seen = given_to_library(built, monkeypatch)
    with pytest.raises(PromptTooLong, match=r"more than 1023 tokens: about \d+ of its 1900000"):
        built.encode("lazy dogs\n" * 190_000, most=1023)
    assert sum(map(len, seen)) <= PIECE + 64


def test_a_text_that_just_fits_is_read():
    built = tokenizer_from_gguf(metadata("smollm"))
    ids = built.encode("lazy dogs\n" * 10_000)
    assert built.encode("lazy dogs\n" * 10_000, most=len(ids)) == ids


def test_a_long_text_without_a_place_to_cut_is_refused():
    built = tokenizer_from_gguf(metadata("smollm"))
    assert built.encode("a" * LONGEST_UNCUT)
    with pytest.raises(InvalidParameter, match=r"text has 262145 characters from character 0 on"):
        built.encode("a" * (LONGEST_UNCUT + 1))


def test_a_vocabulary_whose_tokens_reach_across_words_is_not_cut():
    fields = metadata("llama")
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "x\u2581"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], 1]
    fields["tokenizer.ggml.scores"] = [*fields["tokenizer.ggml.scores"], -9.0]
    assert tokenizer_from_gguf(metadata("llama"))._cuts.place is not None
    assert tokenizer_from_gguf(fields)._cuts.place is None


def test_a_token_that_takes_its_surroundings_into_account_forbids_cuts():
    built = ByteTokenizer()
    built._encoders[0].add_tokens([AddedToken("<here>", rstrip=True, special=False)])
    assert built._cuts == Cuts()
