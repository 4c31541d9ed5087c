"""Several processes as one: the process group, sharding by FSDP2, and the few ways in which ranks talk to each other.

Without a process group everything here is the identity, so callers need no second path for one process. What is
sharded when, and which collective runs where, is told in docs/scaling.md.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")
Sharding = Literal["full", "hybrid"]
_EXACT = MixedPrecisionPolicy()  # everything in the dtype of the parameters


def set_up(device: torch.device, timeout_s: float) -> None:
    """Join the process group that torchrun's environment describes; gloo on CPUs, nccl too on GPUs.

    Args:
        device: of the models; a GPU becomes the one of this process's local rank.
        timeout_s: how long a collective waits for the slowest rank before it fails.

    Raises:
        ValueError: this machine has fewer GPUs than processes.
    """
    backend = "gloo"
    if device.type == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ValueError(
                f"--nproc_per_node is more than the {count} GPU{'s' if count > 1 else ''} of this machine: start one"
                " process per GPU, or add --model.device cpu"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # objects and single numbers travel by gloo and keep no GPU busy
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    sys.excepthook = functools.partial(_report_and_leave, timeout_s)  # after the group, which sets one of its own


def tear_down() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _report_and_leave(
    timeout_s: float, kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """Print a traceback under this rank's name and end the process at once; torchrun then ends the others.

    An orderly end of the interpreter could wait for collectives that the other ranks are still in.
    """
    name = f"rank {rank()} of {world_size()} on {socket.gethostname()}"
    lines = "".join(traceback.format_exception(kind, error, where))
    reason = "failed"
    if "timed out" in str(error).lower():
        reason = f"waited longer than run.collective_timeout_s {timeout_s:g} for another rank"
    print(f"error: {name} {reason}; the others will be ended\n{lines}", end="", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def is_distributed() -> bool:
    """Whether there is a process group, if only of one process."""
    return bool(dist.is_initialized())


def rank() -> int:
    """Of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Processes of the run."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def share_of(items: Sequence[T]) -> Sequence[T]:
    """This rank's contiguous part; the parts of all ranks, in their order, are all items."""
    count = len(items)
    return items[count * rank() // world_size() : count * (rank() + 1) // world_size()]


def gather(x: T) -> list[T]:
    """What every rank has, in their order; tensors in it must lie on the CPU."""
    if not is_distributed():
        return [x]
    found: list[T] = [x] * world_size()
    dist.all_gather_object(found, x)
    return found


def from_main(x: T) -> T:
    """What rank 0 has."""
    if not is_distributed():
        return x
    found = [x]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def agree(make: Callable[[], T]) -> T:
    """This rank's outcome of `make`, once it has succeeded on all.

    Raises:
        ValueError: raised on some rank; every rank raises it.
        FloatingPointError: as well.
    """
    outcome: list[T] = []
    failure: tuple[type[ValueError] | type[FloatingPointError], str] | None = None
    if not is_distributed():
        return make()
    try:
        outcome.append(make())
    except ValueError as error:
        failure = ValueError, str(error)
    except FloatingPointError as error:
        failure = FloatingPointError, str(error)
    failures = gather(failure)
    for number, found in enumerate(failures):
        if found is not None:
            kind, text = found
            raise kind(text if failures.count(found) == len(failures) else f"rank {number}: {text}")
    return outcome[0]


def sum_numbers(values: Sequence[float]) -> list[float]:
    """Each number summed over ranks, in float64."""
    if not is_distributed():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device="cpu")
    dist.all_reduce(total)
    summed: list[float] = total.tolist()
    return summed


def sum_tensors(*tensors: Tensor) -> None:
    """Sum tensors over ranks, in place."""
    if is_distributed():
        for x in tensors:
            dist.all_reduce(x)


def shard(
    root: nn.Module,
    parts: Iterable[nn.Module],
    kept: Iterable[nn.Module],
    *,
    dtype: torch.dtype,
    sharding: Sharding,
) -> None:
    """Split all parameters over the ranks; each keeps 1/N of every tensor, the gradients and optimizer state too.

    Parameters are expected in float32 where `dtype` is bfloat16: the shards are the master weights. They are gathered,
    part by part, in `dtype`; gradients are averaged in float32.

    Args:
        root: whose forward the training calls; what no part holds is gathered there, once per forward.
        parts: gathered for their own forward and again for their backward, then freed: the decoder layers.
        kept: gathered as they are at their first forward and kept until the backward is over.
        dtype: of weights and activations of root and parts.
        sharding: full: over all ranks; hybrid: over those of one machine, with copies on every machine.
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
    """Inside, every rank holds all weights, and forwards issue no collective; for work without gradients.

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
    """A tensor put together from its shards on every rank; others as they are. All ranks must call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def like(x: Tensor, full: Tensor) -> Tensor:
    """`full`, sharded as `x` is; every rank cuts its own part, nothing is sent."""
    if not isinstance(x, DTensor):
        return full
    full = full.to(x.device)
    return distribute_tensor(full, x.device_mesh, x.placements, src_data_rank=None)


def num_local(x: Tensor) -> int:
    """Elements that this rank holds."""
    return (x.to_local() if isinstance(x, DTensor) else x).numel()
