"""The peer's process: llama.cpp through the low-level bindings of llama-cpp-python.

Started by `llamacpp.py`, which sends calls through a pipe; an illegal instruction ends this process
alone. Measures as llama-batched-bench does: all sequences in one batch, logits for each, tokens
given and not sampled. Knows nothing of jaxllama.
"""

import ctypes
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from peer_worker import PeerError, seconds, serve

CACHE_PADDING = 256  # llama.cpp rounds the cache of a sequence up to this
BATCH = 2048  # llama-batched-bench's own defaults
PHYSICAL_BATCH = 512
SEED = 1


@functools.cache
def library() -> ModuleType:
    """Import the bindings, with the log of llama.cpp switched off."""
    bindings = importlib.import_module("llama_cpp")
    bindings.llama_log_set(SILENT, None)
    bindings.llama_backend_init()
    return bindings


def ignore_log(_level: int, _text: bytes, _user: object) -> None:
    """Ignore a log message."""


SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(ignore_log)


class LlamaCppModel:
    """One model with a cache for a number of sequences of a given length.

    `extra_buffers` lets llama.cpp reorder weights for its fastest kernels, or for AMX where there
    is AMX. `flash` lets it choose flash attention. Prompts are faster with flash attention; deep in
    a context it decodes 2.6 times as fast without (16 sequences at 4,000 tokens: 390 against
    1,030 ms a step).
    """

    def __init__(
        self,
        path: str,
        *,
        sequences: int,
        length: int,
        threads: int,
        flash: bool,
        extra_buffers: bool,
    ) -> None:
        self.lib = library()
        self.sequences = sequences
        loading = self.lib.llama_model_default_params()
        if not hasattr(loading, "use_extra_bufts"):
            raise PeerError(
                "these bindings cannot switch llama.cpp's extra buffers; "
                "install llama-cpp-python 0.3.36 or newer"
            )
        loading.use_extra_bufts = extra_buffers
        self.model = self.lib.llama_model_load_from_file(path.encode(), loading)
        if not self.model:
            raise PeerError(f"llama.cpp does not load {path}")
        settings = self.lib.llama_context_default_params()
        each = -(-length // CACHE_PADDING) * CACHE_PADDING
        settings.n_ctx, settings.n_seq_max = sequences * each, sequences
        settings.n_batch, settings.n_ubatch = BATCH, PHYSICAL_BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = False
        if not flash:
            settings.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = self.lib.llama_init_from_model(self.model, settings)
        if not self.context:
            raise PeerError(f"llama.cpp makes no context of {settings.n_ctx} tokens")
        self.memory = self.lib.llama_get_memory(self.context)
        self.batch = self.lib.llama_batch_init(BATCH, 0, 1)
        self.slots = batch_arrays(self.batch, BATCH)
        self._rng = np.random.default_rng(SEED)

    def vocab(self) -> int:
        """Return the number of tokens in the model's vocabulary."""
        return int(self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model)))

    def prompt_rate(self, tokens: Sequence[int]) -> float:
        """Measure the tokens per second of a prompt into an empty cache."""
        self.lib.llama_memory_clear(self.memory, True)
        return len(tokens) / seconds(lambda: self._prompt(tokens))

    def fill(self, tokens: Sequence[int]) -> None:
        """Put the same prompt into every sequence: compute it once and copy it."""
        self.lib.llama_memory_clear(self.memory, True)
        self._prompt(tokens)
        for sequence in range(1, self.sequences):
            self.lib.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def decode_rate(self, depth: int, count: int) -> float:
        """Measure the tokens per second of `count` tokens per sequence, then drop the tokens."""
        ids = self._rng.integers(0, self.vocab(), (count, self.sequences))
        self._set_sequences(range(self.sequences))
        self.slots.logits[: self.sequences] = 1

        def decode() -> None:
            for step, each in enumerate(ids):
                self._decode(each, depth + step)

        taken = seconds(decode)
        for sequence in range(self.sequences):
            self.lib.llama_memory_seq_rm(self.memory, sequence, depth, -1)
        return count * self.sequences / taken

    def _prompt(self, tokens: Sequence[int]) -> None:
        """Compute a prompt in sequence 0 in few calls, with logits for the last token only."""
        self._set_sequences([0] * BATCH)
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self.slots.logits[: len(part)] = 0
            self.slots.logits[len(part) - 1] = 1
            self._decode(part, np.arange(start, start + len(part)))

    def _set_sequences(self, sequences: Iterable[int]) -> None:
        """Set the sequence of each token of the next calls."""
        for index, sequence in enumerate(sequences):
            self.batch.seq_id[index][0] = sequence

    def _decode(self, tokens: Sequence[int] | np.ndarray, places: int | np.ndarray) -> None:
        """Run one call of llama.cpp and wait until the logits are computed."""
        count = self.batch.n_tokens = len(tokens)
        self.slots.token[:count], self.slots.pos[:count] = tokens, places
        code = self.lib.llama_decode(self.context, self.batch)
        if code:
            raise PeerError(f"llama_decode says {code} for {count} tokens")
        self.lib.llama_synchronize(self.context)


class BatchArrays(NamedTuple):
    """The arrays of a llama_batch as NumPy arrays."""

    token: np.ndarray
    pos: np.ndarray
    logits: np.ndarray


def batch_arrays(batch: Any, size: int) -> BatchArrays:
    """Return the arrays of a batch in which every token belongs to one sequence."""
    view = np.ctypeslib.as_array
    view(batch.n_seq_id, (size,))[:] = 1
    return BatchArrays(*(view(field, (size,)) for field in (batch.token, batch.pos, batch.logits)))


class SamplerChains:
    """Chains of llama.cpp's samplers, one per row, applied to the rows of logits in turn."""

    def __init__(self, knobs: Mapping[str, Any], rows: np.ndarray, history: Sequence[int]) -> None:
        self.lib = library()
        count, vocab = rows.shape
        self.entries = np.zeros(
            (count, vocab), [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        )
        self.entries["id"], self.entries["logit"] = np.arange(vocab), rows
        self.scratch = self.entries[0].copy()
        self.chains = [make_chain(self.lib, knobs, vocab, len(history)) for _ in range(count)]
        for chain in self.chains:
            for token in history:
                self.lib.llama_sampler_accept(chain, token)

    def seconds(self) -> float:
        """Measure the seconds of choosing a token for every row."""
        return seconds(self.sample)

    def sample(self) -> list[int]:
        """Return a token for every row."""
        kind = self.lib.llama_token_data_p
        drawn = []
        for chain, row in zip(self.chains, self.entries, strict=True):
            np.copyto(self.scratch, row)  # llama.cpp builds this list for every token too
            pointer = self.scratch.ctypes.data_as(kind)
            entries = self.lib.llama_token_data_array(pointer, len(row), -1, False)
            self.lib.llama_sampler_apply(chain, ctypes.byref(entries))
            drawn.append(int(entries.data[entries.selected].id))
        return drawn


def make_chain(lib: ModuleType, knobs: Mapping[str, Any], vocab: int, window: int) -> Any:
    """Return a chain of the samplers that match the knobs, in llama.cpp's own order."""
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for stage in stages(lib, knobs, vocab, window):
        lib.llama_sampler_chain_add(chain, stage)
    return chain


def stages(lib: ModuleType, knobs: Mapping[str, Any], vocab: int, window: int) -> list[Any]:
    """Return the samplers that match the knobs; penalties count the newest `window` tokens."""
    found: list[Any] = []
    if bias := knobs.get("logit_bias"):
        pairs = (lib.llama_logit_bias * len(bias))(*bias.items())
        found.append(lib.llama_sampler_init_logit_bias(vocab, len(bias), pairs))
    found += penalties(lib, knobs, vocab, window)
    makers: dict[str, Callable[[Any], Any]] = {
        "top_k": lib.llama_sampler_init_top_k,
        "top_p": lambda p: lib.llama_sampler_init_top_p(p, 1),
        "min_p": lambda p: lib.llama_sampler_init_min_p(p, 1),
    }
    found += [make(knobs[name]) for name, make in makers.items() if name in knobs]
    if not knobs.get("temperature"):
        return [*found, lib.llama_sampler_init_greedy()]
    heat = lib.llama_sampler_init_temp(knobs["temperature"])
    return [*found, heat, lib.llama_sampler_init_dist(SEED)]


def penalties(lib: ModuleType, knobs: Mapping[str, Any], vocab: int, window: int) -> list[Any]:
    """Return the sampler of repetition, frequency and presence penalties, if one of them is on."""
    repeat = knobs.get("repetition_penalty", 1.0)
    frequency = knobs.get("frequency_penalty", 0.0)
    presence = knobs.get("presence_penalty", 0.0)
    if (repeat, frequency, presence) == (1.0, 0.0, 0.0):
        return []
    return [lib.llama_sampler_init_penalties(vocab, window, repeat, frequency, presence)]


MAKERS: dict[str, Callable[..., Any]] = {"model": LlamaCppModel, "chain": SamplerChains}


def main() -> None:
    """Run the calls of the pipe."""
    serve(MAKERS)
