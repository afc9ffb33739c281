"""RLLaMA's command line: a prompt with coloured tokens, an interactive text, or its server."""

import math

import click

from jaxllama.cli.origins.flags import (
    Origin,
    TheirFlag,
    TheirValues,
    check_beside,
    folder_of,
    option,
    refused,
)
from jaxllama.kernels import AUTO
from jaxllama.loading import choose_kernels, engine_config
from jaxllama.model.cache import column_bytes
from jaxllama.weights import open_checkpoint

PARAMS = ("params.json", "config.json")
STOPS = ("### Human:", "###Human:")
OPENING = "A person talks with an assistant, who answers helpfully and politely.\n### Human:"
SERVER = "--inference-server"
CACHE_SIZE = "--inference-server-prompt-cache-size"
MIB = 1 << 20

FLAGS = (
    TheirFlag(("--model-path",), "`--model`", required=True),
    TheirFlag(("--tokenizer-path",), "`--tokenizer`", required=True),
    TheirFlag(
        ("--param-path",),
        "read from the model's folder",
        difference="not needed; it must lie there as params.json or config.json",
    ),
    TheirFlag(("-q", "--quiet"), "`--quiet`; else `--show-probabilities=sampled`", False, bool),
    TheirFlag(("--prompt",), "`--prompt`"),
    TheirFlag(("--prompt-file",), "`--prompt-file`"),
    TheirFlag(("--start-interactive",), "`jaxllama chat` with a plain text", False, bool),
    TheirFlag(
        ("--interactive-stop",),
        "`--stop`",
        STOPS,
        many=True,
        difference="two spellings of `### Human:`, theirs has 16",
    ),
    TheirFlag(("--interactive-prompt-postfix",), "`--postfix`", "### Assistant:"),
    TheirFlag(("--interactive-prompt-prefix",), "`--prefix`", " "),
    TheirFlag(
        ("--interactive-system-prompt",),
        "`--prompt`",
        OPENING,
        difference="the words of the default differ",
    ),
    TheirFlag(("--max-seq-len",), "`--context`", 1024, int),
    TheirFlag(("--temperature",), "`--temperature`", 1.0, float, difference="0 or less is 1"),
    TheirFlag(("--top-p",), "`--top-p`", 1.0, float),
    TheirFlag(("--top-k",), "`--top-k`", 20, int),
    TheirFlag(
        ("--repetition-penalty",),
        "`--repetition-power`",
        1.0,
        float,
        difference="it works: theirs reaches token 0 only",
    ),
    TheirFlag(("--max-threads",), "`--threads`", None, int),
    TheirFlag(("--f16",), "`--dtype`, `--cache-dtype`: float16", False, bool),
    refused(
        "--opencl-device",
        kind=int,
        instead="JAX takes the accelerator that it finds; CUDA_VISIBLE_DEVICES chooses one",
    ),
    refused(
        "--percentage-to-gpu",
        kind=float,
        instead="all layers are on one kind of device; a smaller model is made by jaxllama convert",
    ),
    refused(
        "--k4", kind=bool, instead="make the model smaller once: jaxllama convert --dtype int4"
    ),
    TheirFlag((SERVER,), "`jaxllama serve`", False, bool),
    TheirFlag(("--inference-server-port",), "`--port`", 8080, int),
    TheirFlag(("--inference-server-host",), "`--host`", "127.0.0.1"),
    TheirFlag(
        ("--inference-server-max-concurrent-inferences",),
        "`rllama.max_concurrent_inferences`",
        5,
        int,
        difference="it bounds streams, too",
    ),
    TheirFlag(("--inference-server-api-path",), "`rllama.path`", "/rllama/v1/inference"),
    TheirFlag(
        (CACHE_SIZE,),
        "`--prompt-cache-mib`",
        None,
        int,
        difference="the memory of so many contexts of `--max-seq-len` tokens, for prompts of any "
        "length; without it, an eighth of the free memory",
    ),
    TheirFlag(
        ("--inference-server-exit-after-one-query",), "`rllama.exit_after_one_query`", False, bool
    ),
)


def translate(given: TheirValues) -> list[str]:
    """Return the jaxllama command and its options for the values of RLLaMA's flags, `given`."""
    model = given["model_path"]
    check_beside(given["param_path"], folder_of(model), "--param-path", PARAMS)
    loading = [
        *option("--model", model),
        *option("--tokenizer", given["tokenizer_path"]),
        *option("--threads", given["max_threads"]),
    ]
    if given["f16"]:
        loading += [*option("--dtype", "float16"), *option("--cache-dtype", "float16")]
    if given["inference_server"]:
        return ["serve", *loading, *served(given)]
    loading += [*option("--context", given["max_seq_len"]), *sampling(given)]
    loading += ["--quiet"] if given["quiet"] else ["--show-probabilities=sampled"]
    if given["start_interactive"]:
        return ["chat", *loading, *interactive(given)]
    if given["prompt"] is not None and given["prompt_file"] is not None:
        raise click.UsageError("--prompt and --prompt-file exclude each other")
    prompt = [*option("--prompt", given["prompt"]), *option("--prompt-file", given["prompt_file"])]
    if not prompt:
        raise click.UsageError(
            f"nothing to do; expected --prompt, --prompt-file, --start-interactive or {SERVER}"
        )
    return ["generate", *loading, "--echo", *prompt]


def sampling(given: TheirValues) -> list[str]:
    """Return the jaxllama options for RLLaMA's sampler, by the values of its flags, `given`."""
    temperature = given["temperature"]
    return [
        "--sampling-defaults=none",
        *option("--temperature", temperature if temperature > 0 else 1.0),
        *option("--top-p", given["top_p"]),
        *option("--top-k", given["top_k"]),
        *option("--repetition-power", given["repetition_penalty"]),
    ]


def interactive(given: TheirValues) -> list[str]:
    """Return the options of `jaxllama chat` for a text in which user and model take turns.

    `given` has the values of RLLaMA's flags.
    """
    if given.is_given("prompt") or given.is_given("prompt_file"):
        opening = [
            *option("--prompt", given["prompt"]),
            *option("--prompt-file", given["prompt_file"]),
        ]
    else:
        opening = option("--prompt", given["interactive_system_prompt"])
    stops = [word for each in given["interactive_stop"] for word in option("--stop", each)]
    return [
        *opening,
        *option("--prefix", given["interactive_prompt_prefix"]),
        *option("--postfix", given["interactive_prompt_postfix"]),
        *stops,
    ]


def served(given: TheirValues) -> list[str]:
    """Return the options of `jaxllama serve` for RLLaMA's server.

    `given` has the values of RLLaMA's flags. Sampling has no options: each request sets it.
    """
    own = {
        "path": given["inference_server_api_path"],
        "max_concurrent_inferences": given["inference_server_max_concurrent_inferences"],
        "max_seq_len": given["max_seq_len"],
        "exit_after_one_query": str(given["inference_server_exit_after_one_query"]).lower(),
    }
    return [
        *option("--host", given["inference_server_host"]),
        *option("--port", given["inference_server_port"]),
        *option("--context", given["max_seq_len"]),
        *option("--prompt-cache-mib", prompt_cache_mib(given)),
        *(f"--dialect-option=rllama.{name}={value}" for name, value in own.items()),
    ]


def prompt_cache_mib(given: TheirValues) -> int | None:
    """Convert the size of RLLaMA's prompt cache to MiB; None if it is not given.

    RLLaMA counts entries; each holds a whole context.
    """
    entries = given["inference_server_prompt_cache_size"]
    if not entries:
        return entries
    if entries < 0:
        raise click.UsageError(f"{CACHE_SIZE} is {entries}; expected 0 or more")
    with open_checkpoint(given["model_path"]) as checkpoint:
        model = checkpoint.config
    stored = "float16" if given["f16"] else None
    engine = engine_config(model, choose_kernels(AUTO, None, model), cache_dtype=stored)
    return math.ceil(entries * given["max_seq_len"] * column_bytes(model, engine) / MIB)


RLLAMA = Origin("rllama", "RLLaMA: its program and its server.", FLAGS, translate)
