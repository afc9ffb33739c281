"""Measure what each installed sampler adds to a row of a decode step, for `/v1/plugins`.

    python plugins/costs.py plugins/jaxllama_samplers/costs.json

Every sampler is measured alone, in the way of `jaxllama check` (`jaxllama/testing/cost.py`): the
processor time of one thread, with knobs in the middle of their bounds. Writes the file that a
package of samplers may have beside its modules; the server shows the figures with the place where
they were measured.
"""

import json
import os
import platform
import sys
from functools import partial
from pathlib import Path

import click
import jax
import numpy as np

from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.kernels import fastest_body
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Adjuster, Sampler
from jaxllama.testing import cost
from jaxllama.testing.cases import Setting, stacked

VOCABULARY = 49_152


def main(target: Path) -> None:
    """Measure the samplers of one package and write their times to the JSON file `target`.

    The package is that in whose folder `target` lies. Times are microseconds per row and token.
    """
    package = target.resolve().parent.name
    samplers = {
        name: kind
        for name, kind in load_plugins(SAMPLERS, Sampler).loaded.items()
        if kind.__module__.partition(".")[0] == package
    }
    body = fastest_body().name
    bank = SamplerBank(
        samplers, vocab=VOCABULARY, candidates=cost.CANDIDATES, top_logprobs=1, body=body
    )
    rng = np.random.default_rng(0)
    peaked = -cost.STEEPNESS * np.log1p(np.arange(VOCABULARY, dtype=np.float32))
    logits = jax.device_put(stacked([rng.permutation(peaked) for _ in range(cost.ROWS)]))
    steps, rows = jax.jit(partial(cost.choose_again, bank)), cost.full_rows(rng, VOCABULARY)

    def call(knobs: Setting) -> cost.RunSteps:
        return partial(steps, jax.device_put(stacked([bank.row(knobs)] * cost.ROWS)), logits, rows)

    found: dict[str, float] = {}
    with cost.one_thread():
        for name, kind in samplers.items():
            if isinstance(kind, type) and issubclass(kind, Adjuster) and kind.constrains:
                continue
            added = cost.added(call({}), call(cost.middle({name: kind})))
            if added.best > added.doubt:  # else the figure says nothing
                found[name] = round(added.best * 1e6 / cost.ROWS, 1)
            click.echo(f"{name} {found.get(name, 'less than the error')}")
    where = (
        f"processor time of one thread for each row and token, {VOCABULARY} tokens of vocabulary, "
        f"kernels {body}, on {processor()}"
    )
    target.write_text(json.dumps({"where": where, "microseconds": found}, indent=1) + "\n")


def processor() -> str:
    """Return the model name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or os.uname().machine


if __name__ == "__main__":
    main(Path(sys.argv[1]))
