"""The tokenizer socket: which reader opens which file, and a third party's reader."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxllama.errors import BadTokenizer, BrokenPlugin
from jaxllama.loading import tokenizer_for
from jaxllama.registry import TOKENIZERS, Plugins, load_plugins
from jaxllama.testing import ByteTokenizer, check_tokenizer
from jaxllama.text import opening, readers
from jaxllama.text.opening import open_tokenizer
from jaxllama.text.reader import TokenizerReader
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.weights.gguf_tokenizer import GgufTokenizer
from tests.support import MODEL
from tests.text.golden_files import FILES, content, write_folder
from tests.text.test_from_json import byte_level, save
from tests.weights.writers import write_gguf

MAGIC = b"bytes\n"


class Bytes(TokenizerReader):
    """A reader of a third party: a file that says "bytes"."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_file() and path.read_bytes() == MAGIC

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        if path.read_bytes() != MAGIC:
            raise BadTokenizer(f"{path} does not say {MAGIC!r}")
        return ByteTokenizer()


class Careless(Bytes):
    """A reader that raises what it should not."""

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        if len(path.read_bytes()) < len(MAGIC):
            raise KeyError(path)
        return ByteTokenizer()


class Greedy(Bytes):
    """A reader that takes every file for its own."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_file()


@pytest.fixture
def installed(monkeypatch):
    """Install one more reader."""

    def install(**more: type[TokenizerReader]) -> None:
        known = load_plugins(TOKENIZERS, TokenizerReader)
        changed = Plugins(TOKENIZERS, {**known.loaded, **more})
        monkeypatch.setattr(opening, "load_plugins", lambda *_: changed)

    return install


@pytest.fixture
def words(tmp_path) -> Path:
    (tmp_path / "bytes.txt").write_bytes(MAGIC)
    return tmp_path / "bytes.txt"


@pytest.mark.parametrize(
    ("kind", "reader"),
    [
        ("llama", readers.SentencePieceTokenizer),
        ("unigram", readers.SentencePieceTokenizer),
        ("tiktoken", readers.TiktokenTokenizer),
        ("llama2c", readers.Llama2cTokenizer),
    ],
)
def test_built_in_readers_keep_the_contract(tmp_path, kind, reader):
    path = tmp_path / FILES[kind]
    path.write_bytes(content(FILES[kind]))
    check_tokenizer(reader, path)
    others = load_plugins(TOKENIZERS, TokenizerReader).loaded.values()
    assert [each for each in others if each.recognizes(path)] == [reader]


def test_the_reader_of_gguf_files_keeps_the_contract(tmp_path):
    write_gguf(tmp_path / "m.gguf", MODEL, {}, metadata=gguf_metadata())
    check_tokenizer(GgufTokenizer, tmp_path / "m.gguf")
    assert open_tokenizer(tmp_path / "m.gguf").vocab_size == len(gguf_metadata()[TOKENS])


TOKENS = "tokenizer.ggml.tokens"


def gguf_metadata() -> dict[str, object]:
    """A vocabulary of bytes."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return {
        "tokenizer.ggml.model": "llama",
        TOKENS: texts,
        "tokenizer.ggml.scores": [0.0] * len(texts),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256],
    }


def test_folders_and_their_tokenizer_json_are_opened(tmp_path):
    (tmp_path / "sp").mkdir()
    check_tokenizer(readers.HuggingFaceTokenizer, write_folder(tmp_path / "sp"))
    save(tmp_path, byte_level())
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert open_tokenizer(path).decode(open_tokenizer(path).encode("Hi")) == "Hi"


def test_a_file_that_nobody_knows_is_described(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    for path in (tmp_path / "x.txt", tmp_path):
        with pytest.raises(BadTokenizer, match=r"formats: gguf, huggingface, llama2c, sentencep"):
            open_tokenizer(path)


def test_a_reader_of_a_third_party_opens_its_files(installed, words):
    installed(bytes=Bytes)
    assert open_tokenizer(words).encode("a") == [97]
    check_tokenizer(Bytes, words)


def test_a_reader_that_fails_to_recognise_is_blamed(installed, words, monkeypatch):
    installed(bytes=Bytes)
    monkeypatch.setattr(Bytes, "recognizes", lambda _: 1 / 0)
    with pytest.raises(BrokenPlugin, match=r"tokenizer reader 'bytes' failed on .*ZeroDivision"):
        open_tokenizer(words)


@pytest.mark.parametrize(
    ("reader", "rule"),
    [(Careless, "cut to 0% raised KeyError"), (Greedy, "note.txt is recognised")],
)
def test_the_contract_finds_careless_readers(words, reader, rule):
    with pytest.raises(AssertionError, match=rule):
        check_tokenizer(reader, words)


def test_the_contract_finds_control_tokens_in_ordinary_text(words, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "encode", lambda *_, **__: [257])
    with pytest.raises(AssertionError, match="becomes the control tokens"):
        check_tokenizer(Bytes, words)


# The check against the model.


def checkpoint(places: int) -> SimpleNamespace:
    """A model with its own tokenizer and this many places for tokens."""
    config = SimpleNamespace(vocab_size=places, name="tiny")
    return SimpleNamespace(config=config, tokenizer=lambda: "own")


@pytest.mark.parametrize("places", [260, 272, 288])
def test_a_tokenizer_that_fits_replaces_the_models_own(installed, words, places):
    installed(bytes=Bytes)
    assert tokenizer_for(checkpoint(places), str(words)).vocab_size == 260
    assert tokenizer_for(checkpoint(places), None) == "own"


@pytest.mark.parametrize("places", [259, 300, 32000])
def test_a_tokenizer_of_another_model_is_refused(installed, words, places):
    installed(bytes=Bytes)
    with pytest.raises(BadTokenizer, match=f"has 260 tokens; the model tiny has {places}"):
        tokenizer_for(checkpoint(places), words)
