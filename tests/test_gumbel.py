"""Random numbers and draws of `search.gumbel`, one by one. What searches make of them is in test_search.py."""

import math

import pytest
import torch

from tests.devices import on_cuda
from tests.interpreted import results_of
from tinyzero_astar.search.gumbel import (
    first_arrivals,
    hash_number,
    inverse_cdf,
    likeliest_if_impossible,
    prefix_hashes,
    to_uniform,
    token_counters,
    token_waiting_times,
    waiting_time,
)

NUM = 200_000


def test_uniform_numbers_exclude_both_ends():
    ends = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    uniform = to_uniform(ends)
    assert uniform.min() > 0 and uniform.max() < 1
    assert uniform[2] == 1 - 2.0**-53 and uniform[3] == 2.0**-53
    assert waiting_time(ends).min() > 0 and torch.isfinite(waiting_time(ends)).all()


def test_hashes_of_a_state_are_uniform_and_independent_of_each_other():
    bits = prefix_hashes(hash_number(torch.arange(NUM)))
    uniform = to_uniform(bits)
    assert (uniform.mean(1) - 0.5).abs().max() < 4 * math.sqrt(1 / 12 / NUM)
    cells = (uniform * 8).long()  # every pair of the three on a board of 8 by 8
    for i, j in ((0, 1), (0, 2), (1, 2)):
        counts = torch.bincount(cells[i] * 8 + cells[j], minlength=64).double()
        chi2 = float(((counts - NUM / 64) ** 2 / (NUM / 64)).sum())
        assert chi2 < 63 + 4 * math.sqrt(2 * 63)
    children = to_uniform(prefix_hashes(bits[0] ^ 12345))  # and of those of a child
    centred = torch.cat([uniform, children]) - 0.5
    correlation = centred @ centred.T / NUM * 12
    assert (correlation - torch.eye(6, dtype=torch.float64)).abs().max() < 4 * math.sqrt(1.8 / NUM)


def test_exponential_numbers_have_the_moments_of_their_law():
    found = token_waiting_times(hash_number(torch.arange(NUM // 100)), token_counters(100, torch.device("cpu")))
    for power, spread in ((1, 1.0), (2, math.sqrt(20.0)), (3, math.sqrt(684.0))):
        mean = (found**power).mean()
        assert abs(float(mean) - math.factorial(power)) < 4 * spread / math.sqrt(NUM)
    assert found.unique().numel() == NUM


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_are_drawn_in_proportion_to_their_mass(dtype):
    mass = torch.tensor([0.2, 0.0, 3.0, 1e-3, 0.7], dtype=dtype)
    uniform = (torch.arange(NUM, dtype=torch.float64) + 0.5) / NUM  # evenly spread: counts are exact but for the ends
    token = inverse_cdf(mass.expand(NUM, -1), uniform[:, None])
    share = torch.bincount(token[:, 0], minlength=5).double() / NUM
    torch.testing.assert_close(share, (mass / mass.sum()).double(), rtol=0, atol=2 / NUM)


def test_a_rare_token_among_many_is_drawn_as_often_as_its_mass_says():
    """In float32 the sum of all masses has no digit left for it."""
    mass = torch.full((1, 100_000), 1e-5)
    mass[0, -1] = 1e-12
    edge = 1e-12 / float(mass.double().sum())
    uniform = torch.tensor([[1 - 1.1 * edge, 1 - 0.9 * edge]], dtype=torch.float64)
    assert inverse_cdf(mass, uniform).tolist() == [[99_998, 99_999]]


def test_tokens_without_mass_are_never_drawn():
    mass = torch.tensor([[0.0, 0.25, 0.0, 0.25, 0.5, 0.0]], dtype=torch.float64)
    uniform = torch.tensor([[2.0**-53, 0.25, 0.25 + 2.0**-53, 0.5, 0.75, 1 - 2.0**-53, 1.0]], dtype=torch.float64)
    assert inverse_cdf(mass, uniform).tolist() == [[1, 1, 3, 3, 4, 4, 4]]


def test_where_rounding_would_draw_a_token_without_mass_it_is_the_likeliest():
    mass = torch.tensor([[0.25, 0.0, 0.75], [0.25, 0.5, 0.25]])
    assert likeliest_if_impossible(mass, torch.tensor([[1], [0]])).tolist() == [[2], [0]]


# ------------------------------------------------------------------------------------- large vocabularies, by blocks

LARGE = 20_000 + 3  # 156 blocks of 128 tokens and 35 tokens


def test_a_large_vocabulary_is_drawn_from_in_proportion_to_its_mass():
    mass = torch.zeros(LARGE)
    where = torch.tensor([0, 127, 128, 9_999, 19_967, 19_968, LARGE - 1])  # ends of blocks, and of the short last one
    mass[where] = torch.tensor([0.2, 3.0, 1e-3, 0.7, 0.3, 0.1, 0.4])
    uniform = (torch.arange(NUM, dtype=torch.float64) + 0.5) / NUM
    token = inverse_cdf(mass[None], uniform[None])
    share = torch.bincount(token[0], minlength=LARGE).double() / NUM
    torch.testing.assert_close(share, (mass / mass.sum()).double(), rtol=0, atol=2 / NUM)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_of_a_large_vocabulary_begin_and_end_where_the_running_sum_says(dtype):
    torch.manual_seed(0)
    mass = 0.5 + torch.rand(4, LARGE, dtype=dtype)
    cdf = mass.double().cumsum(-1)
    token = torch.randint(LARGE - 1, (4, 500))
    edge = cdf.gather(1, token) / cdf[:, -1:]
    nearly = 1e-7 / LARGE  # of a token's mass, a ten-millionth: sums in float32 are off by more
    assert torch.equal(inverse_cdf(mass, edge - nearly), token)
    assert torch.equal(inverse_cdf(mass, edge + nearly), token + 1)


def test_the_last_token_with_mass_is_the_one_at_1_in_a_large_vocabulary():
    """Also where the sum of a block, added up in another order, exceeds that of its tokens one by one."""
    torch.manual_seed(0)
    mass = torch.rand(300, LARGE, dtype=torch.float64)
    mass[100:200, -1:] = 0.0
    mass[200:, -60:] = 0.0
    one = torch.ones(300, 1, dtype=torch.float64)
    assert inverse_cdf(mass, one)[:, 0].tolist() == [LARGE - 1] * 100 + [LARGE - 2] * 100 + [LARGE - 61] * 100


def test_tokens_without_mass_are_never_drawn_from_a_large_vocabulary():
    mass = torch.zeros(1, LARGE, dtype=torch.float64)
    mass[0, [5, 127, 700]] = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    uniform = torch.tensor([[2.0**-53, 0.25, 0.25 + 2.0**-53, 0.5, 0.5 + 2.0**-53, 0.75, 1.0]], dtype=torch.float64)
    assert inverse_cdf(mass, uniform).tolist() == [[5, 5, 127, 127, 700, 700, 700]]


# ------------------------------------------------------------------------------------------------- first arrivals


def arrivals(vocab, num=8):
    """Three prefixes. The first lacks a token, and the last has no more than one."""
    generator = torch.Generator().manual_seed(0)
    mass = torch.randn(3, vocab, generator=generator).mul(3).exp()
    mass[0, 5] = 0.0
    mass[2] = 0.0
    mass[2, 7] = 1.0
    return hash_number(torch.arange(3)), mass, token_counters(vocab, torch.device("cpu")), num


def splitmix(number):
    """In plain integers."""
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ (number >> shift)) * multiplier % 2**64
    return number ^ (number >> 31)


def assert_first(found, case):
    """Times and tokens by the formula, one by one."""
    state, mass, _, num = case
    for i, start in enumerate(state.tolist()):
        times = []
        for token, rate in enumerate(mass[i].tolist()):
            bits = splitmix((start + (token + 1) * 0x9E3779B97F4A7C15) % 2**64)
            signed = bits - 2**64 if bits >= 2**63 else bits
            uniform = (signed >> 12) * 2.0**-52 + (0.5 + 2.0**-53)
            times.append((-math.log(uniform) / rate if rate else math.inf, token))
        first = sorted(times)[:num]
        assert found[0][i].tolist() == pytest.approx([time for time, _ in first], rel=1e-14, abs=0.0)
        arrives = found[0][i].isfinite()
        assert found[1][i][arrives].tolist() == [token for time, token in first if time < math.inf]
        assert int(arrives.sum()) == min(num, int((mass[i] > 0).sum()))
        assert ((found[1][i] >= 0) & (found[1][i] < mass.shape[1])).all()


@pytest.mark.parametrize("vocab", [20, 3_001])
def test_the_first_to_arrive_are_those_of_the_formula(vocab):
    case = arrivals(vocab)
    assert_first(first_arrivals(*case), case)


def test_the_kernel_finds_the_same_arrivals(tmp_path):
    """By Triton's interpreter."""
    pytest.importorskip("triton")
    cases = [arrivals(20), arrivals(3_001), arrivals(600, num=40)]
    found = results_of("gumbel_kernels", "first_arrivals_by_kernels", cases, tmp_path)
    for x, case in zip(found, cases, strict=True):
        assert_first(x, case)


def test_the_kernel_of_arrivals_compiles_for_a_gpu_that_is_not_here():
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tinyzero_astar.search.gumbel_kernels import _first_of_block

    constants = {"NUM": 8, "BLOCK": 512}
    types = {"mass": "*fp32", "arrival": "*fp64", "vocab": "i32", "blocks": "i32"}
    signature = {x: "constexpr" if x in constants else types.get(x, "*i64") for x in _first_of_block.arg_names}
    source = ASTSource(_first_of_block, signature, constants)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert compiled.asm["cubin"] and ".local" not in compiled.asm["ptx"]  # no register had to be given up


@on_cuda
@pytest.mark.parametrize("num", [8, 64])
def test_a_gpu_finds_the_same_arrivals(num):
    state, mass, counter, _ = arrivals(151_936)
    expected = first_arrivals(state, mass, counter, num)
    found = first_arrivals(state.cuda(), mass.cuda(), counter.cuda(), num)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-14, atol=0)
    arrives = expected[0].isfinite()
    assert torch.equal(found[1].cpu()[arrives], expected[1][arrives])
