"""Completions as the policy takes them, for tests that score some."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tinyzero_astar.training.trees import Tree, grow_trees, stack


def trees_of(prompts, completions, device="cpu"):
    """One tree for each prompt and its completions, lists of tokens all. Scores come in their order."""
    trees = [Tree() for _ in prompts]
    for tree, prompt, own in zip(trees, prompts, completions, strict=True):
        for completion in own:
            tree.add(list(prompt), list(completion), 0)
    return stack(trees, torch.device(device))[1]


def trees_of_rows(ids, prompt_length):
    """One tree for each row [B, L] of ids, whose prompts have the same length."""
    return trees_of(ids[:, :prompt_length].tolist(), [[row] for row in ids[:, prompt_length:].tolist()])


def scores_of(policy, trees):
    """What the policy and its value model say of every token, [B, T] each."""
    scores = policy.token_scores(trees)
    named = {name: x for name, x in scores._asdict().items() if name != "visited"}
    return SimpleNamespace(**named, **policy.value_scores(scores.visited)._asdict())


def scores_of_batch(policy, batch):
    """`scores_of` every row of a batch, in the order of its rows."""
    rows, trees = stack(grow_trees(batch, range(len(batch.tokens)), 10**9, 10**9), batch.tokens.device)
    scores = scores_of(policy, trees)
    assert sorted(rows.tolist()) == list(range(len(batch.tokens)))
    place = rows.argsort()
    return SimpleNamespace(**{name: x[place] for name, x in vars(scores).items()})
