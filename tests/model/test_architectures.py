"""Every architecture against the logits of transformers, from the same files."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.kernels import body_named
from jaxllama.kernels.cpu import library
from jaxllama.loading import read_weights
from jaxllama.model.cache import empty_cache
from jaxllama.model.params import Tree, model_of
from jaxllama.model.rope import fitted
from jaxllama.sharding import make_mesh
from jaxllama.weights import open_checkpoint

GOLDEN = Path(__file__).parent.parent / "golden/architectures"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
SPLIT = 28  # tokens in the prompt; steps compute the rest
SLOTS, SLOT = 3, 1
ENGINES = {
    "xla": EngineConfig(slots=SLOTS, context=64),
    "cpu": EngineConfig(slots=SLOTS, context=64, kernels="cpu", dtype="stored"),
}
# Compiling is the test's time.
QUICK = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def load(name: str, engine: EngineConfig) -> tuple[ModelConfig, Tree]:
    """The configuration and the placed weights of a golden model."""
    with open_checkpoint(GOLDEN / name) as checkpoint:
        config = checkpoint.config
        return config, read_weights(checkpoint, engine, make_mesh(engine, config), None)


def logits(
    config: ModelConfig, engine: EngineConfig, weights: Tree, tokens: np.ndarray
) -> np.ndarray:
    """Logits after every token: a prompt, then steps beside other rows."""
    split = min(SPLIT, len(tokens) - 2)

    @QUICK
    def run(weights, tokens, cache):
        model = model_of(config, weights, engine.kernels)
        hidden, cache = model.prompt(tokens[:split], cache, jnp.int32(SLOT), jnp.int32(0))

        def step(cache, place):
            row = jnp.stack([jnp.int32(5), tokens[place], jnp.int32(9)])
            places = jnp.stack([place - 3, place, jnp.int32(3)])
            active = jnp.array([True, True, False])
            hidden, cache = model.step(row, cache, places, active)
            return cache, model.head(hidden, active)[SLOT]

        _, rest = lax.scan(step, cache, jnp.arange(split, len(tokens), dtype=jnp.int32))
        return jnp.concatenate([model.head(hidden), rest])

    return np.asarray(run(weights, tokens, empty_cache(config, engine, split)))


def worst(name: str, found: np.ndarray, kept: str = "logits") -> float:
    """Largest difference from the golden, relative to its largest logit."""
    expected = np.load(GOLDEN / name / "logits.npz")[kept]
    return np.abs(found - expected).max() / np.abs(expected).max()


def tokens_of(name: str) -> np.ndarray:
    return np.load(GOLDEN / name / "logits.npz")["tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name: str):
    config, weights = load(name, ENGINES["xla"])
    config = fitted(config, 64)
    assert worst(name, logits(config, ENGINES["xla"], weights, tokens_of(name))) < 1e-4


@pytest.mark.skipif(not library.available(), reason=library.why_not())
@pytest.mark.parametrize("name", NAMES)
def test_the_c_plus_plus_body_gives_the_same_logits_or_says_why_not(name: str):
    with open_checkpoint(GOLDEN / name) as checkpoint:
        refused = body_named("cpu").refuses(checkpoint.config, 1)
    if refused:
        assert any(word in refused for word in ("cap on", "experts")), refused
        return
    config, weights = load(name, ENGINES["cpu"])
    found = logits(fitted(config, 64), ENGINES["cpu"], weights, tokens_of(name))
    assert worst(name, found) < 1e-4
