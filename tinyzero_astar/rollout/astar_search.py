"""A* over token prefixes: several ways to spend decoder steps, behind one function.

The search knows tokens, scores and slots; the network enters through a `Decoder`. Every mode scores a prefix
by `f_score`, f = g + h with g the cumulative log-probability and h the learned value on the scale of
log-probabilities:

- "sample": independent sampling from the policy; the baseline of every claim.
- "gumbel": A* on the Gumbel-perturbed f, in lock step: an exact sample without replacement from the proposal
  q, with its inclusion weights. The source of unbiased gradients.
- "best_first": the literal A*: an open list, the largest f first. It returns modes: for decoding.

Left out on purpose: temperature, top-k and top-p (each would void the weights), length normalisation (so would
it), and any knowledge of rewards. Equation numbers are those of docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tinyzero_astar.interfaces import Decoder, Rollouts, TraceNode
from tinyzero_astar.modes import MODES, SearchMode
from tinyzero_astar.search.best_first import best_first
from tinyzero_astar.search.choosers import Begin, Sampling, WithoutReplacement
from tinyzero_astar.search.heuristic import Guidance
from tinyzero_astar.search.lock_step import lock_step

__all__ = ["Guidance", "astar_rollouts", "greedy_rollouts"]

# The modes that search in lock step; a further one is one file, its name in modes.py, and one line here.
LOCK_STEP: dict[SearchMode, Begin] = {"sample": Sampling.begin, "gumbel": WithoutReplacement.begin}


def astar_rollouts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Tensor,
    num_rollouts: int = 4,
    beam_width: int = 8,
    max_search_depth: int = 200,
    mode: SearchMode = "gumbel",
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    trace: list[TraceNode] | None = None,
) -> Rollouts:
    """Search `num_rollouts` completions for each prompt.

    Args:
        decoder: the network's slots; see `interfaces.Decoder`.
        prompts: P token lists, none empty.
        seeds: int64 [P]; a problem's leaves depend on its seed and nothing else in the batch.
        num_rollouts: K >= 1 leaves per problem (fewer exist when the tree has fewer).
        beam_width: size of a problem's open list. `gumbel` needs K + 1 and is lossless from there on.
        max_search_depth: a prefix of this many tokens is a leaf, finished or not.
        mode: see the module's docstring.
        guidance: how h enters; ignored by `sample`.
        trace: receives the nodes of the search, parents before children, when given.

    Raises:
        ValueError: an argument is out of range.
        FloatingPointError: the decoder returned NaN, or a prefix without any possible next token.
    """
    if not prompts or min(len(p) for p in prompts) == 0:
        raise ValueError("prompts must be non-empty token lists, and at least one")
    if seeds.shape != (len(prompts),) or seeds.dtype != torch.int64:
        raise ValueError(f"seeds must be int64 of shape [{len(prompts)}], got {seeds.dtype} {tuple(seeds.shape)}")
    if num_rollouts < 1 or max_search_depth < 1 or beam_width < 1:
        raise ValueError(
            f"num_rollouts {num_rollouts}, beam_width {beam_width} and max_search_depth {max_search_depth}"
            " must be at least 1"
        )
    if mode == "gumbel" and beam_width < num_rollouts + 1:
        raise ValueError(
            f"beam_width {beam_width} must be at least num_rollouts + 1 = {num_rollouts + 1}:"
            " the threshold of the weights is the best prefix that was left out"
        )
    if mode == "best_first":
        return best_first(decoder, prompts, num_rollouts, beam_width, max_search_depth, guidance, trace)
    if mode in LOCK_STEP:
        return lock_step(LOCK_STEP[mode], decoder, prompts, seeds, num_rollouts, max_search_depth, guidance, trace)
    raise ValueError(f"mode {mode!r} is not one of {', '.join(map(repr, MODES))}")


def greedy_rollouts(decoder: Decoder, prompts: Sequence[Sequence[int]], max_search_depth: int) -> Rollouts:
    """The most probable next token at every prefix, one completion per prompt (K = 1)."""
    seeds = torch.zeros(len(prompts), dtype=torch.int64, device="cpu")
    begin = partial(Sampling.begin, noise=False)
    return lock_step(begin, decoder, prompts, seeds, 1, max_search_depth, Guidance())
