"""Search, decoder and task put together: problems in, rewarded rollouts out.

A problem's search noise is a hash of the run's seed, the iteration and the problem's id. Nothing here keeps a random
state. So a resumed run continues exactly, and the order or grouping of problems does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.data.text import prompt_tokens, room_after
from tinyzero_astar.interfaces import Decoder, Problem, Reward, Rollouts, Task, Trace
from tinyzero_astar.rollout.astar_search import Forest, astar_rollouts, greedy_rollouts
from tinyzero_astar.rollout.records import NO_LEAF, RewardedRollouts
from tinyzero_astar.rollout.thinning import thin_weights
from tinyzero_astar.search.gumbel import hash_number, hash_with, to_uniform
from tinyzero_astar.search.heuristic import Guidance, log_root_tilt

# keep the choice of unguided problems and of thinned leaves apart from the search noise
UNGUIDED_STREAM, THINNING_STREAM = 0x5EED, 0x7417


class Generator:
    """Finds and judges rollouts.

    Args:
        decoder_fn: makes the decoder of one search, for completions of at most so many tokens.
        tokenizer: of the decoder's network.
        task: verifies completions.
        reward: what a verdict is worth.
        max_seq_length: bound on prompt and completion together, tokens.
    """

    def __init__(
        self,
        decoder_fn: Callable[[int], Decoder],
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        reward: Reward,
        max_seq_length: int,
    ) -> None:
        self.decoder_fn, self._tokenizer, self._task = decoder_fn, tokenizer, task
        self._reward, self._max_seq_length = reward, max_seq_length

    def generate(
        self,
        problems: Sequence[Problem],
        settings: SearchConfig,
        *,
        seed: int,
        iteration: int,
        trace: Trace | None = None,
    ) -> RewardedRollouts:
        """Search every problem with the noise of (seed, iteration, problem id). `trace` receives nodes."""
        seeds = problem_seeds(problems, seed, iteration)
        share = to_uniform(hash_with(seeds, torch.tensor(UNGUIDED_STREAM, device="cpu")))
        strength = torch.where(share < settings.unguided_fraction, 0.0, settings.guidance_strength)
        prompts, depth = self.encode(problems, settings.max_search_depth)
        log_tilt = self._log_tilt(prompts, settings) if settings.root_tilt > 0 else None
        rollouts = astar_rollouts(
            self.decoder_fn(depth),
            prompts,
            seeds=seeds,
            num_rollouts=settings.num_rollouts_per_problem,
            beam_width=settings.beam_width,
            max_search_depth=depth,
            mode=settings.mode,
            guidance=replace(guidance_of(settings), strength=strength),
            forest=Forest(settings.problems_per_search, log_tilt),
            trace=trace,
        )
        return self._judge(problems, prompts, rollouts, seeds, settings.min_weight)

    def greedy(self, problems: Sequence[Problem], max_search_depth: int) -> RewardedRollouts:
        """The greedy completion of every problem."""
        prompts, depth = self.encode(problems, max_search_depth)
        rollouts = greedy_rollouts(self.decoder_fn(depth), prompts, depth)
        return self._judge(problems, prompts, rollouts, problem_seeds(problems, 0, 0), 0.0)

    def encode(self, problems: Sequence[Problem], max_search_depth: int) -> tuple[list[list[int]], int]:
        """The prompts as tokens, and how many more tokens the longest leaves room for, up to a limit.

        Raises:
            ValueError: there is no room.
        """
        prompts = prompt_tokens(self._tokenizer, [problem.prompt for problem in problems])
        return prompts, room_after(max(len(p) for p in prompts), self._max_seq_length, max_search_depth)

    def _log_tilt(self, prompts: Sequence[Sequence[int]], settings: SearchConfig) -> Tensor:
        """[P] log(M q(x)) of the problems, from the value model's estimates at their prompts, one search at a time."""
        size, tilts = settings.problems_per_search, []
        assert settings.weight_cap is not None  # or `config.check` refuses
        for first in range(0, len(prompts), size):
            home = torch.arange(size, device="cpu")
            said = self.decoder_fn(1).start(prompts[first : first + size], home).value_logit
            tilts.append(log_root_tilt(said, settings.weight_cap**settings.root_tilt))
        return torch.cat(tilts).cpu()

    def _judge(
        self,
        problems: Sequence[Problem],
        prompts: list[list[int]],
        rollouts: Rollouts,
        seeds: Tensor,
        min_weight: float,
    ) -> RewardedRollouts:
        texts, verdicts, has_leaf = [], [], rollouts.length > 0
        length = (rollouts.length - rollouts.is_finished.long()).tolist()  # without eos
        for i, (problem, rows) in enumerate(zip(problems, rollouts.tokens.tolist(), strict=True)):
            own = self._tokenizer.batch_decode(
                [row[:n] for row, n in zip(rows, length[i], strict=True)], skip_special_tokens=False
            )
            finished = rollouts.is_finished[i].tolist()
            texts.append(own)
            verdicts.append(
                [
                    self._task.verify(problem, text, is_finished) if is_leaf else NO_LEAF
                    for text, is_finished, is_leaf in zip(own, finished, has_leaf[i].tolist(), strict=True)
                ]
            )

        def table(values: list[list[float]]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=rollouts.length.device)

        uniform = has_leaf / has_leaf.sum(1, keepdim=True).clamp(min=1).double()
        weight = torch.where(rollouts.weight.isnan(), uniform, rollouts.weight)
        leaf = torch.arange(weight.shape[1], device="cpu") + THINNING_STREAM
        noise = to_uniform(hash_with(seeds[:, None], leaf)).to(weight.device)
        return RewardedRollouts(
            problems=list(problems),
            prompts=prompts,
            rollouts=rollouts,
            texts=texts,
            verdicts=verdicts,
            accuracy=table([[float(v.accuracy) for v in row] for row in verdicts]),
            grade=table([[v.grade for v in row] for row in verdicts]),
            format=table([[float(v.format) for v in row] for row in verdicts]),
            reward=table([[self._reward(v) for v in row] for row in verdicts]),
            weight=weight,
            update_weight=thin_weights(weight, noise, floor=min_weight),
        )


def guidance_of(settings: SearchConfig) -> Guidance:
    """How the heuristic enters a search."""
    return Guidance(
        inverse_beta=settings.inverse_beta,
        max_inverse_beta=settings.max_inverse_beta,
        cap=settings.weight_cap,
        strength=settings.guidance_strength,
    )


def problem_seeds(problems: Sequence[Problem], seed: int, iteration: int) -> Tensor:
    """A hash of the run's seed, the iteration and each problem's id, int64 [P] on the CPU."""
    state = hash_with(hash_number(torch.tensor(seed, device="cpu")), torch.tensor(iteration, device="cpu"))
    return hash_with(state, torch.tensor([p.id for p in problems], device="cpu"))
