"""Rama's command lines: the engine's, and with an address the server's."""

import click

from jaxllama.cli.origins.flags import Origin, TheirFlag, TheirValues, address, option, refused

MODES = ("generate", "chat")
BEGIN_ID = 1  # between two stories of the models that Rama is made for

FLAGS = (
    TheirFlag(("-m", "--model"), "`--model`", required=True),
    TheirFlag(("-t", "--tokenizer"), "`--tokenizer`", required=True),
    TheirFlag(("-p", "--prompt"), "`--prompt`", ""),
    TheirFlag(
        ("-s", "--step"),
        "`--context`; served, `rama.step`",
        255,
        int,
        difference="an end token ends the text; the begin-of-text token counts, so a text has one "
        "token less",
    ),
    TheirFlag(
        ("-r", "--temperature"),
        "`--temperature`; served, `rama.temperature`",
        1.0,
        float,
        difference="it acts above 1, too",
    ),
    TheirFlag(
        ("-l", "--topp"),
        "`--top-p`; served, `rama.topp`",
        0.9,
        float,
        difference="a new random number for every token",
    ),
    TheirFlag(
        ("-o", "--mode"),
        "`generate`, or `chat` with `--format=llama2`",
        "generate",
        difference="chat works",
    ),
    refused("-q", "--q80", kind=bool, instead="leave it out: the file says that it is quantised"),
    TheirFlag(
        ("-a", "--address"),
        "`jaxllama serve` with `--host`, `--port`",
        difference="the engine and the server are one command here: -a serves",
    ),
)


def translate(given: TheirValues) -> list[str]:
    """Return the jaxllama command and its options for the values of Rama's flags, `given`."""
    loading = [*option("--model", given["model"]), *option("--tokenizer", given["tokenizer"])]
    if given["address"] is not None:
        own = {name: given[name] for name in ("step", "temperature", "topp")}
        return [
            *("serve", *loading, *address(given["address"], "--address")),
            "--root-dialect=rama",
            *(f"--dialect-option=rama.{name}={value}" for name, value in own.items()),
        ]
    knobs = [
        *option("--context", given["step"]),
        "--sampling-defaults=none",
        *option("--temperature", given["temperature"]),
        *option("--top-p", given["topp"]),
        *option("--stop-ids", BEGIN_ID),
    ]
    if given["mode"] not in MODES:
        raise click.UsageError(f"--mode is {given['mode']!r}; expected {' or '.join(MODES)}")
    if given["mode"] == "chat":
        first = option("--first", given["prompt"] or None)
        return ["chat", *loading, *knobs, "--format=llama2", *first]
    return ["generate", *loading, *knobs, "--echo", *option("--prompt", given["prompt"])]


RAMA = Origin("rama", "Rama: its engine, and its server with -a HOST:PORT.", FLAGS, translate)
