"""The sampler socket: the one file a sampler author reads.

Subclass `Adjuster` to change logits, `Filter` to select the candidates that may be drawn, or
`Shaper` to reshape the distribution, as temperature does.
Write the sampler for ONE row, which is one request of the batch. The engine maps it over the batch,
skips it when no row uses it, and compiles it into the decode step. Fields made with `knob` are
request parameters; each row has its own values, and changing the values never recompiles.

    class MinP(Filter):
        '''Keep tokens at least `min_p` times as likely as the likeliest.'''

        min_p: Knob = knob(off=0.0, low=0.0, high=1.0, help="smallest share of the top probability")

        def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
            return best.p >= self.min_p * best.p[0]

The engine always runs these steps in this order:

    1. adjusters, sorted by `order`, then by name
    2. shapers and temperature, sorted by `order`; temperature has order 0
    3. one sort of the tokens, best first
    4. filters, sorted by `order`, then by name; each filter sees the candidates that the filters
       before it kept, with renormalised probabilities
    5. shapers with `last = True`
    6. the draw of one token

If a request sets the core knob `temperature_last`, temperature and all shapers run after the
filters instead. At temperature 0 the engine calls no shaper and no filter: it takes the likeliest
token after the adjusters.

At least one candidate survives every filter. The likeliest candidate always survives a filter with
`keeps_greedy = True`. A filter with `keeps_greedy = False` may drop the likeliest candidate if it
keeps another one; if it would drop all candidates, the engine drops none.

The engine never changes a row whose knobs are all `off`. A sampler must not call back to the host,
draw its own random numbers (use `context.chance`), or read other rows.

A filter sees only the best few hundred tokens. If it keeps the last of them, the engine calls it
again with more tokens, up to the whole vocabulary. The result is exact if the tokens kept from a
short list are the first of the tokens kept from any longer list.

Prove a sampler with `jaxllama.testing.check_sampler(MinP)`. Register it as an entry point of the
group `jaxllama.samplers`; the name of the entry point seeds `context.chance` of this sampler.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp

from jaxllama.errors import BrokenPlugin
from jaxllama.mistakes import line_of
from jaxllama.shapes import Array, Bool, Float, Int, UInt32

Knob: TypeAlias = Any  # a number on the host, an array inside the compiled step
TokenSet: TypeAlias = Any  # Bool[V] inside the compiled step

NO_TOKEN = 2**31 - 1  # padding of lists of token ids; no vocabulary has it, scatters drop it
_SPEC = "jaxllama.knob"
_STATE = "jaxllama.state"
_SET = "jaxllama.token_set"


class Pairs(NamedTuple):
    """The value of a knob that maps token ids to numbers; unused entries hold NO_TOKEN."""

    ids: Knob  # Int[width]
    values: Knob  # Float[width]


@dataclasses.dataclass(frozen=True)
class KnobText:
    """The conversion of a knob's text to the numbers that the sampler receives."""

    # Returns at most `width` numbers. Raises ValueError for a wrong text; says what, and where.
    encode: Callable[[str], Sequence[float]]
    longest: int  # characters
    examples: tuple[str, ...]  # accepted texts; the checks of the sampler and the page use them
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)  # names, with their meaning


@dataclasses.dataclass(frozen=True)
class KnobSpec:
    """The declaration of one knob, from which its checks, options and documentation are made."""

    off: float | int
    low: float | int | None = None
    high: float | int | None = None
    help: str = ""
    width: int | None = None  # None: one number; n: a list of at most n numbers
    by_token: bool = False  # a mapping {token id: number} with at most `width` entries
    tokens: bool = False  # a list of token ids; unused entries hold NO_TOKEN
    phrases: bool = False  # a list whose items are texts or lists of token ids; see `knob`
    text: KnobText | None = None  # one text, which becomes at most `width` numbers
    switch: bool = True  # False: this knob tunes the sampler, but does not turn it on
    counts: bool = False  # counts tokens of the answer; a value above `max_tokens` is refused

    @property
    def kind(self) -> type:
        """Return the type of the parameter's numbers, `int`, `float` or `bool`: that of `off`."""
        return type(self.off)


def knob(  # noqa: PLR0913 - one call declares all properties of a parameter
    *,
    off: float | int,
    low: float | int | None = None,
    high: float | int | None = None,
    help: str = "",
    width: int | None = None,
    by_token: bool = False,
    tokens: bool = False,
    phrases: bool = False,
    text: KnobText | None = None,
    switch: bool = True,
    counts: bool = False,
) -> Any:
    """Declare a request parameter of a sampler; with the value `off`, it changes nothing.

    `low` and `high` bound its numbers, None: no bound. `width` is the most entries of a list or
    dict, None: the value is one number. `by_token`: a dict from token ids to numbers. `tokens`: a
    list of token ids, with `off=NO_TOKEN`. `phrases`: a list of texts or lists of token ids, with
    `off=NO_TOKEN`; the sampler receives the token ids in one array of `width` entries, with one
    NO_TOKEN after each phrase. A phrase given as text becomes two: the text as written, and the
    text after a space. `text`: one string; the sampler receives the numbers that `text.encode`
    makes of it, filled up with `off`. `switch` False: the parameter tunes the sampler, but does not
    turn it on. `counts`: the parameter counts tokens of the answer, and may not exceed
    `max_tokens`.
    """
    spec = KnobSpec(off, low, high, help, width, by_token, tokens, phrases, text, switch, counts)
    return dataclasses.field(default=off, metadata={_SPEC: spec})


def state(*, start: float | int) -> Any:
    """Declare a number that the sampler keeps for each request from token to token.

    `start` is its value before the first token. Override `Sampler.observe` to change it.
    """
    return dataclasses.field(default=start, metadata={_STATE: True})


def token_set(test: Callable[[str], bool]) -> Any:
    """Declare the set of tokens whose text passes `test`; an adjuster receives it as a mask [V].

    When a model is loaded, `test` is called once for each token; all rows share the result. The
    text of a control token is empty. In a token that holds only a part of a character, U+FFFD
    replaces this part.
    """
    return dataclasses.field(default=None, metadata={_SET: test})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The facts about its row that a sampler may read beside the logits."""

    tokens: Int[Array, " T"]  # prompt and generated tokens; entries from `length` on are unused
    length: Int[Array, ""]  # number of tokens, prompt and generated
    prompt: Int[Array, ""]  # number of prompt tokens
    stop_ids: Int[Array, " E"]  # ids that end this row, padded with NO_TOKEN
    chance: Float[Array, ""]  # one uniform number in [0, 1), new for each sampler and step
    temperature: Float[Array, ""]
    allowed: UInt32[Array, " W"] | None = None  # one bit per token; see `lets_through`
    total: Float[Array, ""] | None = None  # of a shaper's logits; see `log_total`

    @property
    def generated(self) -> Int[Array, ""]:
        """Return the number of tokens generated so far."""
        return self.length - self.prompt

    def log_total(self, logits: Float[Array, " N"]) -> Float[Array, ""]:
        """Return the log-sum-exp of `logits`; a Shaper must pass the logits it is called with.

        For these, the engine has already computed it in a kernel, several times as fast as
        `jax.nn.logsumexp`.
        """
        return jax.nn.logsumexp(logits) if self.total is None else self.total

    def lets_through(self, vocab: int) -> Bool[Array, " V"]:
        """Return the mask of tokens that the request's constraint (schema, grammar) allows next."""
        if self.allowed is None:
            return jnp.ones(vocab, jnp.bool_)
        ids = jnp.arange(vocab, dtype=jnp.uint32)
        return (self.allowed[ids >> 5] >> (ids & 31)) & 1 > 0

    def newest(self, count: Knob) -> Bool[Array, " T"]:
        """Return the mask of the newest `count` tokens in `tokens`, prompt included; 0: all."""
        place = jnp.arange(self.tokens.shape[0])
        first = jnp.where(count > 0, self.length - count, 0)
        return (place < self.length) & (place >= first)

    def counts(self, vocab: int, count: Knob = 0) -> Float[Array, " V"]:
        """Count how often each token occurs among the newest `count` tokens (0: all tokens)."""
        return self.occurrences(vocab, self.newest(count))

    def generated_counts(self, vocab: int) -> Float[Array, " V"]:
        """Count how often each token occurs among the generated tokens."""
        place = jnp.arange(self.tokens.shape[0])
        return self.occurrences(vocab, (place >= self.prompt) & (place < self.length))

    def occurrences(self, vocab: int, mask: Bool[Array, " T"]) -> Float[Array, " V"]:
        """Count how often each token occurs at the positions where `mask` is true."""
        ids = jnp.where(mask, self.tokens, NO_TOKEN)
        return jnp.zeros(vocab, jnp.float32).at[ids].add(1.0, mode="drop")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The best tokens of a row, sorted: first the survivors, best first, then the dropped tokens.

    A survivor is a token that all filters so far have kept. Before the first filter, all tokens of
    the vocabulary are survivors. A dropped token has p 0 and logit -inf. Logits are relative to the
    likeliest token and already divided by the temperature.
    """

    ids: Int[Array, " C"]
    logits: Float[Array, " C"]
    p: Float[Array, " C"]  # probability, normalised over all survivors
    log_total: Float[Array, ""]  # log-sum-exp of the logits of all survivors
    entropy: Float[Array, ""]  # entropy of all survivors, in natural units
    size: Int[Array, ""]  # number of all survivors; `ids` may hold only the best of them

    @property
    def rank(self) -> Int[Array, " C"]:
        """Return the rank of each candidate: 0 for the likeliest survivor, 1 for the next, ..."""
        return jnp.arange(self.ids.shape[0], dtype=jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """The token that was drawn, as `Sampler.observe` receives it."""

    token: Int[Array, ""]
    logprob: Float[Array, ""]  # under the model: temperature 1, no sampler applied
    p: Float[Array, ""]  # the probability with which the token was drawn; 1 at temperature 0
    shown: Float[Array, ""]  # for a shaper with `last`: the token's p in its input; else p


@dataclass_transform(frozen_default=True, field_specifiers=(knob, state, token_set))
class Sampler:
    """The base of all samplers; subclass `Adjuster`, `Filter` or `Shaper` instead."""

    order: ClassVar[int] = 0  # a lower order runs earlier among adjusters, filters or shapers
    keeps_greedy: ClassVar[bool] = False  # promises that the likeliest token stays the likeliest
    # True: many requests use the sampler, and it compiles fast. The first decode program of a fresh
    # installation contains only common samplers; requests with others wait for the next one.
    common: ClassVar[bool] = False
    # True promises that the sampler draws nothing and treats prompt and answer as one text. A beam
    # search, whose prefixes are prompts of their own, uses only such samplers.
    suits_beams: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make every subclass a frozen dataclass and register it as a pytree of its fields."""
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])

    def start(self) -> "Sampler":
        """Return this sampler with the state that a new request starts with.

        Runs on the host with NumPy. Override it to compute state fields from knobs.
        """
        return self

    def observe(self, chosen: Chosen) -> "Sampler":
        """Return this sampler with its state after the drawn token, `chosen`.

        Override it to change state fields, with `dataclasses.replace`.
        """
        del chosen
        return self


class Adjuster(Sampler):
    """A sampler that changes logits: penalties, biases, constraints."""

    constrains: ClassVar[bool] = False  # True: runs in rows that have a constraint, without a knob
    # True promises that the adjuster changes only tokens that occur in the row (prompt or answer),
    # and that a change depends only on the token's own logit and positions. The engine then passes
    # only the logits of these N tokens, with new ids from 0 to N - 1; `context` uses the new ids as
    # well. This is fast. Do not set it in an adjuster that compares ids with knobs, `stop_ids`,
    # `allowed` or token sets.
    held_only: ClassVar[bool] = False

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Return the changed logits of one row; a logit of -inf bans the token."""
        raise NotImplementedError


class Filter(Sampler):
    """A sampler that selects which of the best candidates may be drawn."""

    keeps_greedy: ClassVar[bool] = True

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for each candidate that may be drawn."""
        raise NotImplementedError

    def needs_totals(self) -> Bool[Array, ""]:
        """Say whether this row needs the candidates' `entropy` or their exact `size`.

        Both take a pass over the vocabulary, which the engine saves if no row needs them. In a row
        that does not need them, `entropy` is 0 and `size` may be too large: the number of all
        tokens.
        """
        return jnp.bool_(True)


class Shaper(Sampler):
    """A sampler that reshapes the distribution, as temperature does; temperature has order 0.

    The engine calls a shaper with the logits of the whole vocabulary (before the filters) or of the
    candidates that the filters kept. So the new logit of a token may depend on the logits of other
    tokens, but not on its position in the array. The engine never lets a shaper drop every token.
    """

    last: ClassVar[bool] = False  # True: always runs after the filters
    # True promises to leave at least one token of every row; the engine then does not check it,
    # which would take two more passes over the logits.
    keeps_some: ClassVar[bool] = False

    def __call__(self, logits: Float[Array, " N"], context: Context) -> Float[Array, " N"]:
        """Return the new logits of one row.

        Return -inf for tokens to drop; tokens that come in as -inf must stay -inf.
        """
        raise NotImplementedError


class Preset:
    """A named set of knob values that users choose by its purpose.

    A subclass describes the purpose in its docstring and sets the values in `knobs`, for any field
    of a request and any knob of any sampler. Register it as an entry point of the group
    `jaxllama.presets`.
    """

    knobs: ClassVar[Mapping[str, object]] = {}


def knobs_of(sampler: type[Sampler]) -> dict[str, KnobSpec]:
    """Return the knobs that a sampler declares, in order.

    Raises BrokenPlugin for a field that is declared without `knob`, `state` or `token_set`.
    """
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
    """Return the test of token texts for each token set that a sampler declares, by field name."""
    fields = dataclasses.fields(sampler)  # type: ignore[arg-type]
    return {field.name: field.metadata[_SET] for field in fields if _SET in field.metadata}
