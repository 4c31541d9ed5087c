"""Studies: what a file may say, which runs there are, and their statistics against the formulas."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from dataclasses import replace

import pytest
import torch

from tinyzero_astar.cli.study import study_main
from tinyzero_astar.config import Config
from tinyzero_astar.config_file import read_config_file, to_toml
from tinyzero_astar.config_json import to_json
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.report.intervals import bootstrap, bootstrap_mean, effect_size, interquartile_mean
from tinyzero_astar.run.lock import locked
from tinyzero_astar.study import running
from tinyzero_astar.study.outcomes import EVALUATION, area, cost_of, outcome_of
from tinyzero_astar.study.plan import read_study
from tinyzero_astar.study.summary import choose, reached, summarise
from tinyzero_astar.study.tables import markdown, terminal_lines

FILE = """
name = "two"
baseline = "grpo"
seeds = [0, 1]

[base]
preset = "tiny"
train.num_iterations = 4

[sweep]
values = [1e-4, 2e-4]
seeds = [9]

[arms.grpo]
search.mode = "sample"
train.algorithm = "grpo"
search.num_rollouts_per_problem = 8

[arms.forest]
train.problems_per_iteration = 32
train.batch_size = 32

[tasks.easy]
data.second_max_digits = 1
data.second_min_digits = 1

[tasks.hard]
train.problems_per_iteration = 16
train.batch_size = 16
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    return path


def finish(trial, root, curve, **final):
    """What a run of (tokens, flops, seconds, accuracy) leaves behind."""
    folder = root / trial.folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(trial.config))
    rows, before = [], (0.0, 0.0, 0.0)
    for number, (tokens, flops, seconds, accuracy) in enumerate(curve):
        row = {"iteration": number, "eval/greedy_accuracy": accuracy}
        if number:
            row |= {"cost/tokens": tokens - before[0], "time/cpu_s": seconds - before[2]}
            row |= {"cost/search_flops": (flops - before[1]) / 4, "cost/update_flops": (flops - before[1]) * 3 / 4}
            row |= {"rollout/accuracy": 0.1 * number, "weight/variance_ratio": None if number == 1 else 2.0}
        before = (tokens, flops, seconds)
        rows.append(row)
    rows[-1] |= final
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---------------------------------------------------------------------------------------------- what a file says


def test_an_arm_counts_over_its_task_and_the_base(file):
    study = read_study(file)
    assert study.tasks == ["easy", "hard"]
    assert study.arms == ["grpo", "forest"]
    hard, easy = study.configs["hard"], study.configs["easy"]
    assert (hard["grpo"].train.problems_per_iteration, hard["forest"].train.problems_per_iteration) == (16, 32)
    assert (hard["grpo"].data.second_max_digits, easy["grpo"].data.second_max_digits) == (None, 1)
    assert all(config.train.num_iterations == 4 for arms in study.configs.values() for config in arms.values())


def test_the_sweep_has_all_values_on_its_own_seeds_and_reported_runs_have_the_chosen_one(file):
    study = read_study(file)
    swept = study.swept()
    told = [(t.task, t.value, t.arm, t.seed) for t in swept]
    assert told == [(task, v, arm, 9) for task in study.tasks for v in (1e-4, 2e-4) for arm in study.arms]
    assert all(t.config.train.learning_rate == t.value and t.config.run.seed == t.seed for t in swept)
    chosen = {(task, arm): 2e-4 if arm == "grpo" else 1e-4 for task in study.tasks for arm in study.arms}
    trials = study.reported(chosen)
    assert [t.seed for t in trials] == [0] * 4 + [1] * 4  # seed by seed, or a stopped study would be lopsided
    assert {(t.arm, t.config.train.learning_rate) for t in trials} == {("grpo", 2e-4), ("forest", 1e-4)}
    assert len({t.folder for t in [*trials, *swept]}) == len(trials) + len(swept)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('baseline = "grpo"', 'baseline = "gropo"', "baseline is 'gropo', which is no arm; the arms are grpo, forest"),
        ("seeds = [0, 1]", "seeds = [0, 9]", "seed 9 is in seeds and in sweep.seeds"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds has a value twice"),
        ("seeds = [0, 1]", "seeds = []", "seeds is []; write a list"),
        ("seeds = [0, 1]", "seeds = [0, true]", "seeds is True; write a whole number of at least 0"),
        ("seeds = [0, 1]", "seed = [0, 1]", "seed is unknown; the nearest is seeds"),
        ("seeds = [0, 1]", "lost_below = 2", "lost_below is 2; write a share between 0 and 1"),
        ("seeds = [0, 1]", "levels = [0.5, 1.5]", "levels is 1.5; write a share"),
        ("seeds = [0, 1]", "samples = 0", "samples is 0; write a whole number of at least 1"),
        (
            'search.mode = "sample"',
            'search.mod = "sample"',
            "arms.grpo: search.mod is unknown; the nearest is search.mode",
        ),
        ('search.mode = "sample"', 'search.mode = "simple"', "easy, grpo: "),
        ("values = [1e-4, 2e-4]", "values = [1e-4, 'x']", "sweep.values has 'x', which is no number"),
        ("values = [1e-4, 2e-4]", "", "sweep.values is None; write a list"),
        ("values = [1e-4, 2e-4]", 'field = "a.b"\nvalues = [1]', "a is unknown"),
        ("[arms.grpo]", '[arms."../x"]', "arms.'../x' is no name"),
        ("[arms.grpo]", '[arms.".."]', "arms.'..' is no name"),
        ('preset = "tiny"', 'preset = "huge"', "preset is 'huge'"),
        ('name = "two"', "name = 2", "name is 2; write a text"),
        ('name = "two"', "name = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(file, capsys, old, new, words):
    assert old in FILE
    file.write_text(FILE.replace(old, new))
    assert study_main([str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert not (file.parent / "runs").exists()


def test_a_file_without_arms_or_no_file_is_refused(file, capsys):
    file.write_text('name = "x"\n')
    assert study_main([str(file)]) == 2
    assert "it has no arms; write a table such as [arms.first]" in capsys.readouterr().err
    assert study_main(["none.toml"]) == 2
    assert "study none.toml does not exist; name a file" in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS)
def test_a_written_configuration_is_read_as_itself(preset, tmp_path):
    other = PRESETS["local" if preset == "tiny" else "tiny"]
    other = replace(other, train=replace(other.train, problems_per_iteration=16, batch_size=16))
    config = replace(
        other,
        search=replace(
            other.search, weight_cap=None, num_rollouts_per_problem=0.5, problems_per_search=2, root_tilt=0.0
        ),
        run=replace(other.run, loggers=("wandb", "trackio")),
        model=replace(other.model, model_name='a "quoted" näme\\'),
    )
    path = tmp_path / "x.toml"
    path.write_text(to_toml(config, preset), encoding="utf-8")
    assert read_config_file(path) == config
    path.write_text(to_toml(PRESETS[preset], preset))
    assert path.read_text() == f'preset = "{preset}"\n'


# ---------------------------------------------------------------------------------------------- statistics

CURVE = [(0.0, 0.1), (10.0, 0.5), (10.0, 0.6), (40.0, 0.3), (100.0, 0.9)]


@pytest.mark.parametrize("budget", [3.0, 10.0, 25.0, 40.0, 77.0, 100.0])
def test_the_area_is_the_mean_height_of_the_curve(budget):
    """By the midpoint rule on a fine grid, each point between the two evaluations around it."""
    steps = 200_000
    x = (torch.arange(steps, dtype=torch.float64) + 0.5) * budget / steps
    pieces = [(0, 10, 0.1, 0.5), (10, 40, 0.6, 0.3), (40, 100, 0.3, 0.9)]
    height = sum(((x >= a) & (x < b)) * (u + (v - u) * (x - a) / (b - a)) for a, b, u, v in pieces)
    assert area(CURVE, budget) == pytest.approx(float(height.mean()), abs=1e-5)


def test_a_run_that_spent_less_keeps_its_last_accuracy():
    assert area(CURVE, 400.0) == pytest.approx((100 * area(CURVE, 100.0) + 300 * 0.9) / 400)


def test_a_cost_is_read_off_the_line_where_an_accuracy_is_first_reached():
    assert cost_of(CURVE, 0.1) == 0.0
    assert cost_of(CURVE, 0.3) == pytest.approx(5.0)
    assert cost_of(CURVE, 0.55) == pytest.approx(10.0)
    assert cost_of(CURVE, 0.8) == pytest.approx(90.0)
    assert cost_of(CURVE, 0.95) is None


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    assert interquartile_mean([9, 1, 2, 100]) == statistics.fmean([2, 9])
    assert interquartile_mean([5, 1, 2, 3, 100]) == statistics.fmean([2, 3, 5])
    assert interquartile_mean([4, 8]) == 6
    assert interquartile_mean(range(10)) == statistics.fmean(range(2, 8))


def test_an_interval_of_any_statistic_holds_it_and_that_of_the_mean_is_the_same():
    numbers = [0.1, 0.9, 0.85, 0.95, 0.8]
    middle = bootstrap(numbers, interquartile_mean)
    assert middle.low < middle.value < middle.high
    assert middle.value == pytest.approx(0.85)
    assert bootstrap(numbers, statistics.fmean) == bootstrap_mean(numbers)
    assert bootstrap([0.4], interquartile_mean) == (0.4, None, None)


def test_the_effect_size_is_the_mean_difference_in_its_own_deviations():
    assert effect_size([1.0, 2.0, 6.0]) == pytest.approx(3 / math.sqrt(7))
    assert effect_size([1.0]) is None
    assert effect_size([2.0, 2.0]) is None


# ---------------------------------------------------------------------------------------------- outcomes


CHOSEN = {("all", "grpo"): 1e-4, ("all", "forest"): 2e-4}


@pytest.fixture
def done(file):
    """A study of one task whose runs are all there. Forest costs half of GRPO."""
    file.write_text(FILE.partition("[tasks.easy]")[0])
    study, root = read_study(file), file.parent / "out"
    for trial in study.swept():
        best = trial.value == (1e-4 if trial.arm == "grpo" else 2e-4)
        finish(trial, root, [(0, 0, 0, 0.0), (0, 0, 0, 0.0)] + [(100, 10, 1, 0.5 + 0.2 * best)] * 3)
    for trial in study.reported(CHOSEN):
        if trial.arm == "grpo":
            step = (0.2, 0.1)[trial.seed]
            finish(trial, root, [(100 * i, 10 * i, i, step * i) for i in range(5)], **{"eval/pass_at_1": 0.25})
        else:
            top = (0.9, 0.3)[trial.seed]
            finish(trial, root, [(50 * i, 40 * i, i, top * i / 4) for i in range(5)], **{"eval/pass_at_1": 0.5})
    return study, root, [outcome_of(trial, root) for trial in study.reported(CHOSEN)]


def test_the_sweep_chooses_the_value_with_the_largest_mean_area(done):
    study, root, _ = done
    assert choose([outcome_of(trial, root) for trial in study.swept()], "grpo") == CHOSEN


def test_what_a_run_spent_adds_up_and_its_means_leave_out_what_was_not_measured(done):
    _study, root, outcomes = done
    first = outcomes[0]
    assert [tuple(point) for point in first.curve] == [(100.0 * i, 10.0 * i, float(i), 0.2 * i) for i in range(5)]
    assert first.accuracy == 0.8
    assert first.means["rollout/accuracy"] == pytest.approx(0.25)
    assert first.means["weight/variance_ratio"] == 2.0
    assert first.means["policy/entropy"] is None
    assert first.final == {"eval/greedy_accuracy": 0.8, "eval/pass_at_1": 0.25}
    place = root / first.trial.checkpoint
    place.mkdir(parents=True)
    (place / EVALUATION).write_text(json.dumps({"eval/greedy_accuracy": 0.1, "eval/pass_at_64": 0.75}))
    assert outcome_of(first.trial, root).final == {
        "eval/greedy_accuracy": 0.8,
        "eval/pass_at_1": 0.25,
        "eval/pass_at_64": 0.75,
    }


def test_the_summary_pairs_by_seed_at_what_the_baseline_spent(done):
    _, _, outcomes = done
    grpo, forest = summarise(outcomes, "grpo", 0.5, [0.2, 0.8])["all"]
    assert (grpo.arm, grpo.value, grpo.seeds, grpo.lost) == ("grpo", 1e-4, [0, 1], 1)
    assert (forest.lost, forest.end.value, forest.middle.value) == (1, pytest.approx(0.6), pytest.approx(0.6))
    # 400 tokens: GRPO is at its end then, 0.8 and 0.4. Forest rises for 200 and stays at its top, 0.9 and 0.3
    gains = [(0.45 + 0.9) / 2 - 0.4, (0.15 + 0.3) / 2 - 0.2]
    assert grpo.area["tokens"].value == pytest.approx(0.3)
    assert forest.gain["tokens"] == pytest.approx((statistics.fmean(gains), gains[1], gains[0]))
    assert forest.wins["tokens"] == 2
    assert forest.effect["tokens"] == pytest.approx(statistics.fmean(gains) / statistics.stdev(gains))
    # 40 operations: GRPO is at its end, 0.8 and 0.4, and forest at a quarter of its top
    assert forest.gain["flops"].value == pytest.approx(statistics.fmean([0.9 / 8 - 0.4, 0.3 / 8 - 0.2]))
    assert forest.wins["flops"] == 0
    assert grpo.gain["tokens"] == (0, 0, 0)
    assert forest.passes == {1: (0.5, 0.5, 0.5)}


def test_the_ratio_of_costs_is_a_geometric_mean_over_seeds_that_both_reached(done):
    _, _, outcomes = done
    grpo, forest = ([o for o in outcomes if o.trial.arm == arm] for arm in ("grpo", "forest"))
    found = reached(forest, grpo, "tokens", 0.2)
    ratios = [200 * 0.2 / 0.9 / 100, 200 * 0.2 / 0.3 / 200]
    assert (found.runs, found.pairs) == (2, 2)
    assert found.ratio.value == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
    assert found.ratio.low == pytest.approx(ratios[0])
    assert found.median == pytest.approx(statistics.median([200 * 0.2 / 0.9, 200 * 0.2 / 0.3]))
    most = reached(forest, grpo, "tokens", 0.8)
    assert (most.runs, most.pairs) == (1, 1)
    assert most.ratio == (pytest.approx(200 * 0.8 / 0.9 / 400), None, None)
    assert reached(forest, grpo, "tokens", 0.95) == (0, None, None, 0)


def test_tables_fit_their_places(done):
    study, _, outcomes = done
    rows = summarise(outcomes, "grpo", 0.5, study.levels)["all"]
    rows = [row._replace(arm=f"{row.arm}_with_quite_a_long_name") for row in rows]
    lines = list(terminal_lines(rows, "grpo", 0.9))
    assert max(map(len, lines)) <= 80
    assert len(lines) == 4
    for table in markdown(rows, "grpo", study.levels).strip().split("\n\n"):
        assert len({line.count("|") for line in table.splitlines()}) == 1


# ---------------------------------------------------------------------------------------------- running


def test_a_finished_study_runs_nothing_and_reports_again(done, file, monkeypatch, capsys):
    monkeypatch.setattr(running, "_start", None)  # calling it would fail
    _study, root, _ = done
    assert study_main([str(file), "--output", str(root)]) == 0
    out = capsys.readouterr().out
    assert "two, all: accuracy in % and 95 % intervals over 2 seeds" in out
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
    assert "over 1 seeds" in capsys.readouterr().out
    results = (root / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in results] == [0, 0]


def test_a_run_that_differs_from_the_file_is_refused(done, file, capsys):
    _, root, _ = done
    file.write_text(file.read_text().replace("problems_per_iteration = 32", "problems_per_iteration = 64"))
    assert study_main([str(file), "--output", str(root)]) == 2
    assert "was made with another train.problems_per_iteration than the study says now" in capsys.readouterr().err


STAND_IN = """#!{python}
import json, pathlib, sys, tomllib
words = sys.argv[3:]
with open("calls.txt", "a") as file:
    print(*words, file=file)
if words[0] == "train" and words[1] == "--config":
    folder = pathlib.Path(words[4])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((pathlib.Path("configs") / (words[2].replace("/", "+") + ".json")).read_text())
    rows = [{{"iteration": i, "eval/greedy_accuracy": i / 8, "cost/tokens": i}} for i in (0, 4)]
    if "seed-1" in words[4] and "grpo" in words[4] and not pathlib.Path("well").exists():
        print("it broke"); sys.exit(3)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
elif words[0] == "train":
    (pathlib.Path(words[2]) / "metrics.jsonl").write_text('{{"iteration": 4, "eval/greedy_accuracy": 0.5}}\\n')
else:
    (pathlib.Path(words[1])).mkdir(parents=True)
    (pathlib.Path(words[1]) / "evaluation.json").write_text(json.dumps({{"eval/pass_at_4": 0.75}}))
"""


@pytest.fixture
def stand_in(file, monkeypatch):
    """A study whose processes write at once what a run would."""
    file.write_text(
        "samples = 4\nsampled_problems = 7\n" + FILE.partition("[sweep]")[0] + "[arms.grpo]\n[arms.forest]\n"
    )
    study = read_study(file)
    trials = study.reported(dict.fromkeys((("all", "grpo"), ("all", "forest"))))
    (file.parent / "configs").mkdir()
    for trial in trials:
        name = f"out/{trial.folder}.toml".replace("/", "+")
        (file.parent / "configs" / f"{name}.json").write_text(to_json(trial.config))
    program = file.parent / "stand_in"
    program.write_text(STAND_IN.format(python=sys.executable))
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


def test_a_negative_number_of_cores_is_refused(file, capsys):
    assert study_main([str(file), "--cores", "-1"]) == 2
    assert "--cores -1 is negative" in capsys.readouterr().err


def test_every_study_of_the_repository_can_be_read():
    from tests.test_docs import ROOT

    files = sorted((ROOT / "benchmarks" / "studies").glob("*.toml"))
    assert files
    for path in files:
        study = read_study(path)
        sizes = {
            config.train.problems_per_iteration * config.search.num_rollouts_per_problem
            for arms in study.configs.values()
            for config in arms.values()
        }
        assert len(sizes) == 1  # every arm has as many completions an iteration
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
    assert "quick, all: accuracy in % and 95 % intervals over 2 seeds" in out
    results = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    assert [(r["arm"], r["seed"]) for r in results] == [(a, s) for s in (0, 1) for a in ("grpo_8x8", "forest")]
    for result in results:
        points = result["curve"]
        assert len(points) == 6
        assert all(b["tokens"] > a["tokens"] and b["flops"] > a["flops"] for a, b in itertools.pairwise(points))
        assert points[0]["accuracy"] < 0.05 < points[-1]["accuracy"]
        assert 0 < result["final"]["eval/pass_at_1"] < result["final"]["eval/pass_at_16"]
    assert study_main([str(file), "--report-only"]) == 0
