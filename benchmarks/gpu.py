"""Speed and memory at the shapes of Qwen2.5 on a GPU, without a network, by `python -m benchmarks.gpu`.

It uses random weights of the exact shapes, and random prompts. Text is never made. Each part of each shape is measured
by itself. A line is printed and the JSON is written after every one, so that what fails loses nothing else. `--device
cpu --shapes tiny` runs the same code on a CPU.

Parts with a number of rows are `forward` (steps of given tokens, the least that decoding costs), `sample`, `gumbel` (a
search per problem), `forest4` (4 problems share a search, or another number), `guided`, each of them eager and with
recorded steps, `generate` (Hugging Face's, top_k=0, top_p=1.0, the same distribution) and `gap` (of sampler and
trainer). `update` and its variants are gradient steps. Nothing without Liger's kernels can come after a part with them.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
import traceback
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_bench import FAILURES, LEAVES
from benchmarks.gpu_decode import FOREST, SEARCHES, Decoding
from benchmarks.gpu_shapes import LOGIT_SCALE, SHAPES
from benchmarks.gpu_table import RECORDED, finish, line_of, show
from benchmarks.gpu_update import UPDATES, Updates, is_with_liger
from tinyzero_astar.resources.machine import Speed, choose_device, measure_speed

PROFILED_DEPTH = 40  # tokens
NUM_KERNELS = 25  # lines of a profile


class Bench(Decoding, Updates):
    """All parts of one shape."""

    def run(self, part: str, rows: int) -> dict[str, float]:
        """One part. `rows` are decoded at once."""
        self.check_kernels(part)
        if part in UPDATES:
            return self.update(part)
        if part == "gap":
            return self.gap(rows)
        with self.recorder_of(part):
            return self.decode(part.removesuffix(RECORDED), rows)

    def once(self, part: str, rows: int, depth: int) -> None:
        """A part after `run`, a single time."""
        if part in UPDATES:
            self.updater.update(batch := self.batch(), len(batch.prompts), 0)
        else:
            with self.recorder_of(part):
                self.tokens_of(part.removesuffix(RECORDED), rows, depth)
        self.wait()


def jobs_of(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Shape, part and rows of everything that is to be measured, in order. Parts without rows have 0.

    Those with Liger come after all others, of whichever shape, since its kernels stay in the process.
    """
    if args.jobs:
        for job in args.jobs:
            shape, part, rows = re.fullmatch(r"([^/]+)/([^@]+)(?:@(\d+))?", job).groups()  # type: ignore[union-attr]
            yield shape, part, int(rows or 0)
        return
    for has_liger, shape in product((False, True), args.shapes):
        for part in args.parts:
            if is_with_liger(part) == has_liger:
                for rows in (0,) if part in UPDATES else args.rows:
                    yield shape, part, rows


def parts_of(device: torch.device, sizes: list[int]) -> list[str]:
    """All that a device has. Updates come last, as they leave master weights behind."""
    modes = ["forward", *SEARCHES, *(f"{FOREST}{size}" for size in sizes)]
    is_gpu = device.type == "cuda"
    recorded = [f"{mode}{RECORDED}" for mode in modes] if is_gpu else []
    return [*recorded, *modes, "generate", "gap", *UPDATES[: 4 if is_gpu else 2]]


def measure(bench: Bench, part: str, rows: int) -> dict[str, Any]:
    """The figures of a part, or the error that it ended with."""
    try:
        figures: dict[str, Any] = dict(bench.run(part, rows))
        if bench.args.profile is not None and part in bench.args.profiled:
            with bench.args.profile.open("a") as file:
                file.write(f"== {part}@{rows}\n{kernels(bench, part, rows)}\n")
    except FAILURES as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    return figures


def kernels(bench: Bench, part: str, rows: int) -> str:
    """The operators or kernels that take most of the time of a short search, or of a gradient step."""
    is_gpu = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as found:
        bench.once(part, rows, min(PROFILED_DEPTH, bench.args.depth))
    order = "self_cuda_time_total" if is_gpu else "self_cpu_time_total"
    table: str = found.key_averages().table(sort_by=order, row_limit=NUM_KERNELS, max_name_column_width=90)
    return table


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B"])
    parser.add_argument("--parts", nargs="+", help="default: all that the device has")
    parser.add_argument("--rows", nargs="+", type=int, default=[256], help="sequences decoded at once")
    parser.add_argument("--jobs", nargs="+", help="instead of these three, SHAPE/PART@ROWS in the order of their worth")
    parser.add_argument("--forests", nargs="+", type=int, default=[4, 32], help="problems that share a search")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--logit-scale", type=float, default=LOGIT_SCALE, help="the larger, the more certain the policy is"
    )
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--depth", type=int, default=100, help="generated tokens")
    parser.add_argument("--generate-depth", type=int, default=36, help="those of generate")
    parser.add_argument("--update-rows", type=int, default=64, help="completions of an optimizer step")
    parser.add_argument("--update-depth", type=int, default=200, help="their tokens")
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--value-hidden-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="medians are taken over so many")
    parser.add_argument("--peak-tflops", type=float, help="stated peak for MFU; default: a matmul measured here")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="no part is started after so many seconds")
    parser.add_argument("--profile", type=Path, help="append the most expensive kernels of some parts to this file")
    parser.add_argument("--profiled", nargs="+", default=["sample_recorded", "update"], help="those parts")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    args.parts = args.parts or parts_of(args.device, args.forests)
    args.shallow = args.depth * 2 // 5
    if bad := [rows for rows in args.rows if rows < LEAVES or rows % LEAVES]:
        parser.error(f"--rows {bad[0]} must be a multiple of {LEAVES}")
    return args


def main(argv: list[str] | None = None) -> int:
    began, args = time.perf_counter(), options(argv)
    device: torch.device = args.device
    speed: Speed = measure_speed(device, getattr(torch, args.dtype))
    result: dict[str, Any] = {
        "what": "random weights; ms, seconds, tokens per second, shares, GB (10^9 bytes), nats",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "options": {k: str(v) if isinstance(v, Path | torch.device) else v for k, v in vars(args).items()},
        "copied_gb_per_s": speed.bytes_per_s / 1e9,
        "matmul_tflops": speed.flops_per_s / 1e12,
        "shapes": {},
    }
    print(f"copies {speed.bytes_per_s / 1e12:.2f} TB/s, multiplies {speed.flops_per_s / 1e12:.0f} TFLOP/s", flush=True)
    bench: Bench | None = None
    held = ""
    for shape, part, rows in jobs_of(args):
        name = f"{part}@{rows}" if rows else part
        own = result["shapes"].setdefault(shape, {})
        elapsed = time.perf_counter() - began
        if elapsed > args.budget_s:
            own[name] = {"skipped": "the budget of time was used up"}
        else:
            if shape != held:
                bench, held = None, shape  # its memory is free before the next is made
                gc.collect()
                bench = Bench(shape, args, device, speed)
            assert bench is not None
            own[name] = measure(bench, part, rows)
            bench.reset_peak()
        finish(result)
        print(f"{elapsed:5.0f} s  {shape} {name}: {line_of(own[name])}", flush=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    return 1 if any("error" in figures for parts in result["shapes"].values() for figures in parts.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
