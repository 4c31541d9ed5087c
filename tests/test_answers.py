"""What the page of a run answers in words, from records of which the answer is known."""

from __future__ import annotations

import pytest

from tests.pages import make_run, row, sample, trace
from tinyzero_astar.report.answers import answers
from tinyzero_astar.report.headline import headline
from tinyzero_astar.report.page_data import RunRecords, packed

SECTIONS = {
    "model": {"model_name": "embedded"},
    "data": {"task": "multiplication", "min_digits": 2, "max_digits": 2},
    "train": {"algorithm": "astar_po", "problems_per_iteration": 4},
    "search": {"mode": "gumbel", "problems_per_search": 2, "guidance_strength": 1.0},
}
LEARNED, BEGUN, SEARCHED, JUDGED, SPENT = range(5)


def metrics(i, **more):
    """An iteration of which all is known that the answers need. Held-out accuracy is that of `row`."""
    told = {"rollout/policy_accuracy": i / 20, "rollout/accuracy": i / 20, "weight/variance_ratio": 0.5}
    told |= {f"value/auc_depth_{k}": 0.7 for k in (1, 2, 3, 4)} | {"value/sibling_accuracy_later": 0.8}
    return row(i, 20, **told | {"guidance/is_open": float(i > 3)} | more)


def told(folder, *, rows=None, config=SECTIONS, **records):
    rows = rows or [metrics(i) for i in range(21)]
    return answers(RunRecords(make_run(folder / "r", rows=rows, config=config, **records)))


def text(answer):
    return " ".join([answer.short, *answer.reasons, *answer.details])


def test_each_of_the_five_questions_is_answered(tmp_path):
    found = told(tmp_path)
    assert [answer.question for answer in found] == [
        "What did it learn?",
        "When did answers begin to be worked out?",
        "What did the search find that sampling would not have?",
        "Was the heuristic any good?",
        "What did it cost?",
    ]
    task = "Its task is to multiply two numbers of 2 digits"
    assert found[LEARNED].short == f"{task}. 100 % of unseen problems are right."
    assert "Half of the gain of accuracy in training was there after iteration 11" in text(found[LEARNED])
    assert found[SPENT].short == "10 s and 2,000 decoded tokens."
    assert "3 evaluations, the checkpoints and the start are not in these numbers" in text(found[SPENT])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"min_digits": 1, "max_digits": 3}, "two numbers of 1 to 3 digits"),
        (
            {"min_digits": 2, "max_digits": 2, "second_min_digits": 1, "second_max_digits": 1},
            "2 digits by one of 1 d",
        ),
        ({"task": "countdown"}, "Its task is countdown"),
    ],
)
def test_the_task_is_told_in_words(data, said, tmp_path):
    found = told(tmp_path, config=SECTIONS | {"data": {"task": "multiplication"} | data})
    assert said in found[LEARNED].short


def test_where_intervals_overlap_nothing_was_learned(tmp_path):
    rows = [metrics(i) for i in range(21)]
    for r in rows:
        if "eval/greedy_accuracy" in r:
            r |= {"eval/greedy_accuracy": 0.3, "eval/greedy_accuracy_low": 0.2, "eval/greedy_accuracy_high": 0.4}
    assert told(tmp_path, rows=rows)[LEARNED].short.startswith("Nothing that the intervals on unseen problems show.")


def test_it_is_told_when_answers_began_to_be_worked_out_or_that_it_is_not_to_be_seen(tmp_path):
    early = [sample(i, k, "guess", right=False) | {"weight": 1.0} for i in (1, 5) for k in range(4)]
    late = [sample(10, k, "worked out", right=k < 3) | {"weight": 1.0} for k in range(4)]
    found = told(tmp_path, samples=early + late)[BEGUN]
    assert found.short == "From iteration 10 on."
    assert "There 75 % of the policy's completions are right and longer" in text(found)
    assert "In iteration 5, the one recorded before, 0.0 % were" in text(found) and "5 characters long" in text(found)
    assert "The verifier reads the answer alone" in text(found)
    (tmp_path / "2").mkdir()
    assert told(tmp_path / "2", samples=early)[BEGUN].short == "That is not to be seen."


@pytest.mark.parametrize(
    ("difference", "said"),
    [(0.1, "more than the"), (-0.1, "less than the"), (0.0, "which is not clearly different from the")],
)
def test_the_share_of_right_ones_is_compared_with_that_of_samples(difference, said, tmp_path):
    rows = [metrics(i, **{"rollout/accuracy": i / 20 + difference + 0.01 * (-1) ** i}) for i in range(21)]
    found = told(tmp_path, rows=rows)[SEARCHED]
    after = next(reason for reason in found.reasons if reason.startswith("Until iteration 11, "))
    assert after.count(said) == 2
    assert ("as it turns to problems on which the policy hesitates" in after) == (difference < 0)
    assert "0.50 times the variance of one from as many samples (mean over 20 iterations, median 0.50)" in text(found)


def test_a_search_without_a_right_completion_found_nothing(tmp_path):
    record = trace(1)
    for leaf in record["leaves"]:
        leaf["accuracy"] = False
    assert told(tmp_path, traces=[record])[SEARCHED].short == "Nothing on record."
    (tmp_path / "2").mkdir()
    config = SECTIONS | {"search": {"mode": "sample"}}
    assert told(tmp_path / "2", config=config)[SEARCHED].short == "Nothing."


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.8, 0.9, 0.85] * 6, "Yes, it ranked better than chance."),
        ([0.4, 0.6, 0.5] * 6, "No, it ranked no better than chance, as far as is known."),
        ([0.1, 0.2, 0.15] * 6, "No, it ranked worse than chance."),
        ([0.9, 0.9, *[None] * 16], "That is not known."),
    ],
)
def test_the_heuristic_is_judged_against_chance(values, verdict, tmp_path):
    rows = [metrics(i, **{"value/sibling_accuracy_later": v}) for i, v in enumerate(values, 1)]
    found = told(tmp_path, rows=rows)[JUDGED]
    assert found.short == verdict
    assert ("Chance is 50 %" in text(found)) == (None not in values)


def test_it_is_told_how_often_it_guided_and_why_not_at_first(tmp_path):
    found = told(tmp_path)[JUDGED]
    assert "It guided 17 of 20 iterations, and iteration 4 was the first. Whether that helped cannot be told" in text(
        found
    )
    assert "it was closed 3 times, 3 of these because fewer than 3 iterations had measured both" in text(found)
    assert "while both exceed their bounds, 60 and 55 %" in text(found)
    assert "Before the last iteration AUC was 70 %, sibling ranking 80 %" in text(found)
    for name, config in (
        ("2", SECTIONS | {"train": {"algorithm": "grpo"}}),
        ("3", SECTIONS | {"search": {"mode": "gumbel", "guidance_strength": 0.0}}),
    ):
        (tmp_path / name).mkdir()
        said = text(told(tmp_path / name, config=config)[JUDGED])
        assert "There was none." in said if name == "2" else "guided no search, by the settings" in said


def test_costs_are_told_where_they_are_recorded_and_threads_of_a_cpu(tmp_path):
    rows = [metrics(i, **{"cost/tokens": 150, "cost/search_flops": 1e9, "cost/update_flops": 2e9}) for i in range(21)]
    process = {"iteration": 0, "device": "cpu, 2 cores", "threads": 1, "processes": 1}
    said = text(told(tmp_path, rows=rows, processes=[process])[SPENT])
    assert "2e+10 of the search, 4e+10 of the update" in said
    assert "With the prompts 3,000 tokens went through the model" in said
    assert "20 iterations on cpu, 2 cores, of which the run used 1 thread." in said


def test_an_early_wrong_and_a_late_right_completion_stand_side_by_side(tmp_path):
    samples = [sample(1, 0, "about 40", right=False), sample(9, 1, "6*7=42\x1b</think>" + "x" * 700)]
    early, late = headline(RunRecords(make_run(tmp_path / "r", samples=samples))).examples
    assert early == ("Iteration 1, wrong (wrong)", "0*7", "about 40")
    assert late.title == "Iteration 9, right answer" and len(late.completion) == 601
    assert late.completion.startswith("6*7=42\N{REPLACEMENT CHARACTER}</think>x")


def test_a_run_that_has_not_trained_has_no_answers(tmp_path):
    assert told(tmp_path, rows=[{"iteration": 0}]) == []


def test_the_scale_of_h_is_that_of_each_prompt():
    record = trace(1, problems=3)
    roots = [n for n, parent in enumerate(record["nodes"]["parent"]) if parent < 0]
    for n, success in zip(roots, (0.0, 0.5, 0.9), strict=True):
        record["nodes"]["success"][n] = success
    assert packed(record)["tilts"] == [3, 0, -2.197]  # log(1/9), and the bound
    assert packed(record, "balanced", 1.5)["tilts"] == [1.5, 0, -1.5] and packed(record, 2.5)["tilts"] == [2.5] * 3
