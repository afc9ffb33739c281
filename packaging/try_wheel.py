"""Say which kernels the installed jaxllama has; fail if it has none that run here.

Run by cibuildwheel after it has installed a wheel. Needs no model.
"""

import sys

import numpy as np

from jaxllama.kernels.cpu import library, matmul, tiling


def main() -> None:
    """Load the kernels and multiply with them."""
    if not library.available():
        sys.exit(f"no kernels: {library.why_not()}")
    weight = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    inputs = np.ones((8, 64), np.float32)
    found = matmul.normed_matmul(inputs, None, 0.0, tiling.tile(weight))
    np.testing.assert_allclose(found, inputs @ weight, rtol=1e-4, atol=1e-4)
    sys.stdout.write(f"the kernels run, with {library.isa()} instructions\n")


if __name__ == "__main__":
    main()
