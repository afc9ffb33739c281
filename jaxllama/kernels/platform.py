"""The platform that a program is traced for: of the mesh in force, not of this machine."""

import jax


def platform_in_force() -> str:
    """Return the platform of the mesh in force, or JAX's default without one: cpu, gpu or tpu."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def interpreted() -> bool:
    """Say whether Pallas kernels have to be interpreted: on a CPU, for tests."""
    return platform_in_force() == "cpu"
