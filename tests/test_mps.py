"""Apple's GPUs have no float64. The search stays on the CPU, and what reaches the device is without it.

No such GPU is here. The CPU plays it. Whatever runs on the device must not make a float64 tensor, or it is refused.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tinyzero_astar as tz
from tests.test_run import OPTIONS, judge
from tinyzero_astar import distributed
from tinyzero_astar.cli.options import config_of, parse
from tinyzero_astar.cli.train import main
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.engine import host_decoder
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.engine.host_decoder import HostDecoder
from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.model import token_logp
from tinyzero_astar.resources import machine
from tinyzero_astar.resources.machine import choose_device
from tinyzero_astar.training.update import Updater


class NoFloat64(TorchDispatchMode):
    """Refuses every operation that takes or gives a float64 tensor, as the device would."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            if isinstance(x, torch.Tensor) and x.dtype == torch.float64 and x.ndim > 0:
                raise AssertionError(f"{function} works with float64")
        return result


def guarded(method):
    def call(*args, **options):
        with NoFloat64():
            return method(*args, **options)

    return call


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Multiplication, "verify", judge)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def config(tiny_base):
    return config_of(parse(["--model.model-name", str(tiny_base), *OPTIONS.split()]))


@contextmanager
def as_if_without_float64():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_decoder, "WITHOUT_FLOAT64", {"cpu"})
        for name in ("start", "step", "_score_children", "_score_child"):
            patch.setattr(SlotDecoder, name, guarded(getattr(SlotDecoder, name)))
        patch.setattr(Updater, "update", guarded(Updater.update))
        yield


def test_a_run_is_the_same_and_nothing_in_float64_reaches_the_device(config):
    def run():
        model = tz.load(config=config, is_quiet=True)
        metrics = [{k: v for k, v in m.items() if not k.startswith("time/")} for m in model.train(3)]
        leaves = [model.search("3*4=", 3, mode=m, is_guided=True).leaves for m in ("gumbel", "sample", "best_first")]
        return metrics, str(leaves), model.evaluate()

    expected = run()
    with as_if_without_float64():
        assert str(run()) == str(expected)


class Elsewhere:
    """A decoder that must be spoken to on the device "meta", and answers from the CPU."""

    eos_ids = (0,)
    device = torch.device("meta")

    def start(self, prompts, home, *, can_cross=False):
        there = home.to("meta")
        return self.step(there, None, there, there, torch.zeros(1, 3, device="meta"))

    def step(self, tokens, source, length, target, path):
        assert {x.device.type for x in (tokens, source, length, target, path) if x is not None} == {"meta"}
        assert path.dtype == torch.float32
        return StepOutput(torch.ones(1, 2), torch.ones(1), self.ones, torch.ones(1), self.ones)

    def ones(self, *tensors):
        assert {x.device.type for x in tensors} == {"meta"}
        return torch.ones(1)


def test_the_search_is_kept_off_the_device(monkeypatch):
    network = Elsewhere()
    assert type(host_decoder.make_decoder(network, 3)) is SlotDecoder
    monkeypatch.setattr(host_decoder, "WITHOUT_FLOAT64", {"meta"})
    assert type(host_decoder.make_decoder(network, 3)) is HostDecoder
    decoder = HostDecoder(network, network.device)
    n, path, logp = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 2)
    for output in (decoder.start([[1]], n), decoder.step(n, n, n, n, path)):
        tensors = [x for x in output if isinstance(x, torch.Tensor)]
        tensors += [output.child_logit(logp), output.taken(n, n, logp)]
        assert {x.device.type for x in tensors} == {"cpu"} and len(tensors) == 5


def test_float64_on_the_device_would_be_found():
    assert guarded(lambda: torch.ones(2) + 1)().tolist() == [2, 2]
    with pytest.raises(AssertionError, match="works with float64"):
        guarded(lambda: torch.ones(2).double())()


def test_every_table_of_devices_has_it():
    assert all("mps" in table for table in (machine._COPIED, machine._WIDTH, token_logp.BLOCK_ELEMENTS))


def test_without_an_apple_gpu_it_is_refused_in_one_sentence(config, capsys):
    if torch.backends.mps.is_available():
        pytest.skip("there is one")
    assert main(["--model.model-name", config.model.model_name, "--model.device", "mps"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: device mps: PyTorch ") and err.count("\n") == 1 and "use --model.device cpu" in err


def test_what_is_not_supported_there_is_refused_in_one_sentence(config, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps").type == "mps" and choose_device("auto").type != "mps"
    for options, sentence in (
        (
            "--train.algorithm rloo --search.mode sample --search.num-rollouts-per-problem 2",
            "algorithm rloo is not supported on device mps, which has no",
        ),
    ):
        argv = ["--model.model-name", config.model.model_name, "--model.device", "mps", *options.split()]
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {sentence}") and err.count("\n") == 1
    with pytest.raises(ValueError, match="--distributed is not supported on device mps: leave it out"):
        distributed.set_up(torch.device("mps"), 1.0)
