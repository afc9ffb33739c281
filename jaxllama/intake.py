"""Intake: makes a checked GenerationRequest from a prompt (text or messages) and knobs.

Used by the Python API and the server, so that both refuse the same input with the same errors.
Knows text and limits; starts no generation.
"""

import copy
import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeGuard

from jaxllama.config import EngineConfig
from jaxllama.constraints.compiler import Compiler
from jaxllama.constraints.thinking import ThinkFirst
from jaxllama.constraints.wanted import FIELDS, read_form, schema_text
from jaxllama.engine.adapters import LoadedAdapters, loaded
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.errors import InvalidParameter, PromptTooLong
from jaxllama.formats import PromptFormat, Tool
from jaxllama.limits import LIMITS, MAX_SEED, check, unknown_preset
from jaxllama.messages import (
    ContextOverflow,
    Ending,
    Messages,
    as_messages,
    guard_json,
    guard_message,
    needs_tools,
    prune,
    render,
    split_turns,
    with_system,
)
from jaxllama.request import AdapterUse, Contrast, GenerationRequest, TokenConstraint, choice_seed
from jaxllama.sampling import Preset
from jaxllama.text.tail import Tail
from jaxllama.text.thoughts import (
    CLOSING,
    OPENING,
    ThoughtStart,
    start_in,
    thought_start,
    without_thoughts,
)
from jaxllama.text.tokenizer import Tokenizer

SHORT_ANSWER = 256  # tokens that a shortened conversation leaves for an answer of any length
TURNS_AT_A_TIME = 4

Prompt = str | Sequence[int]
PreparedRequest = tuple[GenerationRequest, Tail]
BUDGET = "reasoning_budget"


@dataclass(frozen=True)
class Thinking:
    """The settings of a request for the thoughts before an answer."""

    budget: int | None  # most tokens; None: as many as the model writes
    has_form: bool  # whether the answer is constrained

    @property
    def is_held(self) -> bool:
        """Say whether the engine has to watch for the end of the thoughts, token by token.

        It has to if the thoughts have a budget, or if the answer after them is constrained.
        """
        return self.budget is not None or self.has_form


class Intake:
    """Checks requests for one model and translates them to token ids."""

    def __init__(  # noqa: PLR0913 - each argument is a part of the model
        self,
        tokenizer: Tokenizer,
        prompt_format: PromptFormat,
        bank: SamplerBank,
        engine: EngineConfig,
        presets: Mapping[str, type[Preset]] | None = None,
        *,
        other_formats: Iterable[PromptFormat] = (),
        defaults: Mapping[str, object] | None = None,
        adapters: LoadedAdapters | None = None,
    ) -> None:
        """Store the parts of a model that requests are checked against.

        `bank` has the installed samplers, `presets` the named sets of knobs (settings of a
        request). `other_formats` are prompt formats that a request may name instead of
        `prompt_format`. `defaults` are knobs for requests and presets that do not set them.
        `adapters` are the loaded LoRA adapters; None: none can be loaded.
        """
        self.tokenizer = tokenizer
        self.format = prompt_format
        self.formats = {each.name: each for each in (*other_formats, prompt_format)}
        self.bank = bank
        self.engine = engine
        self.presets = dict(presets or {})
        self.defaults = dict(defaults or {})
        self.adapters = adapters
        self.constraints = Compiler(tokenizer, bank.vocab)
        bare = replace(tokenizer.text, template=None)  # with a template, no other format suits
        self._tool_format = next(
            (
                each.name
                for each in sorted(self.formats.values(), key=lambda each: each.name)
                if each.calls is not None and each.suits(bare)
            ),
            None,
        )

    def with_format(self, name: str | None) -> Self:
        """Return a copy that uses the named prompt format; None means the model's own format."""
        if name is None:
            return self
        if name not in self.formats:
            raise InvalidParameter(
                f"format is {name[:100]!r}; expected one of {', '.join(sorted(self.formats))}",
                "format",
            )
        chosen = copy.copy(self)
        chosen.format = self.formats[name]
        return chosen

    def format_for(self, name: str | None, messages: Messages, tools: Sequence[Tool]) -> str | None:
        """Return the name of the prompt format for a conversation; None: the model's own format.

        This is `name` if it is given. If the conversation needs tools and the model's own format
        supports none, it is another format that supports tools and suits the model's control
        tokens.
        """
        if name is not None or self.format.calls is not None or not needs_tools(messages, tools):
            return name
        return self._tool_format

    def completion(
        self, prompt: Prompt, knobs: Mapping[str, object], *, total: int | None = None
    ) -> PreparedRequest:
        """Return the request that continues a prompt (text or token ids), and its text decoder.

        `knobs` are the settings of the request by name, such as max_tokens. `total`: the most
        tokens that prompt and answer may have together; a larger max_tokens is lowered. Without
        `total`, a max_tokens that does not fit into the context is refused.
        """
        # The answer continues a text, so a leading space is part of the answer.
        ids = self.ids(prompt)
        given = self._given(knobs)
        return self._prepare(ids, given, (), start=False, other=self.ids, total=total)

    def chat(
        self,
        messages: Messages,
        knobs: Mapping[str, object],
        *,
        tools: Sequence[Tool] = (),
        ending: Ending = Ending.ANSWER,
        total: int | None = None,
        overflow: ContextOverflow = ContextOverflow.ERROR,
    ) -> PreparedRequest:
        """Return the request that answers a conversation, or continues it, and its text decoder.

        `knobs` are the settings of the request by name, such as max_tokens. `ending`: whether the
        prompt ends before a new answer or in the last message, which is then continued. `total`:
        the most tokens that prompt and answer may have together; a larger max_tokens is lowered.
        Without `total`, a max_tokens that does not fit into the context is refused. `overflow`:
        what happens to a conversation that does not fit into the context.
        """
        given = self._given(knobs)
        thinking = self._thinking(given)
        dropped = 0
        if overflow is not ContextOverflow.ERROR:
            most = self._most_prompt(given, total)
            kept = self.pruned(messages, most, overflow, tools=tools, ending=ending)
            messages, dropped = kept, len(messages) - len(kept)
        ids, begins = self._chat_prompt(messages, tools, ending, thinking)
        start = ending is not Ending.LAST

        def other(system: str) -> list[int]:
            turns = with_system(messages, system)
            return self._chat_prompt(turns, tools, ending, thinking)[0]

        stop = self.format.stop
        thoughts = begins if thinking else None
        request, tail = self._prepare(
            ids, given, stop, start=start, other=other, total=total, thoughts=thoughts
        )
        return replace(request, dropped=dropped), tail

    def pruned(
        self,
        messages: Messages,
        most: int,
        overflow: ContextOverflow,
        *,
        tools: Sequence[Tool] = (),
        ending: Ending = Ending.ANSWER,
    ) -> Messages:
        """Return the conversation without its oldest turns, so that it has at most `most` tokens.

        `overflow` says which turns may go; `ending` says where the prompt ends. Leaves out several
        turns at a time, so that the beginning of the prompt stays the same, and cached, for some
        turns. Returns the conversation as it is if it fits, or if even its last turn does not.
        """
        keep_first = overflow is ContextOverflow.KEEP_FIXED
        every = as_messages(messages)

        def fits(turns: int) -> bool:
            shown = prune(every, turns, keep_first=keep_first)
            try:
                return len(self.chat_ids(shown, tools=tools, ending=ending)) <= most
            except PromptTooLong:
                return False

        last = max(0, len(split_turns(every)[1]) - keep_first - 1)
        if last == 0 or fits(0) or not fits(last):
            return messages
        least = bisect_left(range(1, last), True, key=fits) + 1
        turns = min(last, -(-least // TURNS_AT_A_TIME) * TURNS_AT_A_TIME)
        return prune(every, turns, keep_first=keep_first)

    def _most_prompt(self, given: Mapping[str, object], total: int | None) -> int:
        """Return how many tokens a prompt may have, so that there is room for its answer.

        `given` are the request's knobs (settings). Room is left for max_tokens tokens; for a short
        answer if max_tokens is missing, or if `total` is given and max_tokens is larger. `total`:
        the most tokens of prompt and answer together; None: the context.
        """
        asked: int | None = check("max_tokens", given.get("max_tokens"))  # type: ignore[assignment]
        whole = self.engine.context if total is None else min(total, self.engine.context)
        short = min(SHORT_ANSWER, whole // 4)
        if asked is None or total is not None:
            asked = short if asked is None else min(asked, short)
        return whole - asked

    @property
    def most(self) -> int:
        """Return the largest number of tokens that a prompt may have."""
        return self.engine.context - 1

    def ids(self, prompt: Prompt, *, fits: bool = True) -> list[int]:
        """Convert a prompt to token ids; raise InvalidParameter for ids outside the vocabulary.

        With `fits`, raise PromptTooLong for a prompt that is longer than the context, before all of
        the prompt is tokenized.
        """
        if isinstance(prompt, str):
            return self._encode(prompt, special=False, fits=fits)
        if not is_list(prompt):
            raise wrong_prompt(prompt)
        ids = list(prompt)
        if fits and ids:
            self.engine.check_length(len(ids), 0)
        size = self.bank.vocab
        for id_ in ids:
            if isinstance(id_, bool) or not isinstance(id_, int) or not 0 <= id_ < size:
                raise InvalidParameter(
                    f"prompt holds {id_!r}; token ids are whole numbers from 0 to {size - 1}",
                    "prompt",
                )
        return ids

    def chat_ids(
        self,
        messages: Messages,
        *,
        tools: Sequence[Tool] = (),
        ending: Ending = Ending.ANSWER,
        fits: bool = True,
    ) -> list[int]:
        """Convert a conversation to token ids; text of a message is never read as a control token.

        `ending` says where the prompt ends: before a new answer, or in the last message. With
        `fits`, raise PromptTooLong for a conversation that is longer than the context, before all
        of it is tokenized.
        """
        text = self._rendered(messages, tools, ending)
        return self._encode(text, special=True, fits=fits)

    def _rendered(self, messages: Messages, tools: Sequence[Tool], ending: Ending) -> str:
        guard = self.tokenizer.guard
        turns = [guard_message(message, guard) for message in as_messages(messages)]
        return render(self.format, turns, guard_json(tools, guard), ending)

    def _thinking(self, given: Mapping[str, object]) -> Thinking | None:
        """Return the thinking settings in the knobs `given`; None for a format without thinking.

        Raises InvalidParameter for a reasoning budget if the model's prompt format has no thinking.
        """
        budget: int | None = check(BUDGET, given.get(BUDGET))  # type: ignore[assignment]
        if not self.format.thinks:
            if budget is not None:
                raise InvalidParameter(
                    f"{BUDGET} is {budget}, but models with the prompt format "
                    f"{self.format.name!r} of this one do not think before they answer; remove it",
                    BUDGET,
                )
            return None
        return Thinking(budget, has_form=any(given.get(name) for name in FIELDS))

    def _chat_prompt(
        self,
        messages: Messages,
        tools: Sequence[Tool],
        ending: Ending,
        thinking: Thinking | None,
    ) -> tuple[list[int], ThoughtStart]:
        """Convert a conversation to token ids, and say where the thoughts of its answer start.

        `thinking` has the settings for thoughts; None: the model has none. With a thinking budget
        of 0 the prompt closes the thoughts, so that the model answers at once. With another budget
        or a constraint it opens them, so that their end is recognised.
        """
        text = self._rendered(messages, tools, ending)
        begins = ThoughtStart.OVER
        if thinking is not None and ending is Ending.ANSWER:
            begins = thought_start(text)
            if thinking.budget == 0:
                text, begins = without_thoughts(text), ThoughtStart.OVER
            elif begins is ThoughtStart.FREE and thinking.is_held:
                text, begins = text + OPENING, ThoughtStart.INSIDE
        elif thinking is not None and ending is Ending.LAST:
            begins = start_in(as_messages(messages)[-1].content)
        return self._encode(text, special=True, fits=True), begins

    def _encode(self, text: str, *, special: bool, fits: bool) -> list[int]:
        if not fits:
            return self.tokenizer.encode(text, special=special)
        ids = self.tokenizer.encode(text, special=special, most=self.most)
        if len(ids) > self.most:
            self.engine.check_length(len(ids), 0)
        return ids

    def chat_text(
        self, messages: Messages, *, tools: Sequence[Tool] = (), ending: Ending = Ending.ANSWER
    ) -> str:
        """Render a conversation as prompt text with the prompt format.

        `ending`: what the text ends with, such as the beginning of an answer.
        """
        return render(self.format, as_messages(messages), tools, ending)

    def _given(self, knobs: Mapping[str, object]) -> dict[str, object]:
        """Return all knobs (settings) of a request: defaults, overridden by its preset and its own.

        The defaults are those of the model. `knobs` are what the request sets, which wins over the
        preset; the request may name a preset there.
        """
        return {**self.defaults, **add_preset(knobs, self.presets)}

    def _prepare(  # noqa: PLR0913 - each argument is a part of the request
        self,
        ids: Sequence[int],
        given: Mapping[str, object],
        stop: tuple[str, ...],
        *,
        start: bool,
        other: Callable[[str], list[int]],
        total: int | None,
        thoughts: ThoughtStart | None = None,
    ) -> PreparedRequest:
        """Check all knobs; return the request and the decoder that turns its tokens into text.

        `ids`: the prompt. `given`: the knobs (settings) by name, defaults included. `stop`: stop
        texts of the prompt format. `start` True: the answer begins a new text; False: it continues
        the text of the prompt, and a space at its beginning is kept. `other`: converts the text of
        a negative_prompt to token ids. `total`: the most tokens of prompt and answer together;
        None: no limit but the context. `thoughts`: where the thoughts of the answer start; None:
        the answer has none.
        """
        given = dict(given)
        if "json_schema" in given:
            given["json_schema"] = schema_text(given["json_schema"])
        core = {name: check(name, given.get(name)) for name in LIMITS}
        ends = () if core["ignore_eos"] else self.tokenizer.end_ids
        if thoughts is None and core[BUDGET] is not None:
            raise InvalidParameter(
                f"{BUDGET} is {core[BUDGET]}, but a text is continued without thoughts; it is for "
                f"conversations",
                BUDGET,
            )
        stop_ids: tuple[int, ...] = core["stop_ids"]  # type: ignore[assignment]
        all_ends = tuple(dict.fromkeys((*stop_ids, *ends)))
        constraint = self._constraint(core, ends)
        if thoughts is ThoughtStart.INSIDE:
            constraint = self._think_first(constraint, core[BUDGET], all_ends)  # type: ignore[arg-type]
        set_ = self._knobs({name: value for name, value in given.items() if name not in LIMITS})
        asked: int | None = core["max_tokens"]  # type: ignore[assignment]
        contrast = self._contrast(given, core, other)
        longest = max(len(ids), 0 if contrast is None else len(contrast.prompt))
        if total is not None:
            asked = cut_answer(asked, longest, min(total, self.engine.context))
        self.engine.check_length(longest, asked or 0)
        seed = core["seed"]
        request = GenerationRequest(
            prompt=tuple(ids),
            max_tokens=self.engine.context - longest if asked is None else asked,
            temperature=core["temperature"],  # type: ignore[arg-type]
            temperature_last=core["temperature_last"],  # type: ignore[arg-type]
            seed=secrets.randbelow(MAX_SEED) if seed is None else seed,  # type: ignore[arg-type]
            stop_ids=all_ends,
            top_logprobs=core["logprobs"],  # type: ignore[arg-type]
            knobs=set_,
            constraint=constraint,
            contrast=contrast,
            adapter=self.adapter(core["lora"], given.get("lora_scale")),
            draft=self._draft(core["speculate"]),
        )
        self.engine.check_stop_ids(len(request.stop_ids))
        self._check_counts(request)
        texts: tuple[str, ...] = core["stop"]  # type: ignore[assignment]
        return request, Tail(self.tokenizer, (*texts, *stop), start=start)

    def adapter(self, name: object, scale: object = None) -> AdapterUse | None:
        """Return the loaded LoRA adapter `name` and its strength for a request; None if unnamed.

        `scale` is the strength of the adapter's effect; None: the default. Raises InvalidParameter
        for a scale without a name.
        """
        if name is None:
            if scale is not None:
                raise InvalidParameter(
                    "lora_scale is given without lora; name the adapter that it scales",
                    "lora_scale",
                )
            return None
        factor: float = check("lora_scale", scale)  # type: ignore[assignment]
        return loaded(self.adapters).use(str(name), factor)

    def _draft(self, speculate: object) -> int | None:
        """Convert the request's `speculate` to the most tokens that a step drafts.

        `speculate` is "off", "auto" or a number of tokens. Returns 0 for "off", None for "auto":
        the engine decides. Raises InvalidParameter for more tokens than this engine drafts.
        """
        if isinstance(speculate, str):
            return 0 if speculate == "off" else None
        assert isinstance(speculate, int)
        most = self.engine.draft_tokens
        if speculate > most:
            can = f"at most {most} tokens in a step" if most else "no tokens"
            raise InvalidParameter(
                f"speculate is {speculate}, but this engine drafts {can}; use auto or off, or "
                f"start it with a larger --draft-tokens (C++ kernels on one device only)",
                "speculate",
            )
        return speculate

    def _contrast(
        self,
        given: Mapping[str, object],
        core: Mapping[str, object],
        other: Callable[[str], list[int]],
    ) -> Contrast | None:
        """Return the second prompt for guidance, with its scale; None if a request has no guidance.

        `given` are the knobs (settings), defaults included; `core` has the checked value of each
        one that is no sampler's knob, such as guidance_scale. `other` converts the text of a
        negative_prompt to token ids.
        """
        scale, text = core["guidance_scale"], core["negative_prompt"]
        if text is None and scale != 1:
            raise InvalidParameter(
                f"guidance_scale is {scale}, but there is no negative_prompt to move away from; "
                f"give both",
                "guidance_scale",
            )
        if text is not None and "guidance_scale" not in given:
            raise InvalidParameter(
                "negative_prompt has no effect without guidance_scale; give both, 1.5 is usual",
                "negative_prompt",
            )
        if text is None or scale == 1:
            return None
        self.engine.check_slots(2)
        return Contrast(tuple(other(str(text))), float(scale))  # type: ignore[arg-type]

    def _constraint(
        self, core: Mapping[str, object], ends: Sequence[int]
    ) -> TokenConstraint | None:
        """Return the compiled constraint of a request; None if it has none.

        `core` has the checked values of the request's fields, among them the schema, regex or
        grammar. `ends` are the tokens that may end the answer; empty if end tokens are ignored.
        """
        form = read_form(core)
        if form is None:
            return None
        self._check_constrains(form.field)
        compiled = self.constraints.compile(form)
        return compiled if ends else compiled.hiding(self.tokenizer.end_ids)

    def _think_first(
        self, constraint: TokenConstraint | None, budget: int | None, ends: Sequence[int]
    ) -> TokenConstraint | None:
        """Return a constraint that lets the model think before `constraint` begins.

        `constraint` None: the answer after the thoughts is free. `budget` is the most tokens of the
        thoughts (None: no limit), `ends` are the end tokens. Returns None if both `constraint` and
        `budget` are None.
        """
        if constraint is None and budget is None:
            return None
        self._check_constrains(BUDGET)
        encode, piece = self.tokenizer.encode, self.tokenizer.piece
        return ThinkFirst(
            constraint,
            budget,
            closing=tuple(encode(CLOSING, special=True, begin=False, start=False)),
            gap=tuple(encode("\n\n", begin=False, start=False)),
            ends=frozenset(ends),
            piece=lambda token: piece(token, special=True),
            vocab=self.bank.vocab,
        )

    def _check_constrains(self, field: str) -> None:
        """Raise InvalidParameter if no installed sampler obeys constraints.

        `field` is the field of the request that sets the constraint; the error names it.
        """
        if not any(kind.constrains for kind in self.bank.adjusters.values()):
            raise InvalidParameter(
                f"{field} needs a sampler that obeys constraints, and none is installed; "
                f"install jaxllama's own samplers",
                field,
            )

    def knows_constraint(self, fields: Mapping[str, object]) -> bool:
        """Say whether a request needs no compilation of a constraint: it has none, or a known one.

        A known constraint is compiled already. `fields` are the constraint fields of the request by
        name, such as regex. Returns True for invalid fields as well, because they cost no
        compilation.
        """
        given = dict(fields)
        try:
            if "json_schema" in given:
                given["json_schema"] = schema_text(given["json_schema"])
            form = read_form({name: check(name, value) for name, value in given.items()})
        except InvalidParameter:
            return True
        return form is None or self.constraints.knows(form)

    def _knobs(self, knobs: Mapping[str, object]) -> dict[str, object]:
        """Check the samplers' knobs (settings); return them with texts converted to token ids.

        Texts occur in knobs that are lists of phrases, such as banned strings.
        """
        self.bank.check(knobs)
        encoded = dict(knobs)
        for name, value in knobs.items():
            if self.bank.knobs[name].phrases and isinstance(value, list | tuple):
                encoded[name] = [each for item in value for each in self._phrases(item)]
        if encoded != knobs:
            self.bank.check(encoded)
        return encoded

    def _check_counts(self, request: GenerationRequest) -> None:
        """Raise InvalidParameter for a knob that asks for more tokens than the answer can have.

        An example of such a knob (setting of a sampler) is min_tokens.
        """
        for name, value in request.knobs.items():
            if self.bank.knobs[name].counts and value > request.max_tokens:  # type: ignore[operator]
                raise InvalidParameter(
                    f"{name} is {value}, but the answer ends after {request.max_tokens} tokens: "
                    f"max_tokens, or what is left of the context; lower {name}",
                    name,
                )

    def _phrases(self, item: str | Sequence[int]) -> list[list[int]]:
        """Return token ids of a phrase, as a list of variants: without and with a space before it.

        `item` is the phrase. There is one variant if both are equal, or if `item` is a list of ids.
        """
        if not isinstance(item, str):
            return [list(item)]
        written = [self.tokenizer.encode(text, begin=False) for text in (item, f" {item}")]
        return written if written[0] != written[1] else written[:1]


def cut_answer(asked: int | None, prompt: int, total: int) -> int:
    """Return how many tokens an answer may have so that it fits into `total` with its prompt.

    `prompt` is the prompt's number of tokens; `asked` is the most that the request allows, None: as
    many as fit. Raises PromptTooLong if the prompt leaves no room.
    """
    if prompt >= total:
        raise PromptTooLong(
            f"the prompt has {prompt} tokens; prompt and answer together may have {total}"
        )
    return total - prompt if asked is None else min(asked, total - prompt)


def is_single_prompt(prompt: object) -> bool:
    """Say whether `prompt` is one prompt (text or token ids), not a list of prompts.

    An empty list counts as a list of prompts. Raises InvalidParameter for any other type.
    """
    if isinstance(prompt, str):
        return True
    if not is_list(prompt):
        raise wrong_prompt(prompt)
    return bool(prompt) and isinstance(prompt[0], int)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Say whether a value is a list, a tuple or another sequence; bytes do not count."""
    return isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview)


def wrong_prompt(prompt: object) -> InvalidParameter:
    """Build the error for a prompt of a wrong type."""
    hint = "; decode it first: prompt.decode()" if isinstance(prompt, bytes | bytearray) else ""
    return InvalidParameter(
        f"prompt is {prompt!r:.100} ({type(prompt).__name__}); expected text or a list of token "
        f"ids, or a list of these{hint}",
        "prompt",
    )


def stream_of(ready: PreparedRequest, index: int) -> PreparedRequest:
    """Copy a prepared request, to generate answer number `index` to the same prompt.

    The copy has a seed of its own, made from the request's seed and `index`, and a new text
    decoder.
    """
    request, tail = ready
    return replace(request, seed=choice_seed(request.seed, index)), tail.again()


def add_preset(
    knobs: Mapping[str, object], presets: Mapping[str, type[Preset]]
) -> dict[str, object]:
    """Return the given knobs (settings), completed by the knobs of the preset that they name.

    Given knobs win over those of the preset. A knob that is None counts as not given. `presets` has
    all presets by name.
    """
    given = {name: value for name, value in knobs.items() if value is not None}
    name = check("preset", given.get("preset"))
    if name is None:
        return given
    if name not in presets:
        raise unknown_preset(str(name), presets)
    return {**presets[str(name)].knobs, **given}
