"""Decode and update throughput side by side, by `python -m benchmarks.throughput`. It prints JSON.

The three search modes and Hugging Face's `generate` use the same model, problems, depth limit and number of rows. They
are measured in turn within one process, in several rounds, as medians and ranges. `generate` samples from the same
distribution as the policy (top_k=0 and top_p=1.0, since its default top_k of 50 would not be the policy).

There are two counts of tokens. Completion tokens are those of the completions up to and including their end, not the
padding after it. They compare `sample` with `generate`. Decoded tokens are those that the model was run on, which
leaves out ends and counts a shared prefix once and a dropped one as well. They compare the search modes with each
other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from functools import partial
from typing import NamedTuple

import torch
import transformers

from tinyzero_astar.config import DataConfig, RewardConfig, SearchConfig, TrainConfig, ValueConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.model.loading import end_tokens, load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.resources.allocator import keep_freed_memory
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.batch import make_batch
from tinyzero_astar.training.reward import WeightedReward
from tinyzero_astar.training.update import Updater

WAYS = ("sample", "gumbel", "gumbel_guided", "best_first", "generate", "update")


class Run(NamedTuple):
    seconds: float
    completion_tokens: int
    decoded_tokens: int


class Bench:
    """One model, one set of problems, every way of decoding. Each method returns a `Run`."""

    def __init__(self, model_name: str, rows: int, num_rollouts: int, depth: int) -> None:
        self.model_name, self.num_rollouts, self.depth = model_name, num_rollouts, depth
        self.model, self.tokenizer = load_language_model(model_name, torch.float32)
        self.model.eval()
        self.config = PRESETS["tiny"]
        self.policy = Policy(self.model, end_tokens(self.model), self.config.value.hidden_size)
        # a value model with something to say, which the budget holds back at some prefix of most steps
        torch.nn.init.normal_(self.policy.value_model.up.weight, std=0.3)
        task = Multiplication(DataConfig(num_problems=2000), seed=0)
        self.generator = Generator(
            partial(SlotDecoder, self.policy), self.tokenizer, task, WeightedReward(RewardConfig()), 512
        )
        self.problems = task.train_problems(0, rows // num_rollouts)
        plain = SearchConfig(
            mode="sample",
            num_rollouts_per_problem=num_rollouts,
            beam_width=num_rollouts + 1,
            max_search_depth=depth,
            guidance_strength=0.0,
            unguided_fraction=0.0,
            min_weight=0.0,
        )
        self.modes = {
            "sample": plain,
            "gumbel": dataclasses.replace(plain, mode="gumbel"),
            "gumbel_guided": dataclasses.replace(plain, mode="gumbel", guidance_strength=1.0),
            "best_first": dataclasses.replace(plain, mode="best_first"),
        }

    def run(self, name: str, round_: int) -> Run:
        if name == "generate":
            return self.generate(round_)
        return self.update() if name == "update" else self.search(self.modes[name], round_)

    def search(self, settings: SearchConfig, round_: int) -> Run:
        began = time.perf_counter()
        rewarded = self.generator.generate(self.problems, settings, seed=0, iteration=round_)
        seconds, rollouts = time.perf_counter() - began, rewarded.rollouts
        return Run(seconds, int(rollouts.length.sum()), int(rollouts.stats.num_decoded_tokens.sum()))

    def generate(self, round_: int) -> Run:
        torch.manual_seed(round_)
        texts = [p.prompt for p in self.problems for _ in range(self.num_rollouts)]
        inputs = self.tokenizer(texts, return_tensors="pt")
        began = time.perf_counter()
        with torch.no_grad():
            output = self.model.generate(
                **inputs, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=self.depth
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        self.tokenizer.batch_decode(new)  # the search decodes its texts within the measured time too
        elapsed = time.perf_counter() - began
        is_end = torch.isin(new, torch.tensor(self.policy.eos_ids))
        num_before = is_end.long().cumsum(1) - is_end.long()
        tokens = int((num_before == 0).sum())
        return Run(elapsed, tokens, tokens)

    def update(self) -> Run:
        rewarded = self.generator.generate(self.problems, self.modes["gumbel"], seed=0, iteration=0)
        batch = make_batch(rewarded)
        model = load_language_model(self.model_name, torch.float32)[0]
        copy = Policy(model, self.policy.eos_ids, self.config.value.hidden_size)
        train = self.config.train
        settings = TrainConfig(
            num_iterations=1,
            warmup_iterations=0,
            learning_rate=1e-5,
            weight_decay=0.0,
            max_grad_norm=1.0,
            batch_size=train.batch_size,
            num_epochs=1,
            micro_batch_tokens=train.micro_batch_tokens,
        )
        algorithm = AStarPO(train.clip_low, train.clip_high, train.gae_lambda, train.advantage_floor)
        updater = Updater(copy, algorithm, settings, ValueConfig(learning_rate=1e-3))
        began = time.perf_counter()
        metrics = updater.update(batch, len(self.problems), 0)
        seconds, tokens = time.perf_counter() - began, int(metrics["train/num_tokens"])
        return Run(seconds, tokens, tokens)


def spread(values: list[float], digits: int | None = None) -> dict[str, float]:
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {
        "median": round(statistics.median(values), digits),
        "lower_quartile": round(quarters[0], digits),
        "upper_quartile": round(quarters[2], digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--depth", type=int, default=80)
    parser.add_argument("--num-rollouts", type=int, default=8)
    parser.add_argument("--rows", type=int, default=256)  # of preset tiny as it was, 32 problems with 8 leaves each
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=WAYS, metavar="WAY", help=f"some of {', '.join(WAYS)}"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as a run does
    torch.manual_seed(0)
    bench = Bench(args.model, args.rows, args.num_rollouts, args.depth)
    runs: dict[str, list[Run]] = {name: [] for name in args.only}
    for round_ in range(args.rounds + 1):
        for name, own in runs.items():
            run = bench.run(name, round_)
            if round_ > 0:  # the first round warms up
                own.append(run)
    completed = {name: [x.completion_tokens / x.seconds for x in own] for name, own in runs.items()}
    decoded = {name: [x.decoded_tokens / x.seconds for x in own] for name, own in runs.items()}

    def ratio(of: dict[str, list[float]], one: str, other: str) -> dict[str, float] | None:
        if one not in of or other not in of:
            return None
        return spread([x / y for x, y in zip(of[one], of[other], strict=True)], 3)

    result = {
        "what": "tokens per second; ratios are of paired rounds",
        "model": args.model,
        "parameters": bench.model.num_parameters(),
        "rows": args.rows,
        "num_rollouts": args.num_rollouts,
        "depth": args.depth,
        "rounds": args.rounds,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "completion_tokens_per_s": {name: spread(x) for name, x in completed.items()},
        "decoded_tokens_per_s": {name: spread(x) for name, x in decoded.items()},
        "speedup_of_sample_over_generate": ratio(completed, "sample", "generate"),
        "cost_per_token_of_gumbel_over_sample": ratio(decoded, "sample", "gumbel"),
        "cost_per_token_of_guided_over_sample": ratio(decoded, "sample", "gumbel_guided"),
        "cost_per_token_of_best_first_over_sample": ratio(decoded, "sample", "best_first"),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
