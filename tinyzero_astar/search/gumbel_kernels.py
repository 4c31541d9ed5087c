"""`gumbel.first_arrivals` as Triton kernels, for masses in float32 on a GPU.

A block of tokens is hashed, turned into waiting times and searched for the first ones, all in registers of one warp.
Nothing of the size of the vocabulary is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


def first_arrivals_by_kernels(state: Tensor, mass: Tensor, counter: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """See `gumbel.first_arrivals`. The masses of a row must lie side by side in memory."""
    rows, vocab = mass.shape
    blocks = triton.cdiv(vocab, _BLOCK)
    arrival = torch.empty(rows, blocks * num, dtype=torch.float64, device=mass.device)
    token = torch.empty(rows, blocks * num, dtype=torch.int64, device=mass.device)
    masses = mass.contiguous()
    _first_of_block[(rows, blocks)](
        state.contiguous(), masses, counter, vocab, arrival, token, blocks, NUM=num, BLOCK=_BLOCK, num_warps=1
    )
    first, place = arrival.topk(num, largest=False)
    return first, token.gather(1, place)


@triton.jit
def finalised(x):
    """The last part of splitmix64, see `gumbel.hash_number`. On unsigned numbers, whose shift is the logical one."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _first_of_block(
    state, mass, counter, vocab, arrival, token, blocks, NUM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    inside = tl.arange(0, BLOCK)
    each = block * BLOCK + inside
    is_token = each < vocab
    count = tl.load(counter + each, mask=is_token, other=0)
    bits = finalised((tl.load(state + row) + count).to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)
    uniform = (bits >> 12).to(tl.float64) * 2.0**-52 + (0.5 + 2.0**-53)
    share = tl.load(mass + row * vocab + each, mask=is_token, other=0.0).to(tl.float64)
    wait = tl.where(share > 0, -tl.log(uniform) / share, float("inf"))
    at = (row * blocks + block) * NUM
    for i in range(NUM):
        first = tl.min(wait, 0)
        place = tl.min(tl.where(wait == first, inside, BLOCK - 1), 0)
        tl.store(arrival + at + i, first)
        tl.store(token + at + i, tl.minimum(block * BLOCK + place, vocab - 1).to(tl.int64))
        wait = tl.where(inside == place, float("inf"), wait)
