"""Verifiers by name, with how the answers of a table are read and when a completion's answer equals one of them.

- `integer` is ASCII digits without leading zeros, at most one "-" before them, such as 42 or -7.
- `number` is an integer, or one with decimals (2.50, -0.125), or a fraction in lowest terms with a denominator of 2 or
  more (5/2, -1/3). Values are compared exactly, so 2.5, 2.50 and 5/2 are equal. There is no exponent, no "+", no bare
  point (.5, 5.), no thousands separator, no unit and no "-0". A fraction must be in lowest terms since "What is 84/2?"
  would otherwise be answered by its own question.
- `string` is any text. Texts are equal to the character, so case, inner space and the form of Unicode count.
- `choice` is one capital letter of those offered. The table's column `choices` lists the options, the first of which is
  A.

The space around an answer never counts (see `answers.answer_text`). The texts are untrusted, and every number is
bounded in length before it is read.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from math import gcd
from typing import Any

from tinyzero_astar.data.answers import (
    ANSWER,
    ANSWER_END,
    THINK_END,
    Reason,
    judge_integer,
    refused,
    verify_answer,
)
from tinyzero_astar.interfaces import Verdict
from tinyzero_astar.terminal import shortened

MAX_DIGITS = 20  # of a numerator, a denominator, what stands before or behind a decimal point


class Fault(StrEnum):
    """What verdicts of this module say besides `Reason`."""

    NOT_A_NUMBER = "answer is not a number"
    TOO_MANY_DIGITS = "answer has too many digits"
    LEADING_ZERO = "answer has a leading zero"
    MINUS_ZERO = "answer is a zero with a sign"
    ZERO_DENOMINATOR = "answer divides by zero"
    NOT_LOWEST = "answer is a fraction not in lowest terms"
    NOT_OFFERED = "answer is none of the letters offered"


@dataclass(frozen=True)
class Choice:
    """The right answer of a question with options."""

    letter: str
    offered: str  # all letters, in order

    def __str__(self) -> str:
        return self.letter


@dataclass(frozen=True)
class Verifier:
    """One kind of answer."""

    read: Callable[[str, Mapping[str, object]], Any]
    """From the right answer as written, and its line of the table, to what `judge` is given, or a ValueError."""
    judge: Callable[[Any, str], Verdict]
    """The verdict on a text against the right answer, see `questions.QuestionTask.judge`."""


def judge_number(answer: Fraction, text: str) -> Verdict:
    """Whether a text is a number of the right value. The module's docstring says how one is spelled."""
    value = _parse_number(text)
    if isinstance(value, Fault):
        return refused(value)
    return _judged(value == answer, str(value))


def judge_string(answer: str, text: str) -> Verdict:
    """Whether a text equals the right one."""
    return _judged(text == answer, text)


def judge_choice(answer: Choice, text: str) -> Verdict:
    """Whether a text is the right letter."""
    if len(text) != 1 or text not in answer.offered:
        return refused(Fault.NOT_OFFERED)
    return _judged(text == answer.letter, text)


def read_answer(verifier: str, line: Mapping[str, object]) -> Any:
    """The right answer of a line of a table, from its column `answer`.

    Args:
        verifier: a name in `VERIFIERS`.
        line: the columns by name. JSON's decimals are given as `Decimal`, as they were written.

    Raises:
        ValueError: it has none, or one that its own verifier would not accept.
    """
    if "answer" not in line:
        raise ValueError("has no answer")
    written = line["answer"]
    if isinstance(written, bool) or not isinstance(written, (str, int, Decimal)):
        raise ValueError(f"answer {shortened(written)} is neither a string nor a number")
    if verifier == "string" and not isinstance(written, str):
        raise ValueError(f'answer {written} is a number: write "{written}" for verifier string, or choose number')
    text = str(written)
    judge = VERIFIERS[verifier].judge
    answer = VERIFIERS[verifier].read(text, line)
    verdict = verify_answer(f"{THINK_END}{ANSWER}{text}{ANSWER_END}", True, lambda inside: judge(answer, inside))
    if not verdict.accuracy:  # space around it, a tag in it, nothing in it
        raise ValueError(f"answer {shortened(written)} could never be right by verifier {verifier} ({verdict.reason})")
    return answer


def _judged(is_right: bool, answer: str) -> Verdict:
    return Verdict(is_right, True, answer, Reason.CORRECT if is_right else Reason.WRONG_ANSWER)


def _read_integer(text: str, line: Mapping[str, object]) -> int:
    verdict = judge_integer(0, text)
    if not verdict.format:
        raise ValueError(f"answer {shortened(text)} is not accepted by verifier integer ({verdict.reason})")
    answer: int = verdict.answer
    return answer


def _read_number(text: str, line: Mapping[str, object]) -> Fraction:
    value = _parse_number(text)
    if isinstance(value, Fault):
        raise ValueError(f"answer {shortened(text)} is not accepted by verifier number ({value})")
    return value


def _read_string(text: str, line: Mapping[str, object]) -> str:
    return text


def _read_choice(text: str, line: Mapping[str, object]) -> Choice:
    options = line.get("choices")
    if not isinstance(options, list) or not 2 <= len(options) <= len(string.ascii_uppercase):
        raise ValueError('needs choices for verifier choice, the list of 2 to 26 options, as in ["red", "green"]')
    offered = string.ascii_uppercase[: len(options)]
    if len(text) != 1 or text not in offered:
        raise ValueError(f"answer {shortened(text)} is none of the letters of its {len(options)} choices, {offered}")
    return Choice(text, offered)


def _parse_number(text: str) -> Fraction | Fault:
    digits = text.removeprefix("-")
    value = _fraction(*digits.split("/", 1)) if "/" in digits else _decimal(*digits.split(".", 1))
    if isinstance(value, Fault) or not text.startswith("-"):
        return value
    return -value if value else Fault.MINUS_ZERO


def _fraction(above: str, below: str) -> Fraction | Fault:
    """The value of above/below, without a sign."""
    fault = _digits_fault(above) or _digits_fault(below) or _zero_fault(above) or _zero_fault(below)
    if fault:
        return fault
    numerator, denominator = int(above), int(below)
    if denominator == 0:
        return Fault.ZERO_DENOMINATOR
    if denominator == 1 or gcd(numerator, denominator) != 1:
        return Fault.NOT_LOWEST
    return Fraction(numerator, denominator)


def _decimal(whole: str, decimals: str = "0") -> Fraction | Fault:
    """The value of whole.decimals, without a sign."""
    fault = _digits_fault(whole) or _digits_fault(decimals) or _zero_fault(whole)
    return fault or Fraction(int(whole + decimals), 10 ** len(decimals))


def _digits_fault(digits: str) -> Fault | None:
    if not (digits.isascii() and digits.isdigit()):
        return Fault.NOT_A_NUMBER
    return Fault.TOO_MANY_DIGITS if len(digits) > MAX_DIGITS else None


def _zero_fault(digits: str) -> Fault | None:
    return Fault.LEADING_ZERO if digits.startswith("0") and digits != "0" else None


VERIFIERS: dict[str, Verifier] = {
    "integer": Verifier(_read_integer, judge_integer),
    "number": Verifier(_read_number, judge_number),
    "string": Verifier(_read_string, judge_string),
    "choice": Verifier(_read_choice, judge_choice),
}
