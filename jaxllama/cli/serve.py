"""`jaxllama serve`: serve one model over HTTP.

Makes settings from options - every field of `Settings` and `Bounds` is one - and runs the server
with them. Knows no route.
"""

import asyncio
import dataclasses
import gc
import logging
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import click

import jaxllama
from jaxllama import hosts
from jaxllama.cli import heap, open_files
from jaxllama.cli.garbage import collect_as_usual
from jaxllama.cli.options import ModelCommand
from jaxllama.errors import ConfigError, JaxLlamaError
from jaxllama.serve import log
from jaxllama.serve.awake import AwakeLoop
from jaxllama.serve.crowd import RESERVE
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.installed import open_dialects
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model, ServedEncoder
from jaxllama.service.block_events import BlockPublisher
from jaxllama.service.bounds import Bounds
from jaxllama.startup import Startup
from jaxllama.weights.lora import read_adapter
from jaxllama.weights.named import DEFAULT

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "JAXLLAMA_API_KEYS"
REPEATABLE = {
    "dialects": "--dialects",
    "dialect_options": "--dialect-option",
    "api_keys": "--api-key",
    "allowed_hosts": "--allowed-host",
    "cors_origins": "--cors-origin",
    "trusted_addresses": "--trusted-address",
    "metrics_names": "--metrics-names",
}


class ServeCommand(ModelCommand):
    """The command, with an option for every setting."""

    @cached_property
    def settings(self) -> list[click.Option]:
        """The options for the fields of `Settings` and of `Bounds`."""
        return [*setting_options(Settings), *setting_options(Bounds)]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of the settings, then the options that load a model."""
        return [*self.settings, *super().get_params(ctx)]


@click.command("serve", cls=ServeCommand)
@click.argument("name", metavar="[MODEL]", required=False)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Read API keys from this file, one per line; the variable {KEYS_VARIABLE} may hold more.",
)
@click.option(
    "--hosts",
    "joins_hosts",
    is_flag=True,
    help=f"Run the model together with other processes, all started with the same options and with "
    f"{hosts.ADDRESS} (name:port of process 0), {hosts.COUNT} and {hosts.INDEX}; process 0 serves.",
)
def command(
    name: str | None,
    api_key_file: Path | None,
    joins_hosts: bool,
    loading: Mapping[str, Any],
    **options: Any,
) -> None:
    """Serve MODEL over HTTP until the program is stopped; --model names it as well.

    The server listens at once and loads the model in the background. It logs "ready: open http://..."
    when the model has made a token; until then /ready says what is being loaded or compiled.
    SIGTERM or Ctrl-C lets running requests finish; a second signal ends the program now.
    """
    if name is not None and loading.get("model", name) != name:
        raise click.UsageError(
            f"the model is given twice, as {name!r} and as {loading['model']!r}; give one"
        )
    loading = dict(loading) if name is None else {**loading, "model": name}
    bounds = Bounds(**{each.name: options.pop(each.name) for each in dataclasses.fields(Bounds)})
    options["api_keys"] = (*options["api_keys"], *keys_from(api_key_file))
    options["dialects"] = tuple(split(options["dialects"]))
    settings = Settings(bounds=bounds, **options)
    log.set_up(as_json=settings.log_json)
    open_files.allow(settings.connections + RESERVE)
    if not (settings.is_loopback or settings.api_keys):
        logger.warning(
            "every client that can reach %s may use this server; require a key with --api-key",
            settings.host,
        )
    dialects = open_dialects(settings)
    if joins_hosts:
        group = hosts.join(platform=loading.get("platform"))
        loading = {**loading, "hosts": group}
        if not group.leads:
            follow(group, loading)
    sys.exit(run(settings, loading, dialects))


def follow(group: hosts.HostGroup, loading: Mapping[str, Any]) -> NoReturn:
    """Load the model and repeat the device calls of host 0; exit when the group of hosts ends.

    `loading` holds the arguments of `LLM.load`. A stop signal asks host 0 to stop, which ends the
    group after its running requests.
    """
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: group.ask_to_stop())
    startup = Startup(logger.info, keeps_programs=False)
    code = 1
    try:
        with jaxllama.LLM.load(progress=startup.report, **loading) as llm:
            logger.info("ready: host %d runs its part of what host 0 serves", group.index)
            llm.follow()
        code = 0
    except JaxLlamaError as error:
        logger.error(error)
        code = error.exit_code
    except Exception:
        logger.exception("host %d ends", group.index)
    if code:
        logging.shutdown()
        os._exit(code)  # a normal exit would wait for the other hosts
    sys.exit()


def split(texts: Iterable[str]) -> Iterator[str]:
    """Yield the names in texts that hold one or several names with commas between them."""
    for text in texts:
        yield from filter(None, map(str.strip, text.split(",")))


def run(settings: Settings, loading: Mapping[str, Any], dialects: Sequence[Dialect]) -> int:
    """Serve on a new event loop; return the exit code.

    `loading` holds the arguments of `LLM.load`; `dialects` are the HTTP APIs to serve.
    """
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        return runner.run(serve(settings, loading, dialects))


async def serve(settings: Settings, loading: Mapping[str, Any], dialects: Sequence[Dialect]) -> int:
    """Load the model, serve until stopped, and return the exit code.

    `loading` holds the arguments of `LLM.load`; `dialects` are the HTTP APIs to serve. Exits the
    process at once if a thread still loads or hangs in the device after the shutdown.
    """
    name = model_name(loading.get("model"))

    startup = Startup(logger.info, keeps_programs=loading.get("compile_cache", True))
    publisher = open_publisher(settings)

    def open_model() -> Model:
        heap.keep_large_blocks_apart()
        llm = jaxllama.LLM.load(progress=startup.report, **loading)
        if publisher is not None:
            publisher.follow(llm.engine)
        encoder = open_encoder(settings.embedding_model, loading, startup)
        gc.collect()
        heap.give_back()
        collect_as_usual()
        gc.freeze()  # otherwise every full collection would stop all streams for 100 ms
        others = other_names(loading.get("model"), llm.path, llm.config.name)
        return Model(
            name,
            llm.engine,
            llm.intake,
            others - {name},
            encoder=encoder,
            read_adapter=partial(read_adapter, model=llm.config, engine=llm.engine_config),
        )

    service = GenerationService(
        open_model, settings.bounds, log_prompts=settings.log_prompts, startup=startup
    )
    try:
        code, ended = await Server(service, settings, dialects).run()
    finally:
        if publisher is not None:
            publisher.close()
    if "hosts" in loading:
        loading["hosts"].end()
    if not ended:  # a thread still loads, or hangs in the device: it cannot be joined
        logging.shutdown()
        os._exit(code)
    return code


def open_publisher(settings: Settings) -> BlockPublisher | None:
    """Open the socket of block events; return None if no address is set."""
    if settings.kv_events is None:
        return None
    topic, replay = settings.kv_events_topic, settings.kv_events_replay
    publisher = BlockPublisher(settings.kv_events, topic=topic, replay=replay)
    logger.info("block events, with the tokens of prompts, are at %s", publisher.endpoint)
    return publisher


def open_encoder(
    model: str | None, loading: Mapping[str, Any], startup: Startup
) -> ServedEncoder | None:
    """Load the embedding model that is served beside the main one; return None if none is named.

    `loading` holds the arguments of `LLM.load` for the main model; `startup` shows the progress.
    """
    if model is None:
        return None
    keeps = loading.get("compile_cache", True)
    encoder = jaxllama.Encoder.load(model, compile_cache=keeps, progress=startup.report)
    name = model_name(model)
    others = other_names(model, encoder.path, encoder.config.name)
    return ServedEncoder(name, encoder, others - {name})


def model_name(model: str | None) -> str:
    """Return the model's name for responses: as requested, or the name of its file or folder."""
    if model is None:
        return DEFAULT
    path = Path(model)
    if path.is_dir():
        return path.resolve().name  # a dot in the name of a folder begins no suffix
    return path.stem if path.exists() else model


def other_names(model: str | None, path: Path | None, own: str) -> frozenset[str]:
    """Return other names that clients may use for the model.

    These are the name with which it was requested (`model`, if any), the name of its file with and
    without the ending (`path`, if any), and the model's `own` name.
    """
    files = () if path is None else (path.name, path.stem)
    return frozenset(filter(None, (model, *files, own)))


def keys_from(file: Path | None) -> Iterator[str]:
    """Yield the API keys in the environment variable, then those in the file.

    Unlike the command line, these are not visible to every user of the machine. Raises ConfigError
    if one of them is set but holds no key.
    """
    given = os.environ.get(KEYS_VARIABLE)
    if given is not None:
        keys = [key for key in re.split(r"[\s,]+", given) if key]
        if not keys:
            raise ConfigError(
                f"{KEYS_VARIABLE} is set but holds no API key; expected one or more with commas "
                f"between them (unset it to serve without keys)"
            )
        yield from keys
    if file is not None:
        lines = [line.strip() for line in file.read_text().splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{file} holds no API key; expected one per line")
        yield from keys


def setting_options(table: type[Any]) -> list[click.Option]:
    """Return a click option for every field of the dataclass `table` that has a help text."""
    kinds = typing.get_type_hints(table)
    return [
        setting_option(each, kinds[each.name])
        for each in dataclasses.fields(table)
        if "help" in each.metadata
    ]


def setting_option(setting: dataclasses.Field[Any], kind: Any) -> click.Option:
    """Return the click option for one field of a settings class; `kind` is the field's type."""
    words = f"{setting.metadata['help'][:1].upper()}{setting.metadata['help'][1:]}"
    if setting.name in REPEATABLE:
        return click.Option(
            [REPEATABLE[setting.name], setting.name],
            multiple=True,
            metavar="TEXT",
            help=f"{words}.",
        )
    flag = f"--{setting.name.replace('_', '-')}"
    if kind is bool:
        return click.Option([flag], is_flag=True, default=False, help=f"{words}.")
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    shown = "" if setting.default is None else f" [default: {setting.default}]"
    return click.Option([flag], type=kind, default=setting.default, help=f"{words}{shown}.")
