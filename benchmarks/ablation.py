"""What search, forest and guidance are worth at equal cost, by `python -m benchmarks.ablation`. It prints JSON.

Each arm is preset tiny with some fields changed, trained with the same seeds. Held-out greedy accuracy is measured
every few iterations. It is interpolated linearly at common budgets of decoded training tokens and of CPU seconds of
training (search and update, one thread, without evaluations). The result is the mean over seeds and the difference from
one arm, paired by seed, with 95 % intervals (Student's t). Finished runs are kept in the output folder and not
repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tinyzero_astar.config import Config
from tinyzero_astar.config_checks import check
from tinyzero_astar.data.tasks import make_problems
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.interfaces import Problem
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.report import compare as report
from tinyzero_astar.report.intervals import mean_of
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.rollout.records import RewardedRollouts
from tinyzero_astar.run import loop
from tinyzero_astar.run.build import build
from tinyzero_astar.training.reward import WeightedReward

REACHED = 0.95  # accuracy whose cost is told
Changes = Mapping[str, object]

UNGUIDED = {"search.guidance_strength": 0.0, "search.root_tilt": 0.0}
EIGHT = UNGUIDED | {  # 256 leaves an iteration, eight of a problem, which is searched alone
    "search.num_rollouts_per_problem": 8,
    "search.problems_per_search": 1,
    "train.problems_per_iteration": 32,
    "train.batch_size": 16,
    "train.num_iterations": 30,
    "train.learning_rate": 3e-4,
    "train.warmup_iterations": 1,
}
ONE = UNGUIDED | {  # 64 leaves an iteration, one per problem on average
    "search.num_rollouts_per_problem": 1,
    "search.problems_per_search": 1,
    "train.problems_per_iteration": 64,
    "train.batch_size": 64,
    "train.num_iterations": 50,
    "train.learning_rate": 2e-4,
    "train.warmup_iterations": 1,
}
SAMPLED, GUIDED, TILTED = {"search.mode": "sample"}, {"search.guidance_strength": 1.0}, {"search.root_tilt": 0.5}
FOREST = ONE | {"search.problems_per_search": 32}
SMALL = {"train.num_iterations": 30, "train.learning_rate": 3e-4}  # 32 leaves an iteration
SMALL_ONE = ONE | SMALL | {"train.problems_per_iteration": 32, "train.batch_size": 32}
SMALL_FOUR = (
    EIGHT
    | SMALL
    | {
        "search.num_rollouts_per_problem": 4,
        "train.problems_per_iteration": 8,
        "train.batch_size": 8,
    }
)
ARMS: dict[str, Changes] = {
    "searched_32x8_guided": EIGHT | GUIDED,
    "searched_32x8": EIGHT,
    "sampled_32x8": EIGHT | SAMPLED,
    "grpo_32x8": EIGHT | SAMPLED | {"train.algorithm": "grpo"},
    "sampled_64x1": ONE | SAMPLED,
    "forest": FOREST,
    "forest_tilted": FOREST | TILTED,
    "forest_guided": FOREST | GUIDED,
    "forest_tilted_guided": FOREST | TILTED | GUIDED,
    "searched_32x8_guided_unweighted": EIGHT | GUIDED,
    "small_forest": SMALL_ONE | {"search.problems_per_search": 32},
    "small_forest_8x4": SMALL_FOUR | {"search.problems_per_search": 8},
    "small_searched_8x4": SMALL_FOUR,
    "small_sampled_32x1": SMALL_ONE | SAMPLED,
    "small_sampled_8x4": SMALL_FOUR | SAMPLED,
}
RATES = (1e-4, 2e-4, 3e-4, 4e-4)  # of the sweep for preset tiny, which has the second
ARMS |= {f"rate_{rate:.0e}": ARMS["forest_tilted_guided"] | {"train.learning_rate": rate} for rate in RATES}
LARGER = ARMS["forest_tilted_guided"] | {  # twice the leaves a step, in fewer steps
    "train.problems_per_iteration": 128,
    "train.batch_size": 128,
    "search.problems_per_search": 64,
    "train.num_iterations": 30,
}
ARMS |= {f"larger_rate_{rate:.0e}": LARGER | {"train.learning_rate": rate} for rate in RATES[2:]}
UNWEIGHTED = "_unweighted"  # the same rollouts with uniform weights, which is the uncorrected way


class Unweighted(Generator):
    """The same rollouts, all leaves counted alike."""

    def generate(self, problems: Sequence[Problem], settings: Any, *, seed: int, iteration: int) -> RewardedRollouts:
        found = super().generate(problems, settings, seed=seed, iteration=iteration)
        has_leaf = (found.rollouts.length > 0).double()
        uniform = has_leaf / has_leaf.sum(1, keepdim=True).clamp(min=1)
        return replace(found, weight=uniform, update_weight=uniform)


def configuration(changes: Changes, seed: int, model: str) -> Config:
    """Preset tiny with fields such as search.mode changed."""
    config = PRESETS["tiny"]
    for name, value in {**changes, "run.seed": seed, "model.model_name": model}.items():
        section, field = name.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    check(config)
    return config


def run(arm: str, changes: Changes, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training run, with its metrics, and held-out greedy accuracy after so many decoded tokens and seconds."""
    file: Path = args.output / f"{arm}-{seed}.json"
    if file.exists():
        record: dict[str, Any] = json.loads(file.read_text())
        return record
    config = configuration(changes, seed, args.model)
    last = config.train.num_iterations
    with redirect_stdout(sys.stderr):  # what is printed is JSON
        session = build(config, make_problems(config), args.output, args.model, ConsoleLogger(), 0)
    if arm.endswith(UNWEIGHTED):
        weights = WeightedReward(config.reward)
        generator = Unweighted(
            partial(SlotDecoder, session.policy), session.tokenizer, session.task, weights, config.model.max_seq_length
        )
        session = replace(session, generator=generator)
    tokens, seconds, curve, records = 0, 0.0, [], []
    for iteration in range(last + 1):
        if iteration % max(1, last // args.evaluations) == 0 or iteration == last:
            curve.append((tokens, seconds, loop.measure(session, iteration).metrics["eval/greedy_accuracy"]))
        if iteration == last:
            break
        began = time.process_time()
        metrics, _ = loop.iterate(session, iteration)
        seconds += time.process_time() - began
        session.history.append(metrics)
        tokens += metrics["search/num_decoded_tokens"]
        records.append({k: v for k, v in metrics.items() if isinstance(v, (int, float))})
    record = {"arm": arm, "seed": seed, "curve": curve, "metrics": records}
    file.write_text(json.dumps(record))
    return record


def accuracy_at(curve: Sequence[Sequence[float]], column: int, budget: float) -> float:
    """Linear interpolation between the two evaluations around a budget, nan beyond the last."""
    points = [(row[column], row[2]) for row in curve]
    return report.accuracy_at(points, budget) if budget <= points[-1][0] else math.nan


def cost_of(curve: Sequence[Sequence[float]], column: int, accuracy: float) -> float | None:
    """What it took until an accuracy was first reached, by linear interpolation. None if it never was."""
    for before, after in itertools.pairwise(curve):
        if after[-1] >= accuracy:
            share = (accuracy - before[-1]) / (after[-1] - before[-1])
            return before[column] + (after[column] - before[column]) * share
    return None


def summarise(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % interval, as far as they are known. Nothing where a run did not get so far."""
    if any(math.isnan(x) for x in values):
        return {"mean": None, "low": None, "high": None}
    mean = mean_of(values)
    return {name: x if x is None else round(x, 4) for name, x in zip(("mean", "low", "high"), mean, strict=True)}


def table(records: Mapping[str, Sequence[Mapping[str, Any]]], column: int, budgets: Sequence[float], base: str) -> Any:
    """Accuracy of every arm at every budget, and its difference from the base arm, seed by seed."""
    found = {
        arm: [[accuracy_at(r["curve"], column, b) for r in rows] for b in budgets] for arm, rows in records.items()
    }
    return {
        arm: {
            "accuracy": [summarise(values) for values in rows],
            "minus_base": [
                summarise([x - y for x, y in zip(values, others, strict=True)])
                for values, others in zip(rows, found[base], strict=True)
            ],
        }
        for arm, rows in found.items()
    }


def draw(records: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Mean accuracy over tokens and over seconds, as far as all seeds of an arm go."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for column, (axes, unit) in enumerate(zip(both, ("decoded tokens, thousands", "CPU seconds"), strict=True)):
        for arm, rows in records.items():
            last = min(r["curve"][-1][column] for r in rows)
            grid = [last * i / 60 for i in range(61)]
            mean = [100 * statistics.fmean(accuracy_at(r["curve"], column, x) for r in rows) for x in grid]
            axes.plot([x / (1 if column else 1000) for x in grid], mean, label=arm.replace("_", " "))
        axes.set(xlabel=unit, ylim=(60, 100))
        axes.grid(alpha=0.3)
    both[0].set(ylabel=f"held-out greedy accuracy, %, mean of {len(next(iter(records.values())))} seeds")
    both[1].legend(loc="lower right", frameon=False, fontsize="small")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    usual = [arm for arm in ARMS if not arm.startswith(("small_", "rate_", "larger_"))]
    parser.add_argument("--arms", nargs="+", default=usual, choices=list(ARMS))
    parser.add_argument("--base", default="searched_32x8_guided", help="the arm that others are compared with")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=10, help="of a run, besides the base")
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 22_000, 40_000, 57_000, 91_000, 130_000])
    parser.add_argument("--seconds", type=float, nargs="+", default=[2, 4, 8, 12, 16, 20])
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--picture", type=Path, help="also draw the mean curves, as PNG")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    records: dict[str, list[dict[str, Any]]] = {arm: [] for arm in dict.fromkeys([args.base, *args.arms])}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for seed in seeds:  # seed by seed, so that an interrupted study is still balanced
        for arm, rows in records.items():
            rows.append(run(arm, ARMS[arm], seed, args))
    result = {
        "what": "held-out greedy accuracy, mean over seeds with 95 % interval; differences are paired by seed",
        "base": args.base,
        "seeds": list(seeds),
        "tokens": args.tokens,
        "at_tokens": table(records, 0, args.tokens, args.base),
        "seconds": args.seconds,
        "at_seconds": table(records, 1, args.seconds, args.base),
        "at_the_end": {arm: summarise([r["curve"][-1][2] for r in rows]) for arm, rows in records.items()},
        f"tokens_to_{REACHED}": {arm: [cost_of(r["curve"], 0, REACHED) for r in rows] for arm, rows in records.items()},
        f"seconds_to_{REACHED}": {
            arm: [cost_of(r["curve"], 1, REACHED) for r in rows] for arm, rows in records.items()
        },
        "iterations_gate_open": {
            arm: [sum(m["guidance/is_open"] for m in r["metrics"]) for r in rows] for arm, rows in records.items()
        },
    }
    if args.picture is not None:
        draw(records, args.picture)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
