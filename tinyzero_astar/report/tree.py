"""A search tree for people, with a line for each stretch without a fork.

`drawn_tree` shows the path to the answer and the best of the other prefixes, with scores. `outline` shows all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tinyzero_astar.loggers.text import percent
from tinyzero_astar.terminal import printable

_BREAK = "\N{RETURN SYMBOL}"  # as in the completions that the console shows
_SPACE = "\N{OPEN BOX}"  # a token that is a space, or begins with one, would be invisible

_ENDS = {"open": "(open)", "expanded": "(given up)"}  # where a path ends before it is a completion

_STATUS = {"open": "still open", "expanded": "given up", "leaf": "finished"}  # the same, and other completions
_LEAST_TEXT = 16  # characters of a stretch, however deep it stands

Node = dict[str, Any]  # of docs/trace.md


class Line(NamedTuple):
    """A stretch without a fork."""

    indent: str  # what is drawn before it
    nodes: list[Node]  # one after another
    before: list[Node]  # those between the prompt and them
    is_end: bool  # nothing below it is drawn


def _lines(nodes: Sequence[Node], order: Callable[[Node], float]) -> Iterator[Line]:
    """All stretches below the prompt. Siblings are ordered by what `order` gives, the largest first.

    Args:
        nodes: of one search, parents before children, the prompt first.
        order: of siblings.
    """
    children: dict[int, list[Node]] = {}
    for n in nodes:
        children.setdefault(n["parent"], []).append(n)
    stack: list[tuple[Node, list[Node], str, bool]] = []  # first node of a stretch, those before, indent, is last

    def put(number: int, before: list[Node], indent: str) -> None:
        below = sorted(children.get(number, []), key=order)  # taken from the end
        stack.extend((n, before, indent, i == 0) for i, n in enumerate(below))

    put(nodes[0]["node"], [], "")
    while stack:
        n, before, indent, is_last = stack.pop()
        stretch = [n]
        while len(below := children.get(n["node"], [])) == 1:
            n = below[0]
            stretch.append(n)
        yield Line(indent + ("└─ " if is_last else "├─ "), stretch, before, not below)
        put(n["node"], [*before, *stretch], indent + ("   " if is_last else "│  "))


def outline(nodes: Sequence[Node], decode: Callable[[list[int]], str], note: Callable[[list[int]], str]) -> str:
    """All nodes, siblings by their probability.

    Args:
        nodes: of one search, parents before children.
        decode: the text of tokens.
        note: what is said of a leaf, by its tokens.
    """
    nodes, lines = _without_dropped(nodes), [_visible(nodes[0]["text"])]
    for line in _lines(nodes, lambda n: n["g"]):
        said, last, tokens = "", line.nodes[-1], [n["token"] for n in line.nodes]
        if line.is_end:
            path = [*(n["token"] for n in line.before), *tokens]
            said = note(path) if last["status"] == "leaf" else _ENDS[last["status"]]
        lines.append(f"{line.indent}{_visible(decode(tokens))}{'  ' if said else ''}{said}")
    return "\n".join(lines)


class Drawn(NamedTuple):
    """A line of a drawn tree."""

    indent: str
    text: str  # of its tokens, quoted, shortened to the width
    note: str
    is_answer: bool  # whether it is on the path to the answer


def drawn_tree(
    nodes: Sequence[Node], decode: Callable[[list[int]], str], max_nodes: int, inverse_beta: float, width: int
) -> tuple[list[Drawn], int]:
    """The path to the answer and the best of the other prefixes, siblings by f.

    Args:
        nodes: of one search of mode best_first.
        decode: the text of tokens.
        max_nodes: most that are drawn, but for the path to the answer and those that lead to a drawn one.
        inverse_beta: of the search. With 0 nothing is said of success, which played no part.
        width: columns of a line.

    Returns:
        The lines below the prompt, and how many nodes stand in them, the prompt included.
    """
    nodes = _without_dropped(nodes)
    by_number = {n["node"]: n for n in nodes}
    path = _path_to_answer(by_number)
    chosen = _chosen(by_number, path, max_nodes)
    parents = {n["parent"] for n in nodes}
    drawn = []
    for line in _lines([n for n in nodes if n["node"] in chosen], lambda n: n["f"]):
        last = line.nodes[-1]
        is_answer, is_cut = last["node"] in path, line.is_end and last["node"] in parents
        indent = f"{line.indent[:-2]}━ " if is_answer else line.indent  # seen without colours, too
        note = "  ".join(_notes(line, is_answer, is_cut, inverse_beta))
        room = max(_LEAST_TEXT, width - len(indent) - len(note) - 2)
        text = _shortened(_quoted(decode([n["token"] for n in line.nodes])), room)
        drawn.append(Drawn(indent, text, note, is_answer))
    return drawn, len(chosen)


def _notes(line: Line, is_answer: bool, is_cut: bool, inverse_beta: float) -> Iterator[str]:
    last = line.nodes[-1]
    scored = [n for n in line.nodes if n["status"] != "leaf"]  # nothing is foreseen of a finished text
    if scored and inverse_beta:
        yield f"success {percent(scored[-1]['success']).strip()}"
    yield f"f {last['f']:.2f}"
    if is_cut:
        yield "…"
    elif line.is_end:
        yield "the answer" if is_answer else _STATUS[last["status"]]


def _without_dropped(nodes: Sequence[Node]) -> list[Node]:
    """What the search still had at its end, and what it extended, since the rest would bury it."""
    return [n for n in nodes if n["status"] != "dropped"]


def _shortened(text: str, room: int) -> str:
    """The beginning sets it apart from its siblings, the end from what follows."""
    return text if len(text) <= room else f"{text[: room - room // 3 - 1]}…{text[len(text) - room // 3 :]}"


def _quoted(text: str) -> str:
    """On one line, between quotation marks that show the spaces at its ends, with a sign for each line break."""
    return printable(json.dumps(text.replace("\n", _BREAK), ensure_ascii=False))


def _visible(text: str) -> str:
    """On one line, and with the spaces at its ends."""
    shown = printable(repr(text)[1:-1])
    inside = shown.strip(" ")
    before = len(shown) - len(shown.lstrip(" "))
    return _SPACE * before + inside + _SPACE * (len(shown) - before - len(inside))


def _path_to_answer(nodes: Mapping[int, Node]) -> set[int]:
    """The numbers of the nodes from the prompt to the best leaf. None where the search found no leaf."""
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
