"""In which order training problems are seen. Pure functions of seed, iteration and two sizes, on indices.

The training set is consumed epoch by epoch, each in a fresh order. A batch may end one epoch and begin the next, yet no
index comes twice in an epoch or in a batch. Nothing is remembered from call to call, so that a resumed run goes on
exactly, and no batch has to look at all the epochs before it.
"""

from __future__ import annotations

import random


def batch_indices(seed: int, iteration: int, count: int, num_problems: int) -> list[int]:
    """The indices of an iteration's problems.

    Args:
        seed: of the run.
        iteration: 0 for the first.
        count: size of a batch, at least 1, the same in every iteration.
        num_problems: size of the training set. With `count` above it an index comes twice in a batch.
    """
    found: list[int] = []
    while len(found) < count:
        epoch, offset = divmod(iteration * count + len(found), num_problems)
        found += _epoch(seed, epoch, count, num_problems)[offset : offset + count - len(found)]
    return found


def _shuffled(seed: int, epoch: int, num_problems: int) -> list[int]:
    order = list(range(num_problems))
    random.Random(f"{seed} epoch {epoch}").shuffle(order)
    return order


def _epoch(seed: int, epoch: int, count: int, num_problems: int) -> list[int]:
    """The order of an epoch that is consumed in batches of `count`.

    The first batch may have begun with the last problems of the epoch before, which then move behind it. Places at the
    end stay as they are, or hold what `_carried` says, so that none has to look at all the epochs before.
    """
    order = _shuffled(seed, epoch, num_problems)
    if count >= num_problems:
        return order
    before = _carried(seed, epoch - 1, count, num_problems)
    last = set(order[-count:]) if 2 * count <= num_problems else _carried(seed, epoch, count, num_problems)
    return sorted(order, key=lambda index: 2 if index in last else index in before)  # stable


def _carried(seed: int, epoch: int, count: int, num_problems: int) -> set[int]:
    """The last problems of an epoch, those of the batch that the next epoch completes.

    With batches of more than half of the set, an epoch may hold no whole batch. All that is not in its first batch is
    then carried on, so the set must contain what the epoch before carried. It grows by num_problems - count each time.
    It consists of longer and longer ends of one shuffle, that of the last epoch that held a whole batch.
    """
    size = (epoch + 1) * num_problems % count
    if size == 0:
        return set()
    source = max(0, epoch - size // (num_problems - count))
    return set(_shuffled(seed, source, num_problems)[-size:])
