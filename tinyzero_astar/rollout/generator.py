"""Search, policy and task put together: problems in, rewarded rollouts out.

A problem's search noise is a hash of the run's seed, the iteration and the problem's id; nothing here keeps a
random state, so a resumed run continues exactly and the order or grouping of problems does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyzero_astar.interfaces import Batch, Problem, Rollouts, SearchMode, Task, Verdict
from tinyzero_astar.model.decoder import SlotDecoder
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts, greedy_rollouts
from tinyzero_astar.rollout.gumbel import fold, mix64
from tinyzero_astar.training.reward import RewardWeights, reward

_UNGUIDED_STREAM = 0x5EED  # keeps the choice of unguided problems apart from their search noise


@dataclass(frozen=True)
class SearchSettings:
    """Arguments of `astar_rollouts` that do not change from call to call."""

    mode: SearchMode
    num_rollouts: int
    beam_width: int
    max_search_depth: int
    guidance: Guidance
    unguided_fraction: float


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
    weight: Tensor  # what the update uses: the search's weights, uniform where it has none


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
        share = fold(seeds, torch.tensor(_UNGUIDED_STREAM)).remainder(1 << 20).double() / (1 << 20)
        strength = torch.where(share < settings.unguided_fraction, 0.0, settings.guidance.strength)
        prompts, depth = self._encode(problems, settings.max_search_depth)
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
        return self._judge(problems, prompts, rollouts)

    def greedy(self, problems: Sequence[Problem], max_search_depth: int) -> RewardedRollouts:
        """The greedy completion of every problem."""
        prompts, depth = self._encode(problems, max_search_depth)
        return self._judge(problems, prompts, greedy_rollouts(SlotDecoder(self._policy, depth), prompts, depth))

    def _encode(self, problems: Sequence[Problem], max_search_depth: int) -> tuple[list[list[int]], int]:
        prompts = [list(ids) for ids in self._tokenizer([p.prompt for p in problems])["input_ids"]]
        longest = max(len(p) for p in prompts)
        room = self._max_seq_length - longest
        if room < 1:
            raise ValueError(
                f"max_seq_length {self._max_seq_length} leaves no room after a prompt of {longest} tokens:"
                f" raise it to {longest + max_search_depth} for completions of max_search_depth tokens"
            )
        return prompts, min(max_search_depth, room)

    def _judge(
        self, problems: Sequence[Problem], prompts: list[list[int]], rollouts: Rollouts
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
        return RewardedRollouts(
            problems=list(problems),
            prompts=prompts,
            rollouts=rollouts,
            texts=texts,
            verdicts=verdicts,
            accuracy=table([[float(v.accuracy) for v in row] for row in verdicts]),
            format=table([[float(v.format) for v in row] for row in verdicts]),
            reward=table([[reward(v, weights) for v in row] for row in verdicts]),
            weight=torch.where(rollouts.weight.isnan(), uniform, rollouts.weight),
        )


def problem_seeds(problems: Sequence[Problem], seed: int, iteration: int) -> Tensor:
    """int64 [P]: a hash of the run's seed, the iteration and each problem's id."""
    state = fold(mix64(torch.tensor(seed)), torch.tensor(iteration))
    return fold(state, torch.tensor([p.id for p in problems]))


def make_batch(rewarded: RewardedRollouts, pad_id: int) -> Batch:
    """The leaves of all problems as rows for the update; values and advantages are still zero."""
    rollouts = rewarded.rollouts
    has_leaf = rollouts.length.flatten() > 0
    num_leaves = rollouts.length.shape[1]
    problem = torch.arange(len(rewarded.prompts), device=has_leaf.device).repeat_interleave(num_leaves)[has_leaf]
    tokens = rollouts.tokens.flatten(0, 1)[has_leaf]
    is_token = rollouts.is_token.flatten(0, 1)[has_leaf]
    prompt_length = torch.tensor([len(p) for p in rewarded.prompts], device=tokens.device)[problem]
    longest = int(prompt_length.max()) + tokens.shape[1]
    ids = torch.full((len(problem), longest), pad_id, dtype=torch.int64, device=tokens.device)
    for row, index in enumerate(problem.tolist()):
        prompt = rewarded.prompts[index]
        ids[row, : len(prompt)] = torch.tensor(prompt, device=tokens.device)
        ids[row, len(prompt) : len(prompt) + tokens.shape[1]] = torch.where(is_token[row], tokens[row], pad_id)
    logp = rollouts.logp.flatten(0, 1)[has_leaf].float()
    empty = torch.zeros_like(logp)
    return Batch(
        ids=ids,
        prompt_length=prompt_length,
        tokens=tokens,
        is_token=is_token,
        problem=problem,
        weight=rewarded.weight.flatten()[has_leaf].float(),
        accuracy=rewarded.accuracy.flatten()[has_leaf].float(),
        format=rewarded.format.flatten()[has_leaf].float(),
        reward=rewarded.reward.flatten()[has_leaf].float(),
        logp_sampler=logp,
        logp_old=empty,
        value=empty,
        advantage=empty,
    )
