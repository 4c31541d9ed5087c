"""From what a search has remembered to the nodes of its trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.interfaces import TraceNode
from tinyzero_astar.search.beam import NO_TOKEN, Step
from tinyzero_astar.search.heuristic import Guidance, Tilt, f_score, inverse_beta_of, soft_value, tilt_of
from tinyzero_astar.search.open_list import Dropped, Entries, Popped
from tinyzero_astar.search.roots import Roots

# ----------------------------------------------------------------------------------------------------- in lock step


class _Kept(NamedTuple):
    """A prefix that a row holds."""

    number: int  # of the chosen problem
    node: int  # of its tree


class _Forest:
    """Trees that grow step by step, and what the rows hold."""

    def __init__(self, roots: Roots, root_logit: Tensor, tilt: Tilt, num_rows: int) -> None:
        home, is_open = (x.flatten()[:num_rows].tolist() for x in (roots.home, roots.is_open))
        h, success = soft_value(root_logit, tilt).tolist(), torch.sigmoid(root_logit.double()).tolist()
        priority = torch.take(roots.priority, roots.first).tolist()
        self.trees: dict[int, list[tuple[Any, ...]]] = {
            i: [(-1, NO_TOKEN, 0, 0.0, h[i], h[i], priority[i], success[i], False)] for i in sorted({*home})
        }
        self.ends: dict[_Kept, int] = {_Kept(i, 0): -1 for i in self.trees}
        self.rows = [_Kept(i, 0) if there else None for i, there in zip(home, is_open, strict=True)]

    def grow(self, depth: int, parents: list[int], columns: list[list[Any]], ends: set[int] | None) -> None:
        """Another step: what each row extends or carries on, and for each token, g, h, f, priority, success.

        `ends` are the tokens after which a prefix is finished, None where all are.
        """
        rows: list[_Kept | None] = []
        for parent, token, *scores in zip(parents, *columns, strict=True):
            before = self.rows[parent]
            if before is None or token == NO_TOKEN:
                rows.append(before)
                continue
            own = _Kept(before.number, len(self.trees[before.number]))
            self.trees[own.number].append((before.node, token, depth, *scores, ends is None or token in ends))
            self.ends[own] = -1
            rows.append(own)
        for gone in {*self.rows} - {*rows}:  # extended or pushed out
            if gone is not None:
                self.ends[gone] = depth
        self.rows = rows


def trace_rows(
    history: list[Step],
    roots: Roots,
    root_logit: Tensor,
    guidance: Guidance,
    eos_ids: tuple[int, ...],
    num_groups: int,
) -> list[TraceNode]:
    """The kept prefixes of the first groups as nodes, problem by problem, parents before children."""
    tilt = tilt_of(inverse_beta_of(guidance, root_logit))
    num_rows = min(num_groups, len(roots.home)) * roots.home.shape[1]
    forest = _Forest(roots, root_logit, tilt, num_rows)
    every = torch.arange(num_rows, device=roots.home.device)
    number, g = (x.flatten()[:num_rows] for x in (roots.home, torch.zeros_like(roots.priority)))
    for depth, step in enumerate(history, start=1):
        parent = every if step.parent is None else step.parent.flatten()[:num_rows]
        token, logp, logit, priority = (
            x.flatten()[:num_rows] for x in (step.token, step.logp, step.child_logit, step.priority)
        )
        number, g = torch.take(number, parent), torch.take(g, parent) + torch.where(token == NO_TOKEN, 0.0, logp)
        h = soft_value(logit, Tilt(*(torch.take(x, number) for x in tilt))).double()
        columns = (token, g, h, f_score(g, h), priority, torch.sigmoid(logit.double()))
        ends = None if depth == len(history) else {*eos_ids}
        forest.grow(depth, parent.tolist(), [x.tolist() for x in columns], ends)
    chosen, found = roots.chosen.tolist(), []
    for i in sorted(forest.trees, key=lambda i: chosen[i]):
        for node, (parent, token, depth, g, h, f, priority, success, is_leaf) in enumerate(forest.trees[i]):
            end = forest.ends[_Kept(i, node)]
            status: Literal["leaf", "expanded"] = "leaf" if is_leaf else "expanded"
            own = TraceNode(
                chosen[i], node, parent, token, depth, g, h, f, priority, success, step=depth, end=end, status=status
            )
            found.append(own)
    return found


# ------------------------------------------------------------------------------------------------------- best first


def trace_pops(popped: Popped, leaves: Entries, still_open: Entries, dropped: Dropped) -> list[TraceNode]:
    """Expanded prefixes in the order in which they were popped, then leaves, what stayed open, what was dropped.

    Of the first groups, problem by problem.
    """
    trees: dict[int, list[TraceNode]] = {}
    for group in range(min(dropped.num_groups, len(leaves.f))):
        number_in_tree: list[int] = []  # of the group's nodes
        for node in _popped_nodes(popped, group, number_in_tree, trees):
            trees[node.problem].append(node)
        lost = [(step, False, entries) for step, of, entries in dropped.found if of == group]
        for end, is_leaf, entries in ((-1, True, _row(leaves, group)), (-1, False, _row(still_open, group)), *lost):
            for node in _scored_nodes(entries, end, is_leaf, number_in_tree, trees):
                trees[node.problem].append(node)
    return [node for problem in sorted(trees) for node in trees[problem]]


def _row(entries: Entries, group: int) -> Entries:
    return Entries(*(x[group : group + 1] for x in entries.fields()))


def _popped_nodes(
    popped: Popped, group: int, number_in_tree: list[int], trees: dict[int, list[TraceNode]]
) -> Iterator[TraceNode]:
    names = ("problem", "parent", "token", "depth", "g", "f", "child_logit", "value")
    columns = [torch.stack(getattr(popped, name), 1)[group].tolist() for name in names]
    for step, (problem, parent, token, depth, g, f, child_logit, value) in enumerate(zip(*columns, strict=True)):
        own = trees.setdefault(problem, []) if problem >= 0 else []
        number_in_tree.append(len(own))
        if problem < 0:  # the group has popped nothing
            continue
        if parent < 0:
            yield TraceNode(problem, 0, -1, NO_TOKEN, 0, g, f - g, f, f, value, 0, step, "expanded")
            continue
        success = float(torch.sigmoid(torch.tensor(child_logit, dtype=torch.float64)))
        above = number_in_tree[parent]
        yield TraceNode(problem, len(own), above, token, depth, g, f - g, f, f, success, parent, step, "expanded")


def _scored_nodes(
    entries: Entries, end: int, is_leaf: bool, number_in_tree: list[int], trees: dict[int, list[TraceNode]]
) -> Iterator[TraceNode]:
    there = torch.isfinite(entries.f[0])
    status: Literal["leaf", "open", "dropped"] = "dropped" if end >= 0 else "leaf" if is_leaf else "open"
    names = ("problem", "node", "token", "depth", "g", "f")
    columns = [getattr(entries, name)[0, there].tolist() for name in names]
    success = torch.sigmoid(entries.child_logit[0, there]).tolist()
    for problem, parent, token, depth, g, f, p in zip(*columns, success, strict=True):
        own, above = len(trees[problem]), number_in_tree[parent]
        yield TraceNode(problem, own, above, token, depth, g, f - g, f, f, p, parent, end, status)
