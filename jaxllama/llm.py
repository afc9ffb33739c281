"""LLM: a model ready to generate. The composition root - the whole system, in order.

Opens a checkpoint, makes the mesh, places the weights, compiles the programs, builds the engine,
and offers the Python API. The CLI and the server use this module; lower modules never import it.

    with LLM.load() as llm:
        print(llm.generate("The capital of France is", max_tokens=8, temperature=0).text)
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, overload

import jax
import numpy as np

from jaxllama import beams, scoring
from jaxllama.completion import Classification, Completion, Hypothesis, Perplexity, Score
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.devices import explained_memory, use_platform
from jaxllama.engine.adapters import LoadedAdapters, check_adapter_name, loaded
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.engine import Engine
from jaxllama.engine.executables import PROGRAMS, Executables
from jaxllama.engine.pipeline import Pipeline
from jaxllama.engine.probes import finish
from jaxllama.engine.programs import Programs
from jaxllama.engine.prompt_files import PromptFiles, prompt_key
from jaxllama.errors import ConfigError, InvalidParameter
from jaxllama.formats import PromptFormat
from jaxllama.hosts import HostGroup
from jaxllama.intake import Intake, Prompt, is_single_prompt
from jaxllama.kernels.cpu import library
from jaxllama.loading import (
    adapter_sizes,
    check_host_settings,
    check_prompt_folder,
    choose_kernels,
    engine_config,
    key_of,
    load_adapters,
    named_or_suiting,
    open_draft,
    other_formats,
    placed_weights,
    prompt_store_for,
    sampling_defaults_of,
    tokenizer_for,
    with_template,
)
from jaxllama.messages import ContextOverflow, Messages, overflow_named
from jaxllama.model import rope
from jaxllama.model.adapters import empty_adapters
from jaxllama.registry import PRESETS, SAMPLERS, load_plugins
from jaxllama.request import FinishReason
from jaxllama.sampling import Preset, Sampler
from jaxllama.startup import Progress
from jaxllama.streams import AnswerStream, OnError, Streams
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.weights import open_checkpoint
from jaxllama.weights.lora import read_adapter
from jaxllama.weights.store import cache_folder, resolve

logger = logging.getLogger(__name__)

OnDone = Callable[[int, Completion], None]

TEMPLATE_FILE = ".jinja"


class LLM:
    """One model with its engine, and the Python API."""

    def __init__(
        self,
        engine: Engine,
        intake: Intake,
        *,
        config: ModelConfig,
        path: Path | None = None,
        hosts: HostGroup | None = None,
    ) -> None:
        self.hosts = hosts
        self.engine = engine
        self.intake = intake
        self.config = config
        self.path = path
        self.streams = Streams(engine)

    @classmethod
    def load(  # noqa: PLR0913 - every setting of the system, once
        cls,
        model: str | Path | None = None,
        *,
        slots: int | None = None,
        context: int | None = None,
        dtype: str | None = None,
        cache_dtype: str | None = None,
        mesh: str | None = None,
        stage_layers: str | None = None,
        kernels: str = "auto",
        threads: int | None = None,
        packed: bool = False,
        prefill_chunk: int | None = None,
        pack_prompts: bool | None = None,
        steps_per_sync: int | None = None,
        draft_tokens: int | None = None,
        draft_model: str | Path | None = None,
        sync_ms: float | None = None,
        platform: str | None = None,
        tokenizer: str | Path | None = None,
        rope_scale: float | None = None,
        rope_alpha: float | None = None,
        rope_theta: float | None = None,
        lora: Mapping[str, str | Path] | None = None,
        lora_slots: int | None = None,
        lora_rank: int | None = None,
        prompt_format: str | None = None,
        sampling_defaults: str = "auto",
        compile_cache: bool = True,
        compile_behind: bool = True,
        strict_compile: bool = False,
        prompt_cache_mib: float | None = None,
        prompt_cache_dir: str | Path | None = None,
        hosts: HostGroup | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Load a model by name, file or folder, downloading it if needed; None is the default.

        slots          requests decoded together (default 16)
        context        tokens a slot holds (default: the model's, at most 4096)
        dtype          float32, bfloat16 or float16 (default: float32 on CPU, else bfloat16)
        cache_dtype    of keys and values: float32, bfloat16, float16 or int8
                       (default: float16 on CPU, else bfloat16)
        mesh           for example "data=2,model=4"; "stage=2" divides the layers over devices, one
                       after the other, which may have different amounts of memory
        stage_layers   layers of each stage, such as "20,12", or the memory of the stages' devices,
                       such as "16GB,24GB" (default: by the memory that the devices report; equal
                       parts if they report none)
        kernels        cpu (the C++ library), gpu or tpu (Pallas), xla (plain JAX) or auto: the
                       fastest that can run here
        platform       cpu, gpu or tpu (default: the one that JAX finds)
        threads        of the C++ library (default: the processors this process may use)
        packed         with kernels "xla": keep 4- to 8-bit weights packed in memory and unpack
                       each matrix at every use; slower, but smaller
        prefill_chunk  most prompt tokens between two decode calls, rounded up to whole prompt tiles
                       (default: 128 with kernels "cpu", 512 with "gpu" and "tpu", else 32)
        pack_prompts   compute short prompts of several requests together (default: yes with kernels
                       "gpu" and "tpu" and on CPUs with AMX, where this takes less time)
        steps_per_sync most decode steps of one call (default 4; 8 with kernels "gpu" and "tpu")
        draft_tokens   most tokens that a step drafts and checks for each answer, which changes no
                       token; 4 is usual, with kernels "cpu" on one device (default: 4 with a
                       draft_model, else 0, none)
        draft_model    a smaller model with the same vocabulary, which drafts these tokens
        sync_ms        milliseconds that a decode call should take at most; a fifth of them while
                       several clients share the engine (default 50)
        tokenizer      a tokenizer file, or a folder with one, instead of the model's own
        rope_scale     divide positions by this, for texts so many times longer than trained for; in
                       place of the model's own rule
        rope_alpha     stretch the base of the rotary embedding by the NTK rule
        rope_theta     replace the base of the rotary embedding
        lora           LoRA adapters to load: folders by the names that requests give them
        lora_slots     adapters that can be loaded together (default: as many as `lora` has)
        lora_rank      the highest rank of an adapter, rounded up to a multiple of 16 (default: the
                       highest of `lora`, at least 16)
        prompt_format  name of a prompt format, or a .jinja file with a chat template (default: the
                       format that suits the model)
        sampling_defaults  values of the knobs that a request does not set: auto (recommended by
                       the model's maker) or none (each sampler's own default)
        compile_cache  keep compiled programs on disk for the next start
        compile_behind compile the programs that a first request does not need on a thread, after
                       this call; otherwise each is compiled when it is needed
        strict_compile compile everything before this call returns; any compilation of this process
                       after it raises CompiledLate, until the model is closed
        prompt_cache_mib  host memory for prompts whose slot another request has taken, so that
                       they need not be computed again; 0: none (default: an eighth of the free
                       memory)
        prompt_cache_dir  keep these prompts in this folder when the model is closed, and read them
                       when it is loaded again
        hosts          the group of `jaxllama.hosts.join()`, if several processes run the model; all
                       of them call `load` with the same settings, and those that do not lead it
                       then call `follow`
        progress       called with (what, done, total) while loading
        """
        if hosts is not None:
            check_host_settings(prompt_cache_mib, prompt_cache_dir, draft_model)
            prompt_cache_mib = 0
        if platform is not None:
            use_platform(platform)
        path = resolve(model, progress=progress)
        with open_checkpoint(path) as checkpoint, open_draft(draft_model, progress) as draft:
            config = rope.overridden(checkpoint.config, rope_scale, rope_alpha, rope_theta)
            if threads is not None:
                library.set_threads(threads)
            engine = engine_config(
                config,
                choose_kernels(kernels, mesh, config),
                slots=slots,
                context=context,
                dtype=dtype,
                cache_dtype=cache_dtype,
                mesh=mesh,
                stage_layers=stage_layers,
                packed=packed,
                prefill_chunk=prefill_chunk,
                pack_prompts=pack_prompts,
                steps_per_sync=steps_per_sync,
                draft_tokens=draft_tokens,
                draft=draft,
                sync_ms=sync_ms,
                **adapter_sizes(lora or {}, lora_slots, lora_rank),
            )
            config = rope.fitted(config, engine.context)
            samplers = load_plugins(SAMPLERS, Sampler)
            chosen_tokenizer = tokenizer_for(checkpoint, tokenizer, draft)
            if prompt_format is not None and prompt_format.endswith(TEMPLATE_FILE):
                chosen_tokenizer.text = with_template(chosen_tokenizer.text, Path(prompt_format))
                prompt_format = None
            bank = SamplerBank(
                samplers.loaded,
                vocab=config.vocab_size,
                candidates=engine.candidates,
                top_logprobs=engine.max_top_logprobs,
                texts=chosen_tokenizer.texts,
                body=engine.kernels,
                trial=False,
            )
            defaults = sampling_defaults_of(sampling_defaults, path, checkpoint, bank.knobs)
            chosen = named_or_suiting(prompt_format, chosen_tokenizer.text)
            with explained_memory("the weights"):
                meshes, params = placed_weights(checkpoint, engine, progress, draft)
        key = key_of(config, engine, params, samplers.loaded, chosen_tokenizer.digest)
        executables = kept_programs(key, hosts) if compile_cache else None
        blocks = empty_adapters(config, engine, meshes[0]) if engine.adapter_slots else None
        given = (config, engine, bank, params)
        programs = (
            Pipeline(*given, meshes, executables=executables)
            if engine.stages > 1
            else Programs(*given, meshes[0], executables=executables, adapters=blocks)
        )
        adapters = None if blocks is None else LoadedAdapters(programs, blocks)
        if strict_compile or hosts is not None:  # hosts must run the same programs
            programs.warm_up(progress)
        else:
            programs.prepare(progress, behind=compile_behind)
        presets = load_plugins(PRESETS, Preset).loaded
        others = other_formats(chosen, chosen_tokenizer.text)
        intake = Intake(
            chosen_tokenizer,
            chosen,
            bank,
            engine,
            presets,
            other_formats=others,
            defaults=defaults,
            adapters=adapters,
        )
        loras = load_adapters(adapters, lora or {}, config, engine, only_now=hosts is not None)
        store = prompt_store_for(config, engine, prompt_cache_mib)
        files = None
        if prompt_cache_dir is not None:
            check_prompt_folder(prompt_cache_dir, store)
            whole = prompt_key(key, params)
            files = PromptFiles(Path(prompt_cache_dir), whole, programs.columns, config.vocab_size)
        with explained_memory("the KV cache beside the weights"):
            runs = Engine(
                programs,
                adapters=adapters,
                prompt_store=store,
                prompt_files=files,
                tell_hosts=None if hosts is None else hosts.tell,
            )
        if hosts is not None:
            hosts.compare(key + loras)
        if strict_compile:
            programs.seal()
        return cls(runs, intake, config=config, path=path, hosts=hosts)

    def follow(self) -> None:
        """Run the device calls that host 0 sends, until host 0 ends the group of hosts.

        For the other hosts, the processes that run the model together with host 0.
        """
        if self.hosts is None or self.hosts.leads:
            raise ConfigError("follow is for hosts of a group that do not lead it")
        self.engine.repeat_calls(self.hosts.next_call)

    # Parts.

    @property
    def engine_config(self) -> EngineConfig:
        """The sizes and types of the engine."""
        return self.engine.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.intake.tokenizer

    @property
    def prompt_format(self) -> PromptFormat:
        """The format that turns conversations into prompts."""
        return self.intake.format

    @property
    def sampling_defaults(self) -> dict[str, object]:
        """The values of knobs that a request does not set, by name."""
        return dict(self.intake.defaults)

    @property
    def bank(self) -> SamplerBank:
        """The installed samplers and their knobs."""
        return self.engine.bank

    # Adapters.

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters."""
        return () if self.engine.adapters is None else self.engine.adapters.names

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Load a LoRA adapter from a PEFT folder; one with the same name is replaced.

        Requests name it in the knob `lora`. Needs a free place: see `lora_slots` of `load`.
        """
        adapters = loaded(self.engine.adapters)
        check_adapter_name(name)
        adapters.load(name, read_adapter(Path(path), self.config, self.engine_config))

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter; requests that already use it keep it until they end."""
        loaded(self.engine.adapters).unload(name)

    # Generation.

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        n: int | None = None,
        best_of: int | None = None,
        on_done: OnDone | None = None,
        **knobs: object,
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Continue a prompt (text or token ids), or each of a list; a list gives a list.

        With `n` each prompt gives a list of n answers, which share the prefill; each has a seed of
        its own, which follows from the request's seed. `best_of` is the number of answers to
        generate; the n (default 1) with the highest mean log-probability are returned, best first.
        If neither is given, `on_done` is called with (index, completion) as soon as a prompt of a
        list is answered.

        Knobs: max_tokens, temperature, seed, stop, stop_ids, ignore_eos, logprobs,
        temperature_last, guidance_scale and negative_prompt, the constraints (json_schema,
        json_object, regex, choices, grammar) and every knob of every installed sampler.
        """
        if n is not None or best_of is not None:
            prompts = (
                [cast(Prompt, prompt)]
                if is_single_prompt(prompt)
                else cast(Sequence[Prompt], prompt)
            )
            asked = (partial(self.intake.completion, one, knobs) for one in prompts)
            answered = list(self.streams.several(asked, n, best_of))
            return answered[0] if is_single_prompt(prompt) else answered
        if is_single_prompt(prompt):
            return self.streams.whole(self.intake.completion(cast(Prompt, prompt), knobs))
        many = [(one, knobs) for one in cast(Sequence[Prompt], prompt)]
        answers: list[Completion | None] = [None] * len(many)
        for index, completion in self.generate_each(many):
            answers[index] = completion
            if on_done is not None:
                on_done(index, completion)
        return cast(list[Completion], answers)

    def generate_each(
        self,
        items: Iterable[tuple[Prompt, Mapping[str, object]]],
        *,
        on_error: OnError | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Continue each (prompt, knobs); yield (index, completion) as the requests finish.

        `on_error` is called with (index, error) when a request fails, and the others continue;
        None: the error is raised.
        """
        asked = (partial(self.intake.completion, *item) for item in items)
        return self.streams.each(asked, on_error)

    def stream(self, prompt: Prompt, **knobs: object) -> AnswerStream:
        """Continue a prompt (text or token ids); return a stream of the answer's tokens.

        The knobs are those of `generate`.
        """
        return self.streams.open(self.intake.completion(prompt, knobs))

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        n: None = None,
        best_of: None = None,
        context_overflow: str = ContextOverflow.ERROR,
        **knobs: object,
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        n: int | None = None,
        best_of: int | None = None,
        context_overflow: str = ContextOverflow.ERROR,
        **knobs: object,
    ) -> Completion | list[Completion]: ...

    def chat(
        self,
        messages: Messages,
        *,
        n: int | None = None,
        best_of: int | None = None,
        context_overflow: str = ContextOverflow.ERROR,
        **knobs: object,
    ) -> Completion | list[Completion]:
        """Answer a conversation of {role, content} messages.

        The knobs are those of `generate`. With `n` or `best_of` the result is a list of answers, as
        in `generate`. `context_overflow` is for a conversation that leaves no room for the answer:
        "error" refuses it; "drop_oldest" leaves out its oldest turns, but not the system message;
        "keep_fixed" keeps its first turn, too. `usage.dropped` counts the messages left out.
        """
        overflow = overflow_named(context_overflow)
        if n is not None or best_of is not None:
            asked = partial(self.intake.chat, messages, knobs, overflow=overflow)
            (answers,) = self.streams.several([asked], n, best_of)
            return answers
        return self.streams.whole(self.intake.chat(messages, knobs, overflow=overflow))

    def chat_each(
        self,
        items: Iterable[tuple[Messages, Mapping[str, object]]],
        *,
        on_error: OnError | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Answer each (messages, knobs); yield (index, completion) as the requests finish.

        `on_error` is called with (index, error) when a request fails, and the others continue;
        None: the error is raised.
        """
        return self.streams.each((partial(self.intake.chat, *item) for item in items), on_error)

    def chat_stream(
        self,
        messages: Messages,
        *,
        context_overflow: str = ContextOverflow.ERROR,
        **knobs: object,
    ) -> AnswerStream:
        """Answer a conversation; return a stream of the answer's tokens.

        `context_overflow` is for a conversation that leaves no room for the answer: "error" refuses
        it; "drop_oldest" leaves out its oldest turns, but not the system message; "keep_fixed"
        keeps its first turn, too. The knobs are those of `generate`.
        """
        overflow = overflow_named(context_overflow)
        return self.streams.open(self.intake.chat(messages, knobs, overflow=overflow))

    def beam_search(  # noqa: PLR0913 - the search has as many knobs
        self,
        prompt: Prompt,
        *,
        width: int = 4,
        length_penalty: float = 1.0,
        early_stopping: beams.EarlyStopping = False,
        beam_length: int | None = None,
        max_tokens: int | None = None,
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
    ) -> list[Hypothesis]:
        """Search for the likeliest answers, following `width` prefixes at a time; best first.

        Beam search draws no random numbers and uses no samplers, only the model's probabilities.
        A score is the log-probability over `length ** length_penalty`. Once `width` answers are
        whole, the search ends: with early stopping True, at once; with False, when the best prefix
        would score no better if it ended now; with "never", when it could score no better at any
        length. With `beam_length`, the search is ExLlama's: it looks so many tokens ahead and finds
        one answer. Fastest with at least `width` slots.
        """
        knobs = {"max_tokens": max_tokens, "stop_ids": stop_ids, "ignore_eos": ignore_eos}
        request, _ = self.intake.completion(prompt, knobs)
        rules = beams.rules_of(
            request,
            width=width,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            beam_length=beam_length,
            listed=self.engine_config.max_top_logprobs,
        )

        def expand(prefixes: Sequence[beams.TokenIds]) -> Sequence[beams.Likeliest]:
            prompts = [(*request.prompt, *each) for each in prefixes]
            return self.streams.likeliest(prompts, rules.candidates)

        return [self._hypothesis(found, rules) for found in beams.search(expand, rules)]

    # Tokens, scores and embeddings.

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of a text; `special` recognises the text of special tokens."""
        return self.tokenizer.encode(text, special=special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self.tokenizer.decode(ids)

    def score(self, prompt: Prompt, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Return the log-probability of each continuation; the prompt is computed once."""
        ids = self.intake.ids(prompt)
        tails = scoring.continuations(self.intake, ids, continuations)
        return self._scores([ids] * len(tails), tails)

    def classify(
        self,
        prompt: Prompt,
        question: str | Sequence[str],
        choices: Sequence[str],
        *,
        length_normalize: bool = False,
    ) -> Classification | list[Classification]:
        """Return the probability of each choice after prompt and question.

        A list of questions gives a list of results. The prompt is computed once for all questions,
        and each question once for all choices. The probability is that of the whole choice,
        including a space before it; with `length_normalize` it follows from the mean
        log-probability of the choice's tokens.
        """
        many = [question] if isinstance(question, str) else list(question)
        found = self.classify_each(
            ((prompt, each, choices) for each in many), length_normalize=length_normalize
        )
        return next(found) if isinstance(question, str) else list(found)

    def classify_each(
        self,
        items: Iterable[tuple[Prompt, str, Sequence[str]]],
        *,
        length_normalize: bool = False,
    ) -> Iterator[Classification]:
        """Classify each (prompt, question, choices) in order; fastest if grouped by prompt.

        A result has the probability of each choice. With `length_normalize`, it follows from the
        mean log-probability of a choice's tokens, not from their sum.
        """
        for prompt, group in groupby(items, key=itemgetter(0)):
            ids = self.intake.ids(prompt)
            questions = [(question, choices) for _, question, choices in group]
            prompts, tails = [], []
            for question, choices in questions:
                scoring.check_choices(choices)
                whole = [*ids, *scoring.following(self.intake, question)]
                tails += scoring.continuations(self.intake, whole, choices, "choices")
                prompts += [whole] * len(choices)
            scores = iter(self._scores(prompts, tails))
            for _, choices in questions:
                own = list(islice(scores, len(choices)))
                yield scoring.classified(choices, own, length_normalize=length_normalize)

    def embed(
        self, text: Prompt | Sequence[Prompt], *, pooling: str = "mean"
    ) -> np.ndarray | list[np.ndarray]:
        """Return a unit vector for a text (or token ids); a list of texts gives a list of vectors.

        `pooling` takes the mean of all tokens ("mean") or the last token, which attends to all
        others ("last").
        """
        if pooling not in tuple(scoring.Pooling):
            raise InvalidParameter(f"pooling is {pooling!r}; expected mean or last", "pooling")
        if not is_single_prompt(text):
            return [self._embed(one, pooling) for one in cast(Sequence[Prompt], text)]
        return self._embed(cast(Prompt, text), pooling)

    def perplexity(self, text: str, *, progress: Progress | None = None) -> Perplexity:
        """Return the perplexity of a text, computed in separate windows of the context size.

        `progress` is called with (what, done, total); None: it is not reported.
        """
        ids = self.intake.ids(text, fits=False)
        if len(ids) < 2:  # noqa: PLR2004
            raise InvalidParameter("the text has fewer than 2 tokens; nothing to predict", "text")
        started, total, count = time.perf_counter(), 0.0, 0
        size = self.engine_config.context - 1
        for at in range(0, len(ids), size):
            window = ids[at : at + size]
            if len(window) > 1:
                logprobs, _ = self._peek(window, 1)
                total -= float(logprobs.sum(dtype="float64"))
                count += len(logprobs)
            if progress is not None:
                progress("perplexity", min(at + size, len(ids)), len(ids))
        return Perplexity(math.exp(total / count), count, time.perf_counter() - started)

    # Closing.

    def close(self) -> None:
        """Cancel running requests and free the device memory."""
        self.streams.close()
        self.intake.constraints.close()
        self.engine.close()
        if self.hosts is not None and self.hosts.leads:
            self.hosts.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Helpers.

    def _hypothesis(self, found: beams.BeamAnswer, rules: beams.SearchRules) -> Hypothesis:
        ended = found.tokens[-1] in rules.end_ids
        tokens = found.tokens[:-1] if ended else found.tokens
        return Hypothesis(
            text=self.tokenizer.decode(tokens, start=False),
            tokens=tokens,
            finish_reason=FinishReason.END_TOKEN if ended else FinishReason.LENGTH,
            logprob=found.logprob,
            score=found.score,
        )

    def _embed(self, text: Prompt, pooling: str) -> np.ndarray:
        self.streams.pump_until_free()
        found = finish(self.engine.probes.embed(self.intake.ids(text)))
        return scoring.as_embedding(found, scoring.Pooling(pooling))

    def _scores(self, prompts: Sequence[list[int]], tails: Sequence[list[int]]) -> list[Score]:
        """Return the score of each continuation, `tails[i]`, after the prompt `prompts[i]`."""
        found: dict[int, Score] = {}
        for turn in scoring.rounds(tails):
            self.streams.pump_until_free()
            asked = [prompts[index] for index in turn], [tails[index] for index in turn]
            scored = finish(scoring.score(self.engine, *asked))
            for index, logprobs in zip(turn, scored, strict=True):
                found[index] = scoring.as_score(logprobs, tails[index])
        return [found[index] for index in range(len(tails))]

    def _peek(self, ids: Sequence[int], start: int) -> tuple[Any, Any]:
        self.streams.pump_until_free()
        return finish(self.engine.probes.peek(ids, start))


def kept_programs(key: str, hosts: HostGroup | None) -> Executables | None:
    """Return the compiled programs on disk under this key; None if none may be kept.

    Each of several hosts, the group `hosts`, has a folder of its own. Hosts with GPUs keep none:
    XLA tunes a program there on all hosts together, and a host that loads it from its disk would
    leave the others waiting.
    """
    if hosts is None:
        return Executables(cache_folder() / PROGRAMS, key)
    if jax.default_backend() == "gpu":
        return None
    return Executables(cache_folder() / f"{PROGRAMS}-host-{hosts.index}", key)
