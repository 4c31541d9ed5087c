"""The examples of the documents, as written. Their files are written and their commands run, section by section.

A page has examples where a code block follows a line that names a file, such as "`squares.py`:". A section, from one
heading of second rank to the next, stands alone. Its files and commands come in the order of the page.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tinyzero_astar.cli.solve import solve_main
from tinyzero_astar.cli.train import main

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"^(?:`([\w.-]+)`:\n\n)?```(\w+)\n(.*?)```$", re.DOTALL | re.MULTILINE)
STORY = "tutorial.md"  # one story from top to bottom, run by tests/test_tutorial.py
COMMANDS = {
    ("python", "train.py"): main,
    ("python", "-m", "tinyzero_astar", "solve"): solve_main,
}


class Step(NamedTuple):
    """A file to write, or a command to run where `file` is empty."""

    file: str
    text: str


def sections_of(page: str) -> dict[str, list[Step]]:
    """The steps of every section that has any, by its heading."""
    parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)[1:]
    return {heading: steps for heading, text in zip(parts[::2], parts[1::2], strict=True) if (steps := steps_of(text))}


def steps_of(text: str) -> list[Step]:
    steps = []
    for file, language, inside in STEP.findall(text):
        if file:
            steps.append(Step(file, inside))
        elif language == "bash":
            lines = inside.replace("\\\n", " ").splitlines()
            steps += [Step("", line) for line in lines if line.strip() and not line.startswith("#")]
    return steps


def has_examples(page: str) -> bool:
    return any(step.file for steps in sections_of(page).values() for step in steps)


PATHS = [path for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"] if path.exists()]
PAGES = {path.name: path.read_text("utf-8") for path in PATHS}
SECTIONS = {
    f"{name}, {heading}": steps
    for name, page in PAGES.items()
    if name != STORY and has_examples(page)
    for heading, steps in sections_of(page).items()
}


def run(command: str) -> int:
    words = shlex.split(command)
    for start, program in COMMANDS.items():
        if tuple(words[: len(start)]) == start:
            return program(words[len(start) :])
    raise AssertionError(f"no way to run {command}")


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_works_as_written(section, tmp_path, monkeypatch, capsys):
    steps = SECTIONS[section]
    if any("reasoning_gym:" in step.text for step in steps) and not importlib.util.find_spec("reasoning_gym"):
        pytest.skip("reasoning-gym is not installed: pip install -e '.[reasoning-gym]'")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    for step in steps:
        if step.file:
            Path(step.file).write_text(step.text, "utf-8")
        else:
            assert run(step.text) == 0, (step.text, capsys.readouterr().err)
    torch.set_num_threads(threads)


def anchors_of(page: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [ROOT / "README.md", *PATHS], ids=lambda path: path.name)
def test_every_link_of_a_document_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if not re.match("https?:", target):
            name, _, anchor = target.partition("#")
            found = path.parent / name if name else path
            assert found.exists(), target
            assert not anchor or anchor in anchors_of(found.read_text("utf-8")), target


def test_the_page_on_own_tasks_shows_every_way():
    own = [name.partition(", ")[2] for name in SECTIONS if name.startswith("own-task.md")]
    assert own == ["A table", "A class", "A reward function", "reasoning-gym"]


def test_files_and_commands_are_found_in_their_order():
    example = "`x.py`:\n\n```python\n1\n```\n\n```bash\n# why\npython a \\\n  b\nc\n```\n\n"
    page = f"# a\n\n## b\n\n{example}## c\n\n```text\nd\n```\n"
    assert sections_of(page) == {"b": [Step("x.py", "1\n"), Step("", "python a    b"), Step("", "c")]}
    assert has_examples(page) and not has_examples(page.replace("`x.py`:", "x"))
