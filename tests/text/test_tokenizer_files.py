"""SentencePiece, tiktoken and llama2.c files against the libraries that they come from."""

import pytest

from jaxllama.text.from_folder import tokenizer_from_folder
from jaxllama.text.from_json import tokenizer_from_json
from jaxllama.text.model_file import tokenizer_from_model
from jaxllama.text.tail import Tail
from jaxllama.text.tokenizer import Tokenizer
from tests.text.golden_files import FILES, SENTENCEPIECE, built, content, goldens, write_folder
from tests.text.test_from_json import byte_level, save

TEXTS = goldens()["texts"]
UNIGRAM = ("unigram", "bytes")
WITHOUT_BYTES = ("ruled", "unigram")  # unknown characters are lost
LOSSLESS = ("llama", "gemma", "bytes", "tiktoken", "llama2c")
ADDED = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "[INST]")


def differing(kind: str, *, special: bool = False) -> list[tuple[str, list[int], list[int]]]:
    """Texts whose ids are not those of the library, with both."""
    expected = list(goldens()[kind]["ids"])
    if special:
        for place, ids in goldens()[kind]["special"].items():
            expected[int(place)] = ids
    ours = (built(kind).encode(text, special=special, begin=False) for text in TEXTS)
    both = zip(TEXTS, ours, expected, strict=True)
    return [(text, found, ids) for text, found, ids in both if found != ids]


@pytest.mark.origin("llama-burn: tokenizers of SentencePiece and tiktoken")
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in UNIGRAM])
def test_texts_have_the_ids_of_the_library(kind):
    assert differing(kind) == []


@pytest.mark.parametrize("kind", UNIGRAM)
def test_unigram_texts_have_the_ids_of_the_library_or_equally_good_ones(kind):
    """SentencePiece adds scores in 32 bits; where sums are equal, its rounding decides."""
    different = differing(kind)
    assert len(different) < 5
    for text, found, ids in different:
        assert sorted(found) == sorted(ids), text


def test_special_text_in_prompts_has_the_ids_of_tiktoken():
    assert goldens()["tiktoken"]["special"]
    assert differing("tiktoken", special=True) == []


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_ids_decode_to_the_text_of_the_library(kind):
    ours, found = built(kind), goldens()[kind]
    for place, (text, ids) in enumerate(zip(TEXTS, found["ids"], strict=True)):
        said = found["decoded"].get(str(place), text)
        is_lossy = " \u2047 " in said or text.startswith("\u2581\u2581")
        if kind not in WITHOUT_BYTES or not is_lossy:  # unknown characters are dropped
            assert ours.decode(ids) == said


@pytest.mark.parametrize("kind", LOSSLESS)
def test_texts_come_back(kind):
    ours = built(kind)
    for text in TEXTS:
        kept = text if kind in ("tiktoken", "llama2c") else text.replace("\u2581", " ")
        assert ours.decode(ours.encode(text)) == kept


@pytest.mark.parametrize("kind", FILES)
def test_streamed_text_is_the_decoded_text(kind):
    ours = built(kind)
    for ids in goldens()[kind]["ids"]:
        for start in (True, False):
            tail = Tail(ours, start=start)
            shown = "".join([*map(tail.push, ids), tail.flush()])
            assert shown == ours.decode(ids, start=start)


@pytest.mark.parametrize("kind", FILES)
def test_every_token_has_bytes_and_invalid_ones_are_replaced(kind):
    ours = built(kind)
    raw = [token for token in range(ours.vocab_size) if ours.piece(token) == b"\xe4"]
    assert all(ours.piece(token, special=True) for token in range(ours.vocab_size))
    for token in raw:
        assert ours.decode([token, token], start=False) == "\ufffd\ufffd"
    assert bool(raw) == (kind not in WITHOUT_BYTES)


@pytest.mark.parametrize("kind", FILES)
def test_long_texts_have_the_same_ids_in_pieces(kind):
    ours, words = built(kind), "the quick Fox  jumps\nover 12 dogs, naïve "
    text = words * (20_000 // len(words) + 1)
    whole = ours._run(text, False)  # all at once
    assert ours.encode(text, begin=False) == whole


@pytest.mark.parametrize("kind", FILES)
def test_begin_and_end_are_the_files(kind):
    ours = built(kind)
    if kind in SENTENCEPIECE:
        assert (ours.begin_id, ours.end_ids[0]) == (
            goldens()[kind]["begin"],
            goldens()[kind]["end"],
        )
    assert ours.encode("a")[0] == ours.begin_id
    assert ours.text.begin in ours.text.special


def test_llama_3_ends_turns_as_its_releases_do():
    ours = built("tiktoken")
    ends = [ours.piece(token, special=True) for token in ours.end_ids]
    assert ends == [b"<|end_of_text|>", b"<|eot_id|>", b"<|eom_id|>"]
    assert ours.vocab_size == len(content("tiktoken.model").splitlines()) + 256


def test_llama2c_stories_end_where_the_next_begins():
    assert built("llama2c").end_ids == (2, 1)


@pytest.mark.parametrize("kind", FILES)
def test_ordinary_text_never_becomes_a_control_token(kind):
    ours = built(kind)
    control = {token for token in range(ours.vocab_size) if not ours.piece(token)}
    for text in sorted(ours.text.special):
        for around in (text, f" {text}", f"a{text}b", f"{text}\n{text}"):
            ids = ours.encode(around, begin=False)
            assert kind in WITHOUT_BYTES or not control & set(ids)
            assert not {ours.begin_id, *ours.end_ids} & set(ids)
            guarded = ours.encode(ours.guard(around), special=True, begin=False)
            assert guarded == ids


def test_both_kinds_of_tokenizer_model_are_told_apart(tmp_path):
    for kind in ("llama", "tiktoken"):
        (tmp_path / "tokenizer.model").write_bytes(content(FILES[kind]))
        ours = tokenizer_from_model(tmp_path / "tokenizer.model")
        assert ours.encode("Hello") == built(kind).encode("Hello")
        assert ours.text.name == tmp_path.name


# Folders


def folder_tokenizer(folder) -> Tokenizer:
    """The tokenizer of a folder with added tokens."""
    return tokenizer_from_folder(write_folder(folder))


def test_prompts_of_a_folder_have_the_ids_of_transformers(tmp_path):
    """Transformers puts no space before a text that has one, and none after an added token."""
    ours, compared = folder_tokenizer(tmp_path), 0
    for text, ids in zip(TEXTS, goldens()["folder"]["ids"], strict=True):
        if not text.startswith((" ", "\u2581")) and not any(added in text for added in ADDED):
            assert ours.encode(text, special=True) == ids
            compared += 1
    assert compared > 180


def test_added_tokens_of_a_folder_are_read(tmp_path):
    ours = folder_tokenizer(tmp_path)
    assert ours.encode("<|im_start|>[INST]", special=True) == [1, 600, 602]
    assert 602 in ours.encode("x[INST]") and 600 not in ours.encode("<|im_start|>")
    assert (ours.begin_id, ours.end_ids) == (1, (2, 601))
    assert ours.text.special == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    assert ours.decode([600, 601, 602], special=True) == "<|im_start|><|im_end|>[INST]"


def test_tokenizer_json_comes_first(tmp_path):
    write_folder(tmp_path)
    for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    save(tmp_path, byte_level())
    assert tokenizer_from_folder(tmp_path).encode("Hello there") == tokenizer_from_json(
        tmp_path
    ).encode("Hello there")


def test_a_folder_may_say_that_no_begin_token_is_added(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert tokenizer_from_folder(tmp_path).encode("a")[0] != 1
