"""AdamW for the policy and the value model, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def make_optimizer(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices decay, vectors do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


def schedule(iteration: int, num_iterations: int, warmup_iterations: int) -> float:
    """Factor on the learning rate: linear warm-up, then linear decay to 0 after the last iteration.

    Args:
        iteration: 0-based, of the iteration about to be trained.
        num_iterations: of the whole run.
        warmup_iterations: the factor reaches 1 in the last of these.
    """
    if iteration < warmup_iterations:
        return (iteration + 1) / (warmup_iterations + 1)
    return (num_iterations - iteration) / max(1, num_iterations - warmup_iterations)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients to a total norm of at most `max_norm`; returns the norm before."""
    return float(nn.utils.clip_grad_norm_(list(parameters), max_norm))
