"""What of its prompts a search put through the model, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.rollout.records import num_prompt_tokens

LONG = list(range(600))  # tokens that all prompts begin with, which is worth reading apart


def rewarded(prompts, num_expanded):
    """As much of rewarded rollouts as is counted."""
    stats = SimpleNamespace(num_expanded=torch.tensor(num_expanded))
    return SimpleNamespace(prompts=prompts, rollouts=SimpleNamespace(stats=stats))


@pytest.mark.parametrize(
    ("prompts", "num_expanded", "tilt", "tokens"),
    [
        ([[1, 2, 3], [4, 5], [6]], [7, 1, 2], 0.0, 6),
        ([[1, 2, 3], [4, 5], [6]], [7, 0, 2], 0.0, 4),  # nobody read the second prompt
        ([[1, 2, 3], [4, 5], [6], [7, 8, 9, 0]], [7, 0, 2, 0], 0.5, 4 + 10),  # but the tilt did, and all others too
        ([[*LONG, 1], [*LONG, 2, 3], [*LONG, 4]], [1, 1, 1], 0.0, 600 + 4),
        ([[*LONG, 1], [*LONG, 2, 3], [*LONG, 4]], [1, 1, 0], 0.0, 600 + 3),
    ],
)
def test_prompts_count_where_they_are_read_and_what_they_share_counts_once(prompts, num_expanded, tilt, tokens):
    settings = SearchConfig(root_tilt=tilt, problems_per_search=2)
    assert num_prompt_tokens(rewarded(prompts, num_expanded), settings) == tokens
