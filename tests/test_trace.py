"""The nodes that a search records, on tables that can be enumerated; docs/trace.md."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles import Table, TableDecoder
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts

INVERSE_BETA = 2.0


def traced(mode, tables, k, beam_width, *, strength=1.0):
    """Rollouts, the nodes of each problem, and the prefix that each of these stands for."""
    trace = []
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
        trace=trace,
    )
    nodes = [[n for n in trace if n.problem == i] for i in range(len(tables))]
    assert sum(map(len, nodes)) == len(trace)
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
            assert n.f == pytest.approx(n.g + n.h)
            if mode != "gumbel":
                assert n.priority == pytest.approx({"sample": n.g, "best_first": n.f}[mode])
            assert (n.status == "leaf") == table.is_leaf(prefix)
            assert mode == "best_first" or n.status != "open"
        leaves = [prefixes[i][n.node] for n in nodes[i] if n.status == "leaf"]
        if mode == "gumbel":  # better prefixes have pushed some of them out
            assert len(set(leaves)) == len(leaves) and {*leaves_of(rollouts, i)} <= {*leaves}
        else:
            assert sorted(leaves) == sorted(leaves_of(rollouts, i))
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
        assert statuses == sorted(statuses, key=["expanded", "leaf", "open"].index)
        assert statuses.count("open") == int(rollouts.stats.num_open_final[i]) > 0
        worst = min(n.f for n in nodes[i] if n.status == "leaf")
        assert all(n.f <= worst for n in nodes[i] if n.status == "open")
