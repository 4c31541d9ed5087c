"""Ways of decoding compared, with what each is asked for, what it may spend, and which sample is chosen."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import decoding as benchmark
from tests.test_evaluate import SETTINGS
from tinyzero_astar.eval import decoding as test_time
from tinyzero_astar.eval.evaluate import paired_difference, wilson
from tinyzero_astar.interfaces import Problem, Verdict

RIGHT = {  # by problem
    "greedy": [1, 0, 0, 1, 0],
    "best_first": [1, 1, 0, 1, 0],
    "gumbel": [0, 0, 0, 0, 1],
    "sample": [0, 1, 1, 1, 1],
}
TOKENS = {"greedy": 6, "best_first": 15, "gumbel": 7, "sample": 5}  # decoded, per completion


class Generator:
    """Answers from the tables above and notes what it was asked."""

    def __init__(self):
        self.calls = []

    def greedy(self, problems, max_search_depth):
        self.calls.append(("greedy", [p.id for p in problems], max_search_depth))
        return answer("greedy", problems, 1)

    def generate(self, problems, settings, *, seed, iteration):
        self.calls.append((settings.mode, [p.id for p in problems], settings))
        assert (seed, iteration) == (0, 1 << 41)
        return answer(settings.mode, problems, settings.num_rollouts_per_problem)


def answer(mode, problems, k):
    """The last sample is the best by value, and the only one that may be right."""
    count = len(problems)
    accuracy = torch.zeros(count, k, dtype=torch.float64)
    accuracy[:, -1] = torch.tensor([RIGHT[mode][p.id] for p in problems])
    numbers = torch.full((count,), k * TOKENS[mode])
    rollouts = SimpleNamespace(
        length=torch.full((count, k), 3),
        is_finished=torch.ones(count, k, dtype=torch.bool),
        logp=torch.zeros(count, k, 3, dtype=torch.float64),
        value=(torch.arange(k) / k)[None, :, None].expand(count, k, 3),
        stats=SimpleNamespace(num_decoded_tokens=numbers, num_expanded=numbers + 1, num_forks=numbers - 2),
    )
    verdicts = [[Verdict(bool(x), True, int(x), "") for x in row] for row in accuracy.tolist()]
    return SimpleNamespace(accuracy=accuracy, rollouts=rollouts, verdicts=verdicts, texts=[[""] * k] * count)


def test_every_arm_decodes_all_problems_and_may_spend_what_best_first_did(monkeypatch):
    asked, budgets = [], []

    def beam_search(policy, tokenizer, task, generator, problems, settings, num_beams, max_rows):
        asked.append((len(problems), num_beams, max_rows))
        return torch.tensor([1, 1, 1, 1, 0], dtype=torch.float64), 60.0 * num_beams

    def power_sample(policy, tokenizer, task, generator, problems, settings, budget, max_rows):
        budgets.append((len(problems), budget, max_rows))
        return torch.tensor([0, 0, 0, 1, 0], dtype=torch.float64), 70, 4

    monkeypatch.setattr(test_time, "beam_search", beam_search)
    monkeypatch.setattr(test_time, "power_sample", power_sample)
    generator = Generator()
    problems = [Problem(i, "", "", 0) for i in range(5)]
    arms = test_time.compare(None, None, None, generator, problems, SETTINGS, beam_width=3, max_rows=6)
    assert [a.title for a in arms] == [
        "greedy",
        "best_first, width 3",
        "gumbel, best of 2 completions by value",  # 15 / 6 = 2.5, and round takes the even one. Three cost 21
        "best of 3 samples by value",
        "majority of 3 samples",
        "beam search, 1 beam",  # two cost 24, and one 12
        "power sampling, 4 steps",
    ]
    names = ["greedy", "best_first", "gumbel", "best_of_n", "majority", "beam_search", "power"]
    assert [a.name for a in arms] == names
    gain = paired_difference(1, 0, 5)
    assert arms[1].metrics(arms[0]) == {
        "decode/best_first_accuracy": 0.6,
        "decode/best_first_accuracy_low": wilson(0.6, 5).low,
        "decode/best_first_accuracy_high": wilson(0.6, 5).high,
        "decode/best_first_gain": 0.2,
        "decode/best_first_gain_low": gain.low,
        "decode/best_first_gain_high": gain.high,
        "decode/best_first_tokens": 15,
        "decode/best_first_expanded": 16,
        "decode/best_first_forks": 13,
    }
    assert not any("gain" in name for name in arms[0].metrics(arms[0]))
    shares = (0.4, 0.6, 0.2, 0.8, 0.0, 0.8, 0.2)  # two of three samples are wrong everywhere
    assert [a.accuracy for a in arms] == [wilson(share, 5) for share in shares]
    lost = (0, 0, 2, 1, 2, 0, 1)
    gained = (0, 1, 1, 3, 0, 2, 0)
    assert [a.gain(arms[0]) for a in arms] == [paired_difference(x, y, 5) for x, y in zip(gained, lost, strict=True)]
    assert [a.tokens for a in arms] == [6, 15, 14, 15, 15, 12, 14]
    assert [(a.expanded, a.forks) for a in arms[:4]] == [(7, 4), (16, 13), (15, 12), (16, 13)]
    assert asked == [(5, 2, 6), (5, 1, 6)] and budgets == [(5, 75, 6)]
    ids = {mode: [call[1] for call in generator.calls if call[0] == mode] for mode in RIGHT}
    assert ids == {  # at most 6 rows, a search of width 3 has 3 of them
        "greedy": [[0, 1, 2, 3, 4]],
        "best_first": [[0, 1], [2, 3], [4]],
        "gumbel": [[0, 1, 2], [3, 4], [0, 1], [2, 3], [4]],
        "sample": [[0, 1, 2], [3, 4], [0, 1], [2, 3], [4]],
    }
    for mode, _, settings in generator.calls:
        if mode == "greedy":
            assert settings == 80  # the depth limit
        if mode in ("best_first", "gumbel"):  # the whole of h for every problem, and no bound decoding does not need
            assert settings.unguided_fraction == 0.0
            assert (settings.inverse_beta, settings.weight_cap, settings.guidance_strength) == (3.0, None, 1)
    shapes = {
        mode: [(s.num_rollouts_per_problem, s.beam_width) for m, _, s in generator.calls if m == mode]
        for mode in ("best_first", "gumbel")
    }
    assert shapes == {"best_first": 3 * [(1, 3)], "gumbel": [*2 * [(2, 3)], *3 * [(3, 4)]]}  # the best one left out
    numbers = [s.num_rollouts_per_problem for mode, _, s in generator.calls if mode == "sample"]
    assert numbers == [2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("costs", "budget", "guess", "tried", "taken"),
    [
        ({2: 20, 3: 29, 4: 39}, 30, 2, [2, 3, 4], 3),
        ({2: 20, 3: 41}, 30, 2, [2, 3], 2),  # 41 is further from 30 than 20 is
        ({2: 20, 3: 40}, 30, 2, [2, 3], 2),  # as far, so the smaller one
        ({3: 90, 2: 60, 1: 28}, 20, 3, [3, 2, 1], 1),
        ({3: 90, 2: 10}, 60, 3, [3, 2], 3),
        ({4: 20, 3: 15}, 20, 4, [4, 3], 4),
        ({1: 0}, 0, 1, [1], 1),
        ({1: 0, 2: 0, 3: 0, 4: 0}, 9, 1, [1, 2, 3, 4], 1),  # nothing is decoded, and the search must end
    ],
)
def test_the_number_whose_tokens_are_closest_to_the_budget_is_taken(costs, budget, guess, tried, taken):
    asked = []

    def decode(number):
        asked.append(number)
        return costs[number]

    assert test_time.closest(decode, lambda found: found, budget, guess) == (taken, costs[taken])
    assert asked == tried


@pytest.mark.parametrize(
    ("answers", "shares", "chosen"),
    [
        ([1, 2, 2], [0.5, 0.2, 0.1], 1),  # two votes against one, however probable that is
        ([1, 2, 3], [0.2, 0.5, 0.1], 1),  # a tie, so the most probable
        ([1, 2, 2, 1], [0.4, 0.3, 0.3, 0.1], 1),  # 0.6 against 0.5 in sum
        ([1, 2], [0.5, 0.5], 0),  # the first
        ([None, None, 5], [0.9, 0.8, 0.1], 2),  # what is not well-formed has no vote
        ([None, None], [0.1, 0.2], 1),  # unless all are
        ([(1, 0), 2, (1, 0)], [0.1, 0.2, 0.1], 0),  # answers need not be numbers
    ],
)
def test_the_answer_of_most_samples_is_chosen(answers, shares, chosen):
    count = len(answers)
    verdicts = [[Verdict(False, a is not None, a, "") for a in answers]]
    logp = torch.tensor([[[math.log(x) + 1, -1.0] for x in shares]], dtype=torch.float64)
    for k in range(count):
        sampled = SimpleNamespace(
            accuracy=torch.eye(count, dtype=torch.float64)[k][None],
            verdicts=verdicts,
            texts=[[f"text {i}" for i in range(count)]],
            rollouts=SimpleNamespace(logp=logp),
        )
        assert test_time.majority(sampled).tolist() == [float(k == chosen)]


def test_answers_that_the_verifier_does_not_read_are_counted_by_their_text():
    verdicts = [[Verdict(True, True, None, "") for _ in range(3)]]
    sampled = SimpleNamespace(
        accuracy=torch.tensor([[0.0, 1.0, 1.0]]),
        verdicts=verdicts,
        texts=[["a", "b", "b"]],
        rollouts=SimpleNamespace(logp=torch.tensor([[[-0.1], [-3.0], [-3.0]]])),
    )
    assert test_time.majority(sampled).tolist() == [1.0]


def test_the_benchmark_reports_every_arm_with_both_differences():
    arms = [
        test_time.Arm(n, n, torch.tensor(x).double(), 5.0) for n, x in (("g", [0, 1]), ("a", [1, 1]), ("b", [0, 0]))
    ]
    found = [benchmark.described(arm, arms[0], arms[1]) for arm in arms]
    assert [x["over_greedy"] for x in found] == [None, [0.5, *ends(1, 0)], [-0.5, *ends(0, 1)]]
    assert [x["astar_over_it"] for x in found] == [[0.5, *ends(1, 0)], None, [1.0, *ends(2, 0)]]
    assert json.loads(json.dumps(found))[0]["forks"] is None
    shown = benchmark.table({"checkpoint": "c", "width": 4, "num_problems": 2, "arms": found}).splitlines()
    assert shown[2].startswith("| way of decoding |") and shown[4].split(" | ")[1:3] == ["50.0 [9.5, 90.5]", "–"]


def ends(gained, lost):
    found = paired_difference(gained, lost, 2)
    return [found.low, found.high]


@pytest.mark.parametrize(
    ("lengths", "finished", "values", "best"),
    [
        ([2, 3, 1], [1, 1, 1], [[0.1, 0.2], [0.9, 0.1, 0.7], [0.3]], 1),  # the last prefix counts, not the first
        ([2, 3, 3], [1, 0, 1], [[0.1, 0.3], [0.2, 0.6, 0.9], [0.5, 0.4, 0.2]], 0),  # 0.9, but cut off
        ([3, 3, 3], [0, 0, 0], [[0.1, 0.3, 0.2], [0.2, 0.6, 0.1], [0.5, 0.4, 0.4]], 2),
        ([1, 2, 2], [1, 1, 1], [[0.2, 0.99], [0.1, 0.3], [0.1, 0.25]], 1),  # nothing after the end counts
    ],
)
def test_the_finished_sample_with_the_highest_last_value_is_chosen(lengths, finished, values, best):
    value = torch.tensor([[[*row, 0.0, 0.0][:3] for row in values]], dtype=torch.float64)
    length, is_finished = torch.tensor([lengths]), torch.tensor([finished]).bool()
    rollouts = SimpleNamespace(length=length, is_finished=is_finished, value=value)
    for k in range(3):
        sampled = SimpleNamespace(rollouts=rollouts, accuracy=torch.eye(3, dtype=torch.float64)[k][None])
        assert test_time.best_by_value(sampled).tolist() == [float(k == best)]
