"""Where a run writes, `runs/<preset>-<NNN>/` with config.json, metrics.jsonl, samples.jsonl, checkpoints/."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyzero_astar.files import PARTIAL, RECORDS, sync
from tinyzero_astar.run.lock import cannot_hold

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
_MOST_TAKEN = 1 << 30  # bytes to try a quota with, since some file systems would write them all
_CHECKPOINT = re.compile(r"checkpoint_iter_(0|[1-9][0-9]*)")


@contextmanager
def fresh_run_folder(preset: str, output_dir: Path | None) -> Iterator[Path]:
    """`new_run_folder`, but if the block fails, what was made and is still empty is removed again."""
    wanted = output_dir or Path("runs")
    made = [folder for folder in (wanted, *wanted.parents) if not os.path.exists(folder)]
    try:
        folder = new_run_folder(preset, output_dir)
        made = [folder / CHECKPOINTS, *([folder] if output_dir is None else []), *made]
        yield folder
        made.clear()
    finally:
        for path in made:
            with suppress(OSError):  # not empty, since another run has its folder there
                path.rmdir()


def new_run_folder(preset: str, output_dir: Path | None, root: Path = Path("runs")) -> Path:
    """A fresh folder for a run, created.

    Raises:
        ValueError: `output_dir` already holds a run or is no folder, or the folder cannot be made.
    """
    if output_dir is not None:
        _check_is_free(output_dir)
        return _made(output_dir)
    number = max(numbered_runs(_made(root), preset), default=0)
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
    if os.path.exists(output_dir) and not output_dir.is_dir():
        raise ValueError(f"--output-dir {output_dir} is a file; name a folder")
    if os.path.exists(output_dir / CONFIG):
        since = "" if numbered_checkpoints(output_dir) else ", from iteration 0 as it has no checkpoint yet"
        raise ValueError(
            f"--output-dir {output_dir} already holds a run; name another folder, or continue it with"
            f" --resume {output_dir}{since}"
        )
    left = [name for name in RECORDS if os.path.exists(output_dir / name)]
    if left or numbered_checkpoints(output_dir):
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
        num_bytes: that must find room, such as a checkpoint's.

    Raises:
        ValueError: something cannot be written.
    """
    try:
        (run / CHECKPOINTS).mkdir(exist_ok=True)
        for folder in (run, run.parent):  # the names of the folders are on the disk itself
            sync(folder)
        for folder in (run, run / CHECKPOINTS):
            _try_to_write(folder, num_bytes)
    except OSError as error:
        raise cannot_hold(run, error, num_bytes) from None


def _try_to_write(folder: Path, num_bytes: int) -> None:
    """A limit on the size of files, a quota and a full disk show here, as far as they can be seen at once."""
    if shutil.disk_usage(folder).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    probes = [folder / f"probe-{number}{PARTIAL}" for number in (1, 2)]
    try:
        for probe in probes:  # the larger of a checkpoint's two files of tensors has at least half of its bytes
            with probe.open("wb") as file:
                file.write(bytes(4096))
                file.truncate(num_bytes // 2)
                _take_room(file.fileno(), num_bytes // 2)
    finally:
        for probe in probes:
            probe.unlink(missing_ok=True)


def _take_room(descriptor: int, num_bytes: int) -> None:
    """Of the disk, without writing, where system and file system can do that."""
    if num_bytes == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, min(num_bytes, _MOST_TAKEN))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def numbered_runs(root: Path, preset: str) -> dict[int, Path]:
    """The folders `<preset>-<NNN>` by their number. The newest has the highest."""
    pattern = re.compile(re.escape(preset) + r"-(\d+)", re.ASCII)
    found = ((pattern.fullmatch(path.name), path) for path in root.glob("*"))
    return {int(match[1]): path for match, path in found if match is not None}


def iteration_of(checkpoint: Path) -> int | None:
    """The iteration that the folder's name says. None for another name."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return None if match is None else int(match[1])


def numbered_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by their iteration."""
    if not os.path.isdir(run / CHECKPOINTS):  # never raises, whatever the name
        return {}
    found = ((iteration_of(folder), folder) for folder in (run / CHECKPOINTS).glob("checkpoint_iter_*"))
    return {number: folder for number, folder in found if number is not None}
