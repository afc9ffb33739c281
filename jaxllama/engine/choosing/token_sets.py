"""Token sets: the tokens that pass a test declared by a sampler, evaluated once per model.

Used by the bank when it is built. Knows texts of tokens, no tokenizer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from jaxllama import mistakes
from jaxllama.errors import BrokenPlugin
from jaxllama.sampling import Adjuster, Sampler, token_sets_of

Sets = Mapping[str, np.ndarray]  # Bool[V] by the name of the field

S = TypeVar("S", bound=Sampler)


def learn(name: str, kind: type[Sampler], texts: Sequence[str], vocab: int) -> Sets:
    """Return a mask of the vocabulary for each token set that a sampler declares.

    A token is in the set if its text passes the set's test. `name` and `kind` are the sampler's
    name and class. `texts` are the texts of the tokens; of the `vocab` tokens, those after the last
    text are in no set. Raises BrokenPlugin if a test fails, or if a sampler with sets is not an
    Adjuster.
    """
    tests = token_sets_of(kind)
    if tests and not issubclass(kind, Adjuster):
        raise BrokenPlugin(
            f"sampler {name!r} declares a token set; only adjusters can have one",
            where=mistakes.line_of(kind),
            hint="subclass Adjuster, or choose tokens by their ids",
        )
    found: dict[str, np.ndarray] = {}
    for field, test in tests.items():
        found[field] = np.zeros(vocab, np.bool_)
        try:
            passed = [bool(test(text)) for text in texts[:vocab]]
        except Exception as error:  # the test is the author's code
            what = f"sampler {name!r}: the test of token set {field!r} fails"
            raise mistakes.explain(what, error, kind.__module__) from error
        found[field][: len(passed)] = passed
    return found


def informed(sampler: S, sets: Sets) -> S:
    """Return a copy of a sampler with the masks of its token sets filled in.

    A token set has the tokens whose text passes a test that the sampler declares. `sets` has a mask
    of the vocabulary for each, by the name of the sampler's field.
    """
    return dataclasses.replace(sampler, **sets) if sets else sampler  # type: ignore[type-var]
