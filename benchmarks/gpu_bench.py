"""What all parts of `benchmarks.gpu` share: the policy of a shape, time and memory."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu_shapes import EOS, config_of, random_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.resources.machine import Speed
from tinyzero_astar.resources.shapes import shapes_of
from tinyzero_astar.resources.workload import Shapes, Work

LEAVES = 4
# what a part may raise, for instance without memory, so that others are measured all the same
FAILURES = (
    RuntimeError,
    ArithmeticError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    OSError,
)


class Shape:
    """A policy of one shape, on its device."""

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device, speed: Speed) -> None:
        self.args, self.device, self.speed = args, device, speed
        self.dtype = getattr(torch, args.dtype)
        self.shapes: Shapes = shapes_of(config_of(name))
        with torch.device(device):
            model = random_model(config_of(name), self.dtype, device, args.logit_scale)
            self.policy = Policy(model, (EOS,), args.value_hidden_size)
        torch.nn.init.normal_(self.policy.value_model.up.weight, std=0.1)  # a value model with something to say

    def work(self, rows: int, **different: Any) -> Work:
        """As doctor would see what is measured here."""
        args, problems = self.args, rows // LEAVES
        plain = Work(
            dtype_bytes=2 if self.dtype == torch.bfloat16 else 4,
            prompt_length=args.prompt,
            shared_length=0,
            depth=args.depth,
            mode="sample",
            is_guided=False,
            num_problems=problems,
            num_rollouts=LEAVES,
            num_leaves=rows,
            beam_width=LEAVES + 1,
            eval_problems=problems,
            eval_samples=1,
            eval_rows=problems,
            eval_beam_width=None,
            num_rows=args.update_rows,
            step_rows=args.update_rows,
            micro_batch_tokens=args.micro_batch_tokens,
            value_hidden_size=args.value_hidden_size,
            kept_updates=1,
            is_fused=self.device.type == "cuda",
            is_host=self.device.type == "cpu",
        )
        return replace(plain, **different)

    def memory(self, predicted: int) -> dict[str, float]:
        """Doctor's prediction beside the measured peak. A CPU does not tell its own."""
        if self.device.type != "cuda":
            return {"predicted_gb": predicted / 1e9}
        measured = torch.cuda.max_memory_allocated()
        return {"predicted_gb": predicted / 1e9, "peak_gb": measured / 1e9, "predicted_over_peak": predicted / measured}

    def reset_peak(self) -> None:
        """Free what is free, and measure from here on."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What the work gives, and the median of its seconds."""
        seconds = []
        for _ in range(self.args.rounds):
            self.wait()
            began = time.perf_counter()
            found = work()
            self.wait()
            seconds.append(time.perf_counter() - began)
        return found, sorted(seconds)[len(seconds) // 2]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
