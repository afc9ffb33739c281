"""ExLlama's command lines: the chatbot's, and with an address or sessions the web UI's."""

from collections.abc import Sequence
from pathlib import Path

import click

from jaxllama.cli.origins.flags import (
    Origin,
    TheirFlag,
    TheirValues,
    address,
    check_beside,
    folder_of,
    option,
    refused,
    switch,
)

LEAST, MOST = 4, 256  # tokens of one reply
CUDA = "it tunes their CUDA kernels; ours need no tuning: leave it out"
RATHER_BEAMS = "a chat follows one answer; jaxllama generate --beams N searches"
ADAPTER = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors")
SERVED = ("host", "sessions_dir")

FLAGS = (
    TheirFlag(("-d", "--directory"), "`--model`"),
    TheirFlag(("-m", "--model"), "`--model`", difference="as a file; its folder has the rest"),
    TheirFlag(("-t", "--tokenizer"), "`--tokenizer`"),
    TheirFlag(
        ("-c", "--config"),
        "read from the model's folder",
        difference="it must lie there as config.json",
    ),
    TheirFlag(
        ("-gs", "--gpu_split"),
        "`--mesh stage=N --stage-layers`",
        difference="the layers in proportion to these GiB",
    ),
    TheirFlag(("-l", "--length"), "`--context`", 2048, int),
    TheirFlag(("-cpe", "--compress_pos_emb"), "`--rope-scale`", 1.0, float),
    TheirFlag(("-a", "--alpha"), "`--rope-alpha`", 1.0, float),
    TheirFlag(("-theta", "--theta"), "`--rope-theta`", None, float),
    TheirFlag(("-lora", "--lora"), "`--lora`", difference="the file of a PEFT folder"),
    TheirFlag(
        ("-loracfg", "--lora_config"),
        "read from the adapter's folder",
        difference="it must lie there as adapter_config.json",
    ),
    TheirFlag(("-ld", "--lora_dir"), "`--lora`", difference="a PEFT folder"),
    TheirFlag(
        ("-p", "--prompt"),
        "`--prompt-file`",
        difference="{username} and {bot_name} are replaced",
    ),
    TheirFlag(("-un", "--username"), "`--user-name`", "User"),
    TheirFlag(("-bn", "--botname"), "`--bot-name`", "Chatbort"),
    TheirFlag(("-bf", "--botfirst"), "`--bot-first`", False, bool),
    TheirFlag(("-nnl", "--no_newline"), "`--no-newline`", False, bool),
    TheirFlag(("-temp", "--temperature"), "`--temperature`", 0.95, float),
    TheirFlag(("-topk", "--top_k"), "`--top-k`", 20, int),
    TheirFlag(("-topp", "--top_p"), "`--top-p`, `--top-p-strict`", 0.65, float),
    TheirFlag(
        ("-minp", "--min_p"), "`--min-p`", 0.0, float, difference="it acts without beams, too"
    ),
    TheirFlag(("-repp", "--repetition_penalty"), "`--repetition-penalty`", 1.15, float),
    TheirFlag(
        ("-repps", "--repetition_penalty_sustain"),
        "`--repetition-window`, half of it `--repetition-decay`",
        256,
        int,
    ),
    TheirFlag(("-beams", "--beams"), "only 1", 1, int, difference=RATHER_BEAMS),
    TheirFlag(("-beamlen", "--beam_length"), "only 1", 1, int, difference=RATHER_BEAMS),
    TheirFlag(
        ("-host", "--host"),
        "`jaxllama serve` with `--host`, `--port`",
        difference="the web UI's; / shows our page",
    ),
    TheirFlag(
        ("-sd", "--sessions_dir"),
        "`jaxllama serve` with `exllama.sessions`",
        difference="the web UI's",
    ),
    refused(
        *("-ppl", "--perplexity"), instead="jaxllama perplexity TEXT measures it, on any text file"
    ),
    *(
        refused(*names, kind=kind, instead=CUDA)
        for names, kind in (
            (("-gpfix", "--gpu_peer_fix"), bool),
            (("-flash", "--flash_attn"), str),
            (("-mmrt", "--matmul_recons_thd"), int),
            (("-fmt", "--fused_mlp_thd"), int),
            (("-sdpt", "--sdp_thd"), int),
            (("-mmfr", "--matmul_fused_remap"), bool),
            (("-nfa", "--no_fused_attn"), bool),
            (("-rnnh2", "--rmsnorm_no_half2"), bool),
            (("-rpnh2", "--rope_no_half2"), bool),
            (("-mmnh2", "--matmul_no_half2"), bool),
            (("-snh2", "--silu_no_half2"), bool),
            (("-nh2", "--no_half2"), bool),
            (("-fh2", "--force_half2"), bool),
            (("-cs", "--concurrent_streams"), bool),
        )
    ),
    refused("-aff", "--affinity", instead="taskset chooses processors, -- --threads N how many"),
)


def translate(given: TheirValues) -> list[str]:
    """Return the jaxllama command and its options for the values of ExLlama's flags, `given`."""
    words = loading(given)
    if any(given.is_given(each) for each in SERVED):
        where = address(given["host"], "--host") if given.is_given("host") else []
        folder = given["sessions_dir"]
        own = [] if folder is None else [f"--dialect-option=exllama.sessions={folder}"]
        return ["serve", *words, *where, *own]
    for name in ("beams", "beam_length"):
        if given[name] != 1:
            raise click.UsageError(f"--{name} is {given[name]}; expected 1: {RATHER_BEAMS}")
    return [
        "chat",
        *words,
        *option("--prompt-file", given["prompt"]),
        *option("--user-name", given["username"]),
        *option("--bot-name", given["botname"]),
        *switch("--bot-first", given["botfirst"]),
        *switch("--no-newline", given["no_newline"]),
        *sampling(given),
    ]


def loading(given: TheirValues) -> list[str]:
    """Return the jaxllama options that load the model and the adapter, if the flags name one.

    `given` has the values of ExLlama's flags.
    """
    folder, file = given["directory"], given["model"]
    if (folder is None) == (file is None):
        raise click.UsageError("no model; expected -d DIRECTORY, or all of -t, -c and -m")
    model = folder or file
    check_beside(given["config"], folder_of(model), "--config", ("config.json",))
    lora = given["lora_dir"]
    if given["lora"] is not None:
        lora = Path(given["lora"]).parent
        check_beside(given["lora"], lora, "--lora", ADAPTER[1:])
        check_beside(given["lora_config"], lora, "--lora_config", ADAPTER[:1])
    sizes = given["gpu_split"].split(",") if given["gpu_split"] else []
    scale, alpha = given["compress_pos_emb"], given["alpha"]
    return [
        *option("--model", model),
        *option("--tokenizer", given["tokenizer"]),
        *stages(sizes),
        *option("--context", given["length"]),
        *option("--rope-scale", None if scale == 1 else scale),
        *option("--rope-alpha", None if alpha == 1 else alpha),
        *option("--rope-theta", given["theta"]),
        *option("--lora", lora),
    ]


def stages(sizes: Sequence[str]) -> list[str]:
    """Return the jaxllama options that divide the model's layers over several GPUs.

    `sizes` has the GiB of memory of each GPU. With fewer than two GPUs, the result is [].
    """
    if len(sizes) < 2:  # noqa: PLR2004
        return []
    split = ",".join(f"{size.strip()}GiB" for size in sizes)
    return [*option("--mesh", f"stage={len(sizes)}"), *option("--stage-layers", split)]


def sampling(given: TheirValues) -> list[str]:
    """Return the jaxllama options for ExLlama's sampler and a reply's length.

    `given` has the values of ExLlama's flags.
    """
    sustain = given["repetition_penalty_sustain"]
    top_p = given["top_p"]
    return [
        *option("--min-length", LEAST),
        *option("--max-tokens", MOST),
        "--sampling-defaults=none",
        *option("--temperature", given["temperature"]),
        *option("--top-k", given["top_k"]),
        *option("--top-p", top_p or 1.0),
        *option("--top-p-strict", value=True),
        *option("--min-p", given["min_p"]),
        *option("--repetition-penalty", given["repetition_penalty"]),
        *option("--repetition-window", sustain),
        *option("--repetition-decay", max(sustain, 0) // 2),
    ]


EXLLAMA = Origin(
    "exllama", "ExLlama: its chatbot, and its web UI with -host or -sd.", FLAGS, translate
)
