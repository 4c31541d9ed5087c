"""Where a run writes: `runs/<preset>-<NNN>/` with config.json, metrics.jsonl, samples.jsonl, checkpoints/.

Files are replaced or appended to, never rewritten in place: a crash at any moment leaves what was there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tinyzero_astar.files import METRICS, PARTIAL, SAMPLES, replace_text

TRAINER_STATE = "trainer.json"  # what makes a folder a checkpoint
CONFIG, CHECKPOINTS = "config.json", "checkpoints"
_ASIDE = ".set_aside"  # and of a checkpoint that the run no longer goes on from
_CHECKPOINT = re.compile(r"checkpoint_iter_(0|[1-9][0-9]*)")


# ---------------------------------------------------------------------------------------------------- folders


@contextmanager
def fresh_run_folder(preset: str, output_dir: Path | None) -> Iterator[Path]:
    """`new_run_folder`, but if the block fails, what was made and is still empty is removed again."""
    wanted = output_dir or Path("runs")
    made = [folder for folder in (wanted, *wanted.parents) if not folder.exists()]
    folder = new_run_folder(preset, output_dir)
    made = [folder / CHECKPOINTS, *([folder] if output_dir is None else []), *made]
    try:
        yield folder
        made.clear()
    finally:
        for path in made:
            with suppress(OSError):  # not empty: another run has its folder there
                path.rmdir()


def new_run_folder(preset: str, output_dir: Path | None, root: Path = Path("runs")) -> Path:
    """A fresh folder for a run, created.

    Raises:
        ValueError: `output_dir` already holds a run or is no folder, or the folder cannot be made.
    """
    if output_dir is not None:
        _check_is_free(output_dir)
        return _made(output_dir)
    number = max(_numbered_runs(_made(root), preset), default=0)
    while True:  # mkdir decides races between runs that start together
        number += 1
        folder = root / f"{preset}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_be_made(folder, error) from None
        return folder


def _check_is_free(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output-dir {output_dir} is a file; name a folder")
    if (output_dir / CONFIG).exists():
        since = "" if _numbered_checkpoints(output_dir) else ", from iteration 0 as it has no checkpoint yet"
        raise ValueError(
            f"--output-dir {output_dir} already holds a run; name another folder, or continue it with"
            f" --resume {output_dir}{since}"
        )
    left = [name for name in (METRICS, SAMPLES) if (output_dir / name).exists()]
    if left or _numbered_checkpoints(output_dir):
        raise ValueError(
            f"--output-dir {output_dir} holds {left[0] if left else CHECKPOINTS} of a run without its {CONFIG};"
            " name another folder"
        )


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(folder, error) from None
    return folder


def _cannot_be_made(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"the folder {folder} cannot be made ({error.strerror}); name another with --output-dir, or start in a folder"
        " that you may write to"
    )


def prepare(run: Path, num_bytes: int = 4096) -> None:
    """Make the folder of checkpoints and try out that a run can write here, before any work.

    Args:
        run: its folder, which exists.
        num_bytes: of a file that must be allowed, such as a checkpoint's.

    Raises:
        ValueError: something cannot be written.
    """
    try:
        (run / CHECKPOINTS).mkdir(exist_ok=True)
        for folder in (run, run / CHECKPOINTS):
            _try_to_write(folder / f"probe{PARTIAL}", num_bytes)
    except OSError as error:
        raise ValueError(
            f"{run} cannot hold a run: no file of {num_bytes:,} bytes can be written there ({error.strerror}); use"
            " another folder, make room or raise the limit"
        ) from None


def _try_to_write(probe: Path, num_bytes: int) -> None:
    try:
        with probe.open("wb") as file:
            file.write(bytes(4096))
            file.truncate(num_bytes)
    finally:
        probe.unlink(missing_ok=True)


def _numbered_runs(root: Path, preset: str) -> dict[int, Path]:
    """The folders `<preset>-<NNN>` by their number; the newest has the highest."""
    pattern = re.compile(re.escape(preset) + r"-(\d+)", re.ASCII)
    found = ((pattern.fullmatch(path.name), path) for path in root.glob("*"))
    return {int(match[1]): path for match, path in found if match is not None}


# ---------------------------------------------------------------------------------------------------- records


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a file, none if there is no file; a last line that a crash cut short is left out.

    Raises:
        ValueError: a line is damaged, or no record.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; move it away")
    *lines, last = path.read_bytes().split(b"\n")  # splitlines() would split at U+2028 too
    records = [_record(path, number, line) for number, line in enumerate(lines, 1)]
    with suppress(ValueError):  # no newline at its end: complete but for that, or cut short
        records.append(_record(path, len(lines) + 1, last))
    return records


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    reason = "it is no JSON object with an iteration"
    try:
        record = json.loads(line)
        if isinstance(record, dict) and type(record.get("iteration")) is int:
            return record
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deeply
        reason = str(error)
    raise ValueError(f"{path}, line {number} is damaged ({reason}); restore the file, or move it away")


def keep_iterations(path: Path, last: int) -> None:
    """Drop records after iteration `last`, which a resumed run writes again; no file is left without a record.

    Raises:
        ValueError: a line is damaged, or no record.
    """
    kept = [r for r in read_jsonl(path) if r["iteration"] <= last]
    if kept:
        replace_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
    else:
        path.unlink(missing_ok=True)


def check_complete(run: Path, last: int) -> bool:
    """Check that the metrics hold the iterations up to `last` once each and in order; that of `last` may be missing.

    They may begin with any iteration, or after `last`: earlier records may have been moved away.

    Returns:
        Whether that of `last` is missing at the end of the others: a checkpoint is saved before its iteration is
        evaluated and the record written.

    Raises:
        ValueError: names the line where one is missing or comes twice, or that is damaged.
    """
    path = run / METRICS
    read_jsonl(run / SAMPLES)
    iterations = [r["iteration"] for r in read_jsonl(path)]
    if not path.exists():  # moved away
        return False
    first = iterations[0] if iterations else 0
    found = [i for i in iterations if i <= last]
    for index, expected in enumerate(range(first, max(last, first + len(found)))):
        if found[index : index + 1] != [expected]:
            there = f"iteration {found[index]}" if index < len(found) else "the end of the file"
            raise ValueError(
                f"{path}, line {index + 1}: {there} where iteration {expected} should be; restore the file, or move"
                " it away to go on without these records"
            )
    return first + len(found) == last


# ------------------------------------------------------------------------------------------------ checkpoints


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
            return latest_checkpoint(candidate)
    looked = ", ".join(str(c) for c in candidates)
    raise ValueError(f"--checkpoint {path}: no checkpoint folder found; looked for {looked}")


def latest_checkpoint(run: Path) -> Path:
    """The checkpoint of the highest iteration in a run, which the user named with --checkpoint.

    Raises:
        ValueError: the run has none.
    """
    found = _numbered_checkpoints(run)
    if not found:
        raise _no_checkpoint("--checkpoint", run)
    return found[max(found)]


def _no_checkpoint(option: str, run: Path) -> ValueError:
    return ValueError(f"{option} {run}: no checkpoint in {run / CHECKPOINTS}; name the folder of a run")


def iteration_of(checkpoint: Path) -> int | None:
    """The iteration that the folder's name says; None for another name."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return None if match is None else int(match[1])


def _numbered_checkpoints(run: Path) -> dict[int, Path]:
    found = ((iteration_of(folder), folder) for folder in (run / CHECKPOINTS).glob("checkpoint_iter_*"))
    return {number: folder for number, folder in found if number is not None}


def run_and_checkpoints(resume: Path) -> tuple[Path, list[Path]]:
    """The run that `--resume` means and the checkpoints that it may go on from, newest first.

    `resume` names a run, which may have none yet, or one of its checkpoints, which is then the only one.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    if iteration_of(resume) is not None and resume.parent.name == CHECKPOINTS:
        run = resume.parent.parent
        found = _numbered_checkpoints(run)
        if resume not in found.values():
            names = ", ".join(found[number].name for number in sorted(found)) or "none"
            raise ValueError(f"--resume {resume}: no such checkpoint; {run / CHECKPOINTS} has: {names}")
        return run, [resume]
    found = _numbered_checkpoints(resume)
    if not found and not (resume / CONFIG).exists():
        raise _no_checkpoint("--resume", resume)
    return resume, [found[number] for number in sorted(found, reverse=True)]


def go_back_to(run: Path, iteration: int) -> list[Path]:
    """Make `iteration` the newest of a run: newer checkpoints are set aside, newer records dropped.

    Checkpoints come first, so that a crash in between leaves none that is newer than the records.

    Returns:
        The new names of the checkpoints that were set aside.
    """
    remove_partial(run)
    newer = [folder for number, folder in sorted(_numbered_checkpoints(run).items()) if number > iteration]
    aside = [_set_aside(folder) for folder in newer]
    for name in (METRICS, SAMPLES):
        keep_iterations(run / name, iteration)
    return aside


def start_over(run: Path) -> None:
    """Leave nothing of a run without checkpoints but its configuration."""
    remove_partial(run)
    for name in (METRICS, SAMPLES):
        (run / name).unlink(missing_ok=True)


def remove_partial(run: Path) -> None:
    """Remove what an interrupted write left behind."""
    for path in [*run.glob(f"*{PARTIAL}"), *(run / CHECKPOINTS).glob(f"*{PARTIAL}")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _set_aside(folder: Path) -> Path:
    new = folder.with_name(folder.name + _ASIDE)
    if new.exists():
        shutil.rmtree(new)
    return folder.replace(new)
