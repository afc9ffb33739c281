"""The choice of a token for every row, inside the decode program: the samplers, applied in order.

Called by `steps.py`. A chooser contains all samplers of a bank, or only some: a program without the
others compiles faster, and chooses the same tokens, bit for bit, in rows that use none of them.
Whether a branch runs depends on the whole batch; its result for a row does not.
"""

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.engine.choosing.adjusting import adjust
from jaxllama.engine.choosing.bank import Bank, SamplerBank
from jaxllama.engine.choosing.logprobs import (
    Draws,
    Listed,
    WeightedLogits,
    list_if,
    list_likeliest,
    list_padded,
    logprob_if,
)
from jaxllama.engine.choosing.rows import (
    Rows,
    chance,
    is_warm,
    some,
    switched_on,
    where_rows,
    with_chances,
)
from jaxllama.engine.choosing.shaping import plan, remembers, shape_and_draw, shape_early
from jaxllama.engine.choosing.survivors import (
    CandidateRows,
    CandidateSamplers,
    draw_survivors,
)
from jaxllama.kernels import body_named
from jaxllama.kernels.body import Choosing
from jaxllama.kernels.plain.choice import at
from jaxllama.sampling import Chosen, Sampler
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

COLDEST = 1e-30  # a positive temperature is at least this: float32 flushes smaller ones to 0


class ChosenTokens(NamedTuple):
    """The chosen token of every row, and its log-probabilities."""

    token: Int32[Array, " S"]  # 0 where inactive or not finite
    finite: Bool[Array, " S"]  # False: the logits held NaN or +inf, or no token was left
    logprob: Float[Array, " S"]  # of the token under the model; 0 where not requested
    sampled: Float[Array, " S"]  # log-probability with which it was drawn; 0 at temperature 0
    top_ids: Int32[Array, "S M"]  # likeliest under the model; NO_TOKEN where not requested
    top_logprobs: Float[Array, "S M"]
    sampled_ids: Int32[Array, "S M"]  # likeliest as sampled, else NO_TOKEN
    sampled_logprobs: Float[Array, "S M"]


class AdjustedRows(NamedTuple):
    """The rows and their logits after the adjusters."""

    rows: Rows
    logits: Float[Array, "S V"]
    likeliest: Int32[Array, " S"]
    best: Float[Array, " S"]  # logit of the likeliest token
    live: Bool[Array, " S"]  # active, with finite logits to choose from
    wants: Bool[Array, " S"]  # live, and log-probabilities are requested


class TokenChooser:
    """Applies the samplers of a bank to all rows; pure, for the decode program."""

    def __init__(
        self, bank: SamplerBank, names: Collection[str] | None = None, *, lists: bool = True
    ) -> None:
        """Prepare to apply the samplers with these names; None means all samplers of the bank.

        Without `lists` no row may request log-probabilities, and none are computed.
        """
        self.lists = lists
        body = body_named(bank.body)
        self._ops, self._together = body.choosing, body.draws_together
        self._bank = bank
        self.candidates, self.top_logprobs = bank.candidates, bank.top_logprobs
        chosen = bank.samplers.keys() if names is None else names
        self.samplers = [name for name in bank.samplers if name in chosen]
        self.adjusters = {name: kind for name, kind in bank.adjusters.items() if name in chosen}
        self.filters = {name: kind for name, kind in bank.filters.items() if name in chosen}
        self.shapers = {name: kind for name, kind in bank.shapers.items() if name in chosen}
        self._observers = [name for name in self.samplers if name in bank.observers]

    def choose(
        self, bank: Bank, logits: Float[Array, "S V"], rows: Rows
    ) -> tuple[Bank, ChosenTokens]:
        """Choose one token per row; return the bank with new sampler state, and the tokens.

        `bank` holds each sampler's knobs and state for all rows. `logits` are the model's. `rows`
        holds the other facts that samplers may read: tokens, temperature, seed.
        """
        rows = with_chances(rows, self.samplers)
        asks = rows.active & (rows.top_logprobs >= 0) if self.lists else jnp.zeros_like(rows.active)
        watching = {name: rows.active & switched_on(bank[name]) for name in self._observers}
        # The model's own logits are kept for rows that need them: adjusters change logits in place.
        logits, model = self._ops.set_aside(logits, some((asks, *watching.values()), rows))
        adjusted, sound = adjust(self._ops, self.adjusters, self._bank.sets, bank, rows, logits)
        found = self._ops.survey(adjusted, rows.active)
        finite = sound & found.sound & (found.best > -jnp.inf)
        live = rows.active & finite
        wants = live & asks
        ready = AdjustedRows(rows, adjusted, found.token, found.best, live, wants)
        drawn = self._draw(bank, ready)
        token = jnp.where(live, drawn.token, 0)
        watching = {name: live & on for name, on in watching.items()}
        needed = some((wants, *watching.values()), rows)
        logprob = logprob_if(self._ops, needed, model, token)
        under_model = self._list_under_model(model, ready)
        as_sampled = list_if(ready.wants, lambda: drawn.listed, self.top_logprobs)
        watched = self._observe(bank, watching, logprob, drawn)
        return watched, ChosenTokens(
            token=token,
            finite=finite | ~rows.active,
            logprob=jnp.where(ready.wants, logprob, 0.0),
            sampled=jnp.where(live, drawn.logprob, 0.0),
            top_ids=under_model.ids,
            top_logprobs=under_model.logprobs,
            sampled_ids=as_sampled.ids,
            sampled_logprobs=as_sampled.logprobs,
        )

    def _draw(self, bank: Bank, ready: AdjustedRows) -> Draws:
        """Draw a token in rows with a temperature above 0, and take the likeliest in the others.

        `bank` holds each sampler's knobs and state. `ready` holds the logits after the adjusters,
        the samplers that change logits first.
        """
        certainty = jnp.zeros_like(ready.best)
        alone = list_padded(ready.likeliest[:, None], certainty[:, None], self.top_logprobs)
        certain = self._shown(Draws(ready.likeliest, certainty, alone, {}))
        sampled = ready.live & is_warm(ready.rows)
        return jax.lax.cond(
            jnp.any(sampled),
            lambda: where_rows(sampled, self._sample(bank, ready, sampled, certain), certain),
            lambda: certain,
        )

    def _sample(
        self, bank: Bank, ready: AdjustedRows, sampled: Bool[Array, " S"], certain: Draws
    ) -> Draws:
        """Draw a token in the rows of the mask `sampled`; other rows get the token in `certain`.

        `certain` has the likeliest token of each row. `bank` holds the knobs of all rows, `ready`
        the logits after the adjusters. Rows with a filter draw from the candidates that it keeps,
        all others from the whole vocabulary.
        """
        heat = jnp.where(sampled, jnp.maximum(ready.rows.temperature, COLDEST), 1.0)
        chances = jax.vmap(chance)(ready.rows)
        filters = {name: bank[name] for name in self.filters}
        filtered = sampled & some(map(switched_on, filters.values()), ready.rows)
        shapers = {name: bank[name] for name in self.shapers}
        shaping = plan(self.shapers, shapers, ready.rows, sampled)
        acted = some((*shaping.early.values(), *shaping.late.values()), ready.rows)
        shaped, free = (sampled & ~filtered & each for each in (acted, ~acted))
        size, last = self.top_logprobs, ready.rows.temperature_last

        def draw_free() -> Draws:
            weighted = WeightedLogits(ready.logits, ready.best, heat, free)
            drawn = draw_from_all(self._ops, weighted, chances, free & ready.wants, size)
            return self._shown(drawn)

        def draw_shaped(others: Draws) -> Draws:
            weighted = WeightedLogits(ready.logits, ready.best, heat, shaped)

            def draw(now: WeightedLogits) -> Draws:
                return draw_from_all(self._ops, now, chances, shaped & ready.wants, size)

            drawn = shape_and_draw(self._ops, self.shapers, shaping, weighted, draw)
            return where_rows(shaped, drawn, others)

        def draw_filtered(others: Draws) -> Draws:
            weighted = WeightedLogits(
                ready.logits, ready.best, jnp.where(last, 1.0, heat), filtered
            )
            weighted = shape_early(self._ops, self.shapers, shaping, weighted)
            given = CandidateRows(
                filters,
                shaping,
                ready.rows,
                weighted.logits,
                weighted.best,
                early=weighted.heat,
                late=jnp.where(last, heat, 1.0),
                chances=chances,
                active=filtered,
            )
            kinds = CandidateSamplers(self.filters, self.shapers)
            found = draw_survivors(
                self._ops,
                kinds,
                given,
                width=self.candidates,
                listed=size,
                together=self._together,
            )
            return where_rows(filtered, found, others)

        draws = jax.lax.cond(jnp.any(free), draw_free, lambda: certain)
        draws = jax.lax.cond(jnp.any(shaped), draw_shaped, lambda others: others, draws)
        return jax.lax.cond(jnp.any(filtered), draw_filtered, lambda others: others, draws)

    def _shown(self, draws: Draws) -> Draws:
        """Return `draws` with `shown` filled, for rows in which no shaper acts.

        A shaper is a sampler that changes all logits of a row. For each shaper that observes drawn
        tokens, `shown` has the log-probability of the drawn token before that shaper acts. As none
        acts in these rows, that is the final log-probability.
        """
        memories = [name for name, kind in self.shapers.items() if remembers(kind)]
        return draws._replace(shown=dict.fromkeys(memories, draws.logprob))

    def _list_under_model(self, logits: Float[Array, "S V"], ready: AdjustedRows) -> Listed:
        """List the likeliest tokens by the model's own logits: temperature 1, no samplers.

        `logits` are the model's own; `ready` says which rows request the list.
        """

        def likeliest() -> Listed:
            best = self._ops.survey(logits, ready.wants).best
            weighted = WeightedLogits(logits, best, jnp.ones_like(best), ready.wants)
            return list_likeliest(self._ops, weighted, self.top_logprobs)

        return list_if(ready.wants, likeliest, self.top_logprobs)

    def _observe(
        self,
        bank: Bank,
        watching: dict[str, Bool[Array, " S"]],
        logprob: Float[Array, " S"],
        drawn: Draws,
    ) -> Bank:
        """Let samplers that keep state observe the drawn tokens; return `bank` with the new state.

        `watching` has, for each such sampler, the mask of the rows in which it observes. `drawn`
        has the drawn tokens, `logprob` the log-probability of each by the model's own logits.
        """

        def one(sampler: Sampler, chosen: tuple[Array, ...]) -> Sampler:
            return sampler.observe(Chosen(*chosen))

        def observed(name: str, on: Array, old: Sampler) -> Sampler:
            shown = drawn.shown.get(name, drawn.logprob)
            chosen = (drawn.token, logprob, jnp.exp(drawn.logprob), jnp.exp(shown))
            with jax.named_scope(f"{name}_observes"):
                return jax.lax.cond(
                    jnp.any(on),
                    lambda: where_rows(on, jax.vmap(one)(old, chosen), old),
                    lambda: old,
                )

        return bank | {name: observed(name, on, bank[name]) for name, on in watching.items()}


@scoped
def draw_from_all(
    ops: Choosing,
    weighted: WeightedLogits,
    chances: Float[Array, " S"],
    listing: Bool[Array, " S"],
    size: int,
) -> Draws:
    """Draw a token from the whole vocabulary in every active row.

    `weighted` has the logits, temperatures and active rows. `chances` has one random number from 0
    to 1 per row, which decides the draw. `ops` are the kernels' operations. Also lists the `size`
    likeliest tokens of the rows in the mask `listing`.
    """
    token, log_total = ops.draw(
        weighted.logits, weighted.best, weighted.heat, chances, weighted.active
    )
    logprob = (at(weighted.logits, token) - weighted.best) / weighted.heat - log_total
    listed_rows = weighted._replace(active=listing)
    listed = list_if(listing, lambda: list_likeliest(ops, listed_rows, size), size)
    return Draws(token, logprob, listed, {})
