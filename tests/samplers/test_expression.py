"""Expressions: the language, the program, and what they keep and change, against NumPy."""

import numpy as np
import pytest

from jaxllama.errors import InvalidParameter
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.testing.tryout import Tryout, survivors
from jaxllama_samplers.expression_program import ALWAYS, ASK, NEVER, encode_condition, encode_logit
from jaxllama_samplers.expression_words import (
    FUNCTIONS,
    MOST_CHARACTERS,
    MOST_INSTRUCTIONS,
    NAMES,
    OPERATORS,
    as_markdown,
)
from tests.origins import ROOT
from tests.samplers.rows import random_logits, shares, softmax

VOCAB, ROWS, NARROW = 50, 64, 6
KINDS = {
    name: kind
    for name, kind in load_plugins(SAMPLERS, Sampler).loaded.items()
    if "expression" in name or name == "min_p"
}


@pytest.fixture(scope="module")
def narrow() -> Tryout:
    """A bank whose first list of candidates is short, so that the engine has to widen it."""
    return Tryout(KINDS, vocab=VOCAB, slots=ROWS, candidates=NARROW, context=16)


def fields(rng: np.random.Generator) -> dict[str, np.ndarray]:
    length = rng.integers(2, 16, ROWS)
    return {
        "tokens": rng.integers(0, VOCAB, (ROWS, 16)),
        "length": length,
        "prompt": np.minimum(rng.integers(1, 8, ROWS), length),
        "stop_ids": np.full((ROWS, 1), 7),
    }


class Row:
    """The names of an expression for one row, likeliest token first, in NumPy."""

    def __init__(self, logits, tokens, length, prompt, stop_ids) -> None:
        order = np.argsort(-logits, kind="stable")
        known, answer = tokens[:length], tokens[prompt:length]
        self.id = order
        self.logit = (logits - logits.max())[order]
        self.p = softmax(logits)[order]
        self.logp = np.log(self.p)
        self.rank = np.arange(VOCAB)
        self.above = np.cumsum(self.p) - self.p
        self.count = np.array([np.sum(known == one) for one in order])
        self.count_answer = np.array([np.sum(answer == one) for one in order])
        last = [np.flatnonzero(known == one) for one in order]
        self.since = np.array([length - each[-1] if len(each) else np.inf for each in last])
        self.ends = np.isin(order, stop_ids)
        self.p_max, self.size = self.p.max(), VOCAB
        self.entropy = -np.sum(self.p * self.logp)
        self.position, self.length, self.prompt_length = length - prompt, length, prompt
        self.temperature = 1.0


CONDITIONS = {
    "p > 0.1 * p_max and rank < 40": lambda r: (r.p > 0.1 * r.p_max) & (r.rank < 40),
    "above < 0.613": lambda r: r.above < 0.613,
    "count_answer == 0": lambda r: r.count_answer == 0,
    "p > 0.011 and count < 1": lambda r: (r.p > 0.011) & (r.count < 1),
    "rank % 3 == 1 or rank == 44": lambda r: (r.rank % 3 == 1) | (r.rank == 44),
    "not (ends and position < 5)": lambda r: ~(r.ends & (r.position < 5)),
    "since > 3.5 if position > 2 else rank < 2": lambda r: (
        r.since > 3.5 if r.position > 2 else r.rank < 2
    ),
    "0.0113 < p <= 0.0512": lambda r: (r.p > 0.0113) & (r.p <= 0.0512),
    "min(-logp, 3) < entropy and logit > -6.05": lambda r: (
        (np.minimum(-r.logp, 3) < r.entropy) & (r.logit > -6.05)
    ),
    "id * 2 != length + prompt_length - 3 and size > 3 * temperature": lambda r: (
        (r.id * 2 != r.length + r.prompt_length - 3) & (r.size > 3)
    ),
    "sqrt(p) ** 1.5 / exp(logp) < 4.07": lambda r: np.sqrt(r.p) ** 1.5 / r.p < 4.07,
    "abs(floor(logit / 2)) + log(rank + 1) < 5.03": lambda r: (
        np.abs(np.floor(r.logit / 2)) + np.log(r.rank + 1) < 5.03
    ),
}


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_keeps_what_numpy_keeps_though_the_first_list_is_short(narrow, text):
    rng = np.random.default_rng(3)
    logits, given = random_logits(rng, ROWS, VOCAB), fields(rng)
    choice = narrow.choose(logits, [{"expression": text}] * ROWS, **given)
    for place in range(ROWS):
        row = Row(logits[place], *(given[name][place] for name in given))
        keep = np.broadcast_to(CONDITIONS[text](row), VOCAB)
        expected = row.id[keep] if keep.any() else row.id
        assert survivors(choice, place) == expected.tolist(), place


FORMULAS = {
    "logit - 0.5 * count_answer": lambda r: r.raw - 0.5 * r.count_answer,
    "3 * logp + p - p_max": lambda r: 3 * r.logp + r.p - r.p_max,
    "logit if entropy > 1.5 else logit * 2": lambda r: r.raw * (1 if r.entropy > 1.5 else 2),
    "-1e30 if ends or id % 2 == 1 else max(logit, -3)": lambda r: np.where(
        r.ends | (r.id % 2 == 1), -1e30, np.maximum(r.raw, -3)
    ),
    "logit - 1 / since": lambda r: r.raw - 1 / r.since,
}


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_gives_the_logits_that_numpy_gives(narrow, text):
    rng = np.random.default_rng(4)
    logits, given = random_logits(rng, ROWS, VOCAB), fields(rng)
    found = shares(narrow, logits, [{"logit_expression": text}] * ROWS, **given)
    for place in range(ROWS):
        row = Row(logits[place], *(given[name][place] for name in given))
        row.raw = logits[place][row.id]
        new = np.full(VOCAB, -np.inf)
        new[row.id] = FORMULAS[text](row)
        np.testing.assert_allclose(np.exp(found[place]), softmax(new), atol=2e-6)


def test_a_formula_without_a_number_leaves_the_logit_and_a_ban_stays(narrow):
    logits = np.zeros(VOCAB)
    logits[3] = -np.inf
    found = shares(narrow, logits, {"logit_expression": "0 / 0 if id < 9 else 1 / 0 + 2"})
    assert (np.exp(found[0][:9]) == 0).all() and np.exp(found[0][9:]) == pytest.approx(1 / 41)


def test_a_row_draws_the_same_alone_and_among_other_expressions(narrow):
    rng = np.random.default_rng(5)
    texts = list(CONDITIONS)
    knobs = [
        {"expression": texts[row % len(texts)]}
        | ({"logit_expression": list(FORMULAS)[row % 5]} if row % 3 == 0 else {})
        for row in range(ROWS)
    ]
    logits, given = random_logits(rng, ROWS, VOCAB), fields(rng)
    together = narrow.choose(logits, knobs, **given)
    before = narrow.traces
    for place in range(0, ROWS, 7):
        active = {name: [values[place]] for name, values in given.items()}
        seed = [[0, place]]
        alone = narrow.choose(logits[place], [knobs[place]], **active, seed=seed)
        assert alone.token[0] == together.token[place]
        assert (alone.sampled_logprobs[0] == together.sampled_logprobs[place]).all()
    assert narrow.traces == before  # no expression compiles anything


def test_a_condition_sees_what_other_filters_left(narrow):
    logits = np.log(np.r_[np.array([8.0, 4, 2, 1]), np.full(VOCAB - 4, 1e-3)])
    knobs = {"min_p": 0.2, "expression": "size == 3 and p < 0.5"}
    assert survivors(narrow.choose(logits, knobs)) == [1, 2]


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("p > 0.1 * p_max and rank < 40", NEVER),
        ("above < 0.9", NEVER),
        ("logp > -entropy - 2", NEVER),
        ("p >= min(0.0009, sqrt(0.0009) * exp(-entropy))", NEVER),
        ("not rank > 3", NEVER),
        ("p * (2 if position < 5 else 3) > 0.1", NEVER),
        ("-rank / 3 > -4", NEVER),
        ("p > 0.1 and count < 2", ASK),
        ("0.1 < p < 0.5", ASK),
        ("rank < 9 and ends or p > 0.2", ASK),
        ("count < 2", ALWAYS),
        ("p < 0.5", ALWAYS),
        ("rank == 300 or p > 0.1", ALWAYS),
        ("logit * entropy ** -1 * rank > 1", ALWAYS),
    ],
)
def test_the_compiler_knows_how_far_down_a_condition_can_hold(text, mode):
    assert encode_condition(text)[1] == mode


def test_only_conditions_with_entropy_or_size_pay_for_them():
    assert encode_condition("entropy > 2 and p > 0.1")[2] == encode_condition("size > 2")[2] == 1
    assert encode_condition("p > 0.1 and rank < 9")[2] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p > 0.1 and rnk < 4", "character 13: unknown name 'rnk'; did you mean 'rank'?"),
        ("p and rank < 3", "character 1: 'and' joins two conditions, such as p > 0.1; this is a"),
        ("p > ", "character 4: expected a number, a name or '(', found the end"),
        ("(p > 0.1", "character 9: expected ')' for the '(' at character 1, found the end"),
        ("p = 0.1", "character 3: '=' does not belong here; write == to compare"),
        ("abs(p, 2) > 1", "character 1: 'abs' takes 1 numbers, not 2"),
        ("p * 2", "character 3: the expression is a number; it has to be a condition"),
        ("p > 0.1 p", "character 9: expected an operator or the end, found 'p'"),
        ("p > 3e40", "character 5: 3e40 is too large"),
        ("p > 2x", "character 5: '2x' is no number"),
        ("p if rank < 3 else ends", "character 20: 'if' has a number before it, so 'else' needs"),
        ("__import__('os')", 'character 12: "\'" does not belong here'),
        ("p.real > 0", "character 2: '.' does not belong here"),
        ("\N{GREEK SMALL LETTER PI} > 0", "character 1: '\N{GREEK SMALL LETTER PI}' does not"),
        ("(" * 40 + "p > 0" + ")" * 40, "character 25: more than 24 parts within each other"),
        ("p > 2" + " ** 2" * 40, "parts within each other"),
        ("not " * 100 + "ends", "more than 48 operations, names and numbers"),
        (" or ".join(["p > 0.1"] * 13), "more than 48 operations"),
        ("p > 1+(p*(2+(p*(3+(p*(4+(p*(5+(p*6)))))))))", "values wait here for another"),
    ],
)
def test_a_wrong_text_is_refused_with_its_place(narrow, text, words):
    with pytest.raises(InvalidParameter) as refusal:
        narrow.bank.check({"expression": text})
    assert str(refusal.value).startswith("expression: character ") and words in str(refusal.value)
    assert refusal.value.field == "expression"


def test_names_that_need_sorted_tokens_are_refused_in_a_formula(narrow):
    with pytest.raises(InvalidParameter, match=r"character 9: 'rank' is not known here"):
        narrow.bank.check({"logit_expression": "logit - rank"})


@pytest.mark.parametrize("value", ["", 3, True, ["p > 1"], "p > 1 or " * MOST_CHARACTERS])
def test_a_value_that_is_no_text_or_too_long_is_refused(narrow, value):
    with pytest.raises(InvalidParameter, match=r"^expression (is|has) "):
        narrow.bank.check({"expression": value})


def test_no_text_makes_anything_but_a_refusal_or_a_bounded_program():
    words = [
        *NAMES,
        *FUNCTIONS,
        *"+-*/%()<>,=.",
        "**",
        "and",
        "or",
        "not",
        "if",
        "else",
        "1",
        "2.5",
    ]
    rng = np.random.default_rng(6)
    programs = 0
    for _ in range(3000):
        text = " ".join(rng.choice(words, rng.integers(1, 9)))
        for encode in (encode_condition, encode_logit):
            try:
                numbers = encode.__wrapped__(text)
            except ValueError as error:
                assert str(error).startswith("character ")
                continue
            programs += 1
            assert 0 < numbers[0] <= MOST_INSTRUCTIONS
    assert programs > 20


def test_the_documentation_has_the_tables_of_names_and_operators():
    text = (ROOT / "docs" / "expressions.md").read_text()
    assert as_markdown() in text
    for word in (*NAMES, *FUNCTIONS, *(each.shown for each in OPERATORS)):
        assert word in text or word.split(", ")[0] in text
