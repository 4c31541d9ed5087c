"""How many sentences of a text are joined by a semicolon or a colon.

Plain technical English has one idea per sentence. Only prose is counted, so code blocks, tables, headings, links and
code in backquotes are taken out first. A colon that ends a paragraph, before a list or a block, joins nothing.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_DIRECTIVE = re.compile(r"^:::.*(?:\n +\S.*)*", re.MULTILINE)  # of mkdocstrings, stands for docstrings
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_CODE = re.compile(r"``.+?``|`[^`]+`")
_TABLE_OR_HEADING = re.compile(r"^ *(\||#+ ).*$", re.MULTILINE)
_ITEM = re.compile(r"^ *(?:[-*+]|\d+\.) +", re.MULTILINE)
_ABBREVIATION = re.compile(r"\b(al|e\.g|i\.e|eq|eqs|vs|sec|ch|No|cf|etc|approx)\.", re.IGNORECASE)
_END = re.compile(r"[.!?][)*_\"'”]*\s+")
_JOINED = re.compile(r";|:\s+\S")


class Count(NamedTuple):
    """Sentences of a text, and those that are joined."""

    sentences: int
    joined: list[str]

    @property
    def share(self) -> float:
        return len(self.joined) / max(self.sentences, 1)


def sentences_of(text: str) -> list[str]:
    """The sentences of Markdown prose, each on one line. Code stands as the word `code`."""
    text = _DIRECTIVE.sub("", _COMMENT.sub("", _BLOCK.sub("\n\n", text)))
    text = _TABLE_OR_HEADING.sub("\n", text)
    text = _CODE.sub("code", _LINK.sub(r"\1", text))
    text = _ITEM.sub("\n", text)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        line = _ABBREVIATION.sub(r"\1", " ".join(paragraph.split()))
        found += [part.strip() for part in _END.split(line + " ") if re.search(r"[^\W\d_]{2}", part)]
    return found


def count(text: str) -> Count:
    found = sentences_of(text)
    return Count(len(found), [sentence for sentence in found if _JOINED.search(sentence)])


def docstrings_of(source: str) -> list[str]:
    """Docstrings of a module and of its public classes and functions. Labels of Google's sections are taken out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            is_public = isinstance(node, ast.Module) or not node.name.startswith("_")
            if is_public and (text := ast.get_docstring(node)):
                found.append(text)
    return found


def prose_of_docstring(text: str) -> str:
    """A docstring as Markdown. Labels of sections and names of entries are taken out, and so are indented formulas."""
    head, *sections = re.split(r"^(?=(?:Args|Returns|Raises|Yields):)", text, flags=re.MULTILINE)
    head = re.sub(r"^(?: {2,}|\t).*$", "\n", head, flags=re.MULTILINE)
    head = re.sub(r"\bSources?:\s+", "", head)  # a label
    rest = "\n".join(sections)
    rest = re.sub(r"^(?:Args|Returns|Raises|Yields):", "\n", rest, flags=re.MULTILINE)
    rest = re.sub(r"^ {4}[\w*`, .\[\]]+: ", "\n\n", rest, flags=re.MULTILINE)
    return f"{head}\n\n{rest}"


def count_docstrings(paths: list[Path]) -> Count:
    texts = [prose_of_docstring(t) for path in paths for t in docstrings_of(path.read_text("utf-8"))]
    return count("\n\n".join(texts))
