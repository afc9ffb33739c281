"""The compiler: makes a constraint that the engine can follow from the form of an answer.

Used by intake, from any thread; it blocks. Every grammar is first tried in a process that can be
killed. Compiled constraints are cached within a bound. Knows tokenizers and grammars, no engine.
"""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from llguidance import LLMatcher, LLTokenizer

from jaxllama.constraints.follower import CompiledConstraint, plain
from jaxllama.constraints.wanted import AnswerGrammar
from jaxllama.constraints.words import TokenBytes, limits
from jaxllama.constraints.worker import CPU_SECONDS, MEMORY, GrammarWorker, TooCostly
from jaxllama.errors import InvalidParameter
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.worker_pool import WorkerPool

WORKERS = 2
CACHED = 64 << 20  # bytes
FIXED_COST = 48 << 10  # bytes of a small compiled grammar
COST = 40  # further bytes for each character of its text


class Compiler:
    """Compiles constraints for one model and caches them."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._workers = WorkerPool(lambda: GrammarWorker(self._words), WORKERS)
        # One thread, so that slow masks take one core at most; it starts with the first of them.
        self._slow_masks = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, CompiledConstraint] = OrderedDict()  # by grammar, oldest first
        self._held = 0  # estimated bytes of the cached constraints

    def compile(self, form: AnswerGrammar) -> CompiledConstraint:
        """Return the compiled constraint for an answer's grammar, from the cache if it is there.

        Any thread may call this; it may take seconds. Raises InvalidParameter if the grammar has an
        error, or takes too much time or memory to compile.
        """
        grammar = form.grammar
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
        self._try(form)
        matcher = LLMatcher(self._for_matching, grammar, log_level=0, limits=limits())
        refuse_complaint(form, matcher.get_error())
        compiled = CompiledConstraint(matcher, self._slow_masks)
        with self._lock:
            self._keep(grammar, compiled)
        return compiled

    def knows(self, form: AnswerGrammar) -> bool:
        """Say whether the compiled constraint for an answer's grammar is in the cache."""
        with self._lock:
            return form.grammar in self._kept

    def close(self) -> None:
        """End the worker processes and the thread for slow masks; none starts again."""
        self._workers.close()
        self._slow_masks.shutdown(cancel_futures=True)

    @property
    def held(self) -> int:
        """Return an estimate of the bytes that cached constraints occupy."""
        return self._held

    @cached_property
    def _words(self) -> TokenBytes:
        pieces = [self._tokenizer.piece(token) for token in range(self._vocab)]
        named = [self._tokenizer.piece(token, special=True) for token in range(self._vocab)]
        specials = [token for token, piece in enumerate(pieces) if not piece]
        tokens = [piece or name or b"?" for piece, name in zip(pieces, named, strict=True)]
        ends = self._tokenizer.end_ids
        if not ends:
            raise InvalidParameter("this model has no end token; it cannot end a formatted answer")
        return TokenBytes(tokens, specials, ends)

    @cached_property
    def _for_matching(self) -> LLTokenizer:
        return self._words.tokenizer(
            lambda text: self._tokenizer.encode(text, begin=False, start=False)
        )

    def _try(self, form: AnswerGrammar) -> None:
        """Compile a grammar in another process, to find errors and excessive costs.

        Raises InvalidParameter for an error in the grammar, or if compiling takes too much time or
        memory.
        """
        try:
            complaint = self._workers.ask(lambda worker: worker.complaint(form.grammar))
        except TooCostly as error:
            raise InvalidParameter(
                f"{form.field} takes more than {CPU_SECONDS:g} s of processor time or "
                f"{MEMORY >> 20} MiB of memory to compile; make it simpler",
                form.field,
            ) from error
        refuse_complaint(form, complaint)

    def _keep(self, grammar: str, compiled: CompiledConstraint) -> None:
        """Put `compiled`, the constraint of `grammar`, in the cache; the caller holds the lock.

        Evicts the least recently used constraints while the cache exceeds its bound.
        """
        if grammar in self._kept:
            return
        self._kept[grammar] = compiled
        self._held += cost(grammar)
        while self._held > CACHED:
            oldest, _ = self._kept.popitem(last=False)
            self._held -= cost(oldest)


def cost(grammar: str) -> int:
    """Return an estimate of the bytes that a grammar, given as text, occupies when compiled."""
    return FIXED_COST + COST * len(grammar)


def refuse_complaint(form: AnswerGrammar, complaint: str) -> None:
    """Raise InvalidParameter if `complaint`, llguidance's error in a grammar, is not "".

    `form` holds the grammar and the name of its request field; InvalidParameter names that field.
    """
    if complaint.startswith("panic"):
        complaint = "it is more than the compiler can take"
    if complaint:
        raise InvalidParameter(f"{form.field} cannot be followed: {plain(complaint)}", form.field)
