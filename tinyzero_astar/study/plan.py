"""What a study compares: arms on tasks, each with the same seeds, as a TOML file says.

    name = "middle"
    baseline = "grpo"           # the arm that others are compared with
    seeds = [0, 1, 2, 3, 4]

    [base]                      # of every run: a preset, and tables as in --config FILE.toml
    preset = "tiny"
    eval.num_problems = 300

    [sweep]                     # a field that is chosen for each arm, on seeds that are not reported
    field = "train.learning_rate"
    values = [1e-4, 2e-4, 4e-4]
    seeds = [100]

    [arms.grpo]                 # fields that an arm changes
    search.mode = "sample"
    train.algorithm = "grpo"

    [arms.forest]

    [tasks.hard]                # fields that a task changes; without tasks there is one
    data.min_digits = 3

The fields of an arm count over those of its task, and these over the base's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyzero_astar.config import Config, RunConfig
from tinyzero_astar.config_file import check_known, config_of, fields_of, read_toml
from tinyzero_astar.config_json import with_options
from tinyzero_astar.data.task_names import absolute
from tinyzero_astar.study.trials import Study, Sweep, name_of
from tinyzero_astar.terminal import shortened

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")  # of tasks and arms, which are names of folders too
_MOST_SEEDS = 1000
_LEVELS = (0.5, 0.8, 0.9, 0.95)
# A trial needs one checkpoint and no samples.
_SPARING = {"run.keep_last": 1, "run.keep_best": 0, "run.num_threads": 1, "run.loggers": ()}
_SET = ("run.seed", "run.checkpoint_frequency", *_SPARING)  # by the study itself


def read_study(path: Path) -> Study:
    """The study of a file.

    Raises:
        ValueError: it is missing, or says something that cannot be used.
    """
    data, source = read_toml(path, "study"), str(path)
    known = ["name", "baseline", "seeds", "lost_below", "levels", "samples", "sampled_problems"]
    for key in data:
        check_known(source, key, [*known, "base", "sweep", "arms", "tasks"])
    sweep = _sweep(source, data["sweep"]) if "sweep" in data else None
    arms = _changes(source, "arms", data.get("arms"), sweep)
    tasks = _changes(source, "tasks", data.get("tasks", {"all": {}}), sweep)
    base = _base(source, data.get("base"), sweep)
    study = Study(
        name=_text(source, "name", data.get("name", path.stem)),
        preset=data.get("base", {}).get("preset", "tiny"),
        baseline=_text(source, "baseline", data.get("baseline", next(iter(arms)))),
        seeds=_whole_numbers(source, "seeds", data.get("seeds", [0, 1, 2, 3, 4])),
        configs={
            task: {arm: _config(base, own | fields, f"{source}, {task}, {arm}") for arm, fields in arms.items()}
            for task, own in tasks.items()
        },
        sweep=sweep,
        lost_below=_share(source, "lost_below", data.get("lost_below", 0.5)),
        levels=_levels(source, data.get("levels", [*_LEVELS])),
        samples=_count(source, "samples", data.get("samples", 1)),
        sampled_problems=_count(source, "sampled_problems", data.get("sampled_problems", 100)),
    )
    if study.baseline not in arms:
        raise ValueError(
            f"{source}: baseline is {shortened(study.baseline)}, which is no arm; the arms are {', '.join(arms)}"
        )
    _check_seeds(source, study)
    _check_distinct(source, study)
    _check_swept(source, study)
    return study


def _base(source: str, data: Any, sweep: Sweep | None) -> Config:
    table = _table(source, "base", data)
    config = config_of(table, source)
    _check_free(f"{source}, base", fields_of({k: x for k, x in table.items() if k != "preset"}, source), sweep)
    return with_options(config, {**_SPARING, "run.checkpoint_frequency": max(config.train.num_iterations, 1)})


def _changes(source: str, name: str, data: Any, sweep: Sweep | None) -> dict[str, dict[str, Any]]:
    """What each arm, or each task, changes."""
    found = {}
    for key, table in _tables(source, name, data).items():
        found[key] = fields_of(table, f"{source}, {name}.{key}")
        _check_free(f"{source}, {name}.{key}", found[key], sweep)
    return found


def _check_free(source: str, names: Iterable[str], sweep: Sweep | None) -> None:
    """Refuse fields that the study itself sets, since what the file says of them would be overridden."""
    for name in names:
        if name in _SET:
            raise ValueError(f"{source}: {name} is set by the study itself (docs/study.md); leave it out")
        if sweep is not None and name == sweep.field:
            raise ValueError(f"{source}: {name} is the field of [sweep], which sets it; leave it out in one of them")


def _config(base: Config, fields: Mapping[str, Any], source: str) -> Config:
    try:
        config = with_options(base, fields)
    except ValueError as error:
        raise ValueError(f"{source}: {str(error).removeprefix('options: ')}") from None
    if config.train.num_iterations == 0:
        raise ValueError(f"{source}: train.num_iterations is 0, which gives no learning curve; write 1 or more")
    task, reward = (absolute(text) for text in (config.data.task, config.data.reward_function))
    return replace(config, data=replace(config.data, task=task, reward_function=reward))  # as a run records them


def _sweep(source: str, data: Any) -> Sweep:
    table = _table(source, "sweep", data)
    for key in table:
        check_known(source, f"sweep.{key}", ["sweep.field", "sweep.values", "sweep.seeds"])
    field = _text(source, "sweep.field", table.get("field", "train.learning_rate"))
    section, _, key = field.partition(".")
    fields_of({section: {key: None}}, source)  # or it refuses the name
    if field in _SET:
        raise ValueError(f"{source}: sweep.field is {field}, which the study itself sets; name another field")
    values = _list(source, "sweep.values", table.get("values"))
    for value in values:
        if not _is_number(value):
            raise ValueError(f"{source}: sweep.values has {shortened(value)}, which is no number")
    return Sweep(field, tuple(values), _whole_numbers(source, "sweep.seeds", table.get("seeds")))


def _check_swept(source: str, study: Study) -> None:
    """Whether every arm can have every value, and each value a folder of its own."""
    sweep = study.sweep
    if sweep is None:
        return
    for task, arms in study.configs.items():
        for arm, config in arms.items():
            for value in sweep.values:
                _config(config, {sweep.field: value}, f"{source}, sweep.values, {task}, {arm}")
    known: dict[str, float] = {}
    for value in sweep.values:
        if name_of(value) in known:
            raise ValueError(
                f"{source}: sweep.values has {known[name_of(value)]!r} and {value!r}, which are equal to six digits;"
                " leave one out"
            )
        known[name_of(value)] = value


def _check_distinct(source: str, study: Study) -> None:
    """Refuse two arms that would learn the same, bit by bit. What differs in section run alone changes nothing."""
    for task, arms in study.configs.items():
        known: dict[Config, str] = {}
        for arm, config in arms.items():
            alike = known.setdefault(replace(config, run=RunConfig()), arm)
            if alike != arm:
                raise ValueError(f"{source}, {task}: arms {alike} and {arm} have the same settings; leave one out")


def _check_seeds(source: str, study: Study) -> None:
    both = set(study.seeds) & set(study.sweep.seeds if study.sweep else ())
    if both:
        raise ValueError(
            f"{source}: seed {min(both)} is in seeds and in sweep.seeds; values chosen on a seed that is reported would"
            " flatter, so name another"
        )


def _tables(source: str, name: str, data: Any) -> dict[str, Any]:
    found = _table(source, name, data)
    if not found:
        raise ValueError(f"{source}: it has no {name}; write a table such as [{name}.first]")
    for key in found:
        if _NAME.fullmatch(key) is None or key.strip(".") == "":
            raise ValueError(f"{source}: {name}.{shortened(key)} is no name; use up to 60 of A-Z a-z 0-9 _ . -")
    return found


def _table(source: str, name: str, data: Any) -> dict[str, Any]:
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError(f"{source}: {name} is {shortened(data)}; write it as a table, [{name}]")
    return data


def _list(source: str, name: str, data: Any) -> list[Any]:
    if not isinstance(data, list) or not data:
        what = "missing" if data is None else shortened(data)  # TOML has no null
        raise ValueError(f"{source}: {name} is {what}; write a list with one value or more")
    return data


def _whole_numbers(source: str, name: str, data: Any) -> tuple[int, ...]:
    found = _list(source, name, data)
    if len(set(map(repr, found))) < len(found) or len(found) > _MOST_SEEDS:
        raise ValueError(f"{source}: {name} has a value twice, or more than {_MOST_SEEDS}")
    return tuple(_count(source, name, x, least=0) for x in found)


def _count(source: str, name: str, value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{source}: {name} is {shortened(value)}; write a whole number of at least {least}")
    return value


def _levels(source: str, data: Any) -> tuple[float, ...]:
    found = tuple(_share(source, "levels", x) for x in _list(source, "levels", data))
    if len(set(found)) < len(found):
        raise ValueError(f"{source}: levels has a value twice; leave one out")
    return found


def _share(source: str, name: str, value: Any) -> float:
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(f"{source}: {name} is {shortened(value)}; write a share between 0 and 1")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(source: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{source}: {name} is {shortened(value)}; write a text")
    return value
