"""Text bans: LLaMbA's bans of line breaks, of capitals, and of words that begin a refusal."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, TokenSet, knob, token_set
from jaxllama.shapes import Array, Float

BAN = -100.0  # added to the logit, so that a token can still be drawn if all others are banned
CAPITALS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
REFUSALS = frozenset(
    [
        *("I", "As", "cannot", "can't", "can", "'t", "refuse", "refuses", "Note", "However"),
        *("shut", "clears", "ahem", "["),
    ]
)


def is_refusal(text: str) -> bool:
    """Say whether a token is a word that begins a refusal, or contains a line break."""
    return text.strip() in REFUSALS or "\n" in text


class TextBans(Adjuster):
    """Lower the logits of tokens with certain texts by 100.

    `ban_newlines` and `ban_capitals`: tokens that contain a line break, or a letter from A to Z.
    `ban_refusals`: for this many tokens, words such as "I", "As", "cannot", "However", line breaks
    and tokens that end the answer. LLaMbA bans every token of the tokenization of its words; here
    a token is banned if it is one of the words, which does not depend on the tokenizer.
    """

    order = 32

    ban_newlines: Knob = knob(off=False, help="do not draw tokens with line breaks")
    ban_capitals: Knob = knob(off=False, help="do not draw tokens with capital letters")
    ban_refusals: Knob = knob(
        off=0,
        low=0,
        help="do not draw end tokens or words that begin a refusal for this many tokens; 0 = off",
    )
    newlines: TokenSet = token_set(lambda text: "\n" in text)
    capitals: TokenSet = token_set(lambda text: not CAPITALS.isdisjoint(text))
    refusals: TokenSet = token_set(is_refusal)

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Lower the logits of banned tokens by 100."""
        early = context.generated < self.ban_refusals
        banned = self.newlines & self.ban_newlines
        banned = banned | (self.capitals & self.ban_capitals)
        banned = banned | (self.refusals & early)
        ends = banned.at[context.stop_ids].set(True, mode="drop")
        return jnp.where(jnp.where(early, ends, banned), logits + BAN, logits)
