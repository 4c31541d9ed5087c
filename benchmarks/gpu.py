"""Speed and memory at the shapes of Qwen2.5 on a GPU, without a network, by `python -m benchmarks.gpu`.

It uses random weights of the exact shapes, and random prompts. Each part of each shape is measured by itself, and the
JSON is written after every one, so that what fails loses nothing else. `--device cpu --shapes tiny` runs the same code
on a CPU. Text is never made. Decoding is measured in tokens of the search and of Hugging Face's `generate` (top_k=0,
top_p=1.0, the same distribution).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen2Config

from tinyzero_astar.config import TrainConfig, ValueConfig
from tinyzero_astar.engine.cuda_graphs import CudaGraphs
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.interfaces import Batch, Rollouts
from tinyzero_astar.model.model import Policy
from tinyzero_astar.resources.machine import Speed, choose_device, measure_speed
from tinyzero_astar.resources.memory import phases
from tinyzero_astar.resources.shapes import shapes_of
from tinyzero_astar.resources.standing import kv_bytes
from tinyzero_astar.resources.workload import Shapes, Work
from tinyzero_astar.rollout.astar_search import astar_rollouts
from tinyzero_astar.search.heuristic import Guidance
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.trees import Tree, grow_trees, micro_batches, stack
from tinyzero_astar.training.update import Updater

VOCABULARY = 151_936
SHAPES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "tiny": (64, 160, 2, 4, 2, 512),
    "0.5B": (896, 4864, 24, 14, 2, VOCABULARY),
    "1.5B": (1536, 8960, 28, 12, 2, VOCABULARY),
    "3B": (2048, 11008, 36, 16, 2, VOCABULARY),
}
RECORDED = "_recorded"  # decode steps as CUDA graphs
MODES = ("sample", "gumbel", "guided", "generate", "sample_recorded", "gumbel_recorded", "guided_recorded")
PARTS = (*MODES, "update", "gap")
EOS = 1
LEAVES = 4


def config_of(name: str) -> Qwen2Config:
    """Of Qwen2.5's published sizes, and a tiny one."""
    hidden, intermediate, layers, heads, key_heads, vocabulary = SHAPES[name]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )


class Bench:
    """One shape. Every part returns its figures."""

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device, speed: Speed) -> None:
        self.args, self.device, self.speed = args, device, speed
        self.dtype = getattr(torch, args.dtype)
        self.shapes: Shapes = shapes_of(config_of(name))
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config_of(name), dtype=self.dtype, attn_implementation="sdpa", trust_remote_code=False
            ).eval()
            self.policy = Policy(model, (EOS,), args.value_hidden_size)
        self.policy.gradient_checkpointing = args.gradient_checkpointing
        torch.nn.init.normal_(self.policy.value_model.up.weight, std=0.1)  # a value model with something to say
        generator = torch.Generator().manual_seed(0)
        shape = (args.rows // LEAVES, args.prompt)
        self.prompts = torch.randint(2, self.policy.vocab_size, shape, generator=generator).tolist()

    def work(self, **different: Any) -> Work:
        """As doctor would see what is measured here."""
        args = self.args
        plain = Work(
            dtype_bytes=2 if self.dtype == torch.bfloat16 else 4,
            prompt_length=args.prompt,
            shared_length=0,
            depth=args.depth,
            mode="sample",
            is_guided=False,
            num_problems=len(self.prompts),
            num_rollouts=LEAVES,
            beam_width=LEAVES + 1,
            eval_problems=len(self.prompts),
            eval_samples=1,
            eval_rows=len(self.prompts),
            eval_beam_width=None,
            num_rows=args.update_rows,
            step_rows=args.update_rows,
            micro_batch_tokens=args.micro_batch_tokens,
            value_hidden_size=args.value_hidden_size,
            kept_updates=1,
            is_foreach=self.device.type == "cuda",
            gradient_checkpointing=args.gradient_checkpointing,
        )
        return replace(plain, **different)

    def run(self, part: str) -> dict[str, float]:
        if part == "update":
            return self.update()
        if part == "gap":
            return self.gap()
        self.policy.recorder = CudaGraphs() if part.endswith(RECORDED) else None
        try:
            return self.decode(part.removesuffix(RECORDED))
        finally:
            self.policy.recorder = None

    def search(self, mode: str) -> Rollouts:
        return astar_rollouts(
            SlotDecoder(self.policy, self.args.depth),
            self.prompts,
            seeds=torch.arange(len(self.prompts)),
            num_rollouts=LEAVES,
            beam_width=LEAVES + 1,
            max_search_depth=self.args.depth,
            mode="gumbel" if mode == "guided" else mode,  # type: ignore[arg-type]
            guidance=Guidance(inverse_beta=2.0, strength=float(mode == "guided")),
        )

    def decode(self, mode: str) -> dict[str, float]:
        """Tokens per second, beside what reading weights and slots once a step would allow."""
        self.generate() if mode == "generate" else self.search(mode)  # warms up
        self.reset_peak()
        tokens, seconds = self.timed(lambda: self.generate() if mode == "generate" else self.searched_tokens(mode))
        rows = len(self.prompts) * LEAVES
        work = self.work()
        slots = kv_bytes(self.shapes, work, rows) * (work.prompt_length + work.depth / 2) / (work.length + 1)
        per_step = self.shapes.num_parameters * work.dtype_bytes + slots
        limit = rows * self.speed.bytes_per_s / per_step
        found = {"rows": rows, "tokens_per_s": tokens / seconds, "limit_tokens_per_s": limit}
        found["share_of_limit"] = found["tokens_per_s"] / limit
        if mode != "generate":
            searched = self.work(
                mode="sample" if mode == "sample" else "gumbel",
                is_guided=mode == "guided",
                cuda_graphs=self.policy.recorder is not None,
            )
            parts = phases(self.shapes, searched)["search"]
            without = {"master weights", "Adam moments", "value model"}  # no optimizer lives here
            value = sum(p.numel() * p.element_size() for p in self.policy.value_model.parameters())
            found |= self.memory(sum(n for part, n in parts.items() if part not in without) + value)
        return found

    def searched_tokens(self, mode: str) -> int:
        return int(self.search(mode).stats.num_decoded_tokens.sum())

    @torch.no_grad()
    def generate(self) -> int:
        ids = torch.tensor(self.prompts, device=self.device).repeat_interleave(LEAVES, 0)
        output = self.policy.language_model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=self.args.depth,
            pad_token_id=EOS,
        )
        new = output[:, ids.shape[1] :]
        is_end = new == EOS
        return int((is_end.long().cumsum(1) - is_end.long() == 0).sum())

    def update(self) -> dict[str, float]:
        """Gradient steps alone. 6 operations per parameter and token are counted, recomputation is not."""
        args = self.args
        settings = TrainConfig(
            num_iterations=1_000,
            warmup_iterations=0,
            learning_rate=1e-6,
            weight_decay=0.0,
            max_grad_norm=1.0,
            batch_size=args.update_rows,
            num_epochs=1,
            micro_batch_tokens=args.micro_batch_tokens,
        )
        updater = Updater(self.policy, AStarPO(0.2, 0.28, 1.0, 0.2), settings, ValueConfig(learning_rate=1e-4))
        batch = self.batch()
        problems = len(batch.prompts)
        updater.update(batch, problems, 0)  # makes the moments
        self.reset_peak()
        rows = torch.arange(args.update_rows, device=self.device)
        prepared = updater.algorithm.prepare(batch)[0]
        tokens = sum(
            len(tree.ids) for tree in grow_trees(batch, rows.tolist(), args.micro_batch_tokens, self.policy.linear_cost)
        )

        def step() -> None:
            updater._step(prepared, rows, problems)
            assert updater.value is not None
            updater.value.after_update(float(args.update_rows), is_last=True)

        _, seconds = self.timed(step)
        peak = args.peak_tflops * 1e12 if args.peak_tflops else self.speed.flops_per_s
        found = phases(self.shapes, self.work())
        need = max(sum(found[name].values()) for name in ("gradients", "optimizer step", "value training"))
        figures = {
            "tokens_per_s": tokens / seconds,
            "mfu": 6 * self.shapes.num_parameters * tokens / seconds / peak,
            "peak_tflops": peak / 1e12,
        }
        return figures | self.memory(need)

    def batch(self) -> Batch:
        args, rows = self.args, self.args.update_rows
        generator = torch.Generator().manual_seed(1)
        problems = -(-rows // LEAVES)
        prompts, tokens = (
            torch.randint(2, self.policy.vocab_size, shape, generator=generator)
            for shape in ((problems, args.prompt), (rows, args.depth))
        )
        zero, one = torch.zeros(rows, args.depth, device=self.device), torch.ones(rows, device=self.device)
        return Batch(
            prompts=prompts.tolist(),
            problem=torch.arange(rows, device=self.device) // LEAVES,
            tokens=tokens.to(self.device),
            is_token=torch.ones(rows, args.depth, dtype=torch.bool, device=self.device),
            weight=one / rows,
            accuracy=torch.arange(rows, device=self.device).float() % 2,
            reward=torch.arange(rows, device=self.device).float() % 2,
            logp_old=zero,
            baseline=zero,
            advantage=zero,
        )

    @torch.no_grad()
    def gap(self) -> dict[str, float]:
        """How far the search's log-probabilities of its own tokens are from the trainer's forward, nats."""
        rollouts, limit = self.search("sample"), self.args.micro_batch_tokens
        logp, is_token = rollouts.logp.flatten(0, 1), rollouts.is_token.flatten(0, 1)
        length = rollouts.length.flatten().tolist()
        trees = [Tree() for _ in self.prompts]
        for row, tokens in enumerate(rollouts.tokens.flatten(0, 1).tolist()):
            trees[row // LEAVES].add(self.prompts[row // LEAVES], tokens[: length[row]], row)
        gaps = []
        for group in micro_batches(trees, limit):
            rows, stacked = stack(group, self.device)
            found = self.policy.token_scores(stacked).logp.double()
            gaps.append((found - logp[rows, : found.shape[1]]).abs()[is_token[rows, : found.shape[1]]])
        gap = torch.cat(gaps)
        return {"mean_nats": float(gap.mean()), "max_nats": float(gap.max())}

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

    def reset_peak(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self, predicted: int) -> dict[str, float]:
        """Doctor's prediction beside the measured peak. A CPU does not tell its own."""
        if self.device.type != "cuda":
            return {"predicted_gb": predicted / 1e9}
        measured = torch.cuda.max_memory_allocated()
        return {"predicted_gb": predicted / 1e9, "peak_gb": measured / 1e9, "predicted_over_peak": predicted / measured}


TARGETS = (  # shape, part, figure, in words, holds
    ("1.5B", "sample_recorded", "share_of_limit", ">= 0.5 at 256 rows", lambda x: x >= 0.5),
    ("1.5B", "guided_recorded", "cost_over_sample", "<= 1.1", lambda x: x <= 1.1),
    ("1.5B", "update", "mfu", ">= 0.35", lambda x: x >= 0.35),
    ("3B", "update", "peak_gb", "< 80", lambda x: x < 80),
)


def finish(result: dict[str, Any]) -> None:
    """Figures that compare parts, and the targets."""
    for parts in result["shapes"].values():
        for name in MODES:
            sample = parts.get("sample" + RECORDED * name.endswith(RECORDED), {}).get("tokens_per_s")
            if sample and parts.get(name, {}).get("tokens_per_s"):
                parts[name]["cost_over_sample"] = sample / parts[name]["tokens_per_s"]
    result["targets"] = []
    for shape, part, figure, words, holds in TARGETS:
        value = result["shapes"].get(shape, {}).get(part, {}).get(figure)
        met = None if value is None else holds(value)
        result["targets"].append(
            {"shape": shape, "part": part, "figure": figure, "target": words, "value": value, "met": met}
        )


def show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    targets = {(t["shape"], t["part"], t["figure"]): t["target"] for t in result["targets"]}
    table = Table("shape", "part", "figure", "value", "target")
    for shape, parts in result["shapes"].items():
        for part, figures in parts.items():
            for figure, value in figures.items():
                text = value if isinstance(value, str) else f"{value:.4g}"
                table.add_row(shape, part, figure, text, targets.get((shape, part, figure), ""))
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all that the device has")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rows", type=int, default=256, help="sequences decoded at once")
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--depth", type=int, default=200, help="generated tokens")
    parser.add_argument("--update-rows", type=int, default=64, help="completions of an optimizer step")
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--value-hidden-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="medians are taken over so many")
    parser.add_argument("--peak-tflops", type=float, help="stated peak for MFU; default: a matmul measured here")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    args = parser.parse_args(argv)
    if args.rows < LEAVES or args.rows % LEAVES:
        parser.error(f"--rows {args.rows} must be a multiple of {LEAVES}")
    device = choose_device(args.device)
    args.parts = args.parts or [p for p in PARTS if device.type == "cuda" or not p.endswith(RECORDED)]
    speed = measure_speed(device, getattr(torch, args.dtype))
    result: dict[str, Any] = {
        "what": "random weights; tokens per second, shares, GB (10^9 bytes), nats",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "options": {k: v for k, v in vars(args).items() if k != "output"},
        "copied_gb_per_s": speed.bytes_per_s / 1e9,
        "matmul_tflops": speed.flops_per_s / 1e12,
        "shapes": {},
    }
    failed = False
    for name in args.shapes:
        bench = Bench(name, args, device, speed)
        result["shapes"][name] = {}
        for part in (part for part in PARTS if part in args.parts):  # the update leaves master weights behind
            try:
                figures: dict[str, Any] = dict(bench.run(part))
            except (RuntimeError, FloatingPointError) as error:  # out of memory is one, and the others must be measured
                figures, failed = {"error": (str(error).splitlines() or [type(error).__name__])[0]}, True
            result["shapes"][name][part] = figures
            finish(result)
            args.output.write_text(json.dumps(result, indent=1) + "\n")
        del bench
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    show(result)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
