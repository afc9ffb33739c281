"""Make the goldens of torch checkpoints: files that torch itself saves, and their values.

Run with torch installed: python tests/golden/make_torch.py
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent


def main() -> None:
    """Write torch.zip: saved.pth, values.npz and the same tensors in torch's older form."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3))
    state = layer.state_dict()  # with the attribute _metadata
    base = torch.randn(6, 8)
    state["half"] = torch.randn(4, 3).half()
    state["brain"] = torch.randn(4, 3).bfloat16()
    state["transposed"] = base.t()
    state["part"] = base[1:5, 2:8:2]
    state["tied"] = state["half"]
    state["signed"] = torch.arange(-5, 5, dtype=torch.int8)
    state["scalar"] = torch.tensor(2.5)
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.randn(2)).data
    torch.save(state, FOLDER / "saved.pth")
    torch.save(state, FOLDER / "older.pth", _use_new_zipfile_serialization=False)
    values = {name: value.float().numpy() for name, value in state.items()}
    np.savez(FOLDER / "values.npz", **values)
    with zipfile.ZipFile(FOLDER / "torch.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("saved.pth", "older.pth", "values.npz"):
            file.write(FOLDER / name, name)
            (FOLDER / name).unlink()


if __name__ == "__main__":
    main()
