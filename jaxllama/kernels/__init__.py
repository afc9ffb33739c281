"""The operations that are worth a hand-written kernel, and the bodies that implement them.

`plain/` defines every operation in JAX and runs everywhere; `cpu/` calls the C++ library, `gpu/`
and `tpu/` have Pallas kernels. The name in `EngineConfig.kernels` picks a body once, when programs
are built. Code outside this folder asks the `Body` for what it needs and never compares names.
"""

import jax

from jaxllama.config import ModelConfig
from jaxllama.errors import ConfigError
from jaxllama.kernels.body import Body
from jaxllama.kernels.cpu import CPU
from jaxllama.kernels.gpu import GPU
from jaxllama.kernels.plain import PLAIN
from jaxllama.kernels.tpu import TPU

BODIES = {
    body.name: body for body in (CPU, GPU, TPU, PLAIN)
}  # the fastest first; the last runs everywhere
AUTO = "auto"


def body_named(name: str) -> Body:
    """Return the set of kernels of this name; raise ConfigError if there is none."""
    if name not in BODIES:
        raise ConfigError(f"kernels is {name!r}; expected one of {', '.join(BODIES)}")
    return BODIES[name]


def fastest_body() -> Body:
    """Return the fastest set of kernels that can run on this machine."""
    return next(body for body in BODIES.values() if not body.missing())


def body_for(platform: str, model: ModelConfig) -> Body:
    """Return the fastest set of kernels for a model on one device of `platform`.

    `platform` is cpu, gpu or tpu; this machine need not have it.
    """
    named = BODIES.get(platform, PLAIN)
    return PLAIN if named.refuses(model, 1) else named


def choose_body(asked: str, model: ModelConfig, parts: int) -> tuple[Body, str]:
    """Return the set of kernels named `asked`; for "auto", the fastest that can run the model.

    `parts` is the number of devices that share the model. The returned text says why faster sets
    were passed over, "" if none was. Raises ConfigError if the set named `asked` cannot run.
    """
    if asked != AUTO:
        body = body_named(asked)
        if complaint := body.missing() or body.refuses(model, parts):
            raise ConfigError(f"kernels is {asked!r}, but {complaint}")
        return body, ""
    complaints = []
    for body in BODIES.values():
        if body.platform not in (None, jax.default_backend()):
            continue
        complaint = body.missing() or body.refuses(model, parts)
        if not complaint:
            break
        complaints.append(complaint)
    return body, "; ".join(complaints)
