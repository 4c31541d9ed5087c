"""Runs side by side, compared with the formulas, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from io import StringIO
from pathlib import Path

import pytest
import torch

from tests.pages import Elements
from tinyzero_astar.cli.compare import compare_main
from tinyzero_astar.config import Config
from tinyzero_astar.config_json import to_json
from tinyzero_astar.report import intervals
from tinyzero_astar.report.compare import accuracy_at, compare_runs
from tinyzero_astar.report.intervals import (
    RESAMPLES,
    bootstrap_mean,
    mean_of,
    share_outside,
    student_inside,
    student_quantile,
)

ACCURACY = "eval/greedy_accuracy"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(folder, seed, curve, **sections):
    """A run of (accuracy or None, tokens, seconds) by iteration, from 0 on, with sections changed."""
    config = replace(Config(), run=replace(Config().run, seed=seed, **sections.pop("run", {})))
    for name, fields in sections.items():
        config = replace(config, **{name: replace(getattr(config, name), **fields)})
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    rows = []
    for number, (accuracy, tokens, seconds) in enumerate(curve):
        spent = {"search/num_decoded_tokens": tokens, "time/iteration_s": seconds} if number else {}
        rows.append({"iteration": number, **({} if accuracy is None else {ACCURACY: accuracy}), **spent})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# ---------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30])
def test_the_share_inside_is_the_integral_of_the_density(freedom):
    """Student's density c (1 + x²/n)^(-(n+1)/2), by the trapezoidal rule, without digits of tables."""
    x = torch.linspace(-2.5, 2.5, 200_001, dtype=torch.float64)
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert student_inside(2.5, freedom) == pytest.approx(float(torch.trapezoid(density, x)), abs=1e-9)


def test_the_quantile_is_that_of_the_tables():
    tabled = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 30: 2.042}
    assert {n: round(student_quantile(n), 3) for n in tabled} == tabled


def test_the_interval_of_a_mean():
    mean = mean_of([1.0, 2.0, 6.0])  # deviations -2, -1, 3: variance 14 / 2
    half = student_quantile(2) * math.sqrt(7 / 3)
    assert mean == pytest.approx((3.0, 3 - half, 3 + half))
    assert mean_of([0.25]) == (0.25, None, None)


def resampled(numbers):
    """The sum of as many draws with replacement, and the probability of each value, without any draw."""
    share, found = Fraction(1, len(numbers)), Counter({0: Fraction(1)})
    for _ in numbers:
        after = Counter()
        for total, probability in found.items():
            for number in numbers:
                after[total + number] += probability * share
        found = after
    return found


@pytest.mark.parametrize(
    "numbers", [[3, 8, 1, 1], [0, 5, 2, 9, 4], [7, 1, 4, 4, 2, 9, 3, 0], [(7 * i * i) % 31 for i in range(20)]]
)
def test_a_bootstrap_interval_has_the_exact_share_of_the_resampled_means_outside(numbers):
    count, outside, exact = len(numbers), share_outside(len(numbers)), resampled(numbers)
    reach = math.sqrt(count / (count - 1)) * student_quantile(count - 1)
    x = torch.linspace(-40, -reach, 400_001, dtype=torch.float64)
    normal = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    assert outside == pytest.approx(float(torch.trapezoid(normal, x)), rel=1e-5)
    found = bootstrap_mean([float(number) for number in numbers])
    assert found.value == pytest.approx(sum(numbers) / count)
    slack = 5 * math.sqrt(outside / RESAMPLES) + 1 / RESAMPLES  # of so many draws
    for end, sign in ((found.low, 1), (found.high, -1)):
        total = round(end * count)
        assert end * count == pytest.approx(total)
        beyond = sum(p for value, p in exact.items() if sign * value < sign * total)
        assert beyond <= outside + slack and beyond + exact[total] >= outside - slack


def test_the_draws_are_those_of_the_seed():
    numbers = [math.cos(i) for i in range(9)]
    first = bootstrap_mean(numbers)
    intervals._draws.cache_clear()
    assert bootstrap_mean(numbers) == first


def test_a_bootstrap_interval_of_few_numbers_is_their_range_and_of_many_that_of_student():
    assert bootstrap_mean([0.25]) == (0.25, None, None)
    assert bootstrap_mean([1.0, 2.0, 6.0]) == pytest.approx((3.0, 1.0, 6.0))
    many = [math.sin(1.7 * i) for i in range(40)]
    assert bootstrap_mean(many) == pytest.approx(mean_of(many), abs=0.02)


# --------------------------------------------------------------------------------------------- comparison


def test_accuracy_is_read_off_the_line_between_evaluations():
    curve = [(0.0, 0.0), (10.0, 0.5), (10.0, 0.7), (30.0, 0.9)]
    assert [accuracy_at(curve, x) for x in (0, 5, 20, 30)] == pytest.approx([0.0, 0.25, 0.8, 0.9])
    with pytest.raises(ValueError, match="outside the measured range"):
        accuracy_at(curve, 31)


def two_groups(folder):
    """Seeds 0, 1 and 2 of mode gumbel, 1, 2 and 5 of mode sample. Tokens 100 and 50 an iteration, seconds 1 and 2."""
    runs = []
    for s, last in ((0, 0.9), (1, 0.6), (2, 0.6)):
        runs.append(make_run(folder / f"g{s}", s, [(0.0, 0, 0), (None, 100, 1), (last, 100, 1)]))
    sample = {"mode": "sample"}
    for s, last in ((1, 0.2), (2, 0.4), (5, 1.0)):
        curve = [(0.0, 0, 0), (None, 50, 2), (last, 50, 2)]
        runs.append(make_run(folder / f"s{s}", s, curve, search=sample, run={"checkpoint_frequency": 3}))
    return runs


def test_groups_are_compared_at_equal_spending_seed_by_seed(elsewhere):
    runs = two_groups(elsewhere)
    found = compare_runs(runs, "tokens")
    assert found.names == ["search.mode gumbel", "search.mode sample"] and found.by == "tokens"
    assert [[run.seed for run in group] for group in found.groups] == [[0, 1, 2], [1, 2, 5]]
    assert [row.budget for row in found.rows[::2]] == [25, 50, 75, 100]  # the sampled runs spent 100, the others 200
    a, b = found.rows[-2:]
    assert a.gain is None and a.accuracy == pytest.approx(bootstrap_mean([0.45, 0.3, 0.3]))
    assert b.accuracy == pytest.approx(bootstrap_mean([0.2, 0.4, 1.0]))
    assert b.gain == pytest.approx(bootstrap_mean([0.2 - 0.3, 0.4 - 0.3]))  # seeds 1 and 2
    seconds = compare_runs(runs, "seconds").rows
    assert [row.budget for row in seconds[::2]] == [0.5, 1, 1.5, 2]  # and 4 seconds against 2
    a, b = seconds[-2:]
    assert a.accuracy.value == pytest.approx(0.7) and b.accuracy == pytest.approx(bootstrap_mean([0.1, 0.2, 0.5]))
    assert b.gain == pytest.approx(bootstrap_mean([0.1 - 0.6, 0.2 - 0.6]))
    iterations = compare_runs(runs, "iterations").rows
    assert [row.budget for row in iterations[::2]] == [0.5, 1.0, 1.5, 2.0]
    assert iterations[-2].accuracy.value == pytest.approx(0.7) and iterations[-1].accuracy.value == pytest.approx(
        1.6 / 3
    )


def test_tokens_of_a_reference_count(elsewhere):
    folder = make_run(elsewhere / "r", 0, [(0.0, 0, 0), (1.0, 40, 1)])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[1]) | {"reference/num_decoded_tokens": 60}
    (folder / "metrics.jsonl").write_text(lines[0] + "\n" + json.dumps(last) + "\n")
    assert compare_runs([folder], "tokens").groups[0][0].curve == [(0, 0), (100, 1)]


def test_the_table_has_80_columns(elsewhere, capsys):
    folders = [str(folder) for folder in two_groups(elsewhere)]
    assert compare_main(folders) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["A  search.mode gumbel; seeds 0, 1, 2", "B  search.mode sample; seeds 1, 2, 5"]
    head = next(i for i, line in enumerate(lines) if "tokens" in line)
    assert lines[head].split() == ["tokens", "accuracy", "minus", "A,", "same", "seeds"]
    assert lines[head + 10].startswith("An accuracy between two evaluations") and "no interval" not in lines[-1]
    assert lines[head + 7].split()[:3] == ["100", "A", "35.0"] and lines[head + 8].split()[:2] == ["B", "53.3"]
    assert " +0.0 [" in lines[head + 8]


def test_the_table_as_json_and_one_run_alone(elsewhere, capsys):
    folder = make_run(elsewhere / "r", 4, [(0.0, 0, 0), (1.0, 40, 1)])
    assert compare_main([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"] == [{"name": "embedded", "runs": [str(folder)], "seeds": [4]}] and found["by"] == "tokens"
    row = {"budget": 40, "group": 0, "accuracy": {"value": 1, "low": None, "high": None}, "gain": None}
    assert found["rows"][-1] == row
    assert compare_main([str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "minus A" not in out and "There is no interval for A, which is one run." in out and "--run.seed 1" in out


def test_the_table_as_csv(elsewhere, capsys):
    folders = [str(folder) for folder in two_groups(elsewhere)]
    assert compare_main([*folders, "--csv", "--by", "seconds"]) == 0
    rows = [*csv.DictReader(StringIO(capsys.readouterr().out))]
    assert len(rows) == 8 and rows[0]["gain"] == ""
    found = compare_runs([Path(folder) for folder in folders], "seconds").rows[-1]
    last = rows[-1]
    assert (last["seconds"], last["group"], last["name"], last["seeds"]) == ("2.0", "B", "search.mode sample", "1 2 5")
    assert [float(last[f"gain{end}"]) for end in ("", "_low", "_high")] == pytest.approx([*found.gain])
    assert [float(last[f"accuracy{end}"]) for end in ("", "_low", "_high")] == pytest.approx([*found.accuracy])


def test_a_group_that_samples_is_not_named_after_its_guidance(elsewhere):
    curve = [(0.0, 0, 0.0), (0.5, 10, 1.0)]
    groups = [{"mode": "gumbel", "guidance_strength": 0.0}, {"mode": "sample", "guidance_strength": 1.0}]
    runs = [make_run(elsewhere / search["mode"], 0, curve, search=search) for search in groups]
    assert compare_runs(runs, "tokens").names == [
        "search.mode gumbel, search.guidance_strength 0.0",
        "search.mode sample",
    ]


def test_the_page_has_the_table_and_the_curves_of_each_group_in_its_colour(elsewhere, capsys):
    folders = [str(folder) for folder in two_groups(elsewhere)]
    assert compare_main([*folders, "--by", "seconds", "--page", "c.html"]) == 0
    table = capsys.readouterr().out
    page = Path("c.html").read_text(encoding="utf-8")
    data = Elements(page).data
    assert data["axis"] == "seconds" and [run["colour"] for run in data["runs"]] == [0, 0, 0, 1, 1, 1]
    assert [run["name"] for run in data["runs"]] == ["g0", "g1", "g2", "s1", "s2", "s5"]
    assert "B  search.mode sample; seeds 1, 2, 5</li>" in page
    assert "is read off the straight line between them" in page
    cells = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    assert len(cells) == 8 and all(accuracy in table and gain in table for _, _, accuracy, gain in cells)
    assert compare_main([*folders, "--page", "nowhere/c.html"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere/c.html cannot be written (No such file")


def test_seconds_are_not_compared_where_they_are_not_known(elsewhere, capsys):
    folder = make_run(elsewhere / "r", 0, [(0.0, 0, 0), (0.5, 40, None), (1.0, 40, 1)])
    assert compare_main([str(folder), "--by", "seconds"]) == 2
    assert "r: it was stopped where its time was not recorded; compare --by tokens or it" in capsys.readouterr().err
    assert compare_main([str(folder)]) == 0
    assert "80   A   100.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("curve", "why"),
    [
        ([(0.0, 0, 0)], "goes from iteration 0 to 0; a curve needs 0 and one more: finish the run"),
        ([(0.0, 0, 0), (None, 9, 1)], "1 evaluation(s) in its metrics.jsonl; a curve needs two: finish the run"),
        ([(0.0, 0, 0), ("high", 9, 1)], "eval/greedy_accuracy of iteration 1 is no number"),
    ],
)
def test_a_run_without_a_curve_is_refused(curve, why, elsewhere, capsys):
    make_run(elsewhere / "r", 0, curve)
    assert compare_main(["r"]) == 2
    assert why in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused_in_one_sentence(elsewhere, capsys):
    make_run(elsewhere / "a", 0, [(0.0, 0, 0), (1.0, 40, 1)])
    make_run(elsewhere / "b", 0, [(0.0, 0, 0), (1.0, 40, 1)])
    for argv, why in (
        (["a", "b"], "a and b have the same configuration and seed 0; name one of them"),
        (["nowhere"], "nowhere: no metrics.jsonl there; name the folder of a run"),
        ([], "compare needs the folders of runs"),
        (["a", "--json", "--csv"], "--json and --csv exclude each other"),
    ):
        assert compare_main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {why}") and err.count("\n") == 1
