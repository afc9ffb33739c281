"""Aliases: names that other servers and their clients use for our request fields.

The only table of aliases, read when a body is decoded and when the API is described. An alias is
accepted only where our field is: `repeat_penalty` needs the sampler with `repetition_penalty`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxllama.errors import InvalidParameter


@dataclass(frozen=True)
class Alias:
    """Another name of our field `own`; `values` maps numbers that differ in meaning to ours."""

    own: str
    origin: str  # server or client that uses this name
    values: Mapping[int, int | None] = field(default_factory=dict)  # None: treated as not given
    refused: Mapping[int, str] = field(default_factory=dict)  # number -> why it has no equivalent


UNLIMITED = {-1: None, -2: None}  # as many tokens as fit
RANDOM = {-1: None}  # a fresh seed
ALL = {-1: 0}  # llama.cpp: the whole context
NONE = {0: "0 turns the penalty off under this name; leave the penalty itself out instead"}

ALIASES: dict[str, Alias] = {
    # How long an answer is, and where it ends.
    "max_completion_tokens": Alias("max_tokens", "OpenAI chat"),
    "max_output_tokens": Alias("max_tokens", "OpenAI responses"),
    "max_new_tokens": Alias("max_tokens", "text-generation-inference"),
    "max_length": Alias("max_tokens", "KoboldAI"),
    "n_predict": Alias("max_tokens", "llama.cpp", UNLIMITED),
    "num_predict": Alias("max_tokens", "Ollama", UNLIMITED),
    "min_new_tokens": Alias("min_tokens", "Hugging Face"),
    "stop_sequences": Alias("stop", "text-generation-inference"),
    "stop_sequence": Alias("stop", "KoboldAI"),
    "stopping_strings": Alias("stop", "text-generation-webui"),
    "stop_token_ids": Alias("stop_ids", "vLLM"),
    "n_cmpl": Alias("n", "llama.cpp"),
    "random_seed": Alias("seed", "Mistral", RANDOM),
    "sampler_seed": Alias("seed", "KoboldAI", RANDOM),
    "thinking_token_budget": Alias("reasoning_budget", "vLLM", UNLIMITED),
    "thinking_budget": Alias("reasoning_budget", "Qwen", UNLIMITED),
    # Penalties.
    "repeat_penalty": Alias("repetition_penalty", "llama.cpp, Ollama"),
    "rep_pen": Alias("repetition_penalty", "KoboldAI"),
    "repeat_last_n": Alias("repetition_window", "llama.cpp, Ollama"),
    "dry_penalty_last_n": Alias("dry_range", "llama.cpp", ALL, NONE),
    # Filters and shapes.
    "typical": Alias("typical_p", "KoboldAI"),
    "typ_p": Alias("typical_p", "llama.cpp"),
    "tfs": Alias("tfs_z", "KoboldAI"),
    "dynatemp_exp": Alias("dynatemp_exponent", "llama.cpp"),
    "mirostat_mode": Alias("mirostat", "text-generation-webui"),
    "mirostat_ent": Alias("mirostat_tau", "llama.cpp"),
    "mirostat_lr": Alias("mirostat_eta", "llama.cpp"),
    # Guidance and forms.
    "cfg_scale": Alias("guidance_scale", "text-generation-webui"),
    "cfg_negative_prompt": Alias("negative_prompt", "llama.cpp"),
    "guided_json": Alias("json_schema", "vLLM"),
    "guided_regex": Alias("regex", "vLLM"),
    "guided_choice": Alias("choices", "vLLM"),
    "guided_grammar": Alias("grammar", "vLLM"),
    "ebnf": Alias("grammar", "SGLang"),
}


def rename_aliases(
    fields: Mapping[str, Any], known: Collection[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return `fields` under our names, and a dict from our names to the aliases that were used.

    An alias is another API's name for a field of ours. It is renamed only if our field is in
    `known`, and dropped if its value means "not given". Raises InvalidParameter if two names of one
    field come with different values.
    """
    found = {name: value for name, value in fields.items() if not is_alias(name, known)}
    called: dict[str, str] = {}
    for name in [name for name in fields if name not in found]:
        own, value = ALIASES[name].own, own_value(name, fields[name])
        if value is None:
            continue
        if found.get(own) not in (None, value):
            raise InvalidParameter(
                f"{called.get(own, own)} is {found[own]!r:.100} and {name} is {value!r:.100}; they "
                f"mean the same and differ: send one of them",
                own,
            )
        if found.get(own) is None:
            found[own], called[own] = value, name
    return found, called


def is_alias(name: str, known: Collection[str]) -> bool:
    """Say whether `name` is an alias of a field in `known`, and not itself a field in `known`."""
    return name not in known and name in ALIASES and ALIASES[name].own in known


def own_value(name: str, value: Any) -> Any:
    """Convert the value of the alias `name` to the value of our field.

    An alias is another API's name for a field of ours. The result None means "not given". Raises
    InvalidParameter for a value that our field cannot express.
    """
    alias = ALIASES[name]
    if isinstance(value, int) and not isinstance(value, bool):
        if value in alias.refused:
            raise InvalidParameter(f"{name} is {value}: {alias.refused[value]}", name)
        return alias.values.get(value, value)
    return value


def aliases_of(own: str, known: Collection[str]) -> list[str]:
    """Return the other APIs' names that are accepted for our field `own`.

    Names that are fields themselves (in `known`) are left out; [] if `own` is not in `known`.
    """
    return [name for name, alias in ALIASES.items() if alias.own == own and is_alias(name, known)]
