"""Time and tokens to an accuracy, against TRL's GRPOTrainer: `python -m benchmarks.vs_trl`. It needs extra `trl`.

Both sides start from the embedded base, see the same products in the same order, and are rewarded by the same verifier
(1 for the right answer, 0.1 for the format). Both sample at temperature 1 from the whole distribution. Both are
evaluated by the same code, which is greedy decoding of held-out problems by this package. Ours is preset tiny. TRL's
trainer has its own defaults but for what `TRL` below says, in two sizes of batch. One has eight completions of each of
32 prompts, the other has as many completions a step as preset tiny has leaves.

Each run is a process of its own with one thread, and one runs at a time. Seconds are those of training steps, without
start, data and evaluations. TRL's tokens are those of the completions up to their end, without padding.

First the learning rates of every arm are tried on a seed that is not reported. An arm's rate is the one that reached
the lowest target in the least CPU time. TRL's arm is chosen in the same way. Then both sides train on the reported
seeds in turn, at these rates and at half of them, which may be steadier. A run ends when it has reached the highest
target, in the sweep the lowest, or has used up its CPU time.

Finished runs are kept in the output folder and not repeated. The result is a table, and result.json in that folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import torch

from benchmarks.costs import COSTS, TARGETS, costs_to, quickest, ratios, table
from tinyzero_astar.config import Config
from tinyzero_astar.data.tasks import make_problems
from tinyzero_astar.data.trl_reward import multiplication_reward
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.metrics.alarms import remembered
from tinyzero_astar.model.model_folder import EMBEDDED, resolve_model
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run import loop
from tinyzero_astar.run.build import Session, build

SWEEP_SEED = 100  # of the runs that choose a learning rate
GROUP = 8  # completions of a prompt in TRL's arms
MICRO_BATCH = 64  # completions of a forward and backward pass in TRL's arms, quicker on a CPU than 256 at once
OURS = "ours"
TINY = PRESETS["tiny"].train
TRL: dict[str, Any] = {  # settings of GRPOConfig that are not its defaults
    "num_generations": GROUP,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "shuffle_dataset": False,
    "lr_scheduler_type": "linear",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}


class Arm(NamedTuple):
    """One side of the comparison."""

    num_prompts: int  # of a step
    num_steps: int  # over which the rate falls to 0
    every: int  # steps between evaluations
    rates: tuple[float, ...]  # tried in the sweep


ARMS = {
    OURS: Arm(TINY.problems_per_iteration, TINY.num_iterations, 2, (2e-4, 4e-4, 8e-4)),
    "trl_256": Arm(32, 30, 1, (1.5e-4, 3e-4, 6e-4)),
    "trl_64": Arm(8, 100, 2, (3e-4, 6e-4, 1.2e-3)),
}


@dataclass
class Progress:
    """What a run has cost so far, and its curve of [tokens, wall seconds, CPU seconds, accuracy]."""

    evaluate: Callable[[], float]
    target: float  # accuracy at which the run ends
    most_cpu_s: float  # of training, after which it ends too
    tokens: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    _began: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """A training step begins."""
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """It has ended."""
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]

    def note(self) -> bool:
        """Evaluate. Returns whether the run ends here."""
        accuracy = self.evaluate()
        self.curve.append([self.tokens, self.wall, self.cpu, accuracy])
        print(f"{self.tokens:,} tokens, {self.cpu:.1f} CPU s, accuracy {accuracy:.3f}", file=sys.stderr, flush=True)
        return accuracy >= self.target or self.cpu >= self.most_cpu_s


def configuration(rate: float, seed: int, num_held_out: int) -> Config:
    """Preset tiny with another learning rate, and so many held-out problems, which are decoded greedily alone."""
    config = PRESETS["tiny"]
    return replace(
        config,
        train=replace(config.train, learning_rate=rate),
        eval=replace(config.eval, num_problems=num_held_out, num_problems_between=num_held_out),
        run=replace(config.run, seed=seed, num_threads=1),
    )


def run_ours(session: Session, arm: Arm, progress: Progress) -> None:
    """The iterations of `tinyzero train`."""
    progress.note()
    for iteration in range(arm.num_steps):
        progress.start()
        metrics, _ = loop.iterate(session, iteration)
        progress.stop()
        session.history.append(remembered(metrics))
        progress.tokens += metrics["search/num_decoded_tokens"]
        if (iteration + 1) % arm.every == 0 and progress.note():
            return


def reward(completions: Sequence[str], answer: Sequence[int], **others: Any) -> list[float]:
    """1.1, 0.1 or 0, as preset tiny rewards. `multiplication_reward` gives the right answer 1, its format included."""
    scores = multiplication_reward(completions, answer)
    return [0.0 if score is None else score + 0.1 * (score == 1.0) for score in scores]


def run_trl(session: Session, arm: Arm, progress: Progress, folder: Path) -> None:
    """TRL's trainer on the problems of `session`, whose policy is given TRL's weights for every evaluation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

    class Measured(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            progress.start()

        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            progress.stop()
            if state.global_step % arm.every == 0:
                session.policy.language_model.load_state_dict(model.state_dict())
                control.should_training_stop = progress.note()

    def judged(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        progress.tokens += sum(map(len, completion_ids))
        return reward(**columns)

    config, ours = session.config, ARMS[OURS]
    num_batches = math.ceil(arm.num_steps * arm.num_prompts / ours.num_prompts)
    problems = [p for i in range(num_batches) for p in session.task.train_problems(i, ours.num_prompts)]
    model = AutoModelForCausalLM.from_pretrained(resolve_model(EMBEDDED), dtype=torch.float32)
    options = GRPOConfig(
        output_dir=str(folder),
        learning_rate=config.train.learning_rate,
        seed=config.run.seed,
        max_steps=arm.num_steps,
        warmup_steps=config.train.warmup_iterations,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=arm.num_prompts * GROUP // MICRO_BATCH,
        max_completion_length=config.search.max_search_depth,
        **TRL,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=judged,
        args=options,
        processing_class=session.tokenizer,
        train_dataset=Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems]),
        callbacks=[Measured()],
    )
    progress.note()
    trainer.train()


def run(name: str, rate: float, seed: int, args: argparse.Namespace) -> None:
    """One run, in this process. Its record is a file of the output folder."""
    torch.set_num_threads(1)
    config = configuration(rate, seed, args.held_out)
    with redirect_stdout(sys.stderr):
        session = build(config, make_problems(config), args.output, EMBEDDED, ConsoleLogger(), 0)

        def evaluate() -> float:
            return loop.measure(session, 0, is_whole=False).metrics["eval/greedy_accuracy"]

        target = min(TARGETS) if seed == SWEEP_SEED else max(TARGETS)
        progress = Progress(evaluate, target, args.most_cpu_s)
        if name == OURS:
            run_ours(session, ARMS[name], progress)
        else:
            run_trl(session, ARMS[name], progress, args.output / "trl")
    record = {"arm": name, "rate": rate, "seed": seed, "held_out": args.held_out, "curve": progress.curve}
    file_of(name, rate, seed, args).write_text(json.dumps(record))


def file_of(name: str, rate: float, seed: int, args: argparse.Namespace) -> Path:
    """Where a run's record is kept."""
    path: Path = args.output / f"{name}-{rate:.1e}-{seed}.json"
    return path


def record_of(name: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A run's record, by a process of its own unless it is there already, with what each target took."""
    file = file_of(name, rate, seed, args)
    if not file.exists():
        one = ["--one", name, str(rate), str(seed), "--output", str(args.output)]
        limits = ["--held-out", str(args.held_out), "--most-cpu-s", str(args.most_cpu_s)]
        subprocess.run([sys.executable, "-m", "benchmarks.vs_trl", *one, *limits], check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(file.read_text())
    found["to"] = {str(target): costs_to(found["curve"], target) for target in TARGETS}
    return found


def study(args: argparse.Namespace) -> dict[str, Any]:
    """The sweep, then the reported seeds, both sides in turn."""
    sweep = {name: [record_of(name, rate, SWEEP_SEED, args) for rate in arm.rates] for name, arm in ARMS.items()}
    best = {name: quickest(records) for name, records in sweep.items()}
    other = quickest([best[name] for name in ARMS if name != OURS])
    sides = [(record["arm"], record["rate"] / part) for part in (1, 2) for record in (other, best[OURS])]
    runs: list[list[dict[str, Any]]] = [[] for _ in sides]
    for seed in range(args.seeds):
        for rows, (name, rate) in zip(runs, sides, strict=True):
            rows.append(record_of(name, rate, seed, args))
    return {
        "what": "cost of training until a held-out greedy accuracy was first reached; ratios are ours over TRL's",
        "curves": [*COSTS, "accuracy"],
        "sweep": [record for records in sweep.values() for record in records],
        "runs": [record for rows in runs for record in rows],
        "ratios": {"at the best rates": ratios(runs[1], runs[0]), "at half of them": ratios(runs[3], runs[2])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many are reported")
    parser.add_argument("--held-out", type=int, default=300, help="problems of an evaluation")
    parser.add_argument("--most-cpu-s", type=float, default=30.0, help="of training in a run")
    parser.add_argument("--output", type=Path, default=Path("runs/vs_trl"))
    parser.add_argument("--one", nargs=3, metavar=("ARM", "RATE", "SEED"), help="one run alone")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.one is not None:
        run(args.one[0], float(args.one[1]), int(args.one[2]), args)
        return
    result = study(args)
    (args.output / "result.json").write_text(json.dumps(result, indent=2))
    print(table([*result["sweep"], *result["runs"]]))
    for side, found in result["ratios"].items():
        for name, ratio in found.items():
            numbers = [ratio["mean"], ratio["low"], ratio["high"], *ratio["each"]]
            mean, low, high, *each = ("–" if x is None else f"{x:.3f}" for x in numbers)
            print(f"ours over TRL {side}, {name}: {mean} [{low}, {high}], by seed {', '.join(each)}")


if __name__ == "__main__":
    main()
