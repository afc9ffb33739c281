"""The parser of expressions: text becomes a tree; a wrong text is refused with the place.

Used by expression_program.py. A closed language: the parser knows only the words of
expression_words.py, and nothing in a text is ever run as Python.
"""

import difflib
import re
from dataclasses import dataclass

from jaxllama_samplers.expression_words import DEEPEST, FUNCTIONS, NAMES, Kind, Op, Place

TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\*\*|<=|>=|==|!=|[-+*/%()<>,]))"
)
LARGEST = 1e30
JOINERS = {"and": Op.AND, "or": Op.OR}
COMPARISONS = {  # the instruction, and whether its sides are exchanged
    "<": (Op.LESS, False),
    "<=": (Op.LESS_EQUAL, False),
    ">": (Op.LESS, True),
    ">=": (Op.LESS_EQUAL, True),
    "==": (Op.EQUAL, False),
    "!=": (Op.UNEQUAL, False),
}
SUMS = {"+": Op.ADD, "-": Op.SUBTRACT}
PRODUCTS = {"*": Op.MULTIPLY, "/": Op.DIVIDE, "%": Op.MODULO}
RESERVED = ("and", "or", "not", "if", "else")
END = "the end"


class WrongExpression(ValueError):
    """Raised for a text that is no valid expression; the message names the character, from 1."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(f"character {at + 1}: {why}")


@dataclass(frozen=True)
class SyntaxNode:
    """One operation, name or number of an expression, with its arguments."""

    op: Op
    at: int  # index of its first character
    kind: Kind
    args: tuple["SyntaxNode", ...] = ()
    value: float = 0.0  # of a number
    name: str = ""  # of a name


@dataclass(frozen=True)
class Piece:
    """A number, word or sign of the text."""

    text: str
    at: int
    is_number: bool = False


def parse(text: str, place: Place) -> SyntaxNode:
    """Parse an expression; raise WrongExpression with the position of the first mistake.

    `place` is the sampler that will use it, which decides what names it may have.
    """
    return Parser(text, place).parse()


class Parser:
    """Reads one text by recursive descent; each method reads one kind of part."""

    def __init__(self, text: str, place: Place) -> None:
        self.place = place
        self.pieces = split(text)
        self.next = 0
        self.depth = 0

    def parse(self) -> SyntaxNode:
        """Parse the whole text; raise WrongExpression if something is left after the expression."""
        node = self.choice()
        if self.piece.text != END:
            raise WrongExpression(
                self.piece.at, f"expected an operator or the end, found {self.piece.text!r}"
            )
        return node

    @property
    def piece(self) -> Piece:
        """Return the next piece of the text, without consuming it."""
        return self.pieces[self.next]

    def take(self, *texts: str) -> Piece | None:
        """Consume and return the next piece if it is one of `texts`; else return None."""
        piece = self.piece
        if piece.is_number or piece.text not in texts:
            return None
        self.next += 1
        return piece

    def need(self, text: str, why: str) -> None:
        """Consume the next piece of the text if it is `text`; else raise WrongExpression.

        The error says `expected TEXT WHY`, with `why` for the reason.
        """
        if self.take(text) is None:
            raise WrongExpression(self.piece.at, f"expected {text!r} {why}, found {self.shown}")

    @property
    def shown(self) -> str:
        """Return the next piece as an error message quotes it."""
        return END if self.piece.text == END else repr(self.piece.text)

    def choice(self) -> SyntaxNode:
        """Parse `a if c else b`, or an expression without `if`."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise WrongExpression(self.piece.at, f"more than {DEEPEST} parts within each other")
        node = self.either()
        if (word := self.take("if")) is not None:
            condition = needs(self.either(), "condition", "'if' is followed by a condition")
            self.need("else", "after 'if'")
            other = self.choice()
            if other.kind != node.kind:
                raise WrongExpression(
                    other.at, f"'if' has a {node.kind} before it, so 'else' needs a {node.kind}"
                )
            node = SyntaxNode(Op.CHOOSE, word.at, node.kind, (condition, node, other))
        self.depth -= 1
        return node

    def either(self) -> SyntaxNode:
        """Parse conditions joined by `or`."""
        node = self.both()
        while (word := self.take("or")) is not None:
            node = joined(word, node, self.both())
        return node

    def both(self) -> SyntaxNode:
        """Parse conditions joined by `and`."""
        node = self.negation()
        while (word := self.take("and")) is not None:
            node = joined(word, node, self.negation())
        return node

    def negation(self) -> SyntaxNode:
        """Parse `not c`, or a comparison."""
        signs = []
        while (word := self.take("not")) is not None:
            signs.append(word)
        node = self.comparison()
        for sign in reversed(signs):
            condition = needs(node, "condition", "'not' is followed by a condition")
            node = SyntaxNode(Op.NOT, sign.at, "condition", (condition,))
        return node

    def comparison(self) -> SyntaxNode:
        """Parse comparisons such as `a < b < c`, or a sum."""
        left, found = self.sum(), None
        while (sign := self.take(*COMPARISONS)) is not None:
            right = self.sum()
            op, is_exchanged = COMPARISONS[sign.text]
            for side in (left, right):
                needs(side, "number", f"{sign.text!r} compares numbers")
            sides = (right, left) if is_exchanged else (left, right)
            node = SyntaxNode(op, sign.at, "condition", sides)
            found = (
                node if found is None else SyntaxNode(Op.AND, sign.at, "condition", (found, node))
            )
            left = right
        return left if found is None else found

    def sum(self) -> SyntaxNode:
        """Parse terms joined by + and -."""
        node = self.product()
        while (sign := self.take(*SUMS)) is not None:
            node = computed(SUMS[sign.text], sign, node, self.product())
        return node

    def product(self) -> SyntaxNode:
        """Parse factors joined by *, / and %."""
        node = self.signed()
        while (sign := self.take(*PRODUCTS)) is not None:
            node = computed(PRODUCTS[sign.text], sign, node, self.signed())
        return node

    def signed(self) -> SyntaxNode:
        """Parse a power with any number of signs before it."""
        signs = []
        while (sign := self.take("-", "+")) is not None:
            signs.append(sign)
        node = self.power()
        for sign in reversed(signs):
            needs(node, "number", f"{sign.text!r} is followed by a number")
            if sign.text == "-":
                node = computed(Op.NEGATE, sign, node)
        return node

    def power(self) -> SyntaxNode:
        """Parse `a ** b`, or a single operand."""
        node = self.atom()
        if (sign := self.take("**")) is not None:
            self.depth += 1
            if self.depth > DEEPEST:
                raise WrongExpression(sign.at, f"more than {DEEPEST} parts within each other")
            node = computed(Op.POWER, sign, node, self.signed())
            self.depth -= 1
        return node

    def atom(self) -> SyntaxNode:
        """Parse one operand: a number, a name, a function call or an expression in parentheses."""
        piece = self.piece
        self.next += piece.text != END
        if piece.is_number:
            return number(piece)
        if piece.text == "(":
            node = self.choice()
            self.need(")", f"for the '(' at character {piece.at + 1}")
            return node
        if piece.text in FUNCTIONS:
            return self.function(piece)
        if piece.text in NAMES:
            return self.name(piece)
        if piece.text == END or not piece.text[0].isalpha() or piece.text in RESERVED:
            raise WrongExpression(
                piece.at, f"expected a number, a name or '(', found {shown(piece)}"
            )
        raise unknown(piece, self.place)

    def function(self, piece: Piece) -> SyntaxNode:
        """Parse the arguments of the function `piece`; check how many there are."""
        function = FUNCTIONS[piece.text]
        self.need("(", f"after {piece.text!r}")
        args = [self.choice()]
        while self.take(",") is not None:
            args.append(self.choice())
        self.need(")", f"after the numbers of {piece.text!r}")
        if len(args) != function.arity:
            raise WrongExpression(
                piece.at, f"{piece.text!r} takes {function.arity} numbers, not {len(args)}"
            )
        return computed(function.op, piece, *args)

    def name(self, piece: Piece) -> SyntaxNode:
        """Return the node of a name; raise WrongExpression if this sampler does not know it."""
        found = NAMES[piece.text]
        if self.place not in found.places:
            raise WrongExpression(
                piece.at,
                f"{piece.text!r} is not known here, because the tokens are not sorted yet; "
                f"use it in `{found.places[0]}`",
            )
        return SyntaxNode(found.op, piece.at, found.kind, name=piece.text)


def split(text: str) -> list[Piece]:
    """Split a text into numbers, words and signs; the last piece marks the end."""
    found, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            hint = "; write == to compare" if text[at] == "=" else ""
            raise WrongExpression(at, f"{text[at]!r} does not belong here{hint}")
        assert match.lastgroup is not None
        piece = match[match.lastgroup]
        found.append(Piece(piece, match.start(match.lastgroup), match.lastgroup == "number"))
        at = match.end()
        if found[-1].is_number and at < end and (text[at].isalnum() or text[at] in "_."):
            raise WrongExpression(found[-1].at, f"{piece + text[at]!r} is no number")
    return [*found, Piece(END, end)]


def number(piece: Piece) -> SyntaxNode:
    """Return the node of a number; raise WrongExpression if it is too large."""
    value = float(piece.text)
    if value > LARGEST:
        raise WrongExpression(piece.at, f"{piece.text} is too large; at most {LARGEST:g}")
    return SyntaxNode(Op.CONSTANT, piece.at, "number", value=value)


def joined(word: Piece, left: SyntaxNode, right: SyntaxNode) -> SyntaxNode:
    """Return the syntax node of `left and right` or `left or right`; both must be conditions.

    `word` is the piece of the text that says `and` or `or`.
    """
    for side in (left, right):
        needs(side, "condition", f"{word.text!r} joins two conditions, such as p > 0.1")
    return SyntaxNode(JOINERS[word.text], word.at, "condition", (left, right))


def computed(op: Op, sign: Piece, *args: SyntaxNode) -> SyntaxNode:
    """Return the syntax node of operation `op` on `args`, which must be numbers.

    `sign` is the piece of the text with the operator, for errors. The negative of a constant
    becomes a constant.
    """
    for arg in args:
        needs(arg, "number", f"{sign.text!r} computes with numbers")
    if op is Op.NEGATE and args[0].op is Op.CONSTANT:
        return SyntaxNode(Op.CONSTANT, sign.at, "number", value=-args[0].value)
    return SyntaxNode(op, sign.at, "number", args)


def needs(node: SyntaxNode, kind: Kind, why: str) -> SyntaxNode:
    """Return `node` if it is of this kind; raise WrongExpression, beginning with `why`, if not."""
    if node.kind != kind:
        hint = "; write (1 if ... else 0)" if kind == "number" else ""
        raise WrongExpression(node.at, f"{why}; this is a {node.kind}{hint}")
    return node


def unknown(piece: Piece, place: Place) -> WrongExpression:
    """Build the error for the unknown name in `piece`, with the nearest name that is known.

    `place` is the sampler that will use the expression, which decides what names there are.
    """
    known = [name for name, each in NAMES.items() if place in each.places] + list(FUNCTIONS)
    near = difflib.get_close_matches(piece.text, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return WrongExpression(piece.at, f"unknown name {piece.text!r:.40}; {hint}")


def shown(piece: Piece) -> str:
    """Return a piece as an error message quotes it."""
    return END if piece.text == END else repr(piece.text)
