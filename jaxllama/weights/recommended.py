"""Recommended sampling: reads what a model's maker wrote into its files, by the names of our knobs.

Called by the weight readers. Reads and translates names, but checks nothing, because only the
samplers know which knobs exist and which values they accept. A field that matches none of our
knobs keeps the file's own name, with a dot in it, so that the log can name it.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxllama.weights.fields import read_json

GENERATION = "generation_config.json"
SAME = (  # mean the same in generation_config.json and here
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
OTHER = (  # change the sampling, but have another meaning here or none
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "num_beam_groups",
    "num_beams",
    "penalty_alpha",
    "sequence_bias",
    "suppress_tokens",
    "top_h",
)
GGUF_PREFIX = "general.sampling."
GGUF_NAMES = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "repetition_window",
    "penalty_repeat": "repetition_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}


def from_generation_config(folder: Path) -> dict[str, object]:
    """Return the sampler settings that generation_config.json recommends; {} without this file.

    The keys are this engine's names of the settings; an unsupported field has the key
    `generation_config.json: <field>`. Only present fields count, as in vLLM, because transformers'
    defaults, such as top_k 50, are not the maker's recommendation. `do_sample: false` gives
    temperature 0.
    """
    path = folder / GENERATION
    if not path.exists():
        return {}
    fields = read_json(path).values
    found = {name: fields[name] for name in SAME if fields.get(name) is not None}
    # 0, 1 and nothing leave each of these fields off.
    found |= {f"{GENERATION}: {name}": fields[name] for name in OTHER if is_set(fields.get(name))}
    return found | ({"temperature": 0.0} if fields.get("do_sample") is False else {})


def from_gguf(metadata: Mapping[str, object]) -> dict[str, object]:
    """Return the sampler settings in the `general.sampling` keys of a GGUF file.

    The keys of the result are this engine's names of the settings; an unknown setting keeps the key
    of the file.
    """
    found: dict[str, object] = {}
    for key in metadata:
        name = key.removeprefix(GGUF_PREFIX)
        if name != key:
            found[GGUF_NAMES.get(name, key)] = as_written(metadata[key])
    return found


def is_set(value: object) -> bool:
    """Say whether a sampling field of generation_config.json has an effect with this value.

    None, False, 0, 1, [] and {} have none.
    """
    return value not in (None, False, 0, 1, [], {})


def as_written(value: object) -> object:
    """Return the short decimal number that a float32 was made from: 0.95 for 0.949999988.

    A value that is no float is returned unchanged.
    """
    return float(f"{value:.6g}") if isinstance(value, float) else value
