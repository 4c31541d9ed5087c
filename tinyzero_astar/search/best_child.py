"""What the draw of the best child is given, and what it says. See `search.vocabulary`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tinyzero_astar.interfaces import ChildTerms
from tinyzero_astar.search.heuristic import Tilt


class Guide(NamedTuple):
    """How N prefixes are guided."""

    child: ChildTerms  # of the logits of p(s a)
    tilt: Tilt  # of 1/beta, [N] each
    strength: Tensor  # [N] upper end of tau, in [0, 1]
    log_weight: Tensor  # [N] log of the running weight pi/q of the prefix
    cap: float | None  # c > 1, bound on pi/q, None means no bound


class BestChild(NamedTuple):
    """The best child of each of N prefixes. All logarithms are natural ones, as float64."""

    token: Tensor  # [N] int64
    logp: Tensor  # [N] log pi of it
    logq: Tensor  # [N] log q of it
    log_rest: Tensor  # [N] log of the sum of q over all other children, -inf if they have none
    log_total: Tensor  # [N] log of the sum of exp(logit), so that logp = logit - log_total
    log_norm: Tensor  # [N] log of the sum of exp f, 0 without a guide
    tau: Tensor  # [N] strength that was used, as the guide's, 0 without a guide
    is_held_back: Tensor  # [N] bool, whether the budget lowered the strength
    is_finite: Tensor  # [N] bool, False where the row holds NaN, +inf or no finite logit, or a child's value is NaN
