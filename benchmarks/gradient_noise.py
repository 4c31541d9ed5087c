"""How noisy an update's gradient is, by `python -m benchmarks.gradient_noise CHECKPOINT …`. It prints a table and JSON.

For every arm of a study (`benchmarks/studies/middle.toml`) some updates are made from the same weights, each with other
problems and other search noise, and none of them changes anything. Their gradients g are those of all parameters of the
policy, without clipping. Reported are

    noise     N = E |g - E g|²               from R updates, divided by R - 1
    signal    S = |E g|² = |mean g|² - N / R   unbiased, may be negative where noise is large
    SNR       S / N                            of one update, whatever the scale of the loss

and SNR per thousand tokens, which are prompts and decoded ones. Intervals are percentiles over random halves of the
updates, since their spread is that of all of them (delete-half jackknife, Shao and Wu 1989). An arm that is guided is
guided here whatever its gate would say.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tinyzero_astar.config import Config
from tinyzero_astar.config_json import with_options
from tinyzero_astar.data.tasks import make_problems
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.rollout.records import num_prompt_tokens
from tinyzero_astar.run.build import Session, build
from tinyzero_astar.run.checkpoint import load_trainer
from tinyzero_astar.study.plan import read_study
from tinyzero_astar.training.batch import make_batch

RESAMPLES = 2000


def gradients(session: Session, updates: int, seed: int) -> tuple[Tensor, float]:
    """The gradient of each update, [R, number of parameters] float32, and the mean tokens that one took."""
    found: list[Tensor] = []
    optimizer, tokens = session.updater.policy_optimizer, 0

    def keep() -> None:
        found.append(torch.cat([p.grad.flatten() for p in optimizer.stepped if p.grad is not None]))

    optimizer.step = keep  # type: ignore[method-assign]
    session.updater.value = None  # nothing is learned here
    for number in range(updates):
        problems = session.task.train_problems(number, session.config.train.problems_per_iteration)
        rewarded = session.generator.generate(problems, session.search, seed=seed, iteration=number)
        tokens += int(rewarded.rollouts.stats.num_decoded_tokens.sum()) + num_prompt_tokens(rewarded, session.search)
        batch = make_batch(rewarded)
        if len(batch.tokens) > 0:
            session.updater.update(batch, len(problems), 0)
    return torch.stack(found), tokens / updates


def snr(gram: Tensor, drawn: Sequence[int] | None = None) -> tuple[float, float, float]:
    """Signal S, noise N and S / N, from inner products of gradients [R, R].

    Args:
        gram: of the updates.
        drawn: numbers of some of them, None for all.
    """
    index = torch.arange(len(gram)) if drawn is None else torch.tensor(drawn)
    own, count = gram[index][:, index].double(), len(index)
    mean = float(own.mean())
    noise = (float(own.diagonal().mean()) - mean) * count / (count - 1)
    signal = mean - noise / count
    return signal, noise, signal / noise


def interval(gram: Tensor, tokens: float) -> dict[str, float]:
    """SNR per thousand tokens, with a 95 % interval, and what it is made of."""
    rng, count = random.Random(0), len(gram)
    values = sorted(snr(gram, rng.sample(range(count), count // 2))[2] for _ in range(RESAMPLES))
    signal, noise, ratio = snr(gram)
    scale = 1000 / tokens
    return {
        "signal": signal,
        "noise": noise,
        "snr": ratio,
        "tokens": tokens,
        "snr_per_1k_tokens": ratio * scale,
        "low": values[int(0.025 * len(values))] * scale,
        "high": values[-1 - int(0.025 * len(values))] * scale,
    }


def session_of(config: Config, checkpoint: Path) -> Session:
    """An arm with the weights and the value model of a checkpoint."""
    config = with_options(config, {"train.max_grad_norm": 1e6, "model.model_name": str(checkpoint)})
    with redirect_stdout(sys.stderr):  # what is printed is a table
        session = build(config, make_problems(config), Path(), str(checkpoint), ConsoleLogger(), 0)
    load_trainer(checkpoint, session.policy, {})
    return session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--study", type=Path, default=Path("benchmarks/studies/middle.toml"))
    parser.add_argument("--arms", nargs="+", help="of the study, by default all that need no reference")
    parser.add_argument("--updates", type=int, default=24, help="R, of each arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file for the JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = read_study(args.study)
    configs = study.configs[study.tasks[0]]
    arms = args.arms or [arm for arm, c in configs.items() if c.train.algorithm != "optimal_advantage"]
    result: dict[str, dict[str, dict[str, float]]] = {}
    for checkpoint in args.checkpoints:
        own = result[str(checkpoint)] = {}
        print(f"\n{checkpoint}\n{'arm':24s} {'SNR':>9s} {'tokens':>7s}  SNR per 1 k tokens")
        for arm in arms:
            config = replace(configs[arm], run=replace(configs[arm].run, seed=args.seed))
            found, tokens = gradients(session_of(config, checkpoint), args.updates, args.seed)
            own[arm] = told = interval(found @ found.T, tokens)
            ends = f"{told['snr_per_1k_tokens']:8.4f} [{told['low']:.4f}, {told['high']:.4f}]"
            print(f"{arm:24s} {told['snr']:9.4f} {tokens:7.0f}  {ends}", flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps({"updates": args.updates, "seed": args.seed, "of": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
