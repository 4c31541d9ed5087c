"""What a configuration must satisfy, which is types and ranges of its fields, and what they demand of each other."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from tinyzero_astar.config import Config, EvalConfig, Length, Range, root_tilt_of, search_size
from tinyzero_astar.terminal import counted, shortened

Note = TypeVar("Note", Range, Length)


def check(config: Config) -> None:
    """Refuse values of the wrong type or outside their range, one clear sentence for the first.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    check_sections(config)
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
    smaller = _size_for(config, count)
    first = "" if smaller is None else f"--search.problems-per-search {smaller}, or "
    raise ValueError(
        f"{count} processes do not divide problems_per_iteration {problems}: all search the same number of problems"
        f"{unit}; use {first}--train.problems-per-iteration {most}, or another number of processes"
    )


def _size_for(config: Config, count: int) -> int | None:
    """The most problems in a search with which so many processes share an iteration. None if there is no such number.

    It leaves the number of problems as it is, so an iteration costs as much.
    """
    for size in range(search_size(config) - 1, 0, -1):
        changed = replace(config, search=replace(config.search, problems_per_search=size))
        leaves = config.search.num_rollouts_per_problem * size
        is_whole = float(leaves).is_integer() and leaves >= 1
        if is_whole and search_size(changed) == size and config.train.problems_per_iteration % (count * size) == 0:
            return size
    return None


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
    sections = hints_of(Config).items()
    return {
        f"{section}.{name}": note
        for section, kind in sections
        for name, hint in hints_of(kind).items()
        for note in _notes(hint, Range)
    }


def check_section(name: str, section: Any) -> None:
    """Refuse a field of one section that is of the wrong type or out of range. `check` does this for all.

    Raises:
        ValueError: names the field, its value, and what it must be.
    """
    for key, hint in hints_of(section.__class__).items():
        if (fault := _fault(getattr(section, key), hint)) is not None:
            raise ValueError(f"{name}.{key} {fault}")


def check_sections(config: Config) -> None:
    """Refuse any field by itself. `check` does this first.

    Raises:
        ValueError: see `check_section`.
    """
    for name, kind in hints_of(Config).items():
        section = getattr(config, name)
        if not isinstance(section, kind):
            raise ValueError(f"{name} is {shortened(section)}, which is not {_type_name(kind)}")
        check_section(name, section)


def check_whole(name: str, value: object, field: str) -> None:
    """Refuse what is no whole number in the range of a field, such as run.seed.

    Raises:
        ValueError: names it, its value and the range.
    """
    low, high = (math.ceil(end) for end in ranges()[field])
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {shortened(value)}: it must be a whole number between {low} and {high}")


def _fault(value: object, hint: Any) -> str | None:
    """What is wrong with a value, by the type and the notes of its field. None means nothing."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if not _fits(value, kind):
        return f"is {shortened(value)}, which is not {_type_name(kind)}"
    for low, high in _notes(hint, Range):
        if isinstance(value, (int, float)) and not low <= value <= high:
            return f"{shortened(value)} is out of range: it must lie between {_end(low)} and {_end(high)}"
    for low, high in _notes(hint, Length):
        if isinstance(value, str) and not low <= len(value) <= high:
            return f"has {counted(len(value), 'character')}: it must have {_end(low)} to {_end(high)}"
    if isinstance(value, str) and "\0" in value:
        return f"{shortened(value)} has a null character, which no name can have: leave it out"
    return None


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Types and notes of the fields; to read them takes longer than all checks."""
    return typing.get_type_hints(kind, include_extras=True)


def _notes(hint: Any, kind: type[Note]) -> list[Note]:
    return [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, kind)]


def _end(x: float) -> str:
    return str(x) if isinstance(x, int) else f"{x:.10g}"


def _type_name(wanted: Any) -> str:
    """A type in words, such as "of type int", or "one of grpo, rloo"."""
    choices = typing.get_args(wanted)
    if typing.get_origin(wanted) is tuple:
        return f"a list of {_type_name(choices[0]).removeprefix('one of ')}"
    if typing.get_origin(wanted) is Literal:
        return f"one of {', '.join(choices)}"
    if choices:
        return " or ".join(map(_type_name, choices))
    return "None" if wanted is types.NoneType else f"of type {wanted.__name__}"


def _fits(value: object, wanted: Any) -> bool:
    origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return isinstance(value, str) and value in choices
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, choices[0]) for item in value)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in choices)
    if wanted in (int, float):
        return isinstance(value, (int, wanted)) and not isinstance(value, bool)
    return isinstance(value, wanted)
