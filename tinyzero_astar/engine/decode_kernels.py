"""The functions of `engine.decode_operations` as one Triton kernel each. Only imported where Triton is installed.

Rows of a search have different lengths. Each program of `attend` reads the length of its own row from the GPU's memory,
so one recording serves every step, and a row costs what it holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyzero_astar.engine.decode_operations import HeadNorm, Rotation
from tinyzero_astar.engine.slot_cache import Visible

# Of the sizes tried on an H200, with 120 columns and the heads of Qwen2.5-1.5B, the fastest at 256 and at 1,024
# rows. Twice the warps take 1.14 and 1.10 times as long by themselves, and 1.02 times in whole searches of 256 rows.
_BLOCK_COLUMNS, _NUM_WARPS, _NUM_STAGES = 32, 2, 3
_BLOCK_ELEMENTS = 1024  # of one row, in a program of `silu_mul`
# A product with fewer tiles than multiprocessors leaves some idle, so its depth is cut. `add_rms_norm` adds them. On
# an H200 four parts of the product of [256, 8960] and [8960, 1536] take 0.75 of the time that cuBLAS takes for all.
_TILE, _STEP, _LEAST_DEPTH, _NUM_PROCESSORS = 128, 64, 2048, 132
_LOG2_E = tl.constexpr(1.4426950408889634)
_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """See `decode_operations.rms_norm`. Here `x` is [N, D] without gaps."""
    out = torch.empty_like(x)
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _rms_norm[(len(x),)](x, gain, out, width, eps, BLOCK=block, num_warps=4 if block <= 2048 else 8)
    return out


def attend(
    heads: Tensor, cells: Tensor, rotation: Rotation, norm: HeadNorm | None, seen: Visible, scale: float
) -> Tensor:
    """See `decode_operations.attend`. All but `cells` are without gaps, and L does not matter."""
    num_rows, num_keys, width = cells.shape[1], cells.shape[2], cells.shape[4]
    group = heads.shape[1] // (num_keys * width) - 2
    out = heads.new_empty(num_rows, group * num_keys * width)
    gains = (heads, heads) if norm is None else (norm.query, norm.key)  # pointers that are not read, or gains
    _attend[(num_rows, num_keys)](
        *(heads, out, cells, *rotation, *gains, seen.padding, seen.column),
        *cells.stride()[:3],
        seen.lead,
        0.0 if norm is None else norm.eps,
        scale,
        IS_NORMED=norm is not None,
        GROUP=group,
        WIDTH=width,
        BLOCK_GROUP=max(16, triton.next_power_of_2(group)),  # the least that a matrix unit takes
        BLOCK_WIDTH=max(16, triton.next_power_of_2(width)),
        BLOCK_COLUMNS=_BLOCK_COLUMNS,
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
    )
    return out


def products(x: Tensor, weight: Tensor) -> Tensor:
    """See `decode_operations.products`. Here they are float32."""
    num_parts = _num_parts(len(x), len(weight), x.shape[1])
    of_x = x.view(len(x), num_parts, -1).transpose(0, 1)
    of_weight = weight.view(len(weight), num_parts, -1).permute(1, 2, 0)
    return (
        torch.bmm(of_x, of_weight) if x.dtype == torch.float32 else torch.bmm(of_x, of_weight, out_dtype=torch.float32)
    )


def add_rms_norm(x: Tensor, parts: Tensor, gain: Tensor, eps: float) -> Tensor:
    """See `decode_operations.add_rms_norm`. Here all are without gaps."""
    out = torch.empty_like(x)
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    _add_rms_norm[(len(x),)](
        *(x, parts, gain, out, width, x.numel(), eps),
        NUM_PARTS=len(parts),
        BLOCK=block,
        num_warps=4 if block <= 2048 else 8,
    )
    return out


def silu_mul(x: Tensor) -> Tensor:
    """See `decode_operations.silu_mul`. Here `x` is without gaps."""
    num_rows, width = len(x), x.shape[1] // 2
    out = x.new_empty(num_rows, width)
    _silu_mul[(num_rows, triton.cdiv(width, _BLOCK_ELEMENTS))](x, out, width, BLOCK=_BLOCK_ELEMENTS)
    return out


def _num_parts(num_rows: int, num_out: int, depth: int) -> int:
    """How many parts of a product's depth fill the multiprocessors, each with one tile of one part's result."""
    num_tiles = triton.cdiv(num_rows, _TILE) * triton.cdiv(num_out, _TILE)
    most = min(_NUM_PROCESSORS // num_tiles, depth // _LEAST_DEPTH)
    return max([n for n in range(1, most + 1) if depth % (n * _STEP) == 0], default=1)


@triton.jit
def _rms_norm(x, gain, out, width, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * width
    i = tl.arange(0, BLOCK)
    wide = tl.load(x + start + i, mask=i < width, other=0.0).to(tl.float32)
    _store_normed(wide, gain, out + start, width, eps, i)


@triton.jit
def _add_rms_norm(x, parts, gain, out, width, part_stride, eps, NUM_PARTS: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * width
    i = tl.arange(0, BLOCK)
    is_in = i < width
    wide = tl.load(x + start + i, mask=is_in, other=0.0).to(tl.float32)
    for part in tl.static_range(NUM_PARTS):
        wide += tl.load(parts + part * part_stride + start + i, mask=is_in, other=0.0).to(tl.float32)
    total = wide.to(x.dtype.element_ty)
    tl.store(x + start + i, total, mask=is_in)
    _store_normed(total.to(tl.float32), gain, out + start, width, eps, i)


@triton.jit
def _store_normed(wide, gain, out, width, eps, i):
    """Write one row's norm, of float32 that are 0 beyond `width`."""
    is_in = i < width
    unit = wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    dtype = out.dtype.element_ty
    of_gain = tl.load(gain + i, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + i, (unit.to(dtype).to(tl.float32) * of_gain).to(dtype), mask=is_in)


@triton.jit
def _silu_mul(x, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = i < width
    dtype = out.dtype.element_ty
    gate = tl.load(x + row * 2 * width + i, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + i, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + row * width + i, ((gate * tl.sigmoid(gate)).to(dtype).to(tl.float32) * up).to(dtype), mask=is_in)


@triton.jit
def _dot(a, b):
    """a @ b in float32 of two blocks in one dtype."""
    if _IS_INTERPRETED:  # which holds bfloat16 as integers, and would multiply those
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _heads(start, i, is_read, cos, sin, gain, eps, IS_NORMED: tl.constexpr, WIDTH: tl.constexpr):
    """Heads at `start` [H, 1], elements i [1, W], normed and turned by angles [1, W]. `sin` has its sign."""
    pair = tl.where(i < WIDTH // 2, i + WIDTH // 2, i - WIDTH // 2)  # what each is turned with
    x, paired = tl.load(start + i, mask=is_read, other=0.0), tl.load(start + pair, mask=is_read, other=0.0)
    dtype = x.dtype
    x, paired = x.to(tl.float32), paired.to(tl.float32)
    if IS_NORMED:
        scale = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / WIDTH + eps)
        own, other = tl.load(gain + i, mask=i < WIDTH, other=0.0), tl.load(gain + pair, mask=i < WIDTH, other=0.0)
        x = ((x * scale).to(dtype).to(tl.float32) * own.to(tl.float32)).to(dtype).to(tl.float32)
        paired = ((paired * scale).to(dtype).to(tl.float32) * other.to(tl.float32)).to(dtype).to(tl.float32)
    return (x * cos + paired * sin).to(dtype)


@triton.jit(do_not_specialize=["lead"])
def _attend(
    heads,
    out,
    cells,
    cos,
    sin,
    query_gain,
    key_gain,
    padding,
    column,
    value_stride,
    row_stride,
    head_stride,
    lead,
    eps,
    scale,
    IS_NORMED: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One row and key head per program, for all queries that share the key."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_keys = tl.num_programs(1)
    own_heads = heads + row * num_keys * ((GROUP + 2) * WIDTH)
    i = tl.arange(0, BLOCK_WIDTH)[None, :]
    is_in = i < WIDTH
    skipped, last = tl.load(padding + row), tl.load(column + row)
    position = last - skipped
    angle = position * (WIDTH // 2) + i % (WIDTH // 2)
    c = tl.load(cos + angle, mask=is_in, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=is_in, other=0.0).to(tl.float32) * tl.where(i < WIDTH // 2, -1.0, 1.0)

    own_key = own_heads + (num_keys * GROUP + head) * WIDTH
    k = _heads(own_key, i, is_in, c, s, key_gain, eps, IS_NORMED, WIDTH)
    v = tl.load(own_key + num_keys * WIDTH + i, mask=is_in, other=0.0)
    own = cells + row * row_stride + head * head_stride
    tl.store(own + last * WIDTH + i, k, mask=is_in)
    tl.store(own + value_stride + last * WIDTH + i, v, mask=is_in)

    g = tl.arange(0, BLOCK_GROUP)[:, None]
    is_query = (g < GROUP) & is_in
    of_query = (head * GROUP + g) * WIDTH
    q = _heads(own_heads + of_query, i, is_query, c, s, query_gain, eps, IS_NORMED, WIDTH)

    # The new token comes first, from registers. So no program reads what it has just written, and no maximum is -inf.
    scale = scale * _LOG2_E
    top = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * scale
    total = tl.full((BLOCK_GROUP,), 1.0, tl.float32)
    mean = tl.broadcast_to(v.to(tl.float32), (BLOCK_GROUP, BLOCK_WIDTH))
    # A token sees as many earlier ones as its position says. Of these the first `lead` stand before the padding.
    for start in range(0, position.to(tl.int32), BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS)
        is_seen = j < position
        at = (j + tl.where(j < lead, 0, skipped))[:, None] * WIDTH + i
        is_read = is_seen[:, None] & is_in
        keys = tl.load(own + at, mask=is_read, other=0.0)
        values = tl.load(own + value_stride + at, mask=is_read, other=0.0)
        score = tl.where(is_seen[None, :], _dot(q, tl.trans(keys)) * scale, -float("inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        kept = tl.exp2(top - new_top)
        weight = tl.exp2(score - new_top[:, None])
        total = total * kept + tl.sum(weight, 1)
        mean = mean * kept[:, None] + _dot(weight.to(values.dtype), values)
        top = new_top
    own_out = out + row * num_keys * (GROUP * WIDTH) + of_query
    tl.store(own_out + i, (mean / total[:, None]).to(out.dtype.element_ty), mask=is_query)
