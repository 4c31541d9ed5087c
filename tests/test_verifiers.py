"""The verifiers of tables against ordinary and hostile answers, and against right answers that nobody could give."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tinyzero_astar.data import verifiers as verifiers_module
from tinyzero_astar.data.answers import Reason
from tinyzero_astar.data.verifiers import (
    VERIFIERS,
    Choice,
    Fault,
    judge_choice,
    judge_number,
    judge_string,
    read_answer,
)

R, F = Reason, Fault
BAD = {F.NOT_A_NUMBER, F.TOO_MANY_DIGITS, F.LEADING_ZERO, F.MINUS_ZERO, F.ZERO_DENOMINATOR, F.NOT_LOWEST}

# text, reason. The right number is 5/2
NUMBERS: list[tuple[str, str]] = [
    ("2.5", R.CORRECT),
    ("2.50", R.CORRECT),
    ("2.5" + "0" * 19, R.CORRECT),
    ("5/2", R.CORRECT),
    ("-2.5", R.WRONG_ANSWER),
    ("-5/2", R.WRONG_ANSWER),
    ("2", R.WRONG_ANSWER),
    ("2.5" + "0" * 18 + "1", R.WRONG_ANSWER),  # equal to 2.5 as a float
    ("2/5", R.WRONG_ANSWER),
    ("0", R.WRONG_ANSWER),
    ("0.0", R.WRONG_ANSWER),
    ("0/1", F.NOT_LOWEST),
    ("10/4", F.NOT_LOWEST),
    ("5/1", F.NOT_LOWEST),
    ("0/5", F.NOT_LOWEST),
    ("5/0", F.ZERO_DENOMINATOR),
    ("0/0", F.ZERO_DENOMINATOR),
    ("-5/0", F.ZERO_DENOMINATOR),
    ("-0", F.MINUS_ZERO),
    ("-0.00", F.MINUS_ZERO),
    ("02.5", F.LEADING_ZERO),
    ("00", F.LEADING_ZERO),
    ("05/2", F.LEADING_ZERO),
    ("5/02", F.LEADING_ZERO),
    ("5/00", F.LEADING_ZERO),
    ("-02.5", F.LEADING_ZERO),
    ("2.5" + "0" * 20, F.TOO_MANY_DIGITS),
    ("2" * 21, F.TOO_MANY_DIGITS),
    ("5/" + "2" * 21, F.TOO_MANY_DIGITS),
    ("5" * 19_000 + "/2", F.TOO_MANY_DIGITS),
    ("0" * 19_000, F.TOO_MANY_DIGITS),
    *(
        (text, F.NOT_A_NUMBER)
        for text in (
            ".5", "2.", ".", "-", "/", "-/", "5/", "/2", "--2.5", "2.5-", "- 2.5", "+2.5", "-+2.5", "5/-2", "-5/-2",
            "2,5", "2.500,0", "2 1/2", "5 / 2", "5/2/1", "5//2", "2.5.0", "2.5/1", "5/2.0", "2.5e0", "25e-1", "2.5E0",
            "0x2.8p0", "0b10", "2_5", "2.5_0", "nan", "inf", "-inf", "1e999999999", "1e-999999999", "$2.5", "2.5%",
            "2.5 m", "=2.5", "2.5=5/2", "two and a half", "\\frac{5}{2}", "\\boxed{2.5}", "(2.5)", "5*0.5", "5**1/2",
            "Fraction(5,2)", "__import__('os')", "9**9**9**9", "2.5\n3.5", "2.5 3.5", "\u0662.\u0665", "\uff12.\uff15",
            "\u00bd", "2\u00bd", "\u2212" + "2.5", "5\u20442", "5\u22152", "2\u066b5", "2.5\u200b", "\ufeff2.5",
            "\u202e5.2", "2.5\x00", "2\x00.5", "\xa02.5", "2.5\x1c", "None", "True", "",
        )
    ),
]  # fmt: skip
# text, reason. The right letter is B of A to D
LETTERS: list[tuple[str, str]] = [
    ("B", R.CORRECT),
    ("A", R.WRONG_ANSWER),
    ("D", R.WRONG_ANSWER),
    *(
        (text, F.NOT_OFFERED)
        for text in (
            "E", "Z", "b", "AB", "ABCD", "BB", "B.", "B)", "(B)", "B or C", "A B C D", "B\nC", "Answer: B", "", "2",
            "green", "\u0392", "\u0412", "\uff22", "\u24b7", "B\u200b", "\ufeffB", "B\x00", "[B]", "*", ".",
            "B" * 19_000,
        )
    ),
]  # fmt: skip
# text, reason. The right string is "São Paulo"
STRINGS: list[tuple[str, str]] = [
    ("S\u00e3o Paulo", R.CORRECT),
    *(
        (text, R.WRONG_ANSWER)
        for text in (
            "Sao Paulo", "Sa\u0303o Paulo", "s\u00e3o paulo", "S\u00e3o  Paulo", "S\u00e3o Paulo.", "S\u00e3o\xa0Paulo",
            '"S\u00e3o Paulo"', "S\u00e3o Paulo or Rio", "S\u00e3o Paulo\u200b", "\ufeffS\u00e3o Paulo", ".*", "",
            "S\u00e3o", "x" * 19_000, "\ud800", "\x00",
        )
    ),
]  # fmt: skip


def _check(verdict: Any, reason: str) -> None:
    assert verdict.reason == reason
    assert verdict.accuracy == (reason == R.CORRECT)
    assert verdict.format == (reason in (R.CORRECT, R.WRONG_ANSWER))
    assert (verdict.answer is None) == (not verdict.format)
    assert verdict.score is None


@pytest.mark.parametrize(("text", "reason"), NUMBERS)
def test_number_judges(text: str, reason: str) -> None:
    _check(judge_number(Fraction(5, 2), text), reason)


@pytest.mark.parametrize(("text", "reason"), LETTERS)
def test_choice_judges(text: str, reason: str) -> None:
    _check(judge_choice(Choice("B", "ABCD"), text), reason)


@pytest.mark.parametrize(("text", "reason"), STRINGS)
def test_string_judges(text: str, reason: str) -> None:
    _check(judge_string("S\u00e3o Paulo", text), reason)


def test_the_tables_cover_every_reason() -> None:
    covered = {reason for _, reason in [*NUMBERS, *LETTERS, *STRINGS]}
    assert covered == {*BAD, F.NOT_OFFERED, R.CORRECT, R.WRONG_ANSWER}
    assert covered - {R.CORRECT, R.WRONG_ANSWER} == set(Fault)


# ---- a grammar written down once more, as a regular expression

_SPELLED = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+|/(0|[1-9][0-9]*))?")


def _by_the_book(text: str) -> Fraction | None:
    """What a short text is worth, from the rules as documented."""
    if not _SPELLED.fullmatch(text):
        return None
    above, slash, below = text.removeprefix("-").partition("/")
    if slash and (int(below) < 2 or Fraction(int(above), int(below)).denominator != int(below)):
        return None
    value = Fraction(text)  # of Python's own, which takes far more than the rules allow
    return None if value == 0 and text.startswith("-") else value


def test_every_short_text_is_read_by_the_rules() -> None:
    texts = ["".join(t) for n in range(6) for t in itertools.product("0124-./", repeat=n)]
    found = {text: verifiers_module._parse_number(text) for text in texts}
    assert {t: v for t, v in found.items() if (None if isinstance(v, Fault) else v) != _by_the_book(t)} == {}
    assert sum(isinstance(v, Fraction) for v in found.values()) > 1000


def test_long_digits_never_reach_int(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def guarded_int(text: str) -> int:
        seen.append(text)
        return int(text)

    monkeypatch.setattr(verifiers_module, "int", guarded_int, raising=False)
    for text, _ in NUMBERS:
        judge_number(Fraction(5, 2), text)
    assert "25" in seen
    assert max(len(text) for text in seen) == 21  # a digit and 20 decimals


@pytest.mark.parametrize("piece", ["1", "0", "/", ".", "-", "1/", "1.", "A", "\u0661"])
def test_number_of_calls_does_not_grow_with_the_length(piece: str) -> None:
    def num_calls(text: str) -> int:
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            judge_number(Fraction(5, 2), text)
            judge_choice(Choice("B", "ABCD"), text)
        finally:
            sys.setprofile(before)
        return calls

    assert len({num_calls(piece * repeats) for repeats in (30, 300, 3000)}) == 1


# ---- right answers, as a table has them

GOOD: list[tuple[str, dict[str, object], Any]] = [
    ("integer", {"answer": 42}, 42),
    ("integer", {"answer": "-7"}, -7),
    ("number", {"answer": 3}, Fraction(3)),
    ("number", {"answer": Decimal("0.1")}, Fraction(1, 10)),
    ("number", {"answer": Decimal("2.50")}, Fraction(5, 2)),
    ("number", {"answer": "1/3"}, Fraction(1, 3)),
    ("string", {"answer": "S\u00e3o Paulo"}, "S\u00e3o Paulo"),
    ("string", {"answer": "a < b <b>"}, "a < b <b>"),
    ("choice", {"answer": "B", "choices": ["red", "green"]}, Choice("B", "AB")),
]


@pytest.mark.parametrize(("name", "line", "answer"), GOOD)
def test_a_right_answer_is_read_and_accepted(name: str, line: Mapping[str, object], answer: Any) -> None:
    found = read_answer(name, line)
    assert found == answer
    assert type(found) is type(answer)
    assert VERIFIERS[name].judge(found, str(line["answer"])).accuracy
    assert VERIFIERS[name].judge(found, str(found)).accuracy  # as worked examples show it


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("integer", {}, "has no answer"),
        ("integer", {"answer": None}, "answer None is neither a string nor a number"),
        ("integer", {"answer": True}, "answer True is neither"),
        ("integer", {"answer": [42]}, r"answer \[42\] is neither"),
        ("integer", {"answer": {"value": 42}}, "is neither a string nor a number"),
        ("integer", {"answer": Decimal("42.0")}, "'42.0' is not accepted by verifier integer .answer is not an int"),
        ("integer", {"answer": "042"}, "leading zero"),
        ("integer", {"answer": 10**20}, "too many digits"),
        ("integer", {"answer": ""}, "not an integer"),
        ("integer", {"answer": " 42"}, "not an integer"),
        ("number", {"answer": "10/4"}, "'10/4' is not accepted by verifier number .answer is a fraction not in low"),
        ("number", {"answer": Decimal("1E+3")}, "not a number"),
        ("number", {"answer": Decimal("-0.0")}, "a zero with a sign"),
        ("number", {"answer": "x" * 1000}, r"answer 'x+\.\.\. is not accepted"),
        ("string", {"answer": 7}, 'answer 7 is a number: write "7" for verifier string, or choose number'),
        ("string", {"answer": ""}, "could never be right by verifier string .empty answer"),
        ("string", {"answer": " a"}, "could never be right by verifier string .wrong answer"),
        ("string", {"answer": "a\n"}, "could never be right"),
        ("string", {"answer": "a</answer>"}, "could never be right by verifier string .answer closed more than once"),
        ("string", {"answer": "<THINK>"}, "could never be right by verifier string .tag not in lower case"),
        ("string", {"answer": "x" * 20_001}, "too long"),
        ("choice", {"answer": "B"}, "needs choices for verifier choice, the list of 2 to 26 options"),
        ("choice", {"answer": "B", "choices": "AB"}, "needs choices"),
        ("choice", {"answer": "A", "choices": ["x"]}, "needs choices"),
        ("choice", {"answer": "A", "choices": ["x"] * 27}, "needs choices"),
        ("choice", {"answer": "C", "choices": ["x", "y"]}, "'C' is none of the letters of its 2 choices, AB"),
        ("choice", {"answer": 1, "choices": ["x", "y"]}, "'1' is none of the letters"),
        ("choice", {"answer": "AB", "choices": ["x", "y"]}, "'AB' is none of the letters"),
        ("choice", {"answer": "", "choices": ["x", "y"]}, "'' is none of the letters"),
    ],
)
def test_a_right_answer_that_nobody_could_give_is_refused(name: str, line: Mapping[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        read_answer(name, line)
    assert len(str(refusal.value)) < 200
