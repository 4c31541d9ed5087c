"""Whole iterations of the presets beside doctor's predictions, without a network, by `python -m benchmarks.gpu_run`.

A model folder with random weights of the preset's exact shape is written first. Its tokenizer has as many tokens and
knows the words of the prompts. The parts of a preset are

- `iteration`: iterations after a first one, with the seconds and the memory of search and update,
- `evaluation`: all held-out problems,
- `commands`: `tinyzero train`, `--resume` and `eval`, each in a process of its own, with the seconds that they take.

A line is printed and the JSON is written after every part. Options that it does not know go to the runs, so that
`--config` and all others of `tinyzero train` change the presets.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import FAILURES
from benchmarks.gpu_shapes import SHAPES, write_stand_in
from benchmarks.gpu_table import line_of
from tinyzero_astar.cli.options import config_of, parse_train
from tinyzero_astar.config import Config
from tinyzero_astar.data.tasks import make_problems
from tinyzero_astar.resources.duration import evaluation_seconds, iteration_seconds
from tinyzero_astar.resources.machine import Speed, choose_device, measure_speed
from tinyzero_astar.resources.model import read_model
from tinyzero_astar.resources.prediction import PlannedRun
from tinyzero_astar.run.build import Session
from tinyzero_astar.run.loop import iterate
from tinyzero_astar.run.measure import measure
from tinyzero_astar.run.start import start_run

PRESETS = {"local": "1.5B", "training": "3B"}
PARTS = ("iteration", "evaluation", "commands")
UPDATE = ("gradients", "optimizer step", "value training")


class PresetRun:
    """One preset with random weights."""

    def __init__(self, preset: str, args: argparse.Namespace, folder: Path, speed: Speed) -> None:
        self.args, self.folder, self.speed, self.preset = args, folder, speed, preset
        shape = args.shape or PRESETS[preset]
        self.model = folder / f"Qwen2.5-{shape}"
        self.options = ["--config", preset, "--model.model-name", str(self.model), *args.more]
        self.options += ["--model.device", args.device.type]
        self.config: Config = config_of(parse_train(self.options))
        if not self.model.exists():
            dtype = getattr(torch, self.config.model.dtype)
            write_stand_in(self.model, shape, make_problems(self.config).prompts, dtype, args.device)
        self.planned = PlannedRun(self.config, read_model(self.config), 1, args.device.type)
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """A run that has begun. It writes no checkpoint."""
        if self._session is None:
            self._session = start_run(self.config, self.preset, self.folder / f"{self.preset}-iterations")
        return self._session

    def close(self) -> None:
        """Free what the run holds."""
        if self._session is not None:
            self._session.held.close()
            self._session = None
        reset_peak(self.args.device)

    def iteration(self) -> dict[str, Any]:
        """Means over the iterations after the first, which makes the moments, and the highest peaks of memory."""
        session, device = self.session, self.args.device
        peaks = {"search": 0, "update": 0}
        update = session.updater.update

        def watched(*args: Any) -> dict[str, float]:
            peaks["search"] = max(peaks["search"], peak_of(device))
            reset_peak(device)
            found = update(*args)
            peaks["update"] = max(peaks["update"], peak_of(device))
            return found

        session.updater.update = watched  # type: ignore[method-assign]
        iterate(session, 0)
        peaks.update(search=0, update=0)
        every = []
        for number in range(1, 1 + self.args.iterations):
            reset_peak(device)
            every.append(iterate(session, number)[0])
        session.updater.update = update  # type: ignore[method-assign]
        seconds = iteration_seconds(self.planned, self.speed)
        found: dict[str, Any] = {"tokens": int(every[-1]["train/num_tokens"])}
        for part in peaks:
            own = sum(metrics[f"time/{part}_s"] for metrics in every) / len(every)
            found |= {f"{part}_s": own, f"{part}_predicted_s": seconds[part]}
        found["iteration_s"] = sum(metrics["time/iteration_s"] for metrics in every) / len(every)
        needed = {"search": self.planned.outlook.needed("search")}
        needed["update"] = max(self.planned.outlook.needed(phase) for phase in UPDATE)
        for part, peak in peaks.items():
            found |= memory(part, needed[part], peak)
        found["audit/ratio_error"] = every[-1]["audit/ratio_error"]
        return found

    def evaluation(self) -> dict[str, Any]:
        """All held-out problems, as at the start and the end of a run."""
        device = self.args.device
        reset_peak(device)
        began = time.perf_counter()
        measure(self.session, 0)
        seconds = time.perf_counter() - began
        predicted = evaluation_seconds(self.planned, self.speed, True)
        needed = self.planned.outlook.needed("evaluation")
        if not self.session.updater.policy_optimizer.adamw.state:  # no moments were made yet
            needed -= self.planned.outlook.phases["evaluation"]["Adam moments"]
        return {"seconds": seconds, "predicted_s": predicted, **memory("evaluation", needed, peak_of(device))}

    def commands(self) -> dict[str, Any]:
        """Train, go on, and evaluate, as typed. The machine must have room for two checkpoints."""
        self.close()
        run = self.folder / f"{self.preset}-commands"
        kept = ["--run.checkpoint-frequency", "1", "--run.keep-last", "1", "--run.keep-best", "0"]
        train = ["train", *self.options, "--train.num-iterations", "2", "--output-dir", str(run), *kept]
        found: dict[str, Any] = {}
        for name, words in (
            ("train", train),
            ("resume", ["train", "--resume", str(run), "--train.num-iterations", "3"]),
            ("eval", ["eval", str(run)]),
        ):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "tinyzero_astar", *words], capture_output=True, text=True, check=False
            )
            found[f"{name}_s"] = time.perf_counter() - began
            print(done.stdout, done.stderr, flush=True)
            if done.returncode:
                raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found["iterations"] = [line["iteration"] for line in lines]
        found["iteration_s"] = [line.get("time/iteration_s") for line in lines]
        return found


def memory(part: str, predicted: int, measured: int) -> dict[str, float]:
    """In GB. A CPU does not tell its peak."""
    found = {f"{part}_predicted_gb": predicted / 1e9}
    return found | ({f"{part}_peak_gb": measured / 1e9, f"{part}_ratio": predicted / measured} if measured else {})


def peak_of(device: torch.device) -> int:
    """Bytes since the last `reset_peak`, 0 where nobody counts."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> None:
    """Free what is free, and count from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["iteration", "evaluation"])
    parser.add_argument("--shape", choices=SHAPES, help="of all presets, instead of each one's own")
    parser.add_argument("--iterations", type=int, default=2, help="that are measured")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="no part is started after so many seconds")
    parser.add_argument("--folder", type=Path, help="for models and runs; default: one that is removed at the end")
    parser.add_argument("--output", type=Path, default=Path("gpu_run.json"))
    args, args.more = parser.parse_known_args(argv)
    args.device = choose_device(args.device)
    return args


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    with tempfile.TemporaryDirectory() as made:
        return run_all(args, args.folder or Path(made))


def run_all(args: argparse.Namespace, folder: Path) -> int:
    """All parts of all presets. Returns 1 if one of them failed."""
    began, has_failed = time.perf_counter(), False
    speed = measure_speed(args.device, torch.bfloat16 if args.device.type == "cuda" else torch.float32)
    result: dict[str, Any] = {
        "what": "random weights; seconds, GB (10^9 bytes), predicted over measured",
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "options": {k: str(v) if isinstance(v, Path | torch.device) else v for k, v in vars(args).items()},
        "presets": {},
    }
    for preset in args.presets:
        own = result["presets"].setdefault(preset, {})
        run: PresetRun | None = None
        for part in args.parts:
            elapsed = time.perf_counter() - began
            if elapsed > args.budget_s:
                own[part] = {"skipped": "the budget of time was used up"}
            else:
                try:
                    run = run or PresetRun(preset, args, folder, speed)
                    own[part] = getattr(run, part)()
                except FAILURES as error:
                    traceback.print_exc()
                    own[part], has_failed = {"error": f"{type(error).__name__}: {error}"}, True
            print(f"{elapsed:5.0f} s  {preset} {part}: {line_of(own[part])}", flush=True)
            args.output.write_text(json.dumps(result, indent=1) + "\n")
        if run is not None:
            run.close()
    return int(has_failed)


if __name__ == "__main__":
    raise SystemExit(main())
