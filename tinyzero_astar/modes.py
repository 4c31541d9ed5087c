"""The search's modes by name. They are apart from `interfaces` because options are read before PyTorch is imported."""

from __future__ import annotations

from typing import Literal, get_args

SearchMode = Literal["sample", "gumbel", "best_first"]
"""See `rollout.astar_search`."""

MODES: tuple[SearchMode, ...] = get_args(SearchMode)
"""All of them."""
