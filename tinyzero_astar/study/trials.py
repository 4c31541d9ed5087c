"""The runs of a study, as arms on tasks with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_astar.config import Config
from tinyzero_astar.config_json import with_options
from tinyzero_astar.run.folder import CHECKPOINTS


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
        value = "" if self.value is None else f"{name_of(self.value)}-"
        return Path("runs") / self.task / self.arm / f"{value}seed-{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Of its last iteration, inside the study's folder."""
        return self.folder / CHECKPOINTS / f"checkpoint_iter_{self.config.train.num_iterations}"


def name_of(value: float) -> str:
    """Of a swept value in the name of a folder."""
    return f"{value:g}"
