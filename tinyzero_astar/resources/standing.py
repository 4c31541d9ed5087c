"""Memory that stays while a run lasts, what is put together for a while, and the bytes of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

from tinyzero_astar.resources.workload import Shapes, Work, trainable_parameters, value_parameters

FLOAT = 4  # bytes
# Bytes that cuBLAS takes on a Hopper GPU for each stream and thread that multiplies. PyTorch allocates and keeps them.
WORKSPACE = 32 << 20

Memory = dict[str, int]  # bytes by part


def largest(held: Iterable[Memory]) -> Memory:
    """Of what is held at different times, what takes most, and among equals the earliest."""
    return max(held, key=lambda parts: sum(parts.values()))


def resident(shapes: Shapes, work: Work) -> Memory:
    """What lives from the first update to the end of the run."""
    own = trainable_parameters(shapes, work.lora_rank)
    adapters = own if work.lora_rank else 0
    is_rounded = work.dtype_bytes < FLOAT
    parts = {
        "weights": (shapes.num_parameters + adapters) * work.dtype_bytes,
        "master weights": own * FLOAT if is_rounded else 0,
        "Adam moments": own * 2 * FLOAT,
        "value model": value_parameters(shapes, work.value_hidden_size) * 3 * FLOAT,  # weights and moments
    }
    if work.has_copy:
        parts["reference"] = _copy(shapes, work)
    if work.is_sharded:
        if is_rounded:  # what is trained lies in the shards as master weights alone
            parts["weights"] -= own * work.dtype_bytes
        parts = {part: n // work.num_shards for part, n in parts.items()}
    if not work.is_host:  # for searches, for backwards, which have a thread of their own, and for recorded steps
        parts["workspaces"] = WORKSPACE * (3 if work.cuda_graphs else 2)
    return parts


def _copy(shapes: Shapes, work: Work) -> int:
    """Bytes of all weights in the dtype of forwards, and of a value model."""
    return shapes.num_parameters * work.dtype_bytes + value_parameters(shapes, work.value_hidden_size) * FLOAT


def kv_bytes(shapes: Shapes, work: Work, num_slots: int) -> int:
    """Bytes of the slot cache, which has one column more than the longest sequence."""
    return num_slots * (work.length + 1) * shapes.num_layers * 2 * shapes.kv_size * work.dtype_bytes


def _state_bytes(shapes: Shapes, work: Work) -> int:
    """Bytes of master weights and moments, and of the value model with its own."""
    slots = 3 if work.dtype_bytes < FLOAT else 2
    own = trainable_parameters(shapes, work.lora_rank)
    return (own * slots + value_parameters(shapes, work.value_hidden_size) * 3) * FLOAT


def _linear_bytes(shapes: Shapes, work: Work) -> int:
    """Bytes of the matrices of the decoder layers, which adapters are merged into."""
    return shapes.num_layers * shapes.linear_parameters * work.dtype_bytes if work.lora_rank else 0


def trainer_file_bytes(shapes: Shapes, work: Work) -> int:
    """Bytes of trainer.safetensors, with optimizer state, value model, and with adapters what merging loses."""
    adapters = trainable_parameters(shapes, work.lora_rank) * work.dtype_bytes if work.lora_rank else 0
    return _state_bytes(shapes, work) + adapters + _linear_bytes(shapes, work)


def checkpoint_bytes(shapes: Shapes, work: Work) -> int:
    """Bytes on disk of model.safetensors, with adapters merged, and trainer.safetensors."""
    return shapes.num_parameters * work.dtype_bytes + trainer_file_bytes(shapes, work)


def checkpoint_copies(shapes: Shapes, work: Work) -> int:
    """Bytes of the host's memory that rank 0 takes while it writes a checkpoint.

    What lies there already, as with one process on a CPU, is written from where it lies. Else all of it is copied, and
    from shards the trained weights come in float32 and are rounded then. Merging adapters makes new matrices.
    """
    size = _linear_bytes(shapes, work)
    if work.is_host and not work.is_sharded:
        return size
    own = trainable_parameters(shapes, work.lora_rank)
    frozen = shapes.num_parameters if work.lora_rank else 0
    size += _state_bytes(shapes, work) + (frozen + own) * work.dtype_bytes
    return size + (own * FLOAT if work.is_sharded and work.dtype_bytes < FLOAT else 0)


def loading(shapes: Shapes, work: Work) -> Memory:
    """All weights on every process, what is trained as master weights, before they are split."""
    own = trainable_parameters(shapes, work.lora_rank)
    is_rounded = work.dtype_bytes < FLOAT
    frozen = shapes.num_parameters if work.lora_rank else 0
    value = value_parameters(shapes, work.value_hidden_size) * FLOAT
    layer = shapes.layer_parameters * (work.dtype_bytes if work.lora_rank else FLOAT)
    return {
        "weights": (frozen + (0 if is_rounded else own)) * work.dtype_bytes,
        "master weights": own * FLOAT if is_rounded else 0,
        "value model": value,
        "reference": _copy(shapes, work) // work.num_shards if work.has_copy else 0,  # loaded and split before
        "temporary": max(layer, value) // work.num_shards,  # the first part's shard, while the whole is there
    }


def gathered(shapes: Shapes, work: Work) -> Memory:
    """All weights on every process, for work without gradients."""
    if not work.is_sharded:
        return {}
    return {"gathered weights": _copy(shapes, work)}
