"""The draw of the best child, against the formula in plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch

from tests.devices import on_cuda
from tests.interpreted import results_of
from tinyzero_astar.interfaces import ChildTerms
from tinyzero_astar.search.gumbel import gumbel_after, inverse_cdf
from tinyzero_astar.search.heuristic import Tilt, propose, rise, tilt_of
from tinyzero_astar.search.vocabulary import (
    BestChild,
    Guide,
    best_child,
    best_child_reference,
    logp_logq_of,
    masses,
    masses_reference,
)

SIZES = (7, 300, 20_003)  # below a block, below a block of the kernels, several blocks and a part
RANK = 16  # of the children's values
GUIDANCE = {  # 1/beta and cap
    "policy": None,
    "guided": (2.5, None),
    "guided to failures": (-2.0, None),
    "capped": (3.0, 1.3),
    "capped to failures": (-3.0, 2.0),
}


def inputs(vocab, guidance, num=8, seed=0):
    """Logits, uniform numbers and a guide. Some tokens are forbidden, and the last row is nearly certain."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    logits = 3 * normal(num, vocab)
    logits[:, -2:] = -torch.inf
    logits[: num // 2, 1] = -torch.inf
    logits[-1] -= 50.0
    logits[-1, 3] = 20.0
    uniform = torch.rand(num, generator=generator, dtype=torch.float64)
    if guidance is None:
        return logits, uniform, None
    inverse_beta, cap = guidance
    return (
        logits,
        uniform,
        Guide(
            child=ChildTerms(
                normal(num) - 1, normal(num, RANK), 2 / RANK**0.5 * normal(vocab, RANK), 0.3 * normal(num)
            ),
            tilt=tilt_of(torch.full((num,), inverse_beta)),
            strength=torch.tensor([1.0, 0.5, 0.0, 1.0]).repeat(num)[:num],
            log_weight=torch.linspace(-3.0, math.log(cap or 2.0), num, dtype=torch.float64),
            cap=cap,
        ),
    )


def at(guide, rows):
    """The guide of some rows."""
    if guide is None:
        return None
    return guide._replace(
        child=ChildTerms(*(x if x is guide.child.up else x[rows] for x in guide.child)),
        tilt=Tilt(*(x[rows] for x in guide.tilt)),
        strength=guide.strength[rows],
        log_weight=guide.log_weight[rows],
    )


def row_of(guide, i):
    """A row of the guide as Python floats, with 1/beta."""
    inverse_beta = float(guide.tilt.sign[i] * torch.log1p(guide.tilt.gain[i].double()))
    offset, features, up, slope = (x.double() for x in guide.child)
    values = (offset[i] + up @ features[i]).tolist()
    return values, inverse_beta, float(slope[i]), float(guide.strength[i]), float(guide.log_weight[i]), guide.cap


def log_sum(x):
    largest = max(x)
    return largest + math.log(math.fsum(math.exp(a - largest) for a in x))


def f_of(logp, guide_row, tau):
    if guide_row is None:
        return logp
    child, inverse_beta, slope, *_ = guide_row
    f = []
    for a, c in zip(logp, child, strict=True):
        p = 1 / (1 + math.exp(-(c + slope * max(a, -30.0))))
        h = math.log1p(p * math.expm1(inverse_beta))  # its floor is below 0 for negative 1/beta
        f.append(a + tau * (h - min(inverse_beta, 0.0)))
    return f


def oracle(logits, uniform, guide_row):
    """Row by row, every quantity by name."""
    total = log_sum(logits)
    logp = [x - total for x in logits]
    tau, norm, is_held_back = 0.0, 0.0, False
    if guide_row is not None:
        *_, strength, log_weight, cap = guide_row
        tau, norm = strength, log_sum(f_of(logp, guide_row, strength))
        if cap is not None and log_weight + norm > math.log(cap):
            tau = strength * min(max((math.log(cap) - log_weight) / norm, 0.0), 1.0)
            is_held_back = tau < strength
    f = f_of(logp, guide_row, tau)
    norm = norm if guide_row is None else log_sum(f)
    q = [math.exp(x - norm) for x in f]
    token, running, target = 0, q[0], uniform * math.fsum(q)
    while running < target:
        token += 1
        running += q[token]
    rest = math.fsum(q[:token] + q[token + 1 :])
    log_rest = math.log(rest) if rest else -math.inf
    return BestChild(token, logp[token], f[token] - norm, log_rest, total, norm, tau, is_held_back, True)


def expected_of(logits, uniform, guide):
    rows = [
        oracle(logits[i].double().tolist(), float(uniform[i]), None if guide is None else row_of(guide, i))
        for i in range(len(logits))
    ]
    return BestChild(*(torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True)))


def assert_same(found, expected, tolerance=1e-5):
    """All of [N], as numbers. Tokens and marks are whole ones."""
    for name, x, y in zip(BestChild._fields, found, expected, strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=tolerance, msg=f"{name}: {x} instead of {y}")


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_every_quantity_is_that_of_the_formula(guidance, vocab):
    case = inputs(vocab, guidance)
    expected = expected_of(*case)
    if guidance is not None and guidance[1] is not None:
        assert 0 < int(expected.is_held_back.sum()) < len(expected.tau)
    assert_same(best_child(*case), expected)


def nearly_certain():
    """A row whose likeliest token leaves e^-46 = 1.05e-20 to another one of its block, and less to all the others."""
    logits = torch.full((1, 20_003), -60.0)
    logits[0, 17_000] = 0.0
    logits[0, 16_500] = -46.0
    return logits, torch.tensor([0.5], dtype=torch.float64), None


def assert_the_rest_is_small(found):
    assert found.token.tolist() == [17_000]
    rest = math.exp(-46.0) + 20_001 * math.exp(-60.0)
    assert abs(float(found.log_rest) - math.log(rest)) < 1e-5


def test_the_rest_of_a_nearly_certain_row_does_not_cancel():
    assert_the_rest_is_small(best_child(*nearly_certain()))


def only_children():
    logits = torch.full((2, 50), -torch.inf)
    logits[0, 7] = logits[1, 0] = 3.0
    return logits, torch.tensor([2.0**-53, 1.0], dtype=torch.float64), None


def assert_nothing_is_left(found):
    assert found.token.tolist() == [7, 0] and found.logp.tolist() == [0.0, 0.0]
    assert found.log_rest.tolist() == [-math.inf] * 2 and found.is_finite.all()


def test_an_only_child_leaves_no_rest():
    assert_nothing_is_left(best_child(*only_children()))


def ends(vocab):
    """The ends of the uniform numbers, where the first two tokens and the last two are forbidden."""
    logits = torch.zeros(3, vocab)
    logits[:, :2] = logits[:, -2:] = -torch.inf
    return logits, torch.tensor([2.0**-53, 1.0, 1 - 2.0**-53], dtype=torch.float64), None


@pytest.mark.parametrize("vocab", SIZES)
def test_the_ends_of_the_uniform_numbers_draw_the_first_and_the_last_token_with_mass(vocab):
    assert best_child(*ends(vocab)).token.tolist() == [2, vocab - 3, vocab - 3]


def not_finite():
    """Rows that are not finite, then one that is, and what each of them lacks."""
    logits, uniform, guide = inputs(300, (2.0, 2.0), num=5)
    logits[0, 10] = torch.nan
    logits[1, 10] = torch.inf
    logits[2] = -torch.inf
    guide.child.offset[3] = torch.nan
    return logits, uniform, guide


def test_rows_that_are_not_finite_are_named_and_the_others_are_as_without_them():
    logits, uniform, guide = not_finite()
    found = best_child(logits, uniform, guide)
    assert found.is_finite.tolist() == [False, False, False, False, True]
    assert best_child(logits, uniform).is_finite.tolist() == [False, False, False, True, True]
    assert ((found.token >= 0) & (found.token < 300)).all()
    alone = best_child(logits[4:], uniform[4:], at(guide, torch.tensor([4])))
    assert_same(BestChild(*(x[4:] for x in found)), alone)


def budgets():
    """A prefix just within its budget and one at its start, without value, then one beyond its budget, and one far."""
    guide = Guide(
        child=ChildTerms(
            offset=torch.tensor([-200.0, -200.0, 0.0, 0.0]),  # in two rows h is 0, and so is the norm
            features=torch.zeros(4, RANK),
            up=torch.ones(5, RANK),
            slope=torch.zeros(4),
        ),
        tilt=tilt_of(torch.ones(4)),
        strength=torch.full((4,), 0.75),
        log_weight=torch.tensor([math.log(2.0) - 1e-6, 0.0, math.log(2.0) + 1e-6, -5.0], dtype=torch.float64),
        cap=2.0,
    )
    return torch.zeros(4, 5), torch.full((4,), 0.5, dtype=torch.float64), guide


def assert_within_budget(found):
    assert found.tau.tolist() == [0.75, 0.75, 0.0, 0.75]
    assert found.is_held_back.tolist() == [False, False, True, False]


def test_a_prefix_within_its_budget_keeps_the_strength_and_one_beyond_it_loses_all():
    assert_within_budget(best_child(*budgets()))


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_equals_the_path_through_the_whole_vocabulary(guidance, vocab):
    logits, uniform, guide = inputs(vocab, guidance)
    num = len(logits)
    logp = torch.log_softmax(logits, -1)
    if guide is None:
        score, mass, log_norm = logp, logp.exp(), torch.zeros(num, 1)
    else:
        offset, features, up, slope = guide.child
        child = offset[:, None] + features @ up.T + slope[:, None] * logp.clamp(min=-30.0)
        tilt = Tilt(*(x[:, None] for x in guide.tilt))
        weight = guide.log_weight.float()[:, None]
        proposal = propose(logp, rise(child, tilt), weight, guide.strength[:, None], guide.cap)
        score, mass, log_norm = proposal.score, proposal.mass, proposal.log_norm
    token = inverse_cdf(mass, uniform[:, None])
    others = mass.scatter(1, token, 0.0).sum(-1).double()
    found = best_child(logits, uniform, guide)
    assert torch.equal(found.token, token[:, 0])
    torch.testing.assert_close(found.logp, logp.gather(1, token)[:, 0].double(), rtol=0, atol=1e-5)
    logq = (score.gather(1, token) - log_norm)[:, 0].double()
    torch.testing.assert_close(found.logq, logq, rtol=0, atol=1e-5)
    bound, wait, log_q = torch.linspace(-9, 9, num).double(), torch.linspace(0.1, 3, num).double(), -uniform
    expected = gumbel_after(bound, wait / others, log_q - log_norm[:, 0])
    torch.testing.assert_close(gumbel_after(bound, wait, log_q + found.log_rest), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_other_tokens_have_the_probabilities_of_the_formula(guidance):
    logits, uniform, guide = inputs(300, guidance)
    found = best_child(logits, uniform, guide)
    row, token = (x.flatten() for x in torch.meshgrid(torch.arange(8), torch.arange(300), indexing="ij"))
    logp, logq = (x.view(8, 300) for x in logp_logq_of(logits, found, guide, row, token))
    rows = torch.tensor([5, 2, 5])
    mass = masses(logits, found, guide, rows)
    for i in range(8):
        expected = [x - float(found.log_total[i]) for x in logits[i].double().tolist()]
        f = f_of(expected, None if guide is None else row_of(guide, i), float(found.tau[i]))
        torch.testing.assert_close(logp[i], torch.tensor(expected).double(), rtol=0, atol=1e-5)
        q = torch.tensor(f, dtype=torch.float64) - log_sum(f)
        torch.testing.assert_close(logq[i], q, rtol=0, atol=1e-5)
        q = q.exp().index_fill(0, found.token[i], 0.0)
        for x in mass[rows == i]:
            torch.testing.assert_close(x.double() * (-found.log_norm[i]).exp(), q, rtol=1e-5, atol=0)


def grid_of(logits, guide, num):
    """Every row `num` times, with uniform numbers that are evenly spread. So counts are exact but for the ends."""
    row = torch.arange(len(logits)).repeat_interleave(num)
    uniform = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return logits[row], uniform.repeat(len(logits)), at(guide, row)


def assert_shares(token, logits, guide, num):
    rows, size = logits.shape
    found = best_child(logits, torch.full((rows,), 0.5, dtype=torch.float64), guide)
    row, each = (x.flatten() for x in torch.meshgrid(torch.arange(rows), torch.arange(size), indexing="ij"))
    _, logq = logp_logq_of(logits, found, guide, row, each)
    share = torch.stack([torch.bincount(x, minlength=size).double() / num for x in token.view(rows, num)])
    torch.testing.assert_close(share.flatten(), logq.exp(), rtol=0, atol=2 / num)


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
def test_tokens_are_drawn_as_often_as_q_says(guidance):
    logits, _, guide = inputs(7, guidance, num=4)
    assert_shares(best_child(*grid_of(logits, guide, 100_000)).token, logits, guide, 100_000)


# ----------------------------------------------------------------------------------------------- the kernels


def test_the_kernels_say_the_same(tmp_path):
    """By Triton's interpreter. All in one process, since its start takes longer than any of them."""
    pytest.importorskip("triton")
    cases = [inputs(vocab, guidance, num=4) for guidance in GUIDANCE.values() for vocab in SIZES[1:]]
    few, _, guide = inputs(7, GUIDANCE["capped"], num=4)
    special = [nearly_certain(), only_children(), budgets(), not_finite(), grid_of(few, guide, 25), *map(ends, SIZES)]
    found = results_of("vocabulary_kernels", "best_child_by_kernels", cases + special, tmp_path)
    expected = [best_child_reference(*case) for case in cases]
    rows = torch.tensor([3, 1])
    others = [(logits, x, guide, rows) for (logits, _, guide), x in zip(cases, expected, strict=True)]
    for x, case in zip(results_of("vocabulary_kernels", "masses_by_kernel", others, tmp_path), others, strict=True):
        torch.testing.assert_close(x, masses_reference(*case), rtol=2e-5, atol=0)
    assert any(x.is_held_back.any() for x in expected)
    for x, y in zip(found, expected, strict=False):
        assert_same(x, y)
    certain, only, within, finite, grid, *at_ends = found[len(cases) :]
    assert_the_rest_is_small(certain)
    assert_nothing_is_left(only)
    assert_within_budget(within)
    assert finite.is_finite.tolist() == [False, False, False, False, True]
    assert ((finite.token >= 0) & (finite.token < 300)).all()
    assert_shares(grid.token, few, guide, 25)
    assert [x.token.tolist() for x in at_ends] == [[2, vocab - 3, vocab - 3] for vocab in SIZES]


@pytest.mark.parametrize("name", ["_policy_sums", "_twisted_sums", "_held_back_sums", "_draw", "_masses"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(name):
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tinyzero_astar.search import vocabulary_kernels

    kernel = getattr(vocabulary_kernels, name)
    constants = {"BLOCK": 4096, "WIDTH": 64, "LEAST": -30.0, "LIMIT": 0.7, "IS_GUIDED": True}
    types = {"log_weight": "*fp64", "uniform": "*fp64", "logs": "*fp64", "token": "*i64", "marks": "*i1"}
    types |= {"rows": "*i64", "best": "*i64", "log_total": "*fp64"}
    types |= dict.fromkeys(("stride", "child_stride", "vocab", "blocks", "num"), "i32")
    chosen = {x: constants[x] for x in kernel.arg_names if x in constants}
    signature = {x: "constexpr" if x in chosen else types.get(x, "*fp32") for x in kernel.arg_names}
    compiled = compile(ASTSource(kernel, signature, chosen), target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"] and ".local" not in compiled.asm["ptx"]  # no register had to be given up


def on_gpu(case):
    logits, uniform, guide = case
    if guide is not None:
        child, tilt = ChildTerms(*(x.cuda() for x in guide.child)), Tilt(*(x.cuda() for x in guide.tilt))
        guide = Guide(child, tilt, guide.strength.cuda(), guide.log_weight.cuda(), guide.cap)
    return logits.cuda(), uniform.cuda(), guide


def on_cpu(found):
    return BestChild(*(x.cpu() for x in found))


@on_cuda
@pytest.mark.parametrize("name", ["policy", "capped"])
def test_a_gpu_says_the_same_also_from_a_graph(name):
    """`test_gpu_operations.py` has the other kinds of guidance."""
    case = inputs(151_936, GUIDANCE[name], num=32)
    expected = best_child_reference(*case)
    logits, uniform, guide = on_gpu(case)
    assert_same(on_cpu(best_child(logits, uniform, guide)), expected, tolerance=3e-5)
    found = best_child(logits, uniform, guide)
    rows = torch.tensor([3, 1, 30])
    other = masses_reference(case[0], on_cpu(found), case[2], rows)
    torch.testing.assert_close(masses(logits, found, guide, rows.cuda()).cpu(), other, rtol=5e-5, atol=1e-37)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = best_child(logits, uniform, guide)
    graph.replay()
    assert_same(on_cpu(recorded), expected, tolerance=3e-5)


@on_cuda
def test_a_gpu_treats_rare_rows_as_the_reference_does():
    assert_the_rest_is_small(on_cpu(best_child(*on_gpu(nearly_certain()))))
    assert_nothing_is_left(on_cpu(best_child(*on_gpu(only_children()))))
    assert_within_budget(on_cpu(best_child(*on_gpu(budgets()))))
    finite = on_cpu(best_child(*on_gpu(not_finite())))
    assert finite.is_finite.tolist() == [False, False, False, False, True]
    assert ((finite.token >= 0) & (finite.token < 300)).all()
    for vocab in SIZES:
        assert on_cpu(best_child(*on_gpu(ends(vocab)))).token.tolist() == [2, vocab - 3, vocab - 3]
    logits, _, guide = inputs(7, GUIDANCE["capped"], num=4)
    found = best_child(*on_gpu(grid_of(logits, guide, 100_000)))
    assert_shares(found.token.cpu(), logits, guide, 100_000)
