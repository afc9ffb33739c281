"""The sampler socket: the one file a sampler author reads.

Subclass `Adjuster` to move logits, `Filter` to say which of the best candidates may be drawn, or
`Shaper` to weigh tokens anew where temperature does.
Write for ONE row; the engine maps it over the batch, skips it when no row uses it, and compiles it
into the decode step. Fields made with `knob` are the request's parameters; each row has its own
values and changing them never recompiles.

    class MinP(Filter):
        '''Keep tokens at least `min_p` times as likely as the likeliest.'''

        min_p: Knob = knob(off=0.0, low=0.0, high=1.0, help="smallest share of the top probability")

        def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
            return best.p >= self.min_p * best.p[0]

Order, always: adjusters (by `order`, then name) - temperature, with the shapers around it - sort
once - filters (by `order`, then name; each sees what the one before left, renormalised) - shapers
that come `last` - draw. With the core knob `temperature_last`, temperature and all shapers come
after the filters. Something always survives a filter: the likeliest candidate, or, where the filter
says `keeps_greedy = False` and keeps others, those; a filter that would drop everything drops
nothing. At temperature 0 neither shapers nor filters are asked: the likeliest adjusted token is
taken.
A row whose knobs are all `off` is untouched by construction. Must not: call back to the host,
draw its own random numbers (use `context.chance`), or look at other rows.

A filter sees only the best few hundred tokens. While it keeps the last of them, the engine asks
again with more, up to the whole vocabulary, so the answer is exact if whatever would be kept of a
longer list begins with what is kept of a shorter one.
Prove a sampler with `jaxllama.testing.check_sampler(MinP)`; register it as an entry point
of the group `jaxllama.samplers`, under the name that seeds its `context.chance`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp

from jaxllama.errors import BrokenPlugin
from jaxllama.mistakes import line_of
from jaxllama.shapes import Array, Bool, Float, Int, UInt32

Knob: TypeAlias = Any  # a number on the host, an array inside the compiled step
TokenSet: TypeAlias = Any  # Bool[V] inside the compiled step

NO_TOKEN = 2**31 - 1  # pads lists of token ids: out of every vocabulary, dropped by scatters
_SPEC = "jaxllama.knob"
_STATE = "jaxllama.state"
_SET = "jaxllama.token_set"


class Pairs(NamedTuple):
    """A knob that maps token ids to numbers; unused places hold NO_TOKEN."""

    ids: Knob  # Int[width]
    values: Knob  # Float[width]


@dataclasses.dataclass(frozen=True)
class KnobSpec:
    """What a knob accepts: everything validation, options and documentation need."""

    off: float | int
    low: float | int | None = None
    high: float | int | None = None
    help: str = ""
    width: int | None = None  # None: one number; n: a list of at most n numbers
    by_token: bool = False  # a mapping {token id: number} of at most `width` entries
    tokens: bool = False  # a list of token ids; unused places hold NO_TOKEN
    phrases: bool = False  # a list of texts or of lists of token ids; see `knob`
    switch: bool = True  # False: tunes the sampler, but does not turn it on
    counts: bool = False  # tokens of the answer: more than `max_tokens` is refused

    @property
    def kind(self) -> type:
        """`int`, `float` or `bool`: the type of `off` decides."""
        return type(self.off)


def knob(  # noqa: PLR0913 - one declaration says all there is to say about a parameter
    *,
    off: float | int,
    low: float | int | None = None,
    high: float | int | None = None,
    help: str = "",
    width: int | None = None,
    by_token: bool = False,
    tokens: bool = False,
    phrases: bool = False,
    switch: bool = True,
    counts: bool = False,
) -> Any:
    """Declare a request parameter; `off` is the value that leaves the row untouched.

    Lists of tokens and of phrases have `off=NO_TOKEN`. Phrases come as ids, each followed by one
    NO_TOKEN, `width` places in all; a text becomes two, written as it is and after a space.
    """
    spec = KnobSpec(off, low, high, help, width, by_token, tokens, phrases, switch, counts)
    return dataclasses.field(default=off, metadata={_SPEC: spec})


def state(*, start: float | int) -> Any:
    """Declare a number the sampler carries from token to token; see `Sampler.observe`."""
    return dataclasses.field(default=start, metadata={_STATE: True})


def token_set(test: Callable[[str], bool]) -> Any:
    """Declare the tokens whose text passes a test: a `TokenSet` that an adjuster finds filled in.

    Asked once per token when a model is loaded; the same for all rows. Control tokens have no
    text. A token that is a part of a character is tested with U+FFFD in its place.
    """
    return dataclasses.field(default=None, metadata={_SET: test})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a sampler may know about its row."""

    tokens: Int[Array, " T"]  # prompt and generated tokens; only the first `length` count
    length: Int[Array, ""]
    prompt: Int[Array, ""]  # tokens of the prompt
    stop_ids: Int[Array, " E"]  # ids that end this row, padded with NO_TOKEN
    chance: Float[Array, ""]  # one uniform number in [0, 1), this sampler's own at this step
    temperature: Float[Array, ""]
    allowed: UInt32[Array, " W"] | None = None  # packed; see `lets_through`

    @property
    def generated(self) -> Int[Array, ""]:
        """Tokens generated so far."""
        return self.length - self.prompt

    def lets_through(self, vocab: int) -> Bool[Array, " V"]:
        """Tokens that the request's constraint (a schema, a grammar) allows next."""
        if self.allowed is None:
            return jnp.ones(vocab, jnp.bool_)
        ids = jnp.arange(vocab, dtype=jnp.uint32)
        return (self.allowed[ids >> 5] >> (ids & 31)) & 1 > 0

    def newest(self, count: Knob) -> Bool[Array, " T"]:
        """Mask of the newest `count` tokens; 0 means all of them."""
        place = jnp.arange(self.tokens.shape[0])
        first = jnp.where(count > 0, self.length - count, 0)
        return (place < self.length) & (place >= first)

    def counts(self, vocab: int, count: Knob = 0) -> Float[Array, " V"]:
        """How often each token occurs among the newest `count` tokens (0: all)."""
        return self.occurrences(vocab, self.newest(count))

    def generated_counts(self, vocab: int) -> Float[Array, " V"]:
        """How often each token occurs among the generated tokens."""
        place = jnp.arange(self.tokens.shape[0])
        return self.occurrences(vocab, (place >= self.prompt) & (place < self.length))

    def occurrences(self, vocab: int, mask: Bool[Array, " T"]) -> Float[Array, " V"]:
        """How often each token occurs where `mask` is true."""
        ids = jnp.where(mask, self.tokens, NO_TOKEN)
        return jnp.zeros(vocab, jnp.float32).at[ids].add(1.0, mode="drop")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The best tokens of a row: survivors first, best first; the rest has p 0 and logit -inf.

    Logits are relative to the likeliest token and already divided by the temperature.
    """

    ids: Int[Array, " C"]
    logits: Float[Array, " C"]
    p: Float[Array, " C"]  # normalised over the survivors (at first: the whole vocabulary)
    log_total: Float[Array, ""]  # log-sum-exp of the survivors (at first: the whole vocabulary)
    entropy: Float[Array, ""]  # of the survivors (likewise), in natural units
    size: Int[Array, ""]  # how many survivors there are (likewise): perhaps more than are here

    @property
    def rank(self) -> Int[Array, " C"]:
        """0 for the likeliest survivor, 1 for the next, and so on."""
        return jnp.arange(self.ids.shape[0], dtype=jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """The token that was drawn, for samplers that adapt."""

    token: Int[Array, ""]
    logprob: Float[Array, ""]  # under the model: temperature 1, nothing adjusted or removed
    p: Float[Array, ""]  # the probability it was drawn with; 1 at temperature 0
    shown: Float[Array, ""]  # what a shaper that comes last was shown as its probability; else p


@dataclass_transform(frozen_default=True, field_specifiers=(knob, state, token_set))
class Sampler:
    """What adjusters, filters and shapers share; subclass one of those."""

    order: ClassVar[int] = 0  # lower runs earlier among its own kind
    keeps_greedy: ClassVar[bool] = False  # claims that the likeliest token stays the likeliest

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make every subclass a frozen dataclass and a pytree of its fields."""
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])

    def start(self) -> "Sampler":
        """The row as it begins a request: derive state from knobs here (on the host, NumPy)."""
        return self

    def observe(self, chosen: Chosen) -> "Sampler":
        """The row after a token was drawn; return an updated copy (`dataclasses.replace`)."""
        del chosen
        return self


class Adjuster(Sampler):
    """Moves logits: penalties, biases, constraints."""

    constrains: ClassVar[bool] = False  # on in the rows that have a constraint; needs no knob
    # Moves no token but those the row holds, each by its own logit and the places it is at. So it
    # is shown these alone, under other numbers: logits of N of them, and a `context` that speaks of
    # the same. Fast; not for adjusters that know tokens by their ids: from knobs, `stop_ids`,
    # `allowed` or token sets.
    held_only: ClassVar[bool] = False

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The moved logits of one row; -inf bans a token."""
        raise NotImplementedError


class Filter(Sampler):
    """Says which of the best candidates may be drawn."""

    keeps_greedy: ClassVar[bool] = True

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """True where a candidate may be drawn."""
        raise NotImplementedError


class Shaper(Sampler):
    """Weighs tokens anew where temperature does; temperature itself is at order 0.

    Called on the whole vocabulary, before the filters, or on what the filters leave: the answer for
    a token may depend on the others' logits, but not on its place. A row is never left empty.
    """

    last: ClassVar[bool] = False  # comes after the filters in any case

    def __call__(self, logits: Float[Array, " N"], context: Context) -> Float[Array, " N"]:
        """The logits of one row anew; -inf where a token is dropped, and where it is given."""
        raise NotImplementedError


class Preset:
    """A named set of knobs, for people to choose by what it is good for.

    A subclass says what in its docstring and which in `knobs`: any field of a request and any knob
    of any sampler. Register it as an entry point of the group `jaxllama.presets`.
    """

    knobs: ClassVar[Mapping[str, object]] = {}


def knobs_of(sampler: type[Sampler]) -> dict[str, KnobSpec]:
    """The knobs a sampler declares, in order."""
    fields = dataclasses.fields(sampler)  # type: ignore[arg-type]
    for field in fields:
        if not field.metadata.keys() & {_SPEC, _STATE, _SET}:
            raise BrokenPlugin(
                f"{sampler.__module__}.{sampler.__qualname__}.{field.name} is a bare field; "
                f"declare it with knob(...), state(...) or token_set(...)",
                where=line_of(sampler),
            )
    return {field.name: field.metadata[_SPEC] for field in fields if _SPEC in field.metadata}


def token_sets_of(sampler: type[Sampler]) -> dict[str, Callable[[str], bool]]:
    """The token sets a sampler declares, each with its test."""
    fields = dataclasses.fields(sampler)  # type: ignore[arg-type]
    return {field.name: field.metadata[_SET] for field in fields if _SET in field.metadata}
