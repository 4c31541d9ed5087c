"""Losses and gradients equal those of TRL's own trainers on the same rollouts. Needs `pip install -e '.[trl]'`.

TRL is given our rollouts in place of its generation. It computes the rest itself, which is advantages,
log-probabilities before the update, and the loss. In between the weights move, so that ratios differ from 1 and some
are clipped.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

pytest.importorskip(
    "trl", reason="TRL is not installed (pip install -e '.[trl]'): losses are not compared with its own"
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages deprecate is not ours to mend
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    from trl.experimental.a2po import A2POConfig, A2POTrainer

from tests.trees import scores_of_batch
from tinyzero_astar.interfaces import Batch, Reference
from tinyzero_astar.model.model import Policy
from tinyzero_astar.training.advantages import optimal_value
from tinyzero_astar.training.algorithms import ALGORITHMS

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = ["12*34=", "7*8=", "45*6="]
LEAVES = 4
MAX_LENGTH = 9
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
LENGTHS = torch.tensor([3, 9, 1, 5, 2, 2, 7, 4, 9, 6, 3, 1])
REWARDS = torch.tensor([1.1, 0.1, 0.0, 1.1, 0.0, 0.0, 0.0, 1.1, 1.1, 1.1, 0.1, 1.1])


@pytest.fixture
def setting(tiny_base):
    """A model, its tokenizer, and rollouts of it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, len(tokenizer), (len(LENGTHS), MAX_LENGTH), generator=generator)
    empty = torch.zeros(tokens.shape)
    batch = Batch(
        prompts=tokenizer(PROMPTS)["input_ids"],
        problem=torch.arange(len(PROMPTS)).repeat_interleave(LEAVES),
        tokens=tokens,
        is_token=torch.arange(MAX_LENGTH) < LENGTHS[:, None],
        weight=torch.full((len(tokens),), 1 / LEAVES),
        accuracy=(REWARDS > 1).float(),
        reward=REWARDS,
        logp_old=empty,
        baseline=empty,
        advantage=empty,
    )
    return model, tokenizer, batch


def completions(batch):
    return [row[:n].tolist() for row, n in zip(batch.tokens, batch.is_token.sum(1).tolist(), strict=True)]


def log_probs(model, batch):
    return scores_of_batch(Policy(model, (0,), value_hidden_size=4), batch).logp


def move(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def ours(model, algorithm, batch, logp_old):
    """Loss and gradient at the model's present weights. Those before the update gave `logp_old`."""
    batch, _ = algorithm.prepare(replace(batch, logp_old=logp_old))
    loss = algorithm.loss(batch, log_probs(model, batch)) / algorithm.count(batch, len(PROMPTS))
    return float(loss.detach()), gradients(model, loss)


def arguments(kind, folder, **options):
    return kind(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=len(LENGTHS), per_device_eval_batch_size=len(LENGTHS), **options,
    )  # fmt: skip


def trainer_of(kind, config, setting):
    model, tokenizer, _ = setting
    return kind(
        model=model, reward_funcs=[lambda prompts, **_: REWARDS[: len(prompts)].tolist()], args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}), processing_class=tokenizer,
    )  # fmt: skip


def theirs(trainer, batch, generated):
    """The same of TRL, and the weights moved in between."""
    model = trainer.model.eval()  # TRL then divides by nothing for gradient accumulation
    trainer._generate_single_turn = lambda *_, **__: generated
    inputs = trainer._generate_and_score_completions([{"prompt": PROMPTS[i]} for i in batch.problem.tolist()])
    move(model)
    loss = trainer._compute_loss(model, inputs)
    return float(loss.detach()), gradients(model, loss)


def assert_same(got, want):
    assert got[0] == pytest.approx(want[0], abs=1e-5)
    torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=1e-4)
    assert float(want[1].abs().max()) > 1e-2


def assert_some_are_clipped(log_ratio):
    assert (log_ratio.exp() > 1.28).any() and (log_ratio.exp() < 0.8).any()


@pytest.mark.parametrize("group_loss", ["grpo", "dapo", "dr_grpo"])
def test_grpo_equals_grpo_trainer(setting, group_loss, tmp_path):
    model, _, batch = setting
    config = arguments(
        GRPOConfig, tmp_path, num_generations=LEAVES, max_completion_length=MAX_LENGTH, loss_type=group_loss,
        scale_rewards="none" if group_loss == "dr_grpo" else "group", beta=0.0, num_iterations=2,
        epsilon=CLIP["clip_low"], epsilon_high=CLIP["clip_high"],
    )  # fmt: skip
    old = log_probs(model, batch).detach()
    want = theirs(trainer_of(GRPOTrainer, config, setting), batch, (completions(batch), None))
    algorithm = ALGORITHMS["grpo"](group_loss=group_loss, max_length=MAX_LENGTH, **CLIP)
    got = ours(model, algorithm, batch, old)
    assert_same(got, want)
    assert_some_are_clipped((log_probs(model, batch) - old)[batch.is_token])


def test_rloo_equals_rloo_trainer(setting, tmp_path):
    model, _, batch = setting
    config = arguments(
        RLOOConfig, tmp_path, num_generations=LEAVES, max_completion_length=MAX_LENGTH, beta=0.0,
        epsilon=CLIP["clip_low"], epsilon_high=CLIP["clip_high"],
    )  # fmt: skip
    old = log_probs(model, batch).detach()
    want = theirs(trainer_of(RLOOTrainer, config, setting), batch, completions(batch))
    got = ours(model, ALGORITHMS["rloo"](**CLIP), batch, old)
    assert_same(got, want)
    assert_some_are_clipped(torch.where(batch.is_token, log_probs(model, batch) - old, 0.0).sum(1))


def test_optimal_advantage_equals_a2po_trainer(setting, tmp_path):
    """Stage 1 is V* of reference rollouts, stage 2 the regression on one rollout per problem."""
    model, _, batch = setting
    config = arguments(
        A2POConfig, tmp_path, num_value_samples=LEAVES, beta1=0.5, beta2=0.3, filter_all_incorrect=False,
        max_completion_length=MAX_LENGTH,
    )  # fmt: skip
    trainer = trainer_of(A2POTrainer, config, setting)
    trainer.ref_model.generate = lambda input_ids, **_: torch.cat(
        [input_ids.repeat_interleave(LEAVES, 0), batch.tokens], 1
    )
    trainer._estimate_optimal_values()
    value = optimal_value(REWARDS.view(len(PROMPTS), LEAVES), 0.5)
    assert [trainer._optimal_values[p] for p in PROMPTS] == pytest.approx(value.tolist(), abs=1e-6)

    rows = batch.rows(torch.tensor([1, 4, 11]))
    rows = replace(rows, weight=torch.ones(3), reference=Reference(log_probs(model, rows).detach(), value))
    move(model)
    losses = []
    for i, completion in enumerate(completions(rows)):  # one by one: nothing is padded
        ids = torch.tensor([[*rows.prompts[i], *completion]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_to_keep": len(completion)}
        with torch.no_grad():
            reference = trainer._get_sequence_logps(trainer.ref_model, **inputs)
        inputs |= {"ref_logps": reference, "rewards": rows.reward[i : i + 1], "v_star": value[i : i + 1]}
        losses.append(trainer.compute_loss(model.eval(), inputs))
    want = torch.stack(losses).mean()
    got = ours(model, ALGORITHMS["optimal_advantage"](beta=0.3), rows, rows.logp_old)
    assert_same(got, (float(want.detach()), gradients(model, want)))
