"""LLM: a model ready to generate. The composition root - the whole system, in order.

Opens a checkpoint, makes the mesh, places the weights, compiles the programs, builds the engine;
and is the Python API on top of it. The CLI and the server sit on this; nothing below imports it.

    with LLM.load() as llm:
        print(llm.generate("The capital of France is", max_tokens=8, temperature=0).text)
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllama import scoring
from jaxllama.completion import Classification, Completion, Delta, Perplexity, Score
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.bank import SamplerBank
from jaxllama.engine.engine import Engine, finish
from jaxllama.engine.executables import Executables, program_key
from jaxllama.engine.generation import Generation, Phase
from jaxllama.engine.programs import Programs
from jaxllama.errors import ConfigError, GenerationFailed, InvalidParameter, JaxLlamaError
from jaxllama.formats import ModelText, PromptFormat, choose_format
from jaxllama.intake import Intake, Prompt, Ready, stream_of
from jaxllama.kernels import cpu
from jaxllama.limits import check
from jaxllama.messages import Turns
from jaxllama.model.params import Tree, abstract_params, loading_order
from jaxllama.model.prepare import Preparation
from jaxllama.registry import FORMATS, PRESETS, SAMPLERS, load_plugins
from jaxllama.request import Event, Finished, FinishReason, Token, TokenLogprobs
from jaxllama.sampling import Preset, Sampler
from jaxllama.sharding import make_mesh, parse_mesh, why_no_kernels
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import Checkpoint, fill
from jaxllama.weights.store import cache_folder, resolve

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what, done, total
OnDone = Callable[[int, Completion], None]
OnError = Callable[[int, JaxLlamaError], None]

DEFAULT_SLOTS = 16
DEFAULT_CONTEXT = 4096
PLAIN_CHUNK = 32  # prompt tokens between two decode steps
KERNEL_CHUNK = 128
TEMPLATE_FILE = ".jinja"
CANDIDATES = 256  # tokens a filter sees before the bank widens
QUEUED_PER_SLOT = 4  # how far ahead of the slots a long list of prompts is tokenized


class LLM:
    """One model, its engine, and the calls people make."""

    def __init__(
        self, engine: Engine, intake: Intake, *, config: ModelConfig, path: Path | None = None
    ) -> None:
        self.engine = engine
        self.intake = intake
        self.config = config
        self.path = path
        self._inboxes: dict[int, deque[Event]] = {}

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
        kernels: str = "auto",
        threads: int | None = None,
        packed: bool = False,
        prompt_format: str | None = None,
        compile_cache: bool = True,
        progress: Progress | None = None,
    ) -> Self:
        """Open a model by name, file or folder; with none, the default, pulled if needed.

        slots          requests decoded together (default 16)
        context        tokens a slot holds (default: the model's, at most 4096)
        dtype          float32, bfloat16 or float16 (default: float32 on CPU, else bfloat16)
        cache_dtype    of keys and values, likewise or int8
                       (default: float16 on CPU, else bfloat16)
        mesh           for example "data=2,model=4"
        kernels        cpu (the C++ library), xla (plain JAX) or auto: cpu where it can run
        threads        of the C++ library (default: the processors this process may use)
        packed         without kernels: keep 4- and 8-bit weights packed, slower but smaller
        prompt_format  name of a prompt format, or a .jinja file with a chat template (default: the
                       format that suits the model)
        compile_cache  keep compiled programs on disk for the next start
        progress       called with (what, done, total) while loading
        """
        path = resolve(model, progress=progress)
        with open_checkpoint(path) as checkpoint:
            config = checkpoint.config
            if threads is not None:
                cpu.set_threads(threads)
            engine = engine_config(
                config,
                choose_kernels(kernels, mesh, config),
                slots=slots,
                context=context,
                dtype=dtype,
                cache_dtype=cache_dtype,
                mesh=mesh,
                packed=packed,
            )
            samplers = load_plugins(SAMPLERS, Sampler)
            tokenizer = checkpoint.tokenizer()
            if prompt_format is not None and prompt_format.endswith(TEMPLATE_FILE):
                tokenizer.text = with_template(tokenizer.text, Path(prompt_format))
                prompt_format = None
            bank = SamplerBank(
                samplers.loaded,
                vocab=config.vocab_size,
                candidates=engine.candidates,
                top_logprobs=engine.max_top_logprobs,
                texts=tokenizer.texts(),
                body=engine.kernels,
            )
            chosen = named_or_suiting(prompt_format, tokenizer.text)
            devices = make_mesh(engine, config)
            params = read_weights(checkpoint, engine, devices, progress)
        plugins = (describe(samplers.loaded), bank.learned)
        key = program_key((config, engine, stored_as(params), plugins))
        executables = Executables(cache_folder() / "programs", key) if compile_cache else None
        programs = Programs(config, engine, bank, params, devices, executables=executables)
        programs.warm_up(progress)
        presets = load_plugins(PRESETS, Preset).loaded
        others = other_formats(chosen, tokenizer.text)
        intake = Intake(tokenizer, chosen, bank, engine, presets, other_formats=others)
        return cls(Engine(programs), intake, config=config, path=path)

    # What it is made of.

    @property
    def engine_config(self) -> EngineConfig:
        """How the engine is sized."""
        return self.engine.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.intake.tokenizer

    @property
    def prompt_format(self) -> PromptFormat:
        """How conversations become prompts."""
        return self.intake.format

    @property
    def bank(self) -> SamplerBank:
        """The installed samplers and their knobs."""
        return self.engine.bank

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

        With `n` each prompt gives a list of n answers, which share its computation; answer i has
        the seed `choice_seed(seed, i)`. With `best_of` that many are made, and the n likeliest by
        mean log-probability are returned, best first.

        Knobs: max_tokens, temperature, seed, stop, stop_ids, ignore_eos, logprobs,
        temperature_last, what holds an answer to a form (json_schema, json_object, regex, choices,
        grammar) and every knob of every installed sampler.
        """
        if n is not None or best_of is not None:
            prompts = [cast(Prompt, prompt)] if is_one(prompt) else cast(Sequence[Prompt], prompt)
            asked = (partial(self.intake.completion, one, knobs) for one in prompts)
            answered = list(self._several(asked, 1 if n is None else n, best_of))
            return answered[0] if is_one(prompt) else answered
        if is_one(prompt):
            return self._one(self.intake.completion(cast(Prompt, prompt), knobs))
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
        """Continue each (prompt, knobs); yields (index, completion) as they finish.

        One that fails is raised, or given to `on_error` while the others go on.
        """
        asked = (partial(self.intake.completion, *item) for item in items)
        return self._each(asked, on_error)

    def stream(self, prompt: Prompt, **knobs: object) -> "Stream":
        """Continue a prompt, token by token."""
        return Stream(self, self.intake.completion(prompt, knobs))

    def chat(self, messages: Turns, **knobs: object) -> Completion:
        """Answer a conversation of {role, content} messages."""
        return self._one(self.intake.chat(messages, knobs))

    def chat_each(
        self,
        items: Iterable[tuple[Turns, Mapping[str, object]]],
        *,
        on_error: OnError | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Answer each (messages, knobs), like `generate_each`."""
        return self._each((partial(self.intake.chat, *item) for item in items), on_error)

    def chat_stream(self, messages: Turns, **knobs: object) -> "Stream":
        """Answer a conversation, token by token."""
        return Stream(self, self.intake.chat(messages, knobs))

    # Reading without writing.

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Text to token ids; `special` recognises the text of special tokens."""
        return self.tokenizer.encode(text, special=special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Token ids to text."""
        return self.tokenizer.decode(ids)

    def score(self, prompt: Prompt, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
        """Log-probability of each continuation after the prompt; the prompt is computed once."""
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
        """How likely each choice follows the prompt and the question; several questions, a list.

        The prompt is computed once for all questions, a question once for all choices. Whole
        choices count, a space before them included; with `length_normalize` the mean over their
        tokens does.
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
        """Classify each (prompt, question, choices), in order; best grouped by prompt."""
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
        """A vector of length 1 for a text (or token ids), or one for each of a list.

        `pooling` makes it of all tokens ("mean") or of the last one, which has seen all ("last").
        """
        if pooling not in tuple(scoring.Pooling):
            raise InvalidParameter(f"pooling is {pooling!r}; expected mean or last", "pooling")
        if not is_one(text):
            return [self._embed(one, pooling) for one in cast(Sequence[Prompt], text)]
        return self._embed(cast(Prompt, text), pooling)

    def perplexity(self, text: str, *, progress: Progress | None = None) -> Perplexity:
        """How surprised the model is by a text, in windows of the context, each from its start."""
        ids = self.intake.ids(text)
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

    # Ending.

    def close(self) -> None:
        """Cancel what runs and let go of the device memory."""
        for inbox in list(self._inboxes):
            self._inboxes.pop(inbox)
        self.intake.constraints.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # How it works.

    def _one(self, ready: Ready) -> Completion:
        stream = Stream(self, ready)
        for _ in stream:
            pass
        return stream.completion

    def _several(
        self, firsts: Iterable[Callable[[], Ready]], n: int, best_of: int | None
    ) -> Iterator[list[Completion]]:
        """The n answers to each prompt, in order."""
        check("n", n)
        check("best_of", best_of)
        if best_of is not None and best_of < n:
            raise InvalidParameter(f"best_of is {best_of}; it must be at least n, {n}", "best_of")
        count = best_of or n
        hides: list[bool] = []  # of each prompt: log-probabilities are for the ranking alone

        def streams() -> Iterator[Callable[[], Ready]]:
            for first in firsts:
                request, tail = first()
                hides.append(count > n and request.top_logprobs is None)
                if hides[-1]:
                    request = replace(request, top_logprobs=0)
                yield from (partial(stream_of, (request, tail), i) for i in range(count))

        found: dict[int, Completion] = {}
        for index, completion in self._each(streams(), None):
            found[index] = completion
        for prompt, hidden in enumerate(hides):
            answers = [found[prompt * count + i] for i in range(count)]
            if count > n:
                answers = sorted(answers, key=lambda each: -each.mean_logprob)[:n]
            yield [replace(each, logprobs=None) for each in answers] if hidden else answers

    def _each(
        self, requests: Iterable[Callable[[], Ready]], on_error: OnError | None
    ) -> Iterator[tuple[int, Completion]]:
        """Keep the queue a little ahead of the slots; yield whatever finishes."""

        def failed(index: int, error: JaxLlamaError) -> None:
            if on_error is None:
                raise error
            on_error(index, error)

        source = enumerate(requests)
        live: dict[int, Stream] = {}
        more = True
        try:
            while live or more:
                more = more and self._top_up(live, source, failed)
                if live:
                    self._pump()
                for index, outcome in take_ended(live):
                    if isinstance(outcome, JaxLlamaError):
                        failed(index, outcome)
                    else:
                        yield index, outcome
        finally:
            for stream in live.values():
                stream.close()

    def _top_up(
        self,
        live: dict[int, "Stream"],
        source: Iterator[tuple[int, Callable[[], Ready]]],
        failed: OnError,
    ) -> bool:
        """Begin as many as may wait; False once there are no more."""
        while len(live) < QUEUED_PER_SLOT * self.engine_config.slots:
            item = next(source, None)
            if item is None:
                return False
            index, ready = item
            try:
                live[index] = Stream(self, ready())
            except JaxLlamaError as error:
                failed(index, error)
        return True

    def _pump(self) -> None:
        """One engine step; events go to whoever follows the generation."""
        for event in self.engine.step():
            inbox = self._inboxes.get(event.id)
            if inbox is not None:
                inbox.append(event)

    def _embed(self, text: Prompt, pooling: str) -> np.ndarray:
        while self.engine.slots.full:
            self._pump()
        found = self.engine.embed(self.intake.ids(text))
        return scoring.as_embedding(found, scoring.Pooling(pooling))

    def _scores(self, prompts: Sequence[list[int]], tails: Sequence[list[int]]) -> list[Score]:
        """The score of each tail behind its prompt."""
        found: dict[int, Score] = {}
        for turn in scoring.rounds(tails):
            while self.engine.slots.full:
                self._pump()
            asked = [prompts[index] for index in turn], [tails[index] for index in turn]
            weighed = finish(scoring.weigh(self.engine, *asked))
            for index, logprobs in zip(turn, weighed, strict=True):
                found[index] = scoring.as_score(logprobs, tails[index])
        return [found[index] for index in range(len(tails))]

    def _peek(self, ids: Sequence[int], start: int) -> tuple[Any, Any]:
        while self.engine.slots.full:
            self._pump()
        return self.engine.peek(ids, start)


class Stream:
    """One answer on its way: iterate for Deltas, then read `completion`; `close` cancels."""

    def __init__(self, llm: LLM, ready: Ready) -> None:
        self._llm = llm
        self._request, tail = ready
        self._generation: Generation = llm.engine.submit(self._request, tail)
        self._inbox: deque[Event] = deque()
        llm._inboxes[self._generation.id] = self._inbox
        self._parts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finished: Finished | None = None

    def __iter__(self) -> Iterator[Delta]:
        try:
            while self._finished is None:
                self._llm._pump()
                yield from self._take()
        finally:
            self.close()

    @property
    def completion(self) -> Completion:
        """The whole answer; available once the stream has ended."""
        end = self._finished
        if end is None:
            raise InvalidParameter("the stream has not ended; iterate it to its end first")
        if end.error is not None:
            raise end.error
        wanted = self._request.top_logprobs is not None
        return Completion(
            text="".join(self._parts),
            tokens=tuple(self._tokens),
            finish_reason=end.reason,
            usage=end.usage,
            seed=self._request.seed,
            logprobs=tuple(self._logprobs) if wanted else None,
            stop=end.stop,
        )

    def close(self) -> None:
        """Cancel the answer if it has not ended; what it produced so far stays readable."""
        if self._finished is None:
            self._llm.engine.cancel(self._generation)
            while self._generation.phase is Phase.DONE and self._finished is None:
                self._llm._pump()
                self.drain()
        self._llm._inboxes.pop(self._generation.id, None)

    def drain(self) -> bool:
        """Take in what has arrived; True once the answer is whole."""
        for _ in self._take():
            pass
        return self._finished is not None

    def _take(self) -> Iterator[Delta]:
        """The events that have arrived, as deltas."""
        while self._inbox:  # one at a time: whoever stops iterating leaves the rest here
            event = self._inbox.popleft()
            self._parts.append(event.text)
            if isinstance(event, Token):
                self._tokens.append(event.token)
                if event.logprobs is not None:
                    self._logprobs.append(event.logprobs)
                yield Delta(event.text, event.token, event.logprobs)
                continue
            self._finished = event
            self._llm._inboxes.pop(event.id, None)
            if event.text:
                yield Delta(event.text)
            if event.reason is FinishReason.FAILED:
                raise event.error or GenerationFailed("the generation failed")


def take_ended(live: dict[int, Stream]) -> Iterator[tuple[int, Completion | JaxLlamaError]]:
    """Take out the answers that are whole, or have failed."""
    for index, stream in list(live.items()):
        try:
            if stream.drain():
                del live[index]
                yield index, stream.completion
        except JaxLlamaError as error:
            live.pop(index, None)
            yield index, error


def is_one(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Text, or a list of ids; an empty list is an empty list of prompts."""
    return isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))


def choose_kernels(asked: str, mesh: str | None, model: ModelConfig) -> str:
    """Which body runs: the C++ library on CPU, where it loads and the mesh suits, or plain JAX."""
    if asked == "cpu" and not cpu.available():
        raise ConfigError(f"kernels is 'cpu', but {cpu.why_not()}")
    if asked != "auto":
        return asked
    if jax.default_backend() != "cpu":
        return "xla"
    complaint = cpu.why_not() or why_no_kernels(model, parse_mesh(mesh)[1])
    if complaint:
        logger.warning("no C++ kernels, so plain XLA, several times slower: %s", complaint)
        return "xla"
    return "cpu"


def engine_config(  # noqa: PLR0913 - the settings of `load` that size the engine
    model: ModelConfig,
    body: str,
    *,
    slots: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    cache_dtype: str | None = None,
    mesh: str | None = None,
    packed: bool = False,
) -> EngineConfig:
    """The engine's size, with defaults for this model and machine."""
    data, parts = parse_mesh(mesh)
    if context is not None and context > model.max_context:
        raise InvalidParameter(
            f"context is {context}; this model was trained for at most {model.max_context}",
            "context",
        )
    on_cpu = jax.default_backend() == "cpu"
    own = "stored" if body == "cpu" else "float32" if on_cpu else "bfloat16"
    return EngineConfig(
        slots=-(-DEFAULT_SLOTS // data) * data if slots is None else slots,
        context=min(model.max_context, DEFAULT_CONTEXT) if context is None else context,
        prefill_chunk=KERNEL_CHUNK if body == "cpu" else PLAIN_CHUNK,
        candidates=min(CANDIDATES, model.vocab_size),
        kernels=body,
        dtype=dtype or own,
        packed=packed,
        cache_dtype=cache_dtype or ("float16" if on_cpu else "bfloat16"),
        data_parallel=data,
        model_parallel=parts,
    )


def read_weights(
    checkpoint: Checkpoint, engine: EngineConfig, mesh: Mesh, progress: Progress | None
) -> Tree:
    """Every weight, read one at a time and placed on its devices."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("weights", done, total)

    started = time.perf_counter()
    abstract = abstract_params(checkpoint.config)
    preparation = Preparation(abstract, engine, mesh)
    fill(loading_order(abstract), checkpoint, preparation.add, report)
    logger.info("weights of %s in %.2f s", checkpoint.config.name, time.perf_counter() - started)
    return preparation.tree()


def stored_as(params: Tree) -> list[str]:
    """What a program depends on of the weights: how each is stored."""
    leaves, tree = jax.tree.flatten(params)
    return [str(tree), *(f"{leaf.dtype}{leaf.shape}" for leaf in leaves)]


def with_template(text: ModelText, path: Path) -> ModelText:
    """What the model says of its text, with the user's template in place of its own."""
    try:
        return replace(text, template=path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(
            f"the chat template {path} cannot be read: {error}; expected a Jinja file in UTF-8",
            "prompt_format",
        ) from error


def named_or_suiting(name: str | None, text: ModelText) -> PromptFormat:
    """The prompt format asked for, or the one that suits the model."""
    formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
    if name is not None:
        return formats.one(name).for_model(text)
    return choose_format(formats.loaded, text)


def other_formats(chosen: PromptFormat, text: ModelText) -> list[PromptFormat]:
    """Every other installed format that can be built for the model, for requests that name it."""
    others = []
    for name, kind in load_plugins(FORMATS, PromptFormat).loaded.items():  # type: ignore[type-abstract]
        if name == chosen.name:
            continue
        try:
            others.append(kind.for_model(text))
        except JaxLlamaError as error:
            logger.info("prompt format %s is not for this model: %s", name, error)
    return others


def describe(samplers: Mapping[str, type[Sampler]]) -> list[tuple[str, str, object]]:
    """What a compiled program depends on of each sampler: which code it is."""
    described: list[tuple[str, str, object]] = []
    for name, kind in samplers.items():
        module = __import__(kind.__module__, fromlist=["__file__"])
        source = getattr(module, "__file__", None)
        code = Path(source).read_bytes() if source and os.path.exists(source) else None  # noqa: PTH110
        described.append((name, f"{kind.__module__}.{kind.__qualname__}", code))
    return described
