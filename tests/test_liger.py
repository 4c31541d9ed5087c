"""Liger's kernels need a GPU. Tested here is that they are refused in one sentence, and how they are asked for."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from tinyzero_astar.cli.train import main
from tinyzero_astar.model import policy_loading as policies
from tinyzero_astar.model.liger import apply_liger, import_liger
from tinyzero_astar.model.loading import load_language_model

CUDA = torch.device("cuda")
INSTEAD = "leave out --model.liger, or set it to false in the config.json of a run to be resumed"
FLAGS = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


@pytest.fixture
def calls(monkeypatch):
    """Calls of a planted module's function, (model, flags) each."""
    made = []
    fake = ModuleType("liger_kernel.transformers.monkey_patch")
    fake.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen2": None}
    fake._apply_liger_kernel_to_instance = lambda model, **flags: made.append((model, flags))
    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.transformers, inner.monkey_patch = inner, fake
    for module in (package, inner, fake):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_without_a_gpu_a_run_is_refused_before_anything_is_loaded(calls, tmp_path, capsys):
    argv = ["--model.liger", "--model.device", "cpu", "--model.model-name", "no/such-model"]
    assert main([*argv, "--output-dir", str(tmp_path / "r")]) == 2
    want = f"error: model.liger asks for kernels for GPUs, but the model is on cpu: {INSTEAD}\n"
    assert capsys.readouterr().err == want
    assert not calls and not (tmp_path / "r").exists()


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ValueError) as refused:
        import_liger(CUDA)
    sentence = str(refused.value)
    assert sentence.startswith("model.liger asks for the kernels of liger-kernel, which cannot be imported (")
    assert sentence.endswith(f"): pip install -e '.[gpu]', or {INSTEAD}") and "\n" not in sentence


def test_a_package_that_does_not_fit_is_one_sentence_with_its_reason(calls, monkeypatch):
    del sys.modules["liger_kernel.transformers"].monkey_patch
    monkeypatch.delitem(sys.modules, "liger_kernel.transformers.monkey_patch")
    with pytest.raises(ValueError, match=r"cannot be imported \(.*monkey_patch.*\): pip install"):
        import_liger(CUDA)


def test_an_architecture_without_kernels_is_refused(calls, tiny_base):
    model, _ = load_language_model(str(tiny_base), torch.float32)
    model.config.model_type = "opt"
    with pytest.raises(ValueError) as refused:
        apply_liger(model, CUDA)
    assert str(refused.value) == f"model.liger: liger-kernel has no kernels for architecture 'opt'; {INSTEAD}"
    assert not calls


def test_the_kernels_are_asked_for_once_without_fused_losses_and_before_decoding_is_checked(
    calls, tiny_base, monkeypatch
):
    seen_by_check, check = [], policies.check_decoding

    def checked(policy):
        seen_by_check.extend(calls)
        check(policy)

    monkeypatch.setattr(policies, "check_decoding", checked)
    monkeypatch.setattr(policies.Policy, "to", lambda self, device: self)  # there is no GPU to go to
    options = {"dtype": torch.float32, "device": CUDA, "value_hidden_size": 8, "max_length": 128}
    policy, _ = policies.load_policy(str(tiny_base), **options, liger=True)
    assert [(model is policy.language_model, flags) for model, flags in calls] == [(True, FLAGS)]
    assert seen_by_check == calls
    policies.load_policy(str(tiny_base), **options)
    assert len(calls) == 1
