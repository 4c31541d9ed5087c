"""The commands that a run of several processes prints start as many again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyzero_astar.cli.options import parse
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run import launching
from tinyzero_astar.run.launching import resume_command, train_command
from tinyzero_astar.run.model_card import model_card

_MEETING = "--rdzv_backend=c10d --rdzv_endpoint=HOST:29500"


@pytest.fixture
def started(monkeypatch):
    """As if torchrun had started so many processes, so many of them on each machine."""

    def start(count, per_machine):
        monkeypatch.setattr(launching, "is_distributed", lambda: True)
        monkeypatch.setattr(launching, "world_size", lambda: count)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_machine))

    return start


def test_one_process_is_continued_by_python():
    assert resume_command(Path("runs/tiny-001")) == "python train.py --resume runs/tiny-001"
    assert train_command([]) == "python train.py"


@pytest.mark.parametrize("count", [1, 4])
def test_processes_of_one_machine_are_continued_by_as_many(count, started):
    started(count, count)
    assert resume_command(Path("my runs/a")) == (
        f"torchrun --nproc_per_node={count} train.py --resume 'my runs/a' --distributed"
    )


def test_processes_of_two_machines_need_a_place_to_meet(started):
    started(16, 8)
    assert resume_command(Path("r")) == (
        f"torchrun --nnodes=2 --nproc_per_node=8 {_MEETING} train.py --resume r --distributed on each machine, where"
        " HOST is one of them"
    )


def test_the_card_of_several_processes_starts_as_many(started):
    started(4, 4)
    text = model_card(PRESETS["training"], 20, [], "3*4=")
    (command,) = [line for line in text.splitlines() if line.startswith("torchrun ")]
    words = command.split()
    assert words[:3] == ["torchrun", "--nproc_per_node=4", "train.py"]
    assert parse(words[3:]).distributed and parse(words[3:]).train == PRESETS["training"].train
