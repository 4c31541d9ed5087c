"""Figures of `benchmarks.gpu` that compare parts, the targets."""

from __future__ import annotations

from typing import Any

RECORDED = "_recorded"  # decode steps as CUDA graphs
TARGETS = (  # shape, part, figure, in words, holds
    ("1.5B", "sample_recorded@256", "share_of_limit", ">= 0.5", lambda x: x >= 0.5),
    ("1.5B", "sample_recorded@256", "over_generate", ">= 5", lambda x: x >= 5),
    ("1.5B", "gumbel_recorded@256", "cost_over_sample", "<= 1.05", lambda x: x <= 1.05),
    ("1.5B", "guided_recorded@256", "cost_over_sample", "<= 1.1", lambda x: x <= 1.1),
    ("1.5B", "update", "mfu", ">= 0.35", lambda x: x >= 0.35),
    ("3B", "update", "peak_gb", "< 80", lambda x: x < 80),
)


def finish(result: dict[str, Any]) -> None:
    """Add what compares parts of the same number of rows, and judge the targets.

    A step's cost is per decoded token, in terms of one that is sampled. The share of a search is what its step takes
    longer than a step of given tokens, divided by its step.
    """
    for parts in result["shapes"].values():
        for name, own in parts.items():
            mode, _, rows = name.partition("@")
            if not own.get("tokens_per_s") or not rows:
                continue
            recorded = RECORDED * mode.endswith(RECORDED)
            sample, bare, generate = (
                parts.get(f"{other}@{rows}", {}).get("tokens_per_s")
                for other in (f"sample{recorded}", f"forward{recorded}", "generate")
            )
            if generate:
                own["over_generate"] = own["tokens_per_s"] / generate
            if mode == "generate":
                continue
            if sample:
                own["cost_over_sample"] = sample / own["tokens_per_s"]
            if bare and mode != f"forward{recorded}":
                own["search_share"] = 1 - own["tokens_per_s"] / bare
    result["targets"] = []
    for shape, part, figure, words, holds in TARGETS:
        value = result["shapes"].get(shape, {}).get(part, {}).get(figure)
        met = None if value is None else holds(value)
        result["targets"].append(
            {"shape": shape, "part": part, "figure": figure, "target": words, "value": value, "met": met}
        )


def line_of(figures: dict[str, Any]) -> str:
    """One part's figures in a line."""
    return "  ".join(f"{name} {_text(value)}" for name, value in figures.items())


def show(result: dict[str, Any]) -> None:
    """Which of the targets are met."""
    for target in result["targets"]:
        value = "not measured" if target["value"] is None else f"{target['value']:.4g}"
        words = f"{target['shape']} {target['part']} {target['figure']} {target['target']}: {value}"
        print(words + ("" if target["met"] is None else ", met" if target["met"] else ", missed"))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
