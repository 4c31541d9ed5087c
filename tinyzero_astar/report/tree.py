"""A search tree for people.

`drawn_tree`: the path to the answer and the best of the other prefixes, a line for each token. `outline`: all of it, a
line for each stretch without a fork.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.tree import Tree

from tinyzero_astar.interfaces import TraceNode
from tinyzero_astar.loggers.console import safe
from tinyzero_astar.terminal import printable

if TYPE_CHECKING:  # seconds
    from transformers import PreTrainedTokenizerBase

_SPACE = "\N{OPEN BOX}"  # a token that is a space, or begins with one, would be invisible

_ENDS = {"open": "(open)", "expanded": "(given up)"}  # where a path ends before it is a completion

Node = dict[str, Any]  # of docs/trace.md


def described(nodes: Sequence[TraceNode], prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[Node]:
    """The nodes of one search with their texts, as docs/trace.md has them."""
    return [
        {
            **{f.name: getattr(n, f.name) for f in dataclasses.fields(n) if f.name != "problem"},
            "text": prompt if n.token < 0 else tokenizer.decode([n.token]),
        }
        for n in nodes
    ]


def drawn_tree(nodes: Sequence[Node], max_nodes: int) -> tuple[Tree, int]:
    """At most so many nodes, or as many as the path to the answer has, to be printed by rich; and how many they are."""
    by_number = {n["node"]: n for n in nodes}
    path = _path_to_answer(by_number)
    chosen = _chosen(by_number, path, max_nodes)
    return _tree(by_number, path, chosen), len(chosen)


def outline(nodes: Sequence[Node], decode: Callable[[list[int]], str], note: Callable[[list[int]], str]) -> str:
    """All nodes, a line for each stretch without a fork.

    Args:
        nodes: of one search, parents before children.
        decode: the text of tokens.
        note: what is said of a leaf, by its tokens.
    """
    children: dict[int, list[Node]] = {}
    for n in nodes:
        children.setdefault(n["parent"], []).append(n)
    lines = [_visible(nodes[0]["text"])]
    stack: list[tuple[Node, list[int], str, bool]] = []  # first node of a stretch, tokens before it, indent, is last

    def put(number: int, before: list[int], indent: str) -> None:
        below = sorted(children.get(number, []), key=lambda n: n["g"])  # taken from the end: the most probable first
        stack.extend((n, before, indent, i == 0) for i, n in enumerate(below))

    put(nodes[0]["node"], [], "")
    while stack:
        n, before, indent, is_last = stack.pop()
        tokens = [n["token"]]
        while len(below := children.get(n["node"], [])) == 1:
            n = below[0]
            tokens.append(n["token"])
        path = [*before, *tokens]
        said = "" if below else note(path) if n["status"] == "leaf" else _ENDS[n["status"]]
        lines.append(f"{indent}{'└─' if is_last else '├─'} {_visible(decode(tokens))}{'  ' if said else ''}{said}")
        put(n["node"], path, indent + ("   " if is_last else "│  "))
    return "\n".join(lines)


def _visible(text: str) -> str:
    """On one line, and with the spaces at its ends."""
    shown = printable(repr(text)[1:-1])
    inside = shown.strip(" ")
    before = len(shown) - len(shown.lstrip(" "))
    return _SPACE * before + inside + _SPACE * (len(shown) - before - len(inside))


def _path_to_answer(nodes: Mapping[int, Node]) -> set[int]:
    """The numbers of the nodes from the prompt to the best leaf; none where the search found no leaf."""
    leaves = [n for n in nodes.values() if n["status"] == "leaf"]
    number = max(leaves, key=lambda n: n["f"])["node"] if leaves else -1
    path: set[int] = set()
    while number >= 0:
        path.add(number)
        number = nodes[number]["parent"]
    return path


def _chosen(nodes: Mapping[int, Node], path: set[int], max_nodes: int) -> set[int]:
    """The path and the best of the other nodes by f, each with the path that leads to it."""
    drawn = set(path)
    for n in sorted(nodes.values(), key=lambda n: -n["f"]):
        if len(drawn) >= max_nodes:
            break
        while n["node"] not in drawn:
            drawn.add(n["node"])
            n = nodes[n["parent"]] if n["parent"] >= 0 else n
    return drawn


def _label(n: Node, is_on_path: bool) -> str:
    colours = {"expanded": "white", "leaf": "green", "open": "yellow"}
    text = "prompt" if n["parent"] < 0 else _visible(n["text"])
    style = "bold " if is_on_path else ""
    scores = f"g {n['g']:.2f}  h {n['h']:+.2f}  f {n['f']:.2f}"
    return f"[{style}{colours[n['status']]}]{safe(text)}[/]  [dim]{scores}  {n['status']}[/]"


def _tree(nodes: Mapping[int, Node], path: set[int], drawn: set[int]) -> Tree:
    """The drawn nodes. A chain of only children stays on one level: depth is for forks."""
    children: dict[int, list[Node]] = {}
    for number in sorted(drawn):
        children.setdefault(nodes[number]["parent"], []).append(nodes[number])
    tree = Tree(_label(nodes[0], 0 in path))
    stack = [(0, tree)]
    while stack:
        number, branch = stack.pop()
        below = sorted(children.get(number, []), key=lambda n: -n["f"])
        for n in below:
            place = branch if len(below) == 1 else branch.add("[dim]fork[/]") if n is not below[0] else branch
            place.add(_label(n, n["node"] in path))
            stack.append((n["node"], place))
    return tree
