"""Tokenizer files that lie: thousands of damaged ones raise one error, in bounded time and memory.

Opened through the socket, as a user's --tokenizer would be.
"""

import base64
import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from jaxllama.errors import BadTokenizer, CheckpointError
from jaxllama.text import files
from jaxllama.text.charsmap import CharacterMap
from jaxllama.text.from_folder import tokenizer_from_folder
from jaxllama.text.from_llama2c import tokenizer_from_llama2c
from jaxllama.text.from_sentencepiece import tokenizer_from_sentencepiece
from jaxllama.text.from_tiktoken import tokenizer_from_tiktoken
from jaxllama.text.opening import open_tokenizer
from jaxllama.text.protobuf import MAX_FIELDS, read_message
from jaxllama.text.sentencepiece_file import read_model
from tests.text.golden_files import FILES, content, write_folder

READERS = {
    "llama": tokenizer_from_sentencepiece,
    "gemma": tokenizer_from_sentencepiece,
    "ruled": tokenizer_from_sentencepiece,
    "bytes": tokenizer_from_sentencepiece,
    "unigram": tokenizer_from_sentencepiece,
    "tiktoken": tokenizer_from_tiktoken,
    "llama2c": tokenizer_from_llama2c,
}
TEXT = "Hello  [INST] e\u0301\uff21 \u30ab\u3099 \x00\t 42 <0x41>"
MORE_MEMORY = 48 << 20  # bytes


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """The bytes with a few of them changed, removed, repeated, or all after one cut off."""
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 3, 20))):
        if not changed:
            break
        at = chance.randrange(len(changed))
        match chance.randrange(6):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice((0, 0x7F, 0x80, 0xFF, 0x0A, 0x20))
            case 2:
                changed[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"))
            case 3:
                del changed[at : at + chance.choice((1, 2, 30))]
            case 4:
                changed[at:at] = changed[at : at + chance.choice((1, 5, 200))]
            case 5:
                del changed[max(at, 1) :]
    return bytes(changed)


def outcome(reader, path: Path) -> CheckpointError | None:
    """Read a file and use its tokenizer; the error if it is refused, any other passes through."""
    try:
        ours = reader(path)
    except CheckpointError as error:
        assert str(path) in str(error) or "piece" in str(error) or "special token" in str(error)
        assert len(str(error)) < 2000
        return error
    ids = ours.encode(TEXT, special=True)
    assert all(0 <= token < ours.vocab_size for token in ids)
    assert isinstance(ours.decode(ids), str)
    return None


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_raise_the_declared_error_or_are_read(tmp_path, kind):
    raw, chance = content(FILES[kind]), random.Random(kind)
    rounds = 40 if len(raw) > 100_000 else 150
    path, refused = tmp_path / FILES[kind], 0
    for _ in range(rounds):
        path.write_bytes(damaged(raw, chance))
        refused += outcome(READERS[kind], path) is not None
    assert rounds // 10 < refused


@pytest.mark.parametrize("kind", READERS)
def test_memory_is_bounded_by_the_file(tmp_path, kind):
    raw, chance = content(FILES[kind]), random.Random(kind)
    path = tmp_path / FILES[kind]
    tracemalloc.start()
    try:
        for _ in range(4):
            path.write_bytes(damaged(raw, chance))
            outcome(READERS[kind], path)
        assert tracemalloc.get_traced_memory()[1] < MORE_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", READERS)
def test_truncated_files_are_refused_by_the_socket(tmp_path, kind):
    raw = content(FILES[kind])
    path = tmp_path / FILES[kind]
    for size in (0, 1, 2, 5, 9, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        if kind in ("tiktoken",) and size == len(raw) - 1:  # only its last line break is missing
            continue
        with pytest.raises(BadTokenizer):
            open_tokenizer(path)


# Messages and character maps by themselves are quick, so they get thousands.


def test_damaged_messages_raise_the_declared_error_or_are_read():
    raw, chance, refused = content("gemma.model"), random.Random(1), 0
    for _ in range(400):
        try:
            read_model(damaged(raw, chance), "x")
        except BadTokenizer:
            refused += 1
    small = raw[-150:]
    for _ in range(5000):
        try:
            message = read_message(damaged(small, chance), "x")
            for number in message.fields:
                for read in (message.whole, message.text):
                    read(number, type(read(10**6, "" if read == message.text else 0))())
        except BadTokenizer:
            refused += 1
    assert refused > 1000


def test_damaged_character_maps_raise_the_declared_error_or_end():
    raw = read_model(content("ruled.model"), "x").charsmap
    chance, refused = random.Random(2), 0
    for _ in range(3000):
        try:
            rules = CharacterMap(damaged(raw, chance), "x")
        except BadTokenizer:
            refused += 1
            continue
        for at in range(len(TEXT)):
            found = rules.rule_at(TEXT, at)
            assert found is None or (0 < found[0] <= len(TEXT) - at and len(found[1]) <= 1024)
    assert refused > 100


def trie(*units: tuple[int, int]) -> bytes:
    """A map with units at some places of 256, and one text."""
    table = [0] * 256
    for place, unit in units:
        table[place] = unit
    raw = struct.pack("<256I", *table)
    return struct.pack("<I", len(raw)) + raw + b"x\0"


def test_a_trie_with_a_loop_has_rules_of_bounded_length():
    rules = CharacterMap(trie((0x61, 0x61 << 10 | 0x100 | 0x61)), "x")
    assert rules.rule_at("a" * 1000, 0) == (32, "x")
    assert rules.rule_at("b", 0) is None


def test_a_trie_of_loops_is_refused():
    everywhere = (((unit << 10) | 0x100 | unit) for unit in range(256))
    with pytest.raises(BadTokenizer, match="characters begin rules"):
        CharacterMap(trie(*enumerate(everywhere)), "x")


def test_a_character_past_unicode_has_no_rule():
    """The bytes F4 BF BF BF, which no text contains."""
    units = [(0xF4, 0xF4 << 10 | 0xF4), (0xBF, 0xBF << 10 | 0x100 | 0xBF)]
    rules = CharacterMap(trie(*units), "x")
    assert rules.rule_at("\U0010ffff", 0) is None


def test_a_trie_that_points_outside_has_no_rule():
    rules = CharacterMap(trie((0x61, 0x200 | 0x1FFFF << 10 | 0x100 | 0x61)), "x")
    assert rules.rule_at("aaa", 0) is None


VARINT = b"\xff" * 9 + b"\x7f"
MESSAGES = {
    "a number without an end": (b"\x08" + b"\x80" * 40, "does not end"),
    "a length past the end": (b"\x0a\xff\xff\xff\xff\x0f" + b"abc", "4294967295 bytes and only 3"),
    "a length of 64 bits": (b"\x0a" + VARINT, "is cut off or damaged"),
    "a group": (b"\x0b\x0c", "wire type 3"),
    "field 0": (b"\x00\x01", "starts field 0"),
    "too many fields": (b"\x08\x00" * (MAX_FIELDS + 1), "at most"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_that_lie_are_refused(case):
    raw, words = MESSAGES[case]
    with pytest.raises(BadTokenizer, match=words):
        read_message(raw, "file")


def field(number: int, value: bytes | int) -> bytes:
    """A field of a message shorter than 128 bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number of a message."""
    low, rest = value & 0x7F, value >> 7
    return bytes((low | 0x80,)) + varint(rest) if rest else bytes((low,))


def piece(text: str | bytes, kind: int = 1, score: float = 0.0) -> bytes:
    """One piece."""
    raw = text.encode() if isinstance(text, str) else text
    return field(1, field(1, raw) + b"\x15" + struct.pack("<f", score) + field(3, kind))


UNK = piece("<unk>", 2)
BPE = field(2, field(3, 2))
NAN = float("nan")
MODELS = {
    "no pieces": (BPE, "0 pieces of 0 stand for unknown"),
    "two unknown pieces": (UNK + piece("?", 2) + BPE, "2 pieces of 2"),
    "a piece twice": (UNK + piece("a") + piece("a") + BPE, "pieces 1 and 2 are both 'a'"),
    "an empty piece": (UNK + piece("") + BPE, "piece 1 is ''"),
    "a piece that is no UTF-8": (UNK + piece(b"\xff") + BPE, "piece 1: field 1 is damaged"),
    "a score that is no number": (UNK + piece("a", score=NAN) + BPE, "score nan"),
    "a kind that does not exist": (UNK + piece("a", 9) + BPE, "kind 9"),
    "bytes without fallback": (UNK + piece("<0x41>", 6) + BPE, "1 pieces stand for bytes"),
    "fallback without bytes": (UNK + field(2, field(3, 2) + field(35, 1)), "0 pieces stand for"),
    "a byte of another text": (UNK + piece("<0x4g>", 6) + BPE, "another text than"),
    "words": (UNK + field(2, field(3, 3)), "the algorithm is word; supported are"),
    "characters": (UNK + field(2, field(3, 4)), "the algorithm is character"),
    "an unknown algorithm": (UNK + field(2, field(3, 77)), "the algorithm is number 77"),
    "spaces at the end": (UNK + field(2, field(3, 2) + field(24, 1)), "whitespace_as_suffix"),
    "rules for decoding": (UNK + BPE + field(5, field(2, b"abc")), "denormalized by rules"),
    "an unused union": (
        UNK + piece("a") + piece("b") + piece("ab", 5) + BPE,
        "piece 3, 'ab', is marked as unused",
    ),
    "a long piece": (UNK + piece("x" * 300) + BPE, "has 300 characters"),
    "a map of nothing": (UNK + BPE + field(3, field(2, b"\x04\0\0\0")), "hold a trie of 4"),
    "a map that ends": (UNK + BPE + field(3, field(2, b"\xff\xff\xff\xff" * 3)), "hold a trie of"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_lie_are_refused_by_name(tmp_path, case):
    raw, words = MODELS[case]
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(BadTokenizer, match=words):
        tokenizer_from_sentencepiece(tmp_path / "tokenizer.model")


def test_the_smallest_model_is_read(tmp_path):
    (tmp_path / "m").write_bytes(UNK + piece("a") + piece("b") + piece("ab", score=1.0) + BPE)
    ours = tokenizer_from_sentencepiece(tmp_path / "m")
    assert ours.encode("abzz") == [0, 3, 0]
    assert (ours.begin_id, ours.end_ids) == (None, ())


LINES = [base64.b64encode(bytes((byte,))) + b" %d" % byte for byte in range(256)]
RANKS = {
    "a missing byte": (LINES[:-1], "the first is 255"),
    "a rank twice": ([*LINES, b"YWI= 7"], "is given twice"),
    "a token twice": ([*LINES, b"YQ== 256"], "256 different tokens; expected 257"),
    "a rank too high": ([*LINES, b"YWI= 900"], "have 256 of the ranks 0 to 256"),
    "a negative rank": ([*LINES, b"YWI= -1"], "line 257 is b'YWI= -1'"),
    "a rank of many digits": ([*LINES, b"YWI= " + b"9" * 5000], "line 257 is b'YWI= 9999"),
    "no base64": ([*LINES, b"Y W 3"], "expected a token in base64"),
    "an empty token": ([*LINES, b" 256"], "expected a token in base64"),
    "another model's": (
        [*LINES, *(base64.b64encode(b"%06d" % n) + b" %d" % n for n in range(256, 50256))],
        "as the vocabulary r50k_base",
    ),
    "a long token": ([*LINES, base64.b64encode(b"x" * 300) + b" 256"], "has 300 characters"),
}


@pytest.mark.parametrize("case", RANKS)
def test_ranks_that_lie_are_refused_by_line(tmp_path, case):
    lines, words = RANKS[case]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    with pytest.raises(BadTokenizer, match=words):
        tokenizer_from_tiktoken(tmp_path / "tokenizer.model")


RECORDS = content("tokenizer.bin")
PIECES = {
    "a longest piece of nothing": (b"\0" * 4 + RECORDS[4:], "starts with 0"),
    "a longest piece too long": (b"\xff" * 4 + RECORDS[4:], "starts with 4294967295"),
    "a piece longer than the longest": (b"\x02\0\0\0" + RECORDS[4:], "piece 0 has .* 5 bytes"),
    "a negative length": (RECORDS + struct.pack("<fi", 0, -5), "-5 bytes"),
    "a score that is no number": (RECORDS + struct.pack("<fi", NAN, 1) + b"x", "score nan"),
    "half a piece": (RECORDS + b"\0\0", "is cut off"),
    "a piece twice": (RECORDS + struct.pack("<fi", 0, 1) + b"e", "are both 'e'"),
    "bytes elsewhere": (RECORDS.replace(b"<0x41>", b"<0x4A>"), "expected '<0x41>'"),
    "no UTF-8": (RECORDS + struct.pack("<fi", 0, 1) + b"\xff", "is no UTF-8"),
    "only the first pieces": (RECORDS[:300], "expected '<0x|cut off"),
}


@pytest.mark.parametrize("case", PIECES)
def test_pieces_that_lie_are_refused_by_number(tmp_path, case):
    raw, words = PIECES[case]
    (tmp_path / "tokenizer.bin").write_bytes(raw)
    with pytest.raises(BadTokenizer, match=words):
        tokenizer_from_llama2c(tmp_path / "tokenizer.bin")


ADDED = {
    "an id of another token": ('{"x": 5}', "token 5 is '<0x02>', and a file beside it says 'x'"),
    "an id far away": ('{"x": 999999999}', "expected few gaps"),
    "a negative id": ('{"x": -1}', "has id -1"),
    "an id that is true": ('{"x": true}', "has id True"),
    "an empty text": ('{"": 600}', "added token ''"),
    "one text twice": ('{"x": 700, "[INST]": 699}', "one text twice"),
    "a list": ("[1, 2]", "holds a list"),
    "no JSON": ("{", "is no JSON"),
}


@pytest.mark.parametrize("case", ADDED)
def test_added_tokens_that_lie_are_refused(tmp_path, case):
    text, words = ADDED[case]
    (write_folder(tmp_path) / "added_tokens.json").write_text(text)
    with pytest.raises(BadTokenizer, match=words):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize(
    "decoder", ["[]", '{"600": 5}', '{"6e2": {"content": "x"}}', '{"600": {}}']
)
def test_descriptions_of_added_tokens_that_lie_are_refused(tmp_path, decoder):
    text = f'{{"added_tokens_decoder": {decoder}}}'
    (write_folder(tmp_path) / "tokenizer_config.json").write_text(text)
    with pytest.raises(BadTokenizer, match="added"):
        tokenizer_from_folder(tmp_path)


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_VOCABULARY", 1000)
    (tmp_path / "tokenizer.model").write_bytes(content("llama.model"))
    with pytest.raises(BadTokenizer, match="more than 1000 bytes"):
        tokenizer_from_sentencepiece(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("path", ["nothing", "a\0b", "/dev/zero"])
def test_what_is_no_file_is_refused_at_once(path):
    with pytest.raises(BadTokenizer):
        open_tokenizer(path)
    for reader in set(READERS.values()):
        with pytest.raises(BadTokenizer):
            reader(Path(path))
