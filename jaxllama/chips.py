"""Chips: what the data sheets of accelerators say, for estimates and shares of a roofline.

Used by inspection, metrics and the reading of compiled programs. Knows no device of this machine.
"""

from typing import NamedTuple

from jaxllama.errors import ConfigError

GIB = 1 << 30


class Chip(NamedTuple):
    """One kind of accelerator: memory, and the rates that bound every program on it."""

    platform: str  # of JAX: gpu or tpu
    kind: str  # part of the name that JAX gives such a device, in lower case
    memory: int  # bytes
    bandwidth: float  # bytes per second, of its main memory
    flops: float  # floating-point operations per second of dense bfloat16 matmuls
    int8_ops: float  # operations per second of dense int8 matmuls
    link: float  # bytes per second that a chip sends around a ring of its own kind
    keeps_float8: bool = True  # float8 weights are not expanded when they are loaded


# Dense rates, without sparsity. A link is NVLink, Infinity Fabric or PCI Express in one direction;
# of a TPU's links two count, as a ring in both directions along one axis uses them. The first entry
# whose kind is in a device's name describes it.
CHIPS = {
    "h100-pcie": Chip("gpu", "h100 pcie", 80 * GIB, 2.0e12, 756e12, 1513e12, 64e9),
    "h100": Chip("gpu", "h100", 80 * GIB, 3.35e12, 989e12, 1979e12, 450e9),
    "h200": Chip("gpu", "h200", 141_000_000_000, 4.8e12, 989e12, 1979e12, 450e9),
    "b200": Chip("gpu", "b200", 180_000_000_000, 7.7e12, 2250e12, 4500e12, 900e9),
    "a100": Chip(
        "gpu", "a100-sxm4-80gb", 80 * GIB, 2.039e12, 312e12, 624e12, 300e9, keeps_float8=False
    ),
    "a100-40gb": Chip(
        "gpu", "a100-sxm4-40gb", 40 * GIB, 1.555e12, 312e12, 624e12, 300e9, keeps_float8=False
    ),
    "l40s": Chip("gpu", "l40s", 48 * GIB, 0.864e12, 362e12, 733e12, 32e9),
    "l4": Chip("gpu", "nvidia l4", 24 * GIB, 0.3e12, 121e12, 242e12, 32e9),
    "rtx4090": Chip("gpu", "rtx 4090", 24 * GIB, 1.008e12, 165e12, 330e12, 32e9),
    "rtx5090": Chip("gpu", "rtx 5090", 32 * GIB, 1.792e12, 210e12, 419e12, 64e9),
    "mi300x": Chip("gpu", "mi300x", 192 * GIB, 5.3e12, 1307e12, 2615e12, 448e9, keeps_float8=False),
    "v5e": Chip("tpu", "v5 lite", 16 * GIB, 0.819e12, 197e12, 393e12, 100e9),
    "v5p": Chip("tpu", "v5", 95 * GIB, 2.765e12, 459e12, 918e12, 200e9),
    "v6e": Chip("tpu", "v6 lite", 32 * GIB, 1.64e12, 918e12, 1836e12, 200e9),
}


def chip_named(text: str) -> Chip:
    """Return the chip called PLATFORM:NAME, for example gpu:h100; ConfigError if unknown."""
    platform, _, name = text.lower().partition(":")
    chip = CHIPS.get(name)
    if chip is None or chip.platform != platform:
        known = ", ".join(f"{each.platform}:{key}" for key, each in CHIPS.items())
        raise ConfigError(f"chip is {text!r}; expected one of {known}")
    return chip


def chip_of(device_kind: str) -> Chip | None:
    """Return the data of the chip that JAX calls `device_kind`; None if the chip is unknown."""
    named = device_kind.lower()
    return next((chip for chip in CHIPS.values() if chip.kind in named), None)
