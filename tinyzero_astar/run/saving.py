"""The checkpoints of a run as it goes on, with what they keep, when an old one goes, and the card that each has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyzero_astar.data.text import continued
from tinyzero_astar.distributed import is_main
from tinyzero_astar.files import METRICS, WriteFailedError, replace_text
from tinyzero_astar.run.build import Session, optimizers
from tinyzero_astar.run.checkpoint import save_checkpoint
from tinyzero_astar.run.checkpoint_folders import remove_checkpoint, remove_partial
from tinyzero_astar.run.folder import CHECKPOINTS, numbered_checkpoints
from tinyzero_astar.run.model_card import CARD, model_card
from tinyzero_astar.run.records import read_jsonl
from tinyzero_astar.run.writing import write_for_all

_ACCURACY = "eval/greedy_accuracy"


def checkpoint_of(session: Session, iteration: int) -> Path:
    """Where the checkpoint after an iteration lies."""
    return session.folder / CHECKPOINTS / f"checkpoint_iter_{iteration}"


def records_of(session: Session) -> list[dict[str, Any]]:
    """What is recorded of the run. Nothing where somebody damaged that, and on ranks that report to nobody."""
    with suppress(ValueError):
        return read_jsonl(session.folder / METRICS) if is_main() else []
    return []


def state_of(session: Session, iteration: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps besides tensors. `record` is the iteration's."""
    state = {
        "iteration": iteration,
        "num_updates": session.updater.num_updates,
        "config": dataclasses.asdict(session.config),
        "history": session.history,
        "searched": session.searched,
        "record": {k: v for k, v in record.items() if not k.startswith("time/")},  # equal runs, equal checkpoints
    }
    if session.reference is not None:
        state["reference"] = {"digest": session.reference.digest, "values": session.reference.values}
    return state


def save(session: Session, iteration: int, record: Mapping[str, Any]) -> None:
    """Save a checkpoint. `record` is the iteration's, still without its evaluation.

    Raises:
        WriteFailedError: it could not be written, on rank 0. Every rank raises it.
    """
    folder, state = checkpoint_of(session, iteration), state_of(session, iteration, record)
    try:
        own = optimizers(session.updater)
        write_for_all(folder, lambda: save_checkpoint(folder, session.policy, session.tokenizer, own, state))
    except WriteFailedError:
        if is_main():
            with suppress(OSError):
                remove_partial(session.folder)  # it may have filled the disk
        raise
    write_card(session, iteration)


def write_card(session: Session, iteration: int) -> None:
    """The model card of a checkpoint, with what is known by now. Nothing where there is no checkpoint.

    Raises:
        WriteFailedError: it could not be written, on rank 0. Every rank raises it.
    """
    folder, prompt = checkpoint_of(session, iteration), continued(session.tokenizer, session.held_out[0].prompt)

    def write() -> None:
        if is_main() and folder.exists():
            replace_text(folder / CARD, model_card(session.config, iteration, records_of(session), prompt))

    write_for_all(folder / CARD, write)


def prune(session: Session) -> None:
    """Remove the checkpoints that `run.keep_last` and `run.keep_best` do not keep.

    Raises:
        WriteFailedError: one could not be removed, on rank 0. Every rank raises it.
    """
    settings = session.config.run

    def remove() -> None:
        there = numbered_checkpoints(session.folder) if is_main() else {}
        for number in superfluous(there, records_of(session), settings.keep_last, settings.keep_best):
            remove_checkpoint(there[number])

    write_for_all(session.folder / CHECKPOINTS, remove)


def superfluous(
    there: Iterable[int], records: Iterable[Mapping[str, Any]], keep_last: int, keep_best: int
) -> list[int]:
    """Checkpoints that are neither among the newest nor among the best.

    Args:
        there: iterations of the checkpoints that there are.
        records: of the run. One that was evaluated says how good the checkpoint after its iteration is.
        keep_last: how many of the newest are kept. 0 keeps all.
        keep_best: how many with the highest held-out greedy accuracy are kept too. Of equals the newer.
    """
    newest_first = sorted(there, reverse=True)
    if keep_last == 0:
        return []
    accuracy = {r["iteration"]: r[_ACCURACY] for r in records if r.get(_ACCURACY) is not None}
    evaluated = [number for number in newest_first if number in accuracy]
    best = sorted(evaluated, key=lambda number: accuracy[number], reverse=True)[:keep_best]  # stable
    return sorted(set(newest_first[keep_last:]) - set(best))
