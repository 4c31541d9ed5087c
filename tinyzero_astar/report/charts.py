"""Which curves a page has, as groups of charts, each with some metrics by the names of docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyzero_astar.metrics.alarms import GATE_WINDOW, MIN_AUC, MIN_SIBLING
from tinyzero_astar.report.evidence import GATE_AUC, GATE_SIBLINGS


@dataclass(frozen=True)
class Chart:
    """A few metrics that share an axis."""

    title: str
    series: dict[str, str]  # what each metric is called, by its name
    note: str = ""
    unit: Literal["share", "number"] = "number"
    band: str = ""  # the metric whose _low and _high are drawn around it


_QUARTERS = {f"value/auc_depth_{k}": f"quarter {k} of a completion" for k in (1, 2, 3, 4)}

CHARTS: dict[str, list[Chart]] = {
    "What was learned": [
        Chart(
            "Accuracy",
            {
                "eval/greedy_accuracy": "held out, greedy",
                "rollout/policy_accuracy": "in training, estimated",
            },
            "Held-out problems are never trained on. Shade: 95 % interval. In training: Σ ŵ R of the completions that"
            " the search found. It is right on average but noisy, and may exceed 100 %.",
            "share",
            "eval/greedy_accuracy",
        ),
        Chart(
            "Rewards",
            {"rollout/reward": "reward", "rollout/format": "well-formed", "rollout/accuracy": "right"},
            "Means over the completions that the search found. That is no fair sample of the policy.",
        ),
        Chart(
            "Length of completions",
            {"rollout/length": "in training", "eval/mean_length": "held out, sampled"},
            "Tokens. It rises where working is written before the answer. Held-out problems are sampled at the start"
            " and the end alone, so the line between is no measurement.",
        ),
    ],
    "The update": [
        Chart(
            "Policy loss", {"train/policy_loss": "policy loss"}, "No measure of progress. It falls as advantages grow."
        ),
        Chart(
            "Value loss",
            {"train/value_loss": "value loss"},
            "How far the value model's guesses were from the outcomes, squared. Hard problems raise it.",
        ),
        Chart("Entropy", {"policy/entropy": "entropy"}, "Nats per token. Near 0 the policy tries nothing new."),
        Chart(
            "Gradient norm",
            {"train/grad_norm": "norm before clipping"},
            "Steps are scaled down to at most max_grad_norm.",
        ),
        Chart(
            "Distance of the update",
            {"train/ratio_deviation": "mean |ratio - 1|", "policy/kl_to_base": "KL to the base"},
            "Ratio: probability of a token now, divided by that before the iteration. KL is known with adapters alone.",
        ),
        Chart(
            "Advantages",
            {"advantage/mean": "mean", "advantage/rms": "root mean square"},
            "Reward above what the value model expected, in units of reward.",
        ),
        Chart(
            "Learning rate", {"train/learning_rate": "learning rate"}, "Of the policy. It warms up, then falls to 0."
        ),
    ],
    "The value model, which is the heuristic": [
        Chart(
            "Ranking of siblings",
            {"value/sibling_accuracy_later": "after the first token", "value/sibling_accuracy_first": "at the first"},
            "How often the right one of two continuations was valued higher. Chance is 50 %. An iteration has few such"
            " pairs, so single values jump.",
            "share",
        ),
        Chart(
            "Ranking of prefixes (AUC)",
            {"value/auc_root": "prompts", **_QUARTERS},
            "How often what ends right was valued above what ends wrong. Chance is 50 %.",
            "share",
        ),
        Chart(
            "Gate of the guidance",
            {GATE_AUC: "AUC, mean of the quarters", GATE_SIBLINGS: "sibling ranking, after the first token"},
            f"Means over the last {GATE_WINDOW} iterations that measured them, before this one. The value model guides"
            f" while both exceed their bounds, {100 * MIN_AUC:.0f} % and {100 * MIN_SIBLING:.0f} %.",
            "share",
        ),
        Chart(
            "Calibration error",
            {
                "value/calibration_error": "all prefixes",
                "value/root_calibration_error": "prompts",
                "value/brier": "Brier score",
            },
            "Between the success that was foreseen and what came true. 0 is perfect.",
        ),
        Chart(
            "Explained variance",
            {"value/explained_variance": "explained variance"},
            "1 knows the outcome, 0 is a constant.",
        ),
        Chart(
            "Guidance",
            {"guidance/is_open": "search is guided", "guidance/is_root_open": "problems are chosen"},
            "1 is on, 0 is off. It changes when a mean of three iterations passes its bound, so it may flip.",
        ),
        Chart(
            "Errors of h",
            {"heuristic/bellman_residual": "Bellman residual", "heuristic/overestimate_nats": "overestimate"},
            "Nats, 0 if h is exact. Residual: how far h and the h of its continuations contradict each other."
            " Overestimate: how far h was above what was found.",
        ),
    ],
    "Weights and diversity": [
        Chart("Sum of weights", {"weight/sum": "Σ ŵ"}, "1 on average if the gradient is unbiased."),
        Chart("Largest weight", {"weight/max": "largest ŵ"}, "Far above 1, a few completions decide the update."),
        Chart(
            "Effective sample size",
            {"weight/effective_sample_size": "completions of a search"},
            "As many equally weighted completions would be as noisy.",
        ),
        Chart(
            "Noise compared with sampling",
            {"weight/variance_ratio": "variance ÷ that of as many samples"},
            "Below 1 the searched completions are less noisy.",
        ),
        Chart(
            "Diversity",
            {
                "rollout/unique_fraction": "distinct completions",
                "rollout/shared_prefix_fraction": "shared prefix",
                "rollout/mixed_fraction": "problems with right and wrong ones",
                "search/unsearched_fraction": "problems without a completion",
            },
            "Without a completion: its search gave all room to other problems. Right and wrong ones: there is something"
            " to compare.",
            "share",
        ),
    ],
    "Search and cost": [
        Chart(
            "Work of the search",
            {"search/num_expanded": "prefixes extended", "search/num_decoded_tokens": "tokens decoded"},
            "Per iteration.",
        ),
        Chart(
            "Tokens per completion",
            {"search/tokens_per_leaf": "tokens decoded per completion"},
            "Above the length of completions where prefixes were extended in vain, below it where they were shared.",
        ),
        Chart(
            "Open list",
            {"search/max_open": "most open prefixes", "search/num_forks": "forks", "search/num_pruned": "dropped"},
            "A fork is one more continuation of the same prefix that was kept. Only best_first drops prefixes.",
        ),
        Chart(
            "Seconds",
            {"time/search_s": "search", "time/update_s": "update"},
            "Per iteration. Evaluations and checkpoints are not in them.",
        ),
    ],
}

CALIBRATION = "value/calibration_bins"  # drawn as a diagram of its own


def drawn_metrics() -> list[str]:
    """The metrics that a page needs, each once."""
    charts = [chart for group in CHARTS.values() for chart in group]
    bands = [f"{chart.band}{end}" for chart in charts if chart.band for end in ("_low", "_high")]
    return list(dict.fromkeys([*(name for chart in charts for name in chart.series), *bands]))
