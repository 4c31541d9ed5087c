"""Gradient steps, for `benchmarks.gpu`."""

from __future__ import annotations

from functools import cached_property, partial

import torch

from benchmarks.gpu_bench import LEAVES, Shape
from tinyzero_astar.config import TrainConfig, ValueConfig
from tinyzero_astar.interfaces import Batch
from tinyzero_astar.model.liger import apply_liger
from tinyzero_astar.resources.memory import phases
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.trees import grow_trees
from tinyzero_astar.training.update import Updater

# layers run again in the backward, or keep their activations, without and with Liger's kernels
UPDATES = ("update", "update_kept", "update_liger", "update_liger_kept")


def is_with_liger(part: str) -> bool:
    """Whether Liger's kernels are swapped in for a part."""
    return "liger" in part


class Updates(Shape):
    """The parts without rows."""

    has_liger = False  # of the process: its kernels have taken the place of classes of transformers, and stay there

    def check_kernels(self, part: str) -> None:
        """Refuse to measure with Liger's kernels what should be without.

        Raises:
            RuntimeError: a part with them came before this one.
        """
        if Updates.has_liger and not is_with_liger(part):
            raise RuntimeError(
                f"{part} cannot come after a part with Liger, whose kernels stay in the process: measure it first,"
                " or in another process"
            )

    @cached_property
    def updater(self) -> Updater:
        """Its master weights and moments stay from here on."""
        settings = TrainConfig(
            num_iterations=1_000,
            warmup_iterations=0,
            learning_rate=1e-6,
            weight_decay=0.0,
            max_grad_norm=1.0,
            batch_size=self.args.update_rows,
            num_epochs=1,
            micro_batch_tokens=self.args.micro_batch_tokens,
        )
        return Updater(self.policy, AStarPO(0.2, 0.28, 1.0, 0.2), settings, ValueConfig(learning_rate=1e-4))

    def update(self, part: str) -> dict[str, float]:
        """A whole update of one optimizer step. 6 operations per parameter and token are counted, once."""
        batch, is_recomputed = self.batch(), not part.endswith("_kept")
        problems = len(batch.prompts)
        self.policy.gradient_checkpointing = is_recomputed
        if is_with_liger(part):
            Updates.has_liger = True
            apply_liger(self.policy.language_model, self.device)
        self.updater.update(batch, problems, 0)  # makes the moments
        self.reset_peak()
        _, seconds = self.timed(partial(self.updater.update, batch, problems, 0))
        measured = self.memory(self.predicted_update(is_recomputed, is_with_liger(part)))
        tokens = self.positions(batch)
        peak = self.args.peak_tflops * 1e12 if self.args.peak_tflops else self.speed.flops_per_s
        return {
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "mfu": 6 * self.shapes.num_parameters * tokens / seconds / peak,
            "peak_tflops": peak / 1e12,
            **measured,
        }

    def positions(self, batch: Batch) -> int:
        """Tokens that go through the model, prefixes that completions share once."""
        limit = self.args.micro_batch_tokens
        return sum(len(t.ids) for t in grow_trees(batch, range(len(batch.tokens)), limit, self.policy.linear_cost))

    def batch(self) -> Batch:
        args, rows = self.args, self.args.update_rows
        generator = torch.Generator().manual_seed(1)
        problems = -(-rows // LEAVES)
        prompts, tokens = (
            torch.randint(2, self.policy.vocab_size, shape, generator=generator)
            for shape in ((problems, args.prompt), (rows, args.update_depth))
        )
        shape, one = (rows, args.update_depth), torch.ones(rows, device=self.device)
        zero = torch.zeros(shape, device=self.device)
        return Batch(
            prompts=prompts.tolist(),
            problem=torch.arange(rows, device=self.device) // LEAVES,
            tokens=tokens.to(self.device),
            is_token=torch.ones(shape, dtype=torch.bool, device=self.device),
            weight=one / LEAVES,
            accuracy=torch.arange(rows, device=self.device).float() % 2,
            reward=torch.arange(rows, device=self.device).float() % 2,
            logp_old=zero - 12,
            baseline=zero,
            advantage=zero,
        )

    def predicted_update(self, is_recomputed: bool, has_liger: bool) -> int:
        """Bytes of its largest phase."""
        work = self.work(
            LEAVES, depth=self.args.update_depth, gradient_checkpointing=is_recomputed, has_liger=has_liger
        )
        found = phases(self.shapes, work)
        return max(sum(found[name].values()) for name in ("gradients", "optimizer step", "value training"))
