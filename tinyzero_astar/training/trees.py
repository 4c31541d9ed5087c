"""Completions as trees of prefixes, so that a forward sees each prefix once, and how they are cut into micro-batches.

The completions of a problem share its prompt, and often much of what follows. A tree holds the prompt and then every
token that some completion continues. A mask lets each position see its own prefix alone. A completion's last token is
scored but has no position, since nothing follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Batch, PrefixTrees
from tinyzero_astar.resources.workload import is_worth_joining


@dataclass
class Tree:
    """Completions of one prompt. Positions and scored tokens are numbered in the order in which they come."""

    ids: list[int]  # one per position, at first those of the prompt
    depth: list[int] = field(default_factory=list)  # number of tokens before each in its own sequence
    chains: list[tuple[int, int]] = field(default_factory=list)  # first position of each run, and the one it follows
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)  # position and the token after it -> scored token
    scored: list[list[int]] = field(default_factory=list)  # by completion, the numbers of its tokens
    rows: list[int] = field(default_factory=list)  # by completion, its row in the batch
    _position: dict[int, int] = field(default_factory=dict)  # of a scored token that something follows

    def __post_init__(self) -> None:
        """The prompt is the first chain."""
        self.depth = list(range(len(self.ids)))
        self.chains = [(0, -1)]
        self.num_prompt = len(self.ids)

    def growth(self, completion: Sequence[int]) -> int:
        """Positions that a completion would add."""
        at = self.num_prompt - 1
        for index, token in enumerate(completion[:-1]):
            number = self.numbers.get((at, token))
            if number not in self._position:
                return len(completion) - 1 - index
            at = self._position[number]
        return 0

    def add(self, completion: Sequence[int], row: int) -> None:
        """One more completion, at least one token long, which stands in a row of the batch."""
        at, own = self.num_prompt - 1, []
        for index, token in enumerate(completion, start=1):
            number = self.numbers.setdefault((at, token), len(self.numbers))
            own.append(number)
            if index < len(completion):
                at = self._position_of(number, token, at)
        self.scored.append(own)
        self.rows.append(row)

    def _position_of(self, number: int, token: int, before: int) -> int:
        if number not in self._position:
            self._position[number] = len(self.ids)
            if before < len(self.ids) - 1:  # not a continuation of the newest chain
                self.chains.append((len(self.ids), before))
            self.ids.append(token)
            self.depth.append(self.depth[before] + 1)
        return self._position[number]


def grow_trees(
    batch: Batch, rows: Sequence[int], max_tokens: int, linear_cost: float, max_completions: int | None = None
) -> list[Tree]:
    """The given rows of a batch as trees, a problem's together, the smallest first.

    A problem gets several trees where one would have more than `max_tokens` positions, though a single completion may,
    or where attention between all of its positions costs more than what is shared saves.

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
        tree = newest.get(problem)
        is_full = tree is not None and len(tree.rows) == max_completions
        if tree is None or is_full or not _has_room(tree, completion, max_tokens, linear_cost):
            tree = newest[problem] = Tree(list(batch.prompts[problem]))
            trees.append(tree)
        tree.add(completion, row)
    return sorted(trees, key=lambda tree: len(tree.ids))


def _has_room(tree: Tree, completion: Sequence[int], max_tokens: int, linear_cost: float) -> bool:
    growth = tree.growth(completion)
    shared = tree.num_prompt + len(completion) - 1 - growth
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
    ids = torch.zeros(len(trees), longest, dtype=torch.int64, device="cpu")  # any token will do for padding
    position = torch.zeros_like(ids)
    is_seen = torch.eye(longest, dtype=torch.bool, device="cpu").repeat(len(trees), 1, 1)  # padding sees itself
    parent: list[int] = []
    token: list[int] = []
    scored: list[list[int]] = []
    cell: dict[int, int] = {}
    for index, tree in enumerate(trees):
        ids[index, : len(tree.ids)] = torch.tensor(tree.ids, device="cpu")
        position[index, : len(tree.ids)] = torch.tensor(tree.depth, device="cpu")
        _see_prefixes(is_seen[index], tree)
        for own in tree.scored:
            numbers = [len(parent) + number for number in own]
            cell |= dict(zip(numbers, range(len(scored) * width, (len(scored) + 1) * width), strict=False))
            scored.append(numbers + [0] * (width - len(own)))
        parent += [index * longest + at for at, _ in tree.numbers]
        token += [after for _, after in tree.numbers]
    rows = torch.tensor([row for tree in trees for row in tree.rows], device=device)
    cells = [cell[number] for number in range(len(parent))]
    index_of = [torch.tensor(x, device=device) for x in (parent, token, scored, cells)]
    return rows, PrefixTrees(ids.to(device), position.to(device), is_seen[:, None].to(device), *index_of)


def _see_prefixes(is_seen: Tensor, tree: Tree) -> None:
    """Fill in the mask [L, L]. A chain sees what the position before it sees, and its own positions up to each."""
    ends = [first for first, _ in tree.chains[1:]] + [len(tree.ids)]
    for (first, before), last in zip(tree.chains, ends, strict=True):
        if before >= 0:
            is_seen[first:last, :first] = is_seen[before, :first]
        is_seen[first:last, first:last] = torch.ones(last - first, last - first, dtype=torch.bool, device="cpu").tril_()
