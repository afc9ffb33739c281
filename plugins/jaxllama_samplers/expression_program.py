"""The compiler of expressions: a text becomes a program of a fixed size, as numbers.

Used by the samplers `expression` and `logit_expression` as the `encode` of their knobs. The program
is data in the decode step, so a new expression compiles nothing; expression_machine.py runs it.
Checks types and bounds, and finds out how far down the candidates an expression can be true.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from jaxllama_samplers.expression_text import SyntaxNode, WrongExpression, parse
from jaxllama_samplers.expression_words import (
    MOST_AT_ONCE,
    MOST_INSTRUCTIONS,
    NAMES,
    Kind,
    Op,
    Place,
    Trend,
)

FIELDS = 3  # numbers of one instruction: operation, place of its result, value of a constant
HEAD = 3  # numbers before the instructions: how many those are, how to ask, needs totals
WIDTH = HEAD + FIELDS * MOST_INSTRUCTIONS
PLACES = MOST_AT_ONCE + 1  # of results: the bound of a condition begins after the condition
WANTED: dict[Place, Kind] = {"expression": "condition", "logit_expression": "number"}
HINTS: dict[Place, str] = {
    "expression": "it has to be a condition that says which tokens to keep, such as p > 0.1",
    "logit_expression": "it has to be a number, the new logit, such as logit - 0.5 * count",
}
TOTALS = (Op.ENTROPY, Op.SIZE)
Trends = list[Trend]  # of the arguments of an operation

NEVER = 0.0  # how a filter learns that longer lists cannot keep more: it need not ask
ASK, ALWAYS = 1.0, 2.0  # by the bound; always ask for a longer list


@dataclass(frozen=True)
class Instruction:
    """One step of a program: reads the places from `to` on, and writes the place `to`."""

    op: Op
    to: int
    value: float = 0.0


@lru_cache(maxsize=512)
def encode_condition(text: str) -> tuple[float, ...]:
    """Compile a condition on tokens to a program, a row of numbers that the sampler runs.

    Raise WrongExpression (a ValueError) with the position of the mistake in `text`.
    """
    node = parsed(text, "expression")
    program = instructions(node)
    mode, bound = reach(node)
    whole = (*program, *(() if bound is None else instructions(bound, to=1)))
    if len(whole) > MOST_INSTRUCTIONS:  # without the bound, the filter asks for longer lists
        mode, whole = ALWAYS, program
    uses_totals = any(each.op in TOTALS for each in program)
    head = (float(len(whole)), mode, float(uses_totals))
    return (*head, *flat(whole))


@lru_cache(maxsize=512)
def encode_logit(text: str) -> tuple[float, ...]:
    """Compile a formula for new logits to a program, a row of numbers that the sampler runs.

    Raise WrongExpression (a ValueError) with the position of the mistake in `text`.
    """
    program = instructions(parsed(text, "logit_expression"))
    head = (float(len(program)), NEVER, 0.0)
    return (*head, *flat(program))


def parsed(text: str, place: Place) -> SyntaxNode:
    """Parse an expression for the sampler `place`, `expression` or `logit_expression`.

    Raise WrongExpression unless it is a condition for the first, a number for the second.
    """
    node = parse(text, place)
    if node.kind != WANTED[place]:
        raise WrongExpression(node.at, f"the expression is a {node.kind}; {HINTS[place]}")
    return node


def instructions(node: SyntaxNode, to: int = 0) -> tuple[Instruction, ...]:
    """Return the instructions that compute the syntax tree `node`; the result is in register `to`.

    Registers after `to` hold values in between. Raises WrongExpression if the tree needs too many
    instructions or too many registers.
    """
    found: list[Instruction] = []

    last = to + MOST_AT_ONCE - 1

    def emit(node: SyntaxNode, to: int) -> None:
        if to > last:
            raise WrongExpression(
                node.at,
                f"more than {MOST_AT_ONCE} values wait here for another; write the larger part of "
                f"an operation first",
            )
        for index, arg in enumerate(node.args):
            emit(arg, to + index)
        found.append(Instruction(node.op, to, node.value))
        if len(found) > MOST_INSTRUCTIONS:
            raise WrongExpression(
                node.at,
                f"the expression has more than {MOST_INSTRUCTIONS} operations, names and numbers",
            )

    emit(node, to)
    return tuple(found)


def flat(program: tuple[Instruction, ...]) -> list[float]:
    """Return the instructions of a program as a flat list of numbers, three for each."""
    return [number for each in program for number in (float(each.op), float(each.to), each.value)]


def reach(node: SyntaxNode) -> tuple[float, SyntaxNode | None]:
    """Return whether a filter can notice that candidates beyond its list might be kept.

    NEVER: once the condition is false for a candidate, it is false for all less probable ones, so
    the engine notices by itself. ASK: the second result is a condition with that property, which is
    true wherever `node` is. ALWAYS: neither is known. Without ASK the second result is None.
    """
    if trend(node) in (Trend.FALLING, Trend.FLAT):
        return NEVER, None
    bound = falling_bound(node)
    return (ALWAYS, None) if bound is None else (ASK, bound)


def falling_bound(node: SyntaxNode) -> SyntaxNode | None:
    """Return a condition that `node` implies and that stays false once it is false.

    That is, if it is false for a candidate, it is false for all less probable ones. None if no such
    condition is known.
    """
    if trend(node) in (Trend.FALLING, Trend.FLAT):
        return node
    if node.op in (Op.AND, Op.OR):
        bounds = [falling_bound(arg) for arg in node.args]
        known = [each for each in bounds if each is not None]
        if len(known) == len(bounds):
            return SyntaxNode(node.op, node.at, "condition", tuple(known))
        if node.op is Op.AND and known:
            return known[0]
    return None


def trend(node: SyntaxNode) -> Trend:
    """Return whether the value of `node` rises, falls or stays the same along the candidates.

    The candidates are in order of probability, the most probable first. MIXED: it is not known.
    """
    if node.op is Op.CONSTANT:
        return Trend.FLAT
    if node.name:
        return NAMES[node.name].trend
    trends = [trend(arg) for arg in node.args]
    if all(each is Trend.FLAT for each in trends):
        return Trend.FLAT
    rule = TRENDS.get(node.op)
    return Trend.MIXED if rule is None else rule(node, trends)


def of_sum(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a value that rises with each of two arguments; `trends` are theirs."""
    del node
    return both(*trends)


def of_difference(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a - b; `trends` are those of a and b."""
    del node
    return both(trends[0], opposite(trends[1]))


def of_comparison(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a < b, opposite to that of a - b; `trends` are those of a and b."""
    return opposite(of_difference(node, trends))


def of_same(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a function that rises with its argument: that of the argument."""
    del node
    return trends[0]


def of_opposite(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a call of a function that falls as its argument rises.

    It is the opposite of `trends[0]`, the trend of the argument; `node`, the call, is not needed.
    """
    del node
    return opposite(trends[0])


def of_product(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a * b; `trends` are those of a and b."""
    signs = [sign(arg) for arg in node.args]
    return both(scaled(trends[0], signs[1]), scaled(trends[1], signs[0]))


def of_quotient(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a / b; `trends` are those of a and b, `node` tells the sign of b.

    If b has one sign, 1 / b falls as b rises; else the trend is not known.
    """
    if trends[1] is not Trend.FLAT and sign(node.args[1]) == 0:
        return Trend.MIXED
    return of_product(node, [trends[0], opposite(trends[1])])


def of_choice(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of `a if c else b`; `trends` are those of c, a and b."""
    del node
    return both(*trends[1:]) if trends[0] is Trend.FLAT else Trend.MIXED


def of_power(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of a ** b; `trends` are those of a and b."""
    if trends[1] is not Trend.FLAT or sign(node.args[0]) != 1:
        return Trend.MIXED
    return scaled(trends[0], sign(node.args[1]))


def of_size(node: SyntaxNode, trends: Trends) -> Trend:
    """Return the trend of abs(a); `trends` has that of a."""
    return scaled(trends[0], sign(node.args[0]))


TRENDS: Mapping[Op, Callable[[SyntaxNode, Trends], Trend]] = {
    **dict.fromkeys((Op.ADD, Op.MIN, Op.MAX, Op.AND, Op.OR), of_sum),
    **dict.fromkeys((Op.EXP, Op.LOG, Op.SQRT, Op.FLOOR), of_same),
    **dict.fromkeys((Op.LESS, Op.LESS_EQUAL), of_comparison),
    **dict.fromkeys((Op.NOT, Op.NEGATE), of_opposite),
    Op.SUBTRACT: of_difference,
    Op.MULTIPLY: of_product,
    Op.DIVIDE: of_quotient,
    Op.CHOOSE: of_choice,
    Op.POWER: of_power,
    Op.ABS: of_size,
}


def scaled(trend: Trend, sign: int) -> Trend:
    """Return the trend of x * c, for x with this trend and c with this sign (0: unknown)."""
    if trend is Trend.FLAT:
        return Trend.FLAT
    return {1: trend, -1: opposite(trend)}.get(sign, Trend.MIXED)


def sign(node: SyntaxNode) -> int:
    """Return 1 for a number that is never negative, -1 for one never positive, 0 if not known."""
    if node.op is Op.CONSTANT:
        return -1 if node.value < 0 else 1
    if node.name:
        return NAMES[node.name].sign
    if node.op in (Op.EXP, Op.SQRT, Op.ABS):
        return 1
    rule = SIGNS.get(node.op)
    return 0 if rule is None else rule([sign(arg) for arg in node.args])


def common(signs: Sequence[int]) -> int:
    """Return the sign that all numbers share; 0 if they differ."""
    return signs[0] if len(set(signs)) == 1 else 0


SIGNS: Mapping[Op, Callable[[list[int]], int]] = {
    **dict.fromkeys((Op.ADD, Op.MIN, Op.MAX), common),
    **dict.fromkeys((Op.MULTIPLY, Op.DIVIDE), math.prod),
    Op.NEGATE: lambda signs: -signs[0],
    Op.SUBTRACT: lambda signs: common([signs[0], -signs[1]]),
    Op.POWER: lambda signs: max(signs[0], 0),
    Op.CHOOSE: lambda signs: common(signs[1:]),
}


def both(one: Trend, other: Trend) -> Trend:
    """Return the trend of x + y, for x and y with these trends."""
    if Trend.FLAT in (one, other):
        return Trend(one + other)
    return one if one is other else Trend.MIXED


def opposite(trend: Trend) -> Trend:
    """Return the trend of -x for an x with this trend."""
    return trend if trend is Trend.MIXED else Trend(-trend)
