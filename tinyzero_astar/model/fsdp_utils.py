"""Weights split over processes by FSDP2, and put together again. docs/scaling.md tells what is sharded when."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tinyzero_astar.distributed import world_size

Sharding = Literal["full", "hybrid"]
_EXACT = MixedPrecisionPolicy()  # everything in the dtype of the parameters


def shard(
    root: nn.Module,
    parts: Iterable[nn.Module],
    kept: Iterable[nn.Module],
    *,
    dtype: torch.dtype,
    sharding: Sharding,
) -> None:
    """Split all parameters over the ranks. Each keeps 1/N of every tensor, and of its gradient and optimizer state.

    Parameters are expected in float32 where `dtype` is bfloat16, since the shards are the master weights. They are
    gathered, part by part, in `dtype`. Gradients are averaged in float32.

    Args:
        root: whose forward the training calls. What no part holds is gathered there, once per forward.
        parts: the decoder layers. They are gathered for their own forward and again for their backward, then freed.
        kept: gathered as they are at their first forward and kept until the backward is over.
        dtype: of weights and activations of root and parts.
        sharding: full is over all ranks, hybrid over those of one machine, with copies on every machine.
    """
    # our modules return views, and nothing changes them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = _mesh(next(root.parameters()).device.type, sharding)
    is_rounded = dtype.itemsize < torch.float32.itemsize
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if is_rounded else _EXACT
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    for module in kept:
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
    fully_shard(root, mesh=mesh, mp_policy=precision, reshard_after_forward=False)


def _mesh(device_type: str, sharding: Sharding) -> DeviceMesh:
    if sharding == "full":
        return init_device_mesh(device_type, (world_size(),))
    per_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    return init_device_mesh(
        device_type, (world_size() // per_machine, per_machine), mesh_dim_names=("replicate", "shard")
    )


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights, and forwards issue no collective. For work without gradients.

    Ranks may run different numbers of forwards. FSDP's hooks are taken off, so that a forward is the plain module's.
    """
    sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]
    hooks = [(m._forward_pre_hooks, m._forward_hooks) for m in sharded]
    for m in sharded:
        m.unshard()
        m._forward_pre_hooks, m._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for m, (before, after) in zip(sharded, hooks, strict=True):
            m._forward_pre_hooks, m._forward_hooks = before, after
            m.reshard()


def whole(x: Tensor) -> Tensor:
    """A tensor put together from its shards on every rank. Other tensors stay as they are. All ranks must call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def like(x: Tensor, full: Tensor) -> Tensor:
    """`full`, sharded as `x` is. Every rank cuts its own part, and nothing is sent."""
    if not isinstance(x, DTensor):
        return full
    full = full.to(x.device)
    return distribute_tensor(full, x.device_mesh, x.placements, src_data_rank=None)


def local(x: Tensor) -> Tensor:
    """What of a tensor lies here. All of it where it is not sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def num_local(x: Tensor) -> int:
    """Elements that this rank holds."""
    return local(x).numel()
