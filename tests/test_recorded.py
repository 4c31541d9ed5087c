"""Steps that are recorded as a whole find what steps done one by one find, and wait for the device once."""

from __future__ import annotations

from dataclasses import astuple, fields
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.decoding import WAITING, Rerun, Tape, shake_value_model
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.interfaces import Trace
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Forest, Guidance, astar_rollouts, greedy_rollouts
from tinyzero_astar.search.children import Further
from tinyzero_astar.search.gumbel import token_counters

PROMPTS = [[3, 4, 5], [7, 8, 9, 10, 11], [5], [9, 9, 2, 1], [2, 3], [6, 6, 6]]
DEPTH = 7


def make_policy(seed, spread=0.5):
    """A random one in float64, so that both ways decide alike. End tokens are likely enough to end some rows early."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=spread,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval().double()
    return shake_value_model(Policy(model, (0, 12), value_hidden_size=8).double())


def search(policy, prompts=PROMPTS, **options):
    wanted = {"num_rollouts": 3, "beam_width": 5, "max_search_depth": DEPTH, **options}
    return astar_rollouts(
        SlotDecoder(policy, wanted["max_search_depth"]), prompts, seeds=100 + torch.arange(len(prompts)), **wanted
    )


def assert_same(found, wanted):
    for field in fields(wanted):
        if field.name != "stats":
            torch.testing.assert_close(
                getattr(found, field.name), getattr(wanted, field.name), atol=1e-9, rtol=1e-9, equal_nan=True
            )
    for field in fields(wanted.stats):
        assert torch.equal(getattr(found.stats, field.name), getattr(wanted.stats, field.name)), field.name


GUIDED = Guidance(inverse_beta=2.0, cap=1.5)
TILT = torch.tensor([0.3, -0.2, 0.0, -0.5, 0.1, 0.2], dtype=torch.float64)
SEARCHES = {
    "sample": {"mode": "sample"},
    "samples of a forest": {"mode": "sample", "forest": Forest(3), "num_rollouts": 4 / 3, "beam_width": 4},
    "unguided": {"guidance": Guidance(strength=0.0)},
    "guided": {"guidance": GUIDED},
    "guided away from success": {"guidance": Guidance(inverse_beta=-2.0, cap=None)},
    "balanced, some problems unguided": {"guidance": Guidance(strength=torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 1.0]))},
    "forest": {"guidance": Guidance(strength=0.0), "forest": Forest(3), "num_rollouts": 2},
    "tilted guided forest": {"guidance": GUIDED, "forest": Forest(3, TILT), "num_rollouts": 5 / 3},
    "forest with fewer leaves than problems": {"forest": Forest(6, TILT), "num_rollouts": 0.5},
    "one leaf": {"num_rollouts": 1},
    "two tokens": {"max_search_depth": 2},
    "one token": {"max_search_depth": 1},
}


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("spread", [0.2, 0.6], ids=["diffuse", "peaked"])
def test_whole_steps_find_what_single_steps_find(options, spread):
    for seed in range(3):
        policy = make_policy(seed, spread)
        traces = Trace(2), Trace(2)
        wanted = search(policy, trace=traces[0], **options)
        policy.recorder = Rerun()
        found = search(policy, trace=traces[1], **options)
        assert (policy.recorder.num_replayed > 0) == (options.get("max_search_depth", DEPTH) > 1)
        assert_same(found, wanted)
        pairs = zip(traces[0].nodes, traces[1].nodes, strict=True)
        assert all(astuple(a) == pytest.approx(astuple(b), abs=1e-9, nan_ok=True) for a, b in pairs)


def test_the_likeliest_tokens_are_the_same():
    policy = make_policy(0)
    wanted = greedy_rollouts(SlotDecoder(policy, DEPTH), PROMPTS, DEPTH)
    policy.recorder = Rerun()
    assert_same(greedy_rollouts(SlotDecoder(policy, DEPTH), PROMPTS, DEPTH), wanted)


# for 8 columns, then 12. In the forest one row has further children that matter, at a depth with 12
@pytest.mark.parametrize(("name", "recorded"), [("sample", 2), ("tilted guided forest", 3)])
def test_a_step_is_recorded_without_waiting_once_for_every_shape(name, recorded, monkeypatch):
    monkeypatch.setattr("tinyzero_astar.engine.decoder.BLOCK", 4)
    policy = make_policy(1, 0.2)
    wanted = search(policy, **SEARCHES[name])
    policy.recorder = Tape()
    assert_same(search(policy, **SEARCHES[name]), wanted)
    assert policy.recorder.num_recorded == recorded < policy.recorder.num_replayed


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sample", "unguided", "tilted guided forest"])
def test_more_steps_wait_for_nothing_but_their_flags(name):
    policy, found = make_policy(2, 0.2), []
    for depth in (4, DEPTH):
        policy.recorder = Rerun()
        with Waits() as waits:  # `Tensor.tolist`, which reads the flags, does not count on a CPU
            search(policy, **{**SEARCHES[name], "max_search_depth": depth})
        found.append((waits.count, policy.recorder.num_replayed))
    assert found[0][0] == found[1][0] and found[0][1] < found[1][1]


@pytest.mark.parametrize("where", ["logits", "child"])
def test_what_is_no_number_is_refused(where):
    policy = make_policy(0)
    policy.recorder = Rerun()
    weight = policy.value_model.up.weight if where == "child" else policy.language_model.model.norm.weight
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        search(policy, guidance=GUIDED)


@pytest.mark.parametrize("name", ["sample", "guided"])
def test_what_is_no_number_in_a_later_step_is_refused(name):
    """The prompts are read without a recording, and there all is well."""
    policy = make_policy(0)
    policy.recorder = Rerun()
    with torch.no_grad():
        policy.language_model.model.embed_tokens.weight[5:12] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        search(policy, [[3], [4, 2], [1]], **SEARCHES[name])
    assert policy.recorder.num_replayed > 0


def test_of_a_row_without_further_children_none_can_be_chosen():
    """All its mass is on its best child, so what would be the first one never arrives."""
    mass = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.3, 0.1]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    beam = SimpleNamespace(places=torch.arange(2), row=torch.arange(2)[None], hashes=torch.arange(6).view(3, 2))
    children = SimpleNamespace(log_rate=zero, second=torch.tensor([-torch.inf, 0.5]).double(), others=mass.__getitem__)
    counters = token_counters(3, torch.device("cpu"))
    first, second = Further.drawn(beam, children, torch.arange(2), counters).priority.view(2, 2)
    assert first.tolist() == [-torch.inf] * 2
    assert float(second[0]) == 0.5 and -torch.inf < float(second[1]) < 0.5
