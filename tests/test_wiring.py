"""Single places of the package whose mistakes whole runs do not show, against closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.test_training import make_policy, make_rows, make_updater
from tinyzero_astar.search.gumbel import log_inclusion
from tinyzero_astar.search.heuristic import balanced_inverse_beta


def test_the_balanced_tilt_is_bounded_on_both_sides():
    logits = torch.tensor([-5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 5.0])
    assert balanced_inverse_beta(logits, 3.0).tolist() == [3.0, 3.0, 1.0, 0.0, -1.0, -3.0, -3.0]


@pytest.mark.parametrize("gap", [-39.0, -12.0, -5.0, -3.0, 0.0, 2.0])
def test_inclusion_probabilities_are_those_of_the_formula(gap):
    kappa = torch.tensor(-7.0, dtype=torch.float64)
    got = log_inclusion(kappa + gap, kappa)
    assert float(got) == pytest.approx(math.log(-math.expm1(-math.exp(gap))), rel=1e-12)


@pytest.mark.parametrize("shift", [0.1, -0.1])
def test_the_audit_sees_a_gap_on_either_side(shift):
    policy = make_policy()
    batch = make_rows(policy)
    wrong = dataclasses.replace(batch, logp_old=batch.logp_old + shift * batch.is_token)
    error = make_updater(policy).update(wrong, 4, 0)["audit/ratio_error"]
    assert error == pytest.approx(math.expm1(0.1), abs=1e-5)
