"""The compiler: what compiles, what is refused, and what it may cost."""

import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

from jaxllama.constraints import compiler as compilers
from jaxllama.constraints.compiler import Compiler
from jaxllama.constraints.follower import AnswerFollower, CompiledConstraint
from jaxllama.constraints.wanted import AnswerGrammar, read_form, schema_text, user_grammar
from jaxllama.constraints.words import TokenBytes, limits
from jaxllama.constraints.worker import GrammarWorker, TooCostly
from jaxllama.errors import ConstraintTooCostly, GenerationFailed, InvalidParameter, NotReady
from jaxllama.testing.byte_tokenizer import END_ID, TURN_END_ID, ByteTokenizer
from jaxllama.testing.models import TINY
from tests.constraints.schemas import random_schema

VOCAB = TINY.vocab_size


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler(ByteTokenizer(), VOCAB)
    yield made
    made.close()


def compiled(compiler: Compiler, **fields: object) -> CompiledConstraint:
    form = read_form(fields)
    assert form is not None
    return compiler.compile(form)


def allowed(follower: AnswerFollower) -> list[int]:
    bits = np.unpackbits(np.frombuffer(follower.allowed(), np.uint8), bitorder="little")
    return np.flatnonzero(bits[:VOCAB]).tolist()


def speak(constraint: CompiledConstraint, rng: random.Random, most: int = 400) -> tuple[str, bool]:
    """A random answer, and whether it ended by itself."""
    follower, said = constraint.start(), []
    while len(said) < most:
        if follower.done:
            return bytes(said).decode(), True
        for token in follower.forced() or [rng.choice(allowed(follower))]:
            if token in (END_ID, TURN_END_ID):
                return bytes(said).decode(), True
            said.append(token)
            follower.advance(token)
    return bytes(said).decode(errors="replace"), False


def test_choices_leave_one_of_them(compiler: Compiler):
    constraint = compiled(compiler, choices=("yes", "no", "né"))
    said = {speak(constraint, random.Random(seed)) for seed in range(30)}
    assert said == {("yes", True), ("no", True), ("né", True)}


def test_special_tokens_are_never_text(compiler: Compiler):
    follower = compiled(compiler, regex=".*").start()
    assert all(token < 256 or token in (END_ID, TURN_END_ID) for token in allowed(follower))


def test_end_tokens_are_allowed_where_the_answer_may_end(compiler: Compiler):
    follower = compiled(compiler, regex="ab*").start()
    assert END_ID not in allowed(follower)
    follower.advance(ord("a"))
    assert END_ID in allowed(follower)


def test_hidden_end_tokens_are_never_allowed(compiler: Compiler):
    follower = compiled(compiler, regex="ab*").hiding((END_ID, TURN_END_ID)).start()
    follower.advance(ord("a"))
    assert allowed(follower) == [ord("b")]


def test_a_token_that_is_not_allowed_is_an_error(compiler: Compiler):
    with pytest.raises(GenerationFailed):
        compiled(compiler, regex="a").start().advance(ord("b"))


def test_two_answers_follow_one_constraint_apart(compiler: Compiler):
    constraint = compiled(compiler, regex="ab|ba")
    one, other = constraint.start(), constraint.start()
    one.advance(ord("a"))
    other.advance(ord("b"))
    assert (allowed(one), allowed(other)) == ([ord("b")], [ord("a")])


def test_json_has_no_white_space_to_get_lost_in(compiler: Compiler):
    schema = {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"]}
    only = {"type": "object", "additionalProperties": False, **schema}
    constraint = compiled(compiler, json_schema=schema_text(only))
    assert speak(constraint, random.Random(0)) == ('{"a": 1, "b": 2}', True)


@pytest.mark.parametrize("seed", range(60))
def test_an_answer_that_ends_is_valid_by_its_schema(compiler: Compiler, seed: int):
    rng = random.Random(seed)
    schema = random_schema(rng)
    constraint = compiled(compiler, json_schema=schema_text(schema))
    for _ in range(3):
        text, ended = speak(constraint, rng)
        if ended:
            jsonschema.validate(json.loads(text), schema)


def test_a_random_answer_can_be_wrong_without_its_constraint():
    """The validation above can fail."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads('{"a": "b"}'), {"properties": {"a": {"type": "integer"}}})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"regex": "["}, "unclosed"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"grammar": "start: foo"}, "foo"),
        ({"grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000}, "nested"),
        ({"json_schema": '{"type": "strin"}'}, "strin"),
        ({"json_schema": '{"type": "string", "pattern": "("}'}, "unclosed"),
        ({"json_schema": '{"not": {}}'}, "not"),
        ({"json_schema": '{"$ref": "#"}'}, "json_schema"),
    ],
)
def test_what_cannot_be_followed_is_refused_clearly(compiler: Compiler, fields, word):
    with pytest.raises(InvalidParameter, match=word) as caught:
        compiled(compiler, **fields)
    assert caught.value.field == next(iter(fields))


@pytest.mark.parametrize("regex", ["(a+)+b", "(a|a)*", "a{1,100000}", "(.*)*x", "(.*a.{30}|b)*c"])
def test_regexes_that_blow_up_elsewhere_compile_or_are_refused(compiler: Compiler, regex: str):
    with contextlib.suppress(InvalidParameter, GenerationFailed):
        compiled(compiler, regex=regex).start().allowed()


@pytest.mark.parametrize(
    "grammar", ['start: start "a" | "b"', 'start: a\na: b "x" | "z"\nb: a "y"']
)
def test_left_recursion_is_followed(compiler: Compiler, grammar: str):
    text, ended = speak(compiled(compiler, grammar=grammar), random.Random(1))
    assert text
    assert ended or len(text) == 400


def test_every_beginning_of_a_grammar_compiles_or_is_refused(compiler: Compiler):
    whole = 'start: item ("," item)*\nitem: /[a-z]+/ | "<" /[0-9]{1,3}/ ">"\n'
    for length in range(1, len(whole)):
        try:
            compiled(compiler, grammar=whole[:length])
        except InvalidParameter:
            continue


def test_characters_of_several_bytes_stay_whole(compiler: Compiler):
    constraint = compiled(compiler, regex="[é🙂漢]{3}")
    text, ended = speak(constraint, random.Random(2))
    assert ended
    assert set(text) <= set("é🙂漢")


def test_a_known_grammar_is_compiled_once(compiler: Compiler, monkeypatch):
    first = compiled(compiler, regex="once")
    monkeypatch.setattr(compiler, "_try", None)
    assert compiled(compiler, regex="once") is first


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(compilers, "CACHED", 10 * compilers.cost("x" * 40))
    monkeypatch.setattr(Compiler, "_try", lambda _self, _form: None)
    compiler = Compiler(ByteTokenizer(), VOCAB)
    for number in range(40):
        compiled(compiler, regex=f"a{number}")
    assert 0 < compiler.held <= compilers.CACHED


def test_a_grammar_that_takes_too_much_is_refused_and_the_next_one_compiles(monkeypatch):
    class Slow(GrammarWorker):
        def complaint(self, grammar: str) -> str:
            if "slow" in grammar:
                self.kill()
                raise TooCostly("as if it had taken too long")
            return super().complaint(grammar)

    monkeypatch.setattr(compilers, "GrammarWorker", Slow)
    compiler = Compiler(ByteTokenizer(), VOCAB)
    with pytest.raises(InvalidParameter, match="simpler"):
        compiled(compiler, regex="slow")
    assert speak(compiled(compiler, regex="fast"), random.Random(0)) == ("fast", True)
    compiler.close()


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 2])
def test_closing_leaves_no_process_behind(workers: int):
    compiler = Compiler(ByteTokenizer(), VOCAB)
    all_busy = threading.Barrier(workers)
    processes: list[int] = []

    def busy(worker: GrammarWorker) -> None:
        processes.append(worker._process.pid)
        all_busy.wait()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(compiler._workers.ask, [busy] * workers))
    assert len(set(processes)) == workers
    assert all(map(runs, processes))
    compiler.close()
    assert not any(map(runs, processes))
    with pytest.raises(NotReady):
        compiled(compiler, regex="after the end")


def test_a_process_that_was_killed_from_outside_is_replaced():
    compiler = Compiler(ByteTokenizer(), VOCAB)
    os.kill(compiler._workers.ask(lambda worker: worker._process.pid), signal.SIGKILL)
    assert speak(compiled(compiler, regex="next"), random.Random(0)) == ("next", True)
    compiler.close()


def test_an_ambiguous_grammar_ends_with_words_before_its_masks_take_long():
    """A token of many letters can be read in very many ways."""
    letters = [bytes([byte]) for byte in range(256)]
    words = TokenBytes([b"</s>", *letters, *(b"a" * length for length in range(2, 129))], [0], [0])
    matcher = LLMatcher(
        words.tokenizer(), user_grammar("root ::= root root | [a-z ]"), log_level=0, limits=limits()
    )
    follower = AnswerFollower(matcher, Later())
    with pytest.raises(ConstraintTooCostly, match="possibilities") as caught:
        follower.allowed()
    assert caught.value.status == 400


def aaa_follower(slow: Executor, **more: Any) -> AnswerFollower:
    words = TokenBytes([b"</s>", *(bytes([byte]) for byte in range(256))], [0], [0])
    grammar = LLMatcher.grammar_from_regex("a*")
    return AnswerFollower(LLMatcher(words.tokenizer(), grammar, log_level=0), slow, **more)


class Clock:
    """Processor time that passes with every look at it."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


class Later(Executor):
    """Does what it was given once it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, work))
        return future

    def work(self) -> None:
        while self.waiting:
            future, work = self.waiting.pop()
            future.set_result(work())


def test_masks_of_a_slow_answer_come_from_the_thread():
    slow = Later()
    follower = aaa_follower(slow, clock=Clock(0.01))
    first = follower.allowed()
    assert first is not None
    follower.advance(1 + ord("a"))
    assert follower.allowed() is None
    assert follower.allowed(0.001) is None
    assert len(slow.waiting) == 1  # asking again does not compute it again
    slow.work()
    assert follower.allowed() == first
    follower.advance(1 + ord("a"))
    assert follower.allowed() is None


class Exclusive:
    """A matcher that nobody may look at while it computes a mask, as those of llguidance are."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher, self.is_busy = matcher, False
        self.meanwhile: Callable[[], object] = lambda: None

    def compute_bitmask(self) -> bytes:
        self.is_busy = True
        self.meanwhile()
        self.is_busy = False
        return self._matcher.compute_bitmask()

    def __getattr__(self, name: str) -> Any:
        if self.is_busy:
            raise RuntimeError("Already mutably borrowed")
        return getattr(self._matcher, name)


def test_the_end_of_an_answer_can_be_asked_for_while_a_mask_is_computed():
    words = TokenBytes([b"</s>", *(bytes([byte]) for byte in range(256))], [0], [0])
    grammar = LLMatcher.grammar_from_regex("aa")
    matcher = Exclusive(LLMatcher(words.tokenizer(), grammar, log_level=0))
    follower = AnswerFollower(matcher, Later())
    seen: list[bool] = []
    matcher.meanwhile = lambda: seen.append(follower.done)
    for _ in range(2):
        assert follower.allowed()
        follower.advance(1 + ord("a"))
    assert seen == [False, False] and follower.done


def test_masks_of_a_quick_answer_come_at_once():
    slow = Later()
    follower = aaa_follower(slow, clock=Clock(0.0001))
    for _ in range(20):
        assert follower.allowed()
        follower.advance(1 + ord("a"))
    assert not slow.waiting


def test_an_answer_ends_once_its_constraint_has_taken_too_long():
    follower = aaa_follower(Later(), clock=Clock(0.05))
    with pytest.raises(ConstraintTooCostly, match=r"processor time for \d+ tokens"):
        for _ in range(40):
            follower.advance(1 + ord("a"))


SELF = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
MANY = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        (SELF, "refers to itself without an end|refers back to itself"),
        ({"$ref": "#"}, "refers to itself without an end"),
        (MANY, "optional properties"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_in_plain_words(compiler, schema, word):
    with pytest.raises(InvalidParameter, match=word) as caught:
        compiled(compiler, json_schema=schema_text(schema))
    assert "NoExtensionBias" not in str(caught.value)
    assert caught.value.field == "json_schema"


def test_the_process_is_killed_when_it_takes_too_much(compiler: Compiler):
    alternatives = "|".join(f'"x{i}"' for i in range(60_000))
    with pytest.raises(InvalidParameter, match="grammar"):
        compiler.compile(AnswerGrammar("grammar", f"start: {alternatives}"))
    assert speak(compiled(compiler, regex="still"), random.Random(0)) == ("still", True)
