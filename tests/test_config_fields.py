"""Every field of the config is read somewhere in the package, since a setting that nothing reads is a bug.

A read is `something.field`. In config.py itself only the bodies of properties count, and those only
when the property is read, since a check of a range is no use of a field. Names are compared, not types.
A field that shares its name with another attribute can hide.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "tinyzero_astar"


def _has_decorator(node: ast.ClassDef | ast.FunctionDef, names: set[str]) -> bool:
    calls = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(ast.unparse(call).split(".")[-1] in names for call in calls)


def dataclass_fields(config: str) -> dict[str, list[str]]:
    """Field -> the dataclasses of `config` that declare it."""
    fields: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(config)):
        if isinstance(node, ast.ClassDef) and _has_decorator(node, {"dataclass"}):
            for line in node.body:
                is_field = isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                if is_field and "ClassVar" not in ast.unparse(line.annotation):
                    fields.setdefault(line.target.id, []).append(node.name)
    return fields


def attribute_reads(tree: ast.AST) -> set[str]:
    """Names x of every `something.x` that is read, not assigned."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}


def unread_fields(config: str, others: Iterable[str]) -> list[str]:
    """Fields that neither the other sources nor a property in use reads."""
    reads: set[str] = set()
    reads = reads.union(*(attribute_reads(ast.parse(source)) for source in others))
    functions = [n for n in ast.walk(ast.parse(config)) if isinstance(n, ast.FunctionDef)]
    waiting = [f for f in functions if _has_decorator(f, {"property", "cached_property"})]
    while used := [function for function in waiting if function.name in reads]:
        reads = reads.union(*(attribute_reads(function) for function in used))
        waiting = [function for function in waiting if function not in used]
    declared = dataclass_fields(config).items()
    return sorted(f"{'/'.join(owners)}.{name}" for name, owners in declared if name not in reads)


def test_every_config_field_is_read():
    path = PACKAGE / "config.py"
    config = path.read_text(encoding="utf-8")
    others = [p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py") if p != path]
    assert dataclass_fields(config), "found no dataclass in config.py: is this test still right?"
    assert unread_fields(config, others) == []


def test_unread_field_is_found():
    config = """
@dataclass(frozen=True)
class Search:
    used: int = 1
    only_checked: int = 2
    only_written: int = 3
    through_property: int = 4
    through_two: int = 5
    in_dead_property: int = 6
    constant: ClassVar[int] = 7
    def __post_init__(self):
        if self.only_checked < 0: raise ValueError
    @property
    def outer(self): return self.inner + self.through_property
    @functools.cached_property
    def inner(self): return self.through_two
    @property
    def dead(self): return self.in_dead_property
"""
    other = "x = cfg.used + cfg.outer\nrecord.only_written = x"
    expected = ["Search.in_dead_property", "Search.only_checked", "Search.only_written"]
    assert unread_fields(config, [other]) == expected
