"""The verifier, which finds what a completion answers and whether that is right.

The prompt ends with `<think>`, so a right completion is, from its first to its last character:

    thinking </think> [space] <answer> [space] answer [space] </answer> [space]

The thinking may be anything, or nothing, without one of the four tags (in any case). Space is any run of blank,
newline, tab or carriage return. Everything else is a format failure with a reason that can be counted. Partial credit,
repair, and searching the text for something that looks like the answer are left out on purpose, since a policy under
reinforcement learning finds every loophole.

A completion is untrusted text of any length. The cost is a fixed number of linear string scans, without a regular
expression and without `int()` of an unbounded string.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from tinyzero_astar.interfaces import Verdict

MAX_COMPLETION_CHARS = 20_000  # some ten times what the longest preset can generate
MAX_DIGITS = 20  # the product of two 6-digit numbers has 12

THINK, THINK_END, ANSWER, ANSWER_END = "<think>", "</think>", "<answer>", "</answer>"
_SPACE = " \n\t\r"  # not str.strip()'s default, which also takes non-ASCII and control characters


class Reason(StrEnum):
    """The phrases that verdicts carry. A task may add its own."""

    CORRECT = "correct"
    WRONG_ANSWER = "wrong answer"
    WRONG_INTEGER = "wrong integer"
    TOO_LONG = "too long to be judged"
    CUT_OFF = "cut off before the end"
    WRONG_CASE = "tag not in lower case"
    THINK_REOPENED = "thinking opened again"
    THINK_NOT_CLOSED = "thinking not closed"
    THINK_CLOSED_TWICE = "thinking closed more than once"
    NO_ANSWER = "no answer"
    SEVERAL_ANSWERS = "several answers"
    ANSWER_NOT_CLOSED = "answer not closed"
    ANSWER_CLOSED_TWICE = "answer closed more than once"
    ANSWER_IN_THINKING = "answer inside the thinking"
    OUT_OF_ORDER = "tags in the wrong order"
    TEXT_BEFORE_ANSWER = "text between thinking and answer"
    TEXT_AFTER_ANSWER = "text after the answer"
    EMPTY_ANSWER = "empty answer"
    NOT_AN_INTEGER = "answer is not an integer"
    TOO_MANY_DIGITS = "answer has too many digits"
    LEADING_ZERO = "answer has a leading zero"


_TAGS = (THINK, THINK_END, ANSWER, ANSWER_END)
_ONCE = (  # tags that must occur exactly once, with the reasons when missing and when repeated
    (THINK_END, Reason.THINK_NOT_CLOSED, Reason.THINK_CLOSED_TWICE),
    (ANSWER, Reason.NO_ANSWER, Reason.SEVERAL_ANSWERS),
    (ANSWER_END, Reason.ANSWER_NOT_CLOSED, Reason.ANSWER_CLOSED_TWICE),
)


def answer_text(completion: str, is_finished: bool) -> str | Reason:
    """What stands between the answer tags of a well-formed completion, without space around it, or why there is none.

    Args:
        completion: the text after the prompt, which already opened `<think>`, without the end-of-sequence token's text.
            Untrusted.
        is_finished: True where the model ended the text itself. A text that was cut earns nothing, however it looks.
            Paying it would teach the policy never to stop.
    """
    if len(completion) > MAX_COMPLETION_CHARS:  # first, so that nothing below sees unbounded text
        return Reason.TOO_LONG
    if not is_finished:
        return Reason.CUT_OFF
    fault = _tag_fault(completion)
    if fault is not None:
        return fault
    return completion.partition(ANSWER)[2].partition(ANSWER_END)[0].strip(_SPACE)


def verify_answer(completion: str, is_finished: bool, judge: Callable[[str], Verdict]) -> Verdict:
    """The verdict of `judge` on what a well-formed completion answers, or a format failure.

    Args:
        completion: see `answer_text`.
        is_finished: see `answer_text`.
        judge: is given what stands between the answer tags, which is not empty.
    """
    inside = answer_text(completion, is_finished)
    if isinstance(inside, Reason):
        return refused(inside)
    return judge(inside) if inside else refused(Reason.EMPTY_ANSWER)


def judge_integer(answer: int, text: str) -> Verdict:
    """Whether a text is the right integer in its one canonical spelling, such as 42 or -7."""
    value = _parse_integer(text)
    if isinstance(value, Reason):
        return refused(value)
    is_right = value == answer
    return Verdict(is_right, True, value, Reason.CORRECT if is_right else Reason.WRONG_INTEGER)


def refused(reason: str) -> Verdict:
    """The verdict on a completion or an answer in the wrong format."""
    return Verdict(accuracy=False, format=False, answer=None, reason=reason)


def _tag_fault(completion: str) -> Reason | None:
    """What is wrong with the tags and the text around them, if anything."""
    lower = completion.lower()
    if any(lower.count(tag) != completion.count(tag) for tag in _TAGS):
        return Reason.WRONG_CASE
    if THINK in completion:
        return Reason.THINK_REOPENED
    for tag, missing, repeated in _ONCE:
        count = completion.count(tag)
        if count != 1:
            return repeated if count else missing
    return _order_fault(completion)


def _order_fault(completion: str) -> Reason | None:
    """The same for a completion that has each tag of `_ONCE` once."""
    before, _, after = completion.partition(ANSWER)
    if ANSWER_END not in after:
        return Reason.OUT_OF_ORDER
    if THINK_END not in before:
        return Reason.ANSWER_IN_THINKING
    if before.partition(THINK_END)[2].strip(_SPACE):
        return Reason.TEXT_BEFORE_ANSWER
    if after.partition(ANSWER_END)[2].strip(_SPACE):
        return Reason.TEXT_AFTER_ANSWER
    return None


def _parse_integer(text: str) -> int | Reason:
    """The integer in its one canonical spelling, which is ASCII digits and at most a single leading '-'.

    `int()` alone would take "+5", "1_000", "007" and the digits of every script.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        return Reason.NOT_AN_INTEGER
    if len(digits) > MAX_DIGITS:  # before int(), whose cost grows with the square of the length
        return Reason.TOO_MANY_DIGITS
    if digits.startswith("0") and text != "0":  # "-0" too
        return Reason.LEADING_ZERO
    return int(text)
