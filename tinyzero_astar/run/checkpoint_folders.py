"""Which checkpoint a path means, which ones a run has, and which one it goes on from."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from tinyzero_astar.config import Config
from tinyzero_astar.files import PARTIAL, RECORDS
from tinyzero_astar.run.folder import CHECKPOINTS, CONFIG, iteration_of, numbered_checkpoints, numbered_runs
from tinyzero_astar.run.records import keep_iterations

TRAINER_STATE = "trainer.json"  # what makes a folder a checkpoint
_ASIDE = ".set_aside"  # and of a checkpoint that the run no longer goes on from


def resolve_checkpoint(path: Path, preset: str, root: Path = Path("runs")) -> Path:
    """The checkpoint folder that `path` means.

    `NAME`, and `NAME.pt` for the folder `NAME`, are looked for as given and then inside the newest run of the preset,
    so that `checkpoints/checkpoint_iter_100.pt` works from the project's folder and from the run's. The folder of a run
    means its newest checkpoint.

    Raises:
        ValueError: there is no such checkpoint. The message says where it was looked for.
    """
    names = [path, path.with_suffix("")] if path.suffix == ".pt" else [path]
    runs = numbered_runs(root, preset)
    is_of_a_run = not path.is_absolute() and not path.is_relative_to(root)  # may be
    candidates = [*names, *(runs[max(runs)] / name for name in names if runs and is_of_a_run)]
    for candidate in candidates:
        if os.path.isfile(candidate / TRAINER_STATE):  # never raises, whatever the name
            return candidate
        if os.path.isdir(candidate / CHECKPOINTS):
            return latest_checkpoint(candidate)
    looked = ", ".join(str(c) for c in candidates)
    raise ValueError(f"checkpoint {path}: no checkpoint folder found; looked for {looked}")


def checkpoint_at(name: str) -> Path | None:
    """The checkpoint that a folder is, or the newest of the run that it is. None for all else, such as a base model."""
    folder = Path(os.path.expanduser(name))  # as for the folder of a model
    if os.path.isfile(folder / TRAINER_STATE):
        return folder
    return latest_checkpoint(folder) if numbered_checkpoints(folder) else None


def model_of_run(config: Config) -> Config:
    """The configuration with the newest checkpoint as its model, where the folder of a run is named as that."""
    found = checkpoint_at(config.model.model_name)
    return config if found is None else replace(config, model=replace(config.model, model_name=str(found)))


def latest_checkpoint(run: Path) -> Path:
    """The checkpoint of the highest iteration in a run, which the user named as a checkpoint.

    Raises:
        ValueError: the run has none.
    """
    found = numbered_checkpoints(run)
    if not found:
        raise _no_checkpoint("checkpoint", run)
    return found[max(found)]


def _no_checkpoint(option: str, run: Path) -> ValueError:
    if not os.path.exists(run):  # never raises, whatever the name
        return ValueError(f"{option} {run}: there is no such folder; name the folder of a run")
    return ValueError(f"{option} {run}: no checkpoint in {run / CHECKPOINTS}; name the folder of a run")


def run_and_checkpoints(resume: Path) -> tuple[Path, list[Path]]:
    """The run that `--resume` means and the checkpoints that it may go on from, newest first.

    `resume` names a run, which may have none yet, or one of its checkpoints, which is then the only one.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    if iteration_of(resume) is not None and resume.parent.name == CHECKPOINTS:
        run = resume.parent.parent
        found = numbered_checkpoints(run)
        if resume not in found.values():
            names = ", ".join(found[number].name for number in sorted(found)) or "none"
            raise ValueError(f"--resume {resume}: no such checkpoint; {run / CHECKPOINTS} has: {names}")
        return run, [resume]
    found = numbered_checkpoints(resume)
    if not found and not os.path.exists(resume / CONFIG):
        raise _no_checkpoint("--resume", resume)
    return resume, [found[number] for number in sorted(found, reverse=True)]


def go_back_to(run: Path, iteration: int) -> list[Path]:
    """Make `iteration` the newest of a run. Newer checkpoints are set aside, newer records dropped.

    Checkpoints come first, so that a crash in between leaves none that is newer than the records.

    Returns:
        The new names of the checkpoints that were set aside.
    """
    remove_partial(run)
    newer = [folder for number, folder in sorted(numbered_checkpoints(run).items()) if number > iteration]
    aside = [_set_aside(folder) for folder in newer]
    for name in RECORDS:
        keep_iterations(run / name, iteration)
    return aside


def start_over(run: Path) -> None:
    """Leave nothing of a run without checkpoints but its configuration."""
    remove_partial(run)
    for name in RECORDS:
        (run / name).unlink(missing_ok=True)


def remove_partial(run: Path) -> None:
    """Remove what an interrupted write left behind."""
    patterns = (f"{CHECKPOINTS}/*/*{PARTIAL}", f"{CHECKPOINTS}/*{PARTIAL}", f"*{PARTIAL}")
    for path in [path for pattern in patterns for path in run.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint. It loses its name before it loses its first file, so what has the name is always whole."""
    shutil.rmtree(folder.replace(folder.with_name(f"{folder.name}.removed{PARTIAL}")))


def _set_aside(folder: Path) -> Path:
    new = folder.with_name(folder.name + _ASIDE)
    if new.exists():
        shutil.rmtree(new)
    return folder.replace(new)
