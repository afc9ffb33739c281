"""The words of expressions: every name, function and operator, with meaning and properties.

Read by the compiler, the tests and the page; the tables in docs/expressions.md are made from it.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Kind = Literal["number", "condition"]
Place = Literal["expression", "logit_expression"]
BOTH: tuple[Place, ...] = ("expression", "logit_expression")
KEEP: tuple[Place, ...] = ("expression",)

MOST_CHARACTERS = 500
MOST_INSTRUCTIONS = 48
MOST_AT_ONCE = 8  # values that wait for others while an expression is computed
DEEPEST = 24  # parentheses, functions and signs within each other


class Trend(IntEnum):
    """The change of a value from the likeliest candidate to the least likely."""

    FALLING = -1
    FLAT = 0  # the same for all candidates
    RISING = 1
    MIXED = 2  # not known


class Op(IntEnum):
    """Instructions; 0 marks the unused end of a program."""

    CONSTANT = 1
    # Names: one number for the row.
    P_MAX = 2
    ENTROPY = 3
    SIZE = 4
    POSITION = 5
    LENGTH = 6
    PROMPT_LENGTH = 7
    TEMPERATURE = 8
    CHANCE = 9
    # Names: one number or condition for each token.
    P = 10
    LOGP = 11
    LOGIT = 12
    RANK = 13
    ID = 14
    ABOVE = 15
    ENDS = 16
    COUNT = 17
    COUNT_ANSWER = 18
    SINCE = 19
    # Operations.
    ADD = 20
    SUBTRACT = 21
    MULTIPLY = 22
    DIVIDE = 23
    MODULO = 24
    LESS = 25
    LESS_EQUAL = 26
    EQUAL = 27
    UNEQUAL = 28
    AND = 29
    OR = 30
    NOT = 31
    MIN = 32
    MAX = 33
    ABS = 34
    FLOOR = 35
    SQRT = 36
    CHOOSE = 37
    NEGATE = 38
    EXP = 39
    LOG = 40
    POWER = 41


@dataclass(frozen=True)
class Name:
    """A name that stands for a fact about a token or its row."""

    op: Op
    meaning: str
    trend: Trend
    sign: int = 1  # 1: never negative; -1: never positive; 0: both
    kind: Kind = "number"
    places: tuple[Place, ...] = BOTH


@dataclass(frozen=True)
class ExpressionFunction:
    """A function of one or two numbers."""

    op: Op
    arity: int
    meaning: str


@dataclass(frozen=True)
class Operator:
    """An operator, as the table of the documentation shows it."""

    shown: str
    meaning: str


NAMES: dict[str, Name] = {
    "p": Name(Op.P, "probability of the token", Trend.FALLING),
    "logp": Name(Op.LOGP, "natural logarithm of p", Trend.FALLING, -1),
    "logit": Name(
        Op.LOGIT,
        "logit of the token; in `expression` relative to the likeliest token, whose logit is 0",
        Trend.FALLING,
        0,
    ),
    "rank": Name(Op.RANK, "place of the token: 0 for the likeliest", Trend.RISING, places=KEEP),
    "above": Name(
        Op.ABOVE, "probability of all likelier tokens together", Trend.RISING, places=KEEP
    ),
    "id": Name(Op.ID, "id of the token", Trend.MIXED),
    "ends": Name(Op.ENDS, "true if the token ends the answer", Trend.MIXED, kind="condition"),
    "count": Name(Op.COUNT, "how often the token occurs in prompt and answer", Trend.MIXED),
    "count_answer": Name(Op.COUNT_ANSWER, "how often the token occurs in the answer", Trend.MIXED),
    "since": Name(
        Op.SINCE,
        "how many tokens ago the token occurred last: 1 for the newest, infinite if never",
        Trend.MIXED,
    ),
    "p_max": Name(Op.P_MAX, "probability of the likeliest token", Trend.FLAT),
    "entropy": Name(Op.ENTROPY, "entropy of the distribution, in nats", Trend.FLAT),
    "size": Name(Op.SIZE, "number of tokens that can still be drawn", Trend.FLAT),
    "position": Name(Op.POSITION, "number of tokens in the answer so far", Trend.FLAT),
    "length": Name(Op.LENGTH, "number of tokens in prompt and answer so far", Trend.FLAT),
    "prompt_length": Name(Op.PROMPT_LENGTH, "number of tokens in the prompt", Trend.FLAT),
    "temperature": Name(Op.TEMPERATURE, "temperature of the request", Trend.FLAT),
    "chance": Name(
        Op.CHANCE, "one random number from 0 to 1, new for each token of the answer", Trend.FLAT
    ),
}

FUNCTIONS: dict[str, ExpressionFunction] = {
    "abs": ExpressionFunction(Op.ABS, 1, "absolute value"),
    "exp": ExpressionFunction(Op.EXP, 1, "e to the power of the number"),
    "log": ExpressionFunction(Op.LOG, 1, "natural logarithm"),
    "sqrt": ExpressionFunction(Op.SQRT, 1, "square root"),
    "floor": ExpressionFunction(Op.FLOOR, 1, "the number rounded down"),
    "min": ExpressionFunction(Op.MIN, 2, "the smaller of two numbers"),
    "max": ExpressionFunction(Op.MAX, 2, "the larger of two numbers"),
}

OPERATORS = (  # from the weakest to the strongest
    Operator("a if c else b", "a where the condition c holds, else b"),
    Operator("c or d", "at least one condition holds"),
    Operator("c and d", "both conditions hold"),
    Operator("not c", "the condition does not hold"),
    Operator("a < b, a <= b, a > b, a >= b, a == b, a != b", "compare; 0.1 < p < 0.5 is allowed"),
    Operator("a + b, a - b", "add, subtract"),
    Operator("a * b, a / b, a % b", "multiply, divide, remainder (with the sign of b)"),
    Operator("-a, +a", "change the sign; no effect"),
    Operator("a ** b", "power"),
)


def words_for(place: Place) -> dict[str, str]:
    """Return the meaning of every name and function that the sampler `place` accepts."""
    named = {name: each.meaning for name, each in NAMES.items() if place in each.places}
    return named | {
        f"{name}({', '.join('ab'[: each.arity])})": each.meaning for name, each in FUNCTIONS.items()
    }


def as_markdown() -> str:
    """Return the tables of names, functions and operators for the documentation."""
    lines = ["| name | meaning | `expression` | `logit_expression` |", "|---|---|---|---|"]
    for name, each in NAMES.items():
        marks = " | ".join("yes" if place in each.places else "no" for place in BOTH)
        lines.append(f"| `{name}` | {each.meaning} | {marks} |")
    lines += ["", "| function | meaning |", "|---|---|"]
    for name, function in FUNCTIONS.items():
        arguments = ", ".join("ab"[: function.arity])
        lines.append(f"| `{name}({arguments})` | {function.meaning} |")
    lines += ["", "| operator, the weakest first | meaning |", "|---|---|"]
    for operator in OPERATORS:
        shown = ", ".join(f"`{one}`" for one in operator.shown.split(", "))
        lines.append(f"| {shown} | {operator.meaning} |")
    lines += ["", "| bound | most |", "|---|---|"]
    lines += [
        f"| characters | {MOST_CHARACTERS} |",
        f"| operations, names and numbers | {MOST_INSTRUCTIONS} |",
        f"| values that wait for another at a time | {MOST_AT_ONCE} |",
        f"| parentheses and functions within each other | {DEEPEST} |",
    ]
    return "\n".join(lines)
