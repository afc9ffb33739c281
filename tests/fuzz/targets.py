"""What is fuzzed: for each reader a file of a small model, and what must hold of opening it.

Called by the command line and the test of this folder.
"""

import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from jaxllama.errors import CheckpointError
from jaxllama.model.params import Leaf
from jaxllama.testing.models import shapes
from jaxllama.weights.base import Checkpoint, fill
from jaxllama.weights.gguf import GgufCheckpoint
from jaxllama.weights.huggingface import HuggingFaceCheckpoint
from jaxllama.weights.llama2c import Llama2cCheckpoint
from jaxllama.weights.meta import MetaCheckpoint
from jaxllama.weights.native import NativeCheckpoint
from tests.fuzz.mutate import mutated

CORPUS = Path(__file__).parent / "corpus.zip"  # sound models: target/model/files
MORE_MEMORY = 16 << 20  # bytes above the input's own size
SECONDS = 2.0  # of this process


@dataclass(frozen=True)
class Target:
    """A reader and the file that is changed, below the folder of a model."""

    reader: type[Checkpoint]
    file: str
    is_folder: bool = True  # whether the folder is opened, or the file


TARGETS = {
    "gguf": Target(GgufCheckpoint, "model.gguf", is_folder=False),
    "gguf_split": Target(GgufCheckpoint, "m-00001-of-00002.gguf", is_folder=False),
    "safetensors": Target(HuggingFaceCheckpoint, "model.safetensors"),
    "hf_config": Target(HuggingFaceCheckpoint, "config.json"),
    "quantized": Target(HuggingFaceCheckpoint, "model.safetensors"),  # GPTQ and AWQ
    "quantized_config": Target(HuggingFaceCheckpoint, "config.json"),
    "quantized_apart": Target(HuggingFaceCheckpoint, "quantize_config.json"),
    "hf_torch": Target(HuggingFaceCheckpoint, "pytorch_model.bin"),
    "meta_zip": Target(MetaCheckpoint, "consolidated.00.pth"),
    "meta_pickle": Target(MetaCheckpoint, "consolidated.00/data.pkl"),
    "meta_params": Target(MetaCheckpoint, "params.json"),
    "llama2c": Target(Llama2cCheckpoint, "model.bin", is_folder=False),
    "native": Target(NativeCheckpoint, "jaxllama.json"),
}


def unpack(name: str, folder: Path) -> list[Path]:
    """Unpack the sound models of a target; return their folders."""
    with zipfile.ZipFile(CORPUS) as corpus:
        corpus.extractall(
            folder, [each for each in corpus.namelist() if each.startswith(f"{name}/")]
        )
    return sorted((folder / name).iterdir())


class Bench:
    """The sound models of a target, in the first of which a file is replaced again and again."""

    seconds = SECONDS

    def __init__(self, name: str, folder: Path) -> None:
        self.target = TARGETS[name]
        models = unpack(name, folder)
        self.sound = [(model / self.target.file).read_bytes() for model in models]
        self.use(models[0])
        self.models = models

    def use(self, model: Path) -> None:
        """Change the file of another model from now on."""
        self.folder = model
        self.file = model / self.target.file

    def attempt(self, raw: bytes) -> CheckpointError | None:
        """Open the model with other bytes and read all of it; the error if it is refused.

        Anything but a CheckpointError passes through.
        """
        self.file.write_bytes(raw)
        path = self.folder if self.target.is_folder else self.file
        try:
            if not self.target.reader.recognizes(path):
                return CheckpointError("not recognised")
            with self.target.reader.open(path) as checkpoint:
                leaves = {
                    weight: Leaf(shape, (None,) * len(shape))
                    for weight, shape in shapes(checkpoint.config).items()
                }
                fill(leaves, checkpoint, lambda *_: None)
        except CheckpointError as error:
            return error
        return None

    def changed(self, random: Random) -> bytes:
        """Return a sound file with some changes."""
        return mutated(self.sound, random)

    def close(self) -> None:
        """Leave the files to the folder."""


@contextmanager
def bounded(raw: bytes, seconds: float = SECONDS) -> Iterator[None]:
    """Raise AssertionError if opening an input takes much time or memory; traces must be on."""
    started, before = time.process_time(), tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    yield
    used = tracemalloc.get_traced_memory()[1] - before
    assert used < len(raw) + MORE_MEMORY, f"{used} bytes of memory"
    assert time.process_time() - started < seconds, "much time"
