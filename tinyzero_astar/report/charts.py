"""Which curves a page has, as groups of charts, each with some metrics by the names of docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
            "Held-out problems are never trained on. Shade: 95 % interval. In training: Σ ŵ R.",
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
            "Tokens. It rises when answers begin to be worked out.",
        ),
    ],
    "The update": [
        Chart(
            "Policy loss", {"train/policy_loss": "policy loss"}, "No measure of progress. It falls as advantages grow."
        ),
        Chart("Value loss", {"train/value_loss": "value loss"}),
        Chart("Entropy", {"policy/entropy": "entropy"}, "Nats per token. Near 0 the policy tries nothing new."),
        Chart("Gradient norm", {"train/grad_norm": "norm before clipping"}),
        Chart(
            "Distance of the update",
            {"train/ratio_deviation": "mean |ratio - 1|", "policy/kl_to_base": "KL to the base"},
        ),
        Chart("Advantages", {"advantage/mean": "mean", "advantage/rms": "root mean square"}, "In units of reward."),
        Chart("Learning rate", {"train/learning_rate": "learning rate"}),
    ],
    "The value model, which is the heuristic": [
        Chart(
            "Ranking of siblings",
            {"value/sibling_accuracy_later": "after the first token", "value/sibling_accuracy_first": "at the first"},
            "How often the right one of two continuations was valued higher. Chance is 50 %.",
            "share",
        ),
        Chart(
            "Ranking of prefixes (AUC)",
            {"value/auc_root": "prompts", **_QUARTERS},
            "How often what ends right was valued above what ends wrong. Chance is 50 %.",
            "share",
        ),
        Chart(
            "Calibration error",
            {
                "value/calibration_error": "all prefixes",
                "value/root_calibration_error": "prompts",
                "value/brier": "Brier score",
            },
            "0 is perfect.",
        ),
        Chart(
            "Explained variance",
            {"value/explained_variance": "explained variance"},
            "1 knows the outcome, 0 is a constant.",
        ),
        Chart(
            "Guidance",
            {"guidance/is_open": "search is guided", "guidance/is_root_open": "problems are chosen"},
            "1 while the value model ranks well enough to be trusted.",
        ),
        Chart(
            "Errors of h",
            {"heuristic/bellman_residual": "Bellman residual", "heuristic/overestimate_nats": "overestimate"},
            "Nats. An exact heuristic has 0.",
        ),
    ],
    "Weights and diversity": [
        Chart("Sum of weights", {"weight/sum": "Σ ŵ"}, "1 on average if the gradient is unbiased."),
        Chart("Largest weight", {"weight/max": "largest ŵ"}),
        Chart("Effective sample size", {"weight/effective_sample_size": "leaves of a search"}),
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
            unit="share",
        ),
    ],
    "Search and cost": [
        Chart(
            "Work of the search",
            {"search/num_expanded": "prefixes extended", "search/num_decoded_tokens": "tokens decoded"},
            "Per iteration.",
        ),
        Chart("Tokens per completion", {"search/tokens_per_leaf": "tokens decoded per completion"}),
        Chart(
            "Open list",
            {"search/max_open": "most open prefixes", "search/num_forks": "forks", "search/num_pruned": "dropped"},
        ),
        Chart("Seconds", {"time/search_s": "search", "time/update_s": "update"}, "Per iteration."),
    ],
}

CALIBRATION = "value/calibration_bins"  # drawn as a diagram of its own


def drawn_metrics() -> list[str]:
    """The metrics that a page needs, each once."""
    charts = [chart for group in CHARTS.values() for chart in group]
    bands = [f"{chart.band}{end}" for chart in charts if chart.band for end in ("_low", "_high")]
    return list(dict.fromkeys([*(name for chart in charts for name in chart.series), *bands]))
