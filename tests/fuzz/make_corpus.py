"""`python -m tests.fuzz.make_corpus`: write the sound models that mutations start from.

Uses the writers of tests/weights.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

from tests.fuzz.targets import CORPUS

sys.path.insert(0, str(Path(__file__).parents[1] / "weights"))

from every_format import FORMATS
from hf_writer import write_float8, write_hf_torch
from llama2c_writer import write_llama2c
from meta_writer import write_meta
from quantized_writer import Quantizer
from trees import random_weights
from writers import write_gguf, write_hf

from jaxllama.testing import tiny
from jaxllama.weights import native_bundles
from jaxllama.weights.convert import Recipe, convert

MODEL = tiny(
    name="m", vocab_size=16, width=8, heads=2, kv_heads=1, head_dim=4, ffn_width=8, layers=1,
    max_context=16,
)  # fmt: skip
BLOCKS = tiny(
    name="m", vocab_size=16, width=32, heads=2, kv_heads=1, head_dim=16, ffn_width=32, layers=1
)


def main() -> None:
    """Write every model anew, into one zip file."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        with zipfile.ZipFile(CORPUS, "w", zipfile.ZIP_DEFLATED) as corpus:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    name = zipfile.ZipInfo(str(path.relative_to(folder)))  # of no date
                    corpus.writestr(name, path.read_bytes(), zipfile.ZIP_DEFLATED)


def write_models(root: Path) -> None:
    """Write the models of every target."""
    weights = random_weights(MODEL)
    for kind in ("F32", "Q4_0", "IQ4_NL", "MXFP4"):
        (root / "gguf" / kind).mkdir(parents=True)
        config = MODEL if kind == "F32" else BLOCKS
        path = root / "gguf" / kind / "model.gguf"
        write_gguf(path, config, random_weights(config), kind=kind)
    (root / "gguf_split" / "F32").mkdir(parents=True)
    write_gguf(root / "gguf_split" / "F32" / "m.gguf", MODEL, weights, split=6)
    write_quantized(root)
    for target in ("safetensors", "hf_config"):
        write_hf(root / target / "float32", MODEL, weights)
        write_float8(root / target / "float8", MODEL, weights, block=(4, 4))
    write_hf_torch(root / "hf_torch" / "stored", MODEL, weights)
    write_hf_torch(root / "hf_torch" / "deflated", MODEL, weights, deflate=True)
    for form in ("zip", "deflated"):
        write_meta(root / "meta_zip" / form, MODEL, weights, dtype="bfloat16", form=form)
    for target in ("meta_pickle", "meta_params"):
        write_meta(root / target / "folder", MODEL, weights, dtype="float16", form="folder")
    for version in (0, 1, 2):
        folder = root / "llama2c" / f"v{version}"
        folder.mkdir(parents=True)
        write_llama2c(folder / "model.bin", MODEL, weights, version=version, group=8)
    write_native(root / "native")


def write_quantized(root: Path) -> None:
    """Write folders of GPTQ and AWQ, and one of GPTQ that says so in a file of its own."""
    weights = random_weights(BLOCKS)
    kinds = {
        "gptq": Quantizer(sorts=True), "gptq8": Quantizer(bits=8, is_symmetric=True, biases=True),
        "awq": Quantizer("awq"),
    }  # fmt: skip
    wanted = [
        (target, *each) for target in ("quantized", "quantized_config") for each in kinds.items()
    ]
    for target, name, quantizer in [*wanted, ("quantized_apart", "gptq", Quantizer(says="file"))]:
        made, _ = quantizer.write(root / target, BLOCKS, weights)
        (made / "tokenizer.json").unlink()  # not read by the target
        made.rename(made.with_name(name))


def write_native(folder: Path) -> None:
    """Write checkpoints of our own, one with bundles of small arrays and one without."""
    config = tiny(name="m", width=32, heads=2, kv_heads=1, head_dim=16, ffn_width=32, layers=1)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as source:
        path, _ = FORMATS["Hugging Face bfloat16"].write(
            Path(source), config, random_weights(config)
        )
        for name, small in (("int4", native_bundles.SMALL), ("int4_apart", 0)):
            native_bundles.SMALL = small
            convert(path, folder / name, Recipe("int4"), progress=lambda *_: None)


if __name__ == "__main__":
    main()
