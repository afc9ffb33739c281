"""Logit expression: a formula in the request computes the new logit of every token."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, KnobText, knob
from jaxllama.shapes import Array, Float
from jaxllama_samplers import expression_machine as machine
from jaxllama_samplers.expression_program import WIDTH, encode_logit
from jaxllama_samplers.expression_words import MOST_CHARACTERS, Op, words_for

LARGEST = 1e30  # new logits are cut to this


class LogitExpression(Adjuster):
    """Replace the logit of every token by a formula, such as `logit - 0.5 * count_answer`.

    Runs after all other adjusters but the constraint, before the temperature. A banned token stays
    banned. Where the formula gives no number (0 / 0), the logit stays as it was. To ban a token,
    give it the logit -1e30. docs/expressions.md lists the names and operators.
    """

    order = 95  # after temperature_noise, before the constraint

    logit_expression: Knob = knob(
        off=0.0,
        width=WIDTH,
        text=KnobText(
            encode_logit,
            longest=MOST_CHARACTERS,
            examples=(
                "logit - 0.5 * count_answer",
                "logit * (1 + 0.5 * chance) if entropy > 2 else logit",
                "max(logit, logp + 0.1 * position) - (3 if ends and position < 20 else 0)",
            ),
            words=words_for("logit_expression"),
        ),
        help="replace every logit by this formula: logit - 0.5 * count_answer",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Return the formula's value for every token."""
        return compute(self.logit_expression, logits, replace(context, allowed=None))


@machine.row_by_row
def compute(program: Array, logits: Array, context: Context) -> Float[Array, " V"]:
    """Return the new logits of one row, which the formula in `program` gives.

    A logit that is -inf, or for which the formula has no value, stays; an empty program changes
    none.
    """
    vocab = logits.shape[0]
    used = program[0].astype(jnp.int32)

    def place_of(ids: Array) -> Array:
        return jnp.where((ids >= 0) & (ids < vocab), ids, vocab)

    def computed() -> Float[Array, " V"]:
        seen = machine.occurrences_in(context, place_of, vocab)
        made = machine.run(program, used, loads_of(logits, context), seen, vocab)[0]
        keeps = jnp.isnan(made) | (logits == -jnp.inf)
        return jnp.where(keeps, logits, jnp.clip(made, -LARGEST, LARGEST))

    return jax.lax.cond(used > 0, computed, lambda: logits)


def loads_of(logits: Float[Array, " V"], context: Context) -> list[dict[Op, machine.Load]]:
    """Map names of an expression, as operations, to functions that compute them per token.

    These are all names but those in OCCURRENCES. A function without arguments returns one number
    for each token, or one for the row. Names in the same mapping are computed together.
    """

    def logp() -> Array:
        return jax.nn.log_softmax(logits)

    of_each = machine.facts_of(context) | {
        Op.LOGIT: lambda: logits,
        Op.ID: lambda: jnp.arange(logits.shape[0]),
        Op.SIZE: lambda: jnp.sum(logits > -jnp.inf),
    }
    of_all: dict[Op, machine.Load] = {
        Op.LOGP: logp,
        Op.P: lambda: jnp.exp(logp()),
        Op.P_MAX: lambda: jnp.exp(jnp.max(logp())),
        Op.ENTROPY: lambda: jnp.sum(jax.scipy.special.entr(jnp.exp(logp()))),
    }
    return [of_each, of_all]
