"""The table of planted mistakes fits the code, and its judge tells an assertion from a crash. Nothing is run."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.mutants import MUTANTS, ROOT, judge, planted


def test_names_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


@cache
def source_and_tree(file):
    """A file of the package, and its syntax tree as text."""
    source = (ROOT / "tinyzero_astar" / file).read_text(encoding="utf-8")
    return source, ast.dump(ast.parse(source))


@cache
def functions_of(file):
    """Names of the functions of a file of tests."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_place_occurs_once_and_the_changed_file_compiles(mutant):
    source, tree = source_and_tree(mutant.file)
    changed = planted(mutant, source)
    assert ast.dump(ast.parse(changed)) != tree, "nothing but layout or a comment changes"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_named_tests_exist(mutant):
    assert mutant.tests
    for test in mutant.tests:
        file, name = test.split("::")
        assert name.partition("[")[0] in functions_of(file)


def test_a_place_that_is_not_there_or_not_the_only_one_is_refused():
    mutant = MUTANTS[0]
    for source, count in (("", 0), (f"{mutant.old}\n{mutant.old}\n", 2)):
        with pytest.raises(ValueError, match=f"occurs {count} times"):
            planted(mutant, source)


@pytest.mark.parametrize(
    ("return_code", "output", "verdict"),
    [
        (0, "3 passed in 1.0s", "SURVIVED"),
        (1, "FAILED tests/test_a.py::test_b[c, d] - assert 1 == 2", "caught"),
        (1, "FAILED tests/test_a.py::test_b - AssertionError: one: 0.9, exact 1.0", "caught"),
        (1, "FAILED tests/test_a.py::test_b - Failed: DID NOT RAISE <class 'ValueError'>", "caught"),
        (1, "FAILED tests/test_a.py::test_b - NameError: name 'x' is not defined", "INVALID"),
        (1, "FAILED tests/test_a.py::test_b - Failed: Timeout (>300.0s) from pytest-timeout.", "INVALID"),
        (1, "ERROR tests/test_a.py::test_b - AssertionError: in a fixture", "INVALID"),
        (2, "ERROR tests/test_a.py - ImportError: cannot import name 'x'", "INVALID"),
        (4, "ERROR: not found: tests/test_a.py::test_b", "INVALID"),
        (-11, "", "INVALID"),
    ],
)
def test_only_a_failed_assertion_counts_as_caught(return_code, output, verdict):
    outcome = judge(return_code, output)
    assert outcome.verdict == verdict
    if verdict == "caught":
        assert outcome.detail.startswith("tests/test_a.py::test_b")
