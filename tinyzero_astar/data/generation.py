"""Multiplication problems, which are products of two positive integers.

The key of a question is the *unordered* pair of its factors. So 23*45 and 45*23 are always on the same side of the
split.

A factor's number of digits is drawn uniformly, then the factor uniformly among the numbers of that many digits. Zero is
left out, since it teaches nothing. Pairs are drawn one after another in this way, without replacement. The two factors
may have different numbers of digits, because a base that never succeeds at 2x2 digits may learn from 2x1.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data import questions
from tinyzero_astar.data.answers import judge_integer
from tinyzero_astar.data.questions import Question, QuestionTask
from tinyzero_astar.interfaces import Problem, Verdict

MAX_DIGITS = 6  # of a factor
_ID_BASE = 1_000_000  # above every factor
ASKED = {  # how a product is put to the model, by template
    "conversation": "What is {a} * {b}?",
    "compact": "{a}*{b}=?",
}
_WRITTEN = re.compile(r"\s*([1-9][0-9]{0,5})\s*[*x×]\s*([1-9][0-9]{0,5})\s*", re.ASCII)
_PREFACE = (
    "The user asks a question about arithmetic and the assistant works it out. The assistant"
    " first writes down its reasoning, step by step, between <think> and </think>, then states"
    " nothing but the final integer between <answer> and </answer>, as in <answer>42</answer>,"
    " and stops.\n"
)


def key_of(a: int, b: int) -> str:
    """The key of the unordered pair {a, b}."""
    low, high = sorted((a, b))
    return f"multiply {low} {high}"


def is_held_out(a: int, b: int) -> bool:
    """Whether the unordered pair {a, b} belongs to the held-out side."""
    return questions.is_held_out(key_of(a, b))


def problem_id(a: int, b: int) -> int:
    """The id of the problem a*b, which is a * 10**6 + b, for factors below 10**6."""
    return a * _ID_BASE + b


def operands(id: int) -> tuple[int, int]:
    """The factors (a, b) of the problem with this id."""
    return divmod(id, _ID_BASE)


class Multiplication(QuestionTask):
    """Products of two positive integers of 1 to 6 digits.

    Raises:
        ValueError: a number of digits is out of range, or fewer than `num_problems` ordered pairs exist.
    """

    preface = _PREFACE
    more = " or raise max_digits"

    def __init__(self, data: DataConfig, seed: int) -> None:
        self.digits = (
            _digits("", data.min_digits, data.max_digits),
            _digits(
                "second_",
                data.min_digits if data.second_min_digits is None else data.second_min_digits,
                data.max_digits if data.second_max_digits is None else data.second_max_digits,
            ),
        )
        super().__init__(data, seed)

    def questions(self, rng: random.Random) -> Iterator[Question]:
        """All products, each once, where no factor has more than 2 digits. Beyond that an endless draw."""
        return (self._question(a, b) for a, b in _pairs(rng, *self.digits))

    def judge(self, answer: Any, text: str) -> Verdict:
        """Right is the one canonical spelling of the product."""
        return judge_integer(answer, text)

    def held_out_form(self, question: Question) -> Question:
        """Which factor comes first is decided by a hash, where the numbers of digits allow both."""
        turned = _hashed_order(*_factors(question))
        is_allowed = all(low <= len(str(n)) <= high for n, (low, high) in zip(turned, self.digits, strict=True))
        return self._question(*turned) if is_allowed else question

    def held_out_name(self) -> str:
        """Each choice of digits has an order of its own."""
        (low, high), second = self.digits
        name = f"held out {low} {high}"
        return name if second == (low, high) else f"{name} by {second[0]} {second[1]}"

    def id_of(self, question: Question) -> int:
        """See `problem_id`."""
        return problem_id(*_factors(question))

    def ask(self, text: str) -> Problem:
        """Any product of two positive integers of at most 6 digits."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError(
                f"problem {text[:80]!r} is not a product of two positive integers of at most {MAX_DIGITS} digits;"
                ' write it as "37*84"'
            )
        return self.problem(self._question(int(match[1]), int(match[2])))

    def _question(self, a: int, b: int) -> Question:
        text = f"{a}*{b}"
        asked = ASKED[self.data.template].format(a=a, b=b)
        return Question(asked, a * b, text, key_of(a, b), worked=f"{text}={a * b}")


def _factors(question: Question) -> tuple[int, int]:
    a, _, b = question.text.partition("*")
    return int(a), int(b)


def _digits(name: str, low: int, high: int) -> tuple[int, int]:
    """Checked fewest and most digits of a factor."""
    if not 1 <= low <= high <= MAX_DIGITS:
        raise ValueError(
            f"digits must satisfy 1 <= {name}min_digits <= {name}max_digits <= {MAX_DIGITS},"
            f" got {name}min_digits={low}, {name}max_digits={high}"
        )
    return low, high


def _pairs(rng: random.Random, first: tuple[int, int], second: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Ordered pairs as the module's docstring says. Up to 2 digits each comes once, beyond that they are endless.

    The short list is put in order by exponential clocks (a pair's rate is its probability), which is the same as
    drawing one by one and skipping repeats (Efraimidis and Spirakis 2006).
    """
    if first[1] <= 2 and second[1] <= 2:
        left, right = (range(10 ** (low - 1), 10**high) for low, high in (first, second))
        both = itertools.product(left, right)
        yield from sorted(both, key=lambda pair: rng.expovariate(_probability(*pair)))
        return
    while True:
        yield _factor(rng, *first), _factor(rng, *second)


def _probability(a: int, b: int) -> float:
    """Chance of drawing (a, b), up to a constant. Each number of digits is equally likely."""
    return 10.0 ** -(len(str(a)) + len(str(b)))


def _factor(rng: random.Random, min_digits: int, max_digits: int) -> int:
    num_digits = rng.randint(min_digits, max_digits)
    return rng.randrange(10 ** (num_digits - 1), 10**num_digits)


def _hashed_order(a: int, b: int) -> tuple[int, int]:
    """{a, b} in the one order in which it is asked, whichever way round it came."""
    low, high = sorted((a, b))
    digest = hashlib.blake2b(f"order {low} {high}".encode(), digest_size=1).digest()
    return (low, high) if digest[0] % 2 else (high, low)
