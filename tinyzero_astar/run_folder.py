"""Where a run writes: `runs/<preset>-<NNN>/` with config.json, metrics.jsonl, samples.jsonl, checkpoints/."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRAINER_STATE = "trainer.json"  # what makes a folder a checkpoint
CONFIG, METRICS, SAMPLES, CHECKPOINTS = "config.json", "metrics.jsonl", "samples.jsonl", "checkpoints"


def new_run_folder(preset: str, output_dir: Path | None, root: Path = Path("runs")) -> Path:
    """A fresh folder for a run, created.

    Raises:
        ValueError: `output_dir` already holds a run, or something that is no folder.
    """
    if output_dir is not None:
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(f"--output-dir {output_dir} is a file; name a folder")
        if (output_dir / CONFIG).exists():
            raise ValueError(
                f"--output-dir {output_dir} already holds a run; name another folder, or continue it with"
                f" --resume {output_dir}"
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        return output_dir
    number = 1
    while True:  # mkdir decides races between runs that start together
        folder = root / f"{preset}-{number:03d}"
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        number += 1


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own; the file is closed again, so a crash loses nothing."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete records of a file; a line that a crash cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def keep_iterations(path: Path, last: int) -> None:
    """Drop records after iteration `last`: a resumed run writes them again."""
    kept = [r for r in read_jsonl(path) if r["iteration"] <= last]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")


def resolve_checkpoint(path: Path, preset: str, root: Path = Path("runs")) -> Path:
    """The checkpoint folder that `path` means.

    `NAME`, and `NAME.pt` for the folder `NAME`, are looked for as given and then inside the newest run of the
    preset, so that `checkpoints/checkpoint_iter_100.pt` works from the project's folder and from the run's.

    Raises:
        ValueError: there is no such checkpoint; says where it was looked for.
    """
    names = [path, path.with_suffix("")] if path.suffix == ".pt" else [path]
    runs = sorted(root.glob(f"{preset}-[0-9]*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0))
    candidates = [*names, *(runs[-1] / name for name in names if runs and not name.is_absolute())]
    for candidate in candidates:
        if (candidate / TRAINER_STATE).is_file():
            return candidate
    looked = ", ".join(str(c) for c in candidates)
    raise ValueError(f"--checkpoint {path}: no checkpoint folder found; looked for {looked}")


def latest_checkpoint(run: Path) -> Path:
    """The checkpoint of the highest iteration in a run.

    Raises:
        ValueError: the run has none.
    """
    found = {}
    for folder in (run / CHECKPOINTS).glob("checkpoint_iter_*"):
        if (number := folder.name.removeprefix("checkpoint_iter_")).isdigit():
            found[int(number)] = folder
    if not found:
        raise ValueError(f"--resume {run}: no checkpoint in {run / CHECKPOINTS}; name the folder of a run")
    return found[max(found)]
