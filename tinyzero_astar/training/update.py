"""One iteration's update: advantages, then gradient steps over micro-batches.

Log-probabilities and values before the update are those that the search recorded. The first optimizer step, whose
forwards run at unchanged weights, compares them with its own. That is the audit of sampler against trainer.

Losses are sums. Each optimizer step divides them once by one count over its whole batch, so the gradient does not
depend on how rows are cut into micro-batches. The value model is trained apart, on the prefixes that these forwards
visited (`training.value_update`).

With several processes, each holds the whole batch (a few MB), and trains on its share of every step's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tinyzero_astar.config import TrainConfig, ValueConfig
from tinyzero_astar.distributed import gather, rank, sum_numbers, world_size
from tinyzero_astar.interfaces import Algorithm, Batch
from tinyzero_astar.model.fsdp_utils import unsharded
from tinyzero_astar.model.model import Policy, TokenScores
from tinyzero_astar.training.optimizer import MasterAdamW, clip_gradients, schedule
from tinyzero_astar.training.trees import Tree, grow_trees, micro_batches, stack
from tinyzero_astar.training.value_update import ValueUpdater

# means over the optimizer steps of an iteration
_MEANS = ("train/policy_loss", "train/ratio_deviation", "train/grad_norm", "policy/entropy")


class Updater:
    """Owns the optimizers. Everything else comes in through `update`.

    Args:
        policy: what is trained, and its value model.
        algorithm: turns rollouts into a loss.
        settings: of the policy's update.
        value: of the value model's.
    """

    def __init__(self, policy: Policy, algorithm: Algorithm, settings: TrainConfig, value: ValueConfig) -> None:
        self.policy, self.settings = policy, settings
        self.algorithm = algorithm
        self.value = ValueUpdater(policy, value, settings.max_grad_norm) if algorithm.has_critic else None
        self.policy_optimizer = MasterAdamW(
            policy.language_model, settings.learning_rate, settings.weight_decay, policy.dtype
        )
        self.num_updates = 0  # optimizer steps of the policy so far

    def update(self, batch: Batch, num_problems: int, iteration: int) -> dict[str, float]:
        """Train on one iteration's rollouts, and return metrics named as in docs/metrics.md.

        Args:
            batch: the rows, the same on every rank. A problem whose leaves were all thinned out has none.
            num_problems: problems searched, which `batch.problem` counts through.
            iteration: 0-based.

        Raises:
            FloatingPointError: a loss or gradient is not finite, on whichever rank. Nothing has been changed by that
                step.
        """
        size = {"train/num_rows": float(len(batch.tokens)), "train/num_tokens": float(_num_tokens(batch))}
        rate = self.settings.learning_rate * schedule(
            iteration, self.settings.num_iterations, self.settings.warmup_iterations
        )
        if len(batch.tokens) == 0:  # every leaf was thinned out, so there is nothing to learn from and no step
            names = [*_MEANS, "train/value_loss", *self.algorithm.measures, "audit/ratio_error"]
            names += ["policy/kl_to_base"] if self.policy.has_adapters else []
            known = {"train/learning_rate": rate, "train/num_updates": float(self.num_updates)}
            return size | dict.fromkeys(names, math.nan) | known
        batch, metrics = self.algorithm.prepare(batch)
        if self.policy.has_adapters:
            metrics["policy/kl_to_base"] = self._kl_to_base(batch)
        self.policy_optimizer.set_learning_rate(rate)
        groups = list(_problem_groups(batch.problem, num_problems, self.settings.batch_size)) * self.settings.num_epochs
        steps, value_losses = list[dict[str, float]](), list[float]()
        for number, (rows, count) in enumerate(groups, start=1):
            steps.append(self._step(batch, rows, count))
            if self.value is not None:
                mass = float(_mass(batch.rows(rows)).sum())
                value_losses += self.value.after_update(mass, is_last=number == len(groups))
        for name in _MEANS:
            metrics[name] = sum(step[name] for step in steps) / len(steps)
        metrics["train/value_loss"] = sum(value_losses) / len(value_losses) if value_losses else math.nan
        metrics["audit/ratio_error"] = steps[0]["audit/ratio_error"]  # of the step at unchanged weights
        return size | metrics | {"train/learning_rate": rate, "train/num_updates": float(self.num_updates)}

    @torch.no_grad()
    def _kl_to_base(self, batch: Batch) -> float:
        """Weighted mean over tokens of the divergence from the policy without adapters, before the update."""
        total = 0.0
        limit = self.settings.micro_batch_tokens
        trees = grow_trees(batch, range(len(batch.tokens)), limit, self.policy.linear_cost)
        with unsharded(self.policy):
            for group in micro_batches(trees, limit, rank(), world_size()):
                rows, stacked = stack(group, batch.tokens.device)
                part = batch.rows(rows)
                total += float((_mass(part) * self.policy.kl_to_base(stacked)).sum())
        return sum_numbers([total])[0] / max(float(_mass(batch).sum()), 1e-12)

    def _step(self, batch: Batch, rows: Tensor, num_problems: int) -> dict[str, float]:
        """One optimizer step of the policy on some rows of the batch."""
        whole = batch.rows(rows)
        count = max(self.algorithm.count(whole, num_problems), 1.0)
        num_tokens = max(float(_mass(whole).sum()), 1e-6)
        most = max(1, len(rows) // world_size())  # completions in a tree, so that no process is without work
        trees = grow_trees(
            batch, rows.tolist(), self.settings.micro_batch_tokens, self.policy.linear_cost, max_completions=most
        )
        shares = [
            self._add_gradients(batch, group, factor, count, num_tokens)
            for group, factor in self._own_micro_batches(trees)
        ]
        *columns, errors = zip(*torch.stack(shares).tolist(), strict=True)  # waits for a GPU once, after all of them
        sums = [sum(column) for column in columns]
        policy_sum, ratio_sum, entropy_sum = sum_numbers(sums)
        if not math.isfinite(policy_sum):
            raise FloatingPointError(f"the loss is {policy_sum / count}: stopped before the optimizer step")
        norm = clip_gradients(self.policy_optimizer.stepped, self.settings.max_grad_norm)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}: stopped before the optimizer step")
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad()
        self.num_updates += 1
        return {
            "train/policy_loss": policy_sum / count,
            "train/ratio_deviation": ratio_sum / max(int(whole.is_token.sum()), 1),
            "train/grad_norm": norm,
            "policy/entropy": entropy_sum / num_tokens,
            "audit/ratio_error": max(gather(max(errors))),
        }

    def _add_gradients(self, batch: Batch, trees: list[Tree], factor: float, count: float, num_tokens: float) -> Tensor:
        """Forward and backward of one micro-batch, in which every row counts `factor`, for a loss divided by `count`.

        `num_tokens` is the weighted number of tokens of the step, over which its entropy is a mean.

        Returns:
            [4], sums over its tokens of policy loss, |ratio - 1| and weighted entropy, times `factor`, and the largest
            error of a ratio, as if weights were unchanged. They are not waited for, so that the next micro-batch can be
            prepared while a GPU computes this one.
        """
        rows, stacked = stack(trees, batch.tokens.device)
        part = batch.rows(rows)
        scores: TokenScores = self.policy(stacked)
        loss = self.algorithm.loss(part, scores.logp)
        entropy = (_mass(part) * scores.entropy).sum()
        wanted = loss / count
        if self.settings.entropy_bonus > 0:
            wanted = wanted - self.settings.entropy_bonus * (entropy / num_tokens)
        (factor * wanted * world_size()).backward()  # gradients are averaged over ranks, and wanted summed
        if self.value is not None:
            self.value.keep(scores.visited, part, factor)
        with torch.no_grad():
            shift = torch.where(part.is_token, scores.logp - part.logp_old, 0.0)
            sums = (loss, torch.expm1(shift).abs().sum(), entropy)
            return torch.stack([*(factor * x for x in sums), torch.expm1(shift.abs()).max()])

    def _own_micro_batches(self, trees: list[Tree]) -> Iterator[tuple[list[Tree], float]]:
        """This rank's trees with factor 1, then a tree with factor 0 until it has had as many turns as any other rank.

        Every forward and backward of a sharded policy is a collective, so all ranks must run equally many.
        """
        limit, num_ranks = self.settings.micro_batch_tokens, world_size()
        own = list(micro_batches(trees, limit, rank(), num_ranks))
        most = max(len(list(micro_batches(trees, limit, number, num_ranks))) for number in range(num_ranks))
        yield from ((group, 1.0) for group in own)
        yield from ((trees[:1], 0.0) for _ in range(most - len(own)))


def _num_tokens(batch: Batch) -> int:
    """Of the batch's rows, each with its prompt."""
    return int(batch.is_token.sum()) + sum(len(batch.prompts[index]) for index in batch.problem.tolist())


def _mass(batch: Batch) -> Tensor:
    """[B, T] weight of every generated token."""
    return batch.weight[:, None] * batch.is_token


def _problem_groups(problem: Tensor, num_problems: int, size: int) -> Iterator[tuple[Tensor, int]]:
    """Row indices of `size` problems each, in order, and how many problems. Groups without rows are left out."""
    for first in range(0, num_problems, size):
        last = min(first + size, num_problems)
        rows = ((problem >= first) & (problem < last)).nonzero()[:, 0]
        if len(rows):
            yield rows, last - first
