"""Compute the reference vectors of encoders with sentence-transformers; run by hand, rarely.

Needs torch and sentence-transformers beside the project's own tests (not dependencies of it), and
the folder of the model `minilm`:

    pip install torch sentence-transformers safetensors
    python tests/golden/make_encoders.py FOLDER

Writes encoders.npz (tiny encoders of every kind) and minilm.npz (the texts of sentences.txt).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.weights.encoder_writer import KINDS, TEXTS, write_encoder

FOLDER = Path(__file__).parent


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """What sentence-transformers makes of texts, in float32 on the CPU."""
    model = SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(texts, batch_size=8), np.float32)


def main() -> None:
    """Write both files."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            folder = write_encoder(Path(scratch) / kind, kind)
            found[kind] = vectors(folder, list(TEXTS))
            found[f"{kind}_query"] = np.asarray(
                SentenceTransformer(str(folder), device="cpu").encode(
                    list(TEXTS), prompt_name="query"
                )
            )
    np.savez_compressed(FOLDER / "encoders.npz", **found)
    texts = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    np.savez_compressed(FOLDER / "minilm.npz", vectors=vectors(Path(sys.argv[1]), texts))


if __name__ == "__main__":
    main()
