"""`jaxllama serve`: serve one model, or several, over HTTP.

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
import jax

import jaxllama
from jaxllama import hosts
from jaxllama.cli import heap, open_files
from jaxllama.cli.garbage import collect_as_usual
from jaxllama.cli.memory import describe_memory, engine_for
from jaxllama.cli.models_file import ModelEntry, ModelsFile, read_models_file
from jaxllama.cli.options import ModelCommand
from jaxllama.errors import ConfigError, JaxLlamaError
from jaxllama.loading import MIB, free_memory, open_draft
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
from jaxllama.service.served_models import ModelNeeds, ModelPlan, ModelRules, ServedModels
from jaxllama.startup import Progress, Startup
from jaxllama.weights import open_checkpoint
from jaxllama.weights.lora import read_adapter
from jaxllama.weights.named import DEFAULT
from jaxllama.weights.store import find_source, resolve

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


# Settings of `LLM.load` that only one model can have -> their options.
OF_ONE_MODEL = {
    "model": "a MODEL or --model",
    "lora": "--lora",
    "prompt_cache_dir": "--prompt-cache-dir",
    "strict_compile": "--strict-compile",
}
PART_OF_FREE = 0.75  # of the free memory is for models if the models file sets no bound
PROMPT_PART = 16  # the prompts that a model keeps take one part in so many of that
PROGRAM_BYTES = 200_000_000  # of one model's compiled programs and threads


class ServeCommand(ModelCommand):
    """The command, with an option for every setting."""

    @cached_property
    def settings(self) -> list[click.Option]:
        """The options for the server's `Settings` and for its `Bounds`, the limits and timeouts."""
        return [*setting_options(Settings), *setting_options(Bounds)]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of the settings, then the options that load a model."""
        return [*self.settings, *super().get_params(ctx)]


API_KEY_FILE = click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Read API keys from this file, one per line; the variable {KEYS_VARIABLE} may hold more.",
)


@click.command("serve", cls=ServeCommand)
@click.argument("name", metavar="[MODEL]", required=False)
@API_KEY_FILE
@click.option(
    "--hosts",
    "joins_hosts",
    is_flag=True,
    help=f"Run the model together with other processes, all started with the same options and with "
    f"{hosts.ADDRESS} (name:port of process 0), {hosts.COUNT} and {hosts.INDEX}; process 0 serves.",
)
@click.option(
    "--models-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Serve the models of this TOML file, each loaded when a request names it "
    "(docs/models.md); options of a model then hold for all of them.",
)
def command(
    name: str | None,
    api_key_file: Path | None,
    joins_hosts: bool,
    models_file: Path | None,
    loading: Mapping[str, Any],
    **options: Any,
) -> None:
    """Serve MODEL over HTTP until the program is stopped; --model names it as well.

    Several models: --models-file. Several processes that run the model together: --hosts. API keys:
    --api-key-file.

    The server listens at once and loads the model in the background. It logs "ready: open
    http://..." when the model has made a token; until then /ready says what is being loaded or
    compiled. SIGTERM or Ctrl-C lets running requests finish; a second signal ends the program now.
    """
    loading = with_model(name, loading)
    settings = settings_from(options, api_key_file)
    log.set_up(as_json=settings.log_json)
    open_files.allow(settings.connections + RESERVE)
    warn_if_open(settings)
    several = None
    if models_file is not None:
        check_together(loading, settings, joins_hosts=joins_hosts)
        several = read_models_file(models_file)
    dialects = open_dialects(settings)
    if joins_hosts:
        group = hosts.join(platform=loading.get("platform"))
        loading = {**loading, "hosts": group}
        if not group.leads:
            follow(group, loading)
    sys.exit(run(settings, loading, dialects, several))


def with_model(name: str | None, loading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `LLM.load`, with the model called `name` if that is given.

    `name` is the command's argument; `loading` has the arguments that options set. Raises
    UsageError if an option names another model.
    """
    if name is not None and loading.get("model", name) != name:
        raise click.UsageError(
            f"the model is given twice, as {name!r} and as {loading['model']!r}; give one"
        )
    return dict(loading) if name is None else {**loading, "model": name}


def settings_from(options: Mapping[str, Any], api_key_file: Path | None) -> Settings:
    """Return the server's settings, from the values of their options by name.

    Adds the API keys in the environment variable JAXLLAMA_API_KEYS and in `api_key_file`, if any.
    """
    given = dict(options)
    bounds = Bounds(**{each.name: given.pop(each.name) for each in dataclasses.fields(Bounds)})
    given["api_keys"] = (*given["api_keys"], *keys_from(api_key_file))
    given["dialects"] = tuple(split(given["dialects"]))
    return Settings(bounds=bounds, **given)


def warn_if_open(settings: Settings) -> None:
    """Log a warning if clients on other machines may use the server without an API key."""
    if not (settings.is_loopback or settings.api_keys):
        logger.warning(
            "every client that can reach %s may use this server; require a key with --api-key",
            settings.host,
        )


def check_together(loading: Mapping[str, Any], settings: Settings, *, joins_hosts: bool) -> None:
    """Raise UsageError for options of a single model that are given with --models-file.

    `loading` holds the arguments of `LLM.load`; `joins_hosts`: --hosts is given.
    """
    wrong = [flag for setting, flag in OF_ONE_MODEL.items() if loading.get(setting)]
    wrong += ["--hosts"] if joins_hosts else []
    wrong += ["--embedding-model"] if settings.embedding_model else []
    wrong += ["--kv-events"] if settings.kv_events else []
    if wrong:
        raise click.UsageError(
            f"--models-file cannot be used with {', '.join(wrong)}; a server of several models "
            f"takes what belongs to one model from the file"
        )


def follow(group: hosts.HostGroup, loading: Mapping[str, Any]) -> NoReturn:
    """Load the model and repeat the device calls of host 0; exit when the group of hosts ends.

    Hosts are processes that run one model together; host 0 takes the requests. `loading` holds the
    arguments of `LLM.load`. A stop signal asks host 0 to stop, which ends the group after its
    running requests.
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
    """Yield the comma-separated names in each of the texts, without spaces around them."""
    for text in texts:
        yield from filter(None, map(str.strip, text.split(",")))


def run(
    settings: Settings,
    loading: Mapping[str, Any],
    dialects: Sequence[Dialect],
    several: ModelsFile | None = None,
) -> int:
    """Serve on a new event loop; return the exit code.

    `loading` holds the arguments of `LLM.load`; `dialects` are the HTTP APIs to serve; `several`
    has the models of a models file, None: the server has one model.
    """
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        return runner.run(serve(settings, loading, dialects, several))


async def serve(
    settings: Settings,
    loading: Mapping[str, Any],
    dialects: Sequence[Dialect],
    several: ModelsFile | None = None,
) -> int:
    """Load the model, serve until stopped, and return the exit code.

    `loading` holds the arguments of `LLM.load`; `dialects` are the HTTP APIs to serve; `several`
    has the models of a models file, None: the server has one model. Exits the process at once if a
    thread still loads or hangs in the device after the shutdown.
    """
    publisher = open_publisher(settings)
    try:
        if several is None:
            service = service_of(settings, loading, publisher=publisher)
            models = ServedModels.single(service)
        else:
            models = several_models(settings, loading, several)
        code, ended = await Server(models, settings, dialects).run()
    finally:
        if publisher is not None:
            publisher.close()
    if "hosts" in loading:
        loading["hosts"].end()
    if not ended:  # a thread still loads, or hangs in the device: it cannot be joined
        logging.shutdown()
        os._exit(code)
    return code


def service_of(
    settings: Settings,
    loading: Mapping[str, Any],
    entry: ModelEntry | None = None,
    *,
    publisher: BlockPublisher | None = None,
) -> GenerationService:
    """Return a service that loads a model when it is started.

    `loading` holds the arguments of `LLM.load`. `entry` is the model's entry in a models file, with
    its names; None: the names follow from the model's files. `publisher` publishes events about the
    model's KV-cache blocks; None: they are not published.
    """
    startup = Startup(logger.info, keeps_programs=loading.get("compile_cache", True))

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
        if entry is None:
            name = model_name(loading.get("model"))
            others = other_names(loading.get("model"), llm.path, llm.config.name)
        else:
            name, others = entry.name, frozenset(entry.aliases)
        return Model(
            name,
            llm.engine,
            llm.intake,
            others - {name},
            encoder=encoder,
            read_adapter=partial(read_adapter, model=llm.config, engine=llm.engine_config),
        )

    return GenerationService(
        open_model, settings.bounds, log_prompts=settings.log_prompts, startup=startup
    )


def several_models(
    settings: Settings, loading: Mapping[str, Any], file: ModelsFile
) -> ServedModels:
    """Return the models of a models file as one object, none of them loaded yet.

    `loading` has the default arguments of `LLM.load` for all models. A model's own settings in the
    file take precedence. Raises ConfigError if a model cannot be found, or if the file sets no
    `memory` and the free memory is not known.
    """
    memory = file.memory or free_part()
    shared = {"prompt_cache_mib": memory / PROMPT_PART / MIB, **loading}
    plans = []
    for entry in file.models:
        settled = shared | entry.loading
        for source in filter(None, (settled["model"], settled.get("draft_model"))):
            check_source(entry.name, source)
        plans.append(
            ModelPlan(
                entry.name,
                partial(service_of, settings, settled, entry),
                partial(measure, settled),
                frozenset(entry.aliases),
                tuple(entry.adapters),
                file.keep_alive[entry.name],
                entry.preload,
            )
        )
    rules = ModelRules(memory, file.load_seconds, file.default, give_memory_back)
    logger.info("%d models may take %.1f GB together", len(plans), memory / 1e9)
    return ServedModels(plans, rules)


def free_part() -> int:
    """Return the bytes that all models may take together if the operator sets no bound.

    Raises ConfigError if the free memory is not known.
    """
    free = free_memory() if jax.default_backend() == "cpu" else 0
    if not free:
        raise ConfigError(
            "the free memory of this device is not known; set memory in the models file, for "
            'example memory = "16GB"'
        )
    return int(free * PART_OF_FREE)


def check_source(name: str, model: str) -> None:
    """Raise ConfigError if `model`, the path, name or address of a model, is not found.

    `name` is the name of the model's entry in the models file, for the message.
    """
    try:
        find_source(model)
    except JaxLlamaError as error:
        raise ConfigError(f"model {name!r} of the models file: {error}") from error


def measure(loading: Mapping[str, Any], progress: Progress) -> ModelNeeds:
    """Return the estimated memory and the context length of a model.

    Downloads the model if needed; `progress` is called during the download. `loading` holds the
    arguments of `LLM.load`; `model` and `prompt_cache_mib` are required.
    """
    path = resolve(loading["model"], progress=progress)
    with (
        open_checkpoint(path) as checkpoint,
        open_draft(loading.get("draft_model"), progress) as draft,
    ):
        engine = engine_for(checkpoint, loading, draft)
        memory = describe_memory(checkpoint, engine, draft)["total"]
    prompts = int(loading["prompt_cache_mib"] * MIB)
    return ModelNeeds(memory + prompts + PROGRAM_BYTES, engine.context)


def give_memory_back() -> None:
    """Free the memory of a model that was unloaded, and return it to the system."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    heap.give_back()


def open_publisher(settings: Settings) -> BlockPublisher | None:
    """Open the ZeroMQ socket for events about KV-cache blocks; return None if no address is set."""
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
    """Return the name that responses give the model.

    That is the name of the file or folder if `model` is a path, else `model` itself; for None, the
    name of the default model.
    """
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
    """Yield the API keys in the variable JAXLLAMA_API_KEYS, then those in the file.

    Unlike the command line, both can be hidden from other users of the machine. Raises ConfigError
    if the variable is set, or the file given, but has no key in it.
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
