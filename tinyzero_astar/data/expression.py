"""Arithmetic expressions as a policy writes them, read strictly and valued exactly.

    sum     = product (("+" | "-") product)*        from left to right
    product = operand (("*" | "/") operand)*        from left to right
    operand = number | "(" sum ")"
    number  = "0" | a digit 1 to 9, then digits 0 to 9

Blanks (U+0020) may stand between these, and nothing else may stand anywhere. So there is no sign (`-3`), no power, no
floor division, no decimal point and no equals sign. The text is untrusted, and nothing is ever handed to Python's own
parser.

`MAX_CHARS` bounds everything. The time is linear in the length, and no numerator or denominator has more digits than
the text has characters. `MAX_DEPTH` keeps the recursion shallow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

MAX_CHARS = 200  # six numbers of four digits with every operator and parenthesis take 60
MAX_DEPTH = 16  # of parentheses, of which six numbers need 5

_SUMS, _PRODUCTS, _MARKS = frozenset("+-"), frozenset("*/"), "+-*/()"
_ALPHABET = frozenset("0123456789 " + _MARKS)
Exact = int | Fraction  # whole numbers as such are several times faster
_END = ""  # what stands behind the last token


class Fault(StrEnum):
    """Why a text is no expression."""

    EMPTY = "no expression"
    TOO_LONG = "expression too long"
    EQUATION = "equation instead of an expression"
    FOREIGN = "character that is not arithmetic"
    LEADING_ZERO = "number with a leading zero"
    NO_NUMBER = "number missing"
    NO_OPERATOR = "operator missing"
    NOT_CLOSED = "parenthesis not closed"
    NOT_OPENED = "parenthesis not opened"
    TOO_DEEP = "parentheses nested too deep"


@dataclass(frozen=True)
class Expression:
    """What a well-formed expression says."""

    value: Exact | None  # None means that it divides by zero
    numbers: tuple[int, ...]  # every number in it, as often as it stands there, from left to right


def read_expression(text: str) -> Expression | Fault:
    """The value and the numbers of an expression, or why the text is none.

    Args:
        text: untrusted, of any length.
    """
    fault = _surface_fault(text)
    if fault is not None:
        return fault
    parser = _Parser(_tokens(text))
    try:
        value = parser.whole()
    except _FaultError as error:
        return error.fault
    return Expression(value, tuple(parser.numbers))


def combined(operator: str, a: Exact | None, b: Exact | None) -> Exact | None:
    """`a operator b`, exact. None where it divides by zero, or an operand already did."""
    if a is None or b is None:
        return None
    if operator == "/":
        return Fraction(a) / b if b else None
    if operator == "*":
        return a * b
    return a + b if operator == "+" else a - b


class _FaultError(Exception):
    """Ends the reading of a text. It never leaves this module."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def _surface_fault(text: str) -> Fault | None:
    """What can be said without reading. The length comes first, so that nothing else sees unbounded text."""
    if len(text) > MAX_CHARS:
        return Fault.TOO_LONG
    if not text.strip(" "):
        return Fault.EMPTY
    if "=" in text:
        return Fault.EQUATION
    return None if _ALPHABET.issuperset(text) else Fault.FOREIGN


def _tokens(text: str) -> list[str]:
    """Numbers and marks in order, then the end. Blanks separate and are dropped."""
    for mark in _MARKS:
        text = text.replace(mark, f" {mark} ")
    return [*text.split(), _END]


class _Parser:
    """Recursive descent, one method per rule of the grammar above. Values are computed on the way."""

    def __init__(self, tokens: list[str]) -> None:
        self.numbers: list[int] = []
        self._tokens = tokens
        self._place = 0

    def whole(self) -> Exact | None:
        """The value of all tokens together."""
        value = self._sum(0)
        if self._next == ")":
            raise _FaultError(Fault.NOT_OPENED)
        if self._next != _END:
            raise _FaultError(Fault.NO_OPERATOR)
        return value

    @property
    def _next(self) -> str:
        return self._tokens[self._place]

    def _take(self) -> str:
        self._place += 1
        return self._tokens[self._place - 1]

    def _sum(self, depth: int) -> Exact | None:
        return self._chain(_SUMS, self._product, depth)

    def _product(self, depth: int) -> Exact | None:
        return self._chain(_PRODUCTS, self._operand, depth)

    def _chain(self, operators: frozenset[str], part: Callable[[int], Exact | None], depth: int) -> Exact | None:
        value = part(depth)
        while self._next in operators:
            value = combined(self._take(), value, part(depth))
        return value

    def _operand(self, depth: int) -> Exact | None:
        token = self._take()
        if token == "(":
            return self._group(depth + 1)
        if not token.isdigit():  # an operator, ")" or the end
            raise _FaultError(Fault.NO_NUMBER)
        if token.startswith("0") and token != "0":
            raise _FaultError(Fault.LEADING_ZERO)
        self.numbers.append(int(token))
        return self.numbers[-1]

    def _group(self, depth: int) -> Exact | None:
        if depth > MAX_DEPTH:
            raise _FaultError(Fault.TOO_DEEP)
        value = self._sum(depth)
        if self._next != ")":
            raise _FaultError(Fault.NOT_CLOSED if self._next == _END else Fault.NO_OPERATOR)
        self._take()
        return value
