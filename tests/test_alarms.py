"""Every alarm is triggered once by what it is about and stays silent on a healthy run."""

from __future__ import annotations

import pytest

from tinyzero_astar.metrics.alarms import active_alarms, guidance_gate, remembered, root_gate

HEALTHY = {
    "value/sibling_accuracy_later": 0.7,
    "value/auc_root": 0.7,
    "value/root_calibration_error": 0.05,
    "value/auc_depth_1": 0.6,
    "value/auc_depth_2": 0.7,
    "value/auc_depth_3": 0.8,
    "value/auc_depth_4": 0.9,
    "rollout/mixed_fraction": 0.5,
    "rollout/policy_accuracy": 0.3,
    "audit/ratio_error": 1e-5,
    "policy/entropy": 0.5,
    "weight/sum": 1.0,
    "reward/length_correlation": 0.1,
    "reward/accuracy_correlation": 0.9,
}


def history(count=25, **changes):
    renamed = {key.replace("__", "/"): value for key, value in changes.items()}
    return [HEALTHY | renamed for _ in range(count)]


def test_a_healthy_run_is_silent():
    assert active_alarms(history(), 1e-4) == {}
    assert active_alarms([], 1e-4) == {}


CASES = {
    "value_ranks_by_chance": ({"value__sibling_accuracy_later": 0.49}, "no better than chance for 20 iterations"),
    "no_gradient": ({"rollout__mixed_fraction": 0.07}, "93 % of the problems agree"),
    "ratio": ({"audit__ratio_error": 2e-4}, "off by 0.0002 (tolerance 0.0001)"),
    "entropy_collapse": ({"policy__entropy": 0.01}, "collapsed to 0.010 nats at 30 % accuracy"),
    "weight_drift": ({"weight__sum": 0.9}, "sum to 0.90 instead of 1"),
    "length_hacking": (
        {"reward__length_correlation": -0.97, "reward__accuracy_correlation": 0.11},
        "correlation -0.97) more than correctness (+0.11)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_alarm_is_triggered_alone_and_says_why(name):
    changes, text = CASES[name]
    alarms = active_alarms(history(**changes), 1e-4)
    assert list(alarms) == [name]
    assert text in alarms[name] and "\n" not in alarms[name]


def test_alarms_wait_for_enough_evidence():
    assert active_alarms(history(19, value__sibling_accuracy_later=0.4), 1e-4) == {}
    assert active_alarms(history(4, rollout__mixed_fraction=0.0), 1e-4) == {}
    assert active_alarms(history(30, policy__entropy=0.01, rollout__policy_accuracy=0.95), 1e-4) == {}  # mastered
    # mode best_first
    assert active_alarms(history(30, policy__entropy=0.01, rollout__policy_accuracy=None), 1e-4) == {}
    noisy = [HEALTHY | {"weight/sum": 1.0 + (0.5 if i % 2 else -0.44)} for i in range(20)]
    assert active_alarms(noisy, 1e-4) == {}  # a mean of 1.03 is within its own noise


def test_unmeasured_iterations_do_not_count():
    rows = history(20, value__sibling_accuracy_later=0.4)
    rows[5] = rows[5] | {"value/sibling_accuracy_later": None}
    assert active_alarms(rows, 1e-4) == {}
    rows[6] = rows[6] | {"value/sibling_accuracy_later": float("nan")}
    assert "value_ranks_by_chance" in active_alarms(rows + history(2, value__sibling_accuracy_later=0.4), 1e-4)


def test_gate_opens_only_when_both_measures_rank():
    assert guidance_gate(history(3)) == (True, "AUC 0.75 (bound 0.6), sibling ranking 0.70 (bound 0.55)")
    assert not guidance_gate(history(3, value__sibling_accuracy_later=0.54))[0]
    low = {f"value__auc_depth_{q}": 0.55 for q in (1, 2, 3, 4)}
    assert not guidance_gate(history(3, **low))[0]
    is_open, reason = guidance_gate(history(2))
    assert not is_open and "fewer than 3 iterations" in reason
    assert not guidance_gate(history(1) + history(3, value__sibling_accuracy_later=0.5))[0]  # it closes again


@pytest.mark.parametrize(("name", "bound"), [("value/sibling_accuracy_later", 0.55), ("value/auc_depth", 0.60)])
def test_gate_looks_at_the_mean_of_the_last_three_iterations(name, bound):
    def is_open(*excess):
        names = [known for known in HEALTHY if known.startswith(name)]
        return guidance_gate([HEALTHY | dict.fromkeys(names, bound + x) for x in excess])[0]

    assert is_open(-0.5, 0.2, 0.1, -0.2)  # the last one alone would close it
    assert not is_open(0.5, -0.2, -0.1, 0.2)  # or open it
    assert is_open(-0.5, 0.1, 0.1, 0.1) and not is_open(0.4, -0.1, -0.1, -0.1)  # all before the last three


@pytest.mark.parametrize(
    ("name", "bound", "sign"), [("value/root_calibration_error", 0.10, -1), ("value/auc_root", 0.55, 1)]
)
def test_the_root_is_tilted_when_the_mean_of_the_last_three_iterations_is_on_the_right_side(name, bound, sign):
    def is_open(*excess):
        return root_gate([HEALTHY | {name: bound + sign * x} for x in excess])[0]

    assert is_open(-0.05, 0.02, 0.01, -0.02) and not is_open(0.05, -0.02, -0.01, 0.02)
    assert not is_open(0.05, 0.05)
    assert root_gate(history(3)) == (
        True,
        "calibration error at the prompts 0.05 (bound 0.1), AUC 0.70 (bound 0.55)",
    )


def test_alarms_and_gate_look_at_nothing_but_what_is_remembered():
    looked_at = set()

    class Watched(dict):
        def get(self, name, default=None):
            looked_at.add(name)
            return super().get(name, default)

    for changes, _ in CASES.values():
        active_alarms([Watched(r) for r in history(**changes)], 1e-4)
    guidance_gate([Watched(r) for r in history()])
    root_gate([Watched(r) for r in history()])
    assert looked_at | {"alarms"} == remembered({**dict.fromkeys([*looked_at, "alarms", "other"])}).keys()


def test_an_iteration_without_a_measured_ratio_is_no_alarm():
    assert active_alarms([*history(), {**HEALTHY, "audit/ratio_error": None}], 1e-4) == {}
