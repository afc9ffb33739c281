"""GGUF files that are truncated, corrupt or hostile: one clear error, quickly, in little memory."""

import struct
from pathlib import Path

import pytest
from hostile import (
    BIG,
    HUGE,
    U32_MAX,
    U64_MAX,
    f32,
    flipped,
    flips,
    gguf_bytes,
    outcome,
    pair,
    string,
    tensor,
    u32,
)
from writers import flatten, write_gguf

from jaxllama.errors import BadHeader, CheckpointError, UnknownFormat, UnsupportedModel
from jaxllama.testing import random_params, tiny
from jaxllama.weights import open_checkpoint

SMALL = tiny(name="small", vocab_size=64, width=32, heads=2, kv_heads=1, ffn_width=32, layers=1)
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"token {i}" for i in range(SMALL.vocab_size)],
    "tokenizer.ggml.token_type": [1] * SMALL.vocab_size,
    "tokenizer.ggml.scores": [0.5] * SMALL.vocab_size,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "m.gguf"
    params = flatten(random_params(SMALL))
    write_gguf(path, SMALL, params, kind="Q8_0", metadata=VOCABULARY)
    return path.read_bytes()


def refusal(tmp_path: Path, raw: bytes) -> CheckpointError:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    error = outcome(path)
    assert error is not None
    return error


def test_the_sound_file_is_read(tmp_path: Path, sound: bytes):
    (tmp_path / "m.gguf").write_bytes(sound)
    assert outcome(tmp_path / "m.gguf") is None


@pytest.mark.parametrize("part", range(8))
def test_truncated_anywhere(tmp_path: Path, sound: bytes, part: int):
    last = len(sound) - 64  # the last bytes are padding
    for at in range(25):
        refusal(tmp_path, sound[: 1 + last * at // 25 + part])


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_never_raise_anything_else(tmp_path: Path, sound: bytes, seed: int):
    path = tmp_path / "m.gguf"
    header = sound.index(b"output_norm.weight") + 200
    refused = 0
    for place in flips(header, 30, seed):
        path.write_bytes(flipped(sound, place))
        refused += outcome(path) is not None
    assert refused > 3


ONE = [tensor("a")]
HOSTILE: dict[str, tuple[bytes, str]] = {
    **{f"tensors {n}": (gguf_bytes(counts=(n, None)), "tensor count") for n in HUGE},
    **{f"keys {n}": (gguf_bytes(counts=(None, n)), "key count") for n in HUGE},
    **{
        f"string {n}": (gguf_bytes([pair("text", 8, struct.pack("<Q", n))]), "text")
        for n in HUGE
    },
    **{
        f"name {n}": (gguf_bytes([struct.pack("<Q", n) + bytes(64)]), "name of a key")
        for n in (70_000, *HUGE)
    },
    **{
        f"array of {kind}, {n}": (
            gguf_bytes([pair("list", 9, struct.pack("<IQ", kind, n))]), "length of list",
        )
        for kind in (0, 5, 7, 8, 12)
        for n in HUGE
    },
    **{
        f"string in array {n}": (
            gguf_bytes([pair("list", 9, struct.pack("<IQQ", 8, 3, n))]), "list",
        )
        for n in HUGE
    },
    **{
        f"{n} dimensions": (gguf_bytes(tensors=[tensor("a", [32], num_dims=n)]), "dimensions")
        for n in (0, 5, U32_MAX)
    },
    "zero dimension": (gguf_bytes(tensors=[tensor("a", [32, 0])]), "at least 1"),
    "product overflows": (gguf_bytes(tensors=[tensor("a", [2**32, 2**32])]), "the file has"),
    "dimensions overflow": (gguf_bytes(tensors=[tensor("a", [U64_MAX] * 4)]), "the file has"),
    "block does not divide": (gguf_bytes(tensors=[tensor("a", [48], 8)]), "a multiple of 32"),
    "past the end": (gguf_bytes(tensors=[tensor("a", [1024], offset=64)]), "the file has"),
    "offset overflows": (gguf_bytes(tensors=[tensor("a", offset=U64_MAX - 31)]), "the file has"),
    "overlap": (gguf_bytes(tensors=[tensor("a"), tensor("b", offset=96)]), "overlap"),
    "same place": (gguf_bytes(tensors=[tensor("a"), tensor("b")]), "overlap"),
    "misaligned": (gguf_bytes(tensors=[tensor("a", offset=33)]), "a multiple of 32"),
    **{
        f"alignment {n}": (gguf_bytes([u32("general.alignment", n)], ONE), "general.alignment")
        for n in (0, 1, 3, 8192, 2**31)
    },
    "alignment is text": (
        gguf_bytes([pair("general.alignment", 8, string("32"))], ONE), "general.alignment",
    ),
    "alignment is an array": (
        gguf_bytes([pair("general.alignment", 9, struct.pack("<IQI", 4, 1, 32))], ONE),
        "general.alignment",
    ),
    "tensor twice": (
        gguf_bytes(tensors=[tensor("a"), tensor("a", offset=128)]), "'a' is given twice",
    ),
    "key twice": (gguf_bytes([u32("k", 1), u32("k", 2)]), "'k' is given twice"),
    "empty key": (gguf_bytes([u32("", 1)]), "empty name"),
    "empty tensor name": (gguf_bytes(tensors=[tensor("")]), "empty name"),
    "key is not UTF-8": (gguf_bytes([pair(b"\xff\xfe", 4, bytes(4))]), "UTF-8"),
    "tensor name is not UTF-8": (gguf_bytes(tensors=[tensor(b"\xc3(")]), "UTF-8"),
    "value type 13": (gguf_bytes([pair("k", 13, bytes(8))]), "value type 13"),
    "array of type 77": (gguf_bytes([pair("k", 9, struct.pack("<IQ", 77, 1))]), "value type 77"),
    "array of arrays": (gguf_bytes([pair("k", 9, struct.pack("<IQ", 9, 1))]), "array of arrays"),
    **{f"version {n}": (gguf_bytes(version=n), f"version {n}") for n in (0, 1, 4, U32_MAX)},
    "big-endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "known tensor type we do not read": (gguf_bytes(tensors=[tensor("a", [256], 9)]), "Q8_1"),
    "removed tensor type": (gguf_bytes(tensors=[tensor("a", [32], 4)]), "number 4"),
    "no tensors": (gguf_bytes(payload=0), "general.architecture is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header(tmp_path: Path, case: str):
    raw, words = HOSTILE[case]
    error = refusal(tmp_path, raw)
    assert isinstance(error, BadHeader | UnsupportedModel)
    assert words in str(error)
    assert "m.gguf" in str(error)


def test_header_claims_are_refused_in_sparse_files_too(tmp_path: Path):
    path = tmp_path / "m.gguf"
    array = pair("list", 9, struct.pack("<IQ", 0, 2**39))
    path.write_bytes(gguf_bytes([array], payload=0))
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(BadHeader, match="list"):
        open_checkpoint(path)


WRONG_KEYS: dict[str, tuple[dict[str, object], str]] = {
    "architecture": ({"general.architecture": "gpt2"}, "'gpt2' is not supported.*llama, qwen2"),
    "adapter": ({"general.type": "adapter"}, "general.type"),
    "split": ({"split.count": 3}, "is one of 3 parts of a split model; expected a name like"),
    "experts": ({"llama.expert_count": 8}, "expert_used_count is missing"),
    "no heads": ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
    "heads do not divide": ({"llama.attention.head_count_kv": 3}, "do not divide"),
    "heads are text": ({"llama.attention.head_count": "two"}, "head_count is 'two'"),
    "heads differ": ({"llama.attention.head_count_kv": [1, 2]}, "differs between blocks"),
    "partial rotation": ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
    "rotation too wide": ({"llama.rope.dimension_count": 64}, "llama.rope.dimension_count is 64"),
    "value size": ({"llama.attention.value_length": 8}, "value_length is 8"),
    "odd head size": (
        {"llama.attention.key_length": 15, "llama.attention.value_length": 15,
         "llama.rope.dimension_count": 15},
        "head size is 15",
    ),
    "a billion blocks": ({"llama.block_count": 10**9}, "llama.block_count is 1000000000"),
    "more blocks than tensors": ({"llama.block_count": 500}, "3000 tensors, and there are 12"),
    "no blocks": ({"llama.block_count": 0}, "llama.block_count is 0"),
    "vocabulary": ({"llama.vocab_size": 65}, "llama.vocab_size is 65"),
    "tokens": ({"tokenizer.ggml.tokens": ["a"]}, "tokenizer.ggml.tokens is 1"),
    "context": ({"llama.context_length": 0}, "llama.context_length is 0"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "norm epsilon is 0"),
    "epsilon nan": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "finite"),
    "base": ({"llama.rope.freq_base": 0.0}, "llama.rope.freq_base is 0"),
    "base infinite": ({"llama.rope.freq_base": float("inf")}, "finite"),
    "factor": ({"llama.rope.scaling.factor": -4.0}, "rope factor is -4"),
    "longrope": ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
    "window": ({"llama.attention.sliding_window": 2**31}, "sliding_window is 2147483648"),
    "width": ({"llama.embedding_length": 2**24}, "has shape"),
    "wide beyond reason": ({"llama.embedding_length": 2**31}, "llama.embedding_length"),
    "feed-forward width": ({"llama.feed_forward_length": 31}, "ffn_gate.weight has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_KEYS)
def test_wrong_configuration_names_the_key(tmp_path: Path, case: str):
    changed, words = WRONG_KEYS[case]
    path = tmp_path / "m.gguf"
    params = flatten(random_params(SMALL))
    write_gguf(path, SMALL, params, kind="Q8_0", metadata=VOCABULARY | changed)
    error = outcome(path)
    with pytest.raises(CheckpointError, match=words):
        raise error or AssertionError("the file was accepted")


def test_rope_factors_must_be_positive_and_fit(tmp_path: Path):
    params = flatten(random_params(SMALL))
    for factors in ([1.0, -1.0], [1.0] * 7, [float("nan")] * 8):
        write_gguf(tmp_path / "m.gguf", SMALL, params, factors=factors)
        error = outcome(tmp_path / "m.gguf")
        assert isinstance(error, BadHeader)
        assert "rope_freqs.weight" in str(error)


def test_vocabulary_that_is_not_utf8_is_refused_when_it_is_asked_for(tmp_path: Path, sound: bytes):
    (tmp_path / "m.gguf").write_bytes(sound.replace(b"token 7", b"token \xff"))
    with (
        open_checkpoint(tmp_path / "m.gguf") as checkpoint,
        pytest.raises(CheckpointError, match="tokens: item 7 is not UTF-8"),
    ):
        checkpoint.tokenizer()


def test_magic_decides(tmp_path: Path, sound: bytes):
    assert isinstance(refusal(tmp_path, b"GGUX" + sound[4:]), UnknownFormat)
    assert isinstance(refusal(tmp_path, b"GGUF"), BadHeader)
    assert isinstance(refusal(tmp_path, f32("GGUF", BIG)), UnknownFormat)
