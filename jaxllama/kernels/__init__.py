"""The operations worth a hand-written kernel: one signature each, several bodies.

`reference.py` is the meaning of each in plain JAX. The model and the bank call these names and
never learn which body runs. A body for a platform replaces names here, once, at trace time.
"""

from jaxllama.kernels.reference import (
    ROW_TILE,
    attend_prompt,
    attend_step,
    matmul,
    matmul_by_output,
    norm,
)
from jaxllama.kernels.storage import read_columns, stored_dtype, write_columns

__all__ = [
    "ROW_TILE",
    "attend_prompt",
    "attend_step",
    "matmul",
    "matmul_by_output",
    "norm",
    "read_columns",
    "stored_dtype",
    "write_columns",
]
