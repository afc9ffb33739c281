"""llama-burn's command line: its chat example, which answers one question."""

import click

from jaxllama.cli.origins.flags import Origin, TheirFlag, TheirValues, option

SYSTEM = "You are a helpful assistant."
MODELS = {
    "llama-3-8b-instruct": "hf:meta-llama/Meta-Llama-3-8B-Instruct",
    "llama-3.1-8b-instruct": "hf:meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.2-1b-instruct": "hf:meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b-instruct": "hf:meta-llama/Llama-3.2-3B-Instruct",
}

FLAGS = (
    TheirFlag(
        ("-p", "--prompt"), "`--prompt` with `--chat`", required=True, difference="no default"
    ),
    TheirFlag(
        ("-n", "--sample-len"),
        "`--max-tokens`",
        50,
        int,
        difference="50, as their README says; their code has 65",
    ),
    TheirFlag(("--top-p",), "`--top-p`", 0.9, float),
    TheirFlag(("--temperature",), "`--temperature`", 0.6, float),
    TheirFlag(
        ("--max-seq-len",),
        "`--context`",
        128,
        int,
        difference="a prompt and answer that need more are refused; theirs drops the oldest tokens",
    ),
    TheirFlag(("--seed",), "`--seed`", 42, int, difference="another generator"),
    TheirFlag(
        ("--model-version",),
        "`--model`",
        "llama-3.2-1b-instruct",
        difference="from Hugging Face; -- -m FOLDER takes another one, as TinyLlama",
    ),
)


def translate(given: TheirValues) -> list[str]:
    """Return the jaxllama command and its options for the values of llama-burn's flags, `given`."""
    version = given["model_version"]
    if version not in MODELS:
        raise click.UsageError(
            f"--model-version is {version!r}; expected one of {', '.join(MODELS)}, or give a "
            f"model with -- -m"
        )
    return [
        "generate",
        *option("--model", MODELS[version]),
        *option("--context", given["max_seq_len"]),
        *("--chat", *option("--system", SYSTEM)),
        *option("--max-tokens", given["sample_len"]),
        "--sampling-defaults=none",
        *option("--top-p", given["top_p"]),
        *option("--temperature", given["temperature"]),
        *option("--seed", given["seed"]),
        *option("--prompt", given["prompt"]),
    ]


LLAMA_BURN = Origin("llama-burn", "llama-burn: its chat example.", FLAGS, translate)
