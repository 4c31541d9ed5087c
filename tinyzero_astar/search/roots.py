"""Where the rows of a search begin: which problems of a group are searched, and how often.

A group is M problems that share one budget of leaves. Its virtual root has them as children, equally likely unless the
root is tilted. All noise comes from the problems' own seeds, so neither their order nor what else is in the batch
matters. Equation numbers are those of docs/algorithm.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tinyzero_astar.search.beam import Beam, Grid
from tinyzero_astar.search.gumbel import hash_number, hash_with, prefix_hashes, root_gumbel, token_bits

_CHOICE_STREAM = 0x600D  # keeps the choice of problems apart from all else that is drawn of their seeds


@dataclass(frozen=True)
class Roots:
    """The first rows of every group. Each tensor is [G, K] unless its comment says otherwise."""

    grid: Grid
    chosen: Tensor  # [N] problems whose prompts are evaluated
    first: Tensor  # [N] place of the first row of each
    home: Tensor  # which of the N a row's slot holds at first, any of its group where no prefix begins
    is_open: Tensor  # True where a prefix begins
    seed: Tensor  # int64, of the row's noise
    priority: Tensor  # float64, -inf where no prefix begins
    log_q: Tensor  # float64, log of M q(x), how much likelier than the others the problem was to be searched
    left_out: Tensor | None  # [G] the largest G of a problem that has no row, None means that all have one

    def to(self, device: torch.device) -> Roots:
        """The same on a device."""
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grid"}
        moved: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in own.items()}
        return replace(self, grid=Grid(*(x.to(device) for x in self.grid)), **moved)

    def beam(self) -> Beam:
        """The rows before the first step, which hold prompts only."""
        places = self.is_open.flatten().nonzero()[:, 0]
        nothing = torch.zeros_like(self.log_q)
        return Beam(
            grid=self.grid,
            priority=self.priority,
            log_q=self.log_q,
            log_pi=nothing,
            last=nothing,
            least=nothing,
            hashes=prefix_hashes(self.seed),
            row=self.home,  # prompts are evaluated once, in the order of the chosen problems
            is_open=self.is_open,
            origin=self.home,
            places=places,
            group=self.grid.group_of(places),
        )


def searched_roots(seeds: Tensor, group_size: int, num_rows: int, log_tilt: Tensor | None = None) -> Roots:
    """The problems with the largest Gumbel-perturbed log q(x), a row each (eq. 21).

    The rates of problems are M q(x), not q(x). A constant factor on all of them moves kappa along and changes no
    weight. So the weights of eq. 21 are those of a problem, which sum to 1 on average.

    Args:
        seeds: int64 [P], of G groups one after another.
        group_size: M, of which P is a multiple.
        num_rows: K, of a group.
        log_tilt: [P] float64 log of M q(x). None means that all are equally likely.
    """
    device = seeds.device
    num_groups, count = len(seeds) // group_size, min(group_size, num_rows)
    grid = Grid.of(num_groups, num_rows, device)
    log_tilt = torch.zeros(len(seeds), dtype=torch.float64, device=device) if log_tilt is None else log_tilt
    priority = root_gumbel(prefix_hashes(seeds)[0]) + log_tilt  # G(x) = 0 would bias eq. 6
    best, member = priority.view(num_groups, group_size).topk(min(group_size, num_rows + 1))
    chosen = (member[:, :count] + group_size * grid.group[:, None]).flatten()
    column = torch.arange(num_rows, device=device)
    home = torch.where(column < count, column, 0) + count * grid.group[:, None]
    is_open = (column < count).expand_as(home)
    return Roots(
        grid=grid,
        chosen=chosen,
        first=grid.place[:, :count].flatten(),
        home=home,
        is_open=is_open,
        seed=torch.take(torch.take(seeds, chosen), home),
        priority=torch.where(is_open, torch.take(torch.take(priority, chosen), home), -torch.inf),
        log_q=torch.take(torch.take(log_tilt, chosen), home),
        left_out=best[:, num_rows] if group_size > num_rows else None,
    )


def sampled_roots(seeds: Tensor, group_size: int, num_rows: int, log_tilt: Tensor | None = None) -> Roots:
    """Equally many rows for each problem of a group, as far as possible.

    Which problems get one more row is drawn without replacement.

    Args:
        seeds: int64 [P], of G groups one after another.
        group_size: M, of which P is a multiple.
        num_rows: K, of a group. A problem has K / M rows on average.
        log_tilt: must be None, because samples have no weights that could undo it.

    Raises:
        ValueError: the root is tilted.
    """
    if log_tilt is not None:
        raise ValueError("a tilted root needs mode gumbel: its weights undo the tilt")
    device = seeds.device
    num_groups, (each, extra) = len(seeds) // group_size, divmod(num_rows, group_size)
    grid = Grid.of(num_groups, num_rows, device)
    drawn = hash_with(seeds, torch.tensor(_CHOICE_STREAM, device=device)).view(num_groups, group_size)
    more = drawn.argsort(1)[:, :extra].sort(1).values  # [G, extra]
    member = torch.arange(group_size, device=device)
    stream = torch.arange(each, device=device).repeat(group_size)
    problem = torch.cat([member.repeat_interleave(each).expand(num_groups, -1), more], 1) + (
        group_size * grid.group[:, None]
    )
    stream = torch.cat([stream, torch.full((extra,), each, device=device)])[None]
    chosen, home = problem.unique(return_inverse=True)
    zero = torch.zeros(problem.shape, dtype=torch.float64, device=device)
    first = torch.full_like(chosen, grid.place.numel()).scatter_reduce_(0, home.flatten(), grid.place.flatten(), "amin")
    return Roots(
        grid=grid,
        chosen=chosen,
        first=first,
        home=home,
        is_open=torch.ones_like(home, dtype=torch.bool),
        seed=hash_number(torch.take(seeds, problem)) ^ token_bits(stream),
        priority=zero,
        log_q=zero,
        left_out=None,
    )
