"""Compiled kernels beside the plain functions that they stand for, at the sizes of Qwen2.5 too."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from transformers import Qwen2Config

from tests.decode_kernel_cases import doubled, error
from tests.decoding import LED, assert_forks_swaps_and_uneven_lengths_equal_recomputation
from tests.devices import DEVICE, IS_CUDA, cuda_only, make_recorder, on_device
from tests.test_gpu_decoding import CONFIGS, DTYPES, SHAPE, make_policy
from tests.test_vocabulary import GUIDANCE, assert_same, at, inputs
from tinyzero_astar.engine import decode_operations as plain
from tinyzero_astar.engine.decode_operations import HeadNorm, Rotation
from tinyzero_astar.engine.fused_decode import FusedDecode
from tinyzero_astar.engine.slot_cache import Visible
from tinyzero_astar.model.token_logp import Head, token_logp
from tinyzero_astar.search.vocabulary import BestChild, best_child, best_child_reference

pytestmark = on_device

ROWS = 256
VOCABULARY = 151_936 if IS_CUDA else 20_003

# --------------------------------------------------------------------------------------------------- the vocabulary


def moved(x):
    """Arguments of `best_child`, on the device."""
    if isinstance(x, torch.Tensor):
        return x.to(DEVICE)
    if not isinstance(x, tuple):
        return x
    parts = [moved(part) for part in x]
    return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_the_draw_of_the_best_child_is_the_reference(guidance):
    """A number that falls between two sums, which differ by their roundings, may draw another token. That is rare."""
    case = moved(inputs(VOCABULARY, guidance, num=ROWS))
    found, wanted = best_child(*case), best_child_reference(*case)
    same = (found.token == wanted.token).nonzero()[:, 0]
    assert len(same) >= ROWS - 2
    assert_same(*(BestChild(*(x[same] for x in which)) for which in (found, wanted)), tolerance=3e-5)


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_the_draw_does_not_depend_on_the_rows_beside_it(guidance):
    logits, uniform, guide = moved(inputs(VOCABULARY, guidance, num=64))
    whole = best_child(logits, uniform, guide)
    rows = torch.arange(32, 64, device=DEVICE)
    part = best_child(logits[rows], uniform[rows], at(guide, rows))
    assert_same(part, BestChild(*(x[rows] for x in whole)), tolerance=3e-5)  # products of other sizes round otherwise


# ------------------------------------------------------------------------------------------------------- the decoder


@pytest.fixture
def operations():
    if IS_CUDA:
        pytest.importorskip("triton")
    return import_module("tinyzero_astar.engine." + ("decode_kernels" if IS_CUDA else "decode_operations"))


SIZES = {  # heads, key heads, width, with norms of heads
    "0.5B": (14, 2, 64, False),
    "1.5B": (12, 2, 128, False),
    "Qwen3": (16, 8, 128, True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_attention_of_many_rows_is_as_exact_as_its_dtype(size, dtype, operations):
    heads, keys, width, is_normed = SIZES[size]
    rows, columns = (ROWS, 700) if IS_CUDA else (8, 60)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    column = torch.randint(columns // 2, columns, (rows,), generator=generator).to(DEVICE)
    padding = torch.randint(0, columns // 4, (rows,), generator=generator).to(DEVICE)
    seen, angle = Visible(9, padding, column, is_padded=True), 3 * draw(columns, width // 2).double()
    given = {
        "heads": torch.cat((2 * draw(rows, heads * width), draw(rows, 2 * keys * width)), 1),
        "cells": draw(2, rows, keys, columns, width),
        "rotation": Rotation(angle.cos().to(dtype), angle.sin().to(dtype)),
        "norm": HeadNorm(1 + draw(width) / 4, 1 + draw(width) / 4, 0.05) if is_normed else None,
        "seen": seen,
        "scale": width**-0.5,
    }
    exact = {name: doubled(x) for name, x in given.items()}
    shape = rows, heads, width
    wanted, found = (which.attend(**x).view(shape) for which, x in ((plain, exact), (operations, given)))
    # Scores have magnitudes of up to twenty here, so float32 products are off by more. The plain ones are off by 2.
    assert error(found, wanted, dtype) <= (4 if dtype == torch.float32 else 1)
    assert error(given["cells"], exact["cells"], dtype) <= 1


def test_slots_and_forks_with_the_heads_of_a_larger_qwen_equal_the_full_forward():
    """In bfloat16. Attention over such heads in float32 is tested above."""
    shape = SHAPE | {"hidden_size": 1536, "head_dim": 128, "num_attention_heads": 12, "initializer_range": 0.03}
    policy = make_policy(Qwen2Config(**shape), torch.bfloat16)
    for recorder in (None, make_recorder()):
        policy.recorder = recorder
        assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, LED)


@cuda_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_kernels_are_what_decodes(name, dtype):
    assert isinstance(make_policy(CONFIGS[name], dtype).decoding_fn(40), FusedDecode)


@pytest.mark.parametrize("num", [1, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_of_the_update_and_their_gradients_are_as_exact_as_their_dtype(dtype, num):
    """A vocabulary of several blocks, and a part of one. What is compared with is plain softmax in float64."""
    torch.manual_seed(0)
    vocab, width = 20_011, 64
    hidden, weight = torch.randn(num, width, device=DEVICE).to(dtype), torch.randn(vocab, width, device=DEVICE)
    weight = (weight / 8).to(dtype)
    tokens, upstream = torch.randint(vocab - 11, (num,), device=DEVICE), torch.randn(num, device=DEVICE)
    never = torch.tensor([3, 7777], device=DEVICE)
    tokens[torch.isin(tokens, never)] = 5
    h, w = (x.clone().requires_grad_() for x in (hidden, weight))
    logp, entropy = token_logp(h, Head(w, None, None, vocab - 11, never), tokens)
    (upstream * logp).sum().backward()
    h64, w64 = (x.double().requires_grad_() for x in (hidden, weight))
    logits = (h64 @ w64.T)[:, : vocab - 11].index_fill(1, never, -torch.inf)
    want = torch.log_softmax(logits, -1)
    picked = want.gather(1, tokens[:, None])[:, 0]
    (upstream.double() * picked).sum().backward()
    torch.testing.assert_close(logp.double(), picked, atol=1e-4, rtol=0)
    exact = -(want.exp() * want.clamp(min=-1e4)).sum(-1)
    torch.testing.assert_close(entropy.double(), exact, atol=1e-4, rtol=0)
    for got, exact in ((h.grad, h64.grad), (w.grad, w64.grad)):
        error = float((got.double() - exact).norm() / exact.norm())
        assert error < (1e-5 if dtype == torch.float32 else 5e-3), error
