"""Explain: the effect of each sampler on each token of an answer, also with other knob values.

A replay runs recorded logits (`recording.py`) through the sampler bank once for every sampler that
is on, together with the samplers before it, and compares the results: no sampler is described
here. It needs no model. Called by `jaxllama explain` and the server's `/explain`.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxllama.engine.choosing.bank import Bank, SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens, TokenChooser
from jaxllama.engine.choosing.knobs import switches_on
from jaxllama.engine.choosing.rows import Rows, chance
from jaxllama.errors import InvalidParameter
from jaxllama.kernels import body_named, fastest_body
from jaxllama.limits import LIMITS, check, unknown_field
from jaxllama.recording import Recording
from jaxllama.sampling import NO_TOKEN, Sampler, Shaper, knobs_of

CORE = (
    "temperature",
    "temperature_last",
    "seed",
)  # fields that a replay can change beside the knobs
MOST_SAMPLERS = 12  # whose operations are kept, the model and the temperature among them
ROWS_AT_LEAST = 12  # rows of a replay: the same for most lists of samplers, so are the operations
MODEL, HEAT = "model", "temperature"  # stages that are no samplers
CORE_AT = 0  # the order of the temperature among shapers


@dataclass(frozen=True)
class LikelyToken:
    """One of the likeliest tokens after a stage."""

    token: int
    text: str
    p: float


@dataclass(frozen=True)
class Stage:
    """The effect of one sampler, or of the temperature, at one position."""

    name: str
    kept: int  # tokens that can be drawn after the stage
    removed: float  # probability, before the stage, of the tokens that it dropped
    rank: int | None  # of the drawn token after the stage, from 0; None: dropped
    p: float  # probability of the drawn token after the stage
    top: tuple[LikelyToken, ...] = ()  # the likeliest tokens after the stage, as many as requested


@dataclass(frozen=True)
class Position:
    """One token of an answer."""

    token: int
    text: str
    recorded: int  # the token that the engine drew; changed knobs may draw another `token`
    chance: float  # the uniform number that decides the draw
    stages: tuple[Stage, ...]  # the first is the model itself


def replay(
    recording: Recording,
    samplers: Mapping[str, type[Sampler]],
    changes: Mapping[str, object] | None = None,
) -> list[Position]:
    """Draw every recorded token again from its recorded logits, with changed sampler settings.

    `changes` are new values of settings (knobs) by name; None: no changes. `samplers` are all
    installed samplers by name. Each position continues the recorded tokens, even if the changes
    would have drawn another token before it: the logits after that token are not recorded.
    """
    changes = changes or {}
    found = Replay(with_changes(recording, changes), samplers, changes).positions()
    return [position for position in found if position is not None]


def replay_in_server(
    recording: Recording,
    samplers: Mapping[str, type[Sampler]],
    changes: Mapping[str, object],
    *,
    only: int | None = None,
    top: int = 0,
) -> Iterator[Position | None]:
    """Draw recorded tokens again from their logits, one position per iteration.

    `samplers` are all installed samplers by name. `changes` are new values of sampler settings
    (knobs) by name; wrong values raise at once. `only`: index of the only position to yield; None
    is yielded for each earlier position that has to be replayed, because a sampler keeps state.
    `only` None: all positions are yielded. `top`: how many of the likeliest tokens are listed after
    each sampler. A replay compiles some 250 MiB of operations for a list of samplers; those of at
    most MOST_SAMPLERS samplers are kept, so that clients cannot fill the memory with different
    lists.
    """
    found = Replay(with_changes(recording, changes), samplers, changes)
    LATEST.note(found.names, recording.logits.shape[-1])
    return found.positions(only=only, top=top)


class LatestSamplers:
    """The samplers whose operations the replays of this process have compiled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._vocab = 0

    def note(self, names: Iterable[str], vocab: int) -> None:
        """Record a replay with the samplers `names`; first free compiled operations if needed.

        They are freed if the operations of too many samplers would be kept, or if they are for
        another size of vocabulary than `vocab`.
        """
        with self._lock:
            together = self._names | set(names)
            if vocab != self._vocab or len(together) > MOST_SAMPLERS:
                jax.clear_caches()
                together = set(names)
            self._names, self._vocab = together, vocab


LATEST = LatestSamplers()


def check_changes(changes: Mapping[str, object], bank: SamplerBank) -> None:
    """Raise InvalidParameter for changes of settings with which no replay is possible.

    `changes` are new values by name, of knobs of samplers, of temperature, temperature_last or
    seed. `bank` has the samplers of the recording.
    """
    check_core(changes)
    bank.check({name: value for name, value in changes.items() if name not in CORE})


def check_core(changes: Mapping[str, object]) -> dict[str, Any]:
    """Return the changes of temperature, temperature_last and seed, checked and converted.

    Knobs of samplers in `changes` are ignored. Any other field of a request, such as max_tokens,
    raises InvalidParameter.
    """
    for name in changes:
        if name in LIMITS and name not in CORE:
            raise InvalidParameter(f"{name} cannot be changed in a replay", name)
    return {name: check(name, changes[name]) for name in CORE if name in changes}


def with_changes(recording: Recording, changes: Mapping[str, object]) -> Recording:
    """Return a copy of the recording in which the settings named in `changes` have new values."""
    checked = check_core(changes)
    knobs = {name: value for name, value in changes.items() if name not in CORE}
    return replace(recording, knobs={**recording.knobs, **knobs}, **checked)


class Replay:
    """Runs one recording through a bank of the samplers that it uses."""

    def __init__(
        self,
        recording: Recording,
        samplers: Mapping[str, type[Sampler]],
        changes: Mapping[str, object],
    ) -> None:
        self.recording = recording
        used = {name: kind for name, kind in samplers.items() if switches_on(kind, recording.knobs)}
        vocab = recording.logits.shape[-1]
        body = recording.body
        if body_named(body).missing():
            body = fastest_body().name
        self.bank = SamplerBank(
            used,
            vocab=vocab,
            candidates=recording.candidates,
            top_logprobs=vocab,
            body=body,
            texts=lambda: recording.texts,
        )
        known = {knob for kind in samplers.values() for knob in knobs_of(kind)}
        for name in changes:
            if name not in known and name not in LIMITS:
                raise unknown_field(name, [*known, *CORE])
        mine = {name: value for name, value in recording.knobs.items() if name in self.bank.knobs}
        self.bank.check(mine)
        self.leaves, self.off = self.bank.row(mine), self.bank.row({})
        self.names = [MODEL, *running(self.bank, recording)]
        self.last = len(self.names) - 1
        self.size = max(ROWS_AT_LEAST, len(self.names))  # rows; those after the last are not used

    def positions(self, *, only: int | None = None, top: int = 0) -> Iterator[Position | None]:
        """Yield every position in order, carrying the samplers' state from token to token.

        `only`: index of the only position to yield, with None for each one before it; if no sampler
        keeps state, these are left out. `top`: how many of the likeliest tokens are listed after
        each sampler.
        """
        leaves = self.leaves
        for index, recorded in enumerate(self.recording.tokens):
            if only is not None and index < only and not self.bank.observers:
                continue
            if only is not None and index > only:
                return
            rows = self.rows(index)
            logits = jax.numpy.stack([self.recording.logits[index]] * self.size)
            # Without compilation, only the branches that are taken run.
            with jax.disable_jit():
                after, choice = TokenChooser(self.bank).choose(self.stacked(leaves), logits, rows)
                uniform = float(jax.vmap(chance)(rows)[self.last])
            token = int(choice.token[self.last])
            shares = [self.shares(choice, place) for place in range(len(self.names))]
            before = [shares[0], *shares[:-1]]
            if only is None or index == only:
                stages = [
                    replace(stage(*each, token), top=self.likeliest(each[-1], top))
                    for each in zip(self.names, before, shares, strict=True)
                ]
                yield Position(token, self.text(token), recorded, uniform, tuple(stages))
            else:
                yield None
            leaves = jax.tree.map(lambda leaf: np.asarray(leaf[self.last]), after)

    def text(self, token: int) -> str:
        """Return the text of a token; "" if it has none."""
        texts = self.recording.texts
        return texts[token] if token < len(texts) else ""

    def likeliest(self, shares: np.ndarray, count: int) -> tuple[LikelyToken, ...]:
        """Return the `count` likeliest tokens, the best first, without those of probability 0.

        `shares` has the probability of every token of the vocabulary.
        """
        best = np.argsort(-shares, kind="stable")[:count]
        return tuple(
            LikelyToken(int(token), self.text(int(token)), float(shares[token]))
            for token in best
            if shares[token] > 0
        )

    def stacked(self, leaves: Bank) -> Bank:
        """Return the samplers' knob and state arrays with a row for each stage of the replay.

        A stage is a sampler or the temperature. In the row of a stage, the samplers of this stage
        and of all earlier ones are on; in the last row, all are. `leaves` are the arrays of one
        row.
        """
        each, on = [], dict(self.off)
        for name in self.names:
            if name in leaves:
                on = {**on, name: leaves[name]}
            each.append(on)
        each[-1] = leaves
        each += [self.off] * (self.size - len(each))
        return jax.tree.map(lambda *rows: jax.numpy.stack(rows), *each)

    def shares(self, choice: ChosenTokens, place: int) -> np.ndarray:
        """Return the probability of every token of the vocabulary after a stage (sampler).

        `choice` has one row for each stage; `place` is the index of the stage.
        """
        ids = np.asarray(choice.sampled_ids[place])
        logprobs = np.asarray(choice.sampled_logprobs[place])
        shares = np.zeros(self.bank.vocab)
        alive = logprobs > -np.inf
        shares[ids[alive]] = np.exp(logprobs[alive])
        return shares

    def rows(self, index: int) -> Rows:
        """Return the engine rows, one for each stage, that draw token number `index` of the answer.

        A stage is a sampler or the temperature. Rows of stages before the temperature have
        temperature 1.
        """
        mine = self.recording
        known = [*mine.prompt, *mine.tokens[:index]]
        tokens = np.zeros(mine.columns, np.int32)
        tokens[: len(known)] = known
        leaves: dict[str, Any] = {
            "tokens": tokens,
            "length": np.int32(len(known)),
            "prompt": np.int32(len(mine.prompt)),
            "stop_ids": np.array([*mine.stop_ids, NO_TOKEN], np.int32),
            "temperature": np.float32(mine.temperature),
            "temperature_last": np.bool_(mine.temperature_last),
            "seed": np.array([mine.seed >> 32, mine.seed & 0xFFFFFFFF], np.uint32),
            "active": np.bool_(True),
            "top_logprobs": np.int32(self.bank.vocab),
        }
        many: dict[str, Any] = {
            name: np.repeat(leaf[None], self.size, axis=0) for name, leaf in leaves.items()
        }
        many["temperature"][: self.names.index(HEAT)] = 1.0
        many["active"][len(self.names) :] = False
        return Rows(**jax.tree.map(jax.numpy.asarray, many))


def running(bank: SamplerBank, recording: Recording) -> Iterator[str]:
    """Yield the names of the stages after the model, in order: samplers and temperature.

    `bank` has the samplers; `recording` has the temperature, and says whether it comes last.
    Samplers that have no effect, such as filters at temperature 0, are left out.
    """
    yield from bank.adjusters
    if recording.temperature == 0:  # greedy: neither filters nor shapers run
        yield HEAT
        return
    early = {} if recording.temperature_last else without_last(bank.shapers)
    late = {name: kind for name, kind in bank.shapers.items() if name not in early}
    if not recording.temperature_last:
        yield from around(early)
    yield from bank.filters
    yield from around(late) if recording.temperature_last else late


def without_last(shapers: Mapping[str, type[Shaper]]) -> dict[str, type[Shaper]]:
    """Return the shapers that do not set `last = True`.

    Shapers are the samplers that change all logits of a row; those with `last` run after the
    filters.
    """
    return {name: kind for name, kind in shapers.items() if not kind.last}


def around(shapers: Mapping[str, type[Shaper]]) -> Iterator[str]:
    """Yield the names of shapers in running order, with the temperature's name at its place.

    Shapers are the samplers that change all logits of a row.
    """
    yield from (name for name, kind in shapers.items() if kind.order < CORE_AT)
    yield HEAT
    yield from (name for name, kind in shapers.items() if kind.order >= CORE_AT)


def stage(name: str, before: np.ndarray, after: np.ndarray, token: int) -> Stage:
    """Return the effect of a sampler that turned the probabilities `before` into `after`.

    Both have one number per token of the vocabulary; `token` was drawn. `name` is that of the
    sampler or of the temperature.
    """
    p = float(after[token])
    return Stage(
        name=name,
        kept=int((after > 0).sum()),
        removed=float(before[after == 0].sum()),
        rank=int((after > p).sum()) if p > 0 else None,
        p=p,
    )
