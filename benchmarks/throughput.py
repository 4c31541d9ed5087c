"""Decode and update throughput side by side: `python -m benchmarks.throughput`; prints JSON.

The same model, problems, depth limit and number of rows for the three search modes and for Hugging Face's
`generate`, measured in turn within one process, several rounds, medians and ranges. A token counts when it belongs
to a completion up to and including its end; padding after it does not. `generate` samples from the same
distribution as the policy (top_k=0, top_p=1.0: its default top_k of 50 would not be the policy).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time

import torch
import transformers

from tinyzero_astar.config import PRESETS
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.model.model import Policy, load_language_model
from tinyzero_astar.rollout.astar_search import Guidance
from tinyzero_astar.rollout.generator import Generator, SearchSettings, make_batch
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.reward import RewardWeights
from tinyzero_astar.training.update import Updater, UpdateSettings

ROWS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--depth", type=int, default=80)
    parser.add_argument("--num-rollouts", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    model, tokenizer = load_language_model(args.model, torch.float32)
    model.eval()
    policy = Policy(model, tokenizer.eos_token_id, config.value.hidden_size)
    torch.nn.init.normal_(policy.value_model.up.weight, std=0.1)  # a value model that has something to say
    task = Multiplication(2, 2, 2000, seed=0, template="compact")
    generator = Generator(policy, tokenizer, task, RewardWeights(), 512)
    problems = task.train_problems(0, ROWS // args.num_rollouts)
    plain = SearchSettings("sample", args.num_rollouts, args.num_rollouts + 1, args.depth, Guidance(strength=0.0), 0.0, 0.0)
    guided = Guidance(inverse_beta=2.0)
    modes = {
        "sample": plain,
        "gumbel": dataclasses.replace(plain, mode="gumbel"),
        "gumbel_guided": dataclasses.replace(plain, mode="gumbel", guidance=guided),
        "best_first": dataclasses.replace(plain, mode="best_first"),
    }

    def search(settings: SearchSettings, round_: int) -> tuple[int, float]:
        began = time.perf_counter()
        rewarded = generator.generate(problems, settings, seed=0, iteration=round_)
        return int(rewarded.rollouts.stats.num_decoded_tokens.sum()), time.perf_counter() - began

    def generate(round_: int) -> tuple[int, float]:
        torch.manual_seed(round_)
        inputs = tokenizer([p.prompt for p in problems for _ in range(args.num_rollouts)], return_tensors="pt")
        began = time.perf_counter()
        with torch.no_grad():
            output = model.generate(
                **inputs, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=args.depth
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new)
        elapsed = time.perf_counter() - began
        is_end = new == tokenizer.eos_token_id
        before = is_end.long().cumsum(1) - is_end.long()
        assert len(texts) == ROWS
        return int((before == 0).sum()), elapsed

    def update() -> tuple[int, float]:
        rewarded = generator.generate(problems, modes["gumbel"], seed=0, iteration=0)
        batch = make_batch(rewarded, policy.eos_id)
        copy = Policy(load_language_model(args.model, torch.float32)[0], policy.eos_id, config.value.hidden_size)
        train = config.train
        settings = UpdateSettings(
            num_iterations=1,
            warmup_iterations=0,
            learning_rate=1e-5,
            value_learning_rate=1e-3,
            value_update_frequency=1,
            weight_decay=0.0,
            max_grad_norm=1.0,
            batch_size=train.batch_size,
            num_epochs=1,
            micro_batch_tokens=train.micro_batch_tokens,
            reward_weights=RewardWeights(),
        )
        algorithm = AStarPO(train.clip_low, train.clip_high, train.gae_lambda, train.advantage_floor)
        updater = Updater(copy, algorithm, settings)
        began = time.perf_counter()
        updater.update(batch, 0)
        return int(batch.is_token.sum() + batch.prompt_length.sum()), time.perf_counter() - began

    speed: dict[str, list[float]] = {name: [] for name in [*modes, "generate", "update"]}
    for round_ in range(args.rounds + 1):
        for name in speed:
            if name == "generate":
                tokens, seconds = generate(round_)
            elif name == "update":
                tokens, seconds = update()
            else:
                tokens, seconds = search(modes[name], round_)
            if round_ > 0:  # the first round warms up
                speed[name].append(tokens / seconds)

    def ratio(a: str, b: str) -> dict[str, float]:
        pairs = [x / y for x, y in zip(speed[a], speed[b], strict=True)]
        return {"median": round(statistics.median(pairs), 3), "min": round(min(pairs), 3), "max": round(max(pairs), 3)}

    result = {
        "what": "tokens per second; ratios are of paired rounds",
        "model": args.model,
        "parameters": model.num_parameters(),
        "rows": ROWS,
        "num_rollouts": args.num_rollouts,
        "depth": args.depth,
        "rounds": args.rounds,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "tokens_per_s": {
            name: {"median": round(statistics.median(x)), "min": round(min(x)), "max": round(max(x))}
            for name, x in speed.items()
        },
        "speedup_of_sample_over_generate": ratio("sample", "generate"),
        "cost_per_token_of_gumbel_over_sample": ratio("sample", "gumbel"),
        "cost_per_token_of_guided_over_sample": ratio("sample", "gumbel_guided"),
        "cost_per_token_of_best_first_over_sample": ratio("sample", "best_first"),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
