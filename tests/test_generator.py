"""What the update is handed of a search, leaf by leaf."""

from __future__ import annotations

import pytest
import torch

from tests.decoding import shake_value_model
from tests.oracles import Table, TableDecoder
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.model.decoder import SlotDecoder
from tinyzero_astar.model.loading import load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts
from tinyzero_astar.rollout.generator import (
    Generator,
    RewardedRollouts,
    SearchSettings,
    make_batch,
    problem_seeds,
)
from tinyzero_astar.training.reward import RewardWeights
from tinyzero_astar.training.thinning import thin_weights

PAD = 99


def test_batch_rows_are_the_leaves_that_thinning_left_with_their_thinned_weights():
    prompts = [[0, 7, 8], [1], [2, 9]]
    decoder = TableDecoder([Table(3, 4, seed=s, peak=0.7) for s in range(3)], value_noise=1.5)
    rollouts = astar_rollouts(
        decoder,
        prompts,
        seeds=torch.arange(3),
        num_rollouts=6,
        beam_width=7,
        max_search_depth=4,
        guidance=Guidance(inverse_beta=2.0, cap=None),
    )
    accuracy, form, uniform = torch.rand(3, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    thinned = thin_weights(rollouts.weight, uniform, floor=0.2)
    batch = make_batch(
        RewardedRollouts(
            problems=[],
            prompts=prompts,
            rollouts=rollouts,
            texts=[],
            verdicts=[],
            accuracy=accuracy,
            format=form,
            reward=2 * accuracy - form,
            weight=rollouts.weight,
            update_weight=thinned,
        ),
        PAD,
    )
    rows = [(i, k) for i in range(3) for k in range(6) if thinned[i, k] > 0]
    assert 3 < len(rows) < 18, "thinning kept or dropped everything: nothing was tested"
    assert not torch.equal(thinned[thinned > 0], rollouts.weight[thinned > 0])
    assert batch.problem.tolist() == [i for i, _ in rows]
    for row, (i, k) in enumerate(rows):
        n, m = len(prompts[i]), int(rollouts.length[i, k])
        leaf = rollouts.tokens[i, k, :m].tolist()
        assert int(batch.prompt_length[row]) == n
        assert batch.ids[row].tolist() == prompts[i] + leaf + [PAD] * (batch.ids.shape[1] - n - m)
        assert batch.is_token[row].tolist() == [t < m for t in range(batch.tokens.shape[1])]
        assert batch.tokens[row, :m].tolist() == leaf
        logp = [decoder.tables[i].log_prob[tuple(leaf[:t])][leaf[t]] for t in range(m)]  # of pi, not of q
        assert batch.logp_sampler[row, :m].tolist() == pytest.approx(logp, abs=1e-6)
        for name, table in (("weight", thinned), ("accuracy", accuracy), ("format", form)):
            assert float(getattr(batch, name)[row]) == pytest.approx(float(table[i, k]), abs=1e-6)
        assert float(batch.reward[row]) == pytest.approx(float(2 * accuracy[i, k] - form[i, k]), abs=1e-6)


@pytest.mark.parametrize(("mode", "strength"), [("gumbel", 1.0), ("gumbel", 0.0), ("sample", 1.0), ("best_first", 1.0)])
def test_a_guided_search_reads_the_values_of_children(mode, strength, tiny_base):
    """The rollouts are those of the search itself, and q differs from pi where they are guided."""
    model, tokenizer = load_language_model(str(tiny_base), torch.float32)
    torch.manual_seed(0)
    policy = shake_value_model(Policy(model.eval(), (tokenizer.eos_token_id,), 8))
    task = Multiplication(2, 2, 40, seed=0, template="compact")
    problems = task.train_problems(0, 4)
    guidance = Guidance(inverse_beta=2.0, cap=None, strength=strength)
    settings = SearchSettings(mode, 3, 5, 6, guidance, unguided_fraction=0.0, min_weight=0.0)
    generator = Generator(policy, tokenizer, task, RewardWeights(), 128)
    found = generator.generate(problems, settings, seed=0, iteration=0).rollouts
    wanted = astar_rollouts(
        SlotDecoder(policy, 6),
        generator.encode(problems, 6)[0],
        seeds=problem_seeds(problems, 0, 0),
        num_rollouts=3,
        beam_width=5,
        max_search_depth=6,
        mode=mode,
        guidance=guidance,
    )
    assert found.tokens.tolist() == wanted.tokens.tolist()
    torch.testing.assert_close(found.logq, wanted.logq)
    torch.testing.assert_close(found.priority, wanted.priority)
    if mode == "gumbel":
        assert bool(((found.logq - found.logp).abs() > 0.01).any()) == (strength > 0)
