"""The value model's own training, on the hidden states that the policy's updates passed through.

The policy's forward computes the last hidden state of every visited prefix. These states are kept, detached, so that a
gradient step of the value model costs its MLP alone, and many steps can use one forward of the policy. An iteration's
last update uses up what is kept, so nothing waits when a checkpoint is written.

Each process keeps the rows that it trained the policy on. Losses are sums, divided by one count over all rows of all
processes, so neither micro-batches nor processes change a gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.config import ValueConfig
from tinyzero_astar.distributed import sum_numbers, world_size
from tinyzero_astar.interfaces import Batch
from tinyzero_astar.model.model import Policy, ValueScores, Visited
from tinyzero_astar.training.losses import noise_weight, weighted_brier, weighted_square
from tinyzero_astar.training.optimizer import MasterAdamW, clip_gradients

_LEAST_RATE = 0.01  # of success that the value model begins with, and of failure


class ValueRows(NamedTuple):
    """What the value model learns of one micro-batch."""

    visited: Visited
    is_token: Tensor  # [B, T]
    weight: Tensor  # [B]
    accuracy: Tensor  # [B] what it shall predict
    reward: Tensor  # [B] what the baseline is learnt from
    noise: Tensor  # [B, T] what each token counts for the baseline


class ValueUpdater:
    """Owns the value model's optimizer and what it has not been trained on yet.

    Args:
        policy: whose value model is trained.
        settings: of the training.
        max_grad_norm: gradients are scaled down to this norm.
    """

    def __init__(self, policy: Policy, settings: ValueConfig, max_grad_norm: float) -> None:
        self._policy, self._settings, self._max_grad_norm = policy, settings, max_grad_norm
        self.optimizer = MasterAdamW(policy.value_model, settings.learning_rate, 0.0)
        self._kept: list[ValueRows] = []
        self._mass, self._num_updates = 0.0, 0  # of what is kept, weighted tokens of all ranks and the policy's updates

    def keep(self, visited: Visited, part: Batch, factor: float) -> None:
        """Keep the rows of one micro-batch, each of which counts `factor`. Every rank keeps as many micro-batches."""
        weight = factor * part.weight
        noise = torch.where(part.is_token, weight[:, None] * noise_weight(part.logp_old), 0.0)
        self._kept.append(ValueRows(visited, part.is_token, weight, part.accuracy, part.reward, noise))

    def after_update(self, mass: float, is_last: bool) -> list[float]:
        """Train if it is time to, as it is after the last update of an iteration, and return the loss before if so.

        Args:
            mass: weighted tokens that the policy's update trained on, of all ranks.
            is_last: whether no other update of the iteration follows.

        Raises:
            FloatingPointError: a gradient is not finite, on whichever rank. Nothing has been changed by that step.
        """
        self._mass, self._num_updates = self._mass + mass, self._num_updates + 1
        if self._num_updates < self._settings.update_frequency and not is_last:
            return []
        if not self.optimizer.adamw.state:
            self._begin_at_rate()
        [noise] = sum_numbers([sum(float(rows.noise.sum()) for rows in self._kept)])
        losses = [self._step(noise) for _ in range(self._settings.num_steps)]
        self._kept, self._mass, self._num_updates = [], 0.0, 0
        return [sum_numbers([float(losses[0])])[0]]

    def _begin_at_rate(self) -> None:
        """Before the first step ever, set a constant that predicts what is kept, so that no prior must be unlearned.

            p = (sum w R + 1) / (sum w + 2) over tokens

        This is Laplace's rule of succession. At the very optimum AdamW would make a whole step of the sign of a
        rounding error.
        """
        own = sum(float((rows.weight * rows.is_token.sum(1) * rows.accuracy).sum()) for rows in self._kept)
        rate = (sum_numbers([own])[0] + 1) / (self._mass + 2)
        rate = min(max(rate, _LEAST_RATE), 1 - _LEAST_RATE)
        self._policy.begin_value_at(math.log(rate / (1 - rate)))

    def _step(self, noise: float) -> Tensor:
        """One gradient step on all that is kept, whose noise is given, and this rank's share of the loss before it."""
        mass, total = max(self._mass, 1e-6), torch.zeros((), device=self._kept[0].weight.device)
        for rows in self._kept:
            success, baseline = value_losses(rows, self._policy.value_scores(rows.visited))
            loss = success / mass + baseline / max(noise, 1e-6)
            (loss * world_size()).backward()  # averaged over ranks, wanted summed
            total = total + loss.detach()
        norm = clip_gradients(self.optimizer.stepped, self._max_grad_norm)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the value model's gradient has the norm {norm}: stopped before its step")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def value_losses(rows: ValueRows, scores: ValueScores) -> tuple[Tensor, Tensor]:
    """The two sums of docs/algorithm.md eq. 13, of success at prefixes and their children and of the baseline."""
    terms = (scores.value_logit, scores.child_logit)
    success = torch.stack([weighted_brier(x, rows.accuracy, rows.weight, rows.is_token) for x in terms]).sum()
    return success, weighted_square(scores.baseline, rows.reward, rows.noise)
