"""`beam.Beam.advance` as one Triton kernel, in place of some fifty that take longer to start than to run.

Only imported where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyzero_astar.search.gumbel import WHEN, WHICH
from tinyzero_astar.search.gumbel_kernels import finalised

_BLOCK = 512  # rows at a time
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_WHICH, _WHEN = tl.constexpr(WHICH), tl.constexpr(WHEN)


def advance(carried: Sequence[Tensor], choice: Sequence[Tensor], bits: Tensor, goes_on: Tensor) -> None:
    """See `Beam.advance`. Rows are few, so one program has them all, and a row's parent may be any other.

    Args:
        carried: `beam.CARRIED`, which are written.
        choice: `beam.Choice`.
        bits: `beam.TokenTable`.
        goes_on: `beam.TokenTable`.
    """
    num, device = choice[0].numel(), bits.device
    numbers = torch.empty(3, num, dtype=torch.float64, device=device)
    integers = torch.empty(2, num, dtype=torch.int64, device=device)
    _advance[(1,)](*choice, *carried, bits, goes_on, len(bits), numbers, integers, num, BLOCK=_BLOCK, num_warps=8)


@triton.jit(do_not_specialize=["num_tokens", "num"])
def _advance(
    parent, token, chosen_priority, logp, logq, priority, log_q, log_pi, last, least, hashes, is_open, origin, bits,
    goes_on, num_tokens, numbers, integers, num, BLOCK: tl.constexpr
):  # fmt: skip
    for start in range(0, num, BLOCK):  # what the parents have, before anything is written
        row = start + tl.arange(0, BLOCK)
        is_row = row < num
        own = tl.load(parent + row, mask=is_row, other=0)
        tl.store(numbers + row, tl.load(log_q + own, mask=is_row, other=0.0), mask=is_row)
        tl.store(numbers + num + row, tl.load(log_pi + own, mask=is_row, other=0.0), mask=is_row)
        tl.store(numbers + 2 * num + row, tl.load(least + own, mask=is_row, other=0.0), mask=is_row)
        tl.store(integers + row, tl.load(hashes + own, mask=is_row, other=0), mask=is_row)
        tl.store(integers + num + row, tl.load(origin + own, mask=is_row, other=0), mask=is_row)
    tl.debug_barrier()
    for start in range(0, num, BLOCK):
        row = start + tl.arange(0, BLOCK)
        is_row = row < num
        new = tl.load(token + row, mask=is_row, other=0)
        at = tl.where(new < 0, new + num_tokens, new)
        own_logp = tl.load(logp + row, mask=is_row, other=0.0)
        tl.store(priority + row, tl.load(chosen_priority + row, mask=is_row, other=0.0), mask=is_row)
        before = tl.load(numbers + row, mask=is_row, other=0.0)
        tl.store(log_q + row, before + tl.load(logq + row, mask=is_row, other=0.0), mask=is_row)
        tl.store(log_pi + row, tl.load(numbers + num + row, mask=is_row, other=0.0) + own_logp, mask=is_row)
        tl.store(last + row, own_logp, mask=is_row)
        lowest = tl.load(numbers + 2 * num + row, mask=is_row, other=0.0)
        tl.store(least + row, tl.minimum(lowest, own_logp), mask=is_row)
        tl.store(origin + row, tl.load(integers + num + row, mask=is_row, other=0), mask=is_row)
        tl.store(is_open + row, tl.load(goes_on + at, mask=is_row, other=0), mask=is_row)
        state = tl.load(integers + row, mask=is_row, other=0) ^ tl.load(bits + at, mask=is_row, other=0)
        tl.store(hashes + row, _hashed(state), mask=is_row)
        tl.store(hashes + num + row, _hashed(state ^ _WHICH), mask=is_row)
        tl.store(hashes + 2 * num + row, _hashed(state ^ _WHEN), mask=is_row)


@triton.jit
def _hashed(x):
    """See `gumbel.hash_number`."""
    return finalised(x.to(tl.uint64, bitcast=True) + _GOLDEN).to(tl.int64, bitcast=True)
