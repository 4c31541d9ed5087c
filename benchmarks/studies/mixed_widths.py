"""A curriculum for long products: narrower ones in the training set, and only the widest held out.

    data.task = "benchmarks/studies/mixed_widths.py:MixedWidths"

Both factors of a held-out product have `data.max_digits` digits. In the training set the number of digits of each is
drawn anew between 2 and that.
"""

from __future__ import annotations

from dataclasses import replace

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.interfaces import Problem, Verdict


class MixedWidths:
    """Implements `interfaces.Task`. No training product is held out, since both sides split pairs by the same hash."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        self._wide = Multiplication(replace(data, min_digits=data.max_digits), seed)
        self._mixed = Multiplication(replace(data, min_digits=2), seed)

    def train_problems(self, iteration: int, count: int) -> list[Problem]:
        """Products of factors of 2 and more digits."""
        return self._mixed.train_problems(iteration, count)

    def held_out_problems(self, count: int) -> list[Problem]:
        """Products of two factors of the full width."""
        return self._wide.held_out_problems(count)

    def verify(self, problem: Problem, completion: str, is_finished: bool) -> Verdict:
        """As for products of one width."""
        return self._wide.verify(problem, completion, is_finished)

    def example(self, problem: Problem) -> str:
        """As for products of one width."""
        return self._mixed.example(problem)

    def ask(self, text: str) -> Problem:
        """Any product."""
        return self._mixed.ask(text)
