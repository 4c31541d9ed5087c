"""Running a study: what is run and what is not, how it stops, and what it says."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.studies import FILE, finished_study
from tinyzero_astar.cli.study import study_main
from tinyzero_astar.config import Config
from tinyzero_astar.config_file import read_config_file
from tinyzero_astar.config_json import to_json
from tinyzero_astar.data.tasks import pinned
from tinyzero_astar.run.lock import locked
from tinyzero_astar.study import running
from tinyzero_astar.study.plan import read_study


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def done(file):
    return finished_study(file)


def test_a_finished_study_runs_nothing_and_reports_again(done, file, monkeypatch, capsys):
    monkeypatch.setattr(running, "_start", None)  # calling it would fail
    _study, root, _ = done
    assert study_main([str(file), "--output", str(root)]) == 0
    out = capsys.readouterr().out
    assert "two, all: accuracy in % and range over 2 seeds" in out
    assert "left out" not in out
    assert max(map(len, out.splitlines())) <= 80 + len(str(root))
    results = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    assert [(r["arm"], r["seed"]) for r in results] == [("grpo", 0), ("forest", 0), ("grpo", 1), ("forest", 1)]
    assert json.loads((root / "summary.json").read_text())["all"][1]["gain"]["tokens"]["value"] == pytest.approx(0.15)
    assert "forest" in (root / "all.md").read_text()
    assert (root / "all.html").stat().st_size > 10_000


def test_only_seeds_that_every_arm_has_are_compared(done, file, capsys):
    _study, root, outcomes = done
    missing = next(o.trial for o in outcomes if o.trial.arm == "forest" and o.trial.seed == 1)
    (root / missing.folder / "config.json").unlink()
    assert study_main([str(file), "--output", str(root), "--report-only"]) == 0
    out = capsys.readouterr().out
    assert "two, all: accuracy in % with 1 seed, no interval" in out
    assert "all: 1 seed left out, which not every arm has done (forest lacks 1)\n" in out
    results = (root / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in results] == [0, 0]


def test_a_run_that_differs_from_the_file_is_refused(done, file, capsys):
    _, root, _ = done
    file.write_text(file.read_text().replace("problems_per_iteration = 32", "problems_per_iteration = 64"))
    assert study_main([str(file), "--output", str(root)]) == 2
    assert "was made with another train.problems_per_iteration than the study says now" in capsys.readouterr().err


def test_a_run_on_an_own_task_is_known_again_from_wherever_it_was_named(file, tmp_path, monkeypatch):
    """A run records the whole path of the file, and the study may say a part of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "squares.py").write_text(SQUARES)
    file.write_text(FILE.partition("[sweep]")[0] + '[arms.grpo]\ndata.task = "own/squares.py:Squares"\n')
    study = read_study(file)
    trial = study.reported({("all", "grpo"): None})[0]
    assert trial.config.data.task == f"{tmp_path.resolve()}/own/squares.py:Squares"
    assert pinned(trial.config.data).task == trial.config.data.task


SQUARES = """
from tinyzero_astar.data.questions import Question, QuestionTask


class Squares(QuestionTask):
    def questions(self, rng):
        for n in rng.sample(range(10, 100), 90):
            yield Question(asked=f"{n}*{n}=?", answer=n * n, text=f"{n} squared")
"""
PYTHON = sys.executable  # which the fixture below replaces
STAND_IN = """#!{python}
import json, pathlib, sys, tomllib
words = sys.argv[3:]
with open("calls.txt", "a") as file:
    print(*words, file=file)
if words[0] == "train" and words[1] == "--config":
    folder = pathlib.Path(words[4])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((pathlib.Path("configs") / (words[2].replace("/", "+") + ".json")).read_text())
    rows = [{{"iteration": i, "eval/greedy_accuracy": i / 8, "cost/tokens": i}} for i in range(5)]
    if pathlib.Path("short").exists():
        rows.pop()
    if "seed-1" in words[4] and "grpo" in words[4] and not pathlib.Path("well").exists():
        print("it broke"); sys.exit(3)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
elif words[0] == "train":
    rows = [{{"iteration": i, "eval/greedy_accuracy": 0.5}} for i in range(4 if pathlib.Path("short").exists() else 5)]
    (pathlib.Path(words[2]) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
else:
    folder = pathlib.Path(words[1])
    folder.mkdir(parents=True, exist_ok=True)
    count = len([*folder.glob("evaluation*.json")])
    found = {{"eval/pass_at_" + words[3]: 0.75, "eval/num_problems": int(words[5])}}
    (folder / ("evaluation-%d.json" % (count + 1) if count else "evaluation.json")).write_text(json.dumps(found))
"""


@pytest.fixture
def stand_in(file, monkeypatch):
    """A study whose processes write at once what a run would."""
    file.write_text(
        "samples = 4\nsampled_problems = 7\n"
        + FILE.partition("[sweep]")[0]
        + "[arms.grpo]\n[arms.forest]\nsearch.root_tilt = 0.0\n"
    )
    study = read_study(file)
    trials = study.reported(dict.fromkeys((("all", "grpo"), ("all", "forest"))))
    (file.parent / "configs").mkdir()
    for trial in trials:
        name = f"out/{trial.folder}.toml".replace("/", "+")
        (file.parent / "configs" / f"{name}.json").write_text(to_json(trial.config))
    program = file.parent / "stand_in"
    program.write_text(STAND_IN.format(python=PYTHON))
    program.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(program))
    return study, trials, file.parent


def calls(folder):
    return (folder / "calls.txt").read_text().splitlines()


def test_every_run_is_trained_and_then_sampled_once(stand_in):
    _study, trials, folder = stand_in
    (folder / "well").touch()
    said = []
    running.run_trials(trials, folder.joinpath("out").relative_to(folder), 1, said.append)
    expected = []
    for trial in trials:
        expected.append(f"train --config out/{trial.folder}.toml --output-dir out/{trial.folder}")
        expected.append(f"eval out/{trial.checkpoint} --eval.num-samples 4 --eval.num-problems 7")
    assert calls(folder) == expected
    assert said[0] == "0 of 4 runs are done, 1 at a time"
    assert said[-1].startswith("4/4  all/forest/seed-1")
    assert read_config_file(folder / "out" / f"{trials[0].folder}.toml") == trials[0].config
    running.run_trials(trials, folder.joinpath("out").relative_to(folder), 1, said.append)
    assert calls(folder) == expected  # nothing was repeated


def test_a_run_is_sampled_anew_when_the_study_asks_for_other_samples_or_problems(stand_in):
    _study, trials, folder = stand_in
    running.run_trials(trials[:1], Path("out"), 1, lambda _: None)
    for changed in (replace(trials[0], samples=8), replace(trials[0], sampled_problems=9)):
        before = len(calls(folder))
        assert running.finished([changed], Path("out")) == []
        running.run_trials([changed], Path("out"), 1, lambda _: None)
        asked = f"--eval.num-samples {changed.samples} --eval.num-problems {changed.sampled_problems}"
        assert calls(folder)[before:] == [f"eval out/{changed.checkpoint} {asked}"]
    assert running.finished(trials, Path("out")) == trials[:1]  # its first evaluation is still there


def test_a_run_that_ends_early_time_and_again_ends_the_study(stand_in, capsys):
    _study, _trials, folder = stand_in
    (folder / "short").touch()
    assert study_main(["two.toml", "--output", "out", "--cores", "1"]) == 1
    said = capsys.readouterr().err
    assert "a run ended without its results; all that it printed is in out/runs/all/grpo/seed-0.log" in said
    assert len(calls(folder)) == 2  # trained, and resumed once


SAVING = """#!{python}
import os, pathlib, signal, time
received = []

def note(number, frame):
    received.append(number)
    if len(received) == 1 and {again}:
        os.kill(os.getppid(), {number})

signal.signal(signal.SIGINT, note)
pathlib.Path("ready-%d" % os.getpid()).touch()
while len([*pathlib.Path().glob("ready-*")]) < {cores}:
    time.sleep(0.01)
try:
    open("asked", "x").close()
    os.kill(os.getppid(), {number})
except FileExistsError:
    pass
deadline = time.monotonic() + 20
while len(received) < 1 + {again} and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.1)
pathlib.Path("saved-%d" % os.getpid()).write_text("%s %s" % (os.getsid(0) == os.getpid(), received))
"""


@pytest.fixture
def heeded():
    """A signal that the study does not heed fails the test, where it would end pytest."""

    def unheeded(number, frame):
        raise AssertionError(f"signal {number} was not heeded")

    before = {number: signal.signal(number, unheeded) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def saving(folder, number, cores, again=0):
    (folder / "stand_in").write_text(SAVING.format(python=PYTHON, number=int(number), cores=cores, again=again))
    (folder / "stand_in").chmod(0o755)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_study_reaches_every_run_once_and_all_are_awaited(stand_in, heeded, capfd, number):
    _study, _trials, folder = stand_in
    saving(folder, number, cores=2)
    assert study_main(["two.toml", "--output", "out", "--cores", "2"]) == 128 + number
    saved = [path.read_text() for path in folder.glob("saved-*")]
    assert saved == ["True [2]", "True [2]"]  # in a session of its own, out of a terminal's reach, and one SIGINT
    said = capfd.readouterr()
    assert f"{signal.Signals(number).name}: waiting for the runs to save. A second signal stops at once\n" in said.out
    assert said.out.endswith("stopped. The runs have saved what they had, and the same command goes on with them\n")
    assert said.err == ""


def test_a_second_signal_asks_the_runs_again(stand_in, heeded):
    _study, _trials, folder = stand_in
    saving(folder, signal.SIGTERM, cores=1, again=1)
    with pytest.raises(KeyboardInterrupt) as stopped:
        study_main(["two.toml", "--output", "out", "--cores", "1"])
    assert stopped.value.args == (signal.SIGTERM,)
    assert [path.read_text() for path in folder.glob("saved-*")] == ["True [2, 2]"]


def test_a_run_that_fails_ends_the_study_with_one_sentence_and_later_goes_on(stand_in, capsys):
    _study, trials, folder = stand_in
    assert study_main(["two.toml", "--output", "out", "--cores", "1"]) == 1
    said = capsys.readouterr().err
    assert (
        "a run of the study ended with status 3 (it broke); all that it printed is in out/runs/all/grpo/seed-1.log"
        in said
    )
    assert said.count("\n") == 1
    before = len(calls(folder))
    running.run_trials(trials, folder.joinpath("out").relative_to(folder), 1, lambda _: None)
    assert calls(folder)[before] == "train --resume out/runs/all/grpo/seed-1"


def test_a_report_needs_the_whole_sweep(file, capsys):
    assert study_main([str(file), "--output", "out", "--report-only"]) == 2
    assert "out: the sweep of" in capsys.readouterr().err


def test_two_studies_do_not_work_in_one_folder(done, file, capsys):
    _, root, _ = done
    with locked(root):
        assert study_main([str(file), "--output", str(root)]) == 2
    assert f"{root} is in use by process" in capsys.readouterr().err


def test_a_file_is_no_folder_for_a_study(file, capsys):
    assert study_main([str(file), "--output", str(file)]) == 2
    assert f"--output {file} is a file; name a folder" in capsys.readouterr().err


def test_a_negative_number_of_cores_is_refused(file, capsys):
    assert study_main([str(file), "--cores", "-1"]) == 2
    assert "--cores -1 is negative" in capsys.readouterr().err


def test_every_study_of_the_repository_can_be_read():
    from tests.test_docs import ROOT

    files = sorted((ROOT / "benchmarks" / "studies").glob("*.toml"))
    assert files
    for path in files:
        study = read_study(path)
        configs = [config for arms in study.configs.values() for config in arms.values()]
        sizes = [c.train.problems_per_iteration * c.search.num_rollouts_per_problem for c in configs]
        if path.stem in ("batches", "fastest"):  # as many completions in the whole run, but for the last iteration
            assert all(1600 <= n * c.train.num_iterations < 1600 + n for n, c in zip(sizes, configs, strict=True))
        else:
            assert len(set(sizes)) == 1  # every arm has as many completions an iteration
        assert isinstance(study.configs[study.tasks[0]][study.baseline], Config)


@pytest.mark.slow
def test_the_small_study_of_the_repository_runs_from_its_sweep_to_its_tables(tmp_path, monkeypatch, capsys):
    """Two arms and two seeds, in a few minutes. Nothing is claimed of them, but both must learn something."""
    from tests.test_docs import ROOT

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = ROOT / "benchmarks" / "studies" / "quick.toml"
    assert study_main([str(file)]) == 0
    out, root = capsys.readouterr().out, tmp_path / "runs" / "study-quick"
    assert "quick, all: accuracy in % and range over 2 seeds" in out
    results = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    assert [(r["arm"], r["seed"]) for r in results] == [(a, s) for s in (0, 1) for a in ("dapo_8x8", "forest")]
    for result in results:
        points = result["curve"]
        assert len(points) == 6
        assert all(b["tokens"] > a["tokens"] and b["flops"] > a["flops"] for a, b in itertools.pairwise(points))
        assert points[0]["accuracy"] < 0.05 < points[-1]["accuracy"]
        assert 0 < result["final"]["eval/pass_at_1"] < result["final"]["eval/pass_at_16"]
    assert study_main([str(file), "--report-only"]) == 0
