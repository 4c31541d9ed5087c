"""What negligible leaves cost the update, by `python -m benchmarks.thinning --checkpoint PATH`. It prints JSON.

The same rollouts are prepared for the update with and without thinning (`search.min_weight`), and one update of each is
timed in turn. Also reported are the weight that sits in leaves below the floor, and the variance that thinning adds to
sum w R, relative to the variance that the estimate has anyway.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from tinyzero_astar.presets import PRESETS
from tinyzero_astar.rollout.records import RewardedRollouts
from tinyzero_astar.rollout.thinning import thin_weights
from tinyzero_astar.run.build import Session
from tinyzero_astar.run.start import open_evaluation
from tinyzero_astar.training.batch import make_batch


def update_seconds(session: Session, rewarded: RewardedRollouts) -> tuple[int, int, float]:
    """Rows, tokens and seconds of one update. The learning rate is 0, so nothing changes."""
    batch = make_batch(rewarded)
    began = time.perf_counter()
    metrics = session.updater.update(batch, len(rewarded.problems), session.config.train.num_iterations)
    return len(batch.tokens), int(metrics["train/num_tokens"]), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--floor", type=float, default=PRESETS["tiny"].search.min_weight)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    session, _ = open_evaluation(PRESETS["tiny"], args.checkpoint)
    config = session.config
    problems = session.task.train_problems(0, config.train.problems_per_iteration)
    seconds: dict[str, list[float]] = {"all": [], "thinned": []}
    size: dict[str, tuple[int, int]] = {}
    below, added, own = [], [], []
    for round_ in range(args.rounds + 1):
        found = session.generator.generate(problems, session.search, seed=0, iteration=round_)
        uniform = torch.rand(found.weight.shape, generator=torch.Generator().manual_seed(round_), dtype=torch.float64)
        variants = {
            "all": replace(found, update_weight=found.weight),
            "thinned": replace(found, update_weight=thin_weights(found.weight, uniform, floor=args.floor)),
        }
        for name, variant in variants.items():
            rows, tokens, elapsed = update_seconds(session, variant)
            if round_ > 0:  # the first round warms up
                seconds[name].append(elapsed)
                size[name] = (rows, tokens)
        small = found.weight * (found.weight < args.floor)
        below.append(float(small.sum() / found.weight.sum()))
        added.append(float((small * (args.floor - small) * found.accuracy).sum(1).mean()))
        own.append(float((found.weight * found.accuracy).sum(1).var()))
    ratios = [a / b for a, b in zip(seconds["all"], seconds["thinned"], strict=True)]
    print(
        json.dumps(
            {
                "floor": args.floor,
                "rows": {name: rows for name, (rows, _) in size.items()},
                "tokens": {name: tokens for name, (_, tokens) in size.items()},
                "update_s": {name: round(statistics.median(x), 3) for name, x in seconds.items()},
                "speedup": {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2)},
                "share_of_weight_below_floor": round(statistics.mean(below), 4),
                "added_variance_over_own": round(statistics.mean(added) / statistics.mean(own), 5),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
