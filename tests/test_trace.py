"""The nodes that a search records, on tables that can be enumerated (docs/trace.md)."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles import Table, TableDecoder
from tinyzero_astar.interfaces import Trace
from tinyzero_astar.rollout.astar_search import Forest, Guidance, astar_rollouts

INVERSE_BETA = 2.0


def traced(mode, tables, k, beam_width, *, strength=1.0, group_size=1, num_traced=None):
    """Rollouts, the nodes of each problem, and the prefix that each of these stands for."""
    trace = Trace(len(tables) if num_traced is None else num_traced)
    decoder = TableDecoder(tables, value_noise=1.0)
    rollouts = astar_rollouts(
        decoder,
        [[i] for i in range(len(tables))],
        seeds=torch.arange(len(tables)),
        num_rollouts=k,
        beam_width=beam_width,
        max_search_depth=max(t.depth for t in tables),
        mode=mode,
        guidance=Guidance(inverse_beta=INVERSE_BETA, cap=None, strength=strength),
        forest=Forest(group_size),
        trace=trace,
    )
    nodes = [[n for n in trace.nodes if n.problem == i] for i in range(len(tables))]
    assert sum(map(len, nodes)) == len(trace.nodes)
    prefixes = []
    for own in nodes:
        assert [n.node for n in own] == list(range(len(own)))
        prefix = {-1: ()}
        for n in own:
            assert n.parent < n.node, "parents come before children"
            prefix[n.node] = () if n.node == 0 else (*prefix[n.parent], n.token)
            assert n.depth == len(prefix[n.node])
        prefixes.append(prefix)
    return decoder, rollouts, nodes, prefixes


def leaves_of(rollouts, problem):
    pairs = zip(rollouts.tokens[problem].tolist(), rollouts.length[problem].tolist(), strict=True)
    return [tuple(tokens[:n]) for tokens, n in pairs if n > 0]


@pytest.mark.parametrize(("mode", "beam_width"), [("sample", 4), ("gumbel", 5), ("best_first", 6)])
def test_every_node_has_the_scores_of_its_prefix(mode, beam_width):
    tables = [Table(3, 4, seed=s) for s in range(4)]
    decoder, rollouts, nodes, prefixes = traced(mode, tables, 4, beam_width)
    for i, table in enumerate(tables):
        assert (nodes[i][0].parent, nodes[i][0].token, nodes[i][0].g) == (-1, -1, 0.0)
        for n in nodes[i]:
            prefix = prefixes[i][n.node]
            p = 1 / (1 + math.exp(-decoder.success_logit(i, prefix)))
            assert n.g == pytest.approx(table.log_pi(prefix))
            assert n.h == pytest.approx(math.log1p(p * math.expm1(INVERSE_BETA)), abs=1e-6)
            assert n.success == pytest.approx(p, abs=1e-6)
            assert n.f == pytest.approx(n.g + n.h)
            if mode != "gumbel":
                assert n.priority == pytest.approx({"sample": n.g, "best_first": n.f}[mode])
            assert (n.status == "leaf") == table.is_leaf(prefix)
            assert mode == "best_first" or n.status != "open"
        leaves = [prefixes[i][n.node] for n in nodes[i] if n.status == "leaf" and n.end < 0]
        assert sorted(leaves) == sorted(leaves_of(rollouts, i))  # better prefixes have pushed the others out
        assert sum(n.status == "expanded" for n in nodes[i]) == int(rollouts.stats.num_expanded[i])


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_priority_of_a_searched_prefix_is_that_of_its_best_leaf(strength):
    tables = [Table(3, 3, seed=s) for s in range(4)]
    k = max(len(t.reward) for t in tables)
    _, rollouts, nodes, prefixes = traced("gumbel", tables, k, k + 1, strength=strength)
    for i, table in enumerate(tables):
        best = dict(zip(leaves_of(rollouts, i), rollouts.priority[i].tolist(), strict=False))
        assert best.keys() == table.reward.keys()  # all leaves: no prefix was left out
        assert len(nodes[i]) == len(table.log_prob) + len(table.reward)
        for n in nodes[i]:
            below = [x for y, x in best.items() if y[: n.depth] == prefixes[i][n.node]]
            assert n.priority == pytest.approx(max(below), abs=1e-9)


def test_open_prefixes_of_best_first_are_those_that_it_kept():
    tables = [Table(3, 5, seed=s) for s in range(3)]
    _, rollouts, nodes, prefixes = traced("best_first", tables, 1, 20)
    for i in range(len(tables)):
        assert len(set(prefixes[i].values())) == len(nodes[i])  # the prompt is that of -1 too
        statuses = [n.status for n in nodes[i]]
        assert statuses == sorted(statuses, key=["expanded", "leaf", "open", "dropped"].index)
        assert statuses.count("open") == int(rollouts.stats.num_open_final[i]) > 0
        worst = min(n.f for n in nodes[i] if n.status == "leaf" and n.end < 0)
        assert all(n.f <= worst for n in nodes[i] if n.status == "open")


# ------------------------------------------------------------------------------------------------- step by step


def live(nodes, step):
    """Nodes on the list after a step."""
    return [n for n in nodes if n.step <= step and (n.end < 0 or n.end > step)]


def test_after_each_step_of_the_searched_tree_the_best_of_all_prefixes_so_deep_are_on_the_list():
    tables = [Table(3, 3, seed=s) for s in range(3)]
    k = max(len(t.reward) for t in tables)
    _, _, everything, all_prefixes = traced("gumbel", tables, k, k + 1)
    _, _, nodes, prefixes = traced("gumbel", tables, 4, 5)
    for i, table in enumerate(tables):
        priority = {all_prefixes[i][n.node]: n.priority for n in everything[i]}
        for step in range(1, 4):
            deep = [p for p in priority if len(p) == step or (len(p) < step and table.is_leaf(p))]
            best = sorted(deep, key=lambda p: -priority[p])[:4]
            assert {prefixes[i][n.node] for n in live(nodes[i], step)} == {*best}
        for n in nodes[i]:
            assert n.step == n.depth and (n.end < 0 or n.end > n.step)


@pytest.mark.parametrize(("group_size", "k"), [(1, 6), (2, 6), (1, 99)])  # with 99 until no prefix may be popped
def test_the_list_of_best_first_can_be_replayed(group_size, k):
    """Width is at least the vocabulary, so that every child is scored onto the list before the worst are dropped."""
    tables, width, num_dropped = [Table(3, 6, seed=s) for s in range(4)], 3, 0
    _, rollouts, nodes, _ = traced("best_first", tables, k, width, group_size=group_size)
    for first in range(0, len(tables), group_size):
        group = [n for i in range(first, first + group_size) for n in nodes[i]]
        unfinished = [n for n in group if n.status != "leaf"]
        popped = sorted((n for n in group if n.status == "expanded"), key=lambda n: n.end)
        assert [n.end for n in popped] == list(range(len(popped)))
        for n in popped[group_size:]:
            others = [x for x in live(unfinished, n.end - 1) if x.end != n.end or x.status != "dropped"]
            assert n in others and n.f == max(x.f for x in others)
        for step in range(len(popped)):
            kept = [x.f for x in live(unfinished, step)]
            assert len(kept) <= width * group_size
            lost = [n.f for n in unfinished if n.status == "dropped" and n.end == step and n.step == step]
            assert not (lost and kept) or max(lost) <= min(kept)
        dropped = sum(n.status == "dropped" for n in unfinished)
        assert dropped == int(rollouts.stats.num_pruned[first : first + group_size].sum())
        num_dropped += dropped
        assert all(parent.end == n.step for n in group for parent in group if is_parent(parent, n))
    assert num_dropped > 20


def is_parent(n, child):
    return (n.problem, n.node) == (child.problem, child.parent)


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_the_first_groups_alone_are_recorded(mode):
    tables = [Table(3, 4, seed=s) for s in range(4)]
    _, _, everything, _ = traced(mode, tables, 2, 6, group_size=2)
    _, _, some, _ = traced(mode, tables, 2, 6, group_size=2, num_traced=1)
    assert some[:2] == everything[:2] and some[2:] == [[], []]
    assert all(everything)
