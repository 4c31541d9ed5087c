"""Triton's kernels of a decode step beside the plain functions in float64, as the largest error of many cases.

`python -m tests.decode_kernel_cases` prints them as JSON, on the CPU if TRITON_INTERPRET is 1. The interpreter cuts
bfloat16 off where a GPU rounds it, so its errors may be twice as large.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

import torch

from tinyzero_astar.engine import decode_operations as plain
from tinyzero_astar.engine.decode_operations import HeadNorm, Rotation
from tinyzero_astar.engine.slot_cache import Visible

NUM_COLUMNS = 110
PADDING, COLUMN = [0, 3, 40, 7, 0, 33], [109, 50, 49, 16, 32, 98]  # with no earlier token of its own, one, some blocks
# How many times half the spacing of its dtype's numbers a row may be wrong, as a norm. Scores have magnitudes of up to
# ten. Their products are exact in float32 if heads are bfloat16, and add to the error if they are not.
ROUNDINGS = {torch.bfloat16: 8, torch.float32: 32}


class Case(NamedTuple):
    """One shape of attention."""

    dtype: str
    group: int  # queries that share a key
    width: int
    lead: int
    is_normed: bool
    num_keys: int = 2


CASES = {
    f"{dtype} {group}x{width}": Case(dtype, group, width, lead, is_normed)
    for dtype in ("float32", "bfloat16")
    for group, width, lead, is_normed in (
        (1, 64, 0, False),
        (2, 128, 9, True),
        (6, 128, 9, False),
        (7, 64, 4, False),
        (4, 64, 0, True),
        (17, 16, 1, False),
        (3, 12, 9, True),  # no power of two
    )
}
PRODUCTS = [(3, 24, 40), (5, 64, 1024), (2, 128, 8960), (256, 1536, 1536)]  # rows, results, depth
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}  # PyTorch's sums of bfloat16 in float32
SHAPES = [(1, 7), (5, 64), (3, 896), (2, 1536), (2, 3000)]


def inputs(case: Case, device: str, unseen: float) -> dict:
    """Arguments of `attend`. Cells that no row sees hold `unseen`."""
    generator = torch.Generator().manual_seed(case.group * case.width)
    dtype, num_rows = getattr(torch, case.dtype), len(COLUMN)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    wide = num_rows + 2, case.num_keys, NUM_COLUMNS + 3, case.width  # rows and columns that are not planned
    cells = draw(2, *wide)[:, :num_rows, :, :NUM_COLUMNS]
    padding, column = torch.tensor(PADDING, device=device), torch.tensor(COLUMN, device=device)
    seen = Visible(case.lead, padding, column, is_padded=True)
    is_seen = seen.mask(NUM_COLUMNS)[:, 0, 0]  # [N, L]
    cells.masked_fill_(~is_seen[None, :, None, :, None], unseen)
    num_queries = case.num_keys * case.group * case.width
    angle = 3 * draw(NUM_COLUMNS, case.width // 2).double()
    return {
        "heads": torch.cat((2 * draw(num_rows, num_queries), draw(num_rows, 2 * case.num_keys * case.width)), 1),
        "cells": cells,
        "rotation": Rotation(angle.cos().to(dtype), angle.sin().to(dtype)),
        "norm": HeadNorm(1 + draw(case.width) / 4, 1 + draw(case.width) / 4, 0.05) if case.is_normed else None,
        "seen": seen,
        "scale": case.width**-0.5,
    }


def doubled(x):
    """The same numbers in float64."""
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    return x if not isinstance(x, Rotation | HeadNorm) else type(x)(*(doubled(y) for y in x))


def error(found, wanted, dtype) -> float:
    """The largest error of a row, as its norm over that of the row, in units of `ROUNDINGS`."""
    assert found.dtype == dtype and found.shape == wanted.shape
    wrong = (found.double() - wanted).flatten(0, -2).norm(dim=-1) / wanted.flatten(0, -2).norm(dim=-1)
    return float(wrong.max()) / (ROUNDINGS[dtype] * torch.finfo(dtype).eps / 2)


def attend_errors(operations, case: Case, device: str, unseen: float = torch.nan) -> dict[str, float]:
    """Of the output, the written cells, and all others, which must stay as they are."""
    given = inputs(case, device, unseen)
    exact = {name: doubled(x) for name, x in given.items()} | {"cells": given["cells"].double().nan_to_num(0.0)}
    wanted = plain.attend(**exact)
    before = given["cells"].clone()
    found = operations.attend(**given)
    by_head = len(COLUMN), -1, case.width
    row, column = torch.arange(len(COLUMN), device=device), given["seen"].column
    written, right = (x["cells"][:, row, :, column] for x in (given, exact))
    given["cells"][:, row, :, column] = before[:, row, :, column]
    is_kept = torch.equal(given["cells"].nan_to_num(7.0), before.nan_to_num(7.0))
    return {
        "output": error(found.view(by_head), wanted.view(by_head), found.dtype),
        "written": error(written, right, found.dtype),
        "others": 0.0 if is_kept else torch.inf,
    }


def errors(operations, device: str, cases: Iterable[str] = CASES, shapes=SHAPES) -> dict[str, float]:
    """All errors by name, each at most 1 where all is well."""
    found = {}
    for name, case in ((name, CASES[name]) for name in cases):
        found |= {f"attend {name} {what}": x for what, x in attend_errors(operations, case, device).items()}
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes:
            x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
            gain, x = (1 + x[0] / 8).to(device, dtype), x.to(device, dtype)
            name = f"{str(dtype).removeprefix('torch.')} {shape[0]}x{shape[1]}"
            wanted = plain.rms_norm(x.double(), gain.double(), 0.05)
            found[f"rms_norm {name}"] = error(operations.rms_norm(x, gain, 0.05), wanted, dtype)
            parts = torch.stack((x.flip(0), x.flip(1), x.square())).to(torch.float32)
            total, right = x.clone(), x.double()
            wanted = plain.add_rms_norm(right, parts.double(), gain.double(), 0.05)
            found[f"add_rms_norm {name}"] = error(operations.add_rms_norm(total, parts, gain, 0.05), wanted, dtype)
            found[f"add_rms_norm {name} sum"] = error(total, right, dtype)
            x = torch.cat((x, x.flip(1)), 1)
            found[f"silu_mul {name}"] = error(operations.silu_mul(x), plain.silu_mul(x.double()), dtype)
    for num_rows, num_out, depth in PRODUCTS:
        x, weight = (torch.randn(n, depth, generator=torch.Generator().manual_seed(n)) for n in (num_rows, num_out))
        for dtype in DTYPES[torch.device(device).type]:
            given = x.to(device, dtype), weight.to(device, dtype)
            wanted = plain.products(given[0].double(), given[1].double())[0]
            summed = operations.products(*given).sum(0).to(dtype)
            found[f"products {str(dtype).removeprefix('torch.')} {num_rows}x{depth}"] = error(summed, wanted, dtype)
    return found


def let_loops_end_at_tensors() -> None:
    """NumPy 2.4 makes no number of an array of one, which Triton 3.6's interpreter asks for."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def main() -> None:
    from tinyzero_astar.engine import decode_kernels

    let_loops_end_at_tensors()
    print(json.dumps(errors(decode_kernels, "cpu")))


if __name__ == "__main__":
    main()
