"""The algorithms by name; a further one is one file, and one line here."""

from __future__ import annotations

from tinyzero_astar.interfaces import Algorithm
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.grpo import GRPO
from tinyzero_astar.training.optimal_advantage import OptimalAdvantage
from tinyzero_astar.training.rejection import Rejection
from tinyzero_astar.training.rloo import RLOO

ALGORITHMS: dict[str, type[Algorithm]] = {
    "astar_po": AStarPO,
    "grpo": GRPO,
    "rloo": RLOO,
    "optimal_advantage": OptimalAdvantage,
    "rejection": Rejection,
}
