"""Knobs: the catalogue of every sampler's parameters, their validation and their encoding.

Used by the sampler bank, on the host, once per request. Knows numbers and NumPy, no programs (jax
only for its trees).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxllama import mistakes
from jaxllama.errors import BrokenPlugin, InvalidParameter, KnobClash
from jaxllama.limits import LIMITS, check_number
from jaxllama.sampling import (
    NO_TOKEN,
    Adjuster,
    KnobSpec,
    KnobText,
    Pairs,
    Sampler,
    knobs_of,
    token_sets_of,
)

DTYPES: dict[type, type[np.generic]] = {bool: np.bool_, int: np.int32, float: np.float32}
MAX_INT = 2**31 - 1
MAX_FLOAT = float(np.finfo(np.float32).max)
TOKEN_ID = r"0|[1-9][0-9]{0,9}"  # written as text: a JSON object has no other keys
MAX_TEXT = 256  # characters of one phrase


def catalogue(samplers: Mapping[str, type[Sampler]]) -> dict[str, KnobSpec]:
    """Return the declaration of every knob (parameter) of all samplers, by the knob's name.

    Raises KnobClash if a name is taken twice, BrokenPlugin for a declaration that cannot work.
    """
    owners: dict[str, str] = {}
    specs: dict[str, KnobSpec] = {}
    for name, kind in samplers.items():
        declared = knobs_of(kind)
        by_constraint = issubclass(kind, Adjuster) and kind.constrains
        if not (by_constraint or any(spec.switch for spec in declared.values())):
            raise BrokenPlugin(
                f"sampler {name!r} has no knob that turns it on",
                where=mistakes.line_of(kind),
                hint="declare one: strength: Knob = knob(off=0.0, help=...)",
            )
        for knob, spec in declared.items():
            if knob in LIMITS:
                raise KnobClash(
                    f"sampler {name!r} claims knob {knob!r}, which is a field of every request; "
                    f"rename the knob"
                )
            if knob in owners:
                raise KnobClash(
                    f"samplers {owners[knob]!r} and {name!r} both claim knob {knob!r}; "
                    f"uninstall one of them"
                )
            fault = fault_in(spec)
            if fault is not None:
                raise BrokenPlugin(
                    f"knob {knob!r} of sampler {name!r} {fault}", where=mistakes.line_of(kind)
                )
            owners[knob], specs[knob] = name, spec
    return specs


def fault_in(spec: KnobSpec) -> str | None:
    """Return a description of the fault in a knob's declaration, or None without one.

    A knob is a sampler's parameter. The text ends an error message that begins with the knob's
    name.
    """
    listed = spec.by_token or spec.tokens or spec.phrases
    if spec.kind not in DTYPES:
        return f"has off={spec.off!r}; expected a number"
    if listed and spec.width is None:
        return "holds tokens but has no width; say how many entries fit"
    if (spec.tokens or spec.phrases) and spec.off != NO_TOKEN:
        return f"lists tokens and has off={spec.off!r}; expected NO_TOKEN"
    if spec.text is not None:
        return fault_in_text(spec, spec.text)
    return fault_in_bounds(spec)


def fault_in_bounds(spec: KnobSpec) -> str | None:
    """Return a description of the fault in a knob's bounds or width, or None without one.

    A knob is a sampler's parameter; its width is the most entries of a list. The text ends an error
    message that begins with the knob's name.
    """
    if spec.width is not None and spec.width < 1:
        return f"has width {spec.width}; it must be at least 1"
    if spec.low is not None and spec.high is not None and spec.low > spec.high:
        return f"has bounds [{spec.low}, {spec.high}]; no number lies there"
    return None


def fault_in_text(spec: KnobSpec, text: KnobText) -> str | None:
    """Return a description of the fault in the declaration of a knob with a text, or None.

    A knob is a sampler's parameter; `spec` is its declaration, `text` the field `spec.text`. The
    returned text ends an error message that begins with the knob's name.
    """
    if spec.width is None or spec.tokens or spec.phrases or spec.by_token:
        return "has a text; it needs a width, and cannot list tokens"
    if not text.examples:
        return "has a text without examples; give one that it accepts"
    return None


def check_knob(name: str, value: object, spec: KnobSpec, vocab: int) -> None:
    """Raise InvalidParameter unless the knob `name` accepts `value`; None is always accepted.

    A knob is a sampler's parameter, declared by `spec`; None leaves it off. `vocab` is the number
    of tokens of the model.
    """
    if value is None:
        return
    if spec.text is not None:
        check_text(name, value, spec, spec.text)
        return
    if spec.by_token:
        check_mapping(name, value, spec, vocab)
    elif spec.width is None:
        check_item(name, value, spec)
    else:
        check_list(name, value, spec, vocab)


def check_text(name: str, value: object, spec: KnobSpec, text: KnobText) -> None:
    """Raise InvalidParameter unless `value` is a text that the knob can encode.

    A knob is a sampler's parameter; `name` is its name for the message, `spec` its declaration,
    `text` the field `spec.text`, which encodes the value as numbers.
    """
    if not isinstance(value, str) or not value:
        raise InvalidParameter(
            f"{name} is {value!r:.100}; expected a text, such as {text.examples[0]!r}", name
        )
    if len(value) > text.longest:
        raise InvalidParameter(
            f"{name} has {len(value)} characters; at most {text.longest} are allowed", name
        )
    try:
        numbers = text.encode(value)
    except ValueError as error:
        raise InvalidParameter(f"{name}: {error}", name) from error
    check_width(name, len(numbers), spec, "numbers")


def check_list(name: str, value: object, spec: KnobSpec, vocab: int) -> None:
    """Raise InvalidParameter unless `value` is a list whose length and items `spec` allows.

    `spec` is the declaration of a knob, a sampler's parameter; `name` is its name for the message,
    `vocab` the number of tokens of the model.
    """
    if not isinstance(value, list | tuple):
        raise InvalidParameter(f"{name} is {value!r}; expected a list", name)
    check_width(name, len(value), spec)
    for item in value:
        if spec.phrases:
            check_phrase(name, item, vocab)
        elif spec.tokens:
            check_token(name, item, vocab)
        else:
            check_item(name, item, spec)
    if spec.phrases:
        check_width(name, len(flat(value)), spec, "tokens, ends of phrases included")


def check_phrase(name: str, phrase: object, vocab: int) -> None:
    """Raise InvalidParameter unless `phrase` is a text or a list of token ids, not empty.

    A knob is a sampler's parameter; `name` is its name for the message, `vocab` the number of
    tokens of the model.
    """
    if not isinstance(phrase, str | list | tuple) or not phrase:
        raise InvalidParameter(
            f"{name} holds {phrase!r}; expected texts, or lists of token ids, none of them empty",
            name,
        )
    if not isinstance(phrase, str):
        for token in phrase:
            check_token(name, token, vocab)
    elif len(phrase) > MAX_TEXT:
        raise InvalidParameter(
            f"{name} holds a text of {len(phrase)} characters; at most {MAX_TEXT} are allowed", name
        )


def check_token(name: str, token: object, vocab: int) -> None:
    """Raise InvalidParameter unless `token` is a token id below `vocab`.

    A knob is a sampler's parameter; `name` is its name for the message.
    """
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
        raise InvalidParameter(
            f"{name} holds {token!r}; expected token ids from 0 to {vocab - 1}", name
        )


def check_mapping(name: str, value: object, spec: KnobSpec, vocab: int) -> None:
    """Raise InvalidParameter unless `value` maps token ids to numbers that the knob accepts.

    A token id may be written as a text of digits, as in JSON. A knob is a sampler's parameter;
    `name` is its name for the message, `spec` its declaration, `vocab` the number of tokens of the
    model.
    """
    if not isinstance(value, Mapping):
        raise InvalidParameter(
            f"{name} is {value!r}; expected a mapping of token ids to numbers", name
        )
    check_width(name, len(value), spec)
    seen: set[int] = set()
    for key, item in value.items():
        token = token_id(name, key)
        if not 0 <= token < vocab:
            raise InvalidParameter(
                f"{name} names token {token}; this model has tokens 0 to {vocab - 1}", name
            )
        if token in seen:
            raise InvalidParameter(f"{name} names token {token} twice; name it once", name)
        seen.add(token)
        check_item(name, item, spec)


def check_width(name: str, entries: int, spec: KnobSpec, what: str = "entries") -> None:
    """Raise InvalidParameter if a value has more `entries` than the knob has room for.

    A knob is a sampler's parameter; `name` is its name, `spec` its declaration; `what` says in the
    message what the entries are.
    """
    if spec.width is not None and entries > spec.width:
        raise InvalidParameter(f"{name} has {entries} {what}; at most {spec.width} fit", name)


def check_item(name: str, value: object, spec: KnobSpec) -> None:
    """Raise InvalidParameter unless `value` is one number or boolean that the knob accepts.

    A knob is a sampler's parameter; `name` is its name for the message, `spec` its declaration. A
    number must lie within the declared bounds, and fit in int32 or float32.
    """
    if spec.kind is bool:
        if not isinstance(value, bool):
            raise InvalidParameter(f"{name} is {value!r}; expected true or false", name)
        return
    widest = MAX_INT if spec.kind is int else MAX_FLOAT
    low = -widest if spec.low is None else max(spec.low, -widest)
    high = widest if spec.high is None else min(spec.high, widest)
    check_number(name, value, spec.kind, low, high)


def token_id(name: str, key: object) -> int:
    """Return the token id that `key` stands for: an int, or a text of plain decimal digits.

    `key` is a key of the mapping that a request gives for a knob, a sampler's parameter. Raises
    InvalidParameter for any other key; `name` is the knob's name for the message.
    """
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    if isinstance(key, str) and re.fullmatch(TOKEN_ID, key):
        return int(key)
    raise InvalidParameter(
        f"{name} names token {key!r:.100}; expected a token id in plain digits, such as '17'", name
    )


def encode_knob(value: object, spec: KnobSpec) -> np.ndarray | Pairs:
    """Encode one checked value as arrays of one row: a number, a padded list or padded pairs.

    `value` is the value of a knob, a sampler's parameter, which `spec` declares. None is encoded as
    the `off` of the knob. A text becomes the padded list of numbers that the spec's own encoder
    makes of it.
    """
    dtype = DTYPES[spec.kind]
    if spec.by_token:
        entries = dict(value) if isinstance(value, Mapping) else {}
        pairs = Pairs(
            ids=np.full(spec.width, NO_TOKEN, np.int32), values=np.zeros(spec.width, dtype)
        )
        pairs.ids[: len(entries)] = [int(key) for key in entries]
        pairs.values[: len(entries)] = list(entries.values())
        return pairs
    if spec.width is None:
        return np.asarray(spec.off if value is None else value, dtype)
    padded = np.full(spec.width, spec.off, dtype)
    items: Sequence[Any] = value if isinstance(value, list | tuple) else ()
    if spec.phrases:
        items = flat(items)
    elif spec.text is not None and isinstance(value, str):
        items = spec.text.encode(value)
    padded[: len(items)] = items
    return padded


def flat(phrases: Sequence[object]) -> list[int]:
    """Join phrases of token ids into one list with a NO_TOKEN after each phrase.

    A phrase that is still text has no ids yet and adds only its NO_TOKEN.
    """
    ids: list[int] = []
    for phrase in phrases:
        ids += [*(phrase if isinstance(phrase, list | tuple) else ()), NO_TOKEN]
    return ids


def encode_state(start: object) -> np.ndarray:
    """Encode the start value of a sampler's state as an array.

    Raises BrokenPlugin if `start`, the value, is not a number.
    """
    if type(start) not in DTYPES:
        raise BrokenPlugin(f"state(start={start!r}); expected a number")
    return np.asarray(start, DTYPES[type(start)])


def begin_row(name: str, kind: type[Sampler], knobs: Mapping[str, object]) -> Sampler:
    """Return a sampler with the values of one row: encoded knobs, and state at the first token.

    `name` and `kind` are the sampler's name and class; `knobs` has the request's parameters by
    name, and a missing one is off. The sampler's own method `start` may change the state. Raises
    BrokenPlugin if `start` fails, or does not return a sampler of this class with arrays of the
    same shapes.
    """
    specs, sets = knobs_of(kind), token_sets_of(kind)
    leaves = {
        field.name: encode_knob(knobs.get(field.name), specs[field.name])
        if field.name in specs
        else encode_state(field.default)
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in sets
    }
    sampler = kind(**leaves)
    try:
        begun = sampler.start()
    except Exception as error:  # start() is the author's code
        what = f"start() of sampler {name!r} fails"
        raise mistakes.explain(what, error, kind.__module__) from error
    if begun is sampler:
        return sampler
    if type(begun) is not kind:
        raise BrokenPlugin(
            f"start() of sampler {name!r} returns {begun!r}; expected a {kind.__name__}",
            where=mistakes.line_of(kind, "start"),
            hint="return self, or dataclasses.replace(self, field=value)",
        )
    return jax.tree.map(lambda old, new: same_shape(name, old, new), sampler, begun)


def switches_on(kind: type[Sampler], knobs: Mapping[str, object]) -> bool:
    """Say whether `knobs`, a request's values by name, turn on a sampler of class `kind`."""
    return any(turns_on(knobs.get(name), spec) for name, spec in knobs_of(kind).items())


def turns_on(value: object, spec: KnobSpec) -> bool:
    """Say whether `value` of a knob, a sampler's parameter, turns the sampler on; None does not.

    `spec` is the declaration of the knob.
    """
    if not spec.switch or value is None:
        return False
    leaf, off = encode_knob(value, spec), encode_knob(None, spec)
    pairs = zip(jax.tree.leaves(leaf), jax.tree.leaves(off), strict=True)
    return any(np.any(one != other) for one, other in pairs)


def same_shape(name: str, old: np.ndarray, new: object) -> np.ndarray:
    """Return `new` as an array with the type of `old`; raise BrokenPlugin for another shape.

    `old` is a field of a sampler, `new` the value that the sampler's own `start` gave it. `name` is
    the sampler's name for the message.
    """
    leaf = np.asarray(new, old.dtype)
    if leaf.shape != old.shape:
        raise BrokenPlugin(
            f"start() of sampler {name!r} returns an array of shape {leaf.shape} where the row "
            f"holds {old.shape}; keep every field's shape"
        )
    return leaf
