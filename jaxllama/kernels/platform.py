"""The platform that a program is traced for: of the mesh in force, not of this machine."""

import jax


def platform_in_force() -> str:
    """Return the platform that programs are traced for: cpu, gpu or tpu.

    The JAX mesh in force decides or, without a mesh, JAX's default platform.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def interpreted() -> bool:
    """Say whether Pallas kernels have to be interpreted, because programs are traced for a CPU."""
    return platform_in_force() == "cpu"
