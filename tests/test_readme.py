"""The commands of README and docs, read from there. Cheap ones run as written, the others are parsed.

They run one after another in a folder of their own, with the README's first run, `python train.py`, made before. Its
preset is made small. How often it saves and how many iterations it has stay those of the real one.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import tomllib
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tinyzero_astar import __main__
from tinyzero_astar.cli import commands
from tinyzero_astar.cli.doctor import Doctor
from tinyzero_astar.cli.options import parse, parse_as, parse_train
from tinyzero_astar.cli.train import main
from tinyzero_astar.config import DataConfig, EvalConfig, ModelConfig, SearchConfig, ValueConfig
from tinyzero_astar.config_checks import check_processes
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.resources import machine
from tinyzero_astar.resources.machine import Speed
from tinyzero_astar.run.folder import CONFIG
from tinyzero_astar.study.plan import read_study

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TINY = PRESETS["tiny"]  # as it is, before `project` makes it small
_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(r"(\w+=\S+ )*(\.venv/bin/)?(python|tinyzero|pip|make|torchrun|source|git) .*", re.DOTALL)


def commands_of(text):
    """Commands in code blocks, and in backquotes in tables and sentences, each once, on one line."""
    lines = [line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    bare = [" ".join(line.split(" #")[0].split()) for line in [*lines, *spans]]
    return list(dict.fromkeys(line for line in bare if _COMMAND.fullmatch(line)))


# whose commands need the files that the pages show. tests/test_docs.py and tests/test_tutorial.py run them
EXAMPLES = ("own-task.md", "tutorial.md")
RUN = ("README.md", "commands.md")  # whose cheap commands are run. Those of the other pages are parsed
DOCS = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in EXAMPLES]
COMMANDS = {command: path.name for path in [*DOCS, README] for command in commands_of(path.read_text("utf-8"))}


@pytest.fixture(scope="module")
def project(tiny_base, tmp_path_factory):
    """A folder in which `python train.py` was run, with a small preset."""
    folder, real = tmp_path_factory.mktemp("project"), PRESETS["tiny"]
    small = replace(
        real,
        model=ModelConfig(model_name=str(tiny_base)),
        data=DataConfig(num_problems=12),
        search=SearchConfig(num_rollouts_per_problem=2, beam_width=5, max_search_depth=6),
        value=ValueConfig(hidden_size=8),
        train=replace(real.train, problems_per_iteration=2, batch_size=2),
        eval=EvalConfig(eval_frequency=real.train.num_iterations, num_problems=4, num_samples=2, max_rows=16),
    )
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(PRESETS, "tiny", small)
        patch.setattr(machine, "measure_speed", lambda *a: Speed(1e12, 1e14))
        assert main([]) == 0 and (folder / "runs" / "tiny-001" / CONFIG).is_file()
        yield folder
    torch.set_num_threads(threads)


def words_of(command):
    """The words, with what stands for something of the reader's own filled in."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    words[0] = words[0].removeprefix(".venv/bin/")
    return [
        {"S": "1", "A": "rloo", "…": "runs/tiny-001", "CHECKPOINT": "runs/tiny-001"}.get(word, word) for word in words
    ]


def is_for_a_cpu(argv):
    return not ({"small", "local", "training"} & set(argv))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_works_as_written(command, project, capsys):
    program, *argv = words_of(command)
    if program == "torchrun":
        parse(argv[argv.index("train.py") + 1 :])  # and `test_processes_of_documented_commands_share_the_work`
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert argv[0] in targets
    elif program == "pip":
        if argv[0] == "download":
            assert argv[1] == "--no-deps" and unpacked_wheel() == argv[2].replace("-", "_").replace("==", "-")
            return
        assert argv[0] == "install" and argv[1] in ("-e", "-r")
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert (ROOT / argv[2]).is_file() if argv[1] == "-r" else argv[2].strip(".[]") in extras
    elif program == "source":
        assert argv == [".venv/bin/activate"]
    elif program == "tinyzero":
        assert run_command(argv) == 0
    else:
        assert program == "python" and run_python(argv, COMMANDS[command] in RUN) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("torchrun")])
def test_processes_of_documented_commands_share_the_work(command):
    _, *argv = words_of(command)
    own = argv[argv.index("train.py") + 1 :]
    assert "--distributed" in own
    counts = dict(word.removeprefix("--").split("=") for word in argv if word.startswith(("--nproc", "--nnodes")))
    check_processes(parse(own), int(counts["nproc_per_node"]) * int(counts.get("nnodes", 1)))


def run_command(argv):
    """The exit status of a command of tinyzero's. Trainings and doctor are parsed, or take as long as a run."""
    name, *rest = argv
    if name == "train":
        return 0 if parse_train(rest) else 1
    if name == "doctor":
        return 0 if parse_as(Doctor, "doctor", rest) else 1
    if name == "study":
        return 0 if read_study(ROOT / rest[0]) else 1
    status = commands.main(argv)
    assert name != "report" or Path("runs/tiny-001/report.html").stat().st_size > 100_000
    return status


def run_python(argv, is_run):
    """The exit status of a command of Python's. Trainings of docs/, and those that need a hub or a GPU, are parsed."""
    if argv[0] == "train.py":
        if is_run and is_for_a_cpu(argv) and argv != ["train.py"]:  # which has made the project
            return main(argv[1:])
        parse(argv[1:])
    elif argv[:2] == ["-m", "tinyzero_astar"]:
        return run_command(argv[2:])
    elif argv[:2] == ["-m", "pytest"]:
        assert (ROOT / argv[2]).is_file()
    elif argv[1].startswith(("benchmarks.", "recipes.")):
        source = Path(importlib.util.find_spec(argv[1]).origin).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in argv if word.startswith("--"))
    elif argv[:3] == ["-m", "zipfile", "-e"]:
        assert argv[3].startswith(unpacked_wheel())
    else:
        assert argv == ["-m", "venv", ".venv"]
    return 0


def unpacked_wheel():
    """Name and version of the wheel that the documents unpack; it is downloaded before."""
    (command,) = (command for command in COMMANDS if "zipfile" in command)
    return "-".join(shlex.split(command)[4].split("-")[:2])


def test_the_readers_find_commands_in_tables_blocks_and_sentences():
    text = "a `make x` b\n```bash\npython train.py \\\n  --a 1   # why\n```\n| `python -m c` | `d` |\n`e.py`"
    assert commands_of(text) == ["python train.py --a 1", "make x", "python -m c"]
    assert len([name for name in COMMANDS.values() if name in RUN]) >= 20


def test_the_lines_that_the_readme_shows_are_those_of_the_console():
    shown = StringIO()
    console = ConsoleLogger(Console(file=shown, width=80, highlight=False))
    console.begin(asdict(TINY), Path(), 0, [])
    for number, policy, found, is_open, tokens, seconds, ranking in (
        (1, 0.028, 0.031, 0.0, 1_100, 1.3, None),
        (10, 0.64, 0.58, 1.0, 13_900, 1.7, 0.94),
    ):
        metrics = {"rollout/policy_accuracy": policy, "rollout/accuracy": found, "guidance/is_open": is_open}
        metrics |= {"search/num_decoded_tokens": tokens, "time/iteration_s": seconds}
        console.iteration(number, metrics, ranking)
    names = ("eval/greedy_accuracy", "eval/greedy_accuracy_low", "eval/greedy_accuracy_high", "eval/greedy_format")
    console.evaluation(10, dict(zip(names, (0.925, 0.88, 0.954, 1.0), strict=True)) | {"eval/num_problems": 200}, [])
    of_the_run = [line for line in shown.getvalue().splitlines() if "/50 " in line]
    assert [line for line in README.read_text("utf-8").splitlines() if "/50  " in line] == of_the_run


def modules_in_the_map(text):
    """Python files of the package in the layout, as paths within it."""
    layout = re.search(r"^tinyzero_astar/\n((?:  .*\n)+)", text, re.MULTILINE)[1]
    return [line.split()[0] for line in layout.splitlines() if line.split()[0].endswith(".py")]


def test_the_layout_has_every_module_once_and_no_other():
    package = ROOT / "tinyzero_astar"
    modules = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert len(modules) > 50
    assert sorted(modules_in_the_map((ROOT / "docs/layout.md").read_text("utf-8"))) == sorted(modules)


def test_the_launcher_chooses_the_command(project, monkeypatch, capsys):
    for argv, said in (
        (["doctor", "--json"], '"fits"'),
        (["solve", "3*4", "--json"], '"nodes"'),
        (["--help"], "train"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *argv])
        try:
            assert __main__._run() == 0
        except SystemExit as leaving:
            assert leaving.code == 0
        assert said in capsys.readouterr().out


def test_what_the_run_says_at_its_end_works_as_written(project, capsys):
    assert main(["--train.num-iterations", "1"]) == 0
    out = capsys.readouterr().out
    told = {name: out.split(f"\n{name} ")[1].splitlines()[0].strip() for name in ("tree", "evaluate", "card", "page")}
    assert Path(told.pop("card")).is_file() and Path(told.pop("page")).is_file()
    for command in told.values():
        program, *argv = shlex.split(command)
        assert program == "tinyzero" and run_command(argv) == 0
