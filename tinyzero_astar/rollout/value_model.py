"""The learned heuristic: an MLP on the policy's last hidden state.

Two probabilities per prefix, of the accuracy reward and of the format reward, and one per child for the search:
child_logit(s, a) = value_logit(s) + W_up[a] . silu(W_down hidden(s)). The child term is low rank and starts at
zero, so one forward scores every child and the proposal equals the policy until something was learned.

The hidden state is detached: the value loss never moves the policy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

CHILD_RANK = 64
_PRIOR_LOGIT = -4.0  # a base model rarely succeeds: start from p = 0.02 rather than 0.5


class ValueLogits(NamedTuple):
    """Logits at prefixes; the shape is that of the prefixes, [..., V] for `child`."""

    accuracy: Tensor
    format: Tensor


class ValueModel(nn.Module):
    """Success probabilities of prefixes and of their children.

    Args:
        input_size: D, width of the policy's hidden state.
        hidden_size: width of the MLP.
        vocab_size: V.
    """

    def __init__(self, input_size: int, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(input_size, hidden_size)
        self.output = nn.Linear(hidden_size, 2)
        self.down = nn.Linear(input_size, CHILD_RANK)
        self.up = nn.Embedding(vocab_size, CHILD_RANK)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.up.weight)
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor([_PRIOR_LOGIT, 0.0]))

    def forward(self, hidden: Tensor) -> ValueLogits:
        """Logits of both rewards' probabilities, for hidden states [..., D]."""
        logits = self.output(silu(self.trunk(self._detached(hidden))))
        return ValueLogits(logits[..., 0], logits[..., 1])

    def child_logits(self, hidden: Tensor, accuracy: Tensor) -> Tensor:
        """Accuracy logits of every child, [..., V], given those of the prefixes, [...]."""
        features = silu(self.down(self._detached(hidden)))
        child = torch.addmm(accuracy.flatten()[:, None], features.flatten(0, -2), self.up.weight.T)
        return child.view(*accuracy.shape, -1)

    def child_logit_of(self, hidden: Tensor, accuracy: Tensor, token: Tensor) -> Tensor:
        """Accuracy logits of one child each, [...], without scoring the whole vocabulary."""
        features = silu(self.down(self._detached(hidden)))
        child: Tensor = accuracy + (features * self.up(token)).sum(-1)
        return child

    def _detached(self, hidden: Tensor) -> Tensor:
        return hidden.detach().to(self.trunk.weight.dtype)
