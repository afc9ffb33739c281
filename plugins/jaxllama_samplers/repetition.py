"""Repetition penalty: tokens that already occurred become less likely."""

import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class Repetition(Adjuster):
    """Weaken the logits of tokens that occur in the prompt or the answer.

    logit / penalty if the logit is positive, logit * penalty otherwise: a penalty above 1 lowers
    both, as in Hugging Face, llama.cpp (where `repetition_window` is called last_n) and ExLlama
    (where `repetition_window` and `repetition_decay` are called sustain and decay). As in the last
    two, a window of -1 is the whole context. With a window of 0 and a decay, the penalty fades from
    the newest token on. With `repetition_sign_blind` the result is always logit / penalty, as in
    LLaMbA and basilisk, which raises negative logits. Only the newest occurrence of a token counts.
    """

    order = 10
    held_only = True
    suits_beams = True

    repetition_penalty: Knob = knob(
        off=1.0,
        low=0.01,
        high=100.0,
        help="make tokens that occurred less likely (above 1) or likelier (below 1); 1 = off",
    )
    repetition_window: Knob = knob(
        off=-1,
        low=-1,
        switch=False,
        help="apply the repetition penalty to this many of the newest tokens; -1 = all, 0 = none",
    )
    repetition_decay: Knob = knob(
        off=0,
        low=0,
        switch=False,
        help="fade the penalty out over this many tokens beyond repetition_window; 0 = none",
    )
    repetition_sign_blind: Knob = knob(
        off=False,
        switch=False,
        help="divide every logit by the repetition penalty, negative ones too",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Divide or multiply the logits of tokens that occurred before by a penalty.

        Logits above 0 are divided, others multiplied, unless `repetition_sign_blind` divides all.
        """
        place = jnp.arange(context.tokens.shape[0])
        age = context.length - 1 - place
        past = jnp.where(self.repetition_window >= 0, age - self.repetition_window, -1)
        fading = jnp.clip(1 - past / jnp.maximum(self.repetition_decay, 1), 0.0, 1.0)
        counts = (age >= 0) & (past < self.repetition_decay)
        ids = jnp.where(counts, context.tokens, NO_TOKEN)
        share = jnp.zeros(logits.shape, jnp.float32).at[ids].max(fading, mode="drop")
        penalty = 1 + (self.repetition_penalty - 1) * share
        divides = (logits > 0) | self.repetition_sign_blind
        return jnp.where(divides, logits / penalty, logits * penalty)
