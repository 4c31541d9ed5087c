"""One iteration's update: score, prepare, then gradient steps over micro-batches.

Losses are sums; each optimizer step divides them once by one count over its whole batch, so the gradient does not
depend on how rows are cut into micro-batches. The policy and the value model are clipped and stepped apart.

Several processes: each holds the whole batch (a few MB), and scores and trains on its share of every step's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Algorithm, Batch
from tinyzero_astar.model.fsdp_utils import rank, sum_numbers, sum_tensors, unsharded, world_size
from tinyzero_astar.model.model import Policy, TokenScores
from tinyzero_astar.training.losses import weighted_brier
from tinyzero_astar.training.optimizer import MasterAdamW, clip_gradients, schedule
from tinyzero_astar.training.reward import RewardWeights


@dataclass(frozen=True)
class UpdateSettings:
    """What the update needs besides policy and algorithm; units as in config.py."""

    num_iterations: int
    warmup_iterations: int
    learning_rate: float
    value_learning_rate: float
    value_update_frequency: int
    weight_decay: float
    max_grad_norm: float
    batch_size: int
    num_epochs: int
    micro_batch_tokens: int
    reward_weights: RewardWeights


class Updater:
    """Owns the optimizers; everything else comes in through `update`."""

    def __init__(self, policy: Policy, algorithm: Algorithm, settings: UpdateSettings) -> None:
        self.policy, self.settings = policy, settings
        self._algorithm = algorithm
        self.policy_optimizer = MasterAdamW(
            policy.language_model, settings.learning_rate, settings.weight_decay, policy.dtype
        )
        self.value_optimizer = MasterAdamW(policy.value_model, settings.value_learning_rate, 0.0)
        self.num_updates = 0  # optimizer steps of the policy so far

    def update(self, batch: Batch, num_problems: int, iteration: int) -> dict[str, float]:
        """Train on one iteration's rollouts; returns metrics named as in docs/metrics.md.

        Args:
            batch: the rows, the same on every rank; a problem whose leaves were all thinned out has none.
            num_problems: problems searched; `batch.problem` counts through them.
            iteration: 0-based.

        Raises:
            FloatingPointError: a loss or gradient is not finite, on whichever rank; nothing has been changed by that
                step.
        """
        if len(batch.ids) == 0:  # every leaf was thinned out: nothing to learn from, and no step
            return dict.fromkeys(("train/policy_loss", "train/value_loss"), math.nan)
        batch, metrics = self._score(batch)
        batch, prepared = self._algorithm.prepare(batch)
        rate = self.settings.learning_rate * schedule(
            iteration, self.settings.num_iterations, self.settings.warmup_iterations
        )
        self.policy_optimizer.set_learning_rate(rate)
        steps = [
            self._step(select_rows(batch, rows), count)
            for _ in range(self.settings.num_epochs)
            for rows, count in _problem_groups(batch.problem, num_problems, self.settings.batch_size)
        ]
        totals = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]}
        metrics |= prepared | totals
        return metrics | {"train/learning_rate": rate, "train/num_updates": float(self.num_updates)}

    @torch.no_grad()
    def _score(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Fill in logp_old and V by the trainer's own forward, and audit the sampler against it."""
        logp, value, entropy, kl = (torch.zeros_like(batch.logp_sampler) for _ in range(4))
        weights = self.settings.reward_weights
        with unsharded(self.policy):
            for rows in micro_batches(batch, self.settings.micro_batch_tokens, rank(), world_size()):
                part = select_rows(batch, rows)
                scores = self.policy.token_scores(part.ids, part.prompt_length, part.tokens)
                width = part.tokens.shape[1]
                promise = weights.accuracy * torch.sigmoid(scores.value_logit)
                promise = promise + weights.format * torch.sigmoid(scores.format_logit)
                logp[rows, :width] = torch.where(part.is_token, scores.logp, 0.0)
                value[rows, :width] = torch.where(part.is_token, promise, 0.0)
                entropy[rows, :width] = torch.where(part.is_token, scores.entropy, 0.0)
                if self.policy.has_adapters:
                    found = self.policy.kl_to_base(part.ids, part.prompt_length, width)
                    kl[rows, :width] = torch.where(part.is_token, found, 0.0)
        sum_tensors(logp, value, entropy, kl)  # a row's scores come from one rank, the others hold zeros
        gap = (logp - batch.logp_sampler).abs()
        mass = batch.weight[:, None] * batch.is_token
        total = mass.sum().clamp(min=1e-12)
        metrics = {
            "audit/ratio_error": float(torch.expm1(gap).max()),
            "policy/entropy": float((mass * entropy).sum() / total),
        }
        if self.policy.has_adapters:
            metrics["policy/kl_to_base"] = float((mass * kl).sum() / total)
        return replace(batch, logp_old=logp, value=value), metrics

    def _step(self, batch: Batch, num_problems: int) -> dict[str, float]:
        """One optimizer step of the policy and, when it is due, of the value model."""
        is_value_due = self.num_updates % self.settings.value_update_frequency == 0
        count = max(self._algorithm.count(batch, num_problems), 1.0)
        num_tokens = max(float((batch.weight[:, None] * batch.is_token).sum()), 1e-6)
        sums = [0.0, 0.0, 0.0]
        for rows, factor in self._own_micro_batches(batch):
            part = select_rows(batch, rows)
            scores: TokenScores = self.policy(part.ids, part.prompt_length, part.tokens)
            policy_loss = self._algorithm.loss(part, scores.logp) * factor
            value_loss = _value_loss(part, scores) * factor
            loss = policy_loss / count
            if is_value_due:
                loss = loss + value_loss / num_tokens
            (loss * world_size()).backward()  # gradients are averaged over ranks, and wanted summed
            with torch.no_grad():
                shift = torch.where(part.is_token, scores.logp - part.logp_old, 0.0)
                ratio = torch.expm1(shift).abs().sum() * factor
            sums = [a + b.item() for a, b in zip(sums, (policy_loss, value_loss, ratio), strict=True)]
        policy_sum, value_sum, ratio_sum = sum_numbers(sums)
        total = policy_sum / count + (value_sum / num_tokens if is_value_due else 0.0)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total}: stopped before the optimizer step")
        norm, value_norm = (
            clip_gradients(optimizer.stepped, self.settings.max_grad_norm)
            for optimizer in (self.policy_optimizer, self.value_optimizer)
        )
        if not math.isfinite(norm) or not math.isfinite(value_norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm} (value model: {value_norm}): stopped before the optimizer step"
            )
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad()
        if is_value_due:
            self.value_optimizer.step()
        self.value_optimizer.zero_grad()
        self.num_updates += 1
        return {
            "train/policy_loss": policy_sum / count,
            "train/value_loss": value_sum / num_tokens,
            "train/ratio_deviation": ratio_sum / max(int(batch.is_token.sum()), 1),
            "train/grad_norm": norm,
        }

    def _own_micro_batches(self, batch: Batch) -> Iterator[tuple[Tensor, float]]:
        """This rank's rows, and 1; then rows that count 0, until it has had as many turns as any other rank.

        Every forward and backward of a sharded policy is a collective, so all ranks must run equally many.
        """
        limit, num_ranks = self.settings.micro_batch_tokens, world_size()
        own = list(micro_batches(batch, limit, rank(), num_ranks))
        most = max(len(list(micro_batches(batch, limit, number, num_ranks))) for number in range(num_ranks))
        yield from ((rows, 1.0) for rows in own)
        yield from ((torch.zeros(1, dtype=torch.int64, device=batch.ids.device), 0.0) for _ in range(most - len(own)))


def _value_loss(batch: Batch, scores: TokenScores) -> Tensor:
    """Squared errors at every visited prefix and at its taken child, for both rewards."""
    terms = (
        (scores.value_logit, batch.accuracy),
        (scores.child_logit, batch.accuracy),
        (scores.format_logit, batch.format),
    )
    return torch.stack([weighted_brier(x, y, batch.weight, batch.is_token) for x, y in terms]).sum()


def _problem_groups(problem: Tensor, num_problems: int, size: int) -> Iterator[tuple[Tensor, int]]:
    """Row indices of `size` problems each, in order, and how many problems; groups without rows are left out."""
    for first in range(0, num_problems, size):
        last = min(first + size, num_problems)
        rows = ((problem >= first) & (problem < last)).nonzero()[:, 0]
        if len(rows):
            yield rows, last - first


def micro_batches(batch: Batch, max_tokens: int, share: int = 0, num_shares: int = 1) -> Iterator[Tensor]:
    """Row indices of similar length, so that padded rows * length stays within `max_tokens` (or one row).

    Args:
        batch: all rows.
        max_tokens: see above.
        share: which of the shares; rows are dealt out in the order of their length, so that shares cost the same.
        num_shares: the last ones may be empty.
    """
    length = (batch.prompt_length + batch.is_token.sum(1)).tolist()
    order = sorted(range(len(length)), key=lambda row: length[row])[share::num_shares]
    group: list[int] = []
    for row in order:  # ascending: the newest row is the longest
        if group and (len(group) + 1) * length[row] > max_tokens:
            yield torch.tensor(group, device=batch.ids.device)
            group = []
        group.append(row)
    if group:
        yield torch.tensor(group, device=batch.ids.device)


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, cut to their longest completion."""
    width = int(batch.is_token[rows].sum(1).max())
    total = int((batch.prompt_length[rows] + batch.is_token[rows].sum(1)).max())
    chosen = {f.name: getattr(batch, f.name)[rows] for f in fields(Batch)}
    for name, x in chosen.items():
        if name == "ids":
            chosen[name] = x[:, :total]
        elif x.ndim == 2:
            chosen[name] = x[:, :width]
    return Batch(**chosen)
