"""`jaxllama deploy`: serve a model with several replicas on a Ray cluster.

Makes a plan from options - those of `jaxllama serve`, without what only one server can have - and
runs it. Ray is imported when the command runs.
"""

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import click

from jaxllama.cli.serve import (
    API_KEY_FILE,
    ServeCommand,
    settings_from,
    warn_if_open,
    with_model,
)
from jaxllama.errors import ConfigError
from jaxllama.serve import log
from jaxllama.serve.installed import open_dialects

logger = logging.getLogger(__name__)

ON_DISK = ("openai.folder", "exllama.sessions")  # options of dialects: one server owns the files
# Settings of a single server: Ray Serve has the connections, adapters and events belong to one.
OF_ONE_SERVER = frozenset(
    (
        *("connections", "connections_per_address", "trusted_addresses"),
        *("header_seconds", "stall_seconds"),
        *("lora_folder", "kv_events", "kv_events_topic", "kv_events_replay"),
    )
)


class DeployCommand(ServeCommand):
    """The command, with the options of `serve` that hold for replicas."""

    @cached_property
    def settings(self) -> list[click.Option]:
        """The options for the server's settings, without those that replicas cannot have."""
        return [each for each in super().settings if each.name not in OF_ONE_SERVER]


@click.command(
    "deploy", cls=DeployCommand, leave_out=("load_prompt_cache_dir", "load_strict_compile")
)
@click.argument("name", metavar="[MODEL]", required=False)
@API_KEY_FILE
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    default=2,
    help="Run this many replicas [default: 2].",
)
@click.option(
    "--autoscale",
    is_flag=True,
    help="Let Ray run more replicas while each has more open requests than slots.",
)
@click.option(
    "--most-replicas",
    type=click.IntRange(min=1),
    help="Run at most this many with --autoscale [default: twice --replicas].",
)
@click.option(
    "--cpus",
    type=click.FloatRange(min=0),
    default=1.0,
    help="Let Ray reserve this many CPUs for a replica [default: 1].",
)
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Let Ray reserve this many GPUs for a replica [default: 0].",
)
@click.option(
    "--address",
    help="Use the Ray cluster at this address [default: RAY_ADDRESS, or one on this machine that "
    "ends with the command].",
)
def command(  # noqa: PLR0913, PLR0917 - an option each
    name: str | None,
    api_key_file: Any,
    replicas: int,
    autoscale: bool,
    most_replicas: int | None,
    cpus: float,
    gpus: float,
    address: str | None,
    loading: Mapping[str, Any],
    **options: Any,
) -> None:
    """Serve MODEL with several replicas behind one address, on a Ray cluster (docs/deploy.md).

    Each replica reserves --cpus and --gpus; with --autoscale Ray runs up to --most-replicas of
    them. SIGTERM or Ctrl-C lets running requests finish. Needs jaxllama[ray].
    """
    most = most_of(replicas, most_replicas, autoscale=autoscale)
    loading = with_model(name, loading)
    settings = settings_from(options, api_key_file)
    if not settings.port:
        raise click.UsageError(
            "--port is 0; expected a number, because all proxies of Ray share it"
        )
    for each in settings.dialect_options:
        if each.partition("=")[0] in ON_DISK:
            raise click.UsageError(
                f"--dialect-option {each} cannot be used with replicas, because one server owns "
                f"the files; use jaxllama serve"
            )
    open_dialects(settings)  # raises for wrong options, before Ray starts
    log.set_up(as_json=settings.log_json)
    warn_if_open(settings)
    try:
        from jaxllama.deploy.application import Plan, deploy  # noqa: PLC0415 - only here
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise ConfigError(
            "jaxllama deploy needs Ray Serve, which is not installed; install it: "
            'pip install "jaxllama[ray]"'
        ) from error
    deploy(Plan(settings, loading, replicas, most, cpus, gpus), address)


def most_of(replicas: int, most: int | None, *, autoscale: bool) -> int:
    """Return the largest number of replicas that Ray may run; raise UsageError for wrong options.

    `most` is the value of --most-replicas, None if not given; with `autoscale`, Ray may run more
    than `replicas`, without it Ray runs exactly `replicas`.
    """
    if not autoscale:
        if most is not None:
            raise click.UsageError("--most-replicas needs --autoscale")
        return replicas
    most = 2 * replicas if most is None else most
    if most < replicas:
        raise click.UsageError(
            f"--most-replicas is {most}; expected at least --replicas, which is {replicas}"
        )
    return most
