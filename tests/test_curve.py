"""What a learning curve shows, and what is refused in one sentence."""

from __future__ import annotations

import json
import sys

import pytest

from tinyzero_astar.report import curve

GREEDY = "eval/greedy_accuracy"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, as (label, iterations, values) of every line, and (iterations, low, high) of every band."""
    from matplotlib.axes import Axes

    lines, bands = [], []

    def note_line(axes, *args, **options):
        lines.append((options.get("label"), list(args[0]), list(args[1])))
        return plot(axes, *args, **options)

    def note_band(axes, *args, **options):
        bands.append(tuple(list(x) for x in args))
        return fill(axes, *args, **options)

    plot, fill = Axes.plot, Axes.fill_between
    monkeypatch.setattr(Axes, "plot", note_line)
    monkeypatch.setattr(Axes, "fill_between", note_band)
    return lines, bands


def make_run(folder, *records):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(folder)


def evaluated(iteration, value, **more):
    return {"iteration": iteration, GREEDY: value, f"{GREEDY}_low": value - 0.1, f"{GREEDY}_high": 0.9, **more}


def test_accuracy_its_interval_and_the_policys_are_drawn_in_per_cent(tmp_path, drawn, capsys):
    trained = [{"iteration": 1, "rollout/policy_accuracy": 0.25}]
    run = make_run(
        tmp_path / "r", evaluated(0, 0.125), *trained, evaluated(2, 0.5, **{"rollout/policy_accuracy": 0.75})
    )
    assert curve.main([run, "-o", "a/b.png"]) == 0
    assert capsys.readouterr().out == "a/b.png\n" and (tmp_path / "a" / "b.png").stat().st_size > 1000
    lines, bands = drawn
    assert lines[0] == ("r: held-out, greedy", [0, 2], [12.5, 50.0])
    assert lines[1] == (None, [1, 2], [25.0, 75.0])
    assert bands == [([0, 2], pytest.approx([2.5, 40.0]), [90.0, 90.0])]


def test_null_is_left_out(tmp_path, drawn):
    """Trainer writes null for what could not be measured."""
    gaps = [{**evaluated(1, 0.5), GREEDY: None}, {"iteration": 2, "rollout/policy_accuracy": None}]
    assert curve.main([make_run(tmp_path / "r", evaluated(0, 0.25), *gaps, evaluated(3, 0.5))]) == 0
    assert drawn[0][0][1:] == ([0, 3], [25.0, 50.0]) and drawn[0][1][1:] == ([], [])


def test_a_run_without_evaluations_is_drawn_beside_one_with(tmp_path, drawn):
    runs = [make_run(tmp_path / "none", {"iteration": 1}), make_run(tmp_path / "some", evaluated(0, 0.5))]
    assert curve.main(runs) == 0
    assert drawn[0][0][1:] == ([], []) and drawn[0][2][1:] == ([0], [50.0])


def test_a_name_is_no_formula(tmp_path):
    assert curve.main([make_run(tmp_path / "a$b^$c", evaluated(0, 0.5))]) == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("3", "r/metrics.jsonl, line 1 is damaged (it is no JSON object with an iteration); "),
        ("{}", "r/metrics.jsonl, line 1 is damaged (it is no JSON object with an iteration); "),
        ('{"iteration": 1, "rollout/policy_accuracy": "x"}', "r/metrics.jsonl: rollout/policy_accuracy of iteration 1"),
        ("", "r: no metrics.jsonl there; name the folder of a run"),
    ],
)
def test_what_is_no_metrics_file_is_one_sentence(line, sentence, tmp_path, capsys):
    make_run(tmp_path / "r")
    (tmp_path / "r" / "metrics.jsonl").write_text(f"{line}\n" if line else "")
    assert curve.main(["r"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}") and err.count("\n") == 1
    assert not (tmp_path / "curve.png").exists()


@pytest.mark.parametrize("output", ["file/b.png", "folder"])
def test_a_picture_that_cannot_be_written_is_one_sentence(output, tmp_path, capsys):
    run = make_run(tmp_path / "r", evaluated(0, 0.5))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()  # matplotlib adds the suffix
    assert curve.main([run, "-o", output]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output {output} cannot be written (")


def test_without_matplotlib_the_sentence_says_what_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert curve.main([make_run(tmp_path / "r", evaluated(0, 0.5))]) == 2
    assert capsys.readouterr().err == "error: matplotlib is not installed: pip install -e '.[plot]'\n"
