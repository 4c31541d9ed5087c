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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_astar.config import Config
from tinyzero_astar.config_file import check_known, config_of, fields_of, read_toml
from tinyzero_astar.config_json import with_options
from tinyzero_astar.run.folder import CHECKPOINTS
from tinyzero_astar.terminal import shortened

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")  # of tasks and arms, which are names of folders too
_MOST_SEEDS = 1000
_LEVELS = (0.5, 0.8, 0.9, 0.95)
# A trial needs one checkpoint and no samples.
_SPARING = {"run.keep_last": 1, "run.keep_best": 0, "run.num_threads": 1, "run.loggers": ()}


@dataclass(frozen=True)
class Sweep:
    """A field whose value is chosen for each arm of each task."""

    field: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """Arms on tasks."""

    name: str
    preset: str
    baseline: str
    seeds: tuple[int, ...]
    configs: Mapping[str, Mapping[str, Config]]  # by task and arm, before sweep and seed
    sweep: Sweep | None
    lost_below: float  # held-out accuracy at its end below which a run counts as lost
    levels: tuple[float, ...]  # of accuracy whose cost is told
    samples: int  # completions per problem of the last evaluation, up to which pass@k is told
    sampled_problems: int  # problems of that evaluation

    @property
    def tasks(self) -> list[str]:
        """In the order of the file."""
        return list(self.configs)

    @property
    def arms(self) -> list[str]:
        """In the order of the file."""
        return list(self.configs[self.tasks[0]])

    def swept(self) -> list[Trial]:
        """The runs from which a value is chosen, seed by seed, so that an interrupted study is balanced."""
        if self.sweep is None:
            return []
        return [
            self._trial(task, arm, value, seed, samples=1)
            for seed in self.sweep.seeds
            for task in self.tasks
            for value in self.sweep.values
            for arm in self.arms
        ]

    def reported(self, chosen: Mapping[tuple[str, str], float | None]) -> list[Trial]:
        """The runs that are reported, given the value of each task and arm."""
        return [
            self._trial(task, arm, chosen[task, arm], seed, samples=self.samples)
            for seed in self.seeds
            for task in self.tasks
            for arm in self.arms
        ]

    def _trial(self, task: str, arm: str, value: float | None, seed: int, *, samples: int) -> Trial:
        changes: dict[str, Any] = {"run.seed": seed}
        if self.sweep is not None:
            changes[self.sweep.field] = value
        config = with_options(self.configs[task][arm], changes)
        return Trial(task, arm, value, seed, config, self.preset, samples, self.sampled_problems)


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    task: str
    arm: str
    value: float | None  # of the swept field, None without a sweep
    seed: int
    config: Config
    preset: str  # that the configuration is told from
    samples: int  # completions per problem of a last evaluation, 1 for none
    sampled_problems: int

    @property
    def folder(self) -> Path:
        """Of the run, inside the study's."""
        value = "" if self.value is None else f"{self.value:g}-"
        return Path("runs") / self.task / self.arm / f"{value}seed-{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Of its last iteration, inside the study's folder."""
        return self.folder / CHECKPOINTS / f"checkpoint_iter_{self.config.train.num_iterations}"


def read_study(path: Path) -> Study:
    """The study of a file.

    Raises:
        ValueError: it is missing, or says something that cannot be used.
    """
    data, source = read_toml(path, "study"), str(path)
    known = ["name", "baseline", "seeds", "lost_below", "levels", "samples", "sampled_problems"]
    for key in data:
        check_known(source, key, [*known, "base", "sweep", "arms", "tasks"])
    base = data.get("base", {})
    config = config_of(_table(source, "base", base), source)
    last = config.train.num_iterations
    config = with_options(config, {**_SPARING, "run.checkpoint_frequency": max(last, 1)})
    arms = {arm: fields_of(x, f"{source}, arms.{arm}") for arm, x in _tables(source, "arms", data.get("arms")).items()}
    tasks = data.get("tasks", {"all": {}})
    changes = {task: fields_of(x, f"{source}, tasks.{task}") for task, x in _tables(source, "tasks", tasks).items()}
    baseline = data.get("baseline", next(iter(arms)))
    if baseline not in arms:
        raise ValueError(
            f"{source}: baseline is {shortened(baseline)}, which is no arm; the arms are {', '.join(arms)}"
        )
    study = Study(
        name=_text(source, "name", data.get("name", path.stem)),
        preset=base.get("preset", "tiny"),
        baseline=baseline,
        seeds=_whole_numbers(source, "seeds", data.get("seeds", [0, 1, 2, 3, 4])),
        configs={
            task: {arm: _config(config, own | fields, f"{source}, {task}, {arm}") for arm, fields in arms.items()}
            for task, own in changes.items()
        },
        sweep=_sweep(source, data["sweep"]) if "sweep" in data else None,
        lost_below=_share(source, "lost_below", data.get("lost_below", 0.5)),
        levels=tuple(_share(source, "levels", x) for x in _list(source, "levels", data.get("levels", [*_LEVELS]))),
        samples=_count(source, "samples", data.get("samples", 1)),
        sampled_problems=_count(source, "sampled_problems", data.get("sampled_problems", 100)),
    )
    _check_seeds(source, study)
    return study


def _config(base: Config, fields: Mapping[str, Any], source: str) -> Config:
    try:
        return with_options(base, fields)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _sweep(source: str, data: Any) -> Sweep:
    table = _table(source, "sweep", data)
    for key in table:
        check_known(source, f"sweep.{key}", ["sweep.field", "sweep.values", "sweep.seeds"])
    field = _text(source, "sweep.field", table.get("field", "train.learning_rate"))
    values = _list(source, "sweep.values", table.get("values"))
    section, _, key = field.partition(".")
    fields_of({section: {key: None}}, source)  # or it refuses the name
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{source}: sweep.values has {shortened(value)}, which is no number")
    return Sweep(field, tuple(values), _whole_numbers(source, "sweep.seeds", table.get("seeds")))


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
        raise ValueError(f"{source}: {name} is {shortened(data)}; write a list with one value or more")
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


def _share(source: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{source}: {name} is {shortened(value)}; write a share between 0 and 1")
    return float(value)


def _text(source: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{source}: {name} is {shortened(value)}; write a text")
    return value
