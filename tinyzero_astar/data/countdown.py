"""Countdown, TinyZero's main task, which is to reach a target with given numbers and + - * /.

An answer is exactly one expression (data/expression.py has its grammar) that uses every given number exactly once, no
other number, and has exactly the target as its value. `3*5+7=22` is an equation and earns nothing, not even the format
reward. Steps of an answer may be negative or fractions.

The key of a question is its numbers alone, whatever their order and whatever the target. A model that has seen a
solution for some numbers has seen most of what can be made of them, and a target one further away is often reached by
the same expression with one sign changed. So no numbers of a held-out question stand in a training question.

A question is drawn with a solution. The count of numbers is drawn uniformly, the operators uniformly and independently.
Then numbers are drawn uniformly and joined two by two at random, again and again until the operators fit. They fit if
every step is a positive integer and the last at most the largest target. Drawing the operators first keeps products and
quotients in, since only one pair in twelve of the numbers below 100 has a whole quotient.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from tinyzero_astar.config import DataConfig
from tinyzero_astar.config_checks import check_section
from tinyzero_astar.data.answers import Reason, refused
from tinyzero_astar.data.expression import Exact, Fault, read_expression
from tinyzero_astar.data.questions import Question, QuestionTask
from tinyzero_astar.interfaces import Problem, Verdict

_TRIES = 100  # numbers drawn for the same operators before others are taken
_RAREST, _FIRST_DRAWS = 1000, 20_000  # most draws for each question, from that many on, as rarer ones take minutes
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
_RANK = {"+": 0, "-": 0, "*": 1, "/": 1}
_NUMBER_RANK = 2
_ASKED = {
    "conversation": "Make {target} out of the numbers {numbers}. Use every one of them exactly once, with +, -, *, /"
    " and parentheses.",
    "compact": "{numbers}={target}?",
}
_WRITTEN = re.compile(r"\s*([1-9]\d{0,2}(?:\s+[1-9]\d{0,2}){1,5})\s*=\s*([1-9]\d{0,2})\s*", re.ASCII)


def key_of(numbers: Sequence[int]) -> str:
    """The key of all questions with these numbers, in any order and with any target."""
    return f"countdown {sorted(numbers)}"


class Goal(NamedTuple):
    """What an answer must do."""

    numbers: tuple[int, ...]  # each to be used exactly once, and one that stands twice, twice
    target: int


class Miss(StrEnum):
    """Why a well-formed expression is wrong."""

    NOT_GIVEN = "number that was not given"
    TOO_OFTEN = "number used too often"
    LEFT_OUT = "number left out"
    BY_ZERO = "division by zero"
    WRONG_VALUE = "wrong value"


class Countdown(QuestionTask):
    """Targets to be made of 2 to 6 numbers.

    Raises:
        ValueError: a setting is out of range, or fewer than `num_problems` questions exist.
    """

    preface = (
        "The user names a target and some numbers, and the assistant finds an expression that makes the target of the"
        " numbers. The assistant first writes down its reasoning, step by step, between <think> and </think>, then"
        " states nothing but the expression between <answer> and </answer>, as in <answer>(1+2)*3</answer>, and"
        " stops.\n"
    )
    more = " or raise max_number"

    def __init__(self, data: DataConfig, seed: int) -> None:
        check_section("data", data)  # a target that cannot be reached would be looked for without end
        if data.min_numbers > data.max_numbers:
            raise ValueError(f"min_numbers {data.min_numbers} must not exceed max_numbers {data.max_numbers}")
        super().__init__(data, seed)

    def questions(self, rng: random.Random) -> Iterator[Question]:
        """Solvable questions without end, as the module's docstring says.

        Raises:
            ValueError: hardly any numbers have a solution.
        """
        data, num_drawn, num_found = self.data, 0, 0
        while num_drawn < _FIRST_DRAWS or num_found * _RAREST >= num_drawn:
            count = rng.randint(data.min_numbers, data.max_numbers)
            operators = rng.choices(tuple(_OPERATORS), k=count - 1)
            for _ in range(_TRIES):
                num_drawn += 1
                numbers = tuple(rng.choices(range(1, data.max_number + 1), k=count))
                solution = joined_at_random(rng, numbers, operators)
                if solution is not None and solution.value <= data.max_target:
                    num_found += 1
                    yield self._question(Goal(numbers, solution.value), solution)
                    break
        raise ValueError(
            f"max_target {data.max_target} is hardly ever reached by {data.min_numbers} to {data.max_numbers} numbers"
            f" up to {data.max_number} ({num_found} of {num_drawn:,} draws): raise it, or lower max_number or"
            " max_numbers"
        )

    def judge(self, answer: Any, text: str) -> Verdict:
        """See `judge_expression`."""
        return judge_expression(text, answer)

    def held_out_name(self) -> str:
        """Each choice of sizes has an order of its own."""
        data = self.data
        return f"held out countdown {data.min_numbers} {data.max_numbers} {data.max_number} {data.max_target}"

    def ask(self, text: str) -> Problem:
        """Any target and any 2 to 6 numbers. Whether they reach it is not known, so it has no `example`."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError(
                f'problem {text[:80]!r} is not 2 to 6 numbers and a target, each of 1 to 999; write it as "3 5 7 = 22"'
            )
        asked = self._question(Goal(tuple(map(int, match[1].split())), int(match[2])))
        return Problem(self.id_of(asked), self._prompt(asked), asked.text, asked.answer, asked.key)

    def _question(self, goal: Goal, solution: Part | None = None) -> Question:
        numbers = " ".join(map(str, goal.numbers))
        return Question(
            asked=_ASKED[self.data.template].format(numbers=numbers, target=goal.target),
            answer=goal,
            text=f"{numbers} = {goal.target}",
            key=key_of(goal.numbers),
            worked="\n".join(solution.steps) if solution else "",
            shown=solution.text if solution else "",
        )


def judge_expression(text: str, goal: Goal) -> Verdict:
    """Judge what stands in the answer tags. It is untrusted and of any length.

    The format is right where the text is an expression, whatever its value. The verdict's answer is then the expression
    without blanks.
    """
    found = read_expression(text)
    if isinstance(found, Fault):
        return refused(found)
    miss = _numbers_miss(found.numbers, goal.numbers) or _value_miss(found.value, goal.target)
    return Verdict(accuracy=miss is None, format=True, answer=text.replace(" ", ""), reason=miss or Reason.CORRECT)


def _numbers_miss(used: Sequence[int], given: Sequence[int]) -> Miss | None:
    left, excess = list(given), []
    for number in used:
        if number in left:
            left.remove(number)
        else:
            excess.append(number)
    if excess:
        return Miss.TOO_OFTEN if set(excess) <= set(given) else Miss.NOT_GIVEN
    return Miss.LEFT_OUT if left else None


def _value_miss(value: Exact | None, target: int) -> Miss | None:
    if value is None:
        return Miss.BY_ZERO
    return None if value == target else Miss.WRONG_VALUE


class Part(NamedTuple):
    """A piece of a solution."""

    value: int
    text: str
    rank: int  # of the operator applied last, see _RANK, or _NUMBER_RANK for a number
    steps: tuple[str, ...]  # how it came about, "3*5=15" and so on


def joined_at_random(rng: random.Random, numbers: Sequence[int], operators: Sequence[str]) -> Part | None:
    """The numbers in a random expression with these operators. None where a step is no positive integer."""
    parts = [Part(number, str(number), _NUMBER_RANK, ()) for number in numbers]
    for symbol in operators:
        a, b = (parts.pop(int(rng.random() * len(parts))) for _ in range(2))
        part = _joined(symbol, a, b)
        if part is None:
            return None
        parts.append(part)
    return parts[0]


def _joined(symbol: str, a: Part, b: Part) -> Part | None:
    """a symbol b, the larger first where the order counts. None where that is no positive integer."""
    is_ordered = symbol in "-/"
    if is_ordered and a.value < b.value:
        a, b = b, a
    if (symbol == "-" and a.value == b.value) or (symbol == "/" and a.value % b.value):
        return None
    value, rank = _OPERATORS[symbol](a.value, b.value), _RANK[symbol]
    left = a.text if a.rank >= rank else f"({a.text})"
    right = b.text if b.rank >= rank + is_ordered else f"({b.text})"
    step = f"{a.value}{symbol}{b.value}={value}"
    return Part(value, f"{left}{symbol}{right}", rank, (*a.steps, *b.steps, step))
