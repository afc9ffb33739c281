"""Devices: chooses the platform that JAX runs on, and explains why it cannot.

Used by loading, before anything else touches JAX. Knows no model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from jaxllama.errors import ConfigError

PLATFORMS = {"cpu": "cpu", "gpu": "gpu,cpu", "tpu": "tpu,cpu"}  # as JAX takes them
INSTALL = {"gpu": "jaxllama[cuda] or jaxllama[rocm]", "tpu": "jaxllama[tpu]"}
NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


def prefer_platform(name: str) -> None:
    """Set the platform that JAX will use, without starting it; ConfigError if it is unknown."""
    if name not in PLATFORMS:
        raise ConfigError(f"platform is {name!r}; expected one of {', '.join(PLATFORMS)}")
    config: Any = jax.config
    config.update("jax_platforms", PLATFORMS[name])


def use_platform(name: str) -> None:
    """Let JAX run on this platform; ConfigError if it cannot, with the reason on one line."""
    config: Any = jax.config
    before = config.jax_platforms
    prefer_platform(name)
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        config.update("jax_platforms", before)
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"platform is {name!r}, and JAX cannot use it: {reason}; install "
            f"{INSTALL.get(name, 'jaxllama')} and the driver that it needs, or choose "
            f"--platform cpu"
        ) from error
    if found != name:
        raise ConfigError(
            f"platform is {name!r}, and JAX runs on {found} in this process already; expected that "
            f"the platform is chosen before JAX is first used"
        )


@contextmanager
def explained_memory(what: str) -> Iterator[None]:
    """In a `with` block, turn a device's out-of-memory error into ConfigError with advice.

    `what` names what did not fit.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in NO_MEMORY):
            raise
        raise ConfigError(
            f"the memory of the device is too small for {what}: {str(error).splitlines()[0]:.200}; "
            f"lower --slots or --context, choose --cache-dtype int8 or a model file of fewer bits, "
            f"or spread the model with --mesh (jaxllama inspect shows what it needs)"
        ) from error
