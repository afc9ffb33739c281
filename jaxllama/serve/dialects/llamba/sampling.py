"""LLaMbA's samplers, Standard, Quick and llama.cpp's chain, as knobs of our samplers.

Knows the fields of a query, no handler.
"""

from typing import Any, Literal

from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.dialects.llamba.shapes import LlambaQuery
from jaxllama.service import Model

SamplerName = Literal["standard", "quick", "llama"]

MAX_TOKENS, MIN_TOKENS = 300, 10
HOTTEST = 2.0
WINDOW = 2048  # tokens that the repetition penalty sees
# Our knob -> the field of a query that sets it, for errors.
NAMES = {
    "ban_refusals": "min_tokens",
    "temperature_noise": "temperature",
    "repetition_window": "repetition_range",
}
QUICK = {
    "presence_penalty": 0.2,
    "frequency_penalty": 0.1,
    "prompt_penalty_window": 1023,
}
LLAMA = {"temperature_last": True, "top_k": 100, "top_p": 0.9, "min_p": 0.1}


def knobs_of(query: LlambaQuery, sampler: SamplerName, model: Model) -> dict[str, Any]:
    """Convert a query to our knobs (request parameters), which imitate LLaMbA's `sampler`.

    A query with top_k, top_p or min_p is sampled as by `llama`, the only sampler that has these.
    Defaults for knobs that `model` does not know are left out.
    """
    if any(each is not None for each in (query.top_k, query.top_p, query.min_p)):
        sampler = "llama"
    given: dict[str, Any] = {
        "max_tokens": query.max_tokens,
        "stop": query.stop,
        "top_k": query.top_k,
        "top_p": query.top_p,
        "min_p": query.min_p,
        "presence_penalty": query.presence_penalty,
        "frequency_penalty": query.frequency_penalty,
        "repetition_penalty": query.repetition_penalty,
        "repetition_window": query.repetition_range,
        "logit_bias": query.logit_bias,
        "seed": query.seed,
        "ban_refusals": query.min_tokens,
    }
    defaults: dict[str, Any] = {"max_tokens": MAX_TOKENS}
    warmth = 1.0 if query.temperature is None else min(max(query.temperature, 0.0), HOTTEST)
    if sampler == "llama":
        defaults |= {**LLAMA, "temperature": warmth, "ban_refusals": MIN_TOKENS}
    elif sampler == "quick":
        defaults |= {**QUICK, "temperature": 0.0, "temperature_noise": 1.0}
    else:
        defaults |= {
            "temperature": 0.0,
            "temperature_noise": warmth,
            "ban_refusals": MIN_TOKENS,
            "repetition_window": WINDOW,
            "repetition_sign_blind": True,
        }
        if query.presence_penalty or query.frequency_penalty:
            window = query.repetition_range
            defaults["prompt_penalty_window"] = WINDOW if window is None else max(window, 0)
    return with_defaults(model, given, defaults)
