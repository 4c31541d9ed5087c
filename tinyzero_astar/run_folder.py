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
        ValueError: `output_dir` already holds a run or is no folder, or the folder cannot be made.
    """
    if output_dir is not None:
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(f"--output-dir {output_dir} is a file; name a folder")
        if (output_dir / CONFIG).exists():
            raise ValueError(
                f"--output-dir {output_dir} already holds a run; name another folder, or continue it with"
                f" --resume {output_dir}"
            )
        return _made(output_dir)
    number = max(_numbered_runs(_made(root), preset), default=0)
    while True:  # mkdir decides races between runs that start together
        number += 1
        folder = root / f"{preset}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the folder {folder} cannot be made ({error.strerror}); name another with --output-dir"
        ) from None
    return folder


def _numbered_runs(root: Path, preset: str) -> dict[int, Path]:
    """The folders `<preset>-<NNN>` by their number; the newest has the highest."""
    pattern = re.compile(re.escape(preset) + r"-(\d+)", re.ASCII)
    found = ((pattern.fullmatch(path.name), path) for path in root.glob("*"))
    return {int(match[1]): path for match, path in found if match is not None}


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own; the file is closed again, so a crash loses nothing."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete records of a file; a line that a crash cut short is left out."""
    records = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []  # splitlines() would split at U+2028 too
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # no JSON, or cut in the middle of a character
            break
    return records


def keep_iterations(path: Path, last: int) -> None:
    """Drop records after iteration `last`: a resumed run writes them again."""
    kept = [r for r in read_jsonl(path) if r["iteration"] <= last]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")


def resolve_checkpoint(path: Path, preset: str, root: Path = Path("runs")) -> Path:
    """The checkpoint folder that `path` means.

    `NAME`, and `NAME.pt` for the folder `NAME`, are looked for as given and then inside the newest run of the
    preset, so that `checkpoints/checkpoint_iter_100.pt` works from the project's folder and from the run's. The
    folder of a run means its newest checkpoint.

    Raises:
        ValueError: there is no such checkpoint; says where it was looked for.
    """
    names = [path, path.with_suffix("")] if path.suffix == ".pt" else [path]
    runs = _numbered_runs(root, preset)
    is_of_a_run = not path.is_absolute() and not path.is_relative_to(root)  # may be
    candidates = [*names, *(runs[max(runs)] / name for name in names if runs and is_of_a_run)]
    for candidate in candidates:
        if (candidate / TRAINER_STATE).is_file():
            return candidate
        if (candidate / CHECKPOINTS).is_dir():
            return latest_checkpoint(candidate, "--checkpoint")
    looked = ", ".join(str(c) for c in candidates)
    raise ValueError(f"--checkpoint {path}: no checkpoint folder found; looked for {looked}")


def latest_checkpoint(run: Path, option: str = "--resume") -> Path:
    """The checkpoint of the highest iteration in a run, which the user named with `option`.

    Raises:
        ValueError: the run has none.
    """
    found = {}
    for folder in (run / CHECKPOINTS).glob("checkpoint_iter_*"):
        if (number := folder.name.removeprefix("checkpoint_iter_")).isdigit():
            found[int(number)] = folder
    if not found:
        raise ValueError(f"{option} {run}: no checkpoint in {run / CHECKPOINTS}; name the folder of a run")
    return found[max(found)]
