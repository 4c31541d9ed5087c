"""Search, policy and task put together: problems in, rewarded rollouts out.

A problem's search noise is a hash of the run's seed, the iteration and the problem's id; nothing here keeps a
random state, so a resumed run continues exactly and the order or grouping of problems does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from tinyzero_astar.data.generation import room_after
from tinyzero_astar.interfaces import Batch, Problem, Rollouts, SearchMode, Task, Verdict
from tinyzero_astar.model.decoder import SlotDecoder
from tinyzero_astar.model.loading import text_fault
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import astar_rollouts, greedy_rollouts
from tinyzero_astar.rollout.gumbel import fold, mix64, to_uniform
from tinyzero_astar.rollout.heuristic import Guidance
from tinyzero_astar.training.reward import RewardWeights, reward
from tinyzero_astar.training.thinning import thin_weights

Record = TypeVar("Record")

# keep the choice of unguided problems and of thinned leaves apart from the search noise
_UNGUIDED_STREAM, _THINNING_STREAM = 0x5EED, 0x7417


@dataclass(frozen=True)
class SearchSettings:
    """Arguments of `astar_rollouts` that do not change from call to call."""

    mode: SearchMode
    num_rollouts: int
    beam_width: int
    max_search_depth: int
    guidance: Guidance
    unguided_fraction: float
    min_weight: float  # leaves that weigh less are thinned out before the update


@dataclass(frozen=True)
class RewardedRollouts:
    """Rollouts with their texts and what the verifier said of them; [P][K] lists, [P, K] tensors."""

    problems: list[Problem]
    prompts: list[list[int]]
    rollouts: Rollouts
    texts: list[list[str]]
    verdicts: list[list[Verdict]]
    accuracy: Tensor
    format: Tensor
    reward: Tensor
    baseline: Tensor  # [P, K, T] V before each token in units of reward: what the value model promises of both rewards
    weight: Tensor  # the search's weights, uniform where it has none
    update_weight: Tensor  # the same after thinning; rows of weight 0 are not trained on


class Generator:
    """Finds and judges rollouts.

    Args:
        policy: the network.
        tokenizer: of the policy.
        task: verifies completions.
        reward_weights: how a verdict becomes a number.
        max_seq_length: bound on prompt and completion together, tokens.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        reward_weights: RewardWeights,
        max_seq_length: int,
    ) -> None:
        self._policy, self._tokenizer, self._task = policy, tokenizer, task
        self._reward_weights, self._max_seq_length = reward_weights, max_seq_length

    def generate(
        self, problems: Sequence[Problem], settings: SearchSettings, *, seed: int, iteration: int
    ) -> RewardedRollouts:
        """Search every problem; the noise is that of (seed, iteration, problem id)."""
        seeds = problem_seeds(problems, seed, iteration)
        share = to_uniform(fold(seeds, torch.tensor(_UNGUIDED_STREAM, device="cpu")))
        strength = torch.where(share < settings.unguided_fraction, 0.0, settings.guidance.strength)
        prompts, depth = self.encode(problems, settings.max_search_depth)
        rollouts = astar_rollouts(
            SlotDecoder(self._policy, depth),
            prompts,
            seeds=seeds,
            num_rollouts=settings.num_rollouts,
            beam_width=settings.beam_width,
            max_search_depth=depth,
            mode=settings.mode,
            guidance=replace(settings.guidance, strength=strength),
        )
        return self._judge(problems, prompts, rollouts, seeds, settings.min_weight)

    def greedy(self, problems: Sequence[Problem], max_search_depth: int) -> RewardedRollouts:
        """The greedy completion of every problem."""
        prompts, depth = self.encode(problems, max_search_depth)
        rollouts = greedy_rollouts(SlotDecoder(self._policy, depth), prompts, depth)
        return self._judge(problems, prompts, rollouts, problem_seeds(problems, 0, 0), 0.0)

    def encode(self, problems: Sequence[Problem], max_search_depth: int) -> tuple[list[list[int]], int]:
        """The prompts as tokens, and how many more tokens the longest leaves room for, up to a limit.

        Raises:
            ValueError: there is no room, or the tokenizer loses something of the first prompt, as it would of all.
        """
        if (fault := text_fault(self._tokenizer, problems[0].prompt)) is not None:
            raise ValueError(f"the {fault}")
        prompts = [list(ids) for ids in self._tokenizer([p.prompt for p in problems])["input_ids"]]
        return prompts, room_after(max(len(p) for p in prompts), self._max_seq_length, max_search_depth)

    def _judge(
        self,
        problems: Sequence[Problem],
        prompts: list[list[int]],
        rollouts: Rollouts,
        seeds: Tensor,
        min_weight: float,
    ) -> RewardedRollouts:
        texts, verdicts = [], []
        length = (rollouts.length - rollouts.is_finished.long()).tolist()  # without eos
        for i, (problem, rows) in enumerate(zip(problems, rollouts.tokens.tolist(), strict=True)):
            own = self._tokenizer.batch_decode(
                [row[:n] for row, n in zip(rows, length[i], strict=True)], skip_special_tokens=False
            )
            finished = rollouts.is_finished[i].tolist()
            texts.append(own)
            verdicts.append([self._task.verify(problem, t, f) for t, f in zip(own, finished, strict=True)])

        def table(values: list[list[float]]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=rollouts.length.device)

        weights = self._reward_weights
        has_leaf = (rollouts.length > 0).double()
        uniform = has_leaf / has_leaf.sum(1, keepdim=True).clamp(min=1)
        weight = torch.where(rollouts.weight.isnan(), uniform, rollouts.weight)
        leaf = torch.arange(weight.shape[1], device="cpu") + _THINNING_STREAM
        noise = to_uniform(fold(seeds[:, None], leaf)).to(weight.device)
        return RewardedRollouts(
            problems=list(problems),
            prompts=prompts,
            rollouts=rollouts,
            texts=texts,
            verdicts=verdicts,
            accuracy=table([[float(v.accuracy) for v in row] for row in verdicts]),
            format=table([[float(v.format) for v in row] for row in verdicts]),
            reward=table([[reward(v, weights) for v in row] for row in verdicts]),
            baseline=weights.accuracy * rollouts.value + weights.format * rollouts.format_value,
            weight=weight,
            update_weight=thin_weights(weight, noise, floor=min_weight),
        )


def problem_seeds(problems: Sequence[Problem], seed: int, iteration: int) -> Tensor:
    """int64 [P] on the CPU: a hash of the run's seed, the iteration and each problem's id."""
    state = fold(mix64(torch.tensor(seed, device="cpu")), torch.tensor(iteration, device="cpu"))
    return fold(state, torch.tensor([p.id for p in problems], device="cpu"))


def concatenate(parts: Sequence[RewardedRollouts], pad_id: int) -> RewardedRollouts:
    """Rollouts of several groups of problems as if they had been searched together; shorter ones are padded."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.rollouts.tokens.shape[-1] for part in parts)
    joined: RewardedRollouts = _joined([_padded(part, longest, pad_id) for part in parts])
    return joined


def _padded(part: RewardedRollouts, longest: int, pad_id: int) -> RewardedRollouts:
    old = part.rollouts
    room = (0, longest - old.tokens.shape[-1])
    wider: dict[str, Any] = {
        name: pad(getattr(old, name), room, value=pad_id if name == "tokens" else 0)
        for name in ("tokens", "logp", "logq", "value", "format_value")
    }
    return replace(part, rollouts=replace(old, **wider), baseline=pad(part.baseline, room))


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


def make_batch(rewarded: RewardedRollouts) -> Batch:
    """The leaves that count as rows for the update; advantages are still zero."""
    rollouts = rewarded.rollouts
    is_row = rewarded.update_weight.flatten() > 0
    num_problems, num_leaves = rollouts.length.shape
    problem = torch.arange(num_problems, device=is_row.device).repeat_interleave(num_leaves)

    def of_rows(x: Tensor) -> Tensor:
        return x.flatten(0, 1)[is_row]

    logp = of_rows(rollouts.logp).float()
    return Batch(
        prompts=rewarded.prompts,
        problem=problem[is_row],
        tokens=of_rows(rollouts.tokens),
        is_token=of_rows(rollouts.is_token),
        weight=of_rows(rewarded.update_weight).float(),
        accuracy=of_rows(rewarded.accuracy).float(),
        format=of_rows(rewarded.format).float(),
        reward=of_rows(rewarded.reward).float(),
        logp_old=logp,
        value=of_rows(rewarded.baseline).float(),
        advantage=torch.zeros_like(logp),
    )
