"""Options that several commands share: how to load a model, and all knobs.

Used by the commands that load a model. The knobs come from the table of limits and from the
installed samplers: this file knows none of them by name.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from jaxllama.cli.placeholders import text_or_file
from jaxllama.config import CACHE_DTYPES, DTYPES, SAMPLING_DEFAULTS
from jaxllama.devices import PLATFORMS
from jaxllama.engine.choosing.knobs import MAX_INT, catalogue, check_knob
from jaxllama.errors import InvalidParameter
from jaxllama.kernels import AUTO, BODIES
from jaxllama.limits import LIMITS, Limit, check, unknown_field, unknown_preset
from jaxllama.registry import PRESETS, SAMPLERS, load_plugins
from jaxllama.sampling import KnobSpec, Preset, Sampler

ANY_VOCABULARY = MAX_INT + 1  # token ids are checked against the model's vocabulary after loading
SHORT = {"max_tokens": ["-n"]}
LONG_TEXTS = ("json_schema", "grammar")  # knobs whose text may be in a file: @FILE
LOAD, CORE, KNOB = "load_", "core_", "knob_"  # prefixes of the parameters of each kind of option
SECTIONS = {"": "Options", LOAD: "Model", CORE: "Generation", KNOB: "Samplers"}
HUGE = 10**9
TRUTH = {"true": True, "false": False}


class ModelCommand(click.Command):
    """A command that loads a model; its function gets `loading`, the arguments of LLM.load."""

    def __init__(
        self, *args: Any, slots: int | None = None, leave_out: tuple[str, ...] = (), **attrs: Any
    ) -> None:
        super().__init__(*args, **attrs)
        kept = [each for each in loading_options(slots) if each.name not in leave_out]
        self.params += kept

    def invoke(self, ctx: click.Context) -> Any:
        """Move the loading options into the mapping `loading`, then run the command."""
        ctx.params["loading"] = loading = gather(ctx.params, LOAD)
        if "lora" in loading:
            loading["lora"] = adapters_by_name(loading["lora"])
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options for --help in sections: own, model, generation, samplers."""
        params = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        for prefix, title in SECTIONS.items():
            records = [each.get_help_record(ctx) for each in params if section(each) == prefix]
            if records:
                with formatter.section(title):
                    formatter.write_dl([each for each in records if each is not None])


class GenerationCommand(ModelCommand):
    """A command that generates; its function also gets `knobs`, the knobs that were given."""

    @cached_property
    def specs(self) -> dict[str, KnobSpec]:
        """The knobs (request parameters) of all installed samplers, by name."""
        return catalogue(load_plugins(SAMPLERS, Sampler).loaded)

    @cached_property
    def presets(self) -> dict[str, type[Preset]]:
        """All installed presets, named sets of request parameters, by name."""
        return load_plugins(PRESETS, Preset).loaded

    @cached_property
    def knob_options(self) -> list[click.Option]:
        """An option for every core field of a request and for every knob (setting) of a sampler."""
        taken = {"--help", *(name for each in self.params for name in each.opts)}
        core = [limit_option(name, limit, taken) for name, limit in LIMITS.items()]
        return core + [knob_option(name, spec, taken) for name, spec in self.specs.items()]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and the options of the knobs."""
        return [*super().get_params(ctx), *self.knob_options]

    def invoke(self, ctx: click.Context) -> Any:
        """Move the knobs (request parameters) into the mapping `knobs`, then run the command.

        Raises InvalidParameter for a wrong knob before a model is loaded.
        """
        knobs = gather(ctx.params, CORE) | gather(ctx.params, KNOB)
        adapters = adapters_by_name(ctx.params.get(f"{LOAD}lora") or ())
        if len(adapters) == 1:
            knobs = {"lora": next(iter(adapters)), **knobs}
        ctx.params["knobs"] = knobs
        self.check(knobs)
        if "negative_prompt" in knobs:
            need_slots(ctx, 2)
        return super().invoke(ctx)

    def check(self, knobs: Mapping[str, object]) -> None:
        """Raise InvalidParameter for an unknown request parameter or preset, or a bad value.

        `knobs` are the values of the request parameters, by name.
        """
        check_knobs(knobs, self.specs)
        preset = knobs.get("preset")
        if preset is not None and preset not in self.presets:
            raise unknown_preset(str(preset), self.presets)


def prompt_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator for a command that takes its prompt as an argument or with -p.

    The command gets `prompt`, None if it is not given; `text` is the help of -p.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.argument("words", metavar="[TEXT]", required=False)
        @click.option("-p", "--prompt", help=text)
        @functools.wraps(command)
        def run(*, words: str | None, prompt: str | None, **given: Any) -> None:
            if words is not None and prompt is not None:
                raise click.UsageError("The prompt is given twice: as an argument and with -p.")
            command(prompt=prompt if words is None else words, **given)

        return run

    return decorate


def need_slots(ctx: click.Context, count: int) -> None:
    """Increase the value of the option --slots to at least `count`, unless the user gave it."""
    given, name = ctx.params.get("load_slots"), "load_slots"
    if given is not None and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
        ctx.params[name] = max(given, count)


def read_knob(name: str, text: str, specs: Mapping[str, KnobSpec]) -> object:
    """Convert the text of a request parameter to a value of its type, without checking bounds.

    Text that cannot be converted is returned unchanged. `specs` are the parameters of the installed
    samplers, by name. Raises InvalidParameter for an unknown `name`.
    """
    if name in LIMITS:
        limit = LIMITS[name]
        if limit.kind is str:
            return (text,) if limit.many else text
        return TextType(name, limit.kind, many=limit.many).convert(text, None, None)
    if name not in specs:
        raise unknown_field(name, [*LIMITS, *specs])
    spec = specs[name]
    if spec.phrases:
        return (text,)
    if spec.text is not None:
        return text
    kind = TextType(name, spec.kind, many=spec.width is not None, by_token=spec.by_token)
    return kind.convert(text, None, None)


def adapters_by_name(given: Sequence[str]) -> dict[str, str]:
    """Parse texts NAME=PATH to a mapping; without NAME, an adapter is named after its folder.

    `given` are the texts. Raises InvalidParameter if two adapters have one name.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).resolve().name, text
        if name in found:
            raise InvalidParameter(f"two adapters are named {name!r}; expected one of each", "lora")
        found[name] = path
    return found


def check_knobs(knobs: Mapping[str, object], specs: Mapping[str, KnobSpec]) -> None:
    """Raise InvalidParameter for an unknown request parameter or a value outside its bounds.

    `knobs` are the values by name, `specs` the parameters of the samplers.
    """
    for name, value in knobs.items():
        if name in LIMITS:
            check(name, value)
        elif name in specs:
            check_knob(name, value, specs[name], ANY_VOCABULARY)
        else:
            raise unknown_field(name, [*LIMITS, *specs])


def gather(params: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Remove the parameters whose names have this prefix; return them without the prefix.

    Parameters that the user did not set (None or an empty tuple) are not in the result.
    """
    names = [name for name in params if name.startswith(prefix)]
    values = {name.removeprefix(prefix): params.pop(name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value != ()}


def section(option: click.Option) -> str:
    """Return the prefix of an option's parameter name, such as `load_`; "" if it has none.

    The options with one prefix form a section of --help.
    """
    name = option.name or ""
    return next((each for each in (LOAD, CORE, KNOB) if name.startswith(each)), "")


def loading_options(slots: int | None) -> list[click.Option]:
    """Return the options for the arguments of LLM.load.

    `slots` is the default of --slots; None: the default of LLM.load.
    """
    many = "16" if slots is None else str(slots)

    def option(*names: str, **attrs: Any) -> click.Option:
        return click.Option(list(names), **attrs)

    return [
        option(
            *("-m", "--model", "load_model"),
            help="Use this model: a name, file, folder, hf:owner/name or http address "
            "[default: smollm2-135m].",
        ),
        option(
            *("--platform", "load_platform"),
            type=click.Choice(tuple(PLATFORMS)),
            help="Run on this kind of device [default: the one that JAX finds, or JAX_PLATFORMS].",
        ),
        option(
            *("--slots", "load_slots"),
            type=int,
            metavar="N",
            default=slots,
            help=f"Decode up to this many requests together [default: {many}].",
        ),
        option(
            *("--context", "load_context"),
            type=int,
            metavar="N",
            help="Make room for this many tokens of prompt and answer together [default: the "
            "model's limit, at most 4096].",
        ),
        option(
            *("--dtype", "load_dtype"),
            type=click.Choice(DTYPES),
            help="Keep unpacked weights in this type [default: the file's own with --kernels cpu, "
            "else float32 on CPU and bfloat16 elsewhere].",
        ),
        option(
            *("--cache-dtype", "load_cache_dtype"),
            type=click.Choice(CACHE_DTYPES),
            help="Keep keys and values of the KV cache in this type; int8 takes half the memory of "
            "float16 [default: float16 on CPU, else bfloat16].",
        ),
        option(
            *("--mesh", "load_mesh"),
            metavar="data=D,model=M,stage=S",
            help="Spread slots over D groups of M devices, and weights over the M devices; with S, "
            "such groups for each of S stages of the layers [default: one device].",
        ),
        option(
            *("--stage-layers", "load_stage_layers"),
            metavar="N,N,…",
            help="With --mesh stage=S, give the stages so many layers, or layers by the memory of "
            "their devices (16GB,24GB) [default: by the memory that the devices report, else "
            "equal parts].",
        ),
        option(
            *("--kernels", "load_kernels"),
            type=click.Choice((AUTO, *BODIES)),
            help="Compute with the C++ library (cpu), Pallas kernels (gpu, tpu) or plain JAX (xla) "
            "[default: auto, the fastest that can run here].",
        ),
        option(
            *("--threads", "load_threads"),
            type=click.IntRange(min=1),
            metavar="N",
            help="Run the C++ library on this many threads [default: all processors].",
        ),
        option(
            *("--packed", "load_packed"),
            is_flag=True,
            default=None,
            help="With --kernels xla, keep 4- to 8-bit weights packed in memory and unpack each "
            "matrix at every use: less memory, more time per token.",
        ),
        option(
            *("--prefill-chunk", "load_prefill_chunk"),
            type=int,
            metavar="N",
            help="Compute at most this many prompt tokens between two decode calls, rounded up to "
            "whole prompt tiles of the kernels. More finish a prompt sooner; fewer delay other "
            f"answers less [default: {per_body('prefill_chunk')}].",
        ),
        option(
            *("--pack-prompts/--no-pack-prompts", "load_pack_prompts"),
            default=None,
            help="Compute short prompts of several requests in one call of the model; no result "
            "changes. Faster where few tokens take as long as many. Not with --kernels xla, nor "
            "with stages [default: on GPUs, TPUs and CPUs with AMX].",
        ),
        option(
            *("--steps-per-sync", "load_steps_per_sync"),
            type=int,
            metavar="N",
            help="Decode at most this many tokens of each answer before the host reads them "
            f"[default: {per_body('steps_per_sync')}].",
        ),
        option(
            *("--sync-ms", "load_sync_ms"),
            type=float,
            metavar="MS",
            help="Decode only as many tokens at a time as fit into this time; a fifth of it while "
            f"several clients use the server [default: {per_body('sync_ms')}].",
        ),
        option(
            *("--draft-tokens", "load_draft_tokens"),
            type=int,
            metavar="N",
            help="Draft up to so many tokens of each answer in a step (speculation): tokens that "
            "followed the same words earlier in the text. One pass of the model checks them, and "
            "no token changes; 4 is usual. C++ kernels on one device only [default: 0, none; 4 "
            "with --draft-model].",
        ),
        option(
            *("--draft-model", "load_draft_model"),
            metavar="MODEL",
            help="Draft these tokens with a smaller model of the same vocabulary, named as in "
            "--model. It has a KV cache with as many slots [default: none].",
        ),
        option(
            *("--tokenizer", "load_tokenizer"),
            metavar="PATH",
            help="Use this tokenizer file, or the one in this folder: tokenizer.json, "
            "tokenizer.model, tokenizer.bin or GGUF [default: the model's own].",
        ),
        option(
            *("--rope-scale", "load_rope_scale"),
            type=float,
            metavar="FACTOR",
            help="Divide positions by this, for texts so many times longer than the model was "
            "trained for, in place of its own rule [default: the model's rule].",
        ),
        option(
            *("--rope-alpha", "load_rope_alpha"),
            type=float,
            metavar="FACTOR",
            help="Stretch the base of the rotary embedding by the NTK rule, for longer texts "
            "[default: 1].",
        ),
        option(
            *("--rope-theta", "load_rope_theta"),
            type=float,
            metavar="BASE",
            help="Replace the base of the rotary embedding [default: the model's].",
        ),
        option(
            *("--lora", "load_lora"),
            multiple=True,
            metavar="[NAME=]PATH",
            help="Load the LoRA adapter of a PEFT folder; requests name it. May be given again. A "
            "command that generates applies it if it is the only one.",
        ),
        option(
            *("--lora-slots", "load_lora_slots"),
            type=click.IntRange(min=0),
            metavar="N",
            help="Make room for so many adapters [default: those of --lora].",
        ),
        option(
            *("--lora-rank", "load_lora_rank"),
            type=click.IntRange(min=1),
            metavar="R",
            help="Make room for adapters up to this rank, rounded up to a multiple of 16 [default: "
            "the highest of --lora, at least 16].",
        ),
        option(
            *("--format", "load_prompt_format"),
            metavar="NAME",
            help="Use this prompt format for conversations, or a .jinja file with a chat template "
            "[default: the one that suits the model].",
        ),
        option(
            *("--sampling-defaults", "load_sampling_defaults"),
            type=click.Choice(SAMPLING_DEFAULTS),
            help="Where a request sets nothing: auto, what the model's maker recommends, or none, "
            "the default of each sampler [default: auto].",
        ),
        option(
            *("--no-compile-cache", "load_compile_cache"),
            is_flag=True,
            flag_value=False,
            default=None,
            help="Compile every program again, and keep none on disk for the next start.",
        ),
        option(
            *("--prompt-cache-mib", "load_prompt_cache_mib"),
            type=click.FloatRange(min=0),
            metavar="MIB",
            help="Keep prompts in so much memory after another request took their slot, so that "
            "they need not be computed again; 0: keep none [default: an eighth of the free "
            "memory].",
        ),
        option(
            *("--prompt-cache-dir", "load_prompt_cache_dir"),
            metavar="FOLDER",
            help="Keep these prompts in this folder at the end, and read them at the next start.",
        ),
        option(
            *("--strict-compile", "load_strict_compile"),
            is_flag=True,
            default=None,
            help="Compile everything before the first request; any compilation after that is an "
            "error.",
        ),
    ]


def per_body(setting: str) -> str:
    """Return the default of an engine setting as text, for --help.

    If the default depends on the kernels, the text has the default of each kind of kernels.
    """
    defaults = {name: f"{getattr(body, setting):g}" for name, body in BODIES.items()}
    if len(set(defaults.values())) == 1:
        return next(iter(defaults.values()))
    return ", ".join(f"{value} with --kernels {name}" for name, value in defaults.items())


class TextType(click.ParamType):  # type: ignore[type-arg]
    """The type of an option whose text becomes a number or truth value where possible.

    The tables of knobs check the value later.
    """

    def __init__(
        self,
        knob: str,
        kind: type,
        *,
        many: bool = False,
        by_token: bool = False,
        words: Sequence[str] = (),
    ) -> None:
        self.knob, self.kind, self.many, self.by_token = knob, kind, many, by_token
        one = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "true|false"}.get(kind, "VALUE")
        one = "|".join((*words, one))
        self.name = f"TOKEN={one},..." if by_token else f"{one},..." if many else one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert `value`, if it is text, to a number, a truth value, or a list or dict of them.

        Text that cannot be converted is kept as text; a later check refuses it.
        """
        del param, ctx
        if not isinstance(value, str):
            return value
        if self.by_token:
            return self._mapping(value)
        if self.many:
            return [self._one(item) for item in value.split(",")]
        return self._one(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the placeholder for --help without changing its case."""
        del param, ctx
        return self.name

    def _one(self, text: str) -> Any:
        if self.kind is bool:
            return TRUTH.get(text.lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text

    def _mapping(self, value: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for item in value.split(","):
            token, equals, number = (part.strip() for part in item.partition("="))
            if not equals:
                raise InvalidParameter(
                    f"{self.knob} holds {item!r}; expected TOKEN=NUMBER, separated by commas",
                    self.knob,
                )
            if token in found:
                raise InvalidParameter(f"{self.knob} names token {token} twice", self.knob)
            found[token] = self._one(number)
        return found


class LongText(click.ParamType):  # type: ignore[type-arg]
    """The type of an option with a long text, or with @ and the file that has it."""

    def __init__(self, knob: str) -> None:
        self.knob = knob
        self.name = "TEXT|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text of the option; if it is @FILE, the text in that file."""
        del param, ctx
        return text_or_file(value, f"--{self.knob.replace('_', '-')}")

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the placeholder for --help."""
        del param, ctx
        return self.name


def limit_option(name: str, limit: Limit, taken: set[str]) -> click.Option:
    """Return the option for the request field `name`; `limit` has its type, bounds and default.

    `taken` are option names already in use.
    """
    shown = limit.default if limit.default not in (None, (), False) else None
    words = help_text(limit.help, limit.low, limit.high, shown)
    names = [*SHORT.get(name, []), option_name(name, taken), CORE + name]
    if limit.kind is bool:
        return click.Option(names, is_flag=True, default=None, help=words)
    if name in LONG_TEXTS:
        return click.Option(names, type=LongText(name), help=f"{words} @FILE reads it from a file.")
    if limit.many and limit.kind is str:
        return click.Option(
            names, multiple=True, metavar="TEXT", help=f"{words} May be given again."
        )
    kind = TextType(name, limit.kind, many=limit.many, words=limit.words)
    return click.Option(names, type=kind, help=words)


def knob_option(name: str, spec: KnobSpec, taken: set[str]) -> click.Option:
    """Return the option for the knob `name` of a sampler; `spec` has its type, bounds and default.

    `taken` are option names already in use.
    """
    many = spec.width is not None
    words = help_text(spec.help, spec.low, spec.high, None if many else spec.off)
    if spec.phrases:
        names = [option_name(name, taken), KNOB + name]
        again = f"{words} May be given again."
        return click.Option(names, multiple=True, metavar="TEXT", help=again)
    if spec.text is not None:
        return click.Option([option_name(name, taken), KNOB + name], metavar="TEXT", help=words)
    kind = TextType(name, spec.kind, many=many, by_token=spec.by_token)
    return click.Option([option_name(name, taken), KNOB + name], type=kind, help=words)


def option_name(name: str, taken: set[str]) -> str:
    """Return --top-p for top_p, or --knob-top-p if the command already has an option --top-p.

    `taken` are the names of the command's options.
    """
    option = f"--{name.replace('_', '-')}"
    return f"--knob{option[1:]}" if option in taken else option


def help_text(words: str, low: float | None, high: float | None, default: object) -> str:
    """Return the help text of a request parameter: its purpose (`words`), bounds and default.

    `low` and `high` are the bounds, None: no bound; `default` None: no default to show.
    """
    sentence = f"{words[:1].upper()}{words[1:]}".rstrip(".")
    facts = [bounds(low, high)] if low is not None or high is not None else []
    if default is not None:
        facts.append(f"default: {default}")
    return f"{sentence} [{'; '.join(facts)}]." if facts else f"{sentence}."


def bounds(low: float | None, high: float | None) -> str:
    """Return in words which numbers a request parameter accepts, such as "0 to 1".

    `low` and `high` are the bounds, None: no bound; at least one is a number. An upper bound of a
    billion or more is left out.
    """
    if high is None or high >= HUGE:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"{low} to {high}"
