"""The verifier of every task, fuzzed against a slow one written from the rules of docs/tasks.md and docs/own-task.md.

The slow ones share no code with the package: regular expressions, Python's own parser on text that a grammar has
admitted, exact fractions. A verdict must agree with them on accuracy and on format, whatever the completion.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.tasks import make_task
from tinyzero_astar.data.trl_reward import multiplication_reward
from tinyzero_astar.interfaces import Problem, Task

settings.register_profile("verifiers", max_examples=120, deadline=None, database=None, derandomize=True)
PROFILE = settings.get_profile("verifiers")
SPACE, TAGS, LIMIT = " \n\t\r", ("<think>", "</think>", "<answer>", "</answer>"), 20_000

# -------------------------------------------------------------------------- the rules, written slowly


def has_tag(text: str) -> bool:
    """Whether one of the tags stands anywhere, in any case."""
    lower = text.lower()
    return any(lower[i : i + len(tag)] == tag for i in range(len(lower)) for tag in TAGS)


def answer_in(completion: str, is_finished: bool) -> str | None:
    """What a completion answers; None where it has not the right format."""
    found = re.fullmatch(rf"(.*)</think>[{SPACE}]*<answer>(.*)</answer>[{SPACE}]*", completion, re.DOTALL)
    if found is None or not is_finished or len(completion) > LIMIT or has_tag(found[1]) or has_tag(found[2]):
        return None
    inside = re.fullmatch(rf"[{SPACE}]*(.*?)[{SPACE}]*", found[2], re.DOTALL)
    assert inside is not None
    return inside[1] or None


def integer_says(answer: int, text: str) -> tuple[bool, bool]:
    """(accuracy, format): decimal digits of ASCII, no leading zero, at most 20 of them, no other sign than -."""
    is_one = re.fullmatch(r"0|-?[1-9][0-9]{0,19}", text) is not None
    return is_one and text == f"{answer}", is_one


def number_says(answer: Fraction, text: str) -> tuple[bool, bool]:
    """The same for integers, decimals, and fractions in lowest terms, compared by value."""
    if found := re.fullmatch(r"(-?)(0|[1-9][0-9]{0,19})(?:\.([0-9]{1,20}))?", text):
        value = Fraction(found[2]) + (Fraction(int(found[3]), 10 ** len(found[3])) if found[3] else 0)
        return (value if found[1] == "" else -value) == answer, not (found[1] and value == 0)
    if found := re.fullmatch(r"(-?)([1-9][0-9]{0,19})/([1-9][0-9]{0,19})", text):
        above, below = int(found[2]), int(found[3])
        is_one = below >= 2 and gcd(above, below) == 1
        return is_one and Fraction(above, below) * (-1 if found[1] else 1) == answer, is_one
    return False, False


def choice_says(answer: Any, text: str) -> tuple[bool, bool]:
    """The same for one capital letter of those offered."""
    return text == answer.letter, len(text) == 1 and text in list(answer.offered)


def string_says(answer: str, text: str) -> tuple[bool, bool]:
    """The same for text."""
    return text == answer, True


def value_of(node: ast.expr) -> Fraction:
    """Of an expression that Python parsed; ZeroDivisionError where it divides by zero."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    a, b = value_of(node.left), value_of(node.right)
    signs: dict[type, Callable[[], Fraction]] = {
        ast.Add: lambda: a + b,
        ast.Sub: lambda: a - b,
        ast.Mult: lambda: a * b,
        ast.Div: lambda: a / b,
    }
    return signs[type(node.op)]()


def expression_says(goal: Any, text: str) -> tuple[bool, bool]:
    """The same for countdown: the grammar by rewriting, the value by Python's parser."""
    if len(text) > 200 or not re.fullmatch(r"[0-9+\-*/() ]*", text):
        return False, False
    numbers = re.findall(r"[0-9]+", text)
    form = re.sub(r"[0-9]+", "n", text).replace(" ", "")
    depth = max((form[:i].count("(") - form[:i].count(")") for i in range(len(form) + 1)), default=0)
    before = None
    while before != form:  # from the inside out, a sum in parentheses is as good as a number
        before, form = form, re.sub(r"\(n([-+*/]n)*\)", "n", form)
    is_one = re.fullmatch(r"n([-+*/]n)*", form) is not None and depth <= 16
    if not is_one or any(n != "0" and n.startswith("0") for n in numbers):
        return False, False
    try:
        value = value_of(ast.parse(text.strip(), mode="eval").body)
    except ZeroDivisionError:
        return False, True
    return sorted(map(int, numbers)) == sorted(goal.numbers) and value == goal.target, True


# ------------------------------------------------------------------------------------------ the tasks


class Case(NamedTuple):
    """A task, one of its problems, and what the rules say of an answer to it."""

    task: Task
    problem: Problem
    says: Callable[[Any, str], tuple[bool, bool]]
    right: list[str]  # spellings of the right answer


TABLES = {  # verifier: a line, its slow twin, right spellings
    "integer": ('{"prompt": "p", "answer": -407}', integer_says, ["-407"]),
    "number": ('{"prompt": "p", "answer": 2.50}', number_says, ["2.5", "2.50", "5/2", "2.500000"]),
    "string": ('{"prompt": "p", "answer": "Bern, \xc7a"}', string_says, ["Bern, \xc7a"]),
    "choice": ('{"prompt": "p", "answer": "B", "choices": ["x", "y", "z"]}', choice_says, ["B"]),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder, found = tmp_path_factory.mktemp("tables"), {}
    for name, says, question, right in (
        ("multiplication", integer_says, "37*84", ["3108"]),
        ("countdown", expression_says, "3 5 7 = 22", ["3*5+7", " 7 + 5 * 3", "(3*5)+7", "(((5))*3)+7"]),
    ):
        task = make_task(DataConfig(task=name, num_problems=1), 0)
        found[name] = Case(task, task.ask(question), says, right)
    for verifier, (line, says, right) in TABLES.items():
        path = Path(folder, f"{verifier}.jsonl")
        others = "".join(line.replace('"p"', f'"{n}"') + "\n" for n in range(40))
        path.write_text(line + "\n" + others, encoding="utf-8")
        task = make_task(DataConfig(task=str(path), verifier=verifier, num_problems=1), 0)
        found[verifier] = Case(task, task.ask("p"), says, right)
    return found


WRONG = ["A", "22", "7+5-3"]  # well-formed for one task or another
NAMES = ("multiplication", "countdown", *TABLES)

# ------------------------------------------------------------------------------------ what is written

PIECES = st.sampled_from(
    [
        *TAGS,
        *(tag.upper() for tag in TAGS),
        *("<thin\u212a>", "</th\u0130nk>", "< answer>", "<answer/>", "&lt;answer&gt;", "<answer>>", "\\<answer>"),
        *("</think><answer>", "</answer></think>", "<answer></answer>", "<|im_end|>", "\0", "\x1b[2J", "\u202e"),
        *(" ", "\n", "\t", "\r", "\x0b", "\xa0", "\u2003", "\u200b", "\ufeff", "\u2028", "\ud800"),
        *("3108", "-407", "2.5", "5/2", "10/4", "5/-2", "-5/-2", "2,5", "2.5e0", "+3108", "03108", "3_108", "-0"),
        *("\uff13\uff11\uff10\uff18", "\u0663\u0661\u0660\u0668", "\xb3", "\xbd"),  # digits to Python, 3108 to a reader
        *("0x14", "1e9", "nan", "inf", "9" * 21, "9" * 200, "True", "None", "A", "B", "b", "D", "AB"),
        *("3*5+7", "3*5+7=22", "3**5", "7//1", "3(5)", "-3+5*5", "8/(3-8/3)", "22", "5/0", "(" * 17 + "3" + ")" * 17),
        *("Bern, \xc7a", "Bern, C\u0327a", "bern, \xe7a", "__import__('os')", "{}", "%s", "\\n"),
    ]
)
ENDS = ["", " ", "\n \t", "\xa0", "\u2003", "x", "</answer>"]
ARITHMETIC = st.text("0123456789+-*/() ", max_size=14)
ANSWERS = st.one_of(
    PIECES, st.sampled_from("ABCD"), ARITHMETIC, st.text(max_size=6), st.integers().map(str), st.fractions().map(str)
)
WRAPPED = st.tuples(st.text(max_size=8) | PIECES, ANSWERS, st.sampled_from(ENDS))


def completions(right: list[str]) -> st.SearchStrategy[str]:
    """Completions that are nearly right, in ways that a policy may find."""
    answers = st.sampled_from(right) | ANSWERS
    good = st.tuples(st.text(max_size=8), st.sampled_from(["", " ", "\n"]), answers, st.sampled_from(ENDS[:5]))
    formed = good.map(lambda p: f"{p[0]}</think>{p[1]}<answer>{p[3]}{p[2]}{p[1]}</answer>{p[1]}")
    loose = WRAPPED.map(lambda p: f"{p[0]}</think><answer>{p[1]}</answer>{p[2]}")
    edited = st.tuples(formed, st.integers(0, 60), st.integers(0, 3), PIECES | st.just("")).map(
        lambda p: p[0][: p[1]] + p[3] + p[0][p[1] + p[2] :]
    )
    return st.one_of(formed, loose, edited, st.lists(PIECES, max_size=8).map("".join), st.text(max_size=40))


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_is_what_the_rules_say(name: str, cases: dict[str, Case]) -> None:
    task, problem, says, right = cases[name]
    seen = set()

    @PROFILE
    @given(completions([*right, *WRONG]), st.sampled_from([True, True, True, False]))
    def agrees(completion: str, is_finished: bool) -> None:
        verdict = task.verify(problem, completion, is_finished)
        answer = answer_in(completion, is_finished)
        wanted = (False, False) if answer is None else says(problem.answer, answer)
        assert (verdict.accuracy, verdict.format) == wanted
        assert verdict.score is None  # right or wrong, nothing in between
        seen.add(wanted)

    agrees()
    missing = {(True, True), (False, True), (False, False)} - seen
    assert missing == set(), "the fuzzer never reached these verdicts"
    for spelling in right:
        verdict = task.verify(problem, f"so</think> <answer>{spelling}</answer>", True)
        assert verdict.accuracy and verdict.format
        assert not task.verify(problem, f"so</think> <answer>{spelling}</answer>", False).format


@PROFILE
@given(completions(["3108"]))
def test_the_reward_function_for_trl_says_the_same(completion: str) -> None:
    answer = answer_in(completion, True)
    accuracy, form = (False, False) if answer is None else integer_says(3108, answer)
    assert multiplication_reward([completion], [3108]) == [1.0 if accuracy else 0.1 if form else 0.0]


# ------------------------------------------------------------------------------- cost, without timing


class Untouched(str):
    """A text of any length whose length alone may be looked at."""

    def _touched(self, *args: Any) -> Any:
        raise AssertionError("the text was looked at")

    __getattribute__ = __getitem__ = __iter__ = __contains__ = __eq__ = __hash__ = _touched
    __str__ = __add__ = __mod__ = __lt__ = __gt__ = __format__ = __repr__ = _touched


@pytest.mark.parametrize("name", NAMES)
def test_ten_megabytes_cost_what_their_length_costs(name: str, cases: dict[str, Case]) -> None:
    task, problem, *_ = cases[name]
    assert not task.verify(problem, Untouched("x" * 10**7), True).format
    with pytest.raises(AssertionError, match="looked at"):  # the guard itself works
        task.verify(problem, Untouched("x"), True)


def num_calls(case: Case, completion: str) -> int:
    """Function calls, Python's and C's, during one verdict; each is a scan of the text at most."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        case.task.verify(case.problem, completion, True)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("piece", ["<", "<answer>", "</think>", "9", "(", " ", "1/", "-"])
def test_calls_do_not_grow_with_the_length(name: str, piece: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    for around in ("{}</think><answer>1</answer>", "</think><answer>{}</answer>"):
        # from 300 on: a countdown expression is read up to 200 characters
        calls = {num_calls(case, around.format(piece * count)) for count in (300, 1000, 2400)}
        assert max(calls) < 150 and max(calls) - min(calls) < 10  # caches of Python's own
