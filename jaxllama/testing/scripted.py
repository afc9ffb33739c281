"""An engine that answers from a script: the real engine over programs without a model.

For tests of code that uses the engine. Requests queue, fill slots, stream, stop, fail and are
cancelled as always, because only the compiled programs are replaced. Starts in milliseconds.

    engine = ScriptedEngine(lambda prompt: b"Hello!")  # to every prompt; then END_ID
    engine.submit(GenerationRequest(prompt=(72, 105), max_tokens=10, stop_ids=(END_ID,)))
    while not engine.idle:
        events = engine.step()

Temperature, samplers and guidance change nothing; where a constraint forbids a token, the lowest
allowed token is drawn instead. Where the script gives token t, the model's log-probabilities are
-ln 2 for t, -2 ln 2 for t + 1, -3 ln 2 for t + 2, and so on around the vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxllama.config import KEY_BLOCK, EngineConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens
from jaxllama.engine.engine import Engine
from jaxllama.engine.programs import Programs
from jaxllama.engine.prompt_store import PromptStore
from jaxllama.engine.state import RowStart
from jaxllama.engine.steps import Peek, Pooled, Runs, StepOutput
from jaxllama.model.cache import Columns
from jaxllama.sampling import Sampler
from jaxllama.sharding import make_mesh
from jaxllama.testing.byte_tokenizer import END_ID
from jaxllama.testing.models import TINY

# A token, or a failure: an exception is raised by the decode call (each time the row reaches it;
# the engine will replay), None stands for logits that are not numbers.
Said: TypeAlias = int | Exception | None
Script: TypeAlias = Callable[[tuple[int, ...]], Sequence[Said]]  # prompt -> answer

SMALL = EngineConfig(slots=4, context=256, steps_per_sync=1, candidates=TINY.vocab_size)


class ScriptedEngine(Engine):
    """The real engine on programs that take tokens from a script instead of a model."""

    def __init__(
        self,
        script: Script,
        *,
        config: EngineConfig = SMALL,
        samplers: Mapping[str, type[Sampler]] | None = None,
        prompt_store: PromptStore | None = None,
    ) -> None:
        bank = SamplerBank(
            samplers or {},
            vocab=TINY.vocab_size,
            candidates=config.candidates,
            top_logprobs=config.max_top_logprobs,
        )
        super().__init__(ScriptedPrograms(script, config, bank), prompt_store=prompt_store)


@dataclass
class ScriptedRow:
    """The state of one decoding row, as the decode program keeps it."""

    prompt: tuple[int, ...]
    answer: Sequence[Said]
    drawn: int
    pending: int
    budget: int
    stop_ids: frozenset[int]
    temperature: float
    wants: bool
    leader: int  # of a guidance row: the row whose tokens it repeats; -1: none


@dataclass
class ScriptedState:
    """The state of all slots: the tokens in each cache, and the rows that decode."""

    cached: np.ndarray
    rows: dict[int, ScriptedRow] = field(default_factory=dict)


class ScriptedPrograms(Programs):
    """The engine's programs in Python on the host; the state is changed in place."""

    def __init__(self, script: Script, config: EngineConfig, bank: SamplerBank) -> None:
        super().__init__(TINY, config, bank, {}, make_mesh(config, TINY))
        self.script = script

    def delete(self, state: Any) -> None:
        """Free nothing: the state is on the host."""

    def empty(self) -> Any:
        """Return a new state in which no row decodes and the cache is empty."""
        return ScriptedState(np.full((self.engine.slots, self.engine.columns), -1))

    # Scripts know no adapters: `adapter` changes nothing.

    def prefill(
        self, state: Any, slot: Any, ids: Any, start: Any, count: Any, adapter: Any = None
    ) -> Any:
        """Store the first `count` of the tokens `ids` in the cache of a slot; return the state.

        `start` is the position in the cache of the first one; `adapter` is ignored.
        """
        del adapter
        state.cached[slot, start : start + count] = ids[:count]
        return state

    def admit(self, state: Any, slot: Any, row: RowStart) -> Any:
        """Start decoding in a slot, and return the state.

        `row` has the prompt; if it also has tokens of the answer, the answer continues after them.
        """
        known = row.tokens[: row.length + 1].tolist()
        prompt = tuple(known[: row.prompt])
        state.rows[int(slot)] = ScriptedRow(
            prompt=prompt,
            answer=self.script(prompt),
            drawn=len(known) - len(prompt),
            pending=int(row.pending),
            budget=int(row.budget),
            stop_ids=frozenset(row.stop_ids.tolist()),
            temperature=float(row.temperature),
            wants=bool(row.top_logprobs >= 0),
            leader=int(row.leader),
        )
        return state

    def decode(
        self,
        state: Any,
        steps: Any,
        allowed: Any = None,
        lean: bool = False,
        adapter: Any = None,
        forced: Any = None,
    ) -> tuple[Any, StepOutput]:
        """Draw up to `steps` tokens for every decoding slot; return the state and what was drawn.

        `allowed` has a mask of tokens for each slot, for constraints; None: all are allowed. A slot
        with an empty mask is left out. `lean` and `adapter` are ignored; so is `forced`, because
        scripts know no speculation.
        """
        del lean, adapter, forced
        output = self.blank_output()
        for step in range(int(steps)):
            for slot, row in sorted(state.rows.items(), key=lambda each: each[1].leader):
                if allowed is not None and not allowed[slot].any():
                    continue  # its mask is still being computed
                place = len(row.prompt) + row.drawn - 1
                state.cached[slot, place] = row.pending
                said: int | None = int(output.token[step, row.leader])
                if row.leader < 0:
                    said = self.said(row, None if allowed is None else allowed[slot])
                self.note(output, (step, slot), row, said)
                row.drawn += 1
                row.budget -= 1
                if said is None or said in row.stop_ids or row.budget == 0:
                    del state.rows[slot]
                else:
                    row.pending = said
        return state, output

    def said(self, row: ScriptedRow, allowed: np.ndarray | None) -> int | None:
        """Return the script's next token for the answer in `row`; None if its logits are NaN.

        Raises the error that the script has in place of a token. `allowed` is the constraint's mask
        of tokens; None: all are allowed.
        """
        said = row.answer[row.drawn] if row.drawn < len(row.answer) else END_ID
        if isinstance(said, Exception):
            raise said
        if allowed is not None and said is not None:
            said = nearest_allowed(allowed, said)
        return said

    def release(self, state: Any, mask: Any) -> Any:
        """Stop decoding in the slots that the mask selects, and return the state."""
        for slot in np.flatnonzero(mask):
            state.rows.pop(int(slot), None)
        return state

    def scrub(self, state: Any, slot: Any) -> Any:
        """Clear the slot's cache, and return the state."""
        state.cached[slot] = -1
        return state

    def copy(self, state: Any, source: Any, target: Any, count: Any) -> Any:
        """Copy the first `count` tokens of one slot's cache into another's; return the state.

        `source` and `target` are the numbers of the slots.
        """
        state.cached[target, :count] = state.cached[source, :count]
        return state

    def save(self, state: Any, slot: Any, start: Any) -> Columns:
        """Return a copy of the KEY_BLOCK tokens of a slot's cache from position `start` on."""
        tokens = state.cached[slot, start : start + KEY_BLOCK].copy()
        return Columns(jnp.asarray(tokens[None, None, :, None]))

    def restore(self, state: Any, columns: Columns, slot: Any, start: Any) -> Any:
        """Replace the KEY_BLOCK tokens of a slot's cache from position `start` on by saved ones.

        `columns` is what `save` has returned.
        """
        state.cached[slot, start : start + KEY_BLOCK] = np.asarray(columns.numbers)[0, 0, :, 0]
        return state

    def peek(
        self, state: Any, slot: Any, pairs: Any, start: Any, last: Any, adapter: Any = None
    ) -> tuple[Any, Peek]:
        """Return the state, and the log-probability of each target token given the tokens before.

        `pairs` holds token ids, and for each the target that follows it; the ids are put into the
        slot's cache from position `start` on. `last` is the index of the last id that is not
        padding; `adapter` is ignored.
        """
        del adapter
        ids, targets = pairs
        state.cached[slot, start : start + last + 1] = ids[: last + 1]
        logits = np.zeros((len(ids), TINY.vocab_size), np.float32)
        for row in range(int(last) + 1):
            context = tuple(state.cached[slot, : start + row + 1].tolist())
            logits[row] = logprobs_around(self.script(context))
        return state, Peek(logits[np.arange(len(ids)), targets], logits)  # type: ignore[arg-type]

    def score(self, state: Any, slot: Any, runs: Runs, adapter: Any = None) -> tuple[Any, Any]:
        """Return the state, and the log-probabilities of given tokens after short token sequences.

        `runs` holds the sequences, each with its first position in the slot's cache, and the tokens
        whose log-probability is requested. The sequences are computed one after the other;
        `adapter` is ignored.
        """
        del adapter
        starts, counts = np.asarray(runs.places)
        size = len(runs.ids) // len(starts)
        after = {}
        for run, (start, count) in enumerate(zip(starts, counts, strict=True)):
            state.cached[slot, start : start + count] = runs.ids[run * size : run * size + count]
            for row in range(count):
                context = tuple(state.cached[slot, : start + row + 1].tolist())
                after[run * size + row] = context
        rows = [logprobs_around(self.script(after[row])) for row in np.asarray(runs.rows).tolist()]
        place, token = runs.pairs
        return state, np.stack(rows)[place, token].astype(np.float32)

    def embed(self, state: Any, slot: Any, ids: Any, start: Any, last: Any) -> tuple[Any, Pooled]:
        """Return the state, and the sum and the last of made-up hidden states of the tokens `ids`.

        The hidden state of token t at position p is p + 1 on axis t (modulo the width), and 0 on
        all others. `start` is the position of the first token, `last` the index of the last one
        that is not padding.
        """
        state.cached[slot, start : start + last + 1] = ids[: last + 1]
        rows = np.zeros((int(last) + 1, TINY.width), np.float32)
        places = np.arange(int(last) + 1)
        rows[places, ids[: last + 1] % TINY.width] = start + places + 1
        return state, Pooled(rows.sum(0), rows[-1])

    def blank_output(self) -> StepOutput:
        """Return the output of a decode call in which no row decodes."""
        shape = (self.engine.steps_per_sync, self.engine.slots)
        lists = (*shape, self.bank.top_logprobs)
        return StepOutput(
            np.full(shape, -1, np.int32),  # type: ignore[arg-type]
            ChosenTokens(
                token=np.zeros(shape, np.int32),  # type: ignore[arg-type]
                finite=np.ones(shape, np.bool_),  # type: ignore[arg-type]
                logprob=np.zeros(shape, np.float32),  # type: ignore[arg-type]
                sampled=np.zeros(shape, np.float32),  # type: ignore[arg-type]
                top_ids=np.zeros(lists, np.int32),  # type: ignore[arg-type]
                top_logprobs=np.zeros(lists, np.float32),  # type: ignore[arg-type]
                sampled_ids=np.zeros(lists, np.int32),  # type: ignore[arg-type]
                sampled_logprobs=np.zeros(lists, np.float32),  # type: ignore[arg-type]
            ),
        )

    def note(self, output: Any, place: tuple[int, int], row: ScriptedRow, said: int | None) -> None:
        """Write the token `said`, which a row drew, and its log-probabilities into the output.

        `place` is (step, slot); `said` None: the row's logits were NaN.
        """
        choice = output.choice
        choice.finite[place] = said is not None
        token = 0 if said is None else said
        output.token[place] = choice.token[place] = token
        if row.temperature > 0:
            choice.sampled[place] = -math.log(2)
        if row.wants:
            ranks = np.arange(self.bank.top_logprobs)
            choice.logprob[place] = -math.log(2)
            choice.top_ids[place] = choice.sampled_ids[place] = (token + ranks) % TINY.vocab_size
            choice.top_logprobs[place] = choice.sampled_logprobs[place] = -(ranks + 1) * math.log(2)


def nearest_allowed(words: np.ndarray, said: int) -> int:
    """Return the scripted token `said` if the constraint allows it, else the lowest allowed token.

    `words` is the constraint's mask: one bit per token.
    """
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return said if bits[said] else int(np.flatnonzero(bits)[0])


def logprobs_around(answer: Sequence[Said]) -> np.ndarray:
    """Return log-probabilities of the whole vocabulary when the script continues with `answer`.

    The first token of `answer` is the likeliest, or an end token if `answer` is empty.
    """
    token = answer[0] if answer else END_ID
    assert isinstance(token, int), "a script cannot fail where its logits are only read"
    distance = (np.arange(TINY.vocab_size) - token) % TINY.vocab_size
    return (-(distance + 1) * math.log(2)).astype(np.float32)
