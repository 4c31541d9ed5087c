"""Multiplication problems: who is held out, how a question is asked, and its verifier.

The split is a property of the *unordered* operand pair, decided by a hash that knows neither seed
nor preset: 23*45 and 45*23 are always on the same side, and a model trained on one side has never
seen the other.

An operand's number of digits is drawn uniformly, then the operand uniformly among the numbers of
that many digits (zero is left out: it teaches nothing). Pairs are drawn one after another in this
way, without replacement.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tinyzero_astar.data.answers import verify_integer
from tinyzero_astar.interfaces import Problem, Verdict

HELD_OUT_PERCENT = 20
MAX_DIGITS = 6  # of an operand
_ID_BASE = 1_000_000  # above every operand

TEMPLATES = {
    "conversation": (
        "The user asks a question about arithmetic and the assistant works it out. The assistant"
        " first writes down its reasoning, step by step, between <think> and </think>, then states"
        " nothing but the final integer between <answer> and </answer>, as in <answer>42</answer>,"
        " and stops.\n"
        "User: What is {a} * {b}?\n"
        "Assistant: <think>"
    ),
    "compact": "{a}*{b}=?\n<think>",
}


def room_after(prompt_length: int, max_seq_length: int, max_search_depth: int) -> int:
    """Tokens that a completion may have after a prompt of `prompt_length` tokens, up to `max_search_depth`.

    Raises:
        ValueError: there is no room.
    """
    if prompt_length >= max_seq_length:
        raise ValueError(
            f"max_seq_length {max_seq_length} leaves no room after a prompt of {prompt_length} tokens:"
            f" raise it to {prompt_length + max_search_depth} for completions of max_search_depth tokens"
        )
    return min(max_search_depth, max_seq_length - prompt_length)


def is_held_out(a: int, b: int) -> bool:
    """Whether the unordered pair {a, b} belongs to the held-out set (20 % of all pairs do)."""
    low, high = sorted((a, b))
    digest = hashlib.blake2b(f"multiply {low} {high}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def problem_id(a: int, b: int) -> int:
    """The id of the problem a*b: a * 10**6 + b, for operands below 10**6."""
    return a * _ID_BASE + b


def operands(id: int) -> tuple[int, int]:
    """The operands (a, b) of the problem with this id."""
    return divmod(id, _ID_BASE)


def overlap(train: Iterable[Problem], held_out: Iterable[Problem]) -> int:
    """How many unordered operand pairs stand on both sides; 0 unless the split is broken.

    It looks at the operands only, not at the hash that decides the split.
    """
    sides = ({frozenset(operands(p.id)) for p in side} for side in (train, held_out))
    return len(set.intersection(*sides))


@dataclass(frozen=True)
class Multiplication:
    """Products of two positive integers (implements `interfaces.Task`).

    Args:
        min_digits: fewest digits of an operand, 1 to `max_digits`.
        max_digits: most digits of an operand, `min_digits` to 6.
        num_problems: size of the training set in ordered operand pairs, 1 to 50,000.
        seed: chooses the training set and its order; the held-out problems do not depend on it.
        template: a name in `TEMPLATES`, how the question is put to the model.

    Raises:
        ValueError: an argument is out of range, or fewer than `num_problems` pairs exist.
    """

    min_digits: int
    max_digits: int
    num_problems: int
    seed: int
    template: str

    def __post_init__(self) -> None:
        """Check the arguments and draw the training set, so that a wrong size fails at once."""
        if not 1 <= self.min_digits <= self.max_digits <= MAX_DIGITS:
            raise ValueError(
                f"digits must satisfy 1 <= min_digits <= max_digits <= {MAX_DIGITS},"
                f" got min_digits={self.min_digits}, max_digits={self.max_digits}"
            )
        if self.template not in TEMPLATES:
            names = ", ".join(sorted(TEMPLATES))
            raise ValueError(f"template {self.template!r} is unknown; choose one of: {names}")
        _ = self._training_pairs

    def train_problems(self, iteration: int, count: int) -> list[Problem]:
        """The training problems of an iteration, a pure function of seed, iteration and count.

        The training set is consumed epoch by epoch, each in a fresh order, and no problem comes
        twice within an epoch; a batch may end one epoch and begin the next. Nor does a problem come
        twice within a batch as long as count <= num_problems: the search noise depends on iteration
        and problem alone, so the second copy would have the same rollouts.
        `train_problems(0, num_problems)` is the whole training set.

        Args:
            iteration: 0 for the first.
            count: problems per iteration, at least 1, the same in every iteration of a run.

        Raises:
            ValueError: `iteration` or `count` is out of range.
        """
        if iteration < 0:
            raise ValueError(f"iteration must be at least 0, got {iteration}")
        _check_count("count", count)
        pairs: list[tuple[int, int]] = []
        while len(pairs) < count:
            epoch, offset = divmod(iteration * count + len(pairs), self.num_problems)
            pairs += self._epoch(epoch, count)[offset : offset + count - len(pairs)]
        return [self._problem(a, b) for a, b in pairs]

    def held_out_problems(self, count: int) -> list[Problem]:
        """The first `count` held-out problems, the same for every seed, run and training-set size.

        No two share an unordered operand pair; which operand comes first is decided by a hash.

        Raises:
            ValueError: `count` is out of range, or fewer than `count` pairs exist.
        """
        _check_count("count of held-out problems", count)
        rng = random.Random(f"held out {self.min_digits} {self.max_digits}")
        pairs = _pairs(rng, self.min_digits, self.max_digits)
        ordered = (_hashed_order(a, b) for a, b in pairs if is_held_out(a, b))
        problems = [self._problem(a, b) for a, b in _distinct(ordered, count)]
        if len(problems) < count:
            raise self._too_few("count of held-out problems", count, len(problems))
        return problems

    def verify(self, problem: Problem, completion: str, is_finished: bool) -> Verdict:
        """Judge the text after the prompt; cheap and safe on any string."""
        return verify_integer(completion, problem.answer, is_finished)

    @cached_property
    def _training_pairs(self) -> tuple[tuple[int, int], ...]:
        _check_count("num_problems", self.num_problems)
        rng = random.Random(f"{self.seed} training set")
        pairs = _pairs(rng, self.min_digits, self.max_digits)
        found = _distinct((p for p in pairs if not is_held_out(*p)), self.num_problems)
        if len(found) < self.num_problems:
            raise self._too_few("num_problems", self.num_problems, len(found))
        return tuple(found)

    def _shuffled(self, epoch: int) -> list[tuple[int, int]]:
        order = list(self._training_pairs)
        random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
        return order

    def _epoch(self, epoch: int, count: int) -> list[tuple[int, int]]:
        """The order of an epoch that is consumed in batches of `count`.

        The first batch may have begun with the last problems of the epoch before; those move behind
        it. Places at the end stay as they are, or hold what `_carried` says, so that none has to
        look at all the epochs before.
        """
        order = self._shuffled(epoch)
        if count >= self.num_problems:
            return order
        before = self._carried(epoch - 1, count)
        last = set(order[-count:]) if 2 * count <= self.num_problems else self._carried(epoch, count)
        return sorted(order, key=lambda pair: 2 if pair in last else pair in before)  # stable

    def _carried(self, epoch: int, count: int) -> set[tuple[int, int]]:
        """The last problems of an epoch, those of the batch that the next epoch completes.

        With batches of more than half of the set, an epoch may hold no whole batch. All that is not
        in its first batch is then carried on, so the set must contain what the epoch before
        carried. It grows by num_problems - count each time: longer and longer ends of one shuffle,
        that of the last epoch that held a whole batch.
        """
        size = (epoch + 1) * self.num_problems % count
        if size == 0:
            return set()
        source = max(0, epoch - size // (self.num_problems - count))
        return set(self._shuffled(source)[-size:])

    def _problem(self, a: int, b: int) -> Problem:
        prompt = TEMPLATES[self.template].format(a=a, b=b)
        return Problem(id=problem_id(a, b), prompt=prompt, text=f"{a}*{b}", answer=a * b)

    def shortest_right(self, problems: Sequence[Problem]) -> str:
        """A completion that is right for one of the problems; none that is right has fewer letters."""
        return f"</think><answer>{min(problem.answer for problem in problems)}</answer>"

    def _too_few(self, name: str, wanted: int, existing: int) -> ValueError:
        return ValueError(
            f"{name} is {wanted}, but only {existing} exist for operands of {self.min_digits} to"
            f" {self.max_digits} digits; lower it or raise max_digits"
        )


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")


def _pairs(rng: random.Random, min_digits: int, max_digits: int) -> Iterator[tuple[int, int]]:
    """Ordered pairs as the module's docstring says; up to 2 digits each once, beyond that endless.

    The short list is put in order by exponential clocks (a pair's rate is its probability), which
    is the same as drawing one by one and skipping repeats (Efraimidis and Spirakis 2006).
    """
    if max_digits <= 2:
        numbers = range(10 ** (min_digits - 1), 10**max_digits)
        both = itertools.product(numbers, numbers)
        yield from sorted(both, key=lambda pair: rng.expovariate(_probability(*pair)))
        return
    while True:
        yield _operand(rng, min_digits, max_digits), _operand(rng, min_digits, max_digits)


def _probability(a: int, b: int) -> float:
    """Chance of drawing (a, b), up to a constant: each number of digits is equally likely."""
    return 10.0 ** -(len(str(a)) + len(str(b)))


def _operand(rng: random.Random, min_digits: int, max_digits: int) -> int:
    num_digits = rng.randint(min_digits, max_digits)
    return rng.randrange(10 ** (num_digits - 1), 10**num_digits)


def _distinct(pairs: Iterable[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """The first `count` different pairs; fewer when `pairs` ends before."""
    found: dict[tuple[int, int], None] = {}  # a dict keeps the order
    for pair in pairs:
        found[pair] = None
        if len(found) == count:
            break
    return list(found)


def _hashed_order(a: int, b: int) -> tuple[int, int]:
    """{a, b} in the one order in which it is asked, whichever way round it came."""
    low, high = sorted((a, b))
    digest = hashlib.blake2b(f"order {low} {high}".encode(), digest_size=1).digest()
    return (low, high) if digest[0] % 2 else (high, low)
