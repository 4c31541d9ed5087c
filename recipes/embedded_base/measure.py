"""What a base model can and cannot do on held-out questions, by `python -m recipes.embedded_base.measure`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from recipes.embedded_base.corpora import CORPORA
from tinyzero_astar.config import RewardConfig
from tinyzero_astar.data.tasks import make_task
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.eval.evaluate import pass_at_k, wilson
from tinyzero_astar.interfaces import Problem
from tinyzero_astar.model.loading import end_tokens, load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.report.intervals import mean_of
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.training.reward import WeightedReward

_ITERATION = 1 << 40  # of the noise, the same as that of evaluations
_MAX_ROWS = 512  # sequences decoded at once


def measure(
    model_name: str, num_problems: int, num_samples: int, corpus: str = "multiplication"
) -> dict[str, tuple[float, float, float]]:
    """Greedy accuracy and format, sampled pass@k up to `num_samples`, and sampled format.

    Each is the mean over problems with its 95 % interval. Greedy shares have Wilson's. The others have Student's over
    problems, cut to 0 and 1.
    """
    config = PRESETS["tiny"]
    model, tokenizer = load_language_model(model_name, torch.float32)
    policy = Policy(model, end_tokens(model), config.value.hidden_size)
    task = make_task(replace(CORPORA[corpus].data, num_problems=1), 0)
    generator = Generator(
        partial(SlotDecoder, policy), tokenizer, task, WeightedReward(RewardConfig()), config.model.max_seq_length
    )
    problems = task.held_out_problems(num_problems)
    depth = CORPORA[corpus].depth
    sampling = replace(config.search.one_by_one("sample", num_samples), max_search_depth=depth)
    greedy = [generator.greedy(part, depth) for part in _parts(problems, _MAX_ROWS)]
    sampled = [
        generator.generate(part, sampling, seed=0, iteration=_ITERATION)
        for part in _parts(problems, max(1, _MAX_ROWS // num_samples))
    ]
    shares = {
        "greedy_accuracy": torch.cat([part.accuracy[:, 0] for part in greedy]),
        "greedy_format": torch.cat([part.format[:, 0] for part in greedy]),
    }
    num_right = torch.cat([part.accuracy.sum(1) for part in sampled])
    means = {"sampled_format": torch.cat([part.format.mean(1) for part in sampled])}
    means |= {f"pass_at_{1 << i}": pass_at_k(num_right, num_samples, 1 << i) for i in range(num_samples.bit_length())}
    return {name: _share(values) for name, values in shares.items()} | {
        name: _mean(values) for name, values in means.items()
    }


def _share(values: Tensor) -> tuple[float, float, float]:
    share = wilson(float(values.mean()), len(values))
    return share.value, share.low, share.high


def _mean(values: Tensor) -> tuple[float, float, float]:
    mean = mean_of(values.tolist())
    low, high = (mean.value if end is None else end for end in (mean.low, mean.high))
    return mean.value, max(0.0, low), min(1.0, high)


def _parts(problems: Sequence[Problem], size: int) -> list[Sequence[Problem]]:
    return [problems[i : i + size] for i in range(0, len(problems), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--corpus", choices=tuple(CORPORA), default="multiplication")
    parser.add_argument("--num-problems", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.model, args.num_problems, args.num_samples, args.corpus)
    for name, values in found.items():
        print(f"{name:16} {100 * values[0]:6.2f} %  [{100 * values[1]:.2f}, {100 * values[2]:.2f}]")


if __name__ == "__main__":
    main()
