"""The records of a run, metrics.jsonl and others, read, checked, and cut back to an iteration.

Files are replaced or appended to, never rewritten in place. A crash at any moment leaves what was there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyzero_astar.files import METRICS, RECORDS, replace_text
from tinyzero_astar.metrics.alarms import remembered


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a file, none if there is no file. A last line that a crash cut short is left out.

    Raises:
        ValueError: a line is damaged, or no record.
    """
    if not os.path.exists(path):
        return []
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; move it away")
    *lines, last = path.read_bytes().split(b"\n")  # splitlines() would split at U+2028 too
    records = [_record(path, number, line) for number, line in enumerate(lines, 1)]
    with suppress(ValueError):  # no newline at its end, so it is complete but for that, or cut short
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


def check_same_history(records: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]]) -> None:
    """Whether what a checkpoint remembers of each iteration is what the run recorded of it.

    Equal settings and seeds do not make two runs equal, since another machine, or another number of threads, rounds
    otherwise. A checkpoint of the other run would go unnoticed until here.

    Args:
        records: of the run. Those that are missing are not compared.
        history: of the checkpoint, from iteration 1 on.

    Raises:
        ValueError: names an iteration that differs.
    """
    for record in records:
        if 1 <= record["iteration"] <= len(history):
            known, found = history[record["iteration"] - 1], remembered(record)
            if any(found[name] != known[name] for name in found.keys() & known.keys()):
                raise ValueError(f"iteration {record['iteration']} has other metrics in {METRICS}")


def keep_iterations(path: Path, last: int) -> None:
    """Drop records after iteration `last`, which a resumed run writes again. No file is left without a record.

    Raises:
        ValueError: a line is damaged, or no record.
    """
    kept = [r for r in read_jsonl(path) if r["iteration"] <= last]
    if kept:
        replace_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
    else:
        path.unlink(missing_ok=True)


def check_complete(run: Path, last: int) -> bool:
    """Check that the metrics hold the iterations up to `last` once each and in order. That of `last` may be missing.

    They may begin with any iteration, or after `last`, since earlier records may have been moved away.

    Returns:
        Whether that of `last` is missing at the end of the others. A checkpoint is saved before its iteration is
        evaluated and the record written.

    Raises:
        ValueError: names the line where one is missing or comes twice, or that is damaged.
    """
    path = run / METRICS
    for name in RECORDS:
        read_jsonl(run / name)
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
