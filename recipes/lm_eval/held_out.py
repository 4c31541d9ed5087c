"""Problems and verdicts for multiplication.yaml, a task of EleutherAI's lm-evaluation-harness.

The problems are those of a run's own evaluation, with the same prompts. The harness does not tell whether a model ended
its completion or was cut at the limit. A cut completion counts as ended here, so a right one that is cut exactly after
its answer is judged right.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.answers import judge_integer, verify_answer
from tinyzero_astar.data.generation import Multiplication

NUM_PROBLEMS = 500  # as many as preset tiny evaluates


def rows(num_problems: int = NUM_PROBLEMS, **settings: Any) -> list[dict[str, Any]]:
    """The first held-out problems as rows with `prompt` and `answer`.

    Args:
        num_problems: how many, at least 1.
        settings: fields of section `data`, such as `max_digits` or `template`. Other names are the harness's own and
            are ignored.

    Raises:
        ValueError: a setting is out of range, there are fewer problems, or `num_shots` is set.
    """
    if settings.get("num_shots"):
        raise ValueError(
            f"num_shots is {settings['num_shots']}, but worked examples end with the model's own end token, which the"
            " harness does not tell; leave it out"
        )
    known = {field.name for field in fields(DataConfig)}
    data = DataConfig(**{"num_problems": 1} | {name: value for name, value in settings.items() if name in known})
    problems = Multiplication(data, seed=0).held_out_problems(num_problems)
    return [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]


def dataset(**metadata: Any) -> dict[str, Any]:
    """The rows as the split `test`, for the harness's `custom_dataset`."""
    from datasets import Dataset  # the harness brings it

    return {"test": Dataset.from_list(rows(**metadata))}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Accuracy and format of one completion, as a run's own evaluation judges them."""
    verdict = verify_answer(results[0], True, lambda text: judge_integer(doc["answer"], text))
    return {"accuracy": float(verdict.accuracy), "format": float(verdict.format)}
