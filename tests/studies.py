"""A study of two arms for tests, and one whose runs are all there."""

import json

from tinyzero_astar.config_json import to_json
from tinyzero_astar.study.outcomes import outcome_of
from tinyzero_astar.study.plan import read_study

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


CHOSEN = {("all", "grpo"): 1e-4, ("all", "forest"): 2e-4}


def finished_study(path):
    """A study of one task whose runs are all there, its folder, and its outcomes. Forest costs half of GRPO."""
    path.write_text(FILE.partition("[tasks.easy]")[0])
    study, root = read_study(path), path.parent / "out"
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
