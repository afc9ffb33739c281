"""Expression: a condition in the request says which candidates may be drawn."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxllama.sampling import Candidates, Context, Filter, Knob, KnobText, knob
from jaxllama.shapes import Array, Bool
from jaxllama_samplers import expression_machine as machine
from jaxllama_samplers.expression_program import ALWAYS, ASK, WIDTH, encode_condition
from jaxllama_samplers.expression_words import MOST_CHARACTERS, Op, words_for

USED, MODE, TOTALS = range(3)  # the head of a program; see expression_program.py


class Expression(Filter):
    """Keep the tokens for which a condition holds, such as `p > 0.1 * p_max and rank < 40`.

    Runs after all other filters, so the names describe the tokens that those have kept. If no token
    fulfils the condition, all are kept. docs/expressions.md lists the names and operators.
    """

    order = 95
    keeps_greedy = False

    expression: Knob = knob(
        off=0.0,
        width=WIDTH,
        text=KnobText(
            encode_condition,
            longest=MOST_CHARACTERS,
            examples=(
                "p > 0.1 * p_max and rank < 40",
                "above < 0.9 or (rank < 5 and count_answer == 0)",
                "not (ends and position < 8) and logp > -entropy - 2 * chance",
            ),
            words=words_for("expression"),
        ),
        help="keep the tokens for which this condition holds: p > 0.1 * p_max and rank < 40",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for candidates for which the condition holds.

        Return True for all of them if candidates beyond the list might be kept, too: the engine
        then calls again with a longer list.
        """
        return judge(self.expression, best, replace(context, allowed=None))

    def needs_totals(self) -> Bool[Array, ""]:
        """Return whether the condition names `entropy` or `size`."""
        return self.expression[TOTALS] != 0


@machine.row_by_row
def judge(program: Array, best: Candidates, context: Context) -> Bool[Array, " C"]:
    """Return True for candidates for which the condition in `program` holds, in one row.

    `best` are the row's likeliest candidates. Return True for all of them if the program is empty,
    or to make the engine call again with a longer list of candidates.
    """
    count = best.ids.shape[0]
    used = program[USED].astype(jnp.int32)

    def judged() -> Bool[Array, " C"]:
        made = machine.run(program, used, loads_of(best, context), seen_in(best, context), count)
        keep, bound = made[0] != 0, made[1] != 0
        is_cut = (best.logits[-1] > -jnp.inf) & (best.size > count)
        mode = program[MODE]
        return keep | (is_cut & ((mode == ALWAYS) | ((mode == ASK) & bound[-1])))

    return jax.lax.cond(used > 0, judged, lambda: jnp.ones(count, jnp.bool_))


def seen_in(best: Candidates, context: Context) -> Callable[[Array], Array]:
    """Return a function that computes `count`, `count_answer`, `since` or `ends` per candidate.

    Its argument is the operation that stands for the name. `context` has the row's tokens, on which
    these names depend; `best` are the candidates.
    """
    count = best.ids.shape[0]

    def place_of(ids: Array) -> Array:
        order = jnp.argsort(best.ids)
        listed = best.ids[order]
        at = jnp.minimum(jnp.searchsorted(listed, ids), count - 1)
        return jnp.where(listed[at] == ids, order[at], count)

    return machine.occurrences_in(context, place_of, count)


def loads_of(best: Candidates, context: Context) -> list[dict[Op, machine.Load]]:
    """Map names of an expression, as operations, to functions that compute them per candidate.

    These are all names but those of `seen_in`. A function without arguments returns one number for
    each candidate in `best`, or one for the row. Names in the same mapping are computed together.
    """

    def above() -> Array:
        return jnp.pad(jnp.cumsum(best.p)[:-1], (1, 0))

    of_each = machine.facts_of(context) | {
        Op.P_MAX: lambda: best.p[0],
        Op.ENTROPY: lambda: best.entropy,
        Op.SIZE: lambda: best.size,
        Op.P: lambda: best.p,
        Op.LOGP: lambda: best.logits - best.log_total,
        Op.LOGIT: lambda: best.logits,
        Op.RANK: lambda: best.rank,
        Op.ID: lambda: best.ids,
    }
    return [of_each, {Op.ABOVE: above}]
