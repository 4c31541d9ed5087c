"""A* over token prefixes, with several ways to spend decoder steps behind one function.

The search knows tokens, scores and slots. The network enters through a `Decoder`. Every mode scores a prefix by
`f_score`, f = g + h. Here g is the cumulative log-probability, and h is the learned value on the scale of
log-probabilities.

- "sample" draws independent samples from the policy. It is the baseline of every claim.
- "gumbel" is A* on the Gumbel-perturbed f, in lock step. It gives an exact sample without replacement from the proposal
  q, with its inclusion weights. It is the source of unbiased gradients.
- "best_first" is the literal A* with an open list, the largest f first. It returns modes and is for decoding.

Left out on purpose are temperature, top-k and top-p (each would void the weights), length normalisation (so would it),
and any knowledge of rewards. Equation numbers are those of docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, StepOutput, Trace
from tinyzero_astar.modes import MODES, SearchMode
from tinyzero_astar.search.best_first import best_first
from tinyzero_astar.search.choosers import Chooser, LockStep, Sampling, WithoutReplacement
from tinyzero_astar.search.heuristic import Guidance
from tinyzero_astar.search.lock_step import lock_step
from tinyzero_astar.search.roots import Roots, sampled_roots, searched_roots

__all__ = ["Forest", "Guidance", "astar_rollouts", "greedy_rollouts"]


# The modes that search in lock step. A new mode is one file, its name in modes.py, and one line here.
LOCK_STEP: dict[SearchMode, LockStep] = {
    "sample": LockStep(sampled_roots, Sampling.begin),
    "gumbel": LockStep(searched_roots, WithoutReplacement.begin),
}


@dataclass(frozen=True)
class Forest:
    """Which problems share a search, M at a time in their order (docs/algorithm.md eq. 21)."""

    size: int = 1  # M
    log_tilt: Tensor | None = None  # [P] float64, log of M q(x), None if all are equally likely ("gumbel" only)


def astar_rollouts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Tensor,
    num_rollouts: float = 4,
    beam_width: int = 8,
    max_search_depth: int = 200,
    mode: SearchMode = "gumbel",
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    forest: Forest = Forest(),
    trace: Trace | None = None,
) -> Rollouts:
    """Search `num_rollouts` completions for each prompt, or that many on average where prompts share a search.

    Args:
        decoder: the network's slots, see `interfaces.Decoder`.
        prompts: P token lists, none empty.
        seeds: int64 [P]. A problem's noise depends on its seed and nothing else in the batch.
        num_rollouts: K leaves per problem, on average where problems share a search. Fewer when the tree has fewer.
        beam_width: size of a problem's open list. `gumbel` needs K + 1 and is lossless from there on.
        max_search_depth: a prefix of this many tokens is a leaf, finished or not.
        mode: see the module's docstring.
        guidance: how h enters. `sample` ignores it.
        forest: which problems share one budget of leaves, one open list and one kappa.
        trace: receives the nodes of the first searches when given.

    Raises:
        ValueError: an argument is out of range.
        FloatingPointError: the decoder returned NaN, or a prefix without any possible next token.
    """
    num_rows = _checked(prompts, seeds, num_rollouts, beam_width, max_search_depth, forest.size, mode)
    if mode == "best_first":
        return best_first(
            decoder, prompts, num_rows, beam_width * forest.size, max_search_depth, guidance, forest.size, trace
        )
    roots = LOCK_STEP[mode].roots(seeds, forest.size, num_rows, forest.log_tilt)
    own = guidance.of(roots.chosen)

    def begin(output: StepOutput, placed: Roots) -> Chooser:
        return LOCK_STEP[mode].begin(output, placed, num_rollouts, own)

    return lock_step(begin, roots, decoder, prompts, max_search_depth, own, trace)


def _checked(
    prompts: Sequence[Sequence[int]],
    seeds: Tensor,
    num_rollouts: float,
    beam_width: int,
    max_search_depth: int,
    group_size: int,
    mode: SearchMode,
) -> int:
    """Leaves of a group, once the arguments were looked at.

    Raises:
        ValueError: one is out of range.
    """
    if not prompts or min(len(p) for p in prompts) == 0:
        raise ValueError("prompts must be non-empty token lists, and at least one")
    if seeds.shape != (len(prompts),) or seeds.dtype != torch.int64:
        raise ValueError(f"seeds must be int64 of shape [{len(prompts)}], got {seeds.dtype} {tuple(seeds.shape)}")
    if group_size < 1 or len(prompts) % group_size:
        raise ValueError(f"forest.size {group_size} must be at least 1 and divide the {len(prompts)} prompts")
    num_rows = round(num_rollouts * group_size)
    if num_rows < 1 or max_search_depth < 1 or beam_width < 1:
        raise ValueError(
            f"num_rollouts {num_rollouts}, beam_width {beam_width} and max_search_depth {max_search_depth}"
            " must be at least 1"
        )
    if num_rows != num_rollouts * group_size:
        raise ValueError(f"num_rollouts {num_rollouts} times forest.size {group_size} must be a whole number of leaves")
    if mode == "gumbel" and beam_width < num_rollouts + 1:
        raise ValueError(
            f"beam_width {beam_width} must be at least num_rollouts + 1 = {num_rollouts + 1}:"
            " the threshold of the weights is the best prefix that was left out"
        )
    if mode != "best_first" and mode not in LOCK_STEP:
        raise ValueError(f"mode {mode!r} is not one of {', '.join(map(repr, MODES))}")
    return num_rows


def greedy_rollouts(decoder: Decoder, prompts: Sequence[Sequence[int]], max_search_depth: int) -> Rollouts:
    """The most probable next token at every prefix, one completion per prompt (K = 1)."""
    seeds = torch.zeros(len(prompts), dtype=torch.int64, device="cpu")
    begin = partial(Sampling.begin, per_problem=1, guidance=Guidance(), noise=False)
    return lock_step(begin, sampled_roots(seeds, 1, 1), decoder, prompts, max_search_depth, Guidance())
