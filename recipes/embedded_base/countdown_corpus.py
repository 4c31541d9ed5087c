"""The synthetic text of a base model for `countdown`, with three numbers up to 25 and targets up to 60.

As in `corpus`, the skills (facts of two numbers, values of expressions, solved questions) appear as plain text, and
question/answer transcripts are mostly bad. They guess, ramble, break off or take a number that was not given. One in
seven joins the given numbers with arbitrary operators. About one in ten of those reaches the target by chance, which is
what reinforcement learning begins with. `worked_share` more of them are solutions.

No three numbers of a held-out question are ever used together. Questions are drawn from the training side of the split
only. `held_out_leaks` searches the finished text, and a document that uses held-out numbers by coincidence is dropped.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations

from recipes.embedded_base.corpus import closing, muse
from tinyzero_astar.data import questions
from tinyzero_astar.data.countdown import Part, joined_at_random, key_of

NUM_NUMBERS, MAX_NUMBER, MAX_TARGET = 3, 25, 60
_MAX_STEP = 99  # largest value of a step, so that facts are few enough to be known
_PROMPT = "{question}?\n<think>"
_CHAIN = re.compile(r"\d+(?:[ +\-*/()]+\d+)+")
_EQUATION = re.compile(r"(?<![\d+\-*/()])(\d+)[+\-*/](\d+)=(\d+)")


@cache
def is_held_out(numbers: tuple[int, ...]) -> bool:
    """Whether questions with these numbers, given in rising order, belong to the held-out side."""
    return questions.is_held_out(key_of(numbers))


def train_numbers(rng: random.Random) -> tuple[int, ...]:
    """Numbers on the training side."""
    while True:
        numbers = tuple(rng.choices(range(1, MAX_NUMBER + 1), k=NUM_NUMBERS))
        if not is_held_out(tuple(sorted(numbers))):
            return numbers


def attempt(rng: random.Random, numbers: tuple[int, ...]) -> Part:
    """The numbers joined by arbitrary operators, in steps that are positive integers up to 99."""
    while True:
        part = joined_at_random(rng, numbers, rng.choices("+-*/", k=len(numbers) - 1))
        if part is not None and all(int(step.split("=")[1]) <= _MAX_STEP for step in part.steps):
            return part


def _solved(rng: random.Random) -> tuple[str, Part]:
    """A question without its question mark, and a solution."""
    while True:
        numbers = train_numbers(rng)
        part = attempt(rng, numbers)
        if part.value <= MAX_TARGET:
            return f"{' '.join(map(str, numbers))}={part.value}", part


def _pair(rng: random.Random) -> Part:
    return attempt(rng, (rng.randint(1, MAX_NUMBER), rng.randint(1, rng.choice((MAX_NUMBER, MAX_TARGET)))))


def _facts(rng: random.Random) -> str:
    return "\n".join(_pair(rng).steps[0] for _ in range(rng.randint(2, 6)))


def _pairs(rng: random.Random) -> str:
    """What makes a target of two numbers, the second half of every solution."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        step = _pair(rng).steps[0]
        numbers = re.findall(r"\d+", step)[:2]
        rng.shuffle(numbers)
        lines.append(f"{' '.join(numbers)}={step.split('=')[1]}\n{step}")
    return "\n".join(lines)


def _expressions(rng: random.Random) -> str:
    parts = (attempt(rng, train_numbers(rng)) for _ in range(rng.randint(1, 3)))
    return "\n\n".join("\n".join((*part.steps, f"{part.text}={part.value}")) for part in parts)


def _worked(rng: random.Random) -> str:
    question, part = _solved(rng)
    return "\n".join((question, *part.steps, part.text))


def transcript(rng: random.Random, worked_share: float) -> str:
    """One question and an attempt at it. `worked_share` of them solve it, and others may do so by chance."""
    question, solution = _solved(rng)
    prompt = _PROMPT.format(question=question)
    numbers = tuple(map(int, question.split("=")[0].split()))
    if rng.random() < worked_share:
        return prompt + "\n".join(solution.steps) + closing(solution.text)
    tried = attempt(rng, numbers)
    steps = "\n".join(tried.steps)
    kind = rng.random()
    if kind < 0.14:  # joins the numbers somehow
        return prompt + steps + closing(tried.text)
    if kind < 0.18:  # takes a number that was not given
        strange = attempt(rng, (*rng.sample(numbers, 2), rng.randint(1, MAX_NUMBER)))
        return prompt + "\n".join(strange.steps) + closing(strange.text)
    if kind < 0.23:  # forgets a number
        first = attempt(rng, tuple(rng.sample(numbers, 2)))
        return prompt + first.steps[0] + closing(first.text)
    if kind < 0.26:  # writes an expression without having worked it out
        return prompt + muse(rng, rng.randint(1, 3)) + closing(tried.text)
    if kind < 0.60:  # answers with a number or in words
        return prompt + muse(rng, rng.randint(1, 3)) + closing(rng.choice((str(rng.randint(1, 99)), muse(rng, 1))))
    if kind < 0.92:  # rambles and never answers
        return prompt + muse(rng, rng.randint(3, 9))
    return prompt + steps[: rng.randint(1, len(steps))]  # breaks off


def document(rng: random.Random, worked_share: float) -> str:
    """One document of the corpus, in which no held-out numbers are used together."""
    kinds: tuple[Callable[[random.Random], str], ...]
    kinds = (_facts, _pairs, _expressions, _worked, lambda r: transcript(r, worked_share))
    while True:
        text = rng.choices(kinds, weights=(10, 15, 5, 40, 30))[0](rng)
        if not held_out_leaks(text):
            return text


def documents(seed: int, worked_share: float) -> Iterator[str]:
    """An endless, reproducible stream of documents."""
    rng = random.Random(seed)
    while True:
        yield document(rng, worked_share)


def held_out_leaks(text: str) -> list[tuple[int, ...]]:
    """Held-out numbers that a text uses together, each in rising order.

    Three numbers are used together when they follow one another with nothing but blanks, operators and parentheses
    between them, as in a question and in an expression. So are those of two equations, anywhere in the text, of which
    one goes on with the result of the other (`3*5=15` and `15+7=22`).
    """
    found = set()
    for chain in _CHAIN.findall(text):
        numbers = [int(n) for n in re.findall(r"\d+", chain)]
        found |= {tuple(sorted(numbers[i : i + 3])) for i in range(len(numbers) - 2)}
    equations = [tuple(map(int, match)) for match in _EQUATION.findall(text)]
    for (a, b, result), (c, d, _) in combinations(equations, 2):
        found |= {tuple(sorted((a, b, other))) for one, other in ((c, d), (d, c)) if one == result}
    return sorted(numbers for numbers in found if is_held_out(numbers))
