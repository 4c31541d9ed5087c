"""Evaluation on held-out problems by greedy accuracy, sampled pass@k and format, each with a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.distributed import agree, gather, share_of, world_size
from tinyzero_astar.interfaces import Problem
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.rollout.records import RewardedRollouts, on_device

_Z95 = 1.959963984540054
_EVAL_ITERATION = 1 << 40  # the noise of evaluations, apart from that of any training iteration


@dataclass(frozen=True)
class Estimate:
    """A share of held-out problems, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:5.1f} %  [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def in_points(self) -> str:
        """A difference in percentage points, with its sign."""
        return f"{100 * self.value:+.1f}  [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def wilson(value: float, count: int) -> Estimate:
    """Wilson's score interval at 95 % for a share of `count` independent problems.

    For an average of per-problem shares it is conservative, since a variable in [0, 1] of mean p has at most the
    variance p (1 - p) of a coin. Source: Wilson 1927.
    """
    z2 = _Z95**2
    centre = (value + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 * math.sqrt(value * (1 - value) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(value, min(low, value), max(high, value))  # at 0 and 1 an end is the value, but for rounding


def paired_difference(num_gained: int, num_lost: int, count: int) -> Estimate:
    """How much larger a share of problems one way gets right than another, with its 95 % interval.

    The value is (b - c) / n. Only the b problems that the one way alone gets right, and the c that the other way alone
    does, say anything of the difference. The interval is Wald's for paired shares, with half a problem more of each of
    the four kinds (right or wrong, by either way). So it has a width where b = c = 0.

        d = (b - c) / (n + 2)
        d -+ z sqrt((b + c + 1) / (n + 2) - d^2) / sqrt(n + 2)

    Source: Agresti and Min 2005.

    Args:
        num_gained: b.
        num_lost: c.
        count: n, b + c or more.
    """
    centre = (num_gained - num_lost) / (count + 2)
    half = _Z95 * math.sqrt(((num_gained + num_lost + 1) / (count + 2) - centre**2) / (count + 2))
    return Estimate((num_gained - num_lost) / count, max(-1.0, centre - half), min(1.0, centre + half))


def pass_at_k(num_correct: Tensor, num_samples: int, k: int) -> Tensor:
    """Unbiased probability that one of k samples is correct, 1 - C(n - c, k) / C(n, k), per problem.

    Source: Chen et al. 2021, eq. 1.

    Args:
        num_correct: [P] correct among the samples, c.
        num_samples: n >= k.
        k: samples allowed.
    """
    misses = [math.comb(num_samples - int(c), k) / math.comb(num_samples, k) for c in num_correct]
    return 1.0 - torch.tensor(misses, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Evaluation:
    """What was measured. `estimates` has the names of docs/metrics.md."""

    estimates: dict[str, Estimate]
    mean_length: float | None  # of sampled completions, None if there were none
    num_problems: int
    greedy: list[RewardedRollouts]

    def metrics(self) -> dict[str, float]:
        """Flat numbers for the log, intervals included."""
        flat: dict[str, float] = {"eval/num_problems": self.num_problems}
        if self.mean_length is not None:
            flat["eval/mean_length"] = self.mean_length
        for name, estimate in self.estimates.items():
            flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return flat


def evaluate(
    generator: Generator,
    problems: Sequence[Problem],
    settings: SearchConfig,
    *,
    num_samples: int,
    max_rows: int,
) -> Evaluation:
    """Greedy and sampled completions of every problem, judged. Each rank decodes its share of them.

    Args:
        generator: of the policy to evaluate, unsharded.
        problems: held out.
        settings: for the depth limit. Sampling is always independent, whatever the training mode.
        num_samples: sampled completions per problem. With 0 only the greedy ones are decoded, and sampled measures are
            left out.
        max_rows: sequences decoded at once.
    """
    sampling = settings.one_by_one("sample", num_samples)
    own, count = share_of(problems), len(problems)

    def decode() -> tuple[list[RewardedRollouts], list[RewardedRollouts]]:
        return (
            [generator.greedy(chunk, settings.max_search_depth) for chunk in _chunks(own, max_rows)],
            [
                generator.generate(chunk, sampling, seed=0, iteration=_EVAL_ITERATION)
                for chunk in (_chunks(own, max(1, max_rows // num_samples)) if num_samples > 0 else [])
            ],
        )

    greedy, sampled = (_from_all_ranks(parts) for parts in agree(decode))

    def share(values: Tensor) -> Estimate:
        return wilson(float(values.mean()), count)

    estimates = {
        "eval/greedy_accuracy": share(torch.cat([g.accuracy[:, 0] for g in greedy])),
        "eval/greedy_format": share(torch.cat([g.format[:, 0] for g in greedy])),
    }
    if num_samples == 0:
        return Evaluation(estimates, None, count, greedy)
    estimates["eval/sampled_format"] = share(torch.cat([s.format.mean(1) for s in sampled]))
    num_correct = torch.cat([s.accuracy.sum(1) for s in sampled])
    k = 1
    while k <= num_samples:
        estimates[f"eval/pass_at_{k}"] = share(pass_at_k(num_correct, num_samples, k))
        k *= 2
    length = torch.cat([s.rollouts.length.double().mean(1) for s in sampled]).mean()
    return Evaluation(estimates, float(length), count, greedy)


def _from_all_ranks(parts: list[RewardedRollouts]) -> list[RewardedRollouts]:
    if world_size() == 1:
        return parts
    found = gather([on_device(part, torch.device("cpu")) for part in parts])
    return [part for own in found for part in own]


def _chunks(problems: Sequence[Problem], size: int) -> list[Sequence[Problem]]:
    return [problems[i : i + size] for i in range(0, len(problems), size)]
