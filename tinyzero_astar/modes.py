"""The search's modes by name; apart from `interfaces` because options are read before PyTorch is imported."""

from __future__ import annotations

from typing import Literal

SearchMode = Literal["sample", "gumbel", "best_first"]
"""See `rollout.astar_search`."""
