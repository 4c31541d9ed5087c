"""Log-probabilities in blocks of the vocabulary against the plain log-softmax over all of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.oracles import homes
from tests.test_training import make_policy
from tests.trees import trees_of
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.model import token_logp as blocks
from tinyzero_astar.model.loading import load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import check_decoding
from tinyzero_astar.model.token_logp import Head, next_logits, token_logp
from tinyzero_astar.model.tokenizer import textless_ids
from tinyzero_astar.rollout.astar_search import astar_rollouts

ROOT = Path(__file__).resolve().parents[1]
NEVER = torch.tensor([3, 9])


@pytest.fixture(params=[5, 6, 17, 1000])
def block(request, monkeypatch):
    """Tokens that are scored together. 20 are scored in all."""
    monkeypatch.setitem(blocks.BLOCK_ELEMENTS, "cpu", 1)
    monkeypatch.setattr(blocks, "MIN_BLOCK", request.param)


def make_head(dtype=torch.float64, cap=None, has_bias=False, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    weight = scale * torch.randn(20, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(20, generator=generator, dtype=torch.float64) if has_bias else None
    hidden = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    tokens = torch.tensor([0, 1, 2, 16, 8, 6, 5])
    parts = [x if x is None else x.to(dtype).clone().requires_grad_() for x in (weight, bias)]
    return hidden.to(dtype).clone().requires_grad_(), Head(*parts, cap, 17, NEVER), tokens


def plain_logits(hidden, head):
    logits = hidden @ head.weight.T + (0.0 if head.bias is None else head.bias)
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    return logits[:, : head.num_tokens].index_fill(1, head.never, -math.inf)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_values_and_gradients_equal_the_plain_log_softmax(block, cap, has_bias):
    hidden, head, tokens = make_head(cap=cap, has_bias=has_bias, scale=3.0)
    logp, entropy = token_logp(hidden, head, tokens)
    want = torch.log_softmax(plain_logits(hidden, head), -1)
    torch.testing.assert_close(logp, want.gather(1, tokens[:, None])[:, 0])
    plain = -(want.exp() * want.clamp(min=-1e4)).sum(-1)
    torch.testing.assert_close(entropy, plain)
    torch.testing.assert_close(next_logits(hidden.detach(), head), plain_logits(hidden, head).detach())
    leaves = [x for x in (hidden, head.weight, head.bias) if x is not None]
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -0.1, 2.0], dtype=torch.float64)
    ours = torch.autograd.grad((upstream * logp).sum(), leaves)
    theirs = torch.autograd.grad((upstream * want.gather(1, tokens[:, None])[:, 0]).sum(), leaves)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_gradient_of_the_entropy_is_that_of_its_formula(block, share, cap, has_bias):
    """By itself and beside that of the log-probability."""
    hidden, head, tokens = make_head(cap=cap, has_bias=has_bias, scale=3.0)
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -0.1, 2.0], dtype=torch.float64)
    logp, entropy = token_logp(hidden, head, tokens)
    want = torch.log_softmax(plain_logits(hidden, head), -1)
    plain = -(want.exp() * want.clamp(min=-1e4)).sum(-1)
    leaves = [x for x in (hidden, head.weight, head.bias) if x is not None]
    ours = (upstream * entropy).sum() + (share * logp.sum() if share else 0.0)
    theirs = (upstream * plain).sum() + share * want.gather(1, tokens[:, None]).sum()
    for got, wanted in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_and_ids_without_text_give_finite_gradients_in_float32(dtype):
    hidden, head, tokens = make_head(dtype, cap=2.0)
    token_logp(hidden, head, tokens)[0].sum().backward()
    assert bool(torch.isfinite(hidden.grad).all()) and bool(torch.isfinite(head.weight.grad).all())
    assert float(head.weight.grad[NEVER].abs().max()) == 0.0 < float(head.weight.grad.abs().max())


def test_logits_far_apart_neither_overflow_nor_vanish(block):
    hidden, head, tokens = make_head(scale=300.0)
    assert float(plain_logits(hidden, head).detach().max()) > 800  # e^800 is no float64
    logp, entropy = token_logp(hidden, head, tokens)
    want = torch.log_softmax(plain_logits(hidden, head), -1).detach()
    torch.testing.assert_close(logp.detach(), want.gather(1, tokens[:, None])[:, 0])
    assert bool(torch.isfinite(entropy).all())


def test_a_bfloat16_head_is_multiplied_in_float32_and_its_gradient_rounded_once(monkeypatch):
    """Summed chunk after chunk in bfloat16 the gradient of a head would lose several per cent."""
    monkeypatch.setitem(blocks.BLOCK_ELEMENTS, "cpu", 1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2000, 16).bfloat16(), torch.randn(300, 16).bfloat16()
    tokens = torch.randint(300, (2000,))
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        h, w = (x.to(dtype).clone().requires_grad_() for x in (hidden, weight))
        head = Head(w, None, None, 300, torch.empty(0, dtype=torch.int64))
        logp, _ = token_logp(h, head, tokens)
        logp.sum().backward()
        found.append((logp.detach().double(), next_logits(h, head).detach().double(), w.grad.double(), h.grad.double()))
    (logp, logits, of_weight, of_hidden), exact = found[0], found[1]
    assert float((logp - exact[0]).abs().max()) < 1e-4 and float((logits - exact[1]).abs().max()) < 1e-4
    assert float((of_weight - exact[2]).norm() / exact[2].norm()) < 2**-8
    assert float((of_hidden - exact[3]).norm() / exact[3].norm()) < 2**-8


def test_a_frozen_head_gets_no_gradient_and_is_passed_through():
    hidden, head, tokens = make_head()
    frozen = head._replace(weight=head.weight.detach())
    token_logp(hidden, frozen, tokens)[0].sum().backward()
    own = hidden.grad.clone()
    hidden.grad = None
    token_logp(hidden, head, tokens)[0].sum().backward()
    torch.testing.assert_close(own, hidden.grad)


def check_kernels():
    """In a process that interprets Triton. Scores and gradients in float32 by the kernels, in float64 without them."""
    from tinyzero_astar.model import token_logp_kernels as kernels

    kernels._SIZE = 4  # less than a block, so that sums are carried on
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -0.1, 2.0], dtype=torch.float64)
    plain = blocks._functions
    for size in (5, 6, 17, 1000):
        blocks.BLOCK_ELEMENTS["cpu"], blocks.MIN_BLOCK = 1, size
        for scale in (0.3, 3.0, 30.0):
            found = []
            for dtype, functions in ((torch.float64, plain), (torch.float32, lambda *_: kernel_functions(kernels))):
                blocks._functions = functions
                hidden, head, tokens = make_head(dtype, scale=scale)
                logp, entropy = token_logp(hidden, head, tokens)
                (upstream * logp).sum().backward()
                found.append([x.detach().double() for x in (logp, entropy, hidden.grad, head.weight.grad)])
            for exact, got in zip(*found, strict=True):
                torch.testing.assert_close(got, exact, atol=5e-5, rtol=1e-4)
    values = torch.randn(7, 10)
    rest = torch.zeros(7, 1), torch.ones(7, 1), torch.arange(7), 3
    low, full = (kernels.slopes(values, *rest, dtype) for dtype in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(low.float(), full, atol=0, rtol=2**-7)  # the interpreter cuts off


def kernel_functions(kernels):
    return kernels.add_to_sums, kernels.slopes


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_of_a_gpu_give_the_same_when_they_are_interpreted():
    script = "from tests.test_token_logp import check_kernels; check_kernels()"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # Triton reads it when it is imported
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- ids without text


def padded_policy():
    """Of 20 rows, ids 4 and 17 to 19 stand for no text, and the model likes them best."""
    policy = make_policy()
    head = policy.language_model.get_output_embeddings()
    textless = {4, 17, 18, 19}
    with torch.no_grad():
        head.weight[sorted(textless)] = head.weight[[1]] * 3
    return Policy(policy.language_model.float(), (0,), 8, textless), textless


@torch.no_grad()
def test_an_id_without_text_is_never_scored_nor_found():
    policy, textless = padded_policy()
    assert policy.vocab_size == 17 and len(policy.value_model.up.weight) == 17
    start = SlotDecoder(policy, 6).start([[2, 3], [5]], homes(2, 1))
    assert start.logits.shape == start.child_logit(start.logits.log_softmax(-1)).shape == (2, 17)
    assert torch.isneginf(start.logits).nonzero()[:, 1].tolist() == [4, 4]
    for mode in ("sample", "gumbel", "best_first"):
        found = astar_rollouts(
            SlotDecoder(policy, 6), [[2, 3], [5]] * 20, seeds=torch.arange(40), num_rollouts=4, beam_width=5,
            max_search_depth=6, mode=mode,
        )  # fmt: skip
        assert not textless.intersection(found.tokens[found.is_token].tolist()), mode
        assert bool(torch.isfinite(found.logp).all())
    check_decoding(policy)


@torch.no_grad()
def test_scores_of_the_trainer_are_normalised_over_ids_with_text():
    policy, textless = padded_policy()
    kept = [n for n in range(20) if n not in textless]
    scores = [policy.token_scores(trees_of([[2, 3]], [[[5, token]]])).logp[0, 1] for token in kept]
    assert float(torch.stack(scores).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    plain = policy.language_model(torch.tensor([[2, 3, 5]])).logits[0, -1, kept].log_softmax(-1)
    torch.testing.assert_close(torch.stack(scores), plain)


def test_ids_that_a_tokenizer_lacks_have_no_text(tiny_base):
    _, tokenizer = load_language_model(str(tiny_base), torch.float32)
    assert textless_ids(tokenizer, 328) == set(range(320, 328))
    assert textless_ids(tokenizer, 320) == set()


def test_gradients_of_a_policy_with_spare_ids_leave_their_rows_alone():
    policy, textless = padded_policy()
    head = policy.language_model.get_output_embeddings()
    policy.token_scores(trees_of([[2, 3]], [[[5, 6], [7, 8]]])).logp.sum().backward()
    assert float(head.weight.grad[sorted(textless)].abs().max()) == 0.0 < float(head.weight.grad.abs().max())
