"""Export: the same weights and tokens in another format, bit for bit where it has room for them."""

import json
from dataclasses import replace
from pathlib import Path

import every_format
import gguf
import numpy as np
import pytest
import quantized_writer
from every_format import FORMATS
from safetensors.numpy import load_file
from writers import flatten, gguf_vocabulary, write_gguf, write_hf, write_tokenizer_json

from jaxllama.errors import ConfigError, UnsupportedModel
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.model.params import abstract_params
from jaxllama.testing import random_params, tiny
from jaxllama.testing.models import FAMILIES as CONFIGS
from jaxllama.text.exchange import as_files, source_of_metadata
from jaxllama.weights import open_checkpoint
from jaxllama.weights.export import TARGETS, differences, export
from jaxllama.weights.stored import unpacked

CONFIG = tiny(name="one", kv_heads=2)
WEIGHTS = flatten(random_params(CONFIG))


@pytest.fixture(autouse=True)
def tokenizer_with_spaces(monkeypatch: pytest.MonkeyPatch):
    """A tokenizer.json that has a form in GGUF files, for the folders of all writers."""
    files = as_files(source_of_metadata(gguf_vocabulary(CONFIG.vocab_size)))

    def write(folder: Path, _: int) -> None:
        for name, raw in files.items():
            (folder / name).write_bytes(raw)

    for module in (every_format, quantized_writer):
        monkeypatch.setattr(module, "write_tokenizer_json", write)
    monkeypatch.setitem(globals(), "write_tokenizer_json", write)


def made(source: Path, target: Path, to: str) -> Path:
    export(source, target, to, progress=lambda *_: None)
    return target


def values(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as checkpoint:
        leaves = abstract_params(checkpoint.config)
        read = {each: checkpoint.read(each, leaf) for each, leaf in leaves.items()}
    return {
        each: unpacked(value).astype(np.float32)
        if each == "embed.weight" or not isinstance(value, Packed)
        else dense_of(value)
        for each, value in read.items()
    }


def raw_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    tensors = gguf.GGUFReader(path).tensors
    return {each.name: (each.tensor_type.name, each.data.tobytes()) for each in tensors}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_tensors_of_the_same_type_keep_their_bits(tmp_path: Path, kind: str):
    path, _ = FORMATS[f"GGUF {kind}"].write(tmp_path, CONFIG, WEIGHTS) if kind != "Q4_1" else (
        tmp_path / "model.gguf",
        write_gguf(
            tmp_path / "model.gguf", CONFIG, WEIGHTS, kind=kind,
            metadata=gguf_vocabulary(CONFIG.vocab_size),
        ),
    )  # fmt: skip
    target = made(path, tmp_path / "again.gguf", f"gguf-{kind.lower()}")
    assert raw_tensors(target) == raw_tensors(path)


GOLDENS = Path(__file__).parents[1] / "golden/architectures"
# A GGUF file states no divisor of the scores: Gemma's is the head size, the goldens' is not.
NO_PLACE = {"gemma2": "query_scale", "gemma3": "query_scale", "qwen3_moe_mixed": "some layers"}


@pytest.mark.parametrize("to", ["gguf-f32", "safetensors"])
@pytest.mark.parametrize("name", sorted(each.name for each in GOLDENS.iterdir()))
def test_every_architecture_is_exported_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, to: str
):
    source = GOLDENS / name  # which has no tokenizer
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
    vocabulary = source_of_metadata(gguf_vocabulary(config.vocab_size))
    monkeypatch.setattr(type(checkpoint), "tokenizer_source", lambda _: vocabulary)
    if to.startswith("gguf") and name in NO_PLACE:
        with pytest.raises(UnsupportedModel, match=NO_PLACE[name]):
            made(source, tmp_path / "made", to)
        return
    target = made(source, tmp_path / "made", to)
    with open_checkpoint(target) as checkpoint:
        assert not list(differences(config, checkpoint.config))
    of_source, of_target = values(source), values(target)
    assert of_source.keys() == of_target.keys()
    for each, value in of_source.items():
        np.testing.assert_array_equal(of_target[each], value, err_msg=each)


@pytest.mark.parametrize("to", ["gguf-f32", "safetensors"])
@pytest.mark.parametrize("name", ["Meta in shards", "llama2.c version 1", "llama2.c version 2"])
def test_models_without_a_folder_of_hugging_face_are_exported(tmp_path: Path, name: str, to: str):
    config = replace(CONFIG, vocab_size=320)
    path, _ = FORMATS[name].write(tmp_path, config, flatten(random_params(config)))
    target = made(path, tmp_path / "made", to)
    of_source, of_target = values(path), values(target)
    for each, value in of_source.items():
        np.testing.assert_array_equal(of_target[each], value)
    with open_checkpoint(path) as one, open_checkpoint(target) as other:
        first, second = one.tokenizer(), other.tokenizer()
    for text in ("Hello, wörld 123", " two  spaces", "</s>", "🙂"):
        assert first.encode(text) == second.encode(text), text
    assert (first.begin_id, set(first.end_ids)) == (second.begin_id, set(second.end_ids))


@pytest.mark.parametrize(
    "name",
    [
        *("Hugging Face in shards", "Hugging Face float8 in blocks"),
        *("GGUF F16", "GGUF Q4_0", "AWQ"),
    ],
)
def test_safetensors_hold_exactly_the_weights_of_any_source(tmp_path: Path, name: str):
    path, _ = FORMATS[name].write(tmp_path, CONFIG, WEIGHTS)
    folder = made(path, tmp_path / "made", "safetensors")
    of_source, of_target = values(path), values(folder)
    for each, value in of_source.items():
        np.testing.assert_array_equal(of_target[each], value)


def test_there_and_back_gives_the_same_file(tmp_path: Path):
    path, _ = FORMATS["Hugging Face bfloat16"].write(tmp_path, CONFIG, WEIGHTS)
    between = made(path, tmp_path / "between.gguf", "gguf-bf16")
    back = made(between, tmp_path / "back", "safetensors-bf16")
    first, last = (load_file(each / "model.safetensors") for each in (path, back))
    assert first.keys() == last.keys()
    assert all(first[name].tobytes() == last[name].tobytes() for name in first)


def test_symmetric_gptq_becomes_q4_0_without_loss(tmp_path: Path):
    path, held = FORMATS["GPTQ"].write(tmp_path, CONFIG, WEIGHTS)
    target = made(path, tmp_path / "made.gguf", "gguf-q4_0")
    found = values(target)
    for each in held:
        if each.startswith("blocks.") and held[each].ndim == 2:
            np.testing.assert_array_equal(found[each], held[each])


@pytest.mark.parametrize("name", ["gguf-q8_0", "safetensors-f16"])
@pytest.mark.parametrize("model", CONFIGS)
def test_every_configuration_is_kept_or_refused(tmp_path: Path, model: str, name: str):
    config = CONFIGS[model]
    if config.rope.kind == "factors":
        path = tmp_path / "model.gguf"
        metadata = gguf_vocabulary(config.vocab_size)
        write_gguf(path, config, flatten(random_params(config)), metadata=metadata)
    else:
        path = write_hf(
            tmp_path / "model", config, flatten(random_params(config)), extra=rope_of(config)
        )
        write_tokenizer_json(path, config.vocab_size)
    target = tmp_path / "made"
    kind = config.rope.kind
    if kind == "factors" and name.startswith("safetensors"):
        with pytest.raises(UnsupportedModel, match="has no place for"):
            made(path, target, name)
        assert [each.name for each in tmp_path.iterdir()] == [path.name]
        return
    made(path, target, name)  # which compares the configuration


def rope_of(config) -> dict[str, object]:
    """`rope_scaling` as transformers writes it."""
    rope = config.rope
    fields = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind in ("none", "ntk"):  # which no file asks for
        return {}
    if rope.kind == "llama3":
        fields |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": 4.0}
    if rope.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = rope.original_context
    if rope.kind == "yarn":
        fields |= {
            "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow,
            "attention_factor": rope.attention_factor,
        }  # fmt: skip
    return {"rope_scaling": fields}


@pytest.mark.parametrize("to", ["gguf-f16", "safetensors-f16"])
def test_values_beyond_float16_are_refused(tmp_path: Path, to: str):
    large = WEIGHTS | {"blocks.0.ffn.up.weight": WEIGHTS["blocks.0.ffn.up.weight"] + 1e6}
    path, _ = FORMATS["Hugging Face float32"].write(tmp_path, CONFIG, large)
    with pytest.raises(UnsupportedModel, match="too large for float16"):
        made(path, tmp_path / "made", to)
    assert not (tmp_path / "made").exists()


def test_nothing_is_overwritten_unasked(tmp_path: Path):
    path, _ = FORMATS["GGUF F32"].write(tmp_path, CONFIG, WEIGHTS)
    target = tmp_path / "made"
    target.mkdir()
    (target / "note").write_text("mine")
    with pytest.raises(ConfigError, match="exists; choose another name or add --force"):
        made(path, target, "safetensors")
    assert (target / "note").read_text() == "mine"
    export(path, target, "safetensors", replaces=True, progress=lambda *_: None)
    assert not (target / "note").exists()
    with pytest.raises(ConfigError, match="is or holds the model to read"):
        export(target, target, "gguf-f16", replaces=True, progress=lambda *_: None)
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "float32"


def test_targets_are_named_in_the_error(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--to is 'onnx'; expected one of gguf-f32"):
        made(tmp_path, tmp_path / "made", "onnx")
    assert len(TARGETS) == 10
