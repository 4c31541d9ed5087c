"""docs/tutorial.md from top to bottom. Every block is run in one folder, with preset tiny made small."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_docs import ROOT, STEP, STORY
from tinyzero_astar.cli import commands
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import ModelConfig, ValueConfig
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.resources import machine
from tinyzero_astar.resources.machine import Speed

PAGE = (ROOT / "docs" / STORY).read_text("utf-8")


@pytest.fixture
def project(tiny_base, tmp_path, monkeypatch):
    """A folder in which preset tiny trains a random model for two iterations."""
    real, threads = PRESETS["tiny"], torch.get_num_threads()
    small = replace(
        real,
        model=ModelConfig(model_name=str(tiny_base)),
        data=replace(real.data, num_problems=12),
        search=replace(real.search, problems_per_search=2, beam_width=5, max_search_depth=6),
        value=ValueConfig(hidden_size=8),
        train=replace(real.train, num_iterations=2, problems_per_iteration=2, batch_size=2),
        eval=replace(real.eval, num_problems=4, max_rows=16),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", small)
    monkeypatch.setattr(machine, "measure_speed", lambda *a: Speed(1e12, 1e14))
    yield tmp_path
    torch.set_num_threads(threads)


def run(command: str) -> int:
    """The exit status of a command of the page."""
    program, *argv = shlex.split(command)
    if program == "tinyzero":
        return commands.main(argv)
    if command in ("make train", "source .venv/bin/activate"):
        return main([]) if program == "make" else 0
    assert program == "python" and argv[0] == "train.py", command
    return main(argv[1:])


def test_every_block_of_the_tutorial_works_as_written(project, capsys):
    steps = STEP.findall(PAGE)
    assert len(steps) == len(re.findall("^ *```", PAGE, re.MULTILINE)) / 2
    names: dict[str, object] = {}
    for file, language, inside in steps:
        if file:
            Path(file).write_text(inside, "utf-8")
        elif language == "python":
            exec(compile(inside, STORY, "exec"), names)
        else:
            assert language == "bash"
            for line in inside.replace("\\\n", " ").splitlines():
                assert run(line) == 0, (line, capsys.readouterr().err)
    assert all(Path(f"{run}/report.html").is_file() for run in ("runs/tiny-001", "runs/tiny-002", "squares-run"))
    pages = [name for name in re.findall(r"`([\w-]+\.html)`|--(?:html|output) (\S+\.html)", PAGE) if any(name)]
    assert pages and all(Path("".join(dict.fromkeys(name))).is_file() for name in pages)


def test_the_numbers_of_questions_are_those_of_the_task(project):
    names: dict[str, object] = {}
    exec(next(inside for file, _, inside in STEP.findall(PAGE) if file == "squares.py"), names)
    task = names["Squares"](replace(PRESETS["tiny"].data, num_problems=72), seed=0)
    assert len(task.train_problems(0, 72)) == 72 and len(task.held_out_problems(18)) == 18
    with pytest.raises(ValueError, match="only 18 exist"):
        task.held_out_problems(19)
