"""The conformance kit finds every kind of broken sampler, and passes sound ones."""

# ruff: noqa: ARG001, ARG002 - broken samplers need not look at anything
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.sampling import Adjuster, Filter, Knob, Sampler, TokenSet, knob, state, token_set
from jaxllama.testing import check_sampler
from jaxllama.testing.samplers import CHECKS


class Bare(Adjuster):
    strength: Knob = 1.0


class Helpless(Adjuster):
    strength: Knob = knob(off=0.0)

    def __call__(self, logits, context):
        return logits + self.strength


class NeverOn(Adjuster):
    strength: Knob = knob(off=0.0, help="a number", switch=False)


class CoreField(Adjuster):
    temperature: Knob = knob(off=0.0, help="a number")


class Neither(Sampler):
    strength: Knob = knob(off=0.0, help="a number")


class Shorter(Adjuster):
    strength: Knob = knob(off=0.0, help="a number")

    def __call__(self, logits, context):
        return logits[1:]


class HalfPrecision(Adjuster):
    strength: Knob = knob(off=0.0, help="a number")

    def __call__(self, logits, context):
        return logits.astype(jnp.bfloat16)


class NotAMask(Filter):
    strength: Knob = knob(off=0.0, help="a number")

    def __call__(self, best, context):
        return best.p * self.strength


class Branches(Adjuster):
    strength: Knob = knob(off=0.0, help="a number")

    def __call__(self, logits, context):
        return logits + 1 if self.strength > 0 else logits


class ForgetsItself(Adjuster):
    strength: Knob = knob(off=0.0, help="a number")

    def __call__(self, logits, context):
        return logits

    def observe(self, chosen):
        return chosen.p


class CallsHome(Adjuster):
    strength: Knob = knob(off=0.0, help="a number")

    def __call__(self, logits, context):
        def body(_):
            shape = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
            return jax.pure_callback(np.asarray, shape, logits, vmap_method="sequential")

        return jax.lax.cond(self.strength > 0, body, lambda _: logits, None)


class Prints(Filter):
    strength: Knob = knob(off=0.0, help="a number")

    def __call__(self, best, context):
        jax.debug.print("{}", self.strength)
        return best.p > 0


class GrowsWithItsKnob(Adjuster):
    strength: Knob = knob(off=0, low=0, high=5, help="a number")
    seen: Knob = state(start=0.0)

    def __call__(self, logits, context):
        return logits

    def start(self):
        return dataclasses.replace(self, seen=np.zeros((1,) * int(self.strength)))


class MakesNan(Adjuster):
    strength: Knob = knob(off=0.0, low=-1.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return logits + jnp.log(self.strength)


class LosesItsWay(Adjuster):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")
    surprise: Knob = state(start=1.0)

    def __call__(self, logits, context):
        return logits

    def observe(self, chosen):
        return dataclasses.replace(self, surprise=self.surprise / (1 - chosen.p))


class BansAll(Adjuster):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return jnp.where(logits < 1e5, -jnp.inf, logits)


class KnowsItIsCompiled(Adjuster):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return logits + 1 if isinstance(logits, jax.core.Tracer) else logits


class ClaimsGreedy(Adjuster):
    keeps_greedy = True
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return jnp.where(logits > -jnp.inf, -logits, logits)


class ClaimsToDrawNothing(Filter):
    suits_beams = True
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, best, context):
        return best.rank <= 20 * context.chance


class ClaimsThePromptIsNotSpecial(Adjuster):
    suits_beams = True
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return logits.at[0].add(self.strength * context.prompt)


class ClaimsToKeepNothing(Adjuster):
    suits_beams = True
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")
    seen: Knob = state(start=0.0)

    def __call__(self, logits, context):
        return logits.at[0].add(self.strength * self.seen)

    def observe(self, chosen):
        return dataclasses.replace(self, seen=self.seen + 1)


class DropsTheBest(Filter):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, best, context):
        return best.rank > 0


class AlwaysOn(Adjuster):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return logits.at[0].add(10.0)

    def start(self):
        return dataclasses.replace(self, strength=1.0)


@jax.custom_batching.custom_vmap
def peek(logits):
    return logits


@peek.def_vmap
def peek_over(size, batched, logits):
    return logits + jnp.roll(logits, 1, axis=0), True


class LooksAtNeighbours(Filter):
    """In a batch it sees its neighbour's shares, so what it keeps depends on who is there."""

    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")
    memory: Knob = state(start=0.0)

    def __call__(self, best, context):
        return best.p >= self.strength * peek(self.memory)

    def observe(self, chosen):
        return dataclasses.replace(self, memory=peek(chosen.p))


class CountsInPython(Adjuster):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")
    seen: Knob = state(start=0.0)
    calls: ClassVar[list[int]] = []

    def __call__(self, logits, context):
        return logits

    def observe(self, chosen):
        self.calls.append(1)
        return dataclasses.replace(self, seen=self.seen + jnp.float32(len(self.calls)))


class ReadsWhatWasTakenBack(Adjuster):
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return logits.at[context.tokens[-1]].add(20 * self.strength)


class ClaimsTheRowIsAllItMoves(Adjuster):
    held_only = True
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, logits, context):
        return logits * (1 + self.strength)


class KnowsTokensByTheirIds(Adjuster):
    held_only = True
    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")
    vowels: TokenSet = token_set(lambda text: text in "aeiou")

    def __call__(self, logits, context):
        return logits - self.strength * self.vowels


class KeepsHalfOfWhatItSees(Filter):
    """The fewer candidates it is shown the fewer it keeps, so asking with more changes nothing."""

    strength: Knob = knob(off=0.0, low=0.0, high=1.0, help="a number")

    def __call__(self, best, context):
        return best.rank < best.ids.shape[0] // 2


BROKEN = {
    "declared": [Bare, Helpless, NeverOn, CoreField],
    "compiled": [
        Neither,
        Shorter,
        HalfPrecision,
        NotAMask,
        Branches,
        ForgetsItself,
        KnowsTokensByTheirIds,
    ],
    "host": [CallsHome, Prints],
    "numbers": [GrowsWithItsKnob],
    "finite": [MakesNan, LosesItsWay],
    "nonempty": [BansAll],
    "jit": [KnowsItIsCompiled],
    "held": [ClaimsTheRowIsAllItMoves],
    "greedy": [ClaimsGreedy, DropsTheBest],
    "beams": [ClaimsToDrawNothing, ClaimsThePromptIsNotSpecial, ClaimsToKeepNothing],
    "off": [AlwaysOn],
    "alone": [LooksAtNeighbours],
    "scan": [CountsInPython],
    "history": [ReadsWhatWasTakenBack],
    "distribution": [KeepsHalfOfWhatItSees],
}


@pytest.mark.parametrize(
    ("rule", "kind"), [(rule, kind) for rule, kinds in BROKEN.items() for kind in kinds]
)
def test_broken_sampler_is_refused_by_the_rule_it_breaks(rule: str, kind: type[Sampler]):
    with pytest.raises(AssertionError, match=f"{kind.__name__} breaks rule '{rule}'"):
        check_sampler(kind)


def test_every_rule_has_a_sampler_that_breaks_it():
    assert set(BROKEN) == set(CHECKS)


class Surprise(Filter):
    """Sound and of every kind at once: adaptive, by chance, with a list, dropping the best."""

    keeps_greedy = False
    target: Knob = knob(off=0.0, low=0.0, high=10.0, help="surprise to aim for")
    often: Knob = knob(off=1.0, low=0.0, high=1.0, switch=False, help="how often")
    gentle: Knob = knob(off=False, switch=False, help="whether to keep more")
    spared: Knob = knob(off=-1, low=-1, high=63, width=4, switch=False, help="tokens kept")
    limit: Knob = state(start=0.0)

    def start(self):
        return dataclasses.replace(self, limit=2 * self.target)

    def __call__(self, best, context):
        quiet = -jnp.log(jnp.maximum(best.p, 1e-30)) > self.limit
        spared = jnp.isin(best.ids, self.spared) | self.gentle
        return quiet | spared | (context.chance > self.often)

    def observe(self, chosen):
        surprise = -chosen.logprob
        return dataclasses.replace(self, limit=self.limit - 0.1 * (surprise - self.target))


def test_sound_adaptive_sampler_passes():
    check_sampler(Surprise)
