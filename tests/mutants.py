"""Planted mistakes, and the test that must catch each: `make mutants`, or `python -m tests.mutants -k NAME`.

Every entry changes one place of the package in a way that would void a claim of the documents. The runner
copies package and tests to a temporary folder, shows that the named tests pass there, then plants one mistake at
a time. A mistake counts as caught only if an assertion of a test fails, not if the changed code crashes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT_S = 900  # per mistake, against those that hang: a quiet core needs about 5
_COPIED = ("tinyzero_astar", "tests", "recipes", "benchmarks", "pyproject.toml")
# what an assertion leaves in pytest's summary; any other exception is a crash
_ASSERTED = re.compile(r"(assert |AssertionError|Failed: DID NOT RAISE)")


class Mutant(NamedTuple):
    """One mistake."""

    name: str
    meaning: str  # in plain words, for the table
    file: str  # below tinyzero_astar/
    old: str  # occurs exactly once in the file
    new: str
    tests: tuple[str, ...]  # node ids below tests/, the quickest that catch it


class Outcome(NamedTuple):
    """What became of a mistake."""

    verdict: str  # "caught", "SURVIVED", "STALE" or "INVALID"
    detail: str  # the first failing test, or what is wrong


HEURISTIC = (
    Mutant(
        "h-sign",
        "h(s) has the wrong sign",
        "search/heuristic.py",
        "return rise(success_logit, tilt).add_(tilt.floor)",
        "return rise(success_logit, tilt).add_(tilt.floor).neg_()",
        ("test_search.py::test_g_plus_h_is_the_log_mass_of_the_subtree",),
    ),
    Mutant(
        "f-sign",
        "f = g - h",
        "search/heuristic.py",
        "torch.addcmul(g, h, strength) if isinstance(strength, Tensor) else g + strength * h",
        "torch.addcmul(g, h, strength, value=-1) if isinstance(strength, Tensor) else g - strength * h",
        ("test_search.py::test_best_first_returns_leaves_in_order_of_f_and_expands_no_more_than_it_must",),
    ),
    Mutant(
        "balance-sign",
        "the balanced tilt has the wrong sign",
        "search/heuristic.py",
        "return (-root_logit).clamp(-bound, bound)",
        "return root_logit.clamp(-bound, bound)",
        ("test_search.py::test_balanced_tilt_with_exact_value_succeeds_half_the_time",),
    ),
    Mutant(
        "gain-sign",
        "the proposal prefers the worse children",
        "search/heuristic.py",
        "proposal = _twisted(logp, child_rise, strength)",
        "proposal = _twisted(logp, -child_rise, strength)",
        ("test_search.py::test_gumbel_ordered_pairs_follow_plackett_luce[True]",),
    ),
    Mutant(
        "tilt-side",
        "for a negative 1/beta h counts successes, not failures",
        "search/heuristic.py",
        "Tilt(inverse_beta.sign(),",
        "Tilt(inverse_beta.sign().abs(),",
        ("test_search.py::test_g_plus_h_is_the_log_mass_of_the_subtree",),
    ),
    Mutant(
        "budget-sign",
        "the budget grows by what the prefix has used of it",
        "search/heuristic.py",
        "(limit - log_weight) / proposal.log_norm",
        "(limit + log_weight) / proposal.log_norm",
        ("test_search.py::test_budget_bounds_the_weight_of_every_leaf",),
    ),
    Mutant(
        "budget-forgets",
        "the budget forgets the prefix's own pi/q",
        "search/heuristic.py",
        "most = float((log_weight + proposal.log_norm).amax())",
        "most = float(proposal.log_norm.amax())",
        ("test_search.py::test_budget_bounds_the_weight_of_every_leaf",),
    ),
    Mutant(
        "budget-forgets-held-back",
        "the same where the guidance is held back",
        "search/heuristic.py",
        "(limit - log_weight) / proposal.log_norm",
        "limit / proposal.log_norm",
        ("test_search.py::test_budget_bounds_the_weight_of_every_leaf",),
    ),
    Mutant(
        "held-back-everywhere",
        "guidance counts as held back wherever it was held back at some other prefix",
        "search/heuristic.py",
        "is_held_back=tau < strength",
        "is_held_back=tau <= strength",
        ("test_search.py::test_a_proposal_says_at_which_prefixes_the_budget_lowered_the_guidance",),
    ),
    Mutant(
        "gain-sign-held-back",
        "the proposal prefers the worse children where the guidance is held back",
        "search/heuristic.py",
        "return _twisted(logp, child_rise, tau)",
        "return _twisted(logp, -child_rise, tau)",
        ("test_search.py::test_budget_bounds_the_weight_of_every_leaf",),
    ),
)

GUMBEL = (
    Mutant(
        "draw-block-start",
        "a draw within a block starts at the block's end",
        "search/gumbel.py",
        "rest = target - pad(cdf, (1, 0)).gather(1, block)",
        "rest = target - cdf.gather(1, block)",
        ("test_gumbel.py::test_a_large_vocabulary_is_drawn_from_in_proportion_to_its_mass",),
    ),
    Mutant(
        "draw-block-float32",
        "blocks of a large vocabulary are added up in float32",
        "search/gumbel.py",
        "row.sum(-1, dtype=torch.float64)",
        "row.sum(-1).double()",
        ("test_gumbel.py::test_tokens_of_a_large_vocabulary_begin_and_end_where_the_running_sum_says",),
    ),
    Mutant(
        "draw-block-overrun",
        "a draw may run over its block's end by a rounding",
        "search/gumbel.py",
        "rest = torch.minimum(rest, inside[..., -1])",
        "rest = rest + 0.0 * inside[..., -1]",
        ("test_gumbel.py::test_the_last_token_with_mass_is_the_one_at_1_in_a_large_vocabulary",),
    ),
    Mutant(
        "draw-block-padding",
        "the last token's mass also stands for those behind the vocabulary's end",
        "search/gumbel.py",
        "inside.masked_fill_(token >= mass.shape[1], 0.0)",
        "inside",
        ("test_gumbel.py::test_the_last_token_with_mass_is_the_one_at_1_in_a_large_vocabulary",),
    ),
    Mutant(
        "draw-block-remainder",
        "tokens after the last whole block are left out",
        "search/gumbel.py",
        "return torch.cat((whole, last), 1)",
        "return torch.cat((whole, torch.zeros_like(last)), 1)",
        ("test_gumbel.py::test_a_large_vocabulary_is_drawn_from_in_proportion_to_its_mass",),
    ),
    Mutant(
        "root-zero",
        "G of the root is 0 instead of a Gumbel number",
        "search/choosers.py",
        "root_gumbel(hashes[0, :, 0])",
        "0.0",
        ("test_search.py::test_weights_are_unbiased[plain]",),
    ),
    Mutant(
        "kappa-kth",
        "kappa is the K-th largest G, not the (K+1)-th",
        "search/choosers.py",
        "(beam.grid.group, torch.minimum(best, worst).amax(1))",
        "(beam.grid.group, torch.maximum(best, worst).amin(1))",
        ("test_search.py::test_weights_are_unbiased[plain]",),
    ),
    Mutant(
        "kappa-last-step",
        "kappa forgets the prefixes left out at earlier steps",
        "search/choosers.py",
        "zip(*self.left_out, strict=True)",
        "zip(*self.left_out[-1:], strict=True)",
        ("test_search.py::test_weights_are_unbiased[plain]",),
    ),
    Mutant(
        "children-too-few",
        "no prefix is looked at for all the children that it may have among the best",
        "search/children.py",
        ".topk(min(num_rows, others.shape[1]),",
        ".topk(min(num_rows - 1, others.shape[1]),",
        (
            "test_search.py::test_fewer_leaves_are_the_first_of_more[4.0-8]",
            "test_search.py::test_fewer_leaves_are_the_first_of_more[0.5-8]",
        ),
    ),
    Mutant(
        "rate-of-the-rest",
        "the children that were not drawn arrive at the rate of all of them",
        "search/children.py",
        "waiting_time(when).div_(others.sum(-1))",
        "waiting_time(when)",
        ("test_search.py::test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise",),
    ),
    Mutant(
        "rate-of-the-twist",
        "the factor that the masses of a guided prefix have is forgotten in its rate",
        "search/children.py",
        "log_rate - twist.log_norm[:, 0]",
        "log_rate",
        ("test_search.py::test_weights_are_unbiased[noisy value]",),
    ),
    Mutant(
        "wait-from-the-start",
        "further children wait for their arrival from the prefix's on, not from that of their first",
        "search/children.py",
        "arrival - arrival[:, :1]",
        "arrival",
        ("test_search.py::test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise",),
    ),
    Mutant(
        "draws-share-bits",
        "which child is the best tells how far behind the others are",
        "search/gumbel.py",
        "hash_number(torch.stack((x, x ^ _WHICH, x ^ _WHEN)))",
        "hash_number(torch.stack((x, x ^ _WHICH, x ^ _WHICH)))",
        ("test_search.py::test_weights_are_unbiased[plain]",),
    ),
    Mutant(
        "masses-taken-for-probabilities",
        "a token is drawn as if masses summed to 1",
        "search/gumbel.py",
        "return torch.searchsorted(cdf, cdf[:, -1:] * uniform)",
        "return torch.searchsorted(cdf, uniform)",
        ("test_gumbel.py::test_tokens_are_drawn_in_proportion_to_their_mass",),
    ),
    Mutant(
        "masses-taken-for-probabilities-by-block",
        "the same in a large vocabulary",
        "search/gumbel.py",
        "target = cdf[:, -1:] * uniform",
        "target = uniform",
        ("test_gumbel.py::test_a_large_vocabulary_is_drawn_from_in_proportion_to_its_mass",),
    ),
    Mutant(
        "impossible-drawn",
        "a uniform number on the edge of a token's share draws the one after, which may be impossible",
        "search/gumbel.py",
        "cdf[:, -1:] * uniform)",
        "cdf[:, -1:] * uniform, right=True)",
        ("test_gumbel.py::test_tokens_without_mass_are_never_drawn",),
    ),
    Mutant(
        "uniform-zero",
        "uniform numbers round to 0",
        "search/gumbel.py",
        "(bits >> 12).double().mul_(2.0**-52).add_(0.5 + 2.0**-53)",
        "(bits >> 11).double().mul_(2.0**-53).add_(0.5 + 2.0**-54)",
        ("test_gumbel.py::test_uniform_numbers_exclude_both_ends",),
    ),
    Mutant(
        "rows-always-kept",
        "second children never take the place of worse prefixes",
        "search/choosers.py",
        "is_close = second > torch.take(self.worst, beam.group)",
        "is_close = torch.take(self.worst, beam.group) == -torch.inf",
        ("test_search.py::test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise",),
    ),
    Mutant(
        "kappa-while-kept",
        "kappa forgets second children that were left out while every prefix went on",
        "search/choosers.py",
        "self.left_out.append((beam.group, second))",
        "self.left_out.append((beam.group, second - torch.inf))",
        ("test_search.py::test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise",),
    ),
    Mutant(
        "kappa-of-the-chosen",
        "kappa takes second children that were chosen for left out",
        "search/choosers.py",
        "second.masked_fill(is_close, -torch.inf)",
        "second",
        ("test_search.py::test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise",),
    ),
    Mutant(
        "streams-without-a-prompt",
        "the streams of a prompt begin in slots of their own, which do not hold it",
        "search/lock_step.py",
        "if depth == 1:",
        "if depth == 0:",
        ("test_search.py::test_recorded_scores_belong_to_the_recorded_tokens[sample]",),
    ),
    Mutant(
        "rate-sign",
        "what comes later comes sooner at improbable prefixes",
        "search/gumbel.py",
        "torch.log(wait).sub_(log_rate)",
        "torch.log(wait).add_(log_rate)",
        ("test_search.py::test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise",),
    ),
    Mutant(
        "inclusion-sign",
        "the inclusion probability takes kappa - phi for phi - kappa",
        "search/gumbel.py",
        "gap = log_q - kappa",
        "gap = kappa - log_q",
        ("test_search.py::test_weights_are_unbiased[plain]",),
    ),
    Mutant(
        "inclusion-underflow",
        "very improbable leaves have an inclusion probability of 0",
        "search/gumbel.py",
        "torch.where(gap < -40.0, gap, torch.log(-torch.expm1(-torch.exp(gap))))",
        "torch.log(-torch.expm1(-torch.exp(gap)))",
        ("test_search.py::test_inclusion_probability_is_continuous_where_its_series_takes_over",),
    ),
    Mutant(
        "numerator-q",
        "the weights have q, not pi, in the numerator",
        "search/choosers.py",
        "torch.exp(beam.log_pi - log_inclusion(",
        "torch.exp(beam.log_q - log_inclusion(",
        ("test_search.py::test_weights_are_unbiased[noisy value]",),
    ),
    Mutant(
        "noise-everywhere-same",
        "the noise does not depend on the prefix",
        "search/beam.py",
        "hashes=prefix_hashes(state ^ torch.take(tokens.bits, choice.token)),",
        "hashes=prefix_hashes(state),",
        (
            "test_search.py::test_gumbel_ordered_pairs_follow_plackett_luce[False]",
            "test_search.py::test_weights_are_unbiased[plain]",
            "test_search.py::test_sample_draws_independently_from_the_policy",
            "test_search.py::test_lock_step_finds_the_leaves_of_best_first_order_under_the_same_noise",
        ),
    ),
    Mutant(
        "noise-by-place",
        "the noise depends on the place in the batch, not on the seed",
        "search/choosers.py",
        "hashes = prefix_hashes(seeds.to(device)[:, None].repeat(",
        "hashes = prefix_hashes(torch.arange(len(seeds), device=device)[:, None].repeat(",
        ("test_search.py::test_problems_together_equal_one_by_one[gumbel]",),
    ),
    Mutant(
        "forks-miscounted",
        "steps in place are counted as forks, and forks are not",
        "search/lock_step.py",
        "(source != places)",
        "(source == places)",
        ("test_search.py::test_forks_are_counted",),
    ),
    Mutant(
        "limit-drops-leaves",
        "leaves that the depth limit cuts are dropped, and their mass is lost",
        "search/beam.py",
        "priority=choice.priority,",
        "priority=torch.where((choice.token != NO_TOKEN) & ~tokens.goes_on.any(), -torch.inf, choice.priority),",
        ("test_theory.py::test_the_depth_limit_loses_no_mass[plain]",),
    ),
    Mutant(
        "logp-late",
        "log pi is recorded one position late",
        "search/lock_step.py",
        "logp=torch.where(is_token, logp, 0.0),",
        "logp=torch.where(is_token, logp.roll(1, -1), 0.0),",
        ("test_search.py::test_recorded_scores_belong_to_the_recorded_tokens[gumbel]",),
    ),
    Mutant(
        "fork-in-place",
        "a row that was replaced goes on from the slot that it had before",
        "search/lock_step.py",
        "source = torch.take(choice.parent, places)",
        "source = places",
        ("test_search.py::test_recorded_scores_belong_to_the_recorded_tokens[gumbel]",),
    ),
)

BEST_FIRST = (
    Mutant(
        "min-heap",
        "best_first pops the smallest f",
        "search/best_first.py",
        "best, column = self.open.f.max(1)",
        "best, column = torch.where(torch.isfinite(self.open.f), self.open.f, torch.inf).min(1)",
        ("test_search.py::test_best_first_returns_leaves_in_order_of_f_and_expands_no_more_than_it_must",),
    ),
    Mutant(
        "first-finished",
        "best_first stops at the first K finished leaves",
        "search/best_first.py",
        "(torch.isfinite(self.leaves.f) & (self.leaves.f >= best[:, None]))",
        "torch.isfinite(self.leaves.f)",
        ("test_search.py::test_best_first_returns_leaves_in_order_of_f_and_expands_no_more_than_it_must",),
    ),
    Mutant(
        "slot-still-needed",
        "best_first overwrites a prefix that open siblings stand on",
        "search/best_first.py",
        "return torch.where(is_taken.gather(1, wanted[:, None])[:, 0] > 0, first_free, wanted)",
        "return wanted",
        ("test_search.py::test_recorded_scores_belong_to_the_recorded_tokens[best_first]",),
    ),
)

FAST = ("test_fast_decode.py::test_equals_the_full_forward",)
FORKS = ("test_decoder.py::test_forks_swaps_and_uneven_lengths_equal_recomputation",)
RECORDED = (
    "test_cuda_graphs.py::test_work_is_tried_on_a_stream_beside_then_captured_and_each_replay_refills_the_same_result",
)  # fmt: skip
NETWORK = (
    Mutant(
        "fork-after-write",
        "a fork copies what another fork of the same step has already overwritten",
        "engine/slot_cache.py",
        "columns.index_copy_(2, target, columns.index_select(2, source))",
        "for one, other in zip(source.tolist(), target.tolist(), strict=True):\n"
        "            columns[:, :, other] = columns[:, :, one]",
        FORKS,
    ),
    Mutant(
        "fork-wrong-row",
        "a fork takes slots for rows of the cache",
        "engine/decoder.py",
        "here = self._row_of_slot.index_select(0, source.index_select(0, forked))",
        "here = source.index_select(0, forked)",
        FORKS,
    ),
    Mutant(
        "padding-seen",
        "a token attends to the padding of its prompt",
        "engine/decoder.py",
        "((visible >= padding) & (visible <= last))",
        "((visible >= 0 * padding) & (visible <= last))",
        FORKS,
    ),
    Mutant(
        "later-seen",
        "a token attends to columns that its prefix has not filled",
        "engine/decoder.py",
        "((visible >= padding) & (visible <= last))",
        "((visible >= padding) & (visible < num_columns))",
        FORKS,
    ),
    Mutant(
        "fork-late",
        "a fork leaves out the first generated token",
        "engine/decoder.py",
        "self._cache.fork(here, row.index_select(0, forked), first, first +",
        "self._cache.fork(here, row.index_select(0, forked), first + 1, first +",
        FORKS,
    ),
    Mutant(
        "fork-forgotten",
        "a fork that moves to the front is taken for as long as what its row held before",
        "engine/decoder.py",
        "        self._num_filled.index_copy_(0, row, length + 1)  # before rows move: forks hold more than they did\n"
        "        row = self._bring_to_front(target, row)\n",
        "        row = self._bring_to_front(target, row)\n        self._num_filled.index_copy_(0, row, length + 1)\n",
        ("test_decoder.py::test_a_fork_to_a_row_at_the_back_keeps_all_its_tokens",),
    ),
    Mutant(
        "fork-no-prompt",
        "only the first slot of a problem holds its prompt",
        "engine/decoder.py",
        "self._cache.fork(every // slots_per_prompt * slots_per_prompt, every, 0, longest)",
        "pass",
        FORKS,
    ),
    Mutant(
        "recorded-anew",
        "a recorded step reads the columns of the step that was recorded",
        "engine/decoder.py",
        "torch.add(self._num_filled, self._num_prompt_columns, out=self._column)",
        "self._column = self._num_filled + self._num_prompt_columns",
        ("test_decoder.py::test_recorded_steps_equal_recomputation",),
    ),
    Mutant(
        "children-unscored",
        "a guided search is given the parents' values for the children's: it is not guided at all",
        "model/model.py",
        "_at_least_float32(self.value_model.child_logits(scores.features, value_logit))",
        "scores.value_logit[:, None].expand_as(scores.logits)",
        ("test_generator.py::test_a_guided_search_reads_the_values_of_children",),
    ),
    Mutant(
        "rotation-sign",
        "the fast path turns heads the other way",
        "engine/fast_decode.py",
        ").mul_(turn)",
        ").mul_(turn.conj())",
        FAST,
    ),
    Mutant(
        "rotation-pairs",
        "the fast path turns neighbours instead of halves",
        "engine/fast_decode.py",
        ".view(2, -1).T.flatten()",
        "",
        FAST,
    ),
    Mutant(
        "scale-lost",
        "the fast path does not scale its attention",
        "engine/fast_decode.py",
        "query = query[0] * attention.scaling,",
        "query = query[0],",
        FAST,
    ),
    Mutant(
        "gain-lost",
        "the fast path forgets a norm's gain",
        "engine/fast_decode.py",
        "return weight.detach() * math.sqrt(len(weight))",
        "return torch.full_like(weight, math.sqrt(len(weight)))",
        FAST,
    ),
    Mutant(
        "floor-lost",
        "the fast path's norms have no epsilon",
        "engine/fast_decode.py",
        "math.sqrt(len(norm.weight) * norm.variance_epsilon)",
        "0.0",
        FAST,
    ),
    Mutant(
        "bias-lost",
        "the fast path forgets the bias of what it adds to the residual stream",
        "engine/fast_decode.py",
        "total += bias",
        "pass",
        FAST,
    ),
    Mutant(
        "hidden-attached",
        "the value loss moves the policy: the hidden state is not detached",
        "rollout/value_model.py",
        "hidden.detach()",
        "hidden",
        ("test_decoder.py::test_value_loss_does_not_reach_the_policy",),
    ),
    Mutant(
        "trainer-late",
        "the trainer scores tokens at the hidden state one position early",
        "training/trees.py",
        "parent += [index * longest + at for at, _ in tree.numbers]",
        "parent += [index * longest + max(at - 1, 0) for at, _ in tree.numbers]",
        ("test_training.py::test_token_scores_equal_a_forward_per_row",),
    ),
    Mutant(
        "padding-stays",
        "rows that change places leave their padding behind",
        "engine/decoder.py",
        "for by_row in (self._num_filled, self._padding, self._slot_of_row):",
        "for by_row in (self._num_filled, self._slot_of_row):",
        FORKS,
    ),
    Mutant(
        "position-of-the-column",
        "a token's position counts the padding of its prompt",
        "engine/decoder.py",
        "self._token[:num_rows], last - padding, is_seen",
        "self._token[:num_rows], last - 0 * padding, is_seen",
        FORKS,
    ),
    Mutant(
        "recorded-overwrites",
        "a slot that only keeps others company in a recorded step writes over its last token",
        "engine/decoder.py",
        "        self._num_filled[target] = length + 1\n        return self._output(scores)",
        "        return self._output(scores)",
        ("test_decoder.py::test_recorded_steps_equal_recomputation",),
    ),
    Mutant(
        "captured-first",
        "work is captured before libraries had their first use of it",
        "engine/cuda_graphs.py",
        "            work()  # libraries",
        "            pass  # libraries",
        RECORDED,
    ),
    Mutant(
        "main-does-not-wait",
        "the capture begins before the first run beside it is over",
        "engine/cuda_graphs.py",
        "torch.cuda.current_stream().wait_stream(beside)",
        "beside.wait_stream(torch.cuda.current_stream())",
        RECORDED,
    ),
    Mutant(
        "base-stays",
        "adapters stay off after the base was asked",
        "model/adapters.py",
        "        for layer in layers:\n            layer.enable_adapters(True)",
        "        pass",
        ("test_adapters.py::test_a_policy_begins_as_its_base_to_the_bit_and_returns_to_it",),
    ),
    Mutant(
        "scale-of-rank",
        "adapters are merged at the scale of rank 16, whatever theirs is",
        "model/adapters.py",
        "_ALPHA / len(a) * (b @ a)",
        "_ALPHA / 16 * (b @ a)",
        ("test_adapters.py::test_a_projection_adds_the_formula_and_merging_gives_the_same_model",),
    ),
)

GRADIENT = ("test_theory.py::test_the_training_loss_has_the_gradient_of_the_expected_reward[guided, noisy h]",)
SURROGATE = (
    "test_training.py::test_clipped_surrogate_equals_the_token_loop_and_its_gradient_the_policy_gradient",
)  # fmt: skip
LOGGED = ("test_training.py::test_logged_entropy_and_value_loss_are_means_over_weighted_tokens",)
BATCH = ("test_generator.py::test_batch_rows_are_the_leaves_that_thinning_left_with_their_thinned_weights",)
KL = ("test_adapters.py::test_kl_to_base_is_the_weighted_mean_of_the_sum_over_the_vocabulary",)
REGRESSION = (
    "test_theory.py::test_weighted_value_regression_learns_success_under_the_policy_and_unweighted_under_the_proposal",
)
TRAINING = (
    Mutant(
        "q-as-old-policy",
        "the loss takes the proposal q for the old policy",
        "training/astar_po.py",
        "            batch.logp_old,\n",
        "            batch.logq,\n",
        GRADIENT,
    ),
    Mutant(
        "q-as-sampler",
        "the batch hands the update log q for log pi",
        "training/batch.py",
        "logp = of_rows(rollouts.logp)",
        "logp = of_rows(rollouts.logq)",
        BATCH,
    ),
    Mutant(
        "thinned-weights-lost",
        "leaves that survive thinning are handed on with their old weights",
        "training/batch.py",
        "weight=of_rows(rewarded.update_weight)",
        "weight=of_rows(rewarded.weight)",
        BATCH,
    ),
    Mutant(
        "token-level-weights",
        "every token is weighed by its own pi/q, not the leaf by its inclusion",
        "training/astar_po.py",
        "            batch.advantage,\n            batch.weight,\n",
        "            batch.advantage * (batch.logp_old - batch.logq).exp(),\n"
        "            batch.weight.new_ones(len(batch.weight)),\n",
        GRADIENT,
    ),
    Mutant(
        "loss-unweighted",
        "the loss ignores the weights",
        "training/losses.py",
        "return -(weight.detach()[:, None] * torch.where(is_token, objective, 0.0)).sum()",
        "return -torch.where(is_token, objective, 0.0).sum()",
        SURROGATE,
    ),
    Mutant(
        "surrogate-sign",
        "the loss rewards what it should punish",
        "training/losses.py",
        "return -(weight.detach()[:, None] * torch.where(is_token, objective, 0.0)).sum()",
        "return (weight.detach()[:, None] * torch.where(is_token, objective, 0.0)).sum()",
        SURROGATE,
    ),
    Mutant(
        "surrogate-maximum",
        "the clipped loss takes the maximum for the minimum",
        "training/losses.py",
        "return torch.minimum(",
        "return torch.maximum(",
        SURROGATE,
    ),
    Mutant(
        "brier-unweighted",
        "the value loss ignores the weights",
        "training/losses.py",
        "return (weight.detach()[:, None] * torch.where(is_token, error, 0.0)).sum()",
        "return torch.where(is_token, error, 0.0).sum()",
        ("test_training.py::test_weighted_brier_equals_its_sum",),
    ),
    Mutant(
        "value-of-q",
        "the update hands no weights to the value loss: V is success under q",
        "training/update.py",
        "weighted_brier(x, y, batch.weight, batch.is_token)",
        "weighted_brier(x, y, torch.ones_like(batch.weight), batch.is_token)",
        REGRESSION,
    ),
    Mutant(
        "format-for-accuracy",
        "the value model learns format where accuracy is meant, and the other way round",
        "training/update.py",
        "        (scores.value_logit, batch.accuracy),\n"
        "        (scores.child_logit, batch.accuracy),\n"
        "        (scores.format_logit, batch.format),\n",
        "        (scores.value_logit, batch.format),\n"
        "        (scores.child_logit, batch.format),\n"
        "        (scores.format_logit, batch.accuracy),\n",
        ("test_training.py::test_value_loss_pairs_every_logit_with_its_own_reward",),
    ),
    Mutant(
        "promise-swapped",
        "the baseline prices the probability of a right format as that of a right answer",
        "rollout/generator.py",
        "expected(rollouts.value, rollouts.format_value)",
        "expected(rollouts.format_value, rollouts.value)",
        ("test_generator.py::test_the_baseline_is_the_reward_that_the_value_model_promises",),
    ),
    Mutant(
        "kl-sign",
        "the divergence from the base has the wrong sign",
        "model/model.py",
        "(logp.exp() * (logp - base)).sum(-1)",
        "(logp.exp() * (base - logp)).sum(-1)",
        KL,
    ),
    Mutant(
        "kl-direction",
        "the divergence is measured under the base, not under the policy",
        "model/model.py",
        "(logp.exp() * (logp - base)).sum(-1)",
        "(base.exp() * (base - logp)).sum(-1)",
        KL,
    ),
    Mutant(
        "kl-unweighted",
        "the divergence is averaged without the weights of the leaves",
        "training/update.py",
        "(_mass(part) * self.policy",
        "(part.is_token * self.policy",
        KL,
    ),
    Mutant(
        "reference-adapted",
        "the reference policy keeps its adapters",
        "model/adapters.py",
        "layer.enable_adapters(False)",
        "layer.enable_adapters(True)",
        KL,
    ),
    Mutant(
        "merge-sign",
        "adapters are taken off the weights of a checkpoint, not added",
        "model/adapters.py",
        "(weight.to(wide) + _ALPHA / len(a) * (b @ a))",
        "(weight.to(wide) - _ALPHA / len(a) * (b @ a))",
        ("test_adapters.py::test_a_projection_adds_the_formula_and_merging_gives_the_same_model",),
    ),
    Mutant(
        "checkpointing-idle",
        "gradient checkpointing does nothing",
        "model/model.py",
        "self.gradient_checkpointing and torch.is_grad_enabled()",
        "self.gradient_checkpointing and not torch.is_grad_enabled()",
        (
            "test_gradient_checkpointing.py::test_every_layer_runs_a_second_time_in_the_backward",
            "test_gradient_checkpointing.py::test_what_a_forward_keeps_for_its_backward_shrinks_to_a_fifth",
        ),
    ),
    Mutant(
        "gae-sign",
        "V of the prefix is added to the advantage, not taken off",
        "training/advantages.py",
        "torch.where(last, reward[:, None], after) - value",
        "torch.where(last, reward[:, None], after) + value",
        ("test_training.py::test_gae_equals_the_double_sum",),
    ),
    Mutant(
        "rms-floor",
        "advantages are divided by their rms however small it is",
        "training/advantages.py",
        "is_token).clamp(min=floor)",
        "is_token)",
        ("test_training.py::test_rms_scale_keeps_direction_and_respects_its_floor",),
    ),
    Mutant(
        "thinning-uncompensated",
        "leaves that survive thinning are not weighed up",
        "rollout/thinning.py",
        "torch.where(uniform * floor < weight, floor, 0.0)",
        "torch.where(uniform * floor < weight, weight, 0.0)",
        ("test_theory.py::test_thinning_keeps_the_mean_and_adds_the_stated_variance",),
    ),
    Mutant(
        "value-rate-decays",
        "the value model's learning rate decays with the policy's",
        "training/update.py",
        "self.policy_optimizer.set_learning_rate(rate)",
        "self.policy_optimizer.set_learning_rate(rate)\n"
        "        self.value_optimizer.set_learning_rate(\n"
        '            self.value_optimizer.adamw.defaults["lr"] * rate / self.settings.learning_rate\n'
        "        )",
        ("test_training.py::test_the_value_model_keeps_its_learning_rate_while_that_of_the_policy_decays",),
    ),
    Mutant(
        "entropy-unweighted",
        "the logged entropy is one over searched tokens, not over the policy's",
        "training/update.py",
        "(_mass(part) * scores.entropy).sum()",
        "(part.is_token * scores.entropy).sum()",
        LOGGED,
    ),
    Mutant(
        "value-denominator-unweighted",
        "the weighted value loss is divided by the unweighted number of tokens",
        "training/update.py",
        "num_tokens = max(float(_mass(whole).sum())",
        "num_tokens = max(float(whole.is_token.sum())",
        LOGGED,
    ),
    Mutant(
        "ratio-deviation-per-row",
        "the deviation of the ratios is summed over a row",
        "training/update.py",
        "max(int(whole.is_token.sum()), 1)",
        "max(len(rows), 1)",
        ("test_training.py::test_ratio_deviation_is_the_mean_over_all_tokens",),
    ),
    Mutant(
        "empty-problems-uncounted",
        "problems without a row are left out of the divisor: the gradient is too large",
        "training/astar_po.py",
        "return float(num_problems)",
        "return float(len(batch.problem.unique()))",
        ("test_training.py::test_a_problem_without_rows_counts_as_one_whose_rows_weigh_nothing",),
    ),
)

STATISTICS = ("test_statistics.py::test_rollout_metrics_equal_their_definitions",)
QUALITY = ("test_statistics.py::test_heuristic_quality_equals_its_definitions",)
GATE = ("test_alarms.py::test_gate_looks_at_the_mean_of_the_last_three_iterations",)
TRACE = ("test_trace.py::test_every_node_has_the_scores_of_its_prefix",)
FORMULA = ("test_algorithms.py::test_the_gradient_is_that_of_the_formula",)
ALGORITHMS = (
    Mutant(
        "group-deviation-of-all",
        "the deviation of a group divides by n",
        "training/advantages.py",
        "centred.square()) / (count - 1)",
        "centred.square()) / count",
        ("test_algorithms.py::test_group_advantages_equal_their_loops",),
    ),
    Mutant(
        "leave-none-out",
        "a rollout is compared with a mean that it is part of",
        "training/advantages.py",
        "centred * (count / (count - 1))[index]",
        "centred",
        ("test_algorithms.py::test_the_first_step_is_unbiased",),
    ),
    Mutant(
        "group-of-everybody",
        "rewards are compared over all problems",
        "training/advantages.py",
        "_, index, count = group.unique(return_inverse=True, return_counts=True)\n    if",
        "_, index, count = group.mul(0).unique(return_inverse=True, return_counts=True)\n    if",
        ("test_algorithms.py::test_group_advantages_equal_their_loops",),
    ),
    Mutant(
        "group-in-float32",
        "equal rewards differ from their mean by rounding, which the deviation blows up",
        "training/advantages.py",
        "exact = reward.double()",
        "exact = reward",
        ("test_algorithms.py::test_equal_rewards_have_no_advantage_at_all",),
    ),
    Mutant(
        "group-of-one",
        "a single rollout is compared with itself",
        "training/advantages.py",
        "(count < 2)",
        "(count < 1)",
        ("test_algorithms.py::test_a_single_rollout_cannot_be_compared",),
    ),
    Mutant(
        "optimal-value-of-the-sum",
        "V* forgets that it is a mean",
        "training/advantages.py",
        " - math.log(reward.shape[1]))",
        ")",
        ("test_algorithms.py::test_optimal_value_lies_between_mean_and_best",),
    ),
    Mutant(
        "advantage-mean-unweighted",
        "the logged mean of advantages ignores the weights",
        "training/advantages.py",
        "mean = (mass * advantage).sum()",
        "mean = (is_token * advantage).sum()",
        ("test_algorithms.py::test_advantages_are_described_by_weighted_tokens",),
    ),
    Mutant(
        "grpo-by-token",
        "GRPO's loss counts every token the same",
        "training/grpo.py",
        'completion_means if self.group_loss == "grpo"',
        'completion_means if self.group_loss == "none"',
        FORMULA,
    ),
    Mutant(
        "dr-grpo-deviation",
        "Dr. GRPO divides by the standard deviation",
        "training/grpo.py",
        'group_centred if self.group_loss == "dr_grpo"',
        'group_centred if self.group_loss == "none"',
        FORMULA,
    ),
    Mutant(
        "dapo-by-completion",
        "DAPO divides by the number of completions",
        "training/grpo.py",
        'if self.group_loss == "dapo":',
        'if self.group_loss == "none":',
        FORMULA,
    ),
    Mutant(
        "dr-grpo-by-completion",
        "Dr. GRPO divides by no length",
        "training/grpo.py",
        '(self.max_length if self.group_loss == "dr_grpo" else 1)',
        "1",
        FORMULA,
    ),
    Mutant(
        "rloo-by-token",
        "RLOO takes the ratio of the first token for that of the completion",
        "training/rloo.py",
        "completion_sums(logp - batch.logp_old, batch.is_token)",
        "(logp - batch.logp_old)[:, 0]",
        FORMULA,
    ),
    Mutant(
        "regression-sign",
        "the log-ratio is regressed away from the advantage",
        "training/optimal_advantage.py",
        "self.beta * log_ratio - batch",
        "self.beta * log_ratio + batch",
        FORMULA,
    ),
    Mutant(
        "regression-without-beta",
        "the log-ratio counts as a reward",
        "training/optimal_advantage.py",
        "(self.beta * log_ratio -",
        "(log_ratio -",
        FORMULA,
    ),
    Mutant(
        "regression-on-the-old-policy",
        "the policy before the update stands for the reference",
        "training/optimal_advantage.py",
        "completion_sums(logp - _reference(batch).logp,",
        "completion_sums(logp - batch.logp_old,",
        FORMULA,
    ),
    Mutant(
        "regression-unweighted",
        "the regression ignores inclusion weights",
        "training/optimal_advantage.py",
        "(batch.weight * (self.beta",
        "((self.beta",
        ("test_algorithms.py::test_the_regression_weighs_searched_rollouts",),
    ),
    Mutant(
        "rejection-of-nothing",
        "wrong rollouts are imitated where none is right",
        "training/rejection.py",
        "batch.accuracy > 0, batch.problem",
        "batch.accuracy >= 0, batch.problem",
        FORMULA,
    ),
    Mutant(
        "rejection-keeps-every-right-one",
        "all right rollouts share, not the best",
        "training/advantages.py",
        "may_be_kept & (worth == best[index])",
        "may_be_kept",
        ("test_algorithms.py::test_shares_of_the_best_are_in_proportion_to_weights",),
    ),
    Mutant(
        "rejection-by-completion",
        "the likelihood is no mean over tokens",
        "training/rejection.py",
        "float(batch.advantage.sum())",
        "float(batch.advantage[:, 0].sum())",
        FORMULA,
    ),
)

MEASURES = (
    Mutant(
        "stderr-of-one",
        "the standard error of the accuracy is the deviation of one problem",
        "metrics/rollouts.py",
        "float(estimate.std() / len(estimate) ** 0.5)",
        "float(estimate.std())",
        STATISTICS,
    ),
    Mutant(
        "missing-leaf-fails",
        "a leaf that does not exist counts as a failure beside the problem's successes",
        "metrics/rollouts.py",
        "torch.where(has_leaf, accuracy, 1.0).amin(1)",
        "accuracy.amin(1)",
        STATISTICS,
    ),
    Mutant(
        "accuracy-of-proposal",
        "the policy's accuracy is that of the searched leaves",
        "metrics/rollouts.py",
        "_mean_and_error((weight * accuracy).sum(1))",
        "_mean_and_error(accuracy.mean(1))",
        STATISTICS,
    ),
    Mutant(
        "accuracy-claimed",
        "mode best_first claims an accuracy of the policy",
        "run/measure.py",
        'is_weighted = session.search.mode != "best_first"',
        "is_weighted = True",
        ("test_run.py::test_a_run_of_mode_best_first_does_not_claim_the_policys_accuracy",),
    ),
    Mutant(
        "variance-ratio-per-leaf",
        "the variance of K leaves is compared with that of one sample",
        "metrics/rollouts.py",
        "return weight.shape[1] * float(",
        "return float(",
        STATISTICS,
    ),
    Mutant(
        "ties-win",
        "a value that does not tell success from failure ranks them right",
        "metrics/heuristic.py",
        "(below + 0.5 * failure)",
        "(below + failure)",
        ("test_quality.py::test_weighted_auc_equals_the_loop_over_pairs",),
    ),
    Mutant(
        "explained-by-its-mean",
        "explained variance counts a constant error of the value as unexplained",
        "metrics/heuristic.py",
        "(mass * (x - (mass * x).sum()).square()).sum()",
        "(mass * x.square()).sum()",
        ("test_quality.py::test_explained_variance_knows_its_limits",),
    ),
    Mutant(
        "brier-of-proposal",
        "the logged Brier score is one over searched prefixes, not over the policy's",
        "metrics/heuristic.py",
        "(mass * (value - outcome).square()).sum() / mass.sum()",
        "(value - outcome).square().mean()",
        QUALITY,
    ),
    Mutant(
        "quarters-of-the-longest",
        "the quarters of a completion are those of the longest of all",
        "metrics/heuristic.py",
        "rollouts.length.clamp(min=1)[..., None]",
        "rollouts.length.amax().expand_as(rollouts.length)[..., None]",
        QUALITY,
    ),
    Mutant(
        "found-after-the-token",
        "h before a token is held against what is to go after it",
        "metrics/heuristic.py",
        "rollouts.logp.flip(-1).cumsum(-1).flip(-1)",
        "rollouts.logp.flip(-1).cumsum(-1).flip(-1) - rollouts.logp",
        QUALITY,
    ),
    Mutant(
        "gate-of-the-last-ranking",
        "the gate looks at the sibling ranking of the last iteration only",
        "metrics/alarms.py",
        "auc > MIN_AUC and _mean(sibling) > MIN_SIBLING",
        "auc > MIN_AUC and sibling[-1] > MIN_SIBLING",
        GATE,
    ),
    Mutant(
        "gate-of-the-last-auc",
        "the gate looks at the AUC of the last iteration only",
        "metrics/alarms.py",
        "auc = _mean([_mean(q) for q in quartiles])",
        "auc = _mean([q[-1] for q in quartiles])",
        GATE,
    ),
    Mutant(
        "gate-of-the-first",
        "the gate looks at the first three iterations of a run",
        "metrics/alarms.py",
        "if math.isfinite(v)][-count:]",
        "if math.isfinite(v)][:count]",
        GATE,
    ),
    Mutant(
        "traced-q",
        "the g of a trace sums log q",
        "search/lock_step.py",
        "parent.g + float(step.logp[problem, k])",
        "parent.g + float(step.logq[problem, k])",
        TRACE,
    ),
    Mutant(
        "traced-priority",
        "a trace of the searched tree has f where G belongs",
        "search/lock_step.py",
        "priority = float(step.priority[problem, k])",
        "priority = f",
        ("test_trace.py::test_the_priority_of_a_searched_prefix_is_that_of_its_best_leaf",),
    ),
    Mutant(
        "traced-parent",
        "a trace hangs children at the prefix that stood in their row before",
        "search/lock_step.py",
        "for k, parent in enumerate(at_row[j] for j in parents):",
        "for k, parent in enumerate(at_row[j] for j in range(len(at_row))):",
        TRACE,
    ),
    Mutant(
        "traced-open",
        "a trace takes leaves of best_first for open prefixes",
        "search/best_first.py",
        '"leaf" if is_leaf else "open"',
        '"open"',
        TRACE,
    ),
    Mutant(
        "siblings-inverted",
        "sibling ranking counts the pairs that are the wrong way round",
        "metrics/heuristic.py",
        "torch.where(mine > other, 1.0,",
        "torch.where(mine < other, 1.0,",
        ("test_quality.py::test_sibling_ranking_equals_the_loop_over_forks_and_is_high_for_an_exact_value",),
    ),
)

COUNTED = ("test_evaluate.py::test_evaluation_counts_problems_and_samples",)
BEST_OF_N = ("test_decoding.py::test_the_finished_sample_with_the_highest_last_value_is_chosen",)
ARMS = ("test_decoding.py::test_every_arm_decodes_all_problems_and_may_spend_what_best_first_did",)
CLEARED = ("test_decoder.py::test_memory_that_the_cache_was_given_is_not_read_before_it_is_written",)
THINNED = ("test_generator.py::test_every_leaf_is_thinned_by_a_draw_of_its_own",)
ROLLOUTS = (
    Mutant(
        "same-problems-unguided",
        "the same problems are searched without guidance in every iteration",
        "rollout/generator.py",
        "share = to_uniform(hash_with(seeds, torch.tensor(UNGUIDED_STREAM",
        "share = to_uniform(hash_with(problem_seeds(problems, seed, 0), torch.tensor(UNGUIDED_STREAM",
        ("test_generator.py::test_a_share_of_the_problems_is_searched_without_guidance_anew_in_every_iteration",),
    ),
    Mutant(
        "one-draw-per-problem",
        "all leaves of a problem are thinned by the same draw",
        "rollout/generator.py",
        "hash_with(seeds[:, None], leaf)",
        "hash_with(seeds[:, None], leaf[:1]).expand(-1, len(leaf))",
        THINNED,
    ),
    Mutant(
        "same-draw-every-problem",
        "the k-th leaves of all problems are thinned by the same draw",
        "rollout/generator.py",
        "hash_with(seeds[:, None], leaf)",
        "hash_with(seeds[:1, None], leaf).expand(len(seeds), -1)",
        THINNED,
    ),
    Mutant(
        "greedy-short",
        "greedy decoding stops a token early",
        "rollout/generator.py",
        "greedy_rollouts(self._decoder_fn(depth), prompts, depth)",
        "greedy_rollouts(self._decoder_fn(depth), prompts, depth - 1)",
        ("test_generator.py::test_greedy_takes_the_likeliest_token_up_to_the_depth_limit",),
    ),
    Mutant(
        "end-token-judged",
        "the verifier reads the end token as text",
        "rollout/generator.py",
        "(rollouts.length - rollouts.is_finished.long()).tolist()",
        "rollouts.length.tolist()",
        ("test_generator.py::test_the_verifier_reads_the_completion_without_its_end_token",),
    ),
    Mutant(
        "missing-leaves-weigh",
        "leaves that best_first did not find take their share of the weight",
        "rollout/generator.py",
        "uniform = has_leaf / has_leaf.sum(1, keepdim=True).clamp(min=1)",
        "uniform = has_leaf / has_leaf.shape[1]",
        ("test_generator.py::test_missing_leaves_of_best_first_do_not_take_weight_from_the_others",),
    ),
    Mutant(
        "padded-with-token-0",
        "shorter completions of another rank are padded with token 0",
        "interfaces.py",
        "pad(self.tokens, room, value=pad_id)",
        "pad(self.tokens, room)",
        ("test_generator.py::test_groups_of_problems_put_together_are_as_if_searched_together",),
    ),
    Mutant(
        "value-unchecked",
        "values that are NaN go unnoticed",
        "search/heuristic.py",
        "float(likeliest.sum() + output.value_logit.sum())",
        "float(likeliest.sum())",
        ("test_search.py::test_a_value_that_is_not_finite_is_named",),
    ),
    Mutant(
        "slots-not-cleared",
        "the slot cache is not cleared when it is made: masked columns may hold NaN",
        "engine/slot_cache.py",
        "self._buffer[..., : self._num_cleared, :] = 0",
        "pass",
        CLEARED,
    ),
    Mutant(
        "later-slots-not-cleared",
        "the slot cache is not cleared where prefixes grow",
        "engine/slot_cache.py",
        "self._buffer[..., first : self._num_cleared, :] = 0",
        "pass",
        CLEARED,
    ),
)

EVALUATION = (
    Mutant(
        "interval-of-samples",
        "the interval of pass@k counts samples as if they were problems",
        "eval/evaluate.py",
        "share(pass_at_k(num_correct, num_samples, k))",
        "wilson(float(pass_at_k(num_correct, num_samples, k).mean()), count * num_samples)",
        COUNTED,
    ),
    Mutant(
        "pass-with-replacement",
        "pass@k is that of k draws with replacement, which is too low",
        "eval/evaluate.py",
        "math.comb(num_samples - int(c), k) / math.comb(num_samples, k)",
        "(1 - int(c) / num_samples) ** k",
        ("test_evaluate.py::test_pass_at_k_equals_the_share_of_all_subsets_with_a_success",),
    ),
    Mutant(
        "evaluated-on-training-noise",
        "evaluations draw the noise of the first training iteration",
        "eval/evaluate.py",
        "sampling, seed=0, iteration=_EVAL_ITERATION",
        "sampling, seed=0, iteration=0",
        ("test_evaluate.py::test_evaluation_samples_independently_whatever_the_training_mode",),
    ),
    Mutant(
        "interval-90",
        "intervals are those of 90 %",
        "eval/evaluate.py",
        "_Z95 = 1.959963984540054",
        "_Z95 = 1.6448536269514722",
        ("test_evaluate.py::test_wilson_equals_known_intervals",),
    ),
    Mutant(
        "best-of-n-cut-off",
        "a completion that was cut off may be the best of N",
        "eval/decoding.py",
        " + rollouts.is_finished.double()",
        "",
        BEST_OF_N,
    ),
    Mutant(
        "best-of-n-by-first-value",
        "the best of N is chosen by the value of the prompt",
        "eval/decoding.py",
        "last = (rollouts.length - 1).clamp(min=0)[..., None]",
        "last = torch.zeros_like(rollouts.length)[..., None]",
        BEST_OF_N,
    ),
    Mutant(
        "decoded-unguided",
        "A* at test time leaves the guidance of some problems out",
        "eval/decoding.py",
        "        unguided_fraction=0.0,\n",
        "",
        ARMS,
    ),
    Mutant(
        "forks-as-expanded",
        "an arm's forks are reported as its expanded prefixes",
        "eval/decoding.py",
        '"expanded": self.expanded,',
        '"expanded": self.forks,',
        ARMS,
    ),
    Mutant(
        "budget-of-one-sample",
        "best of N may spend what best_first did for each sample",
        "eval/decoding.py",
        "width = max(1, round(budget / length))",
        "width = max(1, round(budget))",
        ARMS,
    ),
)

STAYS = ("test_advice.py::test_what_stays_in_memory_and_what_a_checkpoint_holds_are_counted_by_parameter",)
SHARE = ("test_advice.py::test_a_process_does_its_share_of_the_work",)
QUARTER = ("test_advice.py::test_each_of_four_processes_keeps_a_quarter_and_gathers_the_rest_for_a_while",)
PREDICTIONS = (
    Mutant(
        "one-moment",
        "one of Adam's two moments is forgotten",
        "resources/standing.py",
        '"Adam moments": own * 2 * FLOAT,',
        '"Adam moments": own * FLOAT,',
        STAYS,
    ),
    Mutant(
        "keys-without-values",
        "the slot cache is counted for keys alone",
        "resources/standing.py",
        "shapes.num_layers * 2 * shapes.kv_size * work.dtype_bytes",
        "shapes.num_layers * shapes.kv_size * work.dtype_bytes",
        STAYS,
    ),
    Mutant(
        "masters-not-saved",
        "a checkpoint is predicted without its master weights",
        "resources/standing.py",
        "state = own * (3 if work.dtype_bytes < FLOAT else 2) * FLOAT",
        "state = own * 2 * FLOAT",
        STAYS,
    ),
    Mutant(
        "shards-whole",
        "every process is predicted to hold all of what is split",
        "resources/standing.py",
        "{part: n // work.num_shards for part, n in parts.items()}",
        "dict(parts)",
        QUARTER,
    ),
    Mutant(
        "gathered-forgotten",
        "weights that are gathered for a search are not counted",
        "resources/standing.py",
        "    if not work.is_sharded:\n        return {}\n    value =",
        "    if True:\n        return {}\n    value =",
        QUARTER,
    ),
    Mutant(
        "activations-of-one-layer",
        "what the backward needs is counted for one layer",
        "resources/update_memory.py",
        "saved = mask + trees.positions * shapes.num_layers * (",
        "saved = mask + trees.positions * (",
        ("test_memory.py::test_prediction_is_near_the_measured_peak[embedded]",),
    ),
    Mutant(
        "step-of-an-iteration",
        "an optimizer step is predicted with the rows of a whole iteration",
        "resources/prediction.py",
        "step_rows=self._share(train.batch_size * leaves)",
        "step_rows=self._share(train.problems_per_iteration * leaves)",
        SHARE,
    ),
    Mutant(
        "evaluation-not-shared",
        "every process is predicted to evaluate all problems",
        "resources/prediction.py",
        "eval_problems=self._share(evaluation.num_problems)",
        "eval_problems=evaluation.num_problems",
        SHARE,
    ),
    Mutant(
        "hybrid-as-full",
        "hybrid sharding is predicted to split over all machines",
        "resources/prediction.py",
        'if self.config.train.sharding == "hybrid":',
        "if False:",
        ("test_advice.py::test_hybrid_sharding_splits_over_the_processes_of_one_machine",),
    ),
    Mutant(
        "last-checkpoint-forgotten",
        "the checkpoint of the last iteration is not counted",
        "resources/prediction.py",
        "saved | ({last} if last else set())",
        "saved",
        ("test_advice.py::test_files_are_those_of_every_due_iteration_and_of_the_last",),
    ),
    Mutant(
        "cpu-not-shared",
        "each of several processes on a CPU is promised all of its memory",
        "resources/machine.py",
        "(available_ram() + own_ram()) // num_processes",
        "available_ram() + own_ram()",
        ("test_advice.py::test_processes_on_a_cpu_share_its_memory_and_those_on_gpus_do_not",),
    ),
    Mutant(
        "disk-unasked",
        "a run fits however small the disk is",
        "cli/doctor.py",
        'part["available"] for part in (memory, disk))',
        'part["available"] for part in (memory,))',
        ("test_advice.py::test_a_run_fits_when_memory_and_disk_do",),
    ),
)

NEWEST = ("test_run_folder.py::test_the_newest_run_of_the_preset_is_meant",)
CRASHED = ("test_run.py::test_after_a_crash_the_run_goes_on_from_its_last_checkpoint",)
RUNS = (
    Mutant(
        "updates-restart",
        "a resumed run counts its updates from 0: the value model is trained at other times",
        "run/start.py",
        'session.updater.num_updates = int(state["num_updates"])',
        "session.updater.num_updates = 0",
        CRASHED,
    ),
    Mutant(
        "history-forgotten",
        "the gate of a resumed run has forgotten the iterations before",
        "run/start.py",
        "    session.history.extend(history)",
        "    pass",
        CRASHED,
    ),
    Mutant(
        "evaluated-as-trained",
        "a checkpoint is evaluated on as much as in its run, whatever the command says",
        "run/start.py",
        'names = {*_MACHINE, *(name for name in given if name.startswith("eval."))}',
        "names = {*_MACHINE}",
        ("test_run.py::test_what_is_given_of_an_evaluation_counts_and_the_rest_is_the_checkpoints",),
    ),
    Mutant(
        "evaluated-as-the-preset",
        "a checkpoint is evaluated as the preset says where nothing is given",
        "run/start.py",
        "config = _pinned(with_fields_of(saved, config, names))",
        "config = replace(_pinned(with_fields_of(saved, config, names)), eval=config.eval)",
        ("test_run.py::test_the_command_that_evaluates_again_gives_the_same_evaluation",),
    ),
    Mutant(
        "evaluated-untrained",
        "a checkpoint searches with a value model that was never trained",
        "run/start.py",
        "    agree(lambda: load_trainer(checkpoint, session.policy, {}))",
        "    pass",
        ("test_run.py::test_a_checkpoint_searches_with_the_value_model_that_was_trained",),
    ),
    Mutant(
        "oldest-run",
        "a checkpoint's name is looked for in the oldest run",
        "run/folder.py",
        "runs[max(runs)] / name",
        "runs[min(runs)] / name",
        NEWEST,
    ),
    Mutant(
        "runs-by-name",
        "runs are ordered by name: number 9 comes after number 10",
        "run/folder.py",
        "runs[max(runs)] / name",
        "runs[max(runs, key=str)] / name",
        NEWEST,
    ),
    Mutant(
        "oldest-checkpoint",
        "the latest checkpoint is the first that was saved",
        "run/folder.py",
        "return found[max(found)]",
        "return found[min(found)]",
        ("test_run_folder.py::test_latest_checkpoint_is_that_of_the_highest_iteration",),
    ),
    Mutant(
        "last-record-dropped",
        "resuming drops the record of the iteration that the checkpoint holds",
        "run/folder.py",
        'kept = [r for r in read_jsonl(path) if r["iteration"] <= last]',
        'kept = [r for r in read_jsonl(path) if r["iteration"] < last]',
        ("test_run_folder.py::test_keep_iterations_drops_later_records_and_the_cut_line",),
    ),
)

FAULTS = (
    Mutant(
        "stop-evaluates",
        "a stopped run evaluates first, however long that takes",
        "run/loop.py",
        "    if signal == 0 or number == last or not _is_due(",
        "    if True or not _is_due(",
        ("test_resume.py::test_a_stopped_run_leaves_its_evaluation_to_the_resumed_one",),
    ),
    Mutant(
        "pending-forgotten",
        "the iteration whose evaluation was cut off has no record",
        "run/start.py",
        "pending=record if is_pending else None",
        "pending=None",
        ("test_resume.py::test_a_stopped_run_leaves_its_evaluation_to_the_resumed_one",),
    ),
    Mutant(
        "status-of-ctrl-c",
        "SIGTERM ends with the status of Ctrl-C",
        "run/loop.py",
        "                    return status_of(stopped_by)",
        "                    return 130",
        ("test_resume.py::test_each_signal_has_its_status_and_a_second_one_stops_at_once",),
    ),
    Mutant(
        "never-at-once",
        "a second signal is waited out as the first",
        "run/stopping.py",
        "        if received and not (",
        "        if False and not (",
        ("test_resume.py::test_each_signal_has_its_status_and_a_second_one_stops_at_once",),
    ),
    Mutant(
        "newest-only",
        "a damaged newest checkpoint ends the run",
        "run/start.py",
        "            failures.append(str(error))\n            continue",
        "            raise",
        ("test_resume.py::test_a_damaged_newest_checkpoint_falls_back_to_the_one_before",),
    ),
    Mutant(
        "moved-once",
        "a run whose metrics were moved away can be resumed only once",
        "run/folder.py",
        "first = iterations[0] if iterations else 0",
        "first = 0",
        ("test_resume.py::test_a_run_whose_records_were_moved_away_may_be_resumed_again_and_again",),
    ),
    Mutant(
        "memory-unseen",
        "a newest checkpoint without its history ends the run",
        "run/start.py",
        "    remembered_by(checkpoint, state)\n    from_dict",
        "    from_dict",
        ("test_resume.py::test_a_damaged_newest_checkpoint_falls_back_to_the_one_before",),
    ),
    Mutant(
        "names-dropped",
        "an iteration that learns nothing has fewer names in its record",
        "training/update.py",
        '            names = [*_MEANS, *self._algorithm.measures, "audit/ratio_error"]',
        "            names = [*_MEANS]",
        ("test_adapters.py::test_an_update_without_rows_has_every_name_and_only_rate_and_counts_are_known",),
    ),
    Mutant(
        "newer-stays",
        "a run that went back keeps its newer checkpoints",
        "run/folder.py",
        "if number > iteration]",
        "if number > iteration + 10]",
        ("test_resume.py::test_a_checkpoint_may_be_chosen",),
    ),
    Mutant(
        "records-first",
        "records are dropped before the checkpoints that need them",
        "run/folder.py",
        "    remove_partial(run)\n    newer =",
        "    remove_partial(run)\n    keep_iterations(run / METRICS, iteration)\n    newer =",
        ("test_resume.py::test_going_back_survives_a_crash_at_any_moment",),
    ),
    Mutant(
        "rewritten-in-place",
        "records are rewritten in place: a crash leaves none",
        "files.py",
        '    beside.write_text(text, encoding="utf-8", newline="")',
        '    path.write_text(text)\n    beside.write_text(text, encoding="utf-8", newline="")',
        ("test_resume.py::test_going_back_survives_a_crash_at_any_moment",),
    ),
    Mutant(
        "hole-unseen",
        "a hole in the metrics is not seen",
        "run/folder.py",
        "        if found[index : index + 1] != [expected]:",
        "        if expected > last + 5:",
        ("test_resume.py::test_a_hole_in_the_metrics_is_refused",),
    ),
    Mutant(
        "default-is-not-given",
        "options with the preset's value are ignored without a word",
        "cli/train.py",
        'if others := sorted(given - {"resume"',
        'if others := sorted(set() & {"resume"',
        ("test_resume.py::test_an_option_that_would_be_ignored_is_refused_though_it_is_the_default",),
    ),
    Mutant(
        "unsynced",
        "a checkpoint has its name before it is on the disk",
        "run/checkpoint.py",
        '(*partial.rglob("*"), partial)',
        "(partial,)",
        ("test_resume.py::test_the_files_are_on_the_disk_before_a_checkpoint_has_its_name",),
    ),
)

TWO = ("test_distributed.py::test_two_processes_train_as_one",)
UNWRITTEN = ("test_distributed.py::test_a_rank_that_writes_nothing_ends_with_the_one_that_could_not",)
PROCESSES = (
    Mutant(
        "failure-untold",
        "the other ranks are not told that rank 0 could not write",
        "run/writing.py",
        "    failure = from_main(failure)\n",
        "",
        UNWRITTEN,
    ),
    Mutant(
        "restarted-alone",
        "rank 0 alone knows that a run could not be started again",
        "run/start.py",
        "    write_for_all(folder, lambda: start_over(folder) if is_main() else None)",
        "    if is_main():\n        start_over(folder)",
        UNWRITTEN,
    ),
    Mutant(
        "gone-back-alone",
        "rank 0 alone knows that newer checkpoints could not be set aside",
        "run/start.py",
        "    write_for_all(folder, lambda: _go_back_to(folder, iteration, console) if is_main() else None)",
        "    if is_main():\n        _go_back_to(folder, iteration, console)",
        UNWRITTEN,
    ),
    Mutant(
        "group-kept",
        "a write that failed ends a process inside its group",
        "cli/train.py",
        "    except (FloatingPointError, WriteFailedError):\n        tear_down()",
        "    except FloatingPointError:\n        tear_down()",
        ("test_distributed.py::test_a_run_whose_folder_cannot_be_written_is_one_sentence_and_leaves_the_group",),
    ),
    Mutant(
        "ranks-averaged",
        "gradients are averaged over ranks, not summed",
        "training/update.py",
        "(factor * loss * world_size()).backward()",
        "(factor * loss).backward()",
        TWO,
    ),
    Mutant(
        "ranks-same-rows",
        "every rank trains on the first rank's rows",
        "training/trees.py",
        "[share::num_shares]",
        "[0::num_shares]",
        TWO,
    ),
    Mutant(
        "ranks-own-losses",
        "a rank logs the losses of its own rows",
        "training/update.py",
        "= sum_numbers(sums)",
        "= sums",
        TWO,
    ),
)
TRAINS = ("test_end_to_end.py::test_two_iterations_of_the_program_are_what_the_documents_say",)
BOUNDED = "test_every_setting_changes_what_it_says_by_what_the_documents_say"
LOGGING = (
    Mutant(
        "every-rank-writes",
        "every rank tells loggers of its own",
        "run/reporting.py",
        "if is_main() else []",
        "if True else []",
        ("test_loggers.py::test_a_rank_other_than_0_tells_nobody_and_learns_what_rank_0_could_not_write",),
    ),
    Mutant(
        "evaluation-untold",
        "loggers are not told of an evaluation",
        "run/reporting.py",
        "logger.evaluation(number, metrics, tables)",
        "None",
        ("test_loggers.py::test_all_loggers_are_told_everything_in_their_order",),
    ),
    Mutant(
        "loggers-left-open",
        "loggers are not ended when a run is interrupted",
        "run/loop.py",
        "        yield\n    finally:\n        session.log.end()",
        "        yield\n        session.log.end()\n    finally:\n        pass",
        ("test_loggers.py::test_the_loggers_end_however_the_run_does",),
    ),
    Mutant(
        "one-logger-ends",
        "a logger that cannot end keeps the others open",
        "run/reporting.py",
        "                stack.callback(logger.end)",
        "                logger.end()",
        ("test_loggers.py::test_all_loggers_end_though_one_cannot",),
    ),
    Mutant(
        "worst-shown",
        "the console shows the worst completion of a problem",
        "loggers/console.py",
        "for first, *_ in itertools",
        "for *_, first in itertools",
        ("test_loggers.py::test_the_console_shows_the_best_completion_of_the_first_problems_that_have_one",),
    ),
    Mutant(
        "evaluation-alone-recorded",
        "an evaluation of a checkpoint is told to the loggers of runs",
        "run/evaluation.py",
        "session.console.evaluation(",
        "session.log.evaluation(",
        ("test_loggers.py::test_an_evaluation_alone_is_told_to_the_console_only",),
    ),
)
WIRING = (
    Mutant(
        "end-tokens-dropped",
        "the update leaves out the token that ends a completion",
        "training/batch.py",
        "is_token=of_rows(rollouts.is_token)",
        "is_token=of_rows(rollouts.is_token & (rollouts.tokens != rollouts.tokens[..., -1:]))",
        TRAINS,
    ),
    Mutant(
        "always-finished",
        "the verifier is told that every completion has ended",
        "rollout/generator.py",
        "self._task.verify(problem, t, f)",
        "self._task.verify(problem, t, True)",
        TRAINS,
    ),
    Mutant(
        "gate-ignored",
        "the search is guided whether the gate is open or not",
        "run/loop.py",
        "search = session.search if is_open else replace(session.search, guidance_strength=0.0)",
        "search = session.search",
        ("test_end_to_end.py::test_a_shut_gate_keeps_a_value_model_that_has_something_to_say_from_the_search",),
    ),
    Mutant(
        "noise-without-seed",
        "the search's noise does not depend on the run's seed",
        "rollout/generator.py",
        "hash_number(torch.tensor(seed, ",
        "hash_number(torch.tensor(0, ",
        TRAINS,
    ),
    Mutant(
        "noise-without-iteration",
        "the search's noise does not depend on the iteration",
        "rollout/generator.py",
        "torch.tensor(iteration, ",
        "torch.tensor(0, ",
        TRAINS,
    ),
    Mutant(
        "noise-without-problem",
        "the search's noise does not depend on the problem",
        "rollout/generator.py",
        "torch.tensor([p.id for p in problems]",
        "torch.tensor([0 for p in problems]",
        TRAINS,
    ),
    Mutant(
        "clipping-removed",
        "gradients are not scaled down",
        "training/update.py",
        "clip_gradients(optimizer.stepped, self.settings.max_grad_norm)",
        "clip_gradients(optimizer.stepped, math.inf)",
        TRAINS,
    ),
    Mutant(
        "policy-gradient-kept",
        "the policy's gradients are not zeroed after a step",
        "training/update.py",
        "self.policy_optimizer.zero_grad()",
        "pass",
        TRAINS,
    ),
    Mutant(
        "value-gradient-kept",
        "the value model's gradients are not zeroed after a step",
        "training/update.py",
        "self.value_optimizer.zero_grad()",
        "pass",
        TRAINS,
    ),
    Mutant(
        "schedule-late",
        "the learning rate is that of the iteration before",
        "training/update.py",
        "iteration, self.settings.num_iterations, self.settings.warmup_iterations",
        "max(0, iteration - 1), self.settings.num_iterations, self.settings.warmup_iterations",
        TRAINS,
    ),
    Mutant(
        "clips-swapped",
        "clip_low and clip_high are swapped",
        "run/build.py",
        "AStarPO(train.clip_low, train.clip_high,",
        "AStarPO(train.clip_high, train.clip_low,",
        TRAINS,
    ),
    Mutant(
        "value-rate",
        "the value model is trained at the policy's learning rate",
        "training/update.py",
        "MasterAdamW(policy.value_model, value.learning_rate, 0.0)",
        "MasterAdamW(policy.value_model, settings.learning_rate, 0.0)",
        TRAINS,
    ),
    Mutant(
        "decay-lost",
        "weight_decay does not reach the optimizer",
        "training/update.py",
        "settings.learning_rate, settings.weight_decay, policy.dtype",
        "settings.learning_rate, 0.0, policy.dtype",
        TRAINS,
    ),
    Mutant(
        "epochs-lost",
        "num_epochs does not reach the update",
        "training/update.py",
        "for _ in range(self.settings.num_epochs)",
        "for _ in range(1)",
        TRAINS,
    ),
    Mutant(
        "norm-lost",
        "max_grad_norm does not reach the update",
        "training/update.py",
        "clip_gradients(optimizer.stepped, self.settings.max_grad_norm)",
        "clip_gradients(optimizer.stepped, 1.0)",
        TRAINS,
    ),
    Mutant(
        "min-weight-lost",
        "min_weight does not reach the search",
        "run/build.py",
        "min_weight=config.search.min_weight if",
        "min_weight=0.02 if",
        TRAINS,
    ),
    Mutant(
        "depth-by-batch",
        "the depth limit is lowered by the longest prompt of a batch, not of the run",
        "run/build.py",
        "max_search_depth=depth, min_weight",
        "min_weight",
        ("test_end_to_end.py::test_the_longest_prompt_of_a_run_limits_the_depth_of_every_iteration",),
    ),
    Mutant(
        "rewards-lost",
        "the rewards' weights do not reach the run",
        "run/build.py",
        "WeightedReward(config.reward)",
        "WeightedReward(type(config.reward)())",
        TRAINS,
    ),
    Mutant(
        "warm-up-lost",
        "warmup_iterations does not reach the update",
        "training/update.py",
        "self.settings.num_iterations, self.settings.warmup_iterations",
        "self.settings.num_iterations, 0",
        (f"test_end_to_end.py::{BOUNDED}[train.warmup_iterations]",),
    ),
    Mutant(
        "last-iteration",
        "the learning rate decays as if the run had one iteration more",
        "training/update.py",
        "iteration, self.settings.num_iterations, self",
        "iteration, self.settings.num_iterations + 1, self",
        TRAINS,
    ),
    Mutant(
        "batch-of-all",
        "batch_size does not reach the update",
        "training/update.py",
        "_problem_groups(batch.problem, num_problems, self.settings.batch_size)",
        "_problem_groups(batch.problem, num_problems, num_problems)",
        TRAINS,
    ),
    Mutant(
        "value-always",
        "value.update_frequency does not reach the update",
        "training/update.py",
        "self.num_updates % self._value_update_frequency == 0",
        "self.num_updates % 1 == 0",
        TRAINS,
    ),
    Mutant(
        "lambda-and-floor",
        "gae_lambda and advantage_floor are swapped",
        "run/build.py",
        "train.gae_lambda, train.advantage_floor)",
        "train.advantage_floor, train.gae_lambda)",
        TRAINS,
    ),
    Mutant(
        "always-balanced",
        "inverse_beta does not reach the search",
        "rollout/generator.py",
        "        inverse_beta=settings.inverse_beta,\n",
        "",
        (f"test_end_to_end.py::{BOUNDED}[search.inverse_beta]",),
    ),
    Mutant(
        "bound-lost",
        "max_inverse_beta does not reach the search",
        "rollout/generator.py",
        "        max_inverse_beta=settings.max_inverse_beta,\n",
        "",
        TRAINS,
    ),
    Mutant(
        "cap-lost",
        "weight_cap does not reach the search",
        "rollout/generator.py",
        "        cap=settings.weight_cap,\n",
        "",
        (f"test_end_to_end.py::{BOUNDED}[search.weight_cap]",),
    ),
    Mutant(
        "strength-lost",
        "guidance_strength does not reach the search",
        "rollout/generator.py",
        "0.0, settings.guidance_strength)",
        "0.0, 1.0)",
        (f"test_end_to_end.py::{BOUNDED}[search.guidance_strength]",),
    ),
    Mutant(
        "share-lost",
        "unguided_fraction does not reach the search",
        "rollout/generator.py",
        "share < settings.unguided_fraction",
        "share < 0.0",
        TRAINS,
    ),
    Mutant(
        "share-turned",
        "the share that is to be unguided is guided, and the other way round",
        "rollout/generator.py",
        "share < settings.unguided_fraction",
        "share > settings.unguided_fraction",
        TRAINS,
    ),
    Mutant(
        "problems-without-seed",
        "which problems are asked does not depend on the run's seed",
        "data/tasks.py",
        "make_task(config.data, config.run.seed)",
        "make_task(config.data, 0)",
        TRAINS,
    ),
    Mutant(
        "same-problems",
        "every iteration asks the problems of the first",
        "run/loop.py",
        "session.task.train_problems(iteration, ",
        "session.task.train_problems(0, ",
        TRAINS,
    ),
    Mutant(
        "adapters-unscaled",
        "adapters are scaled by 16 over their rank",
        "model/adapters.py",
        "_ALPHA = 32",
        "_ALPHA = 16",
        ("test_end_to_end.py::test_adapters_are_trained_as_the_documents_say",),
    ),
    Mutant(
        "ends-of-the-tokenizer",
        "only the tokenizer's end token ends a completion in the search",
        "search/lock_step.py",
        "ends = torch.tensor(decoder.eos_ids,",
        "ends = torch.tensor(decoder.eos_ids[:1],",
        ("test_end_to_end.py::test_every_declared_end_token_ends_a_completion_in_training_and_evaluation",),
    ),
    Mutant(
        "format-unpaid",
        "a right format earns nothing",
        "training/reward.py",
        " + self.weights.format * verdict.format",
        "",
        TRAINS,
    ),
    Mutant(
        "room-for-one-more",
        "a prompt and its completion may be one token longer than max_seq_length",
        "data/text.py",
        "min(max_search_depth, max_seq_length - prompt_length)",
        "min(max_search_depth, max_seq_length - prompt_length + 1)",
        (f"test_end_to_end.py::{BOUNDED}[model.max_seq_length]",),
    ),
    Mutant(
        "popped-once-more",
        "best_first pops one prefix more of each depth than it may",
        "search/best_first.py",
        "self.num_popped.gather(1, self.open.depth) >= self.width",
        "self.num_popped.gather(1, self.open.depth) > self.width",
        (f"test_end_to_end.py::{BOUNDED}[search.beam_width]",),
    ),
    Mutant(
        "pruned-uncounted",
        "children that never had room in the open list are not counted as pruned",
        "search/best_first.py",
        "num_lost + num_children - torch.isfinite(children.f).sum(1)",
        "num_lost",
        (f"test_end_to_end.py::{BOUNDED}[search.beam_width]",),
    ),
    Mutant(
        "strength-ignored",
        "best_first ignores the strength of the guidance",
        "search/best_first.py",
        "f = f_score(g, h, self.strength[problem, None])",
        "f = f_score(g, h)",
        (f"test_end_to_end.py::{BOUNDED}[search.beam_width]",),
    ),
    Mutant(
        "decoding-tilt",
        "A* at test time looks for failures",
        "eval/decoding.py",
        "inverse_beta=DECODING_INVERSE_BETA",
        "inverse_beta=-DECODING_INVERSE_BETA",
        ("test_end_to_end.py::test_other_ways_of_decoding_are_measured_as_the_documents_say",),
    ),
    Mutant(
        "tilt-unbounded",
        "a prompt that is nearly always answered is tilted without bound",
        "search/heuristic.py",
        "return (-root_logit).clamp(-bound, bound)",
        "return (-root_logit).clamp(max=bound)",
        ("test_wiring.py::test_the_balanced_tilt_is_bounded_on_both_sides",),
    ),
    Mutant(
        "series-early",
        "the inclusion probability is taken for its first term where that is off by a percent",
        "search/gumbel.py",
        "torch.where(gap < -40.0,",
        "torch.where(gap < -4.0,",
        ("test_wiring.py::test_inclusion_probabilities_are_those_of_the_formula",),
    ),
    Mutant(
        "audit-one-sided",
        "the audit sees only tokens that the sampler takes for less probable",
        "training/update.py",
        "torch.expm1(shift.abs()).max()",
        "torch.expm1(shift).max()",
        ("test_wiring.py::test_the_audit_sees_a_gap_on_either_side",),
    ),
)
COMPLETIONS = "test_end_tokens.py::test_completions_end_where_the_base_ends_them_whatever_the_tokenizer_calls_its_end"
LEAVES = "test_end_tokens.py::test_a_leaf_ends_at_every_end_token_and_at_nothing_else"
SAVED = "test_model_folders.py::test_a_checkpoint_has_the_logits_of_the_trained_model"
BEAMS = "test_beams.py::test_beams_maximise_the_plain_sum_of_log_probabilities_whatever_generation_config_says"
MODELS = (
    Mutant(
        "first-end-only",
        "a completion goes on after every end token but the first",
        "search/lock_step.py",
        "goes_on = ~torch.isin(token_ids, ends) &",
        "goes_on = (token_ids != ends[0]) &",
        (f"{COMPLETIONS}[gumbel]", f"{COMPLETIONS}[sample]", f"{COMPLETIONS}[greedy]"),
    ),
    Mutant(
        "finished-by-the-first-end-only",
        "a completion that another end token ended counts as cut off",
        "search/lock_step.py",
        "is_finished=(length > 0) & torch.isin(last, ends),",
        "is_finished=(length > 0) & (last == ends[0]),",
        (f"{LEAVES}[gumbel]",),
    ),
    Mutant(
        "best-first-end-only",
        "best_first goes on after every end token but the first",
        "search/best_first.py",
        "device=like.device), ends)  # by token",
        "device=like.device), ends[:1])  # by token",
        (f"{COMPLETIONS}[best_first]",),
    ),
    Mutant(
        "ends-of-config-unread",
        "the end token of config.json does not count",
        "model/tokenizer.py",
        "for file in (CONFIG, GENERATION):",
        "for file in (GENERATION,):",
        ("test_end_tokens.py::test_every_declared_end_token_counts_and_several_are_named",),
    ),
    Mutant(
        "head-tied-again",
        "a checkpoint's config says that the head is the embedding, as the base's said wrongly",
        "model/loading.py",
        "model.config.tie_word_embeddings = False",
        "model.config.tie_word_embeddings = True",
        (f"{SAVED}[says tied, has a head of its own-adapted]",),
    ),
    Mutant(
        "mistakes-as-damage",
        "whatever another library raises reads as a damaged file",
        "model/damage.py",
        "if isinstance(error, self._known) or kind is Exception:",
        "if isinstance(error, Exception):",
        ("test_model_folders.py::test_what_a_library_is_not_known_to_raise_for_damage_comes_through",),
    ),
    Mutant(
        "own-calls-in-the-net",
        "a mistake in reading the index reads as a damaged file",
        "model/weights.py",
        "    if not (files := weight_files(folder)):",
        "    with DamageInOneSentence(name, folder, Exception):\n"
        "        files = weight_files(folder)\n    if not files:",
        ("test_model_folders.py::test_a_mistake_of_ours_is_not_taken_for_a_damaged_file",),
    ),
    Mutant(
        "integers-as-weights",
        "integer weights are taken for what they are worth as numbers",
        "model/weights.py",
        '_FLOATING = {"F64",',
        '_FLOATING = {"I8", "U8", "F8_E4M3", "F64",',
        ("test_model_folders.py::test_weights_in_no_floating_point_format_are_refused",),
    ),
    Mutant(
        "shards-from-anywhere",
        "an index may name files outside of the model's folder",
        "model/model_folder.py",
        "if os.path.basename(shard) != shard or shard == os.pardir]",
        "if shard == os.pardir]",
        ("test_model_folders.py::test_an_index_that_names_files_outside_of_the_folder_is_refused",),
    ),
    Mutant(
        "encoders-taken",
        "attention to later tokens is allowed",
        "model/architecture.py",
        'if any(getattr(module, "is_causal", True) is False',
        'if any(getattr(module, "is_causal", True) is None',
        ("test_model_folders.py::test_encoders_are_refused_and_their_decoders_are_judged_by_the_rest",),
    ),
    Mutant(
        "beams-charged-for-ends",
        "beam search is charged one token more than the search",
        "eval/decoding.py",
        "num_beams * (length + is_finished - 1)",
        "num_beams * (length + is_finished)",
        ("test_beams.py::test_beam_search_of_one_beam_is_charged_what_greedy_decoding_is",),
    ),
    Mutant(
        "beams-favour-length",
        "beam search divides the log-probability by the length",
        "eval/decoding.py",
        '{"length_penalty": 0.0}',
        '{"length_penalty": 1.0}',
        (BEAMS,),
    ),
    Mutant(
        "beams-lose-mass",
        "beams give ids without text a share of the probability",
        "eval/decoding.py",
        "renormalize_logits=True",
        "renormalize_logits=False",
        ("test_beams.py::test_beams_never_hold_ids_without_text_and_share_their_mass_among_the_others",),
    ),
    Mutant(
        "penalties-of-the-base",
        "the base's generation_config is in force, in beams and in checkpoints",
        "model/weights.py",
        "            generation_config=generation,\n",
        "",
        ("test_model_folders.py::test_a_checkpoint_has_a_valid_generation_config_whatever_the_base_has",),
    ),
)

SCORES = ("test_training.py::test_token_scores_equal_a_forward_per_row",)
PLAIN_SOFTMAX = ("test_token_logp.py::test_values_and_gradients_equal_the_plain_log_softmax",)
SCORING = (
    Mutant(
        "siblings-seen",
        "a position sees everything before it, other completions too",
        "training/trees.py",
        "is_seen[first:last, :first] = is_seen[before, :first]",
        "is_seen[first:last, :first] = True",
        SCORES,
    ),
    Mutant(
        "tree-position",
        "a position of a tree is numbered by its place, not by the tokens before it",
        "training/trees.py",
        "self.depth.append(self.depth[before] + 1)",
        "self.depth.append(len(self.ids) - 1)",
        SCORES,
    ),
    Mutant(
        "chain-joined",
        "a branch is taken for the continuation of the newest chain",
        "training/trees.py",
        "if before < len(self.ids) - 1:",
        "if before < 0:",
        SCORES,
    ),
    Mutant(
        "tree-too-large",
        "a tree grows without looking at the limit",
        "training/trees.py",
        "len(tree.ids) + growth <= max_tokens",
        "len(tree.ids) <= max_tokens",
        ("test_training.py::test_trees_stay_within_the_limit_and_lose_no_row",),
    ),
    Mutant(
        "idle-processes",
        "trees of several processes are as large as those of one",
        "training/update.py",
        "most = max(1, len(rows) // world_size())",
        "most = len(rows)",
        ("test_training.py::test_every_process_has_a_tree_as_long_as_there_are_rows_enough",),
    ),
    Mutant(
        "trees-always-joined",
        "a completion joins a tree whatever attention costs",
        "resources/workload.py",
        "return 2 * growth * (size - shared) <= shared * (shared + linear_cost)",
        "return True",
        ("test_training.py::test_a_completion_joins_a_tree_where_that_costs_less",),
    ),
    Mutant(
        "pairs-counted-once",
        "the cost of attention between a tree and what joins it is halved",
        "resources/workload.py",
        "return 2 * growth * (size - shared) <= shared * (shared + linear_cost)",
        "return growth * (size - shared) <= shared * (shared + linear_cost)",
        ("test_training.py::test_a_completion_joins_a_tree_where_that_costs_less",),
    ),
    Mutant(
        "cap-of-never",
        "the cap's slope at an id without text is infinite",
        "model/token_logp.py",
        "(logits / head.cap).clamp(min=-1.0).square()",
        "(logits / head.cap).square()",
        ("test_token_logp.py::test_a_cap_and_ids_without_text_give_finite_gradients_in_float32",),
    ),
    Mutant(
        "tree-numbers-joined",
        "scored tokens of the second tree are looked up in the first",
        "training/trees.py",
        "[len(parent) + number for number in own]",
        "list(own)",
        SCORES,
    ),
    Mutant(
        "problems-joined",
        "completions of different problems share a tree",
        "training/trees.py",
        "tree = newest.get(problem)",
        "tree = next(iter(newest.values()), None)",
        ("test_training.py::test_trees_stay_within_the_limit_and_lose_no_row",),
    ),
    Mutant(
        "total-not-rescaled",
        "the running sum over blocks keeps its old maximum",
        "model/token_logp.py",
        "total = scale * total + mass",
        "total = total + mass",
        PLAIN_SOFTMAX,
    ),
    Mutant(
        "entropy-not-shifted",
        "the entropy's running sum keeps its old maximum",
        "model/token_logp.py",
        "weighted = scale * (weighted + shift * total)",
        "weighted = scale * weighted",
        PLAIN_SOFTMAX,
    ),
    Mutant(
        "softmax-gradient",
        "the gradient of the log-sum-exp is left out",
        "model/token_logp.py",
        "logits.sub_(norm).exp_().mul_(-grad)",
        "torch.zeros_like(logits)",
        PLAIN_SOFTMAX,
    ),
    Mutant(
        "cap-gradient",
        "the gradient passes a cap on logits as if there were none",
        "model/token_logp.py",
        "            of_logits *= slope",
        "            of_logits *= 1",
        PLAIN_SOFTMAX,
    ),
    Mutant(
        "hidden-gradient-of-a-block",
        "hidden states get the gradient of the last block alone",
        "model/token_logp.py",
        "of_hidden += _product(",
        "of_hidden = _product(",
        PLAIN_SOFTMAX,
    ),
    Mutant(
        "textless-scored",
        "ids without text take part in the trainer's softmax",
        "model/token_logp.py",
        "last, _NEVER)\n            higher",
        "last, 0.0)\n            higher",
        PLAIN_SOFTMAX,
    ),
    Mutant(
        "textless-found",
        "the search may choose an id that has no text",
        "model/token_logp.py",
        "return _logits(hidden, head, 0, head.num_tokens, -torch.inf)",
        "return _logits(hidden, head, 0, head.num_tokens, 0.0)",
        ("test_token_logp.py::test_an_id_without_text_is_never_scored_nor_found",),
    ),
    Mutant(
        "spare-rows-scored",
        "rows of the embedding beyond the tokenizer's tokens are scored",
        "model/model.py",
        "self.vocab_size = max(set(range(num_rows)).difference(textless)) + 1",
        "self.vocab_size = num_rows",
        ("test_token_logp.py::test_an_id_without_text_is_never_scored_nor_found",),
    ),
    Mutant(
        "bfloat16-logits",
        "logits of a bfloat16 model are rounded before they become float32",
        "model/token_logp.py",
        "return a.to(wide) @ b.to(wide).T",
        "return (a.bfloat16() @ b.bfloat16().T).to(wide)",
        ("test_token_logp.py::test_a_bfloat16_head_is_multiplied_in_float32_and_its_gradient_rounded_once",),
    ),
    Mutant(
        "audit-late",
        "the audit is taken from the last optimizer step, when weights have changed",
        "training/update.py",
        'steps[0]["audit/ratio_error"]',
        'steps[-1]["audit/ratio_error"]',
        ("test_training.py::test_the_audit_is_that_of_the_step_at_unchanged_weights",),
    ),
    Mutant(
        "format-value-lost",
        "the search records the accuracy's value for the format's",
        "search/lock_step.py",
        "torch.take(format_logit_of(output), row)",
        "torch.take(output.value_logit, row)",
        ("test_decoder.py::test_recorded_scores_equal_one_full_forward",),
    ),
    Mutant(
        "format-value-lost-best-first",
        "the literal A* records the accuracy's value for the format's",
        "search/best_first.py",
        "form = torch.sigmoid(format_logit_of(output).double())",
        "form = value",
        ("test_decoder.py::test_recorded_scores_equal_one_full_forward",),
    ),
)
REFUSED = ("test_expression.py::test_what_is_no_expression_is_refused",)
VALUED = ("test_expression.py::test_expressions_have_an_exact_value_and_their_numbers",)
AS_PYTHON = ("test_expression.py::test_every_short_text_is_read_as_python_reads_it",)
COUNTDOWN = (
    Mutant(
        "expression-right-to-left",
        "operators of one rank are applied from right to left",
        "data/expression.py",
        "        while self._next in operators:\n            value = combined(self._take(), value, part(depth))\n",
        "        if self._next in operators:\n"
        "            value = combined(self._take(), value, self._chain(operators, part, depth))\n",
        VALUED,
    ),
    Mutant(
        "expression-no-precedence",
        "times and divided-by bind no closer than plus and minus",
        "data/expression.py",
        "return self._chain(_SUMS, self._product, depth)",
        "return self._chain(_SUMS | _PRODUCTS, self._operand, depth)",
        VALUED,
    ),
    Mutant(
        "expression-divides-by-zero",
        "what is divided by zero is zero",
        "data/expression.py",
        "return a / b if b else None",
        "return a / b if b else b",
        VALUED,
    ),
    Mutant(
        "expression-floor-division",
        "quotients are rounded down",
        "data/expression.py",
        "return a / b if b else None",
        "return Fraction(a // b) if b else None",
        VALUED,
    ),
    Mutant(
        "expression-half-read",
        "what stands behind a whole expression is ignored",
        "data/expression.py",
        "if self._next != _END:",
        "if False:",
        AS_PYTHON,
    ),
    Mutant(
        "expression-blanks-glue",
        "digits with a blank between them are one number",
        "data/expression.py",
        "    for mark in _MARKS:\n",
        '    text = text.replace(" ", "")\n    for mark in _MARKS:\n',
        REFUSED,
    ),
    Mutant(
        "expression-leading-zeros",
        "numbers may begin with zeros",
        "data/expression.py",
        'if token.startswith("0") and token != "0":',
        "if False:",
        REFUSED,
    ),
    Mutant(
        "expression-equations",
        "an equation is read up to its equals sign",
        "data/expression.py",
        '    if "=" in text:\n        return Fault.EQUATION\n    return None if _ALPHABET.issuperset(text)',
        '    return None if _ALPHABET.issuperset(text.partition("=")[0])',
        REFUSED,
    ),
    Mutant(
        "expression-any-space",
        "tabs, newlines and all that Unicode calls space may stand in an expression",
        "data/expression.py",
        "_ALPHABET.issuperset(text)",
        '_ALPHABET.issuperset("".join(text.split()))',
        REFUSED,
    ),
    Mutant(
        "expression-length-late",
        "an over-long text is looked at before it is measured",
        "data/expression.py",
        "if len(text) > MAX_CHARS:",
        'if len(text.strip(" ")) > MAX_CHARS:',
        ("test_expression.py::test_over_long_text_is_refused_by_its_length_alone",),
    ),
    Mutant(
        "countdown-key-with-target",
        "the same numbers with another target may stand on both sides of the split",
        "data/countdown.py",
        'key=f"countdown {sorted(goal.numbers)}"',
        'key=f"countdown {sorted(goal.numbers)} {goal.target}"',
        ("test_countdown.py::test_the_sides_share_no_numbers_in_any_order_with_any_target",),
    ),
    Mutant(
        "countdown-key-in-order",
        "the same numbers in another order may stand on both sides of the split",
        "data/countdown.py",
        'key=f"countdown {sorted(goal.numbers)}"',
        'key=f"countdown {list(goal.numbers)}"',
        ("test_countdown.py::test_the_sides_share_no_numbers_in_any_order_with_any_target",),
    ),
    Mutant(
        "countdown-numbers-as-a-set",
        "how often a number is used does not count",
        "data/countdown.py",
        "Counter(used) - Counter(given), Counter(given) - Counter(used)",
        "set(used) - set(given), set(given) - set(used)",
        ("test_countdown.py::test_a_number_given_twice_is_used_twice",),
    ),
    Mutant(
        "countdown-some-numbers",
        "numbers may be left out",
        "data/countdown.py",
        "return Miss.LEFT_OUT if missing else None",
        "return None",
        ("test_countdown.py::test_expressions_are_judged",),
    ),
    Mutant(
        "countdown-any-number",
        "other numbers may be used as well",
        "data/countdown.py",
        "    if excess:\n",
        "    if False:\n",
        ("test_countdown.py::test_expressions_are_judged",),
    ),
    Mutant(
        "countdown-rounded",
        "a value less than one away from the target is right",
        "data/countdown.py",
        "return None if value == target else",
        "return None if int(value) == target else",
        ("test_countdown.py::test_the_verifier_agrees_with_every_expression",),
    ),
    Mutant(
        "countdown-parentheses-lost",
        "a solution lacks the parentheses around what is subtracted or divided by",
        "data/countdown.py",
        "b.rank >= rank + is_ordered",
        "b.rank >= rank",
        ("test_countdown.py::test_every_question_has_a_solution_that_is_right",),
    ),
    Mutant(
        "countdown-numbers-first",
        "operators are drawn again with the numbers, so that products are rare",
        "data/countdown.py",
        "_TRIES = 100",
        "_TRIES = 1",
        ("test_countdown.py::test_operators_and_sizes_are_mixed",),
    ),
    Mutant(
        "held-out-dry-by-text",
        "held-out questions of few keys in many forms are looked for without end",
        "data/questions.py",
        "map(self.held_out_form, self._side(self.held_out_name(), True, _KEY))",
        "map(self.held_out_form, self._side(self.held_out_name(), True, _TEXT))",
        ("test_countdown.py::test_small_worlds_run_dry",),
    ),
)
NUMBERS = ("test_verifiers.py::test_number_judges", "test_verifiers.py::test_every_short_text_is_read_by_the_rules")
GYM = ("test_reasoning_gym.py::test_whatever_a_scorer_does_ends_in_a_verdict",)
DAMAGED = ("test_own.py::test_a_damaged_line_is_named",)
SCORED = (
    "test_own.py::test_scores_are_numbers_from_0_to_1",
    "test_own.py::test_other_scores_are_refused_by_the_functions_name",
)
OWN_TASKS = (
    Mutant(
        "number-as-float",
        "numbers are compared as floats",
        "data/verifiers.py",
        "_judged(value == answer, str(value))",
        "_judged(float(value) == float(answer), str(value))",
        NUMBERS,
    ),
    Mutant(
        "number-any-terms",
        "a fraction need not be in lowest terms",
        "data/verifiers.py",
        "denominator == 1 or gcd(numerator, denominator) != 1",
        "denominator == 1",
        NUMBERS,
    ),
    Mutant(
        "number-sign",
        "the sign of a number does not count",
        "data/verifiers.py",
        "return -value if value else Fault.MINUS_ZERO",
        "return value if value else Fault.MINUS_ZERO",
        NUMBERS,
    ),
    Mutant(
        "number-decimals",
        "decimals lose their leading zeros",
        "data/verifiers.py",
        "10 ** len(decimals)",
        '10 ** len(decimals.lstrip("0"))',
        NUMBERS,
    ),
    Mutant(
        "number-digits",
        "digits of every script are digits",
        "data/verifiers.py",
        "digits.isascii() and digits.isdigit()",
        "digits.isdecimal()",
        NUMBERS,
    ),
    Mutant(
        "choice-several",
        "several letters may be chosen",
        "data/verifiers.py",
        "len(text) != 1 or text not in answer.offered",
        "text not in answer.offered",
        ("test_verifiers.py::test_choice_judges",),
    ),
    Mutant(
        "string-case",
        "upper and lower case are the same",
        "data/verifiers.py",
        "_judged(text == answer, text)",
        "_judged(text.lower() == answer.lower(), text)",
        ("test_verifiers.py::test_string_judges",),
    ),
    Mutant(
        "answer-not-tried",
        "a right answer is not tried on its own verifier",
        "data/verifiers.py",
        "if not verdict.accuracy:  # space",
        "if not verdict.accuracy and not text:  # space",
        ("test_verifiers.py::test_a_right_answer_that_nobody_could_give_is_refused",),
    ),
    Mutant(
        "gym-unwatched",
        "scorers may run code made from text",
        "data/reasoning_gym_process.py",
        'if self.is_on and event == "exec" and',
        'if self.is_on and event == "never" and',
        GYM,
    ),
    Mutant(
        "gym-caught",
        "a scorer that catches the refusal of its code is paid",
        "data/reasoning_gym_process.py",
        "if self._watch.has_seen_code:",
        "if self._watch.is_on:",
        GYM,
    ),
    Mutant(
        "gym-any-score",
        "a score may be any number",
        "data/reasoning_gym_process.py",
        "math.isfinite(score) and 0 <= score <= 1",
        "math.isfinite(score)",
        GYM,
    ),
    Mutant(
        "gym-any-length",
        "answers of any length are scored",
        "data/reasoning_gym.py",
        "if len(text) > MAX_CHARS:",
        "if len(text) > 10 * MAX_CHARS:",
        GYM,
    ),
    Mutant(
        "gym-refuses-none",
        "scorers that run answers are not refused",
        "data/reasoning_gym.py",
        "if name in RUNS_THE_ANSWER | RUNS_ITS_QUESTION:",
        "if name in RUNS_ITS_QUESTION:",
        ("test_reasoning_gym.py::test_a_data_set_that_cannot_be_had_is_refused_in_one_sentence",),
    ),
    Mutant(
        "process-kept",
        "a process that misbehaved is asked again",
        "data/scoring_process.py",
        "if reply is None:  # interrupted",
        "if reply:  # interrupted",
        (
            "test_reasoning_gym.py::test_a_process_that_misbehaves_is_ended_and_started_anew",
            "test_reasoning_gym.py::test_an_interrupted_request_leaves_no_reply_behind",
        ),
    ),
    Mutant(
        "table-repeats",
        "a prompt may come twice in a table",
        "data/table.py",
        "if before != number:",
        "if before == 0:",
        DAMAGED,
    ),
    Mutant(
        "table-columns-twice",
        "of two columns of one name the last counts",
        "data/table.py",
        "if len(line) < len(pairs):",
        "if len(line) > len(pairs):",
        DAMAGED,
    ),
    Mutant(
        "table-float",
        "decimals of a table are read as floats",
        "data/table.py",
        "parse_float=decimals",
        "parse_float=lambda text: decimals(repr(float(text)))",
        ("test_own.py::test_decimals_are_read_as_they_are_written",),
    ),
    Mutant(
        "table-keys",
        "the column key is not heeded",
        "data/table.py",
        "key=key, worked=worked",
        "worked=worked",
        ("test_own.py::test_lines_of_one_key_stay_on_one_side",),
    ),
    Mutant(
        "reward-none",
        "where a reward function does not apply, it counts as right",
        "data/reward_function.py",
        "score = 0.0 if scores[0] is None",
        "score = 1.0 if scores[0] is None",
        SCORED,
    ),
    Mutant(
        "reward-any-score",
        "a reward function may give any number",
        "data/reward_function.py",
        "not 0 <= float(score) <= 1",
        "not 0 <= float(score)",
        SCORED,
    ),
    Mutant(
        "reward-cut-off",
        "a completion that was cut is well-formed",
        "data/reward_function.py",
        "Verdict(score == 1, is_finished,",
        "Verdict(score == 1, True,",
        ("test_own.py::test_functions_of_trls_documentation_score_completions",),
    ),
    Mutant(
        "reward-unpinned",
        "a run does not notice that its reward function has changed",
        "data/own.py",
        "[_source(data.reward_function)] if data.reward_function else []",
        "[]",
        ("test_own.py::test_files_are_recorded_with_their_full_path_and_known_again",),
    ),
)

MUTANTS = (
    *HEURISTIC,
    *SCORING,
    *GUMBEL,
    *BEST_FIRST,
    *NETWORK,
    *TRAINING,
    *ALGORITHMS,
    *MEASURES,
    *ROLLOUTS,
    *EVALUATION,
    *PREDICTIONS,
    *RUNS,
    *FAULTS,
    *PROCESSES,
    *LOGGING,
    *WIRING,
    *MODELS,
    *COUNTDOWN,
    *OWN_TASKS,
)


def planted(mutant: Mutant, source: str) -> str:
    """The source with the mistake in it.

    Raises:
        ValueError: the place is not found, or not the only one.
    """
    count = source.count(mutant.old)
    if count != 1:
        raise ValueError(f"its old text occurs {count} times in {mutant.file}")
    return source.replace(mutant.old, mutant.new)


def judge(return_code: int, output: str) -> Outcome:
    """What pytest's exit status and summary say about a mistake."""
    if return_code == 0:
        return Outcome("SURVIVED", "every test passes")
    failed = re.search(r"^FAILED (\S.*?) - (.*)$", output, re.MULTILINE)
    if return_code == 1 and failed and _ASSERTED.match(failed[2]):
        return Outcome("caught", failed[1])
    lines = [line for line in output.splitlines() if line.startswith(("E  ", "FAILED", "ERROR"))] or output.splitlines()
    return Outcome("INVALID", f"no assertion failed (pytest ends with {return_code}): {' | '.join(lines[-3:])}")


def run_tests(copy: Path, tests: Sequence[str], *options: str, time_limit_s: float) -> tuple[int, str]:
    """Exit status and output of pytest in the copied tree."""
    # no .pyc files: a mistake of the same length, planted within a second, would not be noticed
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *options]
    result = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=time_limit_s,
    )
    return result.returncode, result.stdout


def try_mutant(copy: Path, mutant: Mutant) -> Outcome:
    """Plant one mistake in the copied tree, run its tests, take it out again."""
    path = copy / "tinyzero_astar" / mutant.file
    source = path.read_text(encoding="utf-8")
    try:
        changed = planted(mutant, source)
        compile(changed, mutant.file, "exec")
    except ValueError as error:
        return Outcome("STALE", str(error))
    except SyntaxError as error:
        return Outcome("INVALID", f"the changed file does not compile: {error}")
    try:
        path.write_text(changed, encoding="utf-8")
        return judge(*run_tests(copy, mutant.tests, "-x", time_limit_s=TIME_LIMIT_S))
    except subprocess.TimeoutExpired:
        return Outcome("INVALID", f"no end after {TIME_LIMIT_S} s")
    finally:
        path.write_text(source, encoding="utf-8")


def main() -> int:
    """Print a line per mistake; 0 if every one was caught."""
    parser = argparse.ArgumentParser(description="Plant mistakes in a copy of the package and see the tests fail.")
    parser.add_argument("-k", metavar="NAME", default="", help="only mistakes with this in their name")
    wanted = parser.parse_args().k
    chosen = [m for m in MUTANTS if wanted in m.name]
    if not chosen:
        parser.error("no mistake has that in its name: " + ", ".join(m.name for m in MUTANTS))
    names, meanings = (max(len(m[column]) for m in chosen) for column in (0, 1))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in _COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, copy)
        tests = sorted({test for m in chosen for test in m.tests})
        code, output = run_tests(copy, tests, time_limit_s=TIME_LIMIT_S * 5)
        if code != 0:
            print(output, "\nThe tests fail without any mistake planted: nothing was tried.", sep="")
            return 1
        print(f"without a mistake: {output.splitlines()[-1]}", flush=True)
        outcomes = []
        for m in chosen:
            start = time.monotonic()
            outcomes.append(try_mutant(copy, m))
            verdict, detail = outcomes[-1]
            said = f"caught by {detail}" if verdict == "caught" else f"{verdict}: {detail}"
            print(f"{m.name:{names}}  {m.meaning:{meanings}}  {time.monotonic() - start:4.1f} s  {said}", flush=True)
    num_caught = sum(outcome.verdict == "caught" for outcome in outcomes)
    print(f"{num_caught} of {len(chosen)} mistakes caught in {time.monotonic() - begin:.0f} s")
    return int(num_caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
