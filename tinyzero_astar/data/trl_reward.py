"""The multiplication task's verifier as a reward function for TRL's trainers.

    trainer = GRPOTrainer(model, reward_funcs=multiplication_reward, train_dataset=..., args=...)

The dataset has a column `prompt` whose text ends with `<think>`, and a column `answer` with the product. The function
serves `--data.reward-function tinyzero_astar:multiplication_reward` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinyzero_astar.data.answers import judge_integer, verify_answer

WELL_FORMED = 0.1  # for a wrong answer in the right format


def multiplication_reward(
    completions: Sequence[str | Sequence[dict[str, Any]]],
    answer: Sequence[int | str | None],
    log_metric: Callable[[str, float], None] | None = None,
    **others: Any,
) -> list[float | None]:
    """1 for the right integer in a well-formed completion, 0.1 for another one in the right format, else 0.

    TRL does not say whether a completion was cut off. So a text that ends with `</answer>` counts as ended.

    Args:
        completions: texts after the prompt, or conversations, of which the last message counts.
        answer: the right integer of each, or None where the row belongs to another task.
        log_metric: told the share of right and of well-formed completions.
        others: what else TRL gives. It is not needed.

    Returns:
        A score for each completion. None where there is no answer, which TRL takes as "not for this function".

    Raises:
        ValueError: an answer is no integer.
    """
    verdicts = [
        None if right is None else _judged(completion, int(right))
        for completion, right in zip(completions, answer, strict=True)
    ]
    if log_metric is not None and (known := [v for v in verdicts if v is not None]):
        log_metric("accuracy", sum(v == 1.0 for v in known) / len(known))
        log_metric("format", sum(v > 0.0 for v in known) / len(known))
    return verdicts


def _judged(completion: str | Sequence[dict[str, Any]], right: int) -> float:
    text = completion if isinstance(completion, str) else str(completion[-1]["content"])
    verdict = verify_answer(text, True, lambda inside: judge_integer(right, inside))
    return 1.0 if verdict.accuracy else WELL_FORMED * verdict.format
