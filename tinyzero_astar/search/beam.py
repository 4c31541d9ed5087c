"""The state of a search in lock step: G groups of K rows, with a prefix in each row, all at the same depth.

A group shares one budget of K leaves and, in mode "gumbel", one threshold kappa. It holds one problem or several. The
`origin` of a row is the problem in whose tree it stands. A row may change to another tree, as it may to another prefix.

Rows are numbered across groups. Row k of group g has *place* g K + k. A slot of the decoder has the number of the row
whose prefix it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.kernels import HAS_TRITON
from tinyzero_astar.search.gumbel import prefix_hashes

CARRIED = ("priority", "log_q", "log_pi", "last", "least", "hashes", "is_open", "origin")  # what a step changes
NO_TOKEN = -1  # a row that adds nothing at this step, because its leaf is finished or it has none


class Grid(NamedTuple):
    """The places of all rows."""

    group: Tensor  # [G] 0, 1, ...
    place: Tensor  # [G, K]
    first: Tensor  # [G, 1] of each group's first row

    @staticmethod
    def of(num_groups: int, num_rows: int, device: torch.device) -> Grid:
        """The places of G groups of K rows."""
        place = torch.arange(num_groups * num_rows, device=device).view(num_groups, num_rows)
        return Grid(torch.arange(num_groups, device=device), place, place[:, :1])

    def group_of(self, place: Tensor) -> Tensor:
        """The group that each place belongs to."""
        return place.div(self.place.shape[1], rounding_mode="floor")


class Choice(NamedTuple):
    """The next K rows of every group. Each tensor is [G, K]."""

    parent: Tensor | None  # place of what each new row extends or carries on, None means its own
    token: Tensor  # that it adds, or NO_TOKEN
    priority: Tensor
    logp: Tensor
    logq: Tensor


class Step(NamedTuple):
    """What one step added; [G, K] each. Enough to read every leaf off backwards."""

    parent: Tensor | None
    token: Tensor
    logp: Tensor
    logq: Tensor
    value_logit: Tensor
    baseline: Tensor
    child_logit: Tensor  # of the new prefix
    priority: Tensor


class TokenTable(NamedTuple):
    """What each token does to a prefix. Each tensor is [V + 1], and the last entry is for NO_TOKEN."""

    bits: Tensor  # int64, see `gumbel.token_bits`
    goes_on: Tensor  # True where a prefix can be extended after that token


@dataclass(frozen=True)
class Beam:
    """The rows of every group. Each tensor is [G, K] unless its comment says otherwise."""

    grid: Grid
    priority: Tensor  # float64, -inf where there is no prefix
    log_q: Tensor  # float64, phi of the prefix
    log_pi: Tensor  # float64, g of the prefix
    last: Tensor  # float64, log pi of the prefix's last token, 0 at a prompt and where a row added nothing
    least: Tensor  # float64, the least log pi of its tokens, 0 at a prompt
    hashes: Tensor  # [3, G, K] int64, the prefix's state and the bits of the two numbers drawn at it
    row: Tensor  # int64, which row of the StepOutput belongs to the prefix of an open row
    is_open: Tensor  # True where the prefix can be extended
    origin: Tensor  # int64, which of the chosen problems (`roots.Roots`) the prefix belongs to
    places: Tensor  # [N] of the open rows, in the order in which the decoder is asked for them
    group: Tensor  # [N] of the open rows, the group in which they compete
    has_all: bool = False  # every row counts as one of the N, open or not, so that no shape ever changes

    @property
    def problem(self) -> Tensor:
        """The problem that the prefix of each open row belongs to, as its number among the chosen problems, [N]."""
        return self.at_open(self.origin)

    @property
    def path(self) -> Tensor:
        """The path of each open row, [N, 3], as `interfaces.Decoder.step` takes it."""
        return torch.stack([self.at_open(x) for x in (self.last, self.log_pi, self.least)], -1)

    def at_open(self, x: Tensor) -> Tensor:
        """What [G, K] holds at the open rows, [N]."""
        return x.flatten() if self.has_all else torch.take(x, self.places)

    def spread(self, values: Tensor, elsewhere: float) -> Tensor:
        """[G, K] of values [N] of the open rows, and one number at the others."""
        if self.has_all:
            return torch.where(self.is_open, values.view_as(self.row), elsewhere)
        every = values.new_full(self.row.shape, elsewhere).flatten()
        return every.index_copy_(0, self.places, values).view_as(self.row)

    def after(self, choice: Choice, tokens: TokenTable) -> Beam:
        """The beam once each row took its token. Rows whose token ends the prefix are leaves."""
        is_open = torch.take(tokens.goes_on, choice.token)
        places = self.places if self.has_all else is_open.flatten().nonzero()[:, 0]
        state = carried(self.hashes[0], choice.parent)
        return Beam(
            grid=self.grid,
            priority=choice.priority,
            log_q=carried(self.log_q, choice.parent) + choice.logq,
            log_pi=carried(self.log_pi, choice.parent) + choice.logp,
            last=choice.logp,
            least=torch.minimum(carried(self.least, choice.parent), choice.logp),
            hashes=prefix_hashes(state ^ torch.take(tokens.bits, choice.token)),  # of rows that stay open
            row=self.row if self.has_all else self._numbered(places),
            is_open=is_open,
            origin=carried(self.origin, choice.parent),
            places=places,
            group=self.group if self.has_all else self.grid.group_of(places),
            has_all=self.has_all,
        )

    def with_all(self) -> Beam:
        """The same rows, all of which are stepped. It has tensors of its own, which can be written over."""
        place = self.grid.place.flatten()
        own = {x: getattr(self, x).clone() for x in CARRIED}
        return replace(self, **own, row=self.grid.place, places=place, group=self.grid.group_of(place), has_all=True)

    def advance(self, choice: Choice, tokens: TokenTable) -> None:
        """Become the beam `after` a choice, in these tensors, of rows that are `with_all`."""
        if self.priority.is_cuda and HAS_TRITON:
            from tinyzero_astar.search.beam_kernels import advance

            assert choice.parent is not None
            advance([getattr(self, name) for name in CARRIED], (choice.parent, *choice[1:]), *tokens)
        else:
            beam = self.after(choice, tokens)
            for name in CARRIED:
                getattr(self, name).copy_(getattr(beam, name))

    def _numbered(self, places: Tensor) -> Tensor:
        """[G, K] `row`, given the places that the decoder is asked for."""
        row = torch.zeros_like(self.row)
        row.view(-1).index_copy_(0, places, torch.arange(len(places), device=places.device))
        return row


def carried(x: Tensor, parent: Tensor | None) -> Tensor:
    """What each row's parent has, [G, K]."""
    return x if parent is None else torch.take(x, parent)
