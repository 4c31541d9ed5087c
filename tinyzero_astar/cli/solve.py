"""Ask a trained model one question and see the search tree: `python -m tinyzero_astar solve "37*84"`.

The search is the literal A* (best_first): the open prefix with the largest f = g + h is extended first.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tinyzero_astar.config import PRESETS, Config, from_dict
from tinyzero_astar.run.folder import resolve_checkpoint
from tinyzero_astar.terminal import FAILED, complain, printable

_SPACE = "\N{OPEN BOX}"  # a token that is a space, or begins with one, would be invisible

if TYPE_CHECKING:
    from tinyzero_astar.interfaces import TraceNode


@dataclass(frozen=True)
class Solve:
    """Answer one product and show how it was found."""

    problem: tyro.conf.Positional[str]
    """Two positive integers of at most 6 digits, as in 37*84."""
    checkpoint: Path | None = None
    """Checkpoint folder, or that of a run for its newest one; default: the embedded base, its value model untrained."""
    beam_width: int = 8
    """Size of the open list."""
    inverse_beta: float = 3.0
    """1/beta, nats per unit of success: how much the value counts beside the log-probability."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    max_nodes: int = 60
    """Most nodes drawn; the best by f are kept, with the path to the answer."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the whole trace as JSON (docs/trace.md) instead."""


def solve_main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    try:
        options = tyro.cli(Solve, prog="python -m tinyzero_astar solve", args=list(argv))
        operands = _parse(options)
        folder = None if options.checkpoint is None else resolve_checkpoint(options.checkpoint, "tiny")
        trace = _search(options, operands, folder)
    except ValueError as error:
        return complain(error)
    except FloatingPointError as error:
        return complain(f"{folder or 'embedded'}: {error}; its weights are damaged, use another checkpoint", FAILED)
    if options.json:
        print(json.dumps(trace, indent=1))  # in ASCII: exact in any encoding of the output
        return 0
    if folder is None:
        print("the value model is untrained, so that h says nothing yet; give a trained one with --checkpoint")
    _show(trace, options.max_nodes)
    return 0


def _parse(options: Solve) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([1-9][0-9]{0,5})\s*[*x×]\s*([1-9][0-9]{0,5})\s*", options.problem, re.ASCII)
    if match is None:
        raise ValueError(
            f"problem {options.problem[:80]!r} is not a product of two positive integers of at most 6 digits;"
            ' write it as "37*84"'
        )
    if options.beam_width < 1 or options.max_nodes < 1 or not 0 <= options.inverse_beta <= 20:
        raise ValueError(
            f"beam_width {options.beam_width} and max_nodes {options.max_nodes} must be at least 1, inverse_beta"
            f" {options.inverse_beta} between 0 and 20"
        )
    return int(match[1]), int(match[2])


def _search(options: Solve, operands: tuple[int, int], folder: Path | None) -> dict[str, Any]:
    import torch
    from transformers.utils import logging as transformers_logging

    from tinyzero_astar.data.answers import verify_integer
    from tinyzero_astar.data.generation import TEMPLATES, room_after
    from tinyzero_astar.engine.decoder import SlotDecoder
    from tinyzero_astar.model.model import load_policy
    from tinyzero_astar.resources.machine import choose_device
    from tinyzero_astar.rollout.astar_search import astar_rollouts
    from tinyzero_astar.run.checkpoint import load_trainer, read_state
    from tinyzero_astar.search.heuristic import Guidance

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # one problem: threads would only wait for each other
    config: Config = PRESETS["tiny"]
    if folder is not None:
        config = from_dict(read_state(folder)["config"], f"checkpoint {folder}")
    source = config.model.model_name if folder is None else str(folder)
    policy, tokenizer = load_policy(
        source,
        dtype=getattr(torch, config.model.dtype),
        device=choose_device(options.device),
        value_hidden_size=config.value.hidden_size,
        max_length=config.model.max_seq_length,
        say=lambda text: print(printable(text), file=sys.stderr),  # stdout may be JSON
    )
    if folder is not None:
        load_trainer(folder, policy, {})
    a, b = operands
    prompt = TEMPLATES[config.data.template].format(a=a, b=b)
    ids = list(tokenizer(prompt)["input_ids"])
    try:
        depth = room_after(len(ids), config.model.max_seq_length, config.search.max_search_depth)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    nodes: list[TraceNode] = []
    rollouts = astar_rollouts(
        SlotDecoder(policy, depth),
        [ids],
        seeds=torch.zeros(1, dtype=torch.int64),
        num_rollouts=1,
        beam_width=options.beam_width,
        max_search_depth=depth,
        mode="best_first",
        guidance=Guidance(inverse_beta=options.inverse_beta, cap=None),
        trace=nodes,
    )
    is_finished = bool(rollouts.is_finished[0, 0])
    length = int(rollouts.length[0, 0]) - int(is_finished)
    completion = tokenizer.decode(rollouts.tokens[0, 0, :length])
    verdict = verify_integer(completion, a * b, is_finished)
    stats = {f.name: int(getattr(rollouts.stats, f.name)[0]) for f in dataclasses.fields(rollouts.stats)}
    return {
        "version": 1,
        "problem": f"{a}*{b}",
        "prompt": prompt,
        "mode": "best_first",
        "beam_width": options.beam_width,
        "inverse_beta": options.inverse_beta,
        "completion": completion,
        "is_finished": is_finished,
        "answer": verdict.answer,
        "correct": verdict.accuracy,
        "verdict": str(verdict.reason),
        "stats": stats,
        "nodes": [
            {
                **{f.name: getattr(n, f.name) for f in dataclasses.fields(n) if f.name != "problem"},
                "text": prompt if n.token < 0 else tokenizer.decode([n.token]),
            }
            for n in nodes
        ],
    }


def _show(trace: dict[str, Any], max_nodes: int) -> None:
    from rich.tree import Tree

    from tinyzero_astar.loggers.console import Terminal, safe

    console = Terminal(highlight=False)
    nodes = {n["node"]: n for n in trace["nodes"]}
    answer_path: set[int] = set()
    leaves = [n for n in trace["nodes"] if n["status"] == "leaf"]
    node = max(leaves, key=lambda n: n["f"])["node"] if leaves else -1
    while node >= 0:
        answer_path.add(node)
        node = nodes[node]["parent"]
    shown = set(answer_path)
    for n in sorted(trace["nodes"], key=lambda n: -n["f"]):
        if len(shown) >= max_nodes:
            break
        while n["node"] not in shown:  # a node is drawn with the path that leads to it
            shown.add(n["node"])
            n = nodes[n["parent"]] if n["parent"] >= 0 else n
    colours = {"expanded": "white", "leaf": "green", "open": "yellow"}

    def label(n: dict[str, Any]) -> str:
        text = "prompt" if n["parent"] < 0 else repr(n["text"])[1:-1].replace(" ", _SPACE)
        style = "bold " if n["node"] in answer_path else ""
        scores = f"g {n['g']:.2f}  h {n['h']:+.2f}  f {n['f']:.2f}"
        return f"[{style}{colours[n['status']]}]{safe(text)}[/]  [dim]{scores}  {n['status']}[/]"

    children: dict[int, list[dict[str, Any]]] = {}
    for n in trace["nodes"]:
        if n["node"] in shown and n["parent"] >= 0:
            children.setdefault(n["parent"], []).append(n)
    tree = Tree(label(nodes[0]))
    stack = [(0, tree)]
    while stack:  # a chain of only children stays on one level: depth is for forks
        index, branch = stack.pop()
        below = sorted(children.get(index, []), key=lambda n: -n["f"])
        for n in below:
            place = branch if len(below) == 1 else branch.add("[dim]fork[/]") if n is not below[0] else branch
            place.add(label(n))
            stack.append((n["node"], place))
    console.print(f"[bold]{trace['problem']}[/]")
    console.print(safe(trace["completion"]))
    console.print(f"answer [bold]{trace['answer']}[/]  ({safe(trace['verdict'])})")
    hidden = len(nodes) - len(shown)
    console.print(tree)
    stats = trace["stats"]
    console.print(
        f"{stats['num_expanded']} prefixes expanded, {stats['num_decoded_tokens']} tokens decoded,"
        f" {stats['num_forks']} forks, {stats['num_pruned']} pruned"
        + (f"; {hidden} nodes not drawn (--max-nodes)" if hidden else "")
    )
