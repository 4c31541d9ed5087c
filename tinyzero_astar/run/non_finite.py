"""What is left of an iteration in which a number became infinite or NaN, for whoever looks for the reason."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyzero_astar.distributed import agree, is_main
from tinyzero_astar.files import PARTIAL, WriteFailedError, writing
from tinyzero_astar.interfaces import Batch, Problem
from tinyzero_astar.model.fsdp_utils import local
from tinyzero_astar.model.model import Policy
from tinyzero_astar.run.build import Session
from tinyzero_astar.run.checkpoint_folders import latest_checkpoint

TENSORS, DESCRIPTION = "batch.safetensors", "batch.json"


class NonFiniteError(FloatingPointError):
    """An update met a number that is not finite. Every rank raises it.

    Args:
        text: which number.
        batch: that was trained on.
        problems: of the batch.
    """

    def __init__(self, text: str, batch: Batch, problems: Sequence[Problem]) -> None:
        super().__init__(text)
        self.batch, self.problems = batch, problems


def check_weights(policy: Policy) -> None:
    """Refuse weights that are not finite, so that no checkpoint holds them.

    Raises:
        FloatingPointError: names the first such parameter, on whichever rank.
    """

    def check() -> None:
        named = {name: local(parameter) for name, parameter in policy.named_parameters()}
        is_finite = torch.stack([parameter.isfinite().all() for parameter in named.values()]).tolist()  # waits once
        for name, is_good in zip(named, is_finite, strict=True):
            if not is_good:
                raise FloatingPointError(f"the weights {name} are no longer finite after the optimizer step")

    agree(check)


def explained(session: Session, number: int, error: FloatingPointError) -> str:
    """The sentences that end a run in iteration `number`, after its batch was saved, if it came to one."""
    text = f"iteration {number}: {error}; the last checkpoint is untouched."
    if isinstance(error, NonFiniteError):
        folder = session.folder / f"non_finite_iter_{number}"
        try:
            if is_main():
                with writing(folder):
                    _save(folder, error)
            text += f" What was trained on is saved in {folder}."
        except WriteFailedError as failure:
            text += f" {failure}."
    where = ""
    with suppress(ValueError):
        where = f" from there with --model.model-name {latest_checkpoint(session.folder)},"
    rounding = " or with --model.dtype float32" if session.config.model.dtype == "bfloat16" else ""
    return (
        f"{text} --resume would come to the same. Start a new run,{where} with a lower --train.learning-rate or"
        f" --train.max-grad-norm{rounding}"
    )


def _save(folder: Path, error: NonFiniteError) -> None:
    """The batch as safetensors and JSON, replacing an older one of the same name."""
    batch, partial = error.batch, folder.with_name(folder.name + PARTIAL)
    tensors = {f.name: x for f in dataclasses.fields(batch) if isinstance(x := getattr(batch, f.name), Tensor)}
    for path in (folder, partial):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir()
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, partial / TENSORS)
    description = {
        "reason": str(error),
        "problems": [{"id": problem.id, "text": problem.text, "prompt": problem.prompt} for problem in error.problems],
        "prompt_tokens": batch.prompts,
    }
    (partial / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder)
