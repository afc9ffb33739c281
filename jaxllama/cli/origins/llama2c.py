"""llama2.c's command line: `run CHECKPOINT` with its flags."""

from pathlib import Path

import click

from jaxllama.cli.origins.flags import Origin, TheirFlag, TheirValues, option

BEGIN_ID = 1  # theirs ends a text at the begin-of-text token
TOKENIZER = "tokenizer.bin"
MODES = ("generate", "chat")

FLAGS = (
    TheirFlag(("-t",), "`--temperature`", 1.0, float),
    TheirFlag(("-p",), "`--top-p`", 0.9, float, difference="0 and below, 1 and above are off"),
    TheirFlag(("-s",), "`--seed`", None, int, difference="below 1 it is random; another generator"),
    TheirFlag(
        ("-n",),
        "`--context`",
        256,
        int,
        difference="0, or more than the model's limit, is that limit; the begin-of-text token "
        "counts, so a text has one token less",
    ),
    TheirFlag(("-i",), "`--prompt`; in a chat, `--first`", ""),
    TheirFlag(
        ("-z",),
        "`--tokenizer`",
        difference="by default tokenizer.bin here, else the one beside the model",
    ),
    TheirFlag(("-m",), "`generate`, or `chat` with `--format=llama2`", "generate"),
    TheirFlag(("-y",), "`--system`", difference="not asked for if it is missing"),
)


def translate(given: TheirValues) -> list[str]:
    """Return the jaxllama command and its options for the values of llama2.c's flags, `given`."""
    tokenizer = given["z"]
    if tokenizer is None and Path(TOKENIZER).is_file():
        tokenizer = TOKENIZER
    top_p, seed = given["p"], given["s"]
    words = [
        *option("--model", given["checkpoint"]),
        *option("--tokenizer", tokenizer),
        *option("--context", context_of(given["checkpoint"], given["n"])),
        "--sampling-defaults=none",
        *option("--temperature", max(given["t"], 0.0)),
        *option("--top-p", top_p if 0 < top_p < 1 else 1.0),
        *option("--seed", seed if seed is not None and seed > 0 else None),
        *option("--stop-ids", BEGIN_ID),
    ]
    mode, prompt = given["m"], given["i"]
    if mode not in MODES:
        raise click.UsageError(f"-m is {mode!r}; expected {' or '.join(MODES)}")
    if mode == "chat":
        own = [*option("--system", given["y"]), *option("--first", prompt or None)]
        return ["chat", *words, "--format=llama2", *own]
    return ["generate", *words, "--echo", *option("--prompt", prompt)]


def context_of(checkpoint: str, positions: int) -> int | None:
    """Return the value of --context for a number of positions; None: the default of jaxllama.

    The value is at most the model's limit; for 0 positions it is that limit. If there is no file
    `checkpoint`, the limit is not known: the result is then `positions`, or None for 0.
    """
    if not Path(checkpoint).is_file():
        return positions or None
    from jaxllama.weights import open_checkpoint  # noqa: PLC0415 - heavy

    with open_checkpoint(checkpoint) as model:
        limit = model.config.max_context
    return min(positions or limit, limit)


LLAMA2C = Origin("llama2c", "llama2.c: run CHECKPOINT.", FLAGS, translate, argument="checkpoint")
