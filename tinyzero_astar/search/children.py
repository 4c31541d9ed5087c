"""The children of a beam's prefixes, drawn from the top down.

The best child of each prefix is drawn first, and further ones only where they matter. A prefix's G is that of its best
child, so one uniform number decides which child that is. The others arrive later, at exponential times. Equation
numbers are those of docs/algorithm.md.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tinyzero_astar.search.beam import NO_TOKEN, Beam, Choice, Grid
from tinyzero_astar.search.best_child import BestChild, Guide
from tinyzero_astar.search.gumbel import first_arrivals, gumbel_after, inverse_cdf, to_uniform, waiting_time
from tinyzero_astar.search.heuristic import Proposal
from tinyzero_astar.search.vocabulary import best_child, logp_logq_of, masses


class Children(Protocol):
    """What is known of the children of the open rows once the best of each is drawn."""

    @property
    def second(self) -> Tensor:
        """[N] the largest G of the others."""
        ...

    @property
    def log_rate(self) -> Tensor:
        """[N] phi of the prefix, less the log of the factor of `others`."""
        ...

    def choice(self, beam: Beam) -> Choice:
        """Every row goes on with its best child, which has its own G."""
        ...

    def others(self, rows: Tensor) -> Tensor:
        """q(a|s) of some of the rows up to a factor of the prefix, 0 at the best child, [M, V]."""
        ...

    def log_probabilities(self, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """log pi and log q, [S] float64, of tokens at rows of the StepOutput."""
        ...


class WholeChildren(NamedTuple):
    """`Children` with their log-probabilities as tensors over the vocabulary."""

    logp: Tensor  # [N, V]
    twist: Proposal | None  # None means that q is the policy. Its mass is that of the others by now
    best: Tensor  # [N, 1] the token with the largest G
    mass: Tensor  # [N, V] see `others`
    log_rate: Tensor
    second: Tensor

    @staticmethod
    def drawn(beam: Beam, logp: Tensor, twist: Proposal | None) -> WholeChildren:
        """The best child and the G of the next one (eq. 8)."""
        log_rate = beam.at_open(beam.log_q)
        if twist is None:
            mass = logp.exp()
        else:
            mass, log_rate = twist.mass, log_rate - twist.log_norm[:, 0]
        which, when = (beam.at_open(x) for x in beam.hashes[1:])
        best = inverse_cdf(mass, to_uniform(which)[:, None])
        others = mass.scatter_(1, best, 0.0)
        wait = waiting_time(when).div_(others.sum(-1))
        second = gumbel_after(beam.at_open(beam.priority), wait, log_rate)
        return WholeChildren(logp, twist, best, others, log_rate, second)

    def choice(self, beam: Beam) -> Choice:
        """See `Children.choice`."""
        logp = logq = beam.spread(self.logp.gather(1, self.best)[:, 0].double(), 0.0)
        if self.twist is not None:
            logq = beam.spread((self.twist.score.gather(1, self.best) - self.twist.log_norm)[:, 0].double(), 0.0)
        return Choice(None, beam.spread(self.best[:, 0], NO_TOKEN), beam.priority, logp, logq)

    def others(self, rows: Tensor) -> Tensor:
        """See `Children.others`."""
        return self.mass.index_select(0, rows)

    def log_probabilities(self, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """See `Children.log_probabilities`."""
        at = torch.add(token, row, alpha=self.logp.shape[1])
        logp = torch.take(self.logp, at).double()
        if self.twist is None:
            return logp, logp
        return logp, (torch.take(self.twist.score, at) - torch.take(self.twist.log_norm, row)).double()


class FusedChildren(NamedTuple):
    """`Children` by one pass over the logits, which waits for nothing and so can be recorded."""

    logits: Tensor  # [N, V]
    guide: Guide | None  # None means that q is the policy
    best: BestChild
    log_rate: Tensor
    second: Tensor

    @staticmethod
    def drawn(beam: Beam, logits: Tensor, guide: Guide | None) -> FusedChildren:
        """The best child and the G of the next one (eq. 8)."""
        which, when = (beam.at_open(x) for x in beam.hashes[1:])
        best, log_q = best_child(logits, to_uniform(which), guide), beam.at_open(beam.log_q)
        second = gumbel_after(beam.at_open(beam.priority), waiting_time(when), log_q + best.log_rest)
        second = torch.where(beam.at_open(beam.is_open), second, -torch.inf)  # a leaf has no children
        return FusedChildren(logits, guide, best, log_q - best.log_norm, second)

    def choice(self, beam: Beam) -> Choice:
        """See `Children.choice`."""
        logp, logq = (beam.spread(x, 0.0) for x in (self.best.logp, self.best.logq))
        return Choice(None, beam.spread(self.best.token, NO_TOKEN), beam.priority, logp, logq)

    def others(self, rows: Tensor) -> Tensor:
        """See `Children.others`."""
        return masses(self.logits, self.best, self.guide, rows)

    def log_probabilities(self, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """See `Children.log_probabilities`."""
        return logp_logq_of(self.logits, self.best, self.guide, row, token)


class Further(NamedTuple):
    """Children of rows beyond the best, the first C to arrive of each, as one pool per group."""

    priority: Tensor  # [G, K C] their G, C by C in the order of the rows, -inf where there is none
    token: Tensor  # [G K, C]

    @staticmethod
    def drawn(beam: Beam, children: Children, close: Tensor, counters: Tensor) -> Further:
        """The further children of some open rows, `close` [M] of the N. `counters` [V] are `gumbel.token_counters`."""
        places, log_rate, bound = (x.index_select(0, close) for x in (beam.places, children.log_rate, children.second))
        others = children.others(close)
        num_groups, num_rows = beam.row.shape
        has_some = torch.isfinite(bound)[:, None]
        num = min(num_rows, others.shape[1])  # no more can be chosen, or be the best one left out
        arrival, token = first_arrivals(torch.take(beam.hashes[0], places), others, counters, num)
        g = gumbel_after(bound[:, None], arrival - arrival[:, :1], log_rate[:, None])
        g = torch.where(has_some, g, -torch.inf)  # without any, the first one arrives at inf
        shape = beam.row.numel(), token.shape[1]
        return Further(
            priority=g.new_full(shape, -torch.inf).index_copy_(0, places, g).view(num_groups, -1),
            token=token.new_zeros(shape).index_copy_(0, places, token),  # where G is -inf it is not chosen
        )

    def source_and_token(self, grid: Grid, entry: Tensor) -> tuple[Tensor, Tensor]:
        """[G, S] places that entries [G, S] of the pools descend from, and their tokens."""
        num_each = self.token.shape[1]
        entry = torch.add(entry, grid.first, alpha=num_each)  # among those of all groups
        return entry.div(num_each, rounding_mode="floor"), torch.take(self.token, entry)
