"""`jaxllama serve`: a server on one model.

Makes settings from options - each field of `Settings` and `Bounds` is one - and runs the server on
them. Knows no route.
"""

import asyncio
import dataclasses
import gc
import logging
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import click

import jaxllama
from jaxllama.cli import heap, open_files
from jaxllama.cli.options import ModelCommand
from jaxllama.errors import ConfigError
from jaxllama.serve import log
from jaxllama.serve.awake import AwakeLoop
from jaxllama.serve.crowd import RESERVE
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model
from jaxllama.service.bounds import Bounds
from jaxllama.startup import Startup
from jaxllama.weights import store

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "JAXLLAMA_API_KEYS"
MANY = {
    "api_keys": "--api-key",
    "allowed_hosts": "--allowed-host",
    "cors_origins": "--cors-origin",
    "trusted_addresses": "--trusted-address",
}


class ServeCommand(ModelCommand):
    """A command with an option for every setting."""

    @cached_property
    def settings(self) -> list[click.Option]:
        """The options of both tables."""
        return [*setting_options(Settings), *setting_options(Bounds)]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The settings, then what every command that loads a model takes."""
        return [*self.settings, *super().get_params(ctx)]


@click.command("serve", cls=ServeCommand)
@click.argument("name", metavar="[MODEL]", required=False)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Read API keys from this file, one per line; the variable {KEYS_VARIABLE} may hold more.",
)
def command(
    name: str | None, api_key_file: Path | None, loading: Mapping[str, Any], **options: Any
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
    settings = Settings(bounds=bounds, **options)
    log.set_up(as_json=settings.log_json)
    open_files.allow(settings.connections + RESERVE)
    if not (settings.is_loopback or settings.api_keys):
        logger.warning(
            "everybody who can reach %s may use this server; --api-key keeps others out",
            settings.host,
        )
    sys.exit(run(settings, loading))


def run(settings: Settings, loading: Mapping[str, Any]) -> int:
    """Serve on an event loop of its own; returns the exit code."""
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        return runner.run(serve(settings, loading))


async def serve(settings: Settings, loading: Mapping[str, Any]) -> int:
    """Run; returns the exit code."""
    name = model_name(loading.get("model"))

    startup = Startup(logger.info, keeps_programs=loading.get("compile_cache", True))

    def open_model() -> Model:
        heap.keep_large_blocks_apart()
        llm = jaxllama.LLM.load(progress=startup.report, **loading)
        gc.collect()
        heap.give_back()
        gc.freeze()  # or every full collection would hold up all streams for 100 ms
        others = other_names(loading.get("model"), llm.path, llm.config.name)
        return Model(name, llm.engine, llm.intake, others - {name})

    service = GenerationService(
        open_model, settings.bounds, log_prompts=settings.log_prompts, startup=startup
    )
    code, ended = await Server(service, settings).run()
    if not ended:  # a thread still loads, or is stuck in the device: nobody can wait for it
        logging.shutdown()
        os._exit(code)
    return code


def model_name(model: str | None) -> str:
    """What clients call the model."""
    if model is None:
        return store.DEFAULT
    return Path(model).stem if Path(model).exists() else model


def other_names(model: str | None, path: Path | None, own: str) -> frozenset[str]:
    """What clients may call the model as well: as it was given, its file, its own name."""
    files = () if path is None else (path.name, path.stem)
    return frozenset(filter(None, (model, *files, own)))


def keys_from(file: Path | None) -> Iterator[str]:
    """API keys that are not on the command line, where everybody on the machine can read them."""
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
    """An option for every setting that says what it is."""
    kinds = typing.get_type_hints(table)
    return [
        setting_option(each, kinds[each.name])
        for each in dataclasses.fields(table)
        if "help" in each.metadata
    ]


def setting_option(setting: dataclasses.Field[Any], kind: Any) -> click.Option:
    """One setting as an option."""
    words = f"{setting.metadata['help'][:1].upper()}{setting.metadata['help'][1:]}"
    if setting.name in MANY:
        return click.Option(
            [MANY[setting.name], setting.name], multiple=True, metavar="TEXT", help=f"{words}."
        )
    flag = f"--{setting.name.replace('_', '-')}"
    if kind is bool:
        return click.Option([flag], is_flag=True, default=False, help=f"{words}.")
    if isinstance(kind, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    shown = "" if setting.default is None else f" [default: {setting.default}]"
    return click.Option([flag], type=kind, default=setting.default, help=f"{words}{shown}.")
