"""Our own checkpoints: every weight back as it was, in parts or quantised; damage is found."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from convert import to_gguf
from every_format import FORMATS, Format
from hostile import outcome
from writers import flatten

from jaxllama.errors import BadHeader, CheckpointError, ConfigError, UnsupportedModel
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import abstract_params
from jaxllama.testing import check_weights, random_params, tiny
from jaxllama.testing.weights import parts
from jaxllama.weights import native_bundles, open_checkpoint
from jaxllama.weights.base import check_tensors
from jaxllama.weights.convert import Recipe, canonical, convert
from jaxllama.weights.native_bundles import SMALL
from jaxllama.weights.native_store import CHUNK, Room, chunk_shape
from jaxllama.weights.quantize import quantize
from jaxllama.weights.stored import minima_around_middle, unpacked

CONFIG = tiny(name="one", kv_heads=2)
WEIGHTS = flatten(random_params(CONFIG))
EXPERTS = Path(__file__).parents[1] / "golden/architectures/mixtral"


def made(source: Path, target: Path, recipe: Recipe = Recipe(), **options):  # noqa: B008 - frozen
    return convert(source, target, recipe, progress=lambda *_: None, **options)


def weights(path: Path) -> Iterator[tuple[str, np.ndarray | Packed]]:
    with open_checkpoint(path) as checkpoint:
        for each, leaf in abstract_params(checkpoint.config).items():
            yield each, checkpoint.read(each, leaf)


@pytest.fixture
def native(tmp_path: Path) -> Path:
    source, _ = FORMATS["GGUF Q4_0"].write(tmp_path, CONFIG, WEIGHTS)
    made(source, tmp_path / "native")
    return tmp_path / "native"


@pytest.mark.parametrize(
    "name", ["GGUF Q5_1", "GGUF Q8_0", "GPTQ sorted", "AWQ", "Hugging Face bfloat16"]
)
def test_every_weight_is_kept_in_its_form(tmp_path: Path, name: str):
    case: Format = FORMATS[name]
    source, _ = case.write(tmp_path, CONFIG, WEIGHTS)
    errors = made(source, tmp_path / "native")
    assert all(each.difference == 0 for each in errors)
    for (path, one), (_, other) in zip(weights(source), weights(tmp_path / "native"), strict=True):
        assert type(one) is type(other)
        pairs = zip(parts(one), parts(other), strict=True)
        if "norm" in path:
            pairs = zip([one.astype(np.float32)], [other], strict=True)
        for part, found in pairs:
            assert part.dtype == found.dtype
            np.testing.assert_array_equal(part, found)
    with open_checkpoint(source) as one, open_checkpoint(tmp_path / "native") as other:
        assert dataclasses.replace(other.config, name="") == dataclasses.replace(
            one.config, name=""
        )
        text = "Hello, wörld 123"
        assert other.tokenizer().encode(text) == one.tokenizer().encode(text)


@pytest.mark.parametrize(("dtype", "bound"), [("stored", 0.0), ("bf16", 0.004), ("int8", 0.02)])
def test_experts_are_converted_too(tmp_path: Path, dtype: str, bound: float):
    to_gguf(EXPERTS, tmp_path / "m.gguf", "Q8_0")
    made(tmp_path / "m.gguf", tmp_path / "native", Recipe(dtype))
    with open_checkpoint(tmp_path / "native") as checkpoint:
        check_tensors(abstract_params(checkpoint.config), checkpoint)
    for (path, one), (_, other) in zip(
        weights(tmp_path / "m.gguf"), weights(tmp_path / "native"), strict=True
    ):
        assert isinstance(other, Packed) == (
            dtype != "bf16" and len(one.shape) > 1 and "router" not in path
        )
        first, second = (canonical(path, each).astype(np.float32) for each in (one, other))
        assert first.shape == second.shape
        assert np.linalg.norm(first - second) <= bound * np.linalg.norm(first)


@pytest.mark.parametrize("name", ["GGUF Q4_0", "GPTQ sorted", "Hugging Face float32"])
def test_it_keeps_the_contract_of_readers(tmp_path: Path, name: str):
    source, held = FORMATS[name].write(tmp_path, CONFIG, WEIGHTS)
    made(source, tmp_path / "native")
    check_weights(tmp_path / "native", expected=held)


@pytest.mark.parametrize(
    ("recipe", "bound"),
    [
        (Recipe("bf16"), 3e-3), (Recipe("f16"), 3e-4), (Recipe("f32"), 0.0),
        (Recipe("int8"), 0.008), (Recipe("int4"), 0.11), (Recipe("int4", 16), 0.1),
        (Recipe("int4", minimises_error=True), 0.1),
    ],
)  # fmt: skip
def test_the_error_of_each_weight_is_reported(tmp_path: Path, recipe: Recipe, bound: float):
    source, held = FORMATS["Hugging Face float32"].write(tmp_path, CONFIG, WEIGHTS)
    errors = {each.path: each for each in made(source, tmp_path / "native", recipe)}
    for path, value in weights(tmp_path / "native"):
        wide = unpacked(value).astype(np.float32)
        is_turned = isinstance(value, Packed) and path != "embed.weight"
        rest = (wide.T if is_turned else wide) - held[path]
        wanted = float(np.sqrt(np.sum(rest**2) / np.sum(held[path] ** 2)))
        assert errors[path].relative == pytest.approx(wanted, rel=1e-4)
        assert errors[path].relative <= bound
        assert isinstance(value, Packed) == (held[path].ndim == 2 and recipe.dtype[:3] == "int")


def test_minimised_scales_are_at_least_as_good_as_those_of_gguf():
    matrix = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    quantized = gguf.quantize(matrix, gguf.GGMLQuantizationType.Q4_0)
    peer = gguf.dequantize(quantized, gguf.GGMLQuantizationType.Q4_0)
    plain, best = (quantize(matrix, 4, 32, minimises_error=each) for each in (False, True))
    errors = [np.sum((unpacked(each) - matrix) ** 2) for each in (plain, best)]
    theirs = np.sum((peer - matrix) ** 2)
    assert errors[0] < 1.02 * theirs
    assert errors[1] < 0.95 * theirs


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_zeros_stay_zeros(bits):
    assert not unpacked(
        quantize(np.zeros((2, 64), np.float32), bits, 32, minimises_error=True)
    ).any()


def test_inputs_that_are_no_whole_groups_stay_dense(tmp_path: Path):
    source, _ = FORMATS["Hugging Face float32"].write(tmp_path, CONFIG, WEIGHTS)
    made(source, tmp_path / "native", Recipe("int8", 64))
    forms = {path: value for path, value in weights(tmp_path / "native")}  # noqa: C416
    assert isinstance(forms["blocks.0.ffn.up.weight"], Packed)  # 64 inputs
    assert forms["blocks.0.ffn.down.weight"].dtype.name == "bfloat16"  # 96


def test_a_recipe_that_cannot_be():
    for wrong in ({"dtype": "int3"}, {"group": 0}, {"group": 7}):
        with pytest.raises(ConfigError, match="expected one of stored, f32"):
            Recipe(**wrong)


def test_nothing_is_overwritten_unasked(native: Path):
    with pytest.raises(ConfigError, match="add --force"):
        made(native, native)
    with pytest.raises(ConfigError, match="is or holds the model"):
        made(native, native, replaces=True)
    assert outcome(native) is None


CHANGES = {
    "version": (lambda m: m.update(version=3), UnsupportedModel, "version 3 of"),
    "an array in two bundles": (
        lambda m: m["bundles"].update({"bundle.1": ["final_norm.weight/value"]}),
        BadHeader, "each once",
    ),
    "a bundled array of no weight": (
        lambda m: m["bundles"].update({"bundle.1": ["nothing/value"]}), BadHeader, "of weights",
    ),
    "bundled arrays in another order": (
        lambda m: m["bundles"]["bundle.0"].reverse(), BadHeader, "in the order of the weights",
    ),
    "a bundle elsewhere": (
        lambda m: m["bundles"].update({"../a": []}), BadHeader, "expected bundle.0",
    ),
    "a bundle of half a character": (
        lambda m: m["bundles"].update({"\ud800": []}), BadHeader, "expected bundle.0",
    ),
    "a bundle that is not there": (
        lambda m: m["bundles"].update({"bundle.7": m["bundles"].pop("bundle.0")}),
        CheckpointError, "bundle.7",
    ),
    "a bundle without its last array": (
        lambda m: m["bundles"]["bundle.0"].pop(), BadHeader, "expected uint8",
    ),
    "an unknown field": (lambda m: m.update(more=1), BadHeader, "unknown field"),
    "a width that is text": (lambda m: m["config"].update(width="w"), BadHeader, "width"),
    "layers without weights": (lambda m: m["config"].update(layers=9), BadHeader, "9 layers and"),
    "no heads": (lambda m: m["config"].update(heads=0), CheckpointError, "heads"),
    "a path for a tokenizer": (
        lambda m: m["files"].update({"../x": "0"}), BadHeader, "expected tokenizer files",
    ),
    "a checksum": (
        lambda m: m["files"].update({"tokenizer.ggml.json": "0"}), BadHeader, "another checksum",
    ),
    "a huge weight": (
        lambda m: m["weights"]["embed.weight"].update(shape=[2**30, 64]), BadHeader, "incomplete",
    ),
    "bits of no kind": (
        lambda m: m["weights"]["embed.weight"].update(bits=3), BadHeader, "which cannot be",
    ),
    "groups that do not divide": (
        lambda m: m["weights"]["embed.weight"].update(group=24), BadHeader, "which cannot be",
    ),
    "a dtype of no kind": (
        lambda m: m["weights"]["embed.weight"].update(dtype="int7"), BadHeader, "which cannot be",
    ),
    "another shape": (
        lambda m: m["weights"]["final_norm.weight"].update(shape=[32]), CheckpointError, "expected",
    ),
    "a weight elsewhere": (
        lambda m: m["weights"].update({"../a": m["weights"]["embed.weight"]}), BadHeader, "cannot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_lies(native: Path, name: str):
    change, kind, message = CHANGES[name]
    manifest = json.loads((native / "jaxllama.json").read_text())
    change(manifest)
    (native / "jaxllama.json").write_text(json.dumps(manifest))
    with pytest.raises(kind, match=message), open_checkpoint(native) as checkpoint:
        checkpoint.tokenizer()
        dict(weights(native))


def test_expected_weights_are_read_ahead_within_the_size_of_the_largest(native: Path):
    alone = dict(weights(native))
    with open_checkpoint(native) as checkpoint:
        leaves = abstract_params(checkpoint.config)
        forms = {path: checkpoint.kinds[path][1] for path in leaves}
        order = sorted(leaves, key=lambda path: -forms[path])
        checkpoint.expect(order)
        most = 0
        for path in [*order[:5], *order[:4:-1]]:  # the last ones in another order than expected
            value = checkpoint.read(path, leaves[path])
            ahead = checkpoint._ahead
            assert path not in ahead
            assert forms[path] + sum(forms[each] for each in ahead) <= forms[order[0]]
            most = max(most, len(ahead))
            for one, other in zip(parts(value), parts(alone[path]), strict=True):
                np.testing.assert_array_equal(one, other)
        assert most >= 2
        assert not checkpoint._ahead and not checkpoint._next


def test_small_arrays_are_stored_together_and_read_in_any_order(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(native_bundles, "BUNDLE", 1 << 20)
    config = tiny(name="wide", kv_heads=2, width=512, ffn_width=512, vocab_size=2100)
    held = flatten(random_params(config))
    source, _ = FORMATS["Hugging Face float32"].write(tmp_path, config, held)
    made(source, tmp_path / "native", Recipe("bf16"))
    bundles = json.loads((tmp_path / "native/jaxllama.json").read_text())["bundles"]
    assert len(bundles) > 1
    apart = {f"{path}/value" for path in held} - {each for b in bundles.values() for each in b}
    assert apart == {f"{path}/value" for path, each in held.items() if each.size * 2 > SMALL}
    assert 0 < len(apart) < len(held)
    with open_checkpoint(tmp_path / "native") as checkpoint:
        leaves = abstract_params(config)
        order = np.random.default_rng(0).permutation(sorted(held)).tolist()
        for path in [*order, *order]:
            value = checkpoint.read(path, leaves[path])
            kept = held[path].astype(value.dtype)
            np.testing.assert_array_equal(value, kept)
            half = (*(slice(0, size) for size in kept.shape[:-1]), slice(0, kept.shape[-1] // 2))
            np.testing.assert_array_equal(checkpoint.read(path, leaves[path], half), kept[half])
            value[...] = 0  # the memory is the caller's


def test_a_checkpoint_without_bundles_can_be_read(native: Path, tmp_path: Path, monkeypatch):
    with_bundles = dict(weights(native))
    monkeypatch.setattr(native_bundles, "SMALL", 0)
    source, _ = FORMATS["GGUF Q4_0"].write(tmp_path, CONFIG, WEIGHTS)
    made(source, tmp_path / "first")
    text = (tmp_path / "first/jaxllama.json").read_text()
    manifest = json.loads(text) | {"version": 1}
    assert manifest.pop("bundles") == {}
    (tmp_path / "first/jaxllama.json").write_text(json.dumps(manifest))
    for path, value in weights(tmp_path / "first"):
        for one, other in zip(parts(value), parts(with_bundles[path]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_chunks_waste_little():
    for rows, columns in (
        (576, 576),
        (49152, 576),
        (1, 64),
        (2048, 8192),
        (100, 5000),
    ):
        height, width = chunk_shape(np.empty((rows, columns), np.uint8))
        stored = -(-rows // height) * height * -(-columns // width) * width
        assert stored < 1.02 * rows * columns
        assert height == 1 or height * width <= 1.01 * CHUNK


def test_arrays_that_share_memory_do_not_overlap():
    room, rng = Room(), np.random.default_rng(0)
    made = [
        room.array((int(rows), 16), np.dtype(kind))
        for rows in rng.integers(1, 1 << 15, 100)
        for kind in (np.uint8, np.float16)
    ]
    for number, array in enumerate(made):
        array[:] = number % 100
    for number, array in enumerate(made):
        assert (array == number % 100).all()
        assert array.ctypes.data % array.itemsize == 0


def test_minima_of_symmetric_codes_are_minus_eight_scales():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(minima_around_middle(halves), halves * np.float16(-8))
        for same in halves.reshape(64, 1024):  # of one sign and exponent
            np.testing.assert_array_equal(minima_around_middle(same), same * np.float16(-8))
    wide = np.array([[1.5, -2.0]], np.float32)
    np.testing.assert_array_equal(minima_around_middle(wide), [[-12.0, 16.0]])


def test_damaged_arrays_are_found(native: Path):
    files = [each for each in (native / "arrays").rglob("*") if each.is_file()]
    largest = max(files, key=lambda each: each.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match="it is damaged or incomplete"):
        dict(weights(native))


def test_heavy_libraries_are_imported_when_they_are_used():
    code = (
        "import sys; import jaxllama.loading\n"
        "assert not {'gguf', 'yaml', 'flax', 'jax.experimental.pallas'} & sys.modules.keys()\n"
        "import jaxllama.weights.native, jaxllama.weights.convert\n"
        "assert not {'tensorstore', 'orbax'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
