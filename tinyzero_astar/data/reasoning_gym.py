"""Tasks of reasoning-gym (an optional extra), `--data.task reasoning_gym:NAME`, with its questions and its scorers.

The library runs in a process of its own, see `scoring_process`. Each answer has a time limit and a length limit. One
whose scorer hangs, dies or misbehaves scores 0, and its verdict says why.

That process is no sandbox. Some scorers run the answer as Python. They are refused by name, and any other that tries is
stopped. Such a reward would hand the machine to the policy, and `__import__` would pay.

Scores are the library's own. 1 counts as right, and many scorers pay something between 0 and 1 for a wrong answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.answers import Reason, refused
from tinyzero_astar.data.questions import Question, QuestionTask
from tinyzero_astar.data.reasoning_gym_process import CHUNK
from tinyzero_astar.data.scoring_process import LostError, ScoringProcess, python_module
from tinyzero_astar.interfaces import Verdict

PREFIX = "reasoning_gym:"
MAX_CHARS = 4000  # of an answer, while the largest grids of arc_agi have 1,800
LIMIT_S = 10.0  # of one answer, while regular ones take milliseconds
_QUESTION_LIMIT_S = 60.0

RUNS_THE_ANSWER = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Data sets of reasoning-gym 0.1.25 whose scorers hand the answer to `eval`, or to sympy's `parse_expr`, which does."""
RUNS_ITS_QUESTION = frozenset({"bitwise_arithmetic", "number_sorting"})
"""Those whose scorers run parts of the question, which cannot be told from running the answer."""


@dataclass(frozen=True)
class Entry:
    """Which question of the library it is, and the answer that it has at hand."""

    seed: int
    index: int
    answer: str | None  # None means that any answer with some property is right

    def __str__(self) -> str:
        return "" if self.answer is None else self.answer


class ReasoningGym(QuestionTask):
    """The questions of one data set of reasoning-gym, in its default settings.

    Raises:
        ValueError: the package is missing, has no data set of that name, or its scorer runs answers as code.
    """

    def __init__(self, data: DataConfig, seed: int) -> None:
        self._name = data.task.removeprefix(PREFIX)
        _refuse_code(self._name)
        self._process = ScoringProcess(python_module("tinyzero_astar.data.reasoning_gym_process", self._name))
        super().__init__(data, seed)

    def questions(self, rng: random.Random) -> Iterator[Question]:
        """An endless draw."""
        first = rng.randrange(1 << 31)
        for seed in count(first):
            yield from (self._question(seed, index) for index in range(CHUNK))

    def held_out_name(self) -> str:
        """Each data set has an order of its own."""
        return f"held out {PREFIX}{self._name}"

    def judge(self, answer: Entry, text: str) -> Verdict:
        """The library's score, or 0 with a reason where there is none."""
        if len(text) > MAX_CHARS:
            return refused(Reason.TOO_LONG)
        request = {"seed": answer.seed, "index": answer.index, "text": text}
        try:
            reply = self._process.ask(request, LIMIT_S)
        except LostError as error:
            reply = {"fault": f"its scorer {error}"}
        score = reply.get("score", 0.0)
        assert isinstance(score, float)
        reason = Reason.CORRECT if score == 1 else str(reply.get("fault", Reason.WRONG_ANSWER))
        return Verdict(score == 1, True, text, reason, score)

    def _question(self, seed: int, index: int) -> Question:
        try:
            reply = self._process.ask({"seed": seed, "index": index}, _QUESTION_LIMIT_S)
        except LostError as error:
            raise ValueError(
                f"data.task {PREFIX}{self._name}: reasoning-gym made no question (its process {error}); choose another"
            ) from None
        answer = reply["answer"]
        entry = Entry(seed, index, None if answer is None else str(answer))
        return Question(str(reply["question"]), entry)


def _refuse_code(name: str) -> None:
    if name in RUNS_THE_ANSWER | RUNS_ITS_QUESTION:
        what = "the answer" if name in RUNS_THE_ANSWER else "text"
        other = "; --data.task countdown is this package's own" if name == "countdown" else ""
        raise ValueError(
            f"data.task {PREFIX}{name} is refused: its scorer in reasoning-gym runs {what} as Python, so that a policy"
            f" could run anything on this machine{other or '; choose another'}"
        )
