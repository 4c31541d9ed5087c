"""The literal A*, mode "best_first": an open list per group of problems, with the largest f = g + h first.

Children are scored by their parent's evaluation and cost nothing until they are popped, so a pop is one decoder row.
The open list holds `width` prefixes, each backed by a slot. When it overflows, the worst are dropped and counted. No
more than `width` prefixes of one depth are popped, which bounds the search (Meister et al. 2020). The search ends when
K leaves are at least as good as everything open. Ending at the first K *finished* leaves would return short and bad
completions.

Groups are popped together, one prefix each per step. Problems of a group compete for its open list and its leaves. The
search returns modes, not samples, so it is for decoding and not for gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, SearchStats, StepOutput, Trace
from tinyzero_astar.search.heuristic import (
    Guidance,
    Tilt,
    baseline_of,
    f_score,
    inverse_beta_of,
    log_policy,
    soft_value,
    tilt_of,
)
from tinyzero_astar.search.leaves import Leaves
from tinyzero_astar.search.open_list import Dropped, Entries, Popped
from tinyzero_astar.search.tracing import trace_pops


class _Search:
    """The state of one call. `expand` and `pop` alternate."""

    def __init__(
        self,
        root: StepOutput,
        ends: Tensor,
        shape: tuple[int, int, int],
        max_depth: int,
        guidance: Guidance,
        dropped: Dropped | None,
    ) -> None:
        """`shape` is the number of groups, leaves of a group and prefixes of its open list."""
        (groups, leaves, self.width), like = shape, root.logits
        problems = len(root.value_logit)
        self.max_depth, self.ends = max_depth, ends
        self.is_end = torch.isin(torch.arange(like.shape[1], device=like.device), ends)  # by token
        self.tilt = tilt_of(inverse_beta_of(guidance, root.value_logit.double()))
        strength = torch.as_tensor(guidance.strength, dtype=torch.float64, device=like.device)
        self.strength = strength.expand(problems)
        self.open = Entries.empty(groups, self.width, like)
        self.leaves = Entries.empty(groups, leaves, like)
        self.num_popped = torch.zeros((groups, max_depth + 1), dtype=torch.int64, device=like.device)
        self.num_groups, self.num_problems = groups, problems
        zero = torch.zeros(problems, dtype=torch.int64, device=like.device)
        self.expanded, self.forks, self.pruned = zero, zero, zero
        self.max_open = torch.zeros(groups, dtype=torch.int64, device=like.device)
        self.tree, self.dropped = Popped(), dropped

    def root(self, output: StepOutput, problem: Tensor) -> Entries:
        """The prompts of some problems [N], as if they had been popped."""
        entries = Entries.empty(len(problem), 1, output.logits)
        root = entries.at(torch.arange(len(problem), device=problem.device), torch.zeros_like(problem))
        h = soft_value(output.value_logit.double(), self.tilt)
        root.f = f_score(root.g, h[problem], self.strength[problem])
        root.node, root.problem = root.node - 1, problem
        return root

    def expand(self, group: Tensor, output: StepOutput, popped: Entries, slot: Tensor) -> None:
        """Score the children of the popped prefixes ([N] each) and put them where they belong."""
        node = len(self.tree.parent)
        self._record(group, output, popped)
        every_logp = log_policy(output)
        logp = every_logp.double()
        tilt = Tilt(*(x[popped.problem, None] for x in self.tilt))
        child_logit = output.child_logit(every_logp).double()
        h = soft_value(child_logit, tilt)
        if not bool(torch.isfinite(h).all()):
            raise FloatingPointError("the decoder returned a child's value that is NaN")
        g = popped.g[:, None] + logp
        f = f_score(g, h, self.strength[popped.problem, None])
        f = torch.where(torch.isfinite(logp), f, -torch.inf)
        depth = (popped.depth + 1)[:, None].expand_as(f)
        token = torch.arange(f.shape[1], device=f.device).expand_as(f)
        is_leaf = self.is_end | (depth == self.max_depth)
        slots, nodes = slot[:, None].expand_as(token), torch.full_like(token, node)
        problems = popped.problem[:, None].expand_as(token)

        def best(mask: Tensor, count: int) -> Entries:
            score, index = torch.where(mask, f, -torch.inf).topk(min(count, f.shape[1]))
            last = logp.gather(1, index)
            least = torch.minimum(popped.least[:, None], last)
            rest = (x.gather(1, index) for x in (child_logit, token, depth, nodes, slots, problems))
            return Entries(score, g.gather(1, index), last, least, *rest)

        self.leaves.merge(group, best(is_leaf, self.leaves.f.shape[1]))
        num_children = torch.isfinite(torch.where(is_leaf, -torch.inf, f)).sum(1)
        num_before = self.open.count(self.num_problems)
        self._open(group, best(~is_leaf, self.width))
        num_lost = num_before - self.open.count(self.num_problems)
        self.pruned = (self.pruned + num_lost).index_add(0, popped.problem, num_children)
        self.expanded = self.expanded.index_add(0, popped.problem, torch.ones_like(group))
        self.max_open = torch.maximum(self.max_open, torch.isfinite(self.open.f).sum(1))

    def _open(self, group: Tensor, new: Entries) -> None:
        """Put scored prefixes on the open lists, from which the worst are dropped."""
        joined, lost = self.open.merge(group, new)
        if self.dropped is not None:
            entries = Entries(*(x.gather(1, lost) for x in joined))
            self.dropped.note(len(self.tree.parent) - 1, group, entries)

    def _record(self, group: Tensor, output: StepOutput, popped: Entries) -> None:
        def column(values: Tensor, elsewhere: int = 0) -> Tensor:
            return values.new_full((self.num_groups,), elsewhere).index_copy(0, group, values)

        value = torch.sigmoid(output.value_logit.double())
        tree = self.tree
        baseline = baseline_of(output).double()
        own = (popped.node, popped.token, popped.logp, popped.child_logit, popped.g, popped.f, popped.depth)
        lists = (tree.parent, tree.token, tree.logp, tree.child_logit, tree.g, tree.f, tree.depth)
        said = (value, baseline), (tree.value, tree.baseline)
        for values, into in (*zip(own, lists, strict=True), *zip(*said, strict=True)):
            into.append(column(values))
        tree.problem.append(column(popped.problem, -1))

    def pop(self) -> tuple[Tensor, Entries, Tensor]:
        """The best open prefix of every unfinished group, and a slot that nobody else needs."""
        is_spent = self.num_popped.gather(1, self.open.depth) >= self.width
        num_before = self.open.count(self.num_problems)
        if self.dropped is not None:
            spent = Entries(torch.where(is_spent, self.open.f, -torch.inf), *self.open.fields()[1:])
            self.dropped.note(len(self.tree.parent), torch.arange(len(is_spent)), spent)
        self.open.f = torch.where(is_spent, -torch.inf, self.open.f)
        self.pruned = self.pruned + num_before - self.open.count(self.num_problems)
        best, column = self.open.f.max(1)
        num_better = (torch.isfinite(self.leaves.f) & (self.leaves.f >= best[:, None])).sum(1)
        is_running = torch.isfinite(best) & (num_better < self.leaves.f.shape[1])
        group = is_running.nonzero()[:, 0]
        column = column[group]
        popped = self.open.at(group, column)
        self.open.f[group, column] = -torch.inf
        self.num_popped[group, popped.depth] += 1
        slot = self._free_slot(group, popped.slot)
        self.forks = self.forks.index_add(0, popped.problem, (slot != popped.slot).long())
        return group, popped, slot

    def _free_slot(self, group: Tensor, wanted: Tensor) -> Tensor:
        """The wanted slot if no open prefix stands on it, else the first slot without one."""
        is_live = torch.isfinite(self.open.f[group])
        is_taken = torch.zeros_like(is_live, dtype=torch.int64).scatter_add(1, self.open.slot[group], is_live.long())
        # There are `width` slots and at most `width - 1` open prefixes after a pop, so one is always free.
        first_free = is_taken.argmin(1)
        return torch.where(is_taken.gather(1, wanted[:, None])[:, 0] > 0, first_free, wanted)


def best_first(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    num_leaves: int,
    width: int,
    max_search_depth: int,
    guidance: Guidance,
    group_size: int = 1,
    trace: Trace | None = None,
) -> Rollouts:
    """See `astar_search.astar_rollouts`. Leaves and width are those of a group."""
    groups = len(prompts) // group_size
    group, row = torch.arange(groups, device="cpu")[:, None], torch.arange(width, device="cpu")[None]
    home = group * group_size + row % group_size
    output = decoder.start(prompts, home.flatten(), can_cross=group_size > 1)
    ends = torch.tensor(decoder.eos_ids, device=output.logits.device)
    dropped = None if trace is None else Dropped(trace.num_groups)
    search = _Search(output, ends, (groups, num_leaves, width), max_search_depth, guidance, dropped)
    group = torch.arange(groups, device=output.logits.device)
    for member in range(group_size):  # the prompts of a group are expanded one after another
        problem = group * group_size + member
        search.expand(group, _rows(output, problem), search.root(output, problem), torch.full_like(group, member))
    while True:
        group, popped, slot = search.pop()
        if len(group) == 0:
            break
        base = group * width
        output = decoder.step(
            tokens=popped.token,
            source=base + popped.slot,
            length=popped.depth - 1,
            target=base + slot,
            path=torch.stack([popped.logp, popped.g, popped.least], -1),
        )
        search.expand(group, output, popped, slot)
    if trace is not None and dropped is not None:
        trace.nodes += trace_pops(search.tree, search.leaves, search.open, dropped)
    return _read_leaves(search)


def _rows(output: StepOutput, rows: Tensor) -> StepOutput:
    """Some rows of what the network said."""
    baseline = None if output.baseline is None else output.baseline[rows]
    return StepOutput(
        output.logits[rows], output.value_logit[rows], lambda _: output.child_logit(log_policy(output))[rows], baseline
    )


def _read_leaves(search: _Search) -> Rollouts:
    tree, found = search.tree, search.leaves
    group_size = search.num_problems // search.num_groups
    leaves = Leaves.of(found.problem, found.f, search.num_problems, found.f.shape[1] if group_size == 1 else None)
    length = leaves.take(found.depth, 0)
    longest = max(int(length.max()), 1)
    shape = (*length.shape, longest)
    tokens = search.ends[0].repeat(shape)
    logp = torch.zeros(shape, dtype=torch.float64, device=length.device)
    value, baseline, child = (torch.zeros_like(logp) for _ in range(3))
    # nodes of all groups one after another
    parent, node_value, node_baseline, *of_nodes = (
        torch.stack(x, 1) for x in (tree.parent, tree.value, tree.baseline, tree.token, tree.logp, tree.child_logit)
    )
    start = (torch.arange(search.num_problems, device=length.device) // group_size * parent.shape[1])[:, None]
    node, *last = (torch.take(x, leaves.place) for x in (found.node, found.token, found.logp, found.child_logit))
    for back in range(longest):
        position = length - 1 - back
        is_real = position >= 0
        index = position.clamp(min=0)[..., None]
        at = start + node.clamp(min=0)
        before = [*last, torch.take(node_value, at), torch.take(node_baseline, at)]
        for into, x in zip((tokens, logp, child, value, baseline), before, strict=True):
            kept = into.gather(-1, index)[..., 0]
            into.scatter_(-1, index, torch.where(is_real, x, kept)[..., None])
        last, node = [torch.take(x, at) for x in of_nodes], torch.take(parent, at)
    stats = SearchStats(
        num_expanded=search.expanded,
        num_forks=search.forks,
        num_decoded_tokens=search.expanded - 1,
        max_open=search.max_open.repeat_interleave(group_size),
        num_open_final=search.open.count(search.num_problems),
        num_pruned=search.pruned,
        num_capped=torch.zeros_like(search.pruned),
    )
    ended = torch.isin(leaves.take(found.token, -1), search.ends)
    is_token = torch.arange(longest, device=length.device) < length[..., None]
    return Rollouts(
        tokens=tokens,
        length=length,
        is_finished=leaves.is_leaf & ended,
        logp=logp,
        logq=logp,
        value=value,
        baseline=baseline,
        child_value=torch.where(is_token, torch.sigmoid(child), 0.0),
        priority=leaves.take(found.f, -torch.inf),
        kappa=found.f.new_full((search.num_problems,), -torch.inf),
        weight=torch.where(leaves.is_leaf, torch.nan, 0.0).double(),
        stats=stats,
    )
