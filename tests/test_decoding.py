"""Ways of decoding compared, with what each is asked for, what it may spend, and which sample is chosen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.test_evaluate import SETTINGS
from tinyzero_astar.eval import decoding as test_time
from tinyzero_astar.eval.evaluate import wilson
from tinyzero_astar.interfaces import Problem

RIGHT = {"greedy": [1, 0, 0, 1, 0], "best_first": [1, 1, 0, 1, 0], "sample": [0, 1, 1, 1, 1]}  # by problem
TOKENS = {"greedy": 6, "best_first": 15, "sample": 5}  # decoded, per completion


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
        value=(torch.arange(k) / k)[None, :, None].expand(count, k, 3),
        stats=SimpleNamespace(num_decoded_tokens=numbers, num_expanded=numbers + 1, num_forks=numbers - 2),
    )
    return SimpleNamespace(accuracy=accuracy, rollouts=rollouts)


def test_every_arm_decodes_all_problems_and_may_spend_what_best_first_did(monkeypatch):
    asked = []

    def beam_search(policy, tokenizer, task, generator, problems, settings, num_beams, max_rows):
        asked.append((len(problems), num_beams, max_rows))
        return torch.tensor([1, 1, 1, 1, 0], dtype=torch.float64), 120.0

    monkeypatch.setattr(test_time, "beam_search", beam_search)
    generator = Generator()
    problems = [Problem(i, "", "", 0) for i in range(5)]
    arms = test_time.compare(None, None, None, generator, problems, SETTINGS, beam_width=3, max_rows=6)
    assert [a.title for a in arms] == [
        "greedy",
        "best_first, width 3",
        "best of 2 samples by value",  # 15 / 6 = 2.5, and round takes the even one
        "beam search, 2 beams",
    ]
    assert [a.name for a in arms] == ["greedy", "best_first", "best_of_n", "beam_search"]
    assert arms[1].metrics() == {
        "decode/best_first_accuracy": 0.6,
        "decode/best_first_accuracy_low": wilson(0.6, 5).low,
        "decode/best_first_accuracy_high": wilson(0.6, 5).high,
        "decode/best_first_tokens": 15,
        "decode/best_first_expanded": 16,
        "decode/best_first_forks": 13,
    }
    assert [a.accuracy for a in arms] == [wilson(share, 5) for share in (0.4, 0.6, 0.8, 0.8)]
    assert [a.tokens for a in arms] == [6, 15, 10, 24]
    assert [(a.expanded, a.forks) for a in arms[:3]] == [(7, 4), (16, 13), (11, 8)]
    assert asked == [(5, 2, 6)]
    ids = {mode: [call[1] for call in generator.calls if call[0] == mode] for mode in RIGHT}
    assert ids == {  # at most 6 rows, a search of width 3 has 3 of them
        "greedy": [[0, 1, 2, 3, 4]],
        "best_first": [[0, 1], [2, 3], [4]],
        "sample": [[0, 1, 2], [3, 4]],
    }
    for mode, _, settings in generator.calls:
        if mode == "greedy":
            assert settings == 80  # the depth limit
        if mode == "best_first":  # the whole of h for every problem, and no bound that decoding does not need
            assert (settings.num_rollouts_per_problem, settings.beam_width, settings.unguided_fraction) == (1, 3, 0.0)
            assert (settings.inverse_beta, settings.weight_cap, settings.guidance_strength) == (3.0, None, 1)
        if mode == "sample":
            assert settings.num_rollouts_per_problem == 2


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
