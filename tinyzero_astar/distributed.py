"""Several processes as one, with the process group and the few ways in which ranks talk to each other.

Without a process group everything here is the identity, so callers need no second path for one process. docs/scaling.md
says which collective runs where.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist

from tinyzero_astar.terminal import FailedError

T = TypeVar("T")
_TOLD = (ValueError, FloatingPointError, FailedError)  # what `agree` tells the other ranks of


def set_up(device: torch.device, timeout_s: float) -> None:
    """Join the process group that torchrun's environment describes, with gloo on CPUs, and nccl too on GPUs.

    Args:
        device: of the models. A GPU becomes the one of this process's local rank.
        timeout_s: how long a collective waits for the slowest rank before it fails.

    Raises:
        ValueError: this machine has fewer GPUs than processes, or they cannot work together.
    """
    if device.type == "mps":
        raise ValueError("--distributed is not supported on device mps: leave it out, or add --model.device cpu")
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
    """Print a traceback under this rank's name and end the process at once. torchrun then ends the others.

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
    """This rank's contiguous part. The parts of all ranks, in their order, are all items."""
    count = len(items)
    return items[count * rank() // world_size() : count * (rank() + 1) // world_size()]


def gather(x: T) -> list[T]:
    """What every rank has, in their order. Tensors in it must lie on the CPU."""
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
        ValueError: raised on some rank. Every rank raises it.
        FloatingPointError: as well.
        FailedError: as well.
    """
    outcome: list[T] = []
    failure: tuple[type[ValueError | FloatingPointError | FailedError], str] | None = None
    if not is_distributed():
        return make()
    try:
        outcome.append(make())
    except _TOLD as error:
        failure = next(kind for kind in _TOLD if isinstance(error, kind)), str(error)
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
