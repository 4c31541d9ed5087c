"""The learned heuristic, an MLP on the policy's last hidden state and on the log-probabilities of the prefix so far.

It gives the success probability of a prefix, that of each of its children for the search, and a baseline for the
update.

    child_logit(s, a) = value_logit(s) + W_up[a] . silu(W_down x(s)) + c(s) log pi(a|s)

The child terms start at zero. So one forward scores every child, and the proposal equals the policy until something was
learned.

x(s) is the hidden state and the *path*. The path is log pi of the last token, of all tokens together, and of the least
likely one. The policy gives a wrong digit a low probability, which its last hidden state does not show. All of this
depends on the prefix alone, on neither noise nor reward. So q stays a fixed distribution and weights stay exact, as
with any h.

The inputs must be detached, because the value loss must not move the policy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from tinyzero_astar.interfaces import ChildTerms
from tinyzero_astar.search.heuristic import LEAST_LOGP

CHILD_RANK = 64
PATH_SIZE = 3
_PRIOR_LOGIT = -4.0  # a base model rarely succeeds, so p starts at 0.02 rather than 0.5


class Values(NamedTuple):
    """What the value model says of prefixes [...]."""

    accuracy: Tensor  # [...] logit
    baseline: Tensor  # [...] b(s), in units of reward
    features: Tensor  # [..., CHILD_RANK + 1] what `child_logits` needs of them, the low-rank term and then c


class ValueModel(nn.Module):
    """Success probabilities of prefixes and of their children.

    Args:
        input_size: D, width of the policy's hidden state.
        hidden_size: width of the MLP.
        vocab_size: V.
    """

    def __init__(self, input_size: int, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(input_size + PATH_SIZE, hidden_size + CHILD_RANK)  # for both heads by one product
        self.output = nn.Linear(hidden_size, 3)
        self.up = nn.Embedding(vocab_size, CHILD_RANK)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.up.weight)
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor([_PRIOR_LOGIT, 0.0, 0.0]))  # no baseline at first

    def forward(self, hidden: Tensor, path: Tensor) -> Values:
        """What is known of prefixes, for hidden states [..., D] and paths [..., 3]."""
        dtype = self.trunk.weight.dtype
        # A logarithm of a logarithm, so that sums over long completions and a single unlikely token have the same size.
        seen = torch.cat([hidden.to(dtype), torch.log1p(-path.to(dtype))], -1)
        trunk = silu(self.trunk(seen))
        accuracy, baseline, slope = self.output(trunk[..., :-CHILD_RANK]).unbind(-1)
        return Values(accuracy, baseline, torch.cat([trunk[..., -CHILD_RANK:], slope[..., None]], -1))

    def child_logits(self, features: Tensor, accuracy: Tensor, logp: Tensor) -> Tensor:
        """Accuracy logits of every child, [N, V], without gradients, given what `forward` says of the prefixes [N].

        Args:
            features: [N, CHILD_RANK + 1].
            accuracy: [N].
            logp: [N, V] log pi(a|s).
        """
        child = logp.to(features.dtype).clamp(min=LEAST_LOGP).mul_(features[:, -1:]).add_(accuracy[:, None])
        return child.addmm_(features[:, :-1], self.up.weight.T)

    def child_terms(self, features: Tensor, accuracy: Tensor) -> ChildTerms:
        """What `child_logits` are made of."""
        return ChildTerms(accuracy, features[:, :-1], self.up.weight.detach(), features[:, -1])

    def child_logit_of(self, features: Tensor, accuracy: Tensor, token: Tensor, logp: Tensor) -> Tensor:
        """Accuracy logits of one child each, [...], without scoring the vocabulary. `logp` [...] is the child's own."""
        from_policy = features[..., -1] * logp.to(features.dtype).clamp(min=LEAST_LOGP)
        child: Tensor = accuracy + (features[..., :-1] * self.up(token)).sum(-1) + from_policy
        return child


def path_before(logp: Tensor) -> Tensor:
    """[..., T, 3] log pi of the last token, of all, and of the least likely, before each of T tokens' own [..., T]."""
    before = pad(logp[..., :-1], (1, 0))
    return torch.stack([before, before.cumsum(-1), before.cummin(-1).values], -1)
