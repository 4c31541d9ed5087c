"""Completions as trees of prefixes, so that a forward sees each prefix once, and how they are cut into micro-batches.

The completions of a problem share its prompt, and often much of what follows. Prompts with the same worked examples
share those. A tree holds prompts and then every token that some completion continues. A mask lets each position see
its own prefix alone. A completion's last token is scored but has no position, since nothing follows it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Batch, PrefixTrees
from tinyzero_astar.resources.workload import is_worth_joining


@dataclass(eq=False)
class Tree:
    """Completions with their prompts. Positions and scored tokens are numbered in the order in which they come."""

    ids: list[int] = field(default_factory=list)  # one per position
    depth: list[int] = field(default_factory=list)  # number of tokens before each in its own sequence
    chains: list[tuple[int, int]] = field(default_factory=list)  # first position of each run, and the one it follows
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)  # position and the token after it -> scored token
    scored: list[list[int]] = field(default_factory=list)  # by completion, the numbers of its tokens
    rows: list[int] = field(default_factory=list)  # by completion, its row in the batch
    _position: dict[tuple[int, int], int] = field(
        default_factory=dict
    )  # of a token after a position, or after -1 for the first

    def growth(self, prompt: Sequence[int], completion: Sequence[int]) -> int:
        """Positions that a completion of a prompt would add."""
        at, length = -1, len(prompt) + len(completion) - 1
        for index, token in enumerate(chain(prompt, completion[:-1])):
            following = self._position.get((at, token))
            if following is None:
                return length - index
            at = following
        return 0

    def add(self, prompt: Sequence[int], completion: Sequence[int], row: int) -> None:
        """One more completion, at least one token long, which stands in a row of the batch."""
        at, own = -1, []
        for token in prompt:
            at = self._position_of(token, at)
        for token in completion[:-1]:
            own.append(self._number_of(token, at))
            at = self._position_of(token, at)
        own.append(self._number_of(completion[-1], at))
        self.scored.append(own)
        self.rows.append(row)

    def _number_of(self, token: int, before: int) -> int:
        return self.numbers.setdefault((before, token), len(self.numbers))

    def _position_of(self, token: int, before: int) -> int:
        position = self._position.setdefault((before, token), len(self.ids))
        if position == len(self.ids):  # a new one
            if before < 0 or before < len(self.ids) - 1:  # not a continuation of the newest chain
                self.chains.append((len(self.ids), before))
            self.ids.append(token)
            self.depth.append(self.depth[before] + 1 if before >= 0 else 0)
        return position


def grow_trees(
    batch: Batch, rows: Sequence[int], max_tokens: int, linear_cost: float, max_completions: int | None = None
) -> list[Tree]:
    """The given rows of a batch as trees, the smallest first.

    A completion joins the newest tree of its problem, or else the newest tree of all, unless the tree would have more
    than `max_tokens` positions, or attention between all of its positions would cost more than what is shared saves.
    Otherwise it begins a tree, which may then have more positions than `max_tokens`.

    Args:
        batch: with the rows.
        rows: to be trained on.
        max_tokens: see above.
        linear_cost: see `resources.workload.is_worth_joining`.
        max_completions: of one tree, or None for any number.
    """
    trees: list[Tree] = []
    length = batch.is_token.sum(1).tolist()
    problems = batch.problem.tolist()
    tokens = batch.tokens.tolist()
    newest: dict[int, Tree] = {}
    for row in rows:
        problem, completion = problems[row], tokens[row][: length[row]]
        prompt = batch.prompts[problem]
        for tree in dict.fromkeys([newest.get(problem), trees[-1] if trees else None]):
            if tree is None or len(tree.rows) == max_completions:
                continue
            if _has_room(tree, prompt, completion, max_tokens, linear_cost):
                break
        else:
            tree = Tree()
            trees.append(tree)
        tree.add(prompt, completion, row)
        newest[problem] = tree
    return sorted(trees, key=lambda tree: len(tree.ids))


def _has_room(
    tree: Tree, prompt: Sequence[int], completion: Sequence[int], max_tokens: int, linear_cost: float
) -> bool:
    growth = tree.growth(prompt, completion)
    shared = len(prompt) + len(completion) - 1 - growth
    return len(tree.ids) + growth <= max_tokens and is_worth_joining(growth, len(tree.ids), shared, linear_cost)


def micro_batches(trees: Sequence[Tree], max_tokens: int, share: int = 0, num_shares: int = 1) -> Iterator[list[Tree]]:
    """Trees of similar size, so that trees * positions of the largest stays within `max_tokens` (or one tree).

    Args:
        trees: the smallest first.
        max_tokens: see above.
        share: which of the shares. Trees are dealt out in order, so that shares cost the same.
        num_shares: the last ones may be empty.
    """
    group: list[Tree] = []
    for tree in trees[share::num_shares]:
        if group and (len(group) + 1) * len(tree.ids) > max_tokens:
            yield group
            group = []
        group.append(tree)
    if group:
        yield group


def stack(trees: Sequence[Tree], device: torch.device) -> tuple[Tensor, PrefixTrees]:
    """The rows of the trees' completions, and the trees as tensors, whose completions are in the order of these rows.

    Args:
        trees: at least one.
        device: of the tensors.
    """
    longest = max(len(tree.ids) for tree in trees)
    width = max(len(own) for tree in trees for own in tree.scored)
    ids: list[int] = []  # any token will do for padding
    position: list[int] = []
    # The masks are the largest tensors, so that they are made where they are used.
    is_seen = torch.eye(longest, dtype=torch.bool, device=device).repeat(len(trees), 1, 1)  # padding sees itself
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril_()
    parent: list[int] = []
    token: list[int] = []
    scored: list[int] = []
    cell: dict[int, int] = {}
    for index, tree in enumerate(trees):
        padding = [0] * (longest - len(tree.ids))
        ids += tree.ids + padding
        position += tree.depth + padding
        _see_prefixes(is_seen[index], tree, causal)
        for own in tree.scored:
            numbers = [len(parent) + number for number in own]
            cell |= dict(zip(numbers, range(len(scored), len(scored) + width), strict=False))
            scored += numbers + [0] * (width - len(own))
        parent += [index * longest + at for at, _ in tree.numbers]
        token += [after for _, after in tree.numbers]
    rows = [row for tree in trees for row in tree.rows]
    cells = [cell[number] for number in range(len(parent))]
    return _int64(rows, device), PrefixTrees(
        ids=_int64(ids, device).view(len(trees), longest),
        position=_int64(position, device).view(len(trees), longest),
        is_seen=is_seen[:, None],
        parent=_int64(parent, device),
        token=_int64(token, device),
        scored=_int64(scored, device).view(len(rows), width),
        cell=_int64(cells, device),
    )


def _int64(numbers: Sequence[int], device: torch.device) -> Tensor:
    """The numbers, of which there is one at least. `torch.tensor` takes ten times as long to read a list."""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64).to(device)


def _see_prefixes(is_seen: Tensor, tree: Tree, causal: Tensor) -> None:
    """Fill in the mask [L, L]. A chain sees what the position before it sees, and its own positions up to each.

    `causal` [L, L] lets every position see those up to itself.
    """
    ends = [first for first, _ in tree.chains[1:]] + [len(tree.ids)]
    for (first, before), last in zip(tree.chains, ends, strict=True):
        if before >= 0:
            is_seen[first:last, :first] = is_seen[before, :first]
        is_seen[first:last, first:last] = causal[: last - first, : last - first]
