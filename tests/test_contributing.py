"""CONTRIBUTING.md, followed to the letter. Its files are written, its changes made and its commands run, in a copy.

In a numbered step a block of Python belongs to the file that the line before names. A block of changes belongs to the
last file named. Lines with "-" go, lines with "+" come, and the others must stand there just so.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from tests.test_layers import ROOT, floor_faults, module_name, package_modules

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^( +)```(\w+)\n(.*?)^ +```$", re.DOTALL | re.MULTILINE)
LAYOUT = "docs/layout.md"
_COPIED = ("tinyzero_astar", "train.py", "README.md", LAYOUT, "pyproject.toml")


class Step(NamedTuple):
    """What a block asks for."""

    kind: str  # python, diff, bash
    file: str  # the last one named before it
    text: str


def steps_of(section: str) -> list[Step]:
    steps = []
    for match in _BLOCK.finditer(section):
        named = re.findall(r"`([\w/]+\.\w+)`", _BLOCK.sub("", section[: match.start()]))
        steps.append(Step(match[2], named[-1] if named else "", dedent(match[3])))
    return steps


def sections_of(page: str) -> dict[str, list[Step]]:
    parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)[1:]
    return {name: steps for name, text in zip(parts[::2], parts[1::2], strict=True) if (steps := steps_of(text))}


SECTIONS = sections_of(PAGE)


def changed(source: str, change: str) -> str:
    """A text with a block of changes made."""
    lines = change.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    assert source.count(before) == 1, f"these lines stand there {source.count(before)} times:\n{before}"
    return source.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))


@pytest.fixture
def copy(tmp_path):
    """The package, its layout and its launcher, to be changed."""
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make_changes(steps: list[Step], folder: Path) -> list[Path]:
    """Write the files and make the changes. Returns the files that were touched."""
    for step in steps:
        path = folder / step.file
        if step.kind == "python":
            assert not path.exists()
            path.write_text(step.text, encoding="utf-8")
        elif step.kind == "diff":
            path.write_text(changed(path.read_text(encoding="utf-8"), step.text), encoding="utf-8")
    return [folder / name for name in dict.fromkeys(s.file for s in steps if s.kind != "bash")]


def run(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])


def test_the_page_shows_how_to_add_one_of_each():
    assert list(SECTIONS) == ["A task", "An algorithm", "A logger", "A search mode"]
    for steps in SECTIONS.values():
        assert [step.kind for step in steps if step.kind != "diff"] == ["python", "bash"]


@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_added_fits_the_package_and_its_layout(name, copy):
    touched = make_changes(SECTIONS[name], copy)
    modules = {".".join(p.relative_to(copy / "tinyzero_astar").with_suffix("").parts): p for p in touched[:-1]}
    known = {*package_modules(), *modules}
    assert [fault for m, p in modules.items() for fault in floor_faults(p.read_text("utf-8"), m, known)] == []
    assert touched[-1] == copy / LAYOUT
    [new] = [path for path in touched if not (ROOT / path.relative_to(copy)).exists()]
    assert f"\n  {new.relative_to(copy / 'tinyzero_astar')} " in touched[-1].read_text("utf-8")
    assert module_name(ROOT / new.relative_to(copy)) in modules
    run(copy, sys.executable, "-m", "ruff", "check", *map(str, touched[:-1]))
    run(copy, sys.executable, "-m", "ruff", "format", "--check", *map(str, touched[:-1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_its_commands_work_as_written(name, copy):
    make_changes(SECTIONS[name], copy)
    [commands] = [step.text for step in SECTIONS[name] if step.kind == "bash"]
    for line in commands.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        run(copy, *([sys.executable, *words[1:]] if words[0] == "python" else words))


@pytest.mark.slow
def test_all_that_is_added_has_the_right_types(copy):
    for steps in SECTIONS.values():
        make_changes(steps, copy)
    run(copy, sys.executable, "-m", "mypy", "tinyzero_astar")


def test_a_change_that_no_longer_fits_is_found():
    assert changed("a\nb\nc\n", " b\n+x\n-c\n+y\n") == "a\nb\nx\ny\n"
    for stale in (" d\n+x\n", "-b\n c2\n"):
        with pytest.raises(AssertionError, match="0 times"):
            changed("a\nb\nc\n", stale)
