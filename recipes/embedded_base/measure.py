"""What the base model can and cannot do on the 2x2-digit held-out set, by `python -m recipes.embedded_base.measure`."""

from __future__ import annotations

import argparse
import json
from functools import partial

import torch

from tinyzero_astar.config import DataConfig, RewardConfig
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.eval.evaluate import evaluate
from tinyzero_astar.model.loading import end_tokens, load_language_model
from tinyzero_astar.model.model import Policy
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.training.reward import WeightedReward


def measure(model_name: str, num_problems: int, num_samples: int) -> dict[str, float]:
    """Greedy accuracy, sampled pass@k up to `num_samples`, and format, with 95 % intervals."""
    config = PRESETS["tiny"]
    model, tokenizer = load_language_model(model_name, torch.float32)
    policy = Policy(model, end_tokens(model), config.value.hidden_size)
    task = Multiplication(DataConfig(num_problems=1), seed=0)
    generator = Generator(
        partial(SlotDecoder, policy), tokenizer, task, WeightedReward(RewardConfig()), config.model.max_seq_length
    )
    settings = config.search
    problems = task.held_out_problems(num_problems)
    result = evaluate(generator, problems, settings, num_samples=num_samples, max_rows=512)
    return {name: round(value, 4) for name, value in result.metrics().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--num-problems", type=int, default=500)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(measure(args.model, args.num_problems, args.num_samples), indent=1))


if __name__ == "__main__":
    main()
