"""A configuration as JSON, and what two of them may differ in."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyzero_astar.config import Config
from tinyzero_astar.config_checks import check, hints_of
from tinyzero_astar.files import read_text
from tinyzero_astar.terminal import shortened

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
    "run.loggers",
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


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """The configuration with single fields changed, such as {"search.beam_width": 12}, and checked.

    Raises:
        ValueError: there is no such field, or its value cannot be used.
    """
    sections = dataclasses.asdict(config)
    for name, value in options.items():
        section, _, key = name.partition(".") if isinstance(name, str) else ("", "", "")
        if not isinstance(sections.get(section), dict) or key not in sections[section]:
            raise ValueError(
                f"options: {shortened(name)} is no field of a configuration; write section.field, as in run.seed"
            )
        sections[section][key] = value
    return from_dict(sections, "options")


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
    """What the data say, by the names of fields. `check` looks at the values."""
    known = hints_of(kind)
    if not isinstance(data, dict) or set(data) - set(known):
        unknown = sorted(set(data) - set(known)) if isinstance(data, dict) else shortened(data)
        raise ValueError(f"{source}: {unknown} is not a field of {kind.__name__}; this version knows {sorted(known)}")
    return kind(**{key: _read(value, known[key], source) for key, value in data.items()})


def _read(value: Any, wanted: Any, source: str) -> Any:
    if dataclasses.is_dataclass(wanted):
        return _build(typing.cast(type, wanted), value, source)
    return tuple(value) if isinstance(value, list) and typing.get_origin(wanted) is tuple else value  # JSON has lists
