"""What was saved in a checkpoint comes back exactly and loads elsewhere, and damage is a sentence."""

from __future__ import annotations

import copy
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trees import scores_of, trees_of_rows
from tinyzero_astar.model.loading import end_tokens, load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.run import checkpoint as module
from tinyzero_astar.run.checkpoint import load_trainer, read_state, save_checkpoint
from tinyzero_astar.training.optimizer import MasterAdamW

STATE = {"iteration": 3, "num_updates": 6, "config": {"run": {"seed": 0}}}
IDS = torch.tensor([[18, 9, 19, 28, 5, 40], [7, 8, 200, 310, 12, 3]])


class Trained:
    """A policy after two steps of both optimizers."""

    def __init__(self, source, value_hidden_size=8, num_steps=2):
        language_model, self.tokenizer = load_language_model(str(source), torch.float32)
        self.policy = Policy(language_model, end_tokens(language_model), value_hidden_size)
        self.optimizers = {
            "policy_optimizer": MasterAdamW(self.policy.language_model, 1e-2, 0.1),
            "value_optimizer": MasterAdamW(self.policy.value_model, 1e-2, 0.0),
        }
        for _ in range(num_steps):
            self.step()

    def step(self):
        scores = scores_of(self.policy, trees_of_rows(IDS, 2))
        noise = torch.rand(2, 4)  # drawn from the random state that a checkpoint keeps
        value = scores.value_logit + scores.child_logit + scores.baseline
        (-(scores.logp * noise).sum() + (value - noise).square().sum()).backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    def save(self, folder):
        save_checkpoint(folder, self.policy, self.tokenizer, self.optimizers, STATE)
        return folder

    def weights(self):
        return {k: v.clone() for k, v in self.policy.state_dict().items()}

    def moments(self):
        return {
            (name, index, slot): value.clone()
            for name, optimizer in self.optimizers.items()
            for index, slots in optimizer.state_dict()["state"].items()
            for slot, value in slots.items()
        }


def assert_equal(got, want):
    assert got.keys() == want.keys()
    for key in want:
        assert torch.equal(got[key], want[key]), key


@pytest.fixture(scope="module")
def trained(tiny_base):
    torch.manual_seed(1)
    return Trained(tiny_base)


@pytest.fixture
def saved(trained, tmp_path):
    torch.manual_seed(2)
    return trained.save(tmp_path / "checkpoint_iter_3")


def damaged(saved, name, change):
    path = saved / name
    path.write_bytes(change(path.read_bytes()))


def change_tensors(saved, change):
    tensors = load_file(saved / "trainer.safetensors")
    change(tensors)
    save_file(tensors, saved / "trainer.safetensors")


# -------------------------------------------------------------------------------------------- what comes back


def test_training_goes_on_as_if_never_interrupted(trained, tmp_path):
    one = copy.deepcopy(trained)
    torch.manual_seed(2)
    folder = one.save(tmp_path / "c")
    torch.rand(5)
    other = Trained(folder, num_steps=0)
    state = load_trainer(folder, other.policy, other.optimizers)
    assert state == STATE
    assert_equal(other.weights(), one.weights())
    assert_equal(other.moments(), one.moments())
    other.step()
    torch.manual_seed(2)
    one.step()
    assert_equal(other.weights(), one.weights())
    assert_equal(other.moments(), one.moments())


def test_evaluation_loads_the_value_model_alone(trained, saved, tiny_base):
    other = Trained(saved, num_steps=0)
    before = torch.get_rng_state()
    assert load_trainer(saved, other.policy, {}) == STATE
    assert_equal(other.weights(), trained.weights())
    assert other.moments() == {} and torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_plain_from_pretrained_gives_the_same_tokens_and_logits(trained, saved):
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert torch.equal(model(IDS).logits, trained.policy.language_model(IDS).logits)
    assert model.dtype == torch.float32
    texts = [
        "23*45=?\n<think>",
        "</think><answer>1035</answer><|endoftext|>",
        "a  b\n\n\tc 1234567 don't é 漢字 \0",
        "multiples of 12: 12 24 36",
    ]
    for text in texts:
        ids = trained.tokenizer(text)["input_ids"]
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == trained.tokenizer.decode(ids) == text
    tags = tokenizer(texts[1])["input_ids"]
    assert len(tags) == len(["</think>", "<answer>", *"1035", "</answer>", "<|endoftext|>"])
    assert (tokenizer.eos_token_id,) == trained.policy.eos_ids == (tags[-1],)


def test_a_checkpoint_holds_text_and_safetensors_only(saved):
    names = {p.name for p in saved.rglob("*")}
    assert {
        "model.safetensors",
        "trainer.safetensors",
        "trainer.json",
        "manifest.json",
        "config.json",
        "tokenizer.json",
    } <= names
    for path in saved.rglob("*"):
        assert path.suffix in {".json", ".safetensors", ".txt", ".jinja"}, path
        if path.suffix == ".safetensors":
            load_file(path)
        else:
            path.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------ how it is written


def test_a_checkpoint_has_its_name_only_when_complete(trained, saved, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    fresh = saved.with_name("checkpoint_iter_4")

    def full_disk(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(module, "save_file", full_disk)
        for folder in (fresh, saved):
            with pytest.raises(OSError, match="no space"):
                trained.save(folder)
    assert not fresh.exists()
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    trained.save(fresh)  # what the failure left behind is in nobody's way
    assert not list(saved.parent.glob("checkpoint_iter_4.partial"))


def test_a_tokenizer_that_cannot_be_written_is_an_error_of_the_system(trained, tmp_path, monkeypatch):
    for kind, found in ((Exception, OSError), (ZeroDivisionError, ZeroDivisionError)):

        def full_disk(*_, kind=kind):
            raise kind("No space left on device (os error 28)")  # Exception is all that tokenizers says

        monkeypatch.setattr(trained.tokenizer, "save_pretrained", full_disk)
        with pytest.raises(found, match="No space left"):
            trained.save(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_older_checkpoint_of_the_same_name_is_replaced_whole(trained, saved):
    (saved / "stray.txt").write_text("old")
    save_checkpoint(saved, trained.policy, trained.tokenizer, trained.optimizers, {**STATE, "num_updates": 7})
    assert read_state(saved)["num_updates"] == 7
    assert not (saved / "stray.txt").exists()


# -------------------------------------------------------------------------------------------- what is refused


def refusal(folder, source=None, **options):
    other = Trained(source or folder, num_steps=0, **options)
    with pytest.raises(ValueError) as refused:
        load_trainer(folder, other.policy, other.optimizers)
    sentence = str(refused.value)
    assert sentence.startswith(f"checkpoint {folder}: ") and "\n" not in sentence
    return sentence.removeprefix(f"checkpoint {folder}: ")


@pytest.mark.parametrize(
    "change",
    [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"\xff" * 64, lambda b: b[:4]],
    ids=["half", "last byte", "empty", "noise", "four bytes"],
)
def test_damaged_tensors_are_refused(saved, change):
    damaged(saved, "trainer.safetensors", change)
    assert refusal(saved).startswith("trainer.safetensors cannot be read (")


@pytest.mark.parametrize("name", ["trainer.safetensors", "trainer.json"])
def test_a_missing_file_is_refused(saved, name):
    (saved / name).unlink()
    assert refusal(saved).startswith(f"{name} cannot be read (")


@pytest.mark.parametrize(
    "change",
    [lambda b: b[:-3], lambda b: b"", lambda b: b"\xff\xfe" + b, lambda b: b"[" * 100_000],
    ids=["cut", "empty", "no UTF-8", "deep"],
)
def test_a_damaged_state_is_refused(saved, change):
    damaged(saved, "trainer.json", change)
    assert refusal(saved).startswith("trainer.json cannot be read (")


@pytest.mark.parametrize(
    "state",
    [
        [],
        3,
        {k: v for k, v in STATE.items() if k != "config"},
        {**STATE, "iteration": "3"},
        {**STATE, "iteration": None},
        {**STATE, "num_updates": 1.5},
        {**STATE, "config": []},
    ],
)
def test_a_state_without_its_fields_is_refused(saved, state):
    (saved / "trainer.json").write_text(json.dumps(state))
    assert refusal(saved).startswith("trainer.json lacks iteration, num_updates or config")


def test_only_regular_files_are_read(saved):
    (saved / "trainer.json").unlink()
    os.mkfifo(saved / "trainer.json")
    assert refusal(saved).startswith("trainer.json cannot be read (trainer.json is no regular file)")


def test_optimizers_that_never_stepped_come_back(tiny_base, tmp_path):
    fresh = Trained(tiny_base, num_steps=0)
    state = {**STATE, "num_updates": 0}
    save_checkpoint(tmp_path / "c", fresh.policy, fresh.tokenizer, fresh.optimizers, state)
    other = Trained(tmp_path / "c", num_steps=0)
    assert load_trainer(tmp_path / "c", other.policy, other.optimizers) == state
    assert other.moments() == {}


def test_a_value_model_of_another_width_is_refused(saved):
    assert refusal(saved, value_hidden_size=9).startswith("its value model does not fit (")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("random_state"),
        lambda t: t.update({"random_state": torch.zeros(3, dtype=torch.uint8)}),
        lambda t: [t.pop(k) for k in list(t) if k.startswith("policy_optimizer.")],
        lambda t: t.update({"policy_optimizer.0.exp_avg": torch.zeros(3, 3)}),
        lambda t: t.update({"value_optimizer.99.exp_avg": torch.zeros(3, 3)}),
        lambda t: t.pop("policy_optimizer.0.exp_avg"),
        lambda t: t.pop("value_optimizer.1.step"),
        lambda t: t.update({"policy_optimizer.0.exp_avg_sq": torch.tensor(0.0)}),
        lambda t: t.update({"policy_optimizer.0.step": torch.ones(2)}),
        lambda t: t.update({"value_optimizer.0.exp_avg": t["value_optimizer.0.exp_avg"].int()}),
        lambda t: t.update({"policy_optimizer.0.stray": torch.tensor(0.0)}),
        lambda t: t.update({"value_optimizer.first.exp_avg": torch.zeros(3, 3)}),
    ],
    ids=[
        "no random state",
        "short random state",
        "no optimizer",
        "wrong shape",
        "one parameter too many",
        "no moment",
        "no step",
        "scalar moment",
        "two steps",
        "integers",
        "stray slot",
        "no number",
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, change):
    change_tensors(saved, change)
    assert refusal(saved).startswith("trainer.safetensors does not hold what resuming needs (")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda b: b[:-1]),
        ("tokenizer.json", lambda b: b[:-9]),
        ("tokenizer_config.json", lambda b: b[:-9]),
        ("config.json", lambda b: b[:-9]),
        ("config.json", lambda b: b.replace(b'"hidden_size": 16', b'"hidden_size": 32')),
    ],
)
def test_a_damaged_model_is_refused(saved, name, change):
    damaged(saved, name, change)
    with pytest.raises(ValueError) as refused:
        load_language_model(str(saved), torch.float32)
    what = "a file" if b'"hidden_size": 32' in (saved / name).read_bytes() else name  # transformers does not say which
    assert str(refused.value).startswith(f"model_name '{saved}': {what} in that folder cannot be used (")
    assert "\n" not in str(refused.value)


def test_a_model_without_some_weights_or_its_tokenizer_is_refused(saved, tmp_path):
    lacking = shutil.copytree(saved, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of its weights are missing, first model\.norm\.weight"):
        load_language_model(str(lacking), torch.float32)
    (saved / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"lacks a tokenizer \(tokenizer\.json\)"):
        load_language_model(str(saved), torch.float32)
