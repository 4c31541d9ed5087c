"""What is recorded of searches, for people and for the page of a run (docs/trace.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.data.text import continued
from tinyzero_astar.files import TRACED_NODES, TRACED_PROBLEMS
from tinyzero_astar.interfaces import Problem, Trace, TraceNode
from tinyzero_astar.rollout.records import RewardedRollouts
from tinyzero_astar.run.measure import in_json

VERSION = 2  # of the schema
_DIGITS = 4  # after the point
_COLUMNS = ("problem", "parent", "token", "g", "h", "f", "priority", "success", "step", "end", "status")

Path = tuple[int, ...]  # tokens from the prompt to a leaf


def new_trace(settings: SearchConfig) -> Trace:
    """What receives the nodes of an iteration's first searches."""
    return Trace(max(1, TRACED_PROBLEMS // settings.problems_per_search))


def described(nodes: Sequence[TraceNode], prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The nodes of one problem with their texts, as docs/trace.md has them."""
    return [
        {
            **{f.name: getattr(n, f.name) for f in dataclasses.fields(n) if f.name != "problem"},
            "text": prompt if n.token < 0 else tokenizer.decode([n.token]),
        }
        for n in nodes
    ]


def iteration_record(
    trace: Trace, rewarded: RewardedRollouts, settings: SearchConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """The line of trace.jsonl, with the first searches of an iteration and what became of their leaves."""
    count = min(len(rewarded.problems), trace.num_groups * settings.problems_per_search)
    leaves: dict[tuple[int, Path], dict[str, Any]] = {}
    rollouts = rewarded.rollouts
    for i in range(count):
        for k, length in enumerate(rollouts.length[i].tolist()):
            leaves[i, tuple(rollouts.tokens[i, k, :length].tolist())] = {
                "accuracy": rewarded.verdicts[i][k].accuracy,
                "format": rewarded.verdicts[i][k].format,
                "reason": str(rewarded.verdicts[i][k].reason),
                "reward": float(rewarded.reward[i, k]),
                "weight": float(rewarded.weight[i, k]),
            }
    return trace_record(
        trace.nodes,
        [told(problem, float(rollouts.kappa[i]), tokenizer) for i, problem in enumerate(rewarded.problems[:count])],
        leaves,
        tokenizer,
        mode=settings.mode,
        beam_width=settings.beam_width,
        problems_per_search=settings.problems_per_search,
    )


def told(problem: Problem, kappa: float, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a record says of a problem. None stands for a threshold of -inf."""
    return {
        "problem": problem.text,
        "answer": in_json(problem.answer),
        "prompt": continued(tokenizer, problem.prompt),
        "kappa": None if kappa == float("-inf") else round(kappa, _DIGITS),
    }


def trace_record(
    nodes: Sequence[TraceNode],
    problems: Sequence[Mapping[str, Any]],
    leaves: Mapping[tuple[int, Path], Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    **settings: Any,
) -> dict[str, Any]:
    """Nodes as columns, numbered across problems. Only the best by priority where there are too many.

    Args:
        nodes: of searches, problem by problem, parents before children.
        problems: what is said of each.
        leaves: what is said of completions, by problem and tokens.
        tokenizer: of the tokens.
        settings: of the search.
    """
    kept, texts = _best(nodes, TRACED_NODES), {-1: ""}
    paths: dict[tuple[int, int], Path] = {}
    numbers: dict[tuple[int, int], int] = {(n.problem, -1): -1 for n in kept}
    columns: dict[str, list[Any]] = {name: [] for name in (*_COLUMNS, "text")}
    found = []
    for number, n in enumerate(kept):
        own = n.problem, n.node
        numbers[own] = number
        paths[own] = () if n.parent < 0 else (*paths[n.problem, n.parent], n.token)
        if n.token not in texts:
            texts[n.token] = tokenizer.decode([n.token])
        in_record = {"parent": numbers[n.problem, n.parent], "text": texts[n.token]}
        for name, column in columns.items():
            value = in_record[name] if name in in_record else getattr(n, name)
            column.append(round(value, _DIGITS) if isinstance(value, float) else value)
        if n.status == "leaf" and (n.problem, paths[own]) in leaves:
            found.append({"node": number} | dict(leaves[n.problem, paths[own]]))
    return {
        "version": VERSION,
        **settings,
        "num_nodes": len(nodes),
        "problems": [dict(problem) for problem in problems],
        "nodes": columns,
        "leaves": found,
    }


def _best(nodes: Sequence[TraceNode], most: int) -> list[TraceNode]:
    """At most so many nodes and those that lead to them, in their order."""
    if len(nodes) <= most:
        return list(nodes)
    known, chosen = {(n.problem, n.node): n for n in nodes}, set[tuple[int, int]]()
    for best in sorted(nodes, key=lambda n: -n.priority):
        if len(chosen) >= most:
            break
        own = best.problem, best.node
        while own in known and own not in chosen:
            chosen.add(own)
            own = own[0], known[own].parent
    return [n for n in nodes if (n.problem, n.node) in chosen]
