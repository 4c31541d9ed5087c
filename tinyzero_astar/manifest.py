"""The list of a checkpoint's files, with the size and the SHA-256 of each, by which what was saved is known again.

It is written when all files are, and compared before anything is loaded. A file that is cut short, changed by a single
bit, missing, edited, taken from another checkpoint, or a link that leads elsewhere is named in one sentence.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from tinyzero_astar.files import PARTIAL, read_text

MANIFEST = "manifest.json"
# what comes to a checkpoint that has its name already, and what a crash while writing that leaves
_LATER = re.compile(rf"README\.md|evaluation(-\d+)?\.json|\..*|.*{re.escape(PARTIAL)}")


def write_manifest(folder: Path) -> None:
    """List all files that a folder holds now."""
    listed = {name: path for name, path in _files(folder).items() if name != MANIFEST}
    files = {name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in listed.items()}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> set[str]:
    """The names in the list of a folder, whose files are what was listed, without any other file.

    Model cards, evaluations and hidden files may come and go, since nothing is loaded from them.

    Raises:
        ValueError: names the first file that is not as it should be.
    """
    files = _read(folder)
    there = _files(folder)
    for name, path in there.items():
        if path.is_symlink():
            raise ValueError(f"{name} is a link, and what it leads to may change")
    for name, entry in files.items():  # sizes first, as they cost nothing
        _check_size(name, folder / name, entry["size"])
    for name, entry in files.items():
        _check_contents(name, folder / name, entry["sha256"])
    for name in there:
        if name not in files and name != MANIFEST and _LATER.fullmatch(name) is None:
            raise ValueError(f"{name} was not saved with it")
    return set(files)


def _files(folder: Path) -> dict[str, Path]:
    """All that is no folder, by name. A tokenizer may have a folder of its own."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in found}


def _check_size(name: str, path: Path, size: int) -> None:
    if not path.exists():
        raise ValueError(f"{name} is missing")
    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{name} is no regular file")
    if (found := path.stat().st_size) != size:
        raise ValueError(f"{name} is not what was saved: it has {found:,} bytes instead of {size:,}")


def _check_contents(name: str, path: Path, sha256: str) -> None:
    try:
        found = _sha256(path)
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from None
    if found != sha256:
        raise ValueError(f"{name} is not what was saved: its SHA-256 is another")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(read_text(folder / MANIFEST))
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing, so that its files cannot be checked") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from None
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise ValueError(f"{MANIFEST} is not as it was saved: it lacks a size or a SHA-256")
    return files


def _is_entry(name: str, entry: object) -> bool:
    """Whether a name stays in its folder, and its size and SHA-256 are known."""
    is_inside = not {"\\", "\0"}.intersection(name) and not {"", ".", ".."}.intersection(name.split("/"))
    kinds = {key: type(value) for key, value in entry.items()} if isinstance(entry, dict) else {}
    return is_inside and kinds == {"size": int, "sha256": str}
