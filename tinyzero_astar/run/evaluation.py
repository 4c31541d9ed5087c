"""An evaluation outside of training, with its table and a file of its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinyzero_astar.distributed import from_main, is_main
from tinyzero_astar.files import WriteFailedError, writing
from tinyzero_astar.run.build import Session
from tinyzero_astar.run.folder import new_run_folder
from tinyzero_astar.run.measure import finite, measure
from tinyzero_astar.terminal import FAILED


def evaluate_only(session: Session, folder: Path) -> int:
    """Print the evaluation's table and save it in `folder`, or in runs/ where that cannot be written to.

    Returns:
        The exit status: 1 if the results could be saved nowhere.
    """
    measured = measure(session, session.first_iteration)
    session.console.evaluation(session.first_iteration, measured.metrics, measured.tables)
    return from_main(_save(session, folder, finite(measured.metrics)) if is_main() else 0)


def _save(session: Session, folder: Path, metrics: Mapping[str, Any]) -> int:
    places: tuple[Callable[[], Path], ...] = (lambda: folder, lambda: new_run_folder("evaluation", None))
    for place in places:
        try:
            path = _free_name(place())
            with writing(path):
                path.write_text(json.dumps(metrics, indent=2) + "\n")
        except (ValueError, WriteFailedError) as error:
            session.console.warn(str(error))
        else:
            session.console.say(f"saved to {path}")
            return 0
    session.console.fail("the results above are saved nowhere")
    return FAILED


def _free_name(folder: Path) -> Path:
    """evaluation.json, evaluation-2.json, and so on, so that no earlier result is overwritten."""
    path, number = folder / "evaluation.json", 1
    while path.exists():
        number += 1
        path = folder / f"evaluation-{number}.json"
    return path
