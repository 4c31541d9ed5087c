"""Studies: what a file may say, which runs there are, and their statistics against the formulas."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch

from tests.studies import CHOSEN, FILE, finished_study
from tinyzero_astar.cli.study import study_main
from tinyzero_astar.config_file import read_config_file, to_toml
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.report.intervals import RANGE_UP_TO, bootstrap, bootstrap_mean, effect_size, interquartile_mean
from tinyzero_astar.study.outcomes import area, cost_of, outcome_of
from tinyzero_astar.study.plan import read_study
from tinyzero_astar.study.summary import choose, reached, summarise
from tinyzero_astar.study.tables import markdown, spread_of, terminal_lines


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    return path


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
        ("values = [1e-4, 2e-4]", "", "sweep.values is missing; write a list"),
        ("seeds = [9]", "", "sweep.seeds is missing; write a list"),
        ("values = [1e-4, 2e-4]", "values = [-1]", "two.toml, sweep.values, easy, grpo: train.learning_rate -1 is out"),
        ("values = [1e-4, 2e-4]", "values = [1e-4, 0.0001]", "sweep.values has 0.0001 and 0.0001, which are equal"),
        ("values = [1e-4, 2e-4]", "values = [1e-4, 1.0000001e-4]", "which are equal to six digits"),
        (
            "values = [1e-4, 2e-4]",
            'field = "run.seed"\nvalues = [1]',
            "sweep.field is run.seed, which the study itself",
        ),
        ("[arms.grpo]", "[arms.grpo]\nrun.seed = 3", "arms.grpo: run.seed is set by the study itself"),
        ("[tasks.hard]", "[tasks.hard]\nrun.keep_last = 5", "tasks.hard: run.keep_last is set by the study itself"),
        ('preset = "tiny"', "run.num_threads = 4", "base: run.num_threads is set by the study itself"),
        ("[arms.forest]", "[arms.forest]\ntrain.learning_rate = 1", "train.learning_rate is the field of [sweep]"),
        ('preset = "tiny"', "train.learning_rate = 1", "base: train.learning_rate is the field of [sweep]"),
        ("train.num_iterations = 4", "train.num_iterations = 0", "easy, grpo: train.num_iterations is 0"),
        ('baseline = "grpo"', 'baseline = ["grpo"]', "baseline is ['grpo']; write a text"),
        ("seeds = [0, 1]", "levels = [0.5, 0.5]", "levels has a value twice"),
        ('search.mode = "sample"', "", "two.toml, easy, grpo: algorithm grpo"),
        (
            "[arms.forest]",
            "[arms.wood]\nrun.sample_frequency = 3\n"
            "train = {problems_per_iteration = 32, batch_size = 32}\n[arms.forest]",
            "two.toml, easy: arms wood and forest have the same settings",
        ),
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
    assert study_main([str(file), "--report-only"]) == 2
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


@pytest.fixture
def done(file):
    return finished_study(file)


def test_the_sweep_chooses_the_value_with_the_largest_mean_area(done):
    study, root, _ = done
    assert choose([outcome_of(trial, root) for trial in study.swept()], "grpo") == CHOSEN


def test_what_a_run_spent_adds_up_and_its_means_leave_out_what_was_not_measured(done):
    _study, _root, outcomes = done
    first = outcomes[0]
    assert [tuple(point) for point in first.curve] == [(100.0 * i, 10.0 * i, float(i), 0.2 * i) for i in range(5)]
    assert first.accuracy == 0.8
    assert first.means["rollout/accuracy"] == pytest.approx(0.25)
    assert first.means["weight/variance_ratio"] == 2.0
    assert first.means["policy/entropy"] is None
    assert first.final == {"eval/greedy_accuracy": 0.8, "eval/pass_at_1": 0.25}


def change_records(trial, root, change):
    """The records of a run after a change of their list."""
    path = root / trial.folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_mean_of_the_others_stands_for_a_time_that_is_missing(done):
    _study, root, outcomes = done
    times = [3.0, None, 5.0, 10.0]

    def set_times(rows):
        for row, time in zip(rows[1:], times, strict=True):
            row["time/cpu_s"] = time

    change_records(outcomes[0].trial, root, set_times)
    assert [point.seconds for point in outcome_of(outcomes[0].trial, root).curve] == [0, 3, 9, 14, 24]
    times = [None] * 4
    path = change_records(outcomes[0].trial, root, set_times)
    with pytest.raises(ValueError, match=r"metrics.jsonl: no iteration has a number time/cpu_s"):
        outcome_of(outcomes[0].trial, root)
    assert path.exists()


def test_of_several_evaluations_the_newest_with_the_samples_and_problems_of_the_study_counts(done):
    _study, root, outcomes = done
    place = root / outcomes[0].trial.checkpoint
    place.mkdir(parents=True)
    for end, largest, problems, value in [
        ("", 4, 7, 0.1),
        ("-2", 4, 7, 0.2),
        ("-3", 2, 7, 0.3),
        ("-9", 4, 8, 0.4),
        ("-10", 4, 7, 0.5),
        ("-11", 8, 7, 0.6),
        ("_old", 4, 7, 0.7),
    ]:
        metrics = {f"eval/pass_at_{k}": value for k in (1, 2, 4, 8) if k <= largest} | {"eval/num_problems": problems}
        (place / f"evaluation{end}.json").write_text(json.dumps({"eval/greedy_accuracy": 0.1, **metrics}))
    trial = replace(outcomes[0].trial, samples=5, sampled_problems=7)  # pass@4 is the last of five samples
    found = outcome_of(trial, root)
    assert found.passes == {1: 0.5, 2: 0.5, 4: 0.5}
    assert found.accuracy == found.final["eval/greedy_accuracy"] == 0.8
    assert outcome_of(outcomes[0].trial, root).passes == {1: 0.25}  # a study without samples asks for none


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop(2), "metrics.jsonl, line 3: iteration 3 where iteration 2 should be"),
        (lambda rows: rows.pop(0), "metrics.jsonl, line 1: iteration 1 where iteration 0 should be"),
        (lambda rows: rows[4].update({"eval/greedy_accuracy": None}), "eval/greedy_accuracy of iteration 4 is None"),
        (lambda rows: rows[0].pop("eval/greedy_accuracy"), "eval/greedy_accuracy of iteration 0 is missing"),
    ],
)
def test_damaged_records_of_a_run_are_one_sentence(done, file, capsys, change, words):
    _study, root, outcomes = done
    path = change_records(outcomes[0].trial, root, change)
    assert study_main([str(file), "--output", str(root), "--report-only"]) == 2
    said = capsys.readouterr().err
    assert words in said and str(path) in said and said.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[1]", '{"eval/pass_at_1": "x"}'])
def test_a_damaged_evaluation_is_one_sentence_that_names_it(done, file, capsys, text):
    _study, root, outcomes = done
    file.write_text("samples = 4\n" + file.read_text())
    place = root / outcomes[0].trial.checkpoint
    place.mkdir(parents=True)
    (place / "evaluation.json").write_text(text)
    assert study_main([str(file), "--output", str(root), "--report-only"]) == 2
    said = capsys.readouterr().err
    assert f"{place / 'evaluation.json'} is damaged (" in said and said.count("\n") == 1


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


def test_pass_at_k_is_told_for_those_k_that_all_runs_of_an_arm_have(done):
    _, _, outcomes = done
    forest = [o for o in outcomes if o.trial.arm == "forest"]
    forest[0].final.update({"eval/pass_at_2": 0.7, "eval/pass_at_4": 0.8})
    forest[1].final.update({"eval/pass_at_2": 0.9, "eval/pass_at_8": None})
    _, row = summarise(outcomes, "grpo", 0.5, [0.2])["all"]
    assert {k: mean.value for k, mean in row.passes.items()} == {1: 0.5, 2: pytest.approx(0.8)}


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
    heading, *tables = markdown(rows, "grpo", study.levels).strip().split("\n\n")
    assert heading == "Accuracy in % and range over 2 seeds."
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_terminal_shows_the_mean_accuracy_of_the_baseline_and_differences_of_the_others(done):
    _, _, outcomes = done
    _, _, grpo, forest = terminal_lines(summarise(outcomes, "grpo", 0.5, [0.9])["all"], "grpo", 0.9)
    assert " 30.0 [20.0, 40.0] " in grpo
    assert " +15.0 [+2.5, +27.5] " in forest


def test_a_heading_says_what_the_brackets_hold():
    assert spread_of(1) == "with 1 seed, no interval"
    assert spread_of(RANGE_UP_TO) == "and range over 4 seeds"
    assert spread_of(RANGE_UP_TO + 1) == "and 95 % intervals over 5 seeds"
    few, more = [0.0, 1.0, 5.0, 7.0], [0.0, 1.0, 5.0, 7.0, 9.0]
    assert bootstrap_mean(few)[1:] == (min(few), max(few))
    assert bootstrap_mean(more).low > min(more) and bootstrap_mean(more).high < max(more)
