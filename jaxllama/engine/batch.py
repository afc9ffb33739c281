"""The batch: the state of all rows on the device, and the program calls that change it.

Used by the engine, its prompts, its calls and its probes. The only owner of the state: every
program consumes the state and returns the next one. Knows slots and arrays, not requests. If
several hosts run the model, the others are told each call that runs a program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import jax
import numpy as np

from jaxllama.engine.adapters import LoadedAdapters, loaded
from jaxllama.engine.programs import Programs
from jaxllama.engine.remote_calls import encode_call
from jaxllama.engine.state import RowStart, StateLeaves
from jaxllama.engine.steps import Peek, Pooled, Runs, StepOutput
from jaxllama.model.cache import Columns
from jaxllama.request import AdapterUse

P = ParamSpec("P")
R = TypeVar("R")
TellHosts = Callable[[bytes], None]  # takes an encoded call


def on_every_host(
    method: "Callable[Concatenate[Batch, P], R]",
) -> "Callable[Concatenate[Batch, P], R]":
    """Wrap a method of Batch so that each call is also sent to the other hosts, if there are any.

    The call and its arguments are sent as bytes before the method runs here.
    """

    @functools.wraps(method)
    def call(self: "Batch", /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._tell_hosts is not None:
            self._tell_hosts(encode_call(method.__name__, args, kwargs))
        return method(self, *args, **kwargs)

    return cast("Callable[Concatenate[Batch, P], R]", call)


class Batch:
    """The device state of one engine. A call of any program may fail and lose the state."""

    def __init__(
        self,
        programs: Programs,
        adapters: LoadedAdapters | None = None,
        tell_hosts: TellHosts | None = None,
    ) -> None:
        self.programs = programs
        self.adapters = adapters
        self._tell_hosts = tell_hosts
        self.restarts = 0  # how many states were dropped so far
        self._state: StateLeaves = programs.empty()
        self._is_lost = False  # the state was dropped, and no new one is made yet

    @on_every_host
    def prefill(
        self, slot: int, ids: np.ndarray, start: int, count: int, use: AdapterUse | None = None
    ) -> None:
        """Write keys and values of the first `count` of `ids` to a slot's cache.

        The first token goes to column `start`; ids after the first `count` are padding. `use` is
        the request's adapter, None for none.
        """
        numbers = (np.int32(slot), ids, np.int32(start), np.int32(count))
        self._state = self.programs.prefill(self._state, *numbers, self._adapter(use))

    @on_every_host
    def prefill_packed(self, ids: np.ndarray, places: np.ndarray) -> None:
        """Write keys and values of spans of several prompts to the cache.

        `ids` holds the spans one after the other, all padded to one size. `places` [3, spans] has
        the slot, the first column and the number of tokens of each.
        """
        self._state = self.programs.prefill_packed(self._state, ids, places)

    @on_every_host
    def admit(self, slot: int, row: RowStart | np.ndarray) -> None:
        """Write the start values of a slot's row, so that the row takes part in decode calls.

        `row` may be a RowStart packed into bytes, as one of several hosts receives it.
        """
        self._state = self.programs.admit(self._state, np.int32(slot), row)

    @on_every_host
    def decode(
        self,
        steps: int,
        allowed: np.ndarray | None = None,
        forced: np.ndarray | None = None,
        *,
        lean: bool = False,
        adapted: bool = False,
    ) -> StepOutput:
        """Send a call that draws up to `steps` tokens for every active row; do not wait for it.

        Returns the call's output, whose arrays are still being computed. `allowed`: a bit mask of
        tokens for each row, None if all are allowed. `forced`: the tokens of each row that come
        first because its constraint allows no others (ForcedTokens as one array), None if there are
        none. `lean`: all rows use common samplers only. `adapted`: some row has an adapter.
        """
        adapter = loaded(self.adapters).blocks if adapted else None
        self._state, output = self.programs.decode(
            self._state, np.int32(steps), allowed, lean, adapter, forced
        )
        return output

    @on_every_host
    def release(self, slots: Sequence[int]) -> None:
        """Stop decoding in the rows of these slots."""
        mask = np.zeros(self.programs.engine.slots, np.bool_)
        mask[list(slots)] = True
        self._state = self.programs.release(self._state, mask)

    @on_every_host
    def scrub(self, slot: int) -> None:
        """Fill the KV cache of a slot with zeros."""
        self._state = self.programs.scrub(self._state, np.int32(slot))

    @on_every_host
    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` cache columns of the slot `source` to the slot `target`."""
        numbers = (np.int32(source), np.int32(target), np.int32(count))
        self._state = self.programs.copy(self._state, *numbers)

    @on_every_host
    def save(self, slot: int, start: int) -> Columns:
        """Return a copy of the block of a slot's KV cache that begins at column `start`.

        Does not wait for the device.
        """
        return self.programs.save(self._state, np.int32(slot), np.int32(start))

    @on_every_host
    def restore(self, slot: int, columns: Columns, start: int) -> None:
        """Overwrite the block of a slot's KV cache that begins at column `start` with `columns`.

        `columns` is a copy of such a block, as `save` returns it.
        """
        numbers = (np.int32(slot), np.int32(start))
        self._state = self.programs.restore(self._state, columns, *numbers)

    @on_every_host
    def peek(
        self, slot: int, pairs: np.ndarray, start: int, last: int, use: AdapterUse | None = None
    ) -> Peek:
        """Run known tokens through the model; return target log-probabilities and all logits.

        `pairs` [2, R]: R token ids, which go to the slot's cache from column `start` on, then for
        each of them its target, the next token whose log-probability is requested. `last` is the
        index of the last id that counts; the ids after it are padding. `use` is the adapter, None
        for none.
        """
        numbers = (np.int32(slot), pairs, np.int32(start), np.int32(last))
        self._state, found = self.programs.peek(self._state, *numbers, self._adapter(use))
        return found

    @on_every_host
    def score(self, slot: int, runs: Runs, use: AdapterUse | None = None) -> Any:
        """Run short runs of tokens through the model; return an array with each target's logprob.

        `runs` holds the tokens, the place of each run in the slot's cache, and the targets: tokens
        whose log-probability after a token of a run is requested. `use` is the adapter, None for
        none.
        """
        self._state, logprobs = self.programs.score(
            self._state, np.int32(slot), runs, self._adapter(use)
        )
        return logprobs

    @on_every_host
    def embed(self, slot: int, ids: np.ndarray, start: int, last: int) -> Pooled:
        """Run `ids` up to index `last` through the model; return their pooled final hidden states.

        The result has the sum of the states, and the state at `last`. The ids after `last` are
        padding. Keys and values are written to the slot's cache from column `start` on.
        """
        numbers = (np.int32(slot), ids, np.int32(start), np.int32(last))
        self._state, found = self.programs.embed(self._state, *numbers)
        return found

    def wait(self) -> None:
        """Wait until the device has run every program that was sent."""
        jax.block_until_ready(self._state)

    @on_every_host
    def drop(self) -> None:
        """Free the device memory of the decode state, which includes the KV cache of all slots."""
        if not self._is_lost:
            self.programs.delete(self._state)
        self._is_lost = True
        self.restarts += 1

    def _adapter(self, use: AdapterUse | None) -> StateLeaves | None:
        """Return the arguments of a program call for an adapter; None if `use` is None."""
        return None if use is None else loaded(self.adapters).of_slot(use)

    def renew(self) -> None:
        """Make a new state with all rows inactive if `drop` freed the old one; else do nothing."""
        if self._is_lost:
            self._replace_state()

    @on_every_host
    def _replace_state(self) -> None:
        self._state = self.programs.empty()
        self._is_lost = False
