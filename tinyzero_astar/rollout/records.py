"""Rollouts with what the verifier said of them, and how such records are joined and moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.engine.shared_prompt import length_read_apart, shared_length
from tinyzero_astar.interfaces import Problem, Rollouts, Verdict

Record = TypeVar("Record")
NO_LEAF = Verdict(accuracy=False, format=False, answer=None, reason="no such leaf")
"""Stands where a problem has fewer leaves than others."""


@dataclass(frozen=True)
class RewardedRollouts:
    """Rollouts with their texts and the verifier's verdicts. Lists are [P][K], tensors [P, K]."""

    problems: list[Problem]
    prompts: list[list[int]]
    rollouts: Rollouts
    texts: list[list[str]]
    verdicts: list[list[Verdict]]
    accuracy: Tensor
    grade: Tensor  # accuracy, or the grade of a task that grades, which the value model predicts
    format: Tensor
    reward: Tensor
    weight: Tensor  # the search's weights, uniform where it has none
    update_weight: Tensor  # the same after thinning. Rows of weight 0 are not trained on

    def padded(self, num_leaves: int, width: int, pad_id: int) -> RewardedRollouts:
        """The same with room for so many leaves of a problem and tokens of a leaf, at least as many as now."""
        missing = num_leaves - self.weight.shape[1]

        def more(x: Tensor) -> Tensor:
            return pad(x, (0, missing))

        return replace(
            self,
            rollouts=self.rollouts.padded(num_leaves, width, pad_id),
            texts=[row + [""] * missing for row in self.texts],
            verdicts=[row + [NO_LEAF] * missing for row in self.verdicts],
            accuracy=more(self.accuracy),
            grade=more(self.grade),
            format=more(self.format),
            reward=more(self.reward),
            weight=more(self.weight),
            update_weight=more(self.update_weight),
        )


def num_prompt_tokens(rewarded: RewardedRollouts, settings: SearchConfig) -> int:
    """Tokens of prompts that a search put through the model. What all of them begin with counts once.

    A problem that got no row was not read, unless the root was tilted, for which all prompts are read once more.
    """
    is_read = (rewarded.rollouts.stats.num_expanded > 0).tolist()
    searched = [prompt for prompt, own in zip(rewarded.prompts, is_read, strict=True) if own]
    total = _tokens_read(searched)
    if settings.root_tilt > 0:
        size = settings.problems_per_search
        total += sum(_tokens_read(rewarded.prompts[i : i + size]) for i in range(0, len(rewarded.prompts), size))
    return total


def _tokens_read(prompts: Sequence[Sequence[int]]) -> int:
    apart = length_read_apart(shared_length(prompts), len(prompts))
    return sum(len(prompt) for prompt in prompts) - apart * (len(prompts) - 1)


def concatenate(parts: Sequence[RewardedRollouts], pad_id: int) -> RewardedRollouts:
    """Rollouts of several groups of problems as if they had been searched together. The smaller ones are padded."""
    if len(parts) == 1:
        return parts[0]
    _, most, longest = (max(sizes) for sizes in zip(*(part.rollouts.tokens.shape for part in parts), strict=True))
    joined: RewardedRollouts = _joined([part.padded(most, longest, pad_id) for part in parts])
    return joined


def _joined(parts: Sequence[Any]) -> Any:
    """Records of one kind with lists and tensors put one after another."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, list):
        return [x for part in parts for x in part]
    return type(first)(**{f.name: _joined([getattr(part, f.name) for part in parts]) for f in fields(first)})


def on_device(record: Record, device: torch.device) -> Record:
    """A record with its tensors, and those of the records in it, on a device."""
    assert is_dataclass(record) and not isinstance(record, type)
    moved: dict[str, Any] = {}
    for field in fields(record):
        x = getattr(record, field.name)
        if isinstance(x, Tensor):
            moved[field.name] = x.to(device)
        elif is_dataclass(x) and not isinstance(x, type):
            moved[field.name] = on_device(x, device)
    return replace(record, **moved)
