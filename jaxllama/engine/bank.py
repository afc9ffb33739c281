"""How a token is chosen: every installed sampler, in order, over the whole batch.

Built by `llm.py` from the sampler plugins, validated and encoded by it on the host, called inside
the decode program. Knows rows, not requests; numbers of a sampler are leaves [S], samplers are
structure, so changing a number never recompiles.
"""

from typing import NamedTuple

from jaxllama.shapes import Array, Bool, Float, Int32, UInt32


class Rows(NamedTuple):
    """What the bank may know about every row of the batch at this step."""

    tokens: Int32[Array, "S T"]  # prompt and generated tokens
    length: Int32[Array, " S"]  # how many of `tokens` count
    prompt: Int32[Array, " S"]
    stop_ids: Int32[Array, "S E"]  # padded with NO_TOKEN
    temperature: Float[Array, " S"]  # 0 = greedy
    temperature_last: Bool[Array, " S"]
    seed: UInt32[Array, "S 2"]  # raw threefry key; folded with `length` at each draw
    active: Bool[Array, " S"]
    top_logprobs: Int32[Array, " S"]  # -1: this row wants no log-probabilities


class Choice(NamedTuple):
    """What was chosen for every row, and how likely it was."""

    token: Int32[Array, " S"]
    finite: Bool[Array, " S"]  # False: the model's logits held NaN or +inf, or nothing was left
    logprob: Float[Array, " S"]  # chosen token under the model
    sampled: Float[Array, " S"]  # log-probability it was drawn with
    top_ids: Int32[Array, "S M"]
    top_logprobs: Float[Array, "S M"]
    sampled_ids: Int32[Array, "S M"]
    sampled_logprobs: Float[Array, "S M"]
