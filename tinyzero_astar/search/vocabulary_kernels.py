"""`vocabulary.best_child` as Triton kernels, for logits in float32 on a GPU.

A vocabulary is split into blocks of 4096 tokens.

1. Every block's largest logit, and its sum of exp(logit - largest).
2. With a guide, every block's sum of exp f at full strength.
3. With a cap, the same at tau. Blocks of rows that keep their strength are not read again.
4. Per row, a block is drawn by the sums of the blocks, and a token in it by the running sum of the block.

The masses of the other children of a few rows are one pass of their own.

A block is summed in float32, by halves. Sums over blocks and running sums are float64.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyzero_astar.search.best_child import BestChild, Guide
from tinyzero_astar.search.heuristic import LEAST_LOGP

_BLOCK = 4096
_NUM_WARPS = 8


def best_child_by_kernels(logits: Tensor, uniform: Tensor, guide: Guide | None) -> BestChild:
    """See `vocabulary.best_child`.

    Raises:
        ValueError: the tokens of a row do not lie side by side in memory.
    """
    num, vocab = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the kernels read logits that lie side by side in memory, row by row")
    blocks = triton.cdiv(vocab, _BLOCK)
    grid = (num, blocks)
    sizes = {"BLOCK": _BLOCK, "num_warps": _NUM_WARPS}
    width = max(triton.next_power_of_2(blocks), 32)
    text = (logits, logits.stride(0), vocab)
    largest, total = logits.new_empty(2, num, blocks)
    policy = (largest, total, blocks)
    _policy_sums[grid](*text, *policy, **sizes)

    guided: tuple[Tensor | int | None, ...] = (None, 0, None, None, None, None)
    sums, tau, strength = None, logits.new_zeros(num), None
    if guide is not None:
        child = guide.child.features @ guide.child.up.T
        rows = (guide.child.offset, guide.child.slope, guide.tilt.sign, guide.tilt.gain)
        guided = (child, child.stride(0), *(x.contiguous() for x in rows))
        strength = tau = guide.strength.contiguous()
        sums = torch.empty_like(largest)
        _twisted_sums[grid](*text, *policy, *guided, strength, sums, WIDTH=width, LEAST=LEAST_LOGP, **sizes)
        if guide.cap is not None:
            first, sums, tau = sums, torch.empty_like(sums), torch.empty_like(strength)
            budget = (guide.log_weight.contiguous(), first, tau)
            _held_back_sums[grid](
                *text, *policy, *guided, strength, sums, *budget,
                LIMIT=math.log(guide.cap), WIDTH=width, LEAST=LEAST_LOGP, **sizes,
            )  # fmt: skip

    token = torch.empty(num, dtype=torch.int64, device=logits.device)
    logs = torch.empty(5, num, dtype=torch.float64, device=logits.device)
    marks = torch.empty(2, num, dtype=torch.bool, device=logits.device)
    _draw[(num,)](
        *text, *policy, *guided, tau, sums, strength, uniform.contiguous(), token, logs, marks, num,
        IS_GUIDED=guide is not None, WIDTH=width, LEAST=LEAST_LOGP, **sizes,
    )  # fmt: skip
    logp, logq, log_rest, log_total, log_norm = logs
    is_held_back, is_finite = marks
    return BestChild(token, logp, logq, log_rest, log_total, log_norm, tau, is_held_back, is_finite)


def masses_by_kernel(logits: Tensor, best: BestChild, guide: Guide | None, rows: Tensor) -> Tensor:
    """See `vocabulary.masses`."""
    shape = num, vocab = len(rows), logits.shape[1]
    guided: tuple[Tensor | int | None, ...] = (None, 0, None, None, None, None)
    if guide is not None:
        child = guide.child.features[rows] @ guide.child.up.T
        scalars = (guide.child.offset, guide.child.slope, guide.tilt.sign, guide.tilt.gain)
        guided = (child, child.stride(0), *(x.contiguous() for x in scalars))
    mass = logits.new_empty(shape)
    _masses[(num, triton.cdiv(vocab, _BLOCK))](
        logits, logits.stride(0), vocab, *guided, rows.contiguous(), best.log_total, best.token, best.tau, mass,
        IS_GUIDED=guide is not None, LEAST=LEAST_LOGP, BLOCK=_BLOCK, num_warps=_NUM_WARPS,
    )  # fmt: skip
    return mass


@triton.jit
def _block_of(x, stride, vocab, row, block, elsewhere, BLOCK: tl.constexpr):
    token = block * BLOCK + tl.arange(0, BLOCK)
    return tl.load(x + row * stride + token, mask=token < vocab, other=elsewhere).to(tl.float32)


@triton.jit
def _policy_sums(logits, stride, vocab, largest, total, blocks, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = _block_of(logits, stride, vocab, row, block, float("-inf"), BLOCK)
    most = tl.max(x, 0)
    base = tl.where(most == float("-inf"), 0.0, most)
    tl.store(largest + row * blocks + block, most)
    tl.store(total + row * blocks + block, tl.sum(tl.exp(x - base), 0))


@triton.jit
def _policy_of(largest, total, row, blocks, WIDTH: tl.constexpr):
    """The largest logit of a row, exp(logit - it) summed by block, [WIDTH] float64, and the log of the whole sum."""
    block = tl.arange(0, WIDTH)
    most = tl.load(largest + row * blocks + block, mask=block < blocks, other=float("-inf"))
    sums = tl.load(total + row * blocks + block, mask=block < blocks, other=0.0)
    top = tl.max(most, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    mass = sums.to(tl.float64) * tl.exp(most - top).to(tl.float64)
    return top, mass, tl.log(tl.sum(mass, 0))


@triton.jit
def _masses_of(sums, row, blocks, WIDTH: tl.constexpr):
    """Sums of exp f by block, [WIDTH] float64, and the log of the whole sum."""
    block = tl.arange(0, WIDTH)
    mass = tl.load(sums + row * blocks + block, mask=block < blocks, other=0.0).to(tl.float64)
    return mass, tl.log(tl.sum(mass, 0))


@triton.jit
def _tilt_of(logp, child, offset, slope, sign, gain, LEAST: tl.constexpr):
    """exp(h) above its floor. 1 is added with one rounding, which is no more than those of logp."""
    value = child + offset + slope * tl.maximum(logp, LEAST)
    return 1.0 + tl.sigmoid(sign * value) * gain


@triton.jit
def _block_sum(
    logits, stride, vocab, child, child_stride, offset, slope, sign, gain, row, block, top, log_sum, tau,
    BLOCK: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Sum of exp f in a block. At full strength without logarithms, which would take longer than the memory does."""
    logp = _block_of(logits, stride, vocab, row, block, float("-inf"), BLOCK) - top - log_sum.to(tl.float32)
    values = _block_of(child, child_stride, vocab, row, block, 0.0, BLOCK)
    tilt = _tilt_of(
        logp, values, tl.load(offset + row), tl.load(slope + row), tl.load(sign + row), tl.load(gain + row), LEAST
    )
    mass = tl.exp(logp) * tilt if tau == 1.0 else tl.exp(logp + tau * tl.log(tilt))
    return tl.sum(mass, 0)


@triton.jit
def _twisted_sums(
    logits, stride, vocab, largest, total, blocks, child, child_stride, offset, slope, sign, gain, strength, sums,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    top, _, log_sum = _policy_of(largest, total, row, blocks, WIDTH)
    mass = _block_sum(
        logits, stride, vocab, child, child_stride, offset, slope, sign, gain, row, block, top, log_sum,
        tl.load(strength + row), BLOCK, LEAST,
    )  # fmt: skip
    tl.store(sums + row * blocks + block, mass)


@triton.jit
def _held_back_sums(
    logits, stride, vocab, largest, total, blocks, child, child_stride, offset, slope, sign, gain, strength, sums,
    log_weight, first, tau,
    LIMIT: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    _, log_norm = _masses_of(first, row, blocks, WIDTH)
    full = tl.load(strength + row)
    weight = tl.load(log_weight + row).to(tl.float64)
    share = tl.minimum(tl.maximum((LIMIT - weight) / tl.maximum(log_norm, 1e-30), 0.0), 1.0).to(tl.float32)
    used = tl.where(weight + log_norm > LIMIT, full * share, full)
    if used < full:
        top, _, log_sum = _policy_of(largest, total, row, blocks, WIDTH)
        mass = _block_sum(
            logits, stride, vocab, child, child_stride, offset, slope, sign, gain, row, block, top, log_sum, used,
            BLOCK, LEAST,
        )  # fmt: skip
        tl.store(sums + row * blocks + block, mass)
    else:
        tl.store(sums + row * blocks + block, tl.load(first + row * blocks + block))
    if block == 0:
        tl.store(tau + row, used)


@triton.jit
def _reached(mass, share, index):
    """The first index where the running sum reaches a share of the whole, among those with mass, and that sum.

    Sums in parallel may grow by a rounding where there is no mass. Without any such index it is the last with mass.
    """
    running = tl.cumsum(mass, 0)
    goal = share * tl.max(running, 0)
    last = tl.max(tl.where(mass > 0, index, 0), 0)
    return tl.min(tl.where((running >= goal) & (mass > 0), index, last), 0), goal


@triton.jit
def _draw(
    logits, stride, vocab, largest, total, blocks, child, child_stride, offset, slope, sign, gain, tau, sums, strength,
    uniform, token, logs, marks, num,
    IS_GUIDED: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top, mass, log_sum = _policy_of(largest, total, row, blocks, WIDTH)
    log_whole = log_sum
    if IS_GUIDED:
        mass, log_whole = _masses_of(sums, row, blocks, WIDTH)
    each = tl.arange(0, WIDTH)
    block, goal = _reached(mass, tl.load(uniform + row), each)
    others = tl.sum(tl.where(each != block, mass, 0.0), 0)
    before = tl.sum(tl.where(each < block, mass, 0.0), 0)
    share = (goal - before) / tl.sum(tl.where(each == block, mass, 0.0), 0)

    x = _block_of(logits, stride, vocab, row, block, float("-inf"), BLOCK)
    f, rise, used = x - top, tl.zeros([BLOCK], tl.float32), 0.0
    if IS_GUIDED:
        used = tl.load(tau + row)
        logp = x - top - log_sum.to(tl.float32)
        values = _block_of(child, child_stride, vocab, row, block, 0.0, BLOCK)
        rise = tl.log(
            _tilt_of(
                logp,
                values,
                tl.load(offset + row),
                tl.load(slope + row),
                tl.load(sign + row),
                tl.load(gain + row),
                LEAST,
            )
        )
        f = logp + used * rise
    within = tl.exp(f).to(tl.float64)
    inside = tl.arange(0, BLOCK)
    best, _ = _reached(within, tl.minimum(tl.maximum(share, 0.0), 1.0), inside)
    others += tl.sum(tl.where(inside != best, within, 0.0), 0)

    log_total = top.to(tl.float64) + log_sum
    logp_best = tl.sum(tl.where(inside == best, x, 0.0), 0).to(tl.float64) - log_total
    log_norm = log_whole - (0.0 if IS_GUIDED else log_sum)
    rise_best = tl.sum(tl.where(inside == best, rise, 0.0), 0).to(tl.float64)
    tl.store(token + row, (block * BLOCK + best).to(tl.int64))
    tl.store(logs + row, logp_best)
    tl.store(logs + num + row, logp_best + used * rise_best - log_norm)
    tl.store(logs + 2 * num + row, tl.log(others) - log_whole)
    tl.store(logs + 3 * num + row, log_total)
    tl.store(logs + 4 * num + row, log_norm)
    is_held_back = False
    if IS_GUIDED:
        is_held_back = used < tl.load(strength + row)
    tl.store(marks + row, is_held_back)
    tl.store(marks + num + row, (tl.abs(log_total) < float("inf")) & (tl.abs(log_norm) < float("inf")))


@triton.jit
def _masses(
    logits, stride, vocab, child, child_stride, offset, slope, sign, gain, rows, log_total, best, tau, mass,
    IS_GUIDED: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(rows + at)
    f = _block_of(logits, stride, vocab, row, block, float("-inf"), BLOCK) - tl.load(log_total + row).to(tl.float32)
    if IS_GUIDED:
        values = _block_of(child, child_stride, vocab, at, block, 0.0, BLOCK)
        tilt = _tilt_of(
            f, values, tl.load(offset + row), tl.load(slope + row), tl.load(sign + row), tl.load(gain + row), LEAST
        )
        f += tl.load(tau + row) * tl.log(tilt)
    token = block * BLOCK + tl.arange(0, BLOCK)
    other = tl.where(token == tl.load(best + row), 0.0, tl.exp(f))
    tl.store(mass + at * vocab + token, other, mask=token < vocab)
