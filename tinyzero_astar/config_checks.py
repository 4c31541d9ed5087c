"""What a configuration must satisfy, which is the ranges of numbers and what its fields demand of each other."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator

from tinyzero_astar.config import Config, EvalConfig, Range, root_tilt_of, search_size


def check(config: Config) -> None:
    """Refuse values outside their range, one clear sentence for the first.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    check_ranges(config)
    search, train = config.search, config.train
    if search.mode == "gumbel" and search.beam_width < search.num_rollouts_per_problem + 1:
        raise ValueError(
            f"beam_width {search.beam_width} must be at least num_rollouts_per_problem + 1 ="
            f" {search.num_rollouts_per_problem + 1}: the best prefix left out is the threshold of the weights"
        )
    if config.data.min_digits > config.data.max_digits:
        raise ValueError(f"min_digits {config.data.min_digits} must not exceed max_digits {config.data.max_digits}")
    if train.batch_size > train.problems_per_iteration:
        raise ValueError(
            f"batch_size {train.batch_size} must not exceed problems_per_iteration"
            f" {train.problems_per_iteration}: an optimizer step uses problems of one iteration"
        )
    _check_forest(config)
    if train.problems_per_iteration > config.data.num_problems:
        raise ValueError(
            f"problems_per_iteration {train.problems_per_iteration} must not exceed num_problems"
            f" {config.data.num_problems}: no problem twice in an iteration"
        )
    if train.num_iterations and train.warmup_iterations > train.num_iterations:
        raise ValueError(
            f"warmup_iterations {train.warmup_iterations} must not exceed num_iterations {train.num_iterations}: the"
            " learning rate would never be reached"
        )
    if search.mode == "best_first" and search.inverse_beta != "balanced" and search.inverse_beta < 0:
        raise ValueError(
            f"inverse_beta {search.inverse_beta} must not be negative with mode best_first: it would look for"
            " the most probable failures"
        )
    _check_evaluation(config.eval)


def _check_forest(config: Config) -> None:
    search, size = config.search, search_size(config)
    leaves = search.num_rollouts_per_problem * size
    if not float(leaves).is_integer() or leaves < 1:
        raise ValueError(
            f"num_rollouts_per_problem {search.num_rollouts_per_problem:g} times the {size} problems sharing a search"
            " must be a whole number of leaves, at least 1: see search.problems_per_search and train.batch_size"
        )
    if root_tilt_of(config) > 0 and search.weight_cap is None:
        raise ValueError(
            f"root_tilt {search.root_tilt:g} is a share of the weight_cap, and there is none: set one, or no tilt"
        )


def check_processes(config: Config, count: int) -> None:
    """Refuse a number of processes that cannot search equally many problems, or would share a search.

    Raises:
        ValueError: names both numbers and the remedy.
    """
    problems, size = config.train.problems_per_iteration, search_size(config)
    if problems % (count * size) == 0:
        return
    unit = "" if size == 1 else f", {size} in each search"
    most = -(-problems // (count * size)) * count * size
    raise ValueError(
        f"{count} processes do not divide problems_per_iteration {problems}: all search the same number of problems"
        f"{unit}; use --train.problems-per-iteration {most}, or another number of processes"
    )


def _check_evaluation(evaluation: EvalConfig) -> None:
    together = {"num_samples": evaluation.num_samples}
    if evaluation.search == "best_first":
        together["beam_width"] = evaluation.beam_width
    for name, count in together.items():
        if evaluation.max_rows < count:
            raise ValueError(
                f"eval.max_rows {evaluation.max_rows} must be at least eval.{name} {count}: those of a problem are"
                " decoded at once"
            )


def ranges() -> dict[str, Range]:
    """What the numbers of a configuration may be, by section and name."""
    sections = typing.get_type_hints(Config).items()
    return {f"{section}.{name}": allowed for section, kind in sections for name, allowed in _ranges_of(kind)}


def _ranges_of(section: type) -> Iterator[tuple[str, Range]]:
    for name, hint in typing.get_type_hints(section, include_extras=True).items():
        yield from ((name, note) for note in getattr(hint, "__metadata__", ()) if isinstance(note, Range))


def check_ranges(config: Config) -> None:
    """Refuse a number outside its range. `check` does this first."""
    for section in dataclasses.fields(config):
        check_section(section.name, getattr(config, section.name))


def check_section(name: str, section: object) -> None:
    """Refuse a number of one section outside its range. `check` does this for all.

    Raises:
        ValueError: names the field, its value and its range.
    """
    for key, (low, high) in _ranges_of(type(section)):
        value = getattr(section, key)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ValueError(f"{name}.{key} {value} is out of range: it must lie between {_end(low)} and {_end(high)}")


def _end(x: float) -> str:
    return str(x) if isinstance(x, int) else f"{x:.10g}"
