"""Files that outlast a crash. They are replaced or appended to, never rewritten in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MAX_BYTES = 1 << 28  # of a file read as a whole, far more than 50,000 questions, the most of a set, should have
PARTIAL = ".partial"  # ends the name of what is not yet written to its end
METRICS, SAMPLES, TRACE = "metrics.jsonl", "samples.jsonl", "trace.jsonl"  # of a run, written by loggers/jsonl.py
TRACED_PROBLEMS, TRACED_NODES = 4, 5_000  # most of a line of trace.jsonl, or the problems of one search
PROCESSES = "processes.jsonl"  # and this one run/processes.py
RECORDS = (METRICS, SAMPLES, TRACE, PROCESSES)  # each with a line per iteration or several, read by run/records.py


class WriteFailedError(Exception):
    """A file of the run could not be written because of a full disk, a limit, or a folder that became read-only."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around code that writes `path`.

    Raises:
        WriteFailedError: says that it cannot be written, and why.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WriteFailedError(f"{path} cannot be written ({reason})") from None


def read_bytes(path: Path) -> bytes:
    """Content of a regular file of at most `MAX_BYTES`. Reading a pipe or a device could go on for ever.

    Raises:
        OSError: the file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is no regular file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise OSError(f"{path.name} has {size:,} bytes, more than the {MAX_BYTES:,} that are read")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The same as text.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path).decode("utf-8")


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk itself, so that they outlast a loss of power."""
    if os.name == "nt" and path.is_dir():  # cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Until the new file is whole, the old one stays."""
    beside = path.with_name(path.name + PARTIAL)
    beside.write_text(text, encoding="utf-8", newline="")
    sync(beside)
    os.replace(beside, path)
    sync(path.parent)


def append_jsonl(path: Path, *records: Mapping[str, Any]) -> None:
    """Write each record as a JSON object on a line of its own.

    It is on the disk when this returns, so a crash loses nothing.
    """
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)  # its name, too
