"""The algorithms by name, and what goes together with what. A further one is one file, and one line here."""

from __future__ import annotations

from tinyzero_astar.config import Config
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


def make_algorithm(config: Config) -> Algorithm:
    """The algorithm of a run.

    Raises:
        ValueError: it cannot train on what the configuration searches for.
    """
    name, search = config.train.algorithm, config.search
    kind = ALGORITHMS[name]
    if search.mode not in kind.modes:
        raise ValueError(f"algorithm {name} {kind.reason}: use --search.mode {kind.modes[0]}, not {search.mode}")
    if kind.min_rollouts > 1 and search.num_rollouts_per_problem < kind.min_rollouts:
        raise ValueError(
            f"algorithm {name} compares the rollouts of a problem, and num_rollouts_per_problem is"
            f" {search.num_rollouts_per_problem}: use at least {kind.min_rollouts}"
        )
    if config.eval.search == "best_first" and not kind.has_critic:
        raise ValueError(
            f"algorithm {name} trains no value model, which --eval.search best_first would look ahead with: use"
            " --eval.search greedy"
        )
    return kind.from_config(config)
