"""A table that a reward function in TRL's form judges.

    --data.task FILE.jsonl --data.reward-function FILE.py:function

It is called as TRL 1.16 calls it, with one completion at a time:

    function(prompts=[...], completions=[...], <every column of the table>=[...], trainer_state=None,
             log_extra=..., log_metric=...) -> [score]

Prompts and completions are strings. The score lies in [0, 1], and None counts as 0. A score of 1 counts as right
(accuracy), and a completion that the model ended itself as well-formed. No tags are needed. The prompt is given to the
model as it stands, without a template. `completion_ids`, which TRL has, is missing here, since a verdict depends on the
text alone. What is given to `log_extra` and `log_metric` is dropped.

The function is the user's own code and runs in this process. Its errors are shown as they are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, SupportsFloat

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.answers import Reason
from tinyzero_astar.data.questions import Question
from tinyzero_astar.data.table import Line, Table, text_in
from tinyzero_astar.interfaces import Problem, Verdict
from tinyzero_astar.terminal import FailedError, shortened

_OURS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


class RewardedTable(Table):
    """The questions of a file, judged by a function.

    Args:
        data: the settings of section `data`.
        seed: see `QuestionTask`.
        function: see above.

    Raises:
        ValueError: see `Table`, or the function cannot be called with the table's columns.
    """

    reads_decimals = float

    def __init__(self, data: DataConfig, seed: int, function: Callable[..., Any]) -> None:
        if data.num_shots:
            raise ValueError(
                f"num_shots {data.num_shots} needs right answers, and a reward function has none: write the examples"
                " into the prompts"
            )
        self._function, self._name = function, data.reward_function
        self._columns: set[str] = set()
        super().__init__(data, seed)

    def question(self, line: Line, data: DataConfig) -> Question:
        """The question of a line. Its answer are the columns of the line."""
        self._columns = self._columns or set(line)
        if set(line) != self._columns:
            raise ValueError(f"has other columns than the first: {', '.join(sorted(set(line) ^ self._columns))}")
        if taken := sorted(set(line) & set(_OURS)):
            raise ValueError(f"has the column {taken[0]}, which a reward function is given anyway: rename it")
        self._check_callable(_arguments(line, ""))
        return Question(line["prompt"], dict(line), text=line["prompt"].strip(), key=text_in(line, "key"), shown="-")

    def problem(self, question: Question) -> Problem:
        """The prompt is the table's, without a template."""
        return replace(super().problem(question), prompt=question.asked)

    def example(self, problem: Problem) -> str:
        """Empty, since only the function knows what is right."""
        return ""

    def verify(self, problem: Problem, completion: str, is_finished: bool) -> Verdict:
        """The function's score.

        Raises:
            FailedError: it is no number in [0, 1].
            RuntimeError: the function raised a ValueError, which is the cause.
        """
        score = self._score(problem, completion)
        reason = Reason.CORRECT if score == 1 else Reason.WRONG_ANSWER if is_finished else Reason.CUT_OFF
        return Verdict(score == 1, is_finished, completion if is_finished else None, reason, score)

    def _score(self, problem: Problem, completion: str) -> float:
        try:
            scores = self._function(**_arguments(problem.answer, completion))
        except ValueError as error:  # which the command line would take for wrong use, and hide where it arose
            raise RuntimeError(f"{self._name} failed ({error})") from error
        if not isinstance(scores, list) or len(scores) != 1:
            raise FailedError(f"{self._name} must return a list of one score per completion, got {shortened(scores)}")
        score = _number(scores[0])
        if not 0 <= score <= 1:
            raise FailedError(
                f"{self._name} gave {shortened(scores[0])} for {shortened(completion)}: a score must lie in [0, 1]"
            )
        return score

    def _check_callable(self, arguments: dict[str, Any]) -> None:
        if inspect.iscoroutinefunction(self._function):
            raise ValueError(f"{self._name} is asynchronous: write it without async")
        parameters = inspect.signature(self._function).parameters
        if "completion_ids" in parameters:
            raise ValueError(
                f"{self._name} asks for completion_ids: here rewards depend on the text alone, so use completions"
            )
        try:
            inspect.signature(self._function).bind(**arguments)
        except TypeError as error:
            raise ValueError(
                f"{self._name} cannot be called with the columns of the table ({error}); TRL's functions end their"
                " parameters with **kwargs"
            ) from None


def _arguments(line: Line, completion: str) -> dict[str, Any]:
    """What the function is given for one completion."""
    columns = {name: [value] for name, value in line.items() if name != "prompt"}
    ours = {"trainer_state": None, "log_extra": _drop, "log_metric": _drop}
    return {"prompts": [line["prompt"]], "completions": [completion], **columns, **ours}


def _number(score: object) -> float:
    """A score as a number. NaN where it is none."""
    if score is None:
        return 0.0
    if isinstance(score, str) or not isinstance(score, SupportsFloat):
        return math.nan
    try:
        return float(score)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # arrays, tensors, enormous integers
        return math.nan


def _drop(*values: object) -> None:
    """Takes what a function would log."""
