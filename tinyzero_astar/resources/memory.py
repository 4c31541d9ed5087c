"""Memory of a run by part and phase, predicted from shapes alone by arithmetic, without tensors and without a GPU.

The parts mirror what the code keeps alive. Where a number is not obvious, the comment names the tensors it counts.
Phases follow each other, so a run needs the largest of their sums. tests/test_memory.py compares every phase with the
live tensor bytes of real runs, and docs/scaling.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from tinyzero_astar.resources.search_memory import evaluation, reference_samples, search
from tinyzero_astar.resources.standing import Memory, checkpoint_copies, gathered, loading, resident
from tinyzero_astar.resources.update_memory import (
    divergence,
    gradients,
    optimizer_step,
    reference_scores,
    value_training,
)
from tinyzero_astar.resources.workload import Shapes, Work


def phases(shapes: Shapes, work: Work) -> dict[str, Memory]:
    """Bytes by part at the peak of each phase. The phases have the names of the docs."""
    found = {
        "search": resident(shapes, work) | gathered(shapes, work) | search(shapes, work),
        "evaluation": resident(shapes, work) | gathered(shapes, work) | evaluation(shapes, work),
        "reference": _reference(shapes, work),
        "divergence": divergence(shapes, work),
        "gradients": gradients(shapes, work),
        "optimizer step": optimizer_step(shapes, work),
        "value training": value_training(shapes, work),
    }
    if work.is_sharded:
        found = {"loading": loading(shapes, work)} | found
    if work.is_host:
        found["checkpoint"] = resident(shapes, work) | {"file copies": checkpoint_copies(shapes, work)}
    return {name: {part: n for part, n in parts.items() if n} for name, parts in found.items() if parts}


def _reference(shapes: Shapes, work: Work) -> Memory:
    """The first policy's samples, or its scores of the rollouts, whichever needs more."""
    if not work.num_reference_samples:
        return {}
    either = reference_samples(shapes, work), reference_scores(shapes, work)
    return resident(shapes, work) | gathered(shapes, work) | max(either, key=lambda parts: sum(parts.values()))


def peak(found: Mapping[str, Memory]) -> tuple[str, int]:
    """The phase that needs most, and its bytes."""
    name = max(found, key=lambda phase: sum(found[phase].values()))
    return name, sum(found[name].values())
