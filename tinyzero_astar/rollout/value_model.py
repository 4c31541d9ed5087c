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


class Values(NamedTuple):
    """What the value model says of prefixes [...]."""

    accuracy: Tensor  # [...] logit
    format: Tensor  # [...] logit
    features: Tensor  # [..., CHILD_RANK] what `child_logits` needs to know of them


class ValueModel(nn.Module):
    """Success probabilities of prefixes and of their children.

    Args:
        input_size: D, width of the policy's hidden state.
        hidden_size: width of the MLP.
        vocab_size: V.
    """

    def __init__(self, input_size: int, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(input_size, hidden_size + CHILD_RANK)  # for both heads by one product
        self.output = nn.Linear(hidden_size, 2)
        self.up = nn.Embedding(vocab_size, CHILD_RANK)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.up.weight)
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor([_PRIOR_LOGIT, 0.0]))

    def forward(self, hidden: Tensor) -> Values:
        """Logits of both rewards' probabilities, for hidden states [..., D]."""
        trunk = silu(self.trunk(hidden.detach().to(self.trunk.weight.dtype)))
        accuracy, form = self.output(trunk[..., :-CHILD_RANK]).unbind(-1)
        return Values(accuracy, form, trunk[..., -CHILD_RANK:])

    def child_logits(self, features: Tensor, accuracy: Tensor) -> Tensor:
        """Accuracy logits of every child, [N, V], given what `forward` says of the prefixes [N]."""
        return torch.addmm(accuracy[:, None], features, self.up.weight.T)

    def child_logit_of(self, features: Tensor, accuracy: Tensor, token: Tensor) -> Tensor:
        """Accuracy logits of one child each, [...], without scoring the whole vocabulary."""
        child: Tensor = accuracy + (features * self.up(token)).sum(-1)
        return child
