"""The search on a GPU. Its noise and its laws are those of a CPU, its scores the trainer's, and it hardly waits."""

from __future__ import annotations

import warnings

import pytest
import torch

from benchmarks.gpu_shapes import config_of
from tests import test_forest as forests
from tests import test_theory as theory
from tests.devices import DEVICE, IS_CUDA, cuda_only, make_recorder, on_device
from tests.oracles import IndexedDecoder, Table, TableDecoder
from tests.test_gpu_decoding import CONFIGS, DTYPES, GUIDED, PLAIN, PROBLEMS, make_policy
from tests.trees import trees_of
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts
from tinyzero_astar.search.gumbel import (
    hash_number,
    hash_with,
    inverse_cdf,
    prefix_hashes,
    root_gumbel,
    to_uniform,
    token_counters,
    token_waiting_times,
    waiting_time,
)

pytestmark = on_device

ULP = 2.0**-52
NUMBERS = torch.cat(
    (
        torch.arange(-1000, 1000),
        torch.tensor([2**63 - 1, -(2**63), 2**62, -(2**40)]),
        torch.randint(-(2**62), 2**62, (100_000,), generator=torch.Generator().manual_seed(0)),
    )
)


def both(function, *args):
    """What a function gives on the CPU and on the device."""
    return function(*args), function(*(x.to(DEVICE) for x in args)).cpu()


# --------------------------------------------------------------------------------------------------------- the noise


@pytest.mark.parametrize(
    "function", [hash_number, prefix_hashes, to_uniform, lambda x: hash_with(x, x.flip(0))], ids=["1", "3", "u", "with"]
)
def test_hashes_and_uniform_numbers_are_those_of_a_cpu_bit_by_bit(function):
    want, got = both(function, NUMBERS)
    assert torch.equal(got, want)


def assert_equal_but_for_the_last_bits(got, want):
    """Libraries round a logarithm of float64 to within an ulp or two. One of a number near 1 is no smaller than an ulp
    of 1, which may be many of its own."""
    torch.testing.assert_close(got, want, rtol=4 * ULP, atol=4 * ULP)


def test_waiting_times_and_gumbel_numbers_are_those_of_a_cpu():
    for function in (waiting_time, root_gumbel):
        want, got = both(function, NUMBERS)
        assert_equal_but_for_the_last_bits(got, want)
    state, counter = hash_number(NUMBERS[:64]), token_counters(1000, torch.device("cpu"))
    assert torch.equal(token_counters(1000, DEVICE).cpu(), counter)
    want, got = both(token_waiting_times, state, counter)
    assert_equal_but_for_the_last_bits(got, want)


@pytest.mark.parametrize("vocabulary", [500, 151_936])
def test_the_same_tokens_are_drawn_as_on_a_cpu(vocabulary):
    generator = torch.Generator().manual_seed(0)
    mass = (3 * torch.randn(16, vocabulary, generator=generator)).softmax(-1)
    mass[:, ::7] = 0.0
    uniform = to_uniform(hash_number(torch.arange(16 * 50))).view(16, 50)
    want, got = both(inverse_cdf, mass, uniform[:, :1])
    assert torch.equal(got, want)
    assert (mass.gather(1, got) > 0).all()


# ---------------------------------------------------------------------------------------------------------- the laws


@pytest.mark.parametrize("num_leaves", [2, 7])
@pytest.mark.parametrize(
    ("guidance", "log_tilt"),
    [(forests.PLAIN, None), (forests.TILTED, None), (forests.CAPPED, forests.LOG_TILT)],
    ids=["plain", "tokens", "both"],
)
def test_the_weights_of_a_forest_are_unbiased(num_leaves, guidance, log_tilt):
    decoder = IndexedDecoder(forests.tables_of(), 0.7, DEVICE)
    forests.assert_weights_are_unbiased(decoder, num_leaves, guidance, log_tilt)


@pytest.mark.parametrize("is_tilted", [False, True])
def test_ordered_pairs_of_leaves_follow_plackett_luce(is_tilted):
    decoder = IndexedDecoder(forests.pair_of_tables(), device=DEVICE)
    forests.assert_pairs_follow_plackett_luce(decoder, is_tilted)


def test_with_room_for_every_leaf_each_has_its_own_probability_as_weight():
    forests.assert_every_leaf_has_its_own_probability_as_weight(TableDecoder(forests.tables_of(), device=DEVICE))


def test_samples_are_shared_out_fairly_and_follow_the_policy():
    decoder = IndexedDecoder(forests.tables_of(), device=DEVICE)
    forests.assert_samples_draw_the_problems_that_get_one_more(decoder, 5)


def test_best_first_returns_the_best_leaves():
    forests.assert_best_first_returns_the_best_leaves(TableDecoder(forests.tables_of(), device=DEVICE))


@pytest.mark.parametrize("guidance", [theory.PLAIN, theory.TILTED], ids=["plain", "guided"])
def test_the_weights_of_one_problem_are_unbiased(guidance):
    table = Table(3, 3, seed=11, success=0.3)
    decoder = IndexedDecoder([table], theory.NOISY, DEVICE)
    rollouts = theory.gumbel(decoder, 20_000, 4, guidance)
    found = theory.sums_of(decoder, rollouts, rollouts.weight)
    for name, want in theory.expectations(table).items():
        assert abs(theory.z_score(found[name], want)) < 4, name


@pytest.mark.parametrize("mode", ["sample", "gumbel", "best_first"])
def test_a_search_over_tables_is_the_one_of_a_cpu(mode):
    options = {"mode": mode, "num_rollouts": 4, "beam_width": 5, "max_search_depth": 4, "seeds": torch.arange(20)}
    tables = [Table(5, 4, seed=seed) for seed in range(20)]
    want, got = (
        astar_rollouts(
            IndexedDecoder(tables, 1.0, device),
            [[i] for i in range(20)],
            guidance=Guidance(inverse_beta=2.0),
            **options,
        )
        for device in ("cpu", DEVICE)
    )
    assert got.tokens.tolist() == want.tokens.tolist() and got.length.tolist() == want.length.tolist()
    for name in ("logp", "logq", "priority", "kappa", "weight", "value"):
        found = getattr(got, name).cpu()
        torch.testing.assert_close(found, getattr(want, name), atol=1e-9, rtol=1e-9, equal_nan=True)


# ------------------------------------------------------------------------------------------ the trainer, and the waits


# The largest error of a ratio, and the mean. In bfloat16 search and trainer round, by eps / 4 on average, what passes
# from one operation to the next. A logit takes over some of these errors, of both. So 4 eps are allowed on average. The
# largest of some hundred normal numbers is at most six times the mean of their magnitudes.
EPS = torch.finfo(torch.bfloat16).eps
ALLOWED = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (24 * EPS, 4 * EPS)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*CONFIGS, "0.5B"])
def test_probabilities_of_the_search_are_those_that_the_trainer_computes(name, dtype):
    """As ratios."""
    config = CONFIGS[name] if name in CONFIGS else config_of(name if IS_CUDA else "tiny")
    policy, depth = make_policy(config, dtype), 20
    for recorder in (None, make_recorder()):
        policy.recorder = recorder
        rollouts = astar_rollouts(
            SlotDecoder(policy, depth),
            PROBLEMS,
            seeds=torch.arange(len(PROBLEMS)),
            num_rollouts=3,
            beam_width=4,
            max_search_depth=depth,
            guidance=PLAIN,
        )
        tokens = [
            [row[:n] for row, n in zip(rows, lengths, strict=True)]
            for rows, lengths in zip(rollouts.tokens.tolist(), rollouts.length.tolist(), strict=True)
        ]
        with torch.no_grad():
            found = policy.token_scores(trees_of(PROBLEMS, tokens, DEVICE)).logp.double()
        own, is_token = rollouts.logp.flatten(0, 1), rollouts.is_token.flatten(0, 1)
        error = ((found - own[:, : found.shape[1]]).expm1().abs())[is_token[:, : found.shape[1]]]
        print(f"{name} {dtype}: ratios off by {float(error.max()):.2e} at most, {float(error.mean()):.2e} on average")
        largest, mean = ALLOWED[dtype]
        assert float(error.max()) < largest and float(error.mean()) < mean


def waits_of(policy, depth, mode, guidance):
    """How often the CPU waits for the GPU in a search, and its steps."""
    options = {"num_rollouts": 3, "beam_width": 4, "max_search_depth": depth, "mode": mode, "guidance": guidance}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            rollouts = astar_rollouts(
                SlotDecoder(policy, depth), PROBLEMS, seeds=torch.arange(len(PROBLEMS)), **options
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
    return where, rollouts.tokens.shape[-1]


@cuda_only
@pytest.mark.parametrize(
    ("mode", "guidance"), [("sample", PLAIN), ("gumbel", PLAIN), ("gumbel", GUIDED)], ids=["sample", "gumbel", "guided"]
)
def test_the_cpu_waits_for_the_gpu_once_a_step(mode, guidance):
    policy = make_policy(CONFIGS["qwen2"], torch.bfloat16)
    policy.recorder = make_recorder()
    waits_of(policy, 20, mode, guidance)  # warms up
    (few, short), (many, long) = (waits_of(policy, depth, mode, guidance) for depth in (20, 80))
    assert long > short + 40, "the searches are as long as each other"
    places = {place: many.count(place) - few.count(place) for place in sorted(set(many))}
    print(f"{mode}: {len(few)} waits in {short} steps, {len(many)} in {long}")
    assert len(many) - len(few) <= long - short + 2, places
    assert len(few) <= short + 40, places
