"""Memory that stays while a run lasts, what is put together for a while, and the bytes of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

from tinyzero_astar.resources.workload import Shapes, Work, trainable_parameters, value_parameters

FLOAT = 4  # bytes

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
    return parts


def _copy(shapes: Shapes, work: Work) -> int:
    """Bytes of all weights in the dtype of forwards, and of a value model."""
    return shapes.num_parameters * work.dtype_bytes + value_parameters(shapes, work.value_hidden_size) * FLOAT


def kv_bytes(shapes: Shapes, work: Work, num_slots: int) -> int:
    """Bytes of the slot cache, which has one column more than the longest sequence."""
    return num_slots * (work.length + 1) * shapes.num_layers * 2 * shapes.kv_size * work.dtype_bytes


def trainer_file_bytes(shapes: Shapes, work: Work) -> int:
    """Bytes of trainer.safetensors, with optimizer state, value model, and with adapters what merging loses."""
    own = trainable_parameters(shapes, work.lora_rank)
    state = own * (3 if work.dtype_bytes < FLOAT else 2) * FLOAT
    state += value_parameters(shapes, work.value_hidden_size) * 3 * FLOAT
    if work.lora_rank:
        state += (own + shapes.num_layers * shapes.linear_parameters) * work.dtype_bytes
    return state


def checkpoint_bytes(shapes: Shapes, work: Work) -> int:
    """Bytes on disk of model.safetensors, with adapters merged, and trainer.safetensors."""
    return shapes.num_parameters * work.dtype_bytes + trainer_file_bytes(shapes, work)


def checkpoint_copies(shapes: Shapes, work: Work) -> int:
    """Host memory while a checkpoint is written, for what goes to trainer.safetensors and for weights put together."""
    size = trainer_file_bytes(shapes, work)
    if work.lora_rank:
        size += shapes.num_layers * shapes.linear_parameters * work.dtype_bytes
    return size + (shapes.num_parameters * (FLOAT + work.dtype_bytes) if work.is_sharded else 0)


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
