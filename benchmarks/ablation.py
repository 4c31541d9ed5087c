"""What search, guidance and weights are worth at equal decoded tokens: `python -m benchmarks.ablation`.

Arms on preset tiny, same problems, critic and loss: `sample` (independent rollouts), `gumbel` (without replacement,
unguided), `guided` (gumbel with the gated value model), `guided_unweighted` (the same rollouts, uniform weights: the
uncorrected way). Several seeds each. Held-out accuracy is measured every few iterations and read off, by linear
interpolation, at common budgets of decoded training tokens; mean over seeds with a 95 % interval (Student's t).
JSON out; finished runs are kept in the output folder and not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinyzero_astar.config import PRESETS, Config, SearchConfig
from tinyzero_astar.data.tasks import make_problems
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.interfaces import Problem
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.report.compare import accuracy_at
from tinyzero_astar.report.intervals import mean_of
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.rollout.records import RewardedRollouts
from tinyzero_astar.run import loop
from tinyzero_astar.run.build import build
from tinyzero_astar.training.reward import WeightedReward

ARMS = ("sample", "gumbel", "guided", "guided_unweighted")


class Unweighted(Generator):
    """The same rollouts, all leaves counted alike."""

    def generate(
        self, problems: Sequence[Problem], settings: SearchConfig, *, seed: int, iteration: int
    ) -> RewardedRollouts:
        found = super().generate(problems, settings, seed=seed, iteration=iteration)
        has_leaf = (found.rollouts.length > 0).double()
        uniform = has_leaf / has_leaf.sum(1, keepdim=True).clamp(min=1)
        return replace(found, weight=uniform, update_weight=uniform)


def configuration(arm: str, seed: int, iterations: int, model: str) -> Config:
    tiny = PRESETS["tiny"]
    mode = "sample" if arm == "sample" else "gumbel"
    strength = 1.0 if arm.startswith("guided") else 0.0
    return replace(
        tiny,
        model=replace(tiny.model, model_name=model),
        search=replace(tiny.search, mode=mode, guidance_strength=strength),
        train=replace(tiny.train, num_iterations=iterations),
        run=replace(tiny.run, seed=seed),
    )


def run(arm: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training run: held-out greedy accuracy after so many decoded tokens."""
    file: Path = args.output / f"{arm}-{seed}.json"
    if file.exists():
        record: dict[str, Any] = json.loads(file.read_text())
        return record
    config = configuration(arm, seed, args.iterations, args.model)
    session = build(config, make_problems(config), args.output, args.model, ConsoleLogger(), 0)
    if arm == "guided_unweighted":
        weights = WeightedReward(config.reward)
        generator = Unweighted(
            partial(SlotDecoder, session.policy), session.tokenizer, session.task, weights, config.model.max_seq_length
        )
        session = replace(session, generator=generator)
    tokens, curve, opened = 0, [], 0
    for iteration in range(args.iterations):
        if iteration % args.every == 0:
            curve.append((tokens, loop.measure(session, iteration).metrics["eval/greedy_accuracy"]))
        metrics, _ = loop.iterate(session, iteration)
        session.history.append(metrics)
        tokens += metrics["search/num_decoded_tokens"]
        opened += int(metrics["guidance/is_open"])
    curve.append((tokens, loop.measure(session, args.iterations).metrics["eval/greedy_accuracy"]))
    record = {"arm": arm, "seed": seed, "curve": curve, "iterations_gate_open": opened}
    file.write_text(json.dumps(record))
    return record


def summarise(values: Sequence[float]) -> dict[str, float]:
    mean = mean_of(values)
    return {"mean": round(mean.value, 4), "low": round(mean.low, 4), "high": round(mean.high, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    records = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):  # seed by seed: an interrupted study is still balanced
        for arm in ARMS:
            records[arm].append(run(arm, seed, args))
    most = min(r["curve"][-1][0] for rows in records.values() for r in rows)
    budgets = [round(most * share) for share in (0.25, 0.5, 0.75, 1.0)]
    result = {
        "what": "held-out greedy accuracy at equal decoded training tokens; mean and 95 % interval over seeds",
        "seeds": args.seeds,
        "iterations": args.iterations,
        "budgets": budgets,
        "arms": {
            arm: [summarise([accuracy_at(r["curve"], b) for r in rows]) for b in budgets]
            for arm, rows in records.items()
        },
        "guided_minus_gumbel": [
            summarise(
                [
                    accuracy_at(a["curve"], b) - accuracy_at(c["curve"], b)
                    for a, c in zip(records["guided"], records["gumbel"], strict=True)
                ]
            )
            for b in budgets
        ],
        "gumbel_minus_sample": [
            summarise(
                [
                    accuracy_at(a["curve"], b) - accuracy_at(c["curve"], b)
                    for a, c in zip(records["gumbel"], records["sample"], strict=True)
                ]
            )
            for b in budgets
        ],
        "iterations_gate_open": {arm: [r["iterations_gate_open"] for r in rows] for arm, rows in records.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
