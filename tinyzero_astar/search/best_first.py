"""The literal A*: an open list per problem, the largest f = g + h first ("best_first").

Children are scored by their parent's evaluation and cost nothing until they are popped, so a pop is one decoder
row. The open list holds `beam_width` prefixes, each backed by a slot; the worst are dropped (and counted) when
it overflows, and no more than `beam_width` prefixes of one depth are popped, which bounds the search (Meister
et al. 2020). It ends when K leaves are at least as good as everything open: ending at the first K *finished*
leaves would return short junk.

Problems are popped together, one prefix each per step. Returns modes, not samples: for decoding, not gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, SearchStats, StepOutput, TraceNode
from tinyzero_astar.search.heuristic import (
    Guidance,
    Tilt,
    f_score,
    format_logit_of,
    inverse_beta_of,
    log_policy,
    soft_value,
    tilt_of,
)


@dataclass
class _Entries:
    """Up to C scored prefixes per problem, [P, C] each; f is -inf where there is none."""

    f: Tensor
    g: Tensor
    logp: Tensor  # of the last token
    token: Tensor  # the last token
    depth: Tensor  # generated tokens, the last included
    node: Tensor  # node that it is a child of
    slot: Tensor  # slot where that node's prefix stands

    @staticmethod
    def empty(problems: int, capacity: int, like: Tensor) -> _Entries:
        real = torch.zeros((3, problems, capacity), dtype=torch.float64, device=like.device)
        index = torch.zeros((4, problems, capacity), dtype=torch.int64, device=like.device)
        return _Entries(real[0] - torch.inf, real[1], real[2], *index)

    def fields(self) -> list[Tensor]:
        return [self.f, self.g, self.logp, self.token, self.depth, self.node, self.slot]

    def at(self, problem: Tensor, column: Tensor) -> _Entries:
        return _Entries(*(x[problem, column] for x in self.fields()))

    def merge(self, problem: Tensor, new: _Entries) -> Tensor:
        """Keep the best C of these and `new` [N, C'] for the given problems; returns how many fell out."""
        capacity = self.f.shape[1]
        joined = [torch.cat([old[problem], x], 1) for old, x in zip(self.fields(), new.fields(), strict=True)]
        order = joined[0].argsort(dim=1, descending=True, stable=True)[:, :capacity]
        num_before = torch.isfinite(joined[0]).sum(1)
        for old, x in zip(self.fields(), joined, strict=True):
            old[problem] = x.gather(1, order)
        return num_before - torch.isfinite(self.f[problem]).sum(1)


@dataclass
class _Tree:
    """Expanded prefixes; node n of a problem was popped in step n (node 0 is the prompt). [P] tensors."""

    parent: list[Tensor] = field(default_factory=list)
    token: list[Tensor] = field(default_factory=list)
    logp: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    format_value: list[Tensor] = field(default_factory=list)
    g: list[Tensor] = field(default_factory=list)
    f: list[Tensor] = field(default_factory=list)
    depth: list[Tensor] = field(default_factory=list)


class _Search:
    """The state of one call; `expand` and `pop` alternate."""

    def __init__(
        self, root: StepOutput, ends: Tensor, num_rollouts: int, width: int, max_depth: int, guidance: Guidance
    ) -> None:
        problems, like = len(root.value_logit), root.logits
        self.width, self.max_depth = width, max_depth
        self.ends = ends
        self.is_end = torch.isin(torch.arange(like.shape[1], device=like.device), ends)  # by token
        self.tilt = tilt_of(inverse_beta_of(guidance, root.value_logit.double()))
        strength = torch.as_tensor(guidance.strength, dtype=torch.float64, device=like.device)
        self.strength = strength.expand(problems)
        self.open = _Entries.empty(problems, width, like)
        self.leaves = _Entries.empty(problems, num_rollouts, like)
        self.num_popped = torch.zeros((problems, max_depth + 1), dtype=torch.int64, device=like.device)
        zero = torch.zeros(problems, dtype=torch.int64, device=like.device)
        self.expanded, self.forks, self.pruned, self.max_open = zero, zero, zero, zero
        self.tree = _Tree()

    def expand(self, problem: Tensor, output: StepOutput, popped: _Entries, slot: Tensor) -> None:
        """Score the children of the popped prefixes ([N] each) and put them where they belong."""
        node = len(self.tree.parent)
        self._record(problem, output, popped)
        logp = log_policy(output).double()
        tilt = Tilt(*(x[problem, None] for x in self.tilt))
        h = soft_value(output.child_logit().double(), tilt)
        if not bool(torch.isfinite(h).all()):
            raise FloatingPointError("the decoder returned a child's value that is NaN")
        g = popped.g[:, None] + logp
        f = f_score(g, h, self.strength[problem, None])
        f = torch.where(torch.isfinite(logp), f, -torch.inf)
        depth = (popped.depth + 1)[:, None].expand_as(f)
        token = torch.arange(f.shape[1], device=f.device).expand_as(f)
        is_leaf = self.is_end | (depth == self.max_depth)
        slots, nodes = slot[:, None].expand_as(token), torch.full_like(token, node)

        def best(mask: Tensor, count: int) -> _Entries:
            score, index = torch.where(mask, f, -torch.inf).topk(min(count, f.shape[1]))
            rest = (x.gather(1, index) for x in (g, logp, token, depth, nodes, slots))
            return _Entries(score, *rest)

        self.leaves.merge(problem, best(is_leaf, self.leaves.f.shape[1]))
        num_children = torch.isfinite(torch.where(is_leaf, -torch.inf, f)).sum(1)
        children = best(~is_leaf, self.width)
        num_lost = self.open.merge(problem, children)
        num_lost = num_lost + num_children - torch.isfinite(children.f).sum(1)
        self.pruned = self.pruned.index_add(0, problem, num_lost)
        self.expanded = self.expanded.index_add(0, problem, torch.ones_like(problem))
        self.max_open = torch.maximum(self.max_open, torch.isfinite(self.open.f).sum(1))

    def _record(self, problem: Tensor, output: StepOutput, popped: _Entries) -> None:
        problems = len(self.expanded)

        def column(values: Tensor) -> Tensor:
            return values.new_zeros(problems).index_copy(0, problem, values)

        value = torch.sigmoid(output.value_logit.double())
        tree = self.tree
        form = torch.sigmoid(format_logit_of(output).double())
        columns = (popped.node, popped.token, popped.logp, value, form, popped.g, popped.f, popped.depth)
        lists = (tree.parent, tree.token, tree.logp, tree.value, tree.format_value, tree.g, tree.f, tree.depth)
        for values, into in zip(columns, lists, strict=True):
            into.append(column(values))

    def pop(self) -> tuple[Tensor, _Entries, Tensor]:
        """The best open prefix of every unfinished problem, and a slot that nobody else needs."""
        is_spent = self.num_popped.gather(1, self.open.depth) >= self.width
        is_dropped = is_spent & torch.isfinite(self.open.f)
        self.pruned = self.pruned + is_dropped.sum(1)
        self.open.f = torch.where(is_spent, -torch.inf, self.open.f)
        best, column = self.open.f.max(1)
        num_better = (torch.isfinite(self.leaves.f) & (self.leaves.f >= best[:, None])).sum(1)
        is_running = torch.isfinite(best) & (num_better < self.leaves.f.shape[1])
        problem = is_running.nonzero()[:, 0]
        column = column[problem]
        popped = self.open.at(problem, column)
        self.open.f[problem, column] = -torch.inf
        self.num_popped[problem, popped.depth] += 1
        slot = self._free_slot(problem, popped.slot)
        self.forks = self.forks.index_add(0, problem, (slot != popped.slot).long())
        return problem, popped, slot

    def _free_slot(self, problem: Tensor, wanted: Tensor) -> Tensor:
        """The wanted slot if no open prefix stands on it, else the first slot without one."""
        is_live = torch.isfinite(self.open.f[problem])
        is_taken = torch.zeros_like(is_live, dtype=torch.int64).scatter_add(1, self.open.slot[problem], is_live.long())
        # `width` slots and at most `width - 1` open prefixes after a pop: one is always free
        first_free = is_taken.argmin(1)
        return torch.where(is_taken.gather(1, wanted[:, None])[:, 0] > 0, first_free, wanted)


def best_first(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    num_rollouts: int,
    beam_width: int,
    max_search_depth: int,
    guidance: Guidance,
    trace: list[TraceNode] | None = None,
) -> Rollouts:
    """See `astar_search.astar_rollouts`."""
    output = decoder.start(prompts, beam_width)
    ends = torch.tensor(decoder.eos_ids, device=output.logits.device)
    search = _Search(output, ends, num_rollouts, beam_width, max_search_depth, guidance)
    problem = torch.arange(len(prompts), device=output.logits.device)
    root = _Entries.empty(len(prompts), 1, output.logits).at(problem, torch.zeros_like(problem))
    root_h = soft_value(output.value_logit.double(), search.tilt)
    root.f = f_score(root.g, root_h, search.strength)
    root.node = root.node - 1
    search.expand(problem, output, root, torch.zeros_like(problem))
    while True:
        problem, popped, slot = search.pop()
        if len(problem) == 0:
            break
        base = problem * beam_width
        output = decoder.step(
            tokens=popped.token, source=base + popped.slot, length=popped.depth - 1, target=base + slot
        )
        search.expand(problem, output, popped, slot)
    if trace is not None:
        trace.extend(_trace(search))
    return _read_leaves(search)


def _read_leaves(search: _Search) -> Rollouts:
    leaves, tree = search.leaves, search.tree
    is_leaf = torch.isfinite(leaves.f)
    length = torch.where(is_leaf, leaves.depth, 0)
    longest = max(int(length.max()), 1)
    shape = (*length.shape, longest)
    tokens = search.ends[0].repeat(shape)
    logp = torch.zeros(shape, dtype=torch.float64, device=length.device)
    value, form = torch.zeros_like(logp), torch.zeros_like(logp)
    parent, token, node_logp, node_value, node_form = (
        torch.stack(x, 1) for x in (tree.parent, tree.token, tree.logp, tree.value, tree.format_value)
    )
    node, last, last_logp = leaves.node, leaves.token, leaves.logp
    for back in range(longest):
        position = length - 1 - back
        is_real = position >= 0
        index = position.clamp(min=0)[..., None]
        before, form_before = (x.gather(1, node.clamp(min=0)) for x in (node_value, node_form))
        for into, x in ((tokens, last), (logp, last_logp), (value, before), (form, form_before)):
            kept = into.gather(-1, index)[..., 0]
            into.scatter_(-1, index, torch.where(is_real, x, kept)[..., None])
        last, last_logp = token.gather(1, node.clamp(min=0)), node_logp.gather(1, node.clamp(min=0))
        node = parent.gather(1, node.clamp(min=0))
    stats = SearchStats(
        num_expanded=search.expanded,
        num_forks=search.forks,
        num_decoded_tokens=search.expanded - 1,
        max_open=search.max_open,
        num_open_final=torch.isfinite(search.open.f).sum(1),
        num_pruned=search.pruned,
        num_capped=torch.zeros_like(search.pruned),
    )
    return Rollouts(
        tokens=tokens,
        length=length,
        is_finished=is_leaf & torch.isin(leaves.token, search.ends),
        logp=logp,
        logq=logp,
        value=value,
        format_value=form,
        priority=leaves.f,
        kappa=leaves.f.new_full((len(length),), -torch.inf),
        weight=torch.where(is_leaf, torch.nan, 0.0).double(),
        stats=stats,
    )


def _trace(search: _Search) -> list[TraceNode]:
    """Expanded prefixes in the order in which they were popped, then leaves and what stayed open."""
    tree, nodes = search.tree, []
    for problem in range(len(search.expanded)):
        num_nodes = int(search.expanded[problem])
        for node in range(num_nodes):
            g, f = float(tree.g[node][problem]), float(tree.f[node][problem])
            parent, depth = int(tree.parent[node][problem]), int(tree.depth[node][problem])
            token = int(tree.token[node][problem]) if node else -1
            nodes.append(TraceNode(problem, node, parent, token, depth, g, f - g, f, f, "expanded"))
        for entries, is_leaf in ((search.leaves, True), (search.open, False)):
            for column in torch.isfinite(entries.f[problem]).nonzero()[:, 0].tolist():
                g, f = float(entries.g[problem, column]), float(entries.f[problem, column])
                parent, token = int(entries.node[problem, column]), int(entries.token[problem, column])
                depth = int(entries.depth[problem, column])
                status = "leaf" if is_leaf else "open"
                nodes.append(
                    TraceNode(problem, num_nodes, parent, token, depth, g, f - g, f, f, status)  # type: ignore[arg-type]
                )
                num_nodes += 1
    return nodes
