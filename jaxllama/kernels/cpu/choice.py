"""Choose tokens from rows of logits with the C++ library, on all threads.

The module is the `Choosing` of the C++ body: `plain/choice.py` defines each operation. Rows that
are not active take no time and return zeros.

Bit rule: a row's result depends on nothing but that row, whatever the number of rows and threads.
"""

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import Best, HeldTokens, Survey
from jaxllama.kernels.cpu import library
from jaxllama.kernels.spread import by_rows
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

GROUP, SPAN, BLOCK = 64, 256, 4096  # as in cpu/choose.h; they determine the scratch sizes


@scoped
@by_rows
def survey(logits: Float[Array, "S V"], active: Bool[Array, " S"]) -> Survey:
    """Find the largest logit of every row, and whether the row is free of NaN and +inf.

    Only rows in the mask `active` are used.
    """
    rows, vocab = check(logits, active=active)
    found = run(
        "survey",
        (logits, active),
        [shape(jnp.int32, rows), shape(jnp.float32, rows), shape(jnp.bool_, rows)],
        [shape(jnp.float32, rows, pieces(vocab, BLOCK), 2)],
    )
    return Survey(*found)


@scoped
@by_rows
def best_candidates(
    logits: Float[Array, "S V"],
    best: Float[Array, " S"],
    heat: Float[Array, " S"],
    active: Bool[Array, " S"],
    count: int,
) -> tuple[Int32[Array, "S C"], Float[Array, "S C"], Float[Array, " S"]]:
    """Return ids and scaled logits of each row's `count` largest logits, and a total per row.

    A scaled logit is (logit - best) / heat, where `best` is the row's largest logit and `heat` its
    temperature; the best comes first. The total is the log-sum-exp of the scaled logits of the
    whole vocabulary. Only rows in the mask `active` are used. Reads the logits once, and a second
    time in groups that hold candidates.
    """
    rows, vocab = check(logits, active=active, best=best, heat=heat)
    if not 1 <= count <= vocab:
        raise ValueError(f"{count} candidates of {vocab} are asked for; expected 1 to {vocab}")
    ids, relative, total = run(
        "candidates",
        (logits, best, heat, active),
        [shape(jnp.int32, rows, count), shape(jnp.float32, rows, count), shape(jnp.float32, rows)],
        [
            shape(jnp.float32, rows, pieces(vocab, SPAN)),
            shape(jnp.float32, rows, pieces(vocab, GROUP)),
        ],
    )
    return ids, relative, total


@scoped
@by_rows
def draw(
    logits: Float[Array, "S V"],
    best: Float[Array, " S"],
    heat: Float[Array, " S"],
    chance: Float[Array, " S"],
    active: Bool[Array, " S"],
) -> tuple[Int32[Array, " S"], Float[Array, " S"]]:
    """Draw one token per row from the whole vocabulary, by a random number `chance` in [0, 1).

    Returns ids, and the log-sum-exp of (logit - best) / heat, where `best` is the row's largest
    logit and `heat` its temperature. Only rows in the mask `active` are used. Reads the logits
    once, and a second time in the part that holds the token.
    """
    rows, vocab = check(logits, active=active, best=best, heat=heat, chance=chance)
    token, total = run(
        "draw",
        (logits, best, heat, chance, active),
        [shape(jnp.int32, rows), shape(jnp.float32, rows)],
        [shape(jnp.float32, rows, pieces(vocab, SPAN))],
    )
    return token, total


@scoped
@by_rows
def logprob(
    logits: Float[Array, "S V"], token: Int32[Array, " S"], active: Bool[Array, " S"]
) -> Float[Array, " S"]:
    """Return the log-probability, at temperature 1, of one token per row: `token`.

    Only results of rows in the mask `active` have a meaning. Reads the logits once.
    """
    rows, vocab = check(logits, active=active, token=token)
    (found,) = run(
        "logprob",
        (logits, token, active),
        [shape(jnp.float32, rows)],
        [shape(jnp.float32, rows, pieces(vocab, BLOCK), 2)],
    )
    return found


@scoped
@by_rows
def set_aside(
    logits: Float[Array, "S V"], active: Bool[Array, " S"]
) -> tuple[Float[Array, "S V"], Float[Array, "S V"]]:
    """Return the logits, which the caller may change in place, and a copy of active rows.

    `active` is the mask of rows to copy.
    """
    check(logits, active=active)
    whole = shape(jnp.float32, *logits.shape)
    same, copy = run("set_aside", (logits, active), [whole, whole], [], {0: 0})
    return same, copy


@scoped
@by_rows
def take_held(
    logits: Float[Array, "S V"], tokens: Int32[Array, "S T"], count: Int32[Array, " S"]
) -> HeldTokens:
    """Return the logits of the tokens that each row already contains.

    `tokens` are the ids of each row's prompt and answer, padded after the first `count` ids. Reads
    the tokens twice and never the whole vocabulary.
    """
    rows, _ = check(logits, count=count)
    library.loaded()
    results = [shape(each, *tokens.shape) for each in (jnp.int32, jnp.float32)]
    call = jax.ffi.ffi_call("jaxllama_take_held", [*results, shape(jnp.bool_, rows)])
    return HeldTokens(*call(logits, tokens, count))


@scoped
@by_rows
def put_held(
    logits: Float[Array, "S V"],
    tokens: Int32[Array, "S T"],
    first: Int32[Array, "S T"],
    held: Float[Array, "S T"],
) -> Float[Array, "S V"]:
    """Write changed logits of the tokens that a row contains back to `logits`, in place.

    `tokens` are the row's ids, `first` is the index at which each id occurs first, as `take_held`
    returned it; `held` are the changed logits.
    """
    check(logits)
    library.loaded()
    moved = shape(jnp.float32, *logits.shape)
    call = jax.ffi.ffi_call("jaxllama_put_held", moved, input_output_aliases={0: 0})
    found: Array = call(logits, tokens, first, held)
    return found


@scoped
@by_rows
def close_ranks(
    keep: Bool[Array, "S C"], on: Bool[Array, " S"], best: Best
) -> tuple[Best, Int32[Array, " S"]]:
    """Drop the candidates that are not in the mask `keep`, in rows where `on` is true, in place.

    If that would drop all candidates of a row, none is dropped. `best` holds the candidates; the
    kept ones move to the front. Also returns the id of the last kept candidate of each row.
    """
    library.loaded()
    results = [shape(each.dtype, *each.shape) for each in best]
    call = jax.ffi.ffi_call(
        "jaxllama_close_ranks",
        [*results, shape(jnp.int32, len(on))],
        input_output_aliases={2 + each: each for each in range(len(best))},
    )
    *left, last = call(keep, on, *best)
    return Best(*left), last


def run(
    name: str,
    given: tuple[Array, ...],
    results: list[jax.ShapeDtypeStruct],
    room: list[jax.ShapeDtypeStruct],
    in_place: dict[int, int] | None = None,
) -> list[Array]:
    """Call the C++ kernel `jaxllama_choose_{name}`; return its results without scratch arrays.

    `given` are its arguments, `results` the shapes and types of its results, `room` those of the
    scratch arrays it needs. `in_place` maps the index of an argument to that of the result that
    takes its memory; None: no result does.
    """
    library.loaded()
    places = shape(jnp.int32, given[0].shape[0])
    call = jax.ffi.ffi_call(
        f"jaxllama_choose_{name}", [*results, places, *room], input_output_aliases=in_place
    )
    return list(call(*given)[: len(results)])


def check(logits: Array, **per_row: Array) -> tuple[int, int]:
    """Check arrays for a kernel; return the number of rows and the size of the vocabulary.

    Raises ValueError for arrays that the kernels would refuse at run time. `per_row` are arrays
    with one number per row.
    """
    is_matrix = len(logits.shape) == len("SV")
    if not is_matrix or logits.dtype != jnp.float32 or logits.shape[1] < 1:
        raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}; float32 [S, V] expected")
    rows, vocab = logits.shape
    dtypes = {"active": jnp.bool_, "token": jnp.int32, "count": jnp.int32}
    for name, array in per_row.items():
        dtype = jnp.dtype(dtypes.get(name, jnp.float32))
        if array.shape != (rows,) or array.dtype != dtype:
            raise ValueError(
                f"{name} is {array.dtype} {list(array.shape)}; {dtype} [{rows}] expected"
            )
    return rows, vocab


def pieces(count: int, size: int) -> int:
    """Return how many pieces of `size` cover `count` entries."""
    return -(-count // size)


def shape(dtype: jnp.dtype | type, *sizes: int) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of an array, for a result of a kernel."""
    return jax.ShapeDtypeStruct(sizes, dtype)
