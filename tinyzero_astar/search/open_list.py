"""What mode best_first remembers: scored prefixes, those that were popped, and for a trace those that were dropped."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass
class Entries:
    """Up to C scored prefixes per group, [G, C] each; f is -inf where there is none."""

    f: Tensor
    g: Tensor
    logp: Tensor  # of the last token
    least: Tensor  # the least of any token
    child_logit: Tensor  # of the prefix, as the one before it foresees it
    token: Tensor  # the last token
    depth: Tensor  # generated tokens, the last included
    node: Tensor  # node that it is a child of
    slot: Tensor  # slot of the group where that node's prefix stands
    problem: Tensor  # whose prefix it is

    @staticmethod
    def empty(groups: int, capacity: int, like: Tensor) -> Entries:
        """None at all."""
        real = torch.zeros((5, groups, capacity), dtype=torch.float64, device=like.device)
        index = torch.zeros((5, groups, capacity), dtype=torch.int64, device=like.device)
        return Entries(real[0] - torch.inf, *real[1:], *index)

    def fields(self) -> list[Tensor]:
        """In the order in which they are declared."""
        return [getattr(self, field.name) for field in fields(self)]

    def at(self, group: Tensor, column: Tensor) -> Entries:
        """Some of them."""
        return Entries(*(x[group, column] for x in self.fields()))

    def count(self, num_problems: int) -> Tensor:
        """[P] prefixes of each problem."""
        none = torch.zeros(num_problems, dtype=torch.int64, device=self.f.device)
        return none.index_add(0, self.problem.flatten(), torch.isfinite(self.f).flatten().long())

    def merge(self, group: Tensor, new: Entries) -> tuple[list[Tensor], Tensor]:
        """Keep the best C of these and `new` [N, C'] for the given groups.

        Returns:
            The fields of all, [N, C + C'] each, and the columns of those that were not kept, [N, C'].
        """
        capacity = self.f.shape[1]
        joined = [torch.cat([old[group], x], 1) for old, x in zip(self.fields(), new.fields(), strict=True)]
        order = joined[0].argsort(dim=1, descending=True, stable=True)
        for old, x in zip(self.fields(), joined, strict=True):
            old[group] = x.gather(1, order[:, :capacity])
        return joined, order[:, capacity:]


@dataclass
class Popped:
    """Expanded prefixes; node n of a group was popped in step n, after its prompts. [G] tensors."""

    parent: list[Tensor] = field(default_factory=list)
    token: list[Tensor] = field(default_factory=list)
    logp: list[Tensor] = field(default_factory=list)
    child_logit: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    baseline: list[Tensor] = field(default_factory=list)
    g: list[Tensor] = field(default_factory=list)
    f: list[Tensor] = field(default_factory=list)
    depth: list[Tensor] = field(default_factory=list)
    problem: list[Tensor] = field(default_factory=list)  # -1 where the group popped nothing


@dataclass
class Dropped:
    """Open prefixes of the first groups that better ones pushed out, for a trace."""

    num_groups: int  # that are looked at
    found: list[tuple[int, int, Entries]] = field(default_factory=list)
    """Step, group, and the prefixes of that group, [1, N]."""

    def note(self, step: int, group: Tensor, entries: Entries) -> None:
        """What was pushed out in a step, [N, C] of the given groups."""
        there = torch.isfinite(entries.f)
        for row, number in enumerate(group.tolist()):
            if number < self.num_groups and bool(there[row].any()):
                own = Entries(*(x[row, there[row]][None] for x in entries.fields()))
                self.found.append((step, number, own))
