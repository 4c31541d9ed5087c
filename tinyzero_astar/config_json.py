"""A configuration as JSON, and what two of them may differ in."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tinyzero_astar.config import Config
from tinyzero_astar.config_checks import check
from tinyzero_astar.files import read_text

# May change when a run is continued. They concern its length, the machine, and how often it saves and shows.
FREE_ON_RESUME = (
    "train.num_iterations",
    "model.device",
    "model.cuda_graphs",
    "model.liger",
    "run.num_threads",
    "run.checkpoint_frequency",
    "run.keep_last",
    "run.keep_best",
    "run.sample_frequency",
    "run.collective_timeout_s",
)

# may differ from a run's when one of its checkpoints is evaluated, since this machine need not be the one that trained
# it
FREE_IN_EVALUATION = ("model.device", "model.cuda_graphs", "run.num_threads", "run.collective_timeout_s")

TASK_FILES = ("data.task", "data.reward_function")
"""Where the files of a task lie. They may be given anew when a run is continued or evaluated."""


def to_json(config: Config) -> str:
    """The resolved configuration as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def with_fields_of(config: Config, other: Config, names: Iterable[str]) -> Config:
    """A configuration in which the named fields, such as eval.num_problems, have another one's values."""
    for name in names:
        section, key = name.split(".")
        changed = replace(getattr(config, section), **{key: getattr(getattr(other, section), key)})
        config = replace(config, **{section: changed})
    return config


def with_files_moved(config: Config, other: Config, given: Iterable[str]) -> Config:
    """A run's configuration in which those of `TASK_FILES` that are `given` are another's.

    Whether they are the same files is for `data.tasks.pinned` to say.

    Raises:
        ValueError: the run's task comes from no file.
    """
    names = [name for name in TASK_FILES if name in given]
    if names and not config.data.task_sha256:
        raise ValueError(
            f"{' and '.join(names)} cannot be given: the run's task {config.data.task!r} comes from no file that could"
            " have moved; leave it out, or start a new run"
        )
    return with_fields_of(config, other, names)


def differences(a: Config, b: Config) -> list[str]:
    """Names of the fields, with their sections, in which two configurations differ."""
    ours, theirs = dataclasses.asdict(a), dataclasses.asdict(b)
    return [
        f"{section}.{key}"
        for section, values in ours.items()
        for key, value in values.items()
        if value != theirs[section][key]
    ]


def from_json(path: Path) -> Config:
    """A configuration saved by `to_json`.

    Raises:
        ValueError: the file is missing, is no JSON, or holds unknown or wrong fields.
    """
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: it should hold the configuration of a run") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits, nested deeply
        raise ValueError(f"{path} is not valid JSON ({error}); restore it from a checkpoint") from None
    return from_dict(data, str(path))


def from_dict(data: Any, source: str) -> Config:
    """A configuration from nested dictionaries. `source` names where they came from.

    Raises:
        ValueError: a field is unknown, of the wrong type, or out of range.
    """
    config: Config = _build(Config, data, source)
    try:
        check(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return config


def _build(kind: type, data: Any, source: str) -> Any:
    known = typing.get_type_hints(kind)
    if not isinstance(data, dict) or set(data) - set(known):
        unknown = sorted(set(data) - set(known)) if isinstance(data, dict) else data
        raise ValueError(f"{source}: {unknown} is not a field of {kind.__name__}; this version knows {sorted(known)}")
    values = {}
    for key, value in data.items():
        wanted = known[key]
        if dataclasses.is_dataclass(wanted):
            values[key] = _build(typing.cast(type, wanted), value, source)
        elif _fits(value, wanted):
            values[key] = value
        else:
            raise ValueError(f"{source}: {key} is {value!r}, which is not {_type_name(wanted)}")
    return kind(**values)


def _type_name(wanted: Any) -> str:
    """A type in words, such as "of type int", or "one of grpo, rloo"."""
    choices = typing.get_args(wanted)
    if typing.get_origin(wanted) is Literal:
        return f"one of {', '.join(choices)}"
    if choices:
        return " or ".join(map(_type_name, choices))
    return "None" if wanted is types.NoneType else f"of type {wanted.__name__}"


def _fits(value: Any, wanted: Any) -> bool:
    origin, choices = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return value in choices
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in choices)
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted)
