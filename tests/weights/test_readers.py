"""Every reader gives the same canonical tree, exactly the values the file holds."""

from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from writers import flatten, write_gguf, write_hf

from jaxllama.config import ModelConfig
from jaxllama.errors import BadTensors
from jaxllama.kernels.packed import Packed, unpack
from jaxllama.model.params import abstract_params
from jaxllama.testing import FAMILIES, random_params, tiny
from jaxllama.weights import open_checkpoint, stored
from jaxllama.weights.base import Checkpoint, fill
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.gguf_blocks import KINDS as KINDS_BY_NUMBER

WIDE = tiny(name="wide", width=256, heads=4, kv_heads=2, head_dim=64, ffn_width=512, layers=1)
KINDS = sorted({each.name for each in KINDS_BY_NUMBER.values()} - {"F32", "F16", "BF16"})
PACKED = (
    *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4"),
)
# What a config.json or GGUF says about rope is tested by itself; here the tree matters.
TREES = ("llama2", "tinyllama", "smollm2", "mistral", "qwen2", "qwen3", "biased", "factors")


def dense(path: str, value: np.ndarray | Packed) -> np.ndarray:
    """A weight in canonical layout whatever it is kept in."""
    if not isinstance(value, Packed):
        return np.asarray(value)
    rows = np.asarray(unpack(jax.tree.map(jnp.asarray, value)))
    return rows if path == "embed.weight" else rows.T


def read_all(checkpoint: Checkpoint) -> dict[str, np.ndarray | Packed]:
    """Every weight by dotted path, through `fill`."""
    seen = {}

    def place(path, leaf, value):
        assert leaf.shape == dense(path, value).shape
        seen[path] = value
        return value

    fill(abstract_params(checkpoint.config), checkpoint, place)
    return seen


def assert_same(found: dict, expected: dict[str, np.ndarray]) -> None:
    """Same paths, same values to the last bit."""
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(dense(path, found[path]), value, err_msg=path)


def written(config: ModelConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random weights that `dtype` can hold exactly."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return {path: value.astype(kind) for path, value in flatten(random_params(config)).items()}


@pytest.mark.parametrize("family", TREES)
def test_gguf_gives_the_canonical_tree(tmp_path: Path, family: str):
    config = FAMILIES[family]
    params = written(config)
    write_gguf(tmp_path / "m.gguf", config, params)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert_same(read_all(checkpoint), params)


@pytest.mark.parametrize("family", [name for name in TREES if name not in ("biased", "factors")])
@pytest.mark.parametrize("shards", [1, 3])
def test_hugging_face_gives_the_canonical_tree(tmp_path: Path, family: str, shards: int):
    config = FAMILIES[family]
    params = written(config)
    write_hf(tmp_path, config, params, shards=shards)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(read_all(checkpoint), params)


def test_hugging_face_llama_with_biases(tmp_path: Path):
    params = written(FAMILIES["biased"])
    write_hf(tmp_path, FAMILIES["biased"], params)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(read_all(checkpoint), params)


@pytest.mark.parametrize("family", TREES)
def test_both_readers_agree_on_the_configuration(tmp_path: Path, family: str):
    config = FAMILIES[family]
    write_gguf(tmp_path / "m.gguf", config, written(config))
    write_hf(tmp_path / "hf", config, written(config))
    with open_checkpoint(tmp_path / "m.gguf") as one, open_checkpoint(tmp_path / "hf") as other:
        first, second = one.config, other.config
    for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width"):
        assert getattr(first, name) == getattr(second, name) == getattr(config, name)
    for name in ("tied", "qkv_bias", "out_bias", "ffn_bias", "qk_norm", "window", "max_context"):
        assert getattr(first, name) == getattr(second, name) == getattr(config, name), name
    assert first.norm_eps == pytest.approx(second.norm_eps)
    assert first.rope.theta == second.rope.theta == config.rope.theta


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_keep_the_precision_of_the_file(tmp_path: Path, dtype: str):
    config = FAMILIES["llama3"]
    params = written(config, dtype)
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    write_gguf(
        tmp_path / "m.gguf", config, {p: v.astype(np.float32) for p, v in params.items()}, kind=kind
    )
    write_hf(tmp_path / "hf", config, params)
    for path in (tmp_path / "m.gguf", tmp_path / "hf"):
        with open_checkpoint(path) as checkpoint:
            found = read_all(checkpoint)
        assert_same(found, {path: value.astype(np.float32) for path, value in params.items()})
        matrices = [value for value in found.values() if value.ndim == 2]
        assert {str(value.dtype) for value in matrices} == {dtype}


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_values_equal_those_of_ggufs_own_dequantiser(tmp_path: Path, kind: str):
    params = written(WIDE)
    expected = write_gguf(tmp_path / "m.gguf", WIDE, params, kind=kind)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        found = read_all(checkpoint)
    assert_same(found, expected)
    packed = {path for path, value in found.items() if isinstance(value, Packed)}
    matrices = {path for path, value in expected.items() if value.ndim == 2}
    assert packed == (matrices if kind in PACKED else set())


def test_every_type_that_the_library_decodes_is_read():
    decoded = {kind.name for kind in gguf.quants._type_traits}
    assert {each.name for each in KINDS_BY_NUMBER.values()} == decoded | {"F32", "F16"}


def test_a_file_may_mix_types_and_have_keys_that_nobody_needs(tmp_path: Path):
    kinds = {"q": "Q4_K", "v": "Q6_K", "down": "IQ3_S", "embed": "Q6_K", "up": "IQ4_XS", "": "Q5_K"}
    extra = {
        "quantize.imatrix.file": "imatrix_unsloth.dat", "quantize.imatrix.entries_count": 128,
        "general.quantized_by": "Unsloth", "general.tags": ["unsloth", "llama"],
        "general.file_type": 15, "general.languages": ["en"], "general.base_model.count": 1,
    }  # fmt: skip
    factors = np.linspace(1, 8, WIDE.head_dim // 2).tolist()
    path = tmp_path / "m-UD-Q4_K_XL.gguf"
    expected = write_gguf(path, WIDE, written(WIDE), kind=kinds, metadata=extra, factors=factors)
    with open_checkpoint(path) as checkpoint:
        assert_same(read_all(checkpoint), expected)
        assert checkpoint.config.rope.factors == pytest.approx(tuple(factors))
        assert {kind for kind, _ in checkpoint.kinds.values()} == {*kinds.values(), "F32"}


@pytest.mark.parametrize(("kind", "scales"), [("Q8_0", "float16"), ("Q4_K", "float32")])
def test_scales_are_as_narrow_as_exactness_allows(tmp_path: Path, kind: str, scales: str):
    write_gguf(tmp_path / "m.gguf", WIDE, written(WIDE), kind=kind)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        found = checkpoint.read_stored("blk.0.ffn_up.weight")
    assert isinstance(found, Packed)
    assert found.scales.dtype == scales
    assert found.shape == (WIDE.width, WIDE.ffn_width)


def test_q4_0_with_huge_scales_stays_exact(tmp_path: Path):
    params = {path: value * 200_000 for path, value in written(WIDE).items()}
    expected = write_gguf(tmp_path / "m.gguf", WIDE, params, kind="Q4_0")
    assert max(np.abs(value).max() for value in expected.values()) > 65504  # float16 ends there
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert_same(read_all(checkpoint), expected)


def test_rope_factors_of_a_gguf_reach_the_configuration(tmp_path: Path):
    config = FAMILIES["factors"]
    write_gguf(tmp_path / "m.gguf", config, written(config))
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config.rope.kind == "factors"
        assert checkpoint.config.rope.factors == pytest.approx(config.rope.factors)


@pytest.mark.parametrize("form", ["GGUF F32", "GGUF Q8_0", "safetensors"])
def test_a_part_by_output_reads_its_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    path = tmp_path if form == "safetensors" else tmp_path / "m.gguf"
    if form == "safetensors":
        write_hf(path, WIDE, written(WIDE))
    else:
        write_gguf(path, WIDE, written(WIDE), kind=form.split()[1])
    leaf = abstract_params(WIDE)["blocks.0.ffn.up.weight"]
    read, counts = BinaryFile.read, []
    with open_checkpoint(path) as checkpoint:
        monkeypatch.setattr(
            BinaryFile, "read", lambda *asked: counts.append(asked[2]) or read(*asked)
        )
        checkpoint.read("blocks.0.ffn.up.weight", leaf)
        all_bytes, counts[:] = sum(counts), []
        checkpoint.read("blocks.0.ffn.up.weight", leaf, (slice(0, WIDE.width), slice(64, 128)))
    assert sum(counts) == all_bytes * 64 // WIDE.ffn_width


@pytest.mark.parametrize("form", ["GGUF F32", "GGUF Q8_0", "safetensors"])
def test_a_part_by_input_reads_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    path = tmp_path if form == "safetensors" else tmp_path / "m.gguf"
    if form == "safetensors":
        write_hf(path, WIDE, written(WIDE))
    else:
        write_gguf(path, WIDE, written(WIDE), kind=form.split()[1])
    name, leaf = "blocks.0.ffn.down.weight", abstract_params(WIDE)["blocks.0.ffn.down.weight"]
    read, counts = BinaryFile.read, []
    with open_checkpoint(path) as checkpoint:
        whole = dense(name, checkpoint.read(name, leaf))
        monkeypatch.setattr(
            BinaryFile, "read", lambda *asked: counts.append(asked[2]) or read(*asked)
        )
        monkeypatch.setattr(stored, "CHUNK", 16384)
        part = checkpoint.read(name, leaf, (slice(128, 256), slice(0, WIDE.width)))
    np.testing.assert_array_equal(dense(name, part), whole[128:256])
    assert len(counts) > 1 and max(counts) <= 16384


def test_tied_model_ignores_a_saved_head(tmp_path: Path):
    config = FAMILIES["smollm2"]
    params = written(config)
    write_hf(tmp_path, config, params | {"unembed.weight": params["embed.weight"].T.copy()})
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(read_all(checkpoint), params)


def test_all_problems_are_listed_at_once_before_anything_is_read(tmp_path: Path):
    config = FAMILIES["llama2"]
    params = written(config)
    del params["blocks.0.ffn.up.weight"], params["blocks.1.attention.o.weight"]
    params["blocks.1.ffn.down.weight"] = np.zeros((3, 5), np.float32)
    params["blocks.1.attention.q.bias"] = np.zeros(4, np.float32)
    write_hf(tmp_path, config, params)
    placed = []
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(BadTensors) as caught:
        fill(abstract_params(config), checkpoint, lambda *part: placed.append(part))
    message = str(caught.value)
    assert placed == []
    assert "4 tensors do not fit" in message
    assert "model.layers.0.mlp.up_proj.weight is missing" in message
    assert "model.layers.1.self_attn.o_proj.weight is missing" in message
    assert "model.layers.1.mlp.down_proj.weight has shape [5, 3], expected [64, 96]" in message
    assert "model.layers.1.self_attn.q_proj.bias is surplus" in message


def test_fill_nests_what_place_returns_and_reports_progress(tmp_path: Path):
    config = FAMILIES["llama2"]
    write_hf(tmp_path, config, written(config))
    steps = []
    with open_checkpoint(tmp_path) as checkpoint:
        tree = fill(
            abstract_params(config),
            checkpoint,
            lambda path, _leaf, _value: path,
            lambda done, total: steps.append((done, total)),
        )
    assert tree["blocks"][1]["ffn"]["gate"]["weight"] == "blocks.1.ffn.gate.weight"
    count = len(abstract_params(config))
    assert steps == [(i + 1, count) for i in range(count)]


def test_comparison_of_trees_sees_one_wrong_value(tmp_path: Path):
    params = written(FAMILIES["llama2"])
    write_gguf(tmp_path / "m.gguf", FAMILIES["llama2"], params)
    params["blocks.1.attention.k.weight"][5, 7] += 1e-6
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        found = read_all(checkpoint)
    with pytest.raises(AssertionError, match=r"blocks\.1\.attention\.k"):
        assert_same(found, params)


@pytest.mark.parametrize(("family", "moved"), [("llama3", {"q", "k"}), ("qwen2", set())])
def test_only_llama_files_have_their_query_and_key_rows_moved(
    tmp_path: Path, family: str, moved: set[str]
):
    config = FAMILIES[family]
    params = written(config)
    write_gguf(tmp_path / "m.gguf", config, params)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        differing = {
            name
            for name in ("q", "k", "v")
            if not np.array_equal(
                checkpoint.read_stored(f"blk.0.attn_{name}.weight").T,
                params[f"blocks.0.attention.{name}.weight"],
            )
        }
    assert differing == moved


def test_block_sizes_are_those_of_ggml():
    for number, kind in KINDS_BY_NUMBER.items():
        assert kind.name == gguf.GGMLQuantizationType(number).name
        assert (kind.block, kind.size) == gguf.GGML_QUANT_SIZES[number]
