"""Lock step, dives and best-first order side by side, by `python -m benchmarks.schedules`.

It prints a table, then JSON.

The same problems and seeds are used for every schedule, in turn within one process and in another order each round.
"gumbel" (lock step) and "dive" draw from one law without replacement, "sample" draws with replacement, and "best_first"
returns modes. So only the first two can replace each other. Times are medians over rounds, ratios medians of paired
rounds. The CPU ratio is the one to trust where other processes share the core. Memory is that of the slots plus, for
dives, of the rows that rest entries keep. A decoder call is one forward, which is what a step costs where latency
dominates.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.dive import dive_rollouts
from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.interfaces import Rollouts, StepOutput
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import load_policy
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts
from tinyzero_astar.run.checkpoint import load_trainer, read_state

SCHEDULES = ("gumbel", "dive", "best_first", "sample")
NUM_LEAVES, DEPTHS = (4, 8, 16), (64, 200)
MAX_LENGTH = 256  # prompt and completion
SEED = 0


class CountingDecoder(SlotDecoder):
    """Counts its calls."""

    num_calls = 0

    def step(self, tokens: Tensor, source: Tensor | None, length: Tensor, target: Tensor, path: Tensor) -> StepOutput:
        self.num_calls += 1
        return super().step(tokens, source, length, target, path)


@dataclass
class Run:
    """One search of all problems."""

    wall_s: float
    cpu_s: float
    tokens: int
    leaves: int
    distinct: int
    forks: int
    calls: int
    memory_mb: float


@dataclass
class Row:
    """One line of the table. Counts are means over rounds."""

    leaves: int
    depth: int
    schedule: str
    decoded_tokens: float
    tokens_per_leaf: float
    distinct: float  # share of the leaves
    forks: float
    decoder_calls: float
    memory_mb: float
    wall_s: float
    wall_ratio: float  # to lock step
    cpu_ratio: float


def search(policy: Policy, prompts: list[list[int]], seeds: Tensor, schedule: str, num_leaves: int, depth: int) -> Run:
    decoder = CountingDecoder(policy, depth)
    wall, cpu = time.perf_counter(), time.process_time()
    if schedule == "dive":
        rollouts = dive_rollouts(
            decoder,
            prompts,
            seeds=seeds,
            num_rollouts=num_leaves,
            max_search_depth=depth,
            guidance=Guidance(strength=0.0),
        )
    else:
        rollouts = astar_rollouts(
            decoder,
            prompts,
            seeds=seeds,
            num_rollouts=num_leaves,
            beam_width=num_leaves + 1,
            max_search_depth=depth,
            mode=schedule,
            guidance=Guidance(strength=float(schedule == "best_first")),
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rest_bytes = len(prompts) * num_leaves * policy.vocab_size * 4 * (schedule == "dive")
    return Run(
        wall_s=wall,
        cpu_s=cpu,
        tokens=int(rollouts.stats.num_decoded_tokens.sum()),
        leaves=int((rollouts.length > 0).sum()),
        distinct=num_distinct(rollouts),
        forks=int(rollouts.stats.num_forks.sum()),
        calls=decoder.num_calls,
        memory_mb=(decoder.num_bytes + rest_bytes) / 1e6,
    )


def num_distinct(rollouts: Rollouts) -> int:
    problems = zip(rollouts.tokens.tolist(), rollouts.length.tolist(), strict=True)
    return sum(len({tuple(y[:n]) for y, n in zip(rows, lengths, strict=True) if n > 0}) for rows, lengths in problems)


def measure(policy: Policy, rounds: list[tuple[list[list[int]], Tensor]], num_leaves: int, depth: int) -> list[Row]:
    """The four rows of one setting. A round is its prompts and their seeds."""
    runs: dict[str, list[Run]] = {name: [] for name in SCHEDULES}
    for i, (prompts, seeds) in enumerate(rounds):
        for name in (*SCHEDULES[i % 4 :], *SCHEDULES[: i % 4]):
            runs[name].append(search(policy, prompts, seeds, name, num_leaves, depth))

    def ratio(name: str, what: str) -> float:
        pairs = zip(runs[name], runs["gumbel"], strict=True)
        return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)

    def row(name: str) -> Row:
        total = {key: sum(asdict(run)[key] for run in runs[name]) for key in asdict(runs[name][0])}
        return Row(
            leaves=num_leaves,
            depth=depth,
            schedule=name,
            decoded_tokens=round(total["tokens"] / len(rounds)),
            tokens_per_leaf=round(total["tokens"] / total["leaves"], 2),
            distinct=round(total["distinct"] / total["leaves"], 3),
            forks=round(total["forks"] / len(rounds)),
            decoder_calls=round(total["calls"] / len(rounds)),
            memory_mb=round(max(run.memory_mb for run in runs[name]), 1),
            wall_s=round(statistics.median(run.wall_s for run in runs[name]), 3),
            wall_ratio=round(ratio(name, "wall_s"), 2),
            cpu_ratio=round(ratio(name, "cpu_s"), 2),
        )

    return [row(name) for name in SCHEDULES]


def markdown(rows: list[Row]) -> str:
    head = (
        "| K | depth | schedule | decoded tokens | tokens/leaf | distinct | forks | decoder calls | memory MB "
        "| wall s | wall ÷ lock step | CPU ÷ lock step |"
    )
    lines = ["| " + " | ".join(str(x) for x in asdict(row).values()) + " |" for row in rows]
    return "\n".join([head, "|---:|---:|---|" + "---:|" * 9, *lines])


def load(name: str, is_checkpoint: bool) -> tuple[Policy, PreTrainedTokenizerBase]:
    width = PRESETS["tiny"].value.hidden_size
    if is_checkpoint:
        width = read_state(Path(name))["config"]["value"]["hidden_size"]
    policy, tokenizer = load_policy(
        name, dtype=torch.float32, device=torch.device("cpu"), value_hidden_size=width, max_length=MAX_LENGTH
    )
    if is_checkpoint:
        load_trainer(Path(name), policy, {})
    return policy, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--checkpoint", help="a trained policy, measured after the model")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--leaves", type=int, nargs="+", default=NUM_LEAVES)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the JSON instead of printing it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    task = Multiplication(DataConfig(num_problems=2000), seed=SEED)
    result = {
        "problems": args.problems,
        "rounds": args.rounds,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "rows": {},
    }
    for what, name in (("base model", args.model), ("trained policy", args.checkpoint)):
        if name is None:
            continue
        policy, tokenizer = load(name, is_checkpoint=what == "trained policy")
        rounds = []
        for i in range(args.rounds):
            prompts = tokenizer([p.prompt for p in task.train_problems(i, args.problems)])["input_ids"]
            rounds.append((prompts, torch.arange(args.problems) + 1_000_003 * i))
        for schedule in SCHEDULES:  # warm up
            search(policy, *rounds[0], schedule, 2, 8)
        rows = [row for depth in args.depths for k in args.leaves for row in measure(policy, rounds, k, depth)]
        print(f"\n{what}\n\n{markdown(rows)}\n", flush=True)
        result["rows"][what] = [asdict(row) for row in rows]
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    else:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
