"""Presets: named sets of knobs that belong together."""

from collections.abc import Mapping
from typing import ClassVar

from jaxllama.sampling import Preset

Knobs = Mapping[str, object]


class Deterministic(Preset):
    """Always the likeliest token."""

    knobs: ClassVar[Knobs] = {"temperature": 0.0}


class Balanced(Preset):
    """Some variety and few surprises: a good default for most uses."""

    knobs: ClassVar[Knobs] = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05}


class Precise(Preset):
    """Near the likeliest tokens, little repetition: ExLlama's /infer_precise."""

    knobs: ClassVar[Knobs] = {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.1,
        "top_p_strict": True,
        "repetition_penalty": 1.176,
    }


class Creative(Preset):
    """More variety: ExLlama's /infer_creative."""

    knobs: ClassVar[Knobs] = {
        "temperature": 0.72,
        "top_p": 0.73,
        "top_p_strict": True,
        "repetition_penalty": 1.1,
    }


class Sphinx(Preset):
    """High temperature, very few tokens: ExLlama's /infer_sphinx."""

    knobs: ClassVar[Knobs] = {
        "temperature": 1.99,
        "top_k": 30,
        "top_p": 0.18,
        "top_p_strict": True,
        "repetition_penalty": 1.15,
    }


class ExLlama(Preset):
    """ExLlama's generator defaults; top-p drops the token that crosses the limit."""

    knobs: ClassVar[Knobs] = {
        "temperature": 0.95,
        "top_k": 40,
        "top_p": 0.65,
        "top_p_strict": True,
        "repetition_penalty": 1.15,
        "repetition_window": 256,
        "repetition_decay": 128,
    }


class Basilisk(Preset):
    """basilisk's server defaults: a one-line answer, near the likeliest tokens."""

    knobs: ClassVar[Knobs] = {
        "temperature": 0.5,
        "top_k": 32,
        "top_p": 0.2,
        "top_p_strict": True,
        "repetition_penalty": 1.1,
        "repetition_window": 32,
        "repetition_decay": 64,
        "repetition_sign_blind": True,
        "positional_repetition_penalty": 1.2,
        "min_length": 4,
        "stop": ["\n"],
    }


class LlamaCpp(Preset):
    """LLaMbA's llama.cpp chain: filters first, temperature last, bans refusals at the start."""

    knobs: ClassVar[Knobs] = {
        "temperature": 1.0,
        "temperature_last": True,
        "top_k": 100,
        "top_p": 0.9,
        "min_p": 0.1,
        "ban_refusals": 10,
    }


class LlambaStandard(Preset):
    """LLaMbA's Standard sampler: a random factor on every logit, bans refusals at the start."""

    knobs: ClassVar[Knobs] = {
        "temperature": 0.0,
        "temperature_noise": 1.0,
        "ban_refusals": 10,
        "repetition_window": 2048,
        "repetition_sign_blind": True,
    }


class LlambaQuick(Preset):
    """LLaMbA's Quick sampler: a random factor on every logit, and its repetition penalty."""

    knobs: ClassVar[Knobs] = {
        "temperature": 0.0,
        "temperature_noise": 1.0,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "prompt_penalty_window": 1023,
    }
