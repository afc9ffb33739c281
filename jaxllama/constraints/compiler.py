"""The compiler: from what is wanted of an answer to a constraint that the engine can follow.

Used by intake, from any thread; it blocks. Every grammar is first tried in a process that can be
killed, and what was compiled is kept within a bound. Knows tokenizers and grammars, no engine.
"""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from llguidance import LLMatcher, LLTokenizer

from jaxllama.constraints.follower import Compiled, plain
from jaxllama.constraints.wanted import Wanted
from jaxllama.constraints.words import Words, limits
from jaxllama.constraints.worker import CPU_SECONDS, MEMORY, TooCostly, Worker
from jaxllama.errors import InvalidParameter
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.worker_pool import WorkerPool

WORKERS = 2
CACHED = 64 << 20  # bytes
FIXED_COST = 48 << 10  # bytes of a small compiled grammar
COST = 40  # bytes more for each character of its text


class Compiler:
    """Compiles for one model."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._workers = WorkerPool(lambda: Worker(self._words), WORKERS)
        # One thread, so that slow masks take one core at most; it starts with the first of them.
        self._slow_masks = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Compiled] = OrderedDict()  # by grammar, oldest first
        self._held = 0  # bytes that they are taken to hold

    def compile(self, wanted: Wanted) -> Compiled:
        """Compile a constraint, or find it among those that are kept.

        Raises InvalidParameter with what is wrong with it.
        """
        grammar = wanted.grammar
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
        self._try(wanted)
        matcher = LLMatcher(self._for_matching, grammar, log_level=0, limits=limits())
        complain(wanted, matcher.get_error())
        compiled = Compiled(matcher, self._slow_masks)
        with self._lock:
            self._keep(grammar, compiled)
        return compiled

    def knows(self, wanted: Wanted) -> bool:
        """Whether a constraint is kept already, so that it costs no work."""
        with self._lock:
            return wanted.grammar in self._kept

    def close(self) -> None:
        """End the processes and the thread for slow masks; none starts again."""
        self._workers.close()
        self._slow_masks.shutdown(cancel_futures=True)

    @property
    def held(self) -> int:
        """Bytes that kept constraints are taken to hold."""
        return self._held

    @cached_property
    def _words(self) -> Words:
        pieces = [self._tokenizer.piece(token) for token in range(self._vocab)]
        named = [self._tokenizer.piece(token, special=True) for token in range(self._vocab)]
        specials = [token for token, piece in enumerate(pieces) if not piece]
        tokens = [piece or name or b"?" for piece, name in zip(pieces, named, strict=True)]
        ends = self._tokenizer.end_ids
        if not ends:
            raise InvalidParameter("this model has no end token; it cannot end a formatted answer")
        return Words(tokens, specials, ends)

    @cached_property
    def _for_matching(self) -> LLTokenizer:
        return self._words.tokenizer(
            lambda text: self._tokenizer.encode(text, begin=False, start=False)
        )

    def _try(self, wanted: Wanted) -> None:
        """Compile in another process, where it can do no harm; raises as `compile` does."""
        try:
            complaint = self._workers.ask(lambda worker: worker.complaint(wanted.grammar))
        except TooCostly as error:
            raise InvalidParameter(
                f"{wanted.field} takes more than {CPU_SECONDS:g} s of processor time or "
                f"{MEMORY >> 20} MiB of memory to compile; make it simpler",
                wanted.field,
            ) from error
        complain(wanted, complaint)

    def _keep(self, grammar: str, compiled: Compiled) -> None:
        """Remember it; the least recently used go where the bound is passed."""
        if grammar in self._kept:
            return
        self._kept[grammar] = compiled
        self._held += cost(grammar)
        while self._held > CACHED:
            oldest, _ = self._kept.popitem(last=False)
            self._held -= cost(oldest)


def cost(grammar: str) -> int:
    """Bytes that a compiled grammar is taken to hold."""
    return FIXED_COST + COST * len(grammar)


def complain(wanted: Wanted, complaint: str) -> None:
    """Raise InvalidParameter if there is something to complain about."""
    if complaint.startswith("panic"):
        complaint = "it is more than the compiler can take"
    if complaint:
        raise InvalidParameter(
            f"{wanted.field} cannot be followed: {plain(complaint)}", wanted.field
        )
