"""Typed configuration, with every setting, its default, and its range beside it.

Presets are in `presets`, the checks in `config_checks`. `config_json` saves and loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, NamedTuple

import tyro

from tinyzero_astar.modes import SearchMode

_MAX_PROBLEMS = 50_000  # of one set, of which 80,000 pairs and more exist on either side from 3 digits on
DECODING_INVERSE_BETA = 3.0  # 1/beta of best_first at test time, which prefers success whatever the prompt's value
# What predictions must know of algorithms before PyTorch is imported. The algorithms themselves say why.
WITH_CRITIC, WITH_REFERENCE = ("astar_po",), ("optimal_advantage",)


class Range(NamedTuple):
    """What a number may be, both ends included. It is noted beside its field."""

    low: float
    high: float


class Length(NamedTuple):
    """How many characters a text may have, both ends included. It is noted beside its field."""

    low: int
    high: int


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    model_name: Annotated[str, Length(1, 1000)] = "embedded"
    """Name on the Hugging Face hub, folder, .gguf file, run or checkpoint, or "embedded" for the package's base."""
    max_seq_length: Annotated[int, Range(8, 1 << 20)] = 128
    """Tokens of prompt and completion together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the language model's weights and activations. The value model and optimizer state are float32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes a CUDA GPU if there is one. mps is an Apple GPU, for algorithm astar_po on one process."""
    lora_rank: Annotated[int, Range(0, 1024)] = 0
    """Train low-rank adapters of this rank and freeze the model (needs peft). 0 trains all weights."""
    cuda_graphs: bool = True
    """In one process on an NVIDIA GPU, record the steps of a search as CUDA graphs, with all slots at every step."""
    liger: bool = False
    """Liger's fused kernels for rotary embedding, norms and SwiGLU (needs liger-kernel and a GPU)."""


@dataclass(frozen=True)
class DataConfig:
    """The task and its problems."""

    task: Annotated[str, Length(1, 1000)] = "multiplication"
    """multiplication, countdown, or your own as FILE.jsonl, FILE.py:Class or reasoning_gym:NAME (docs/own-task.md)."""
    num_problems: Annotated[int, Range(1, _MAX_PROBLEMS)] = 2000
    """Size of the training set."""
    num_shots: Annotated[int, Range(0, 64)] = 0
    """Worked examples before every question, for base models that do not know the format."""
    template: Literal["conversation", "compact"] = "compact"
    """How a question is worded, `conversation` for real base models, `compact` for the embedded one."""
    min_digits: Annotated[int, Range(1, 6)] = 2
    """Fewest digits of a factor (multiplication)."""
    max_digits: Annotated[int, Range(1, 6)] = 2
    """Most digits of a factor (multiplication)."""
    second_min_digits: Annotated[int | None, Range(1, 6)] = None
    """Fewest digits of the second factor (multiplication). None takes that of the first."""
    second_max_digits: Annotated[int | None, Range(1, 6)] = None
    """Most digits of the second factor (multiplication). None takes that of the first."""
    min_numbers: Annotated[int, Range(2, 6)] = 3
    """Fewest numbers of a question (countdown)."""
    max_numbers: Annotated[int, Range(2, 6)] = 4
    """Most numbers of a question (countdown)."""
    max_number: Annotated[int, Range(1, 999)] = 99
    """Largest number, from 1 on (countdown)."""
    max_target: Annotated[int, Range(10, 999)] = 100
    """Largest target, from 1 on (countdown)."""
    verifier: Literal["integer", "number", "string", "choice"] = "integer"
    """How answers of a FILE.jsonl are written and compared."""
    reward_function: Annotated[str, Length(0, 1000)] = ""
    """FILE.py:function or module:function that scores completions of a FILE.jsonl, as TRL's trainers call it."""
    task_sha256: tyro.conf.Suppress[Annotated[str, Length(0, 64)]] = ""
    """Digest of the files that the task comes from, filled in when a run begins. "" means none, or not yet known."""


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the two rewards."""

    accuracy: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Reward for a right answer in a well-formed completion, times the grade if the task grades."""
    format: Annotated[float, Range(0, 1e6)] = 0.1
    """Reward for a well-formed completion, right or wrong."""


@dataclass(frozen=True)
class SearchConfig:
    """How training rollouts are found."""

    mode: SearchMode = "gumbel"
    """gumbel is A* without replacement, with exact weights. sample is independent. best_first is biased A*."""
    num_rollouts_per_problem: Annotated[int | float, Range(1e-3, 1024)] = 8
    """K, leaves per problem, on average where problems share a search."""
    problems_per_search: Annotated[int, Range(1, 10**6)] = 1
    """M, most problems that share one search and its K times M leaves. With 1 each has a search of its own."""
    root_tilt: Annotated[float, Range(0, 1)] = 0.0
    """Share of the weight cap, in nats, spent on preferring half-solved problems (shared gumbel searches)."""
    beam_width: Annotated[int, Range(1, 4096)] = 12
    """Size of a problem's open list. gumbel needs K + 1 and is lossless from there on."""
    max_search_depth: Annotated[int, Range(1, 1 << 20)] = 80
    """Most generated tokens. A longer completion is cut and earns nothing."""
    guidance_strength: Annotated[float, Range(0, 1)] = 1.0
    """Upper end of tau, 0 to 1, which is how much the value model guides the search. 0 searches the policy itself."""
    inverse_beta: Annotated[float | Literal["balanced"], Range(-20, 20)] = "balanced"
    """1/beta of the heuristic, nats per unit of success. With balanced, half of the proposal succeeds."""
    max_inverse_beta: Annotated[float, Range(0, 20)] = 3.0
    """Bound on |1/beta| when balanced."""
    weight_cap: Annotated[float | None, Range(1 + 1e-6, 1e6)] = 2.0
    """Bound on policy over proposal for every leaf. None is no bound."""
    unguided_fraction: Annotated[float, Range(0, 1)] = 0.1
    """Share of problems that are searched without guidance, always."""
    min_weight: Annotated[float, Range(0, 1)] = 0.02
    """Leaves that weigh less are dropped at random before the update, without bias (gumbel, Russian roulette)."""

    def one_by_one(self, mode: SearchMode, num_rollouts: int) -> SearchConfig:
        """Another mode, with as many leaves for every problem and a search for each."""
        return replace(self, mode=mode, num_rollouts_per_problem=num_rollouts, problems_per_search=1, root_tilt=0.0)


@dataclass(frozen=True)
class ValueConfig:
    """The value model, which is the search's heuristic and the update's baseline."""

    hidden_size: Annotated[int, Range(1, 1 << 16)] = 128
    """Width of its MLP."""
    learning_rate: Annotated[float, Range(0, 1)] = 3e-3
    """Constant learning rate."""
    update_frequency: Annotated[int, Range(1, 10**6)] = 1
    """Policy updates after which it is trained, on all rows since the last time. Also after an iteration's last one."""
    num_steps: Annotated[int, Range(1, 10**5)] = 8
    """Gradient steps of one such training, on hidden states that the policy's updates have passed through."""


@dataclass(frozen=True)
class TrainConfig:
    """The policy update."""

    algorithm: Literal["astar_po", "grpo", "rloo", "optimal_advantage", "rejection"] = "astar_po"
    """What turns rollouts into a loss (docs/algorithm.md). All but astar_po work without a value model."""
    num_iterations: Annotated[int, Range(0, 10**7)] = 30
    """Iterations of search and update."""
    problems_per_iteration: Annotated[int, Range(1, 10**6)] = 32
    """Problems searched per iteration."""
    batch_size: Annotated[int, Range(1, 10**6)] = 16
    """Problems per optimizer step."""
    num_epochs: Annotated[int, Range(1, 100)] = 1
    """Passes over an iteration's rollouts."""
    learning_rate: Annotated[float, Range(0, 1)] = 3e-4
    """Peak learning rate, which decays linearly to 0."""
    warmup_iterations: Annotated[int, Range(0, 10**7)] = 1
    """Iterations of linear warm-up, within the run."""
    weight_decay: Annotated[float, Range(0, 10)] = 0.0
    """Weight decay of AdamW, on matrices."""
    max_grad_norm: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Gradients are scaled down to this norm."""
    clip_low: Annotated[float, Range(1e-6, 1 - 1e-6)] = 0.2
    """The ratio is clipped below 1 minus this."""
    clip_high: Annotated[float, Range(1e-6, 100)] = 0.28
    """The ratio is clipped above 1 plus this."""
    gae_lambda: Annotated[float, Range(0, 1)] = 1.0
    """Lambda of the generalized advantage. 1 is reward minus baseline."""
    advantage_floor: Annotated[float, Range(1e-6, 1e6)] = 0.2
    """Advantages are divided by their root mean square, but never by less than this (in units of reward)."""
    entropy_bonus: Annotated[float, Range(0, 1e3)] = 0.0
    """What a nat of the policy's mean entropy per token is worth, as a part of the loss. 0 is no bonus."""
    group_loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """grpo averages per completion, dapo over tokens, dr_grpo has a constant divisor and no deviation."""
    num_reference_samples: Annotated[int, Range(1, 1024)] = 8
    """Completions of the first policy per problem, from which its optimal value is estimated (optimal_advantage)."""
    optimal_value_beta: Annotated[float, Range(1e-3, 1e3)] = 0.5
    """What a nat is worth in that value (optimal_advantage). Small looks at the best sample, large at the mean."""
    regression_beta: Annotated[float, Range(1e-9, 1e3)] = 1e-3
    """What a nat of distance from the first policy costs, in units of reward (optimal_advantage)."""
    micro_batch_tokens: Annotated[int, Range(1, 1 << 30)] = 1024
    """Positions of prefix trees per forward and backward, and most of one tree. Few stay in a CPU's cache."""
    gradient_checkpointing: bool = False
    """Decoder layers keep only their inputs and run again in the backward. Far less memory, a third more time."""
    sharding: Literal["full", "hybrid"] = "full"
    """With --distributed, weights are split over all processes, or over those of one machine with a copy on each."""
    ratio_tolerance: Annotated[float, Range(0, 1e6)] = 1e-4
    """Alarm when the sampler's and the trainer's probabilities differ by more, as a ratio minus 1."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out problems."""

    eval_frequency: Annotated[int, Range(1, 10**7)] = 5
    """Evaluate every that many iterations, and at the start and the end."""
    num_problems: Annotated[int, Range(1, _MAX_PROBLEMS)] = 500
    """Held-out problems."""
    num_problems_between: Annotated[int, Range(1, 10**6)] = 200
    """At most so many of them in evaluations between the start and the end of a run, which decode greedily only."""
    num_samples: Annotated[int, Range(1, 1024)] = 1
    """Sampled completions per problem at the start and the end, up to which pass@k is reported."""
    max_rows: Annotated[int, Range(1, 1 << 20)] = 512
    """Sequences decoded at once. A problem's samples are decoded together."""
    search: Literal["greedy", "best_first"] = "greedy"
    """With best_first, also decode by A*, and compare it with other ways at the same number of decoded tokens."""
    beam_width: Annotated[int, Range(1, 4096)] = 8
    """Open list of that A*."""


@dataclass(frozen=True)
class RunConfig:
    """Everything about a run that is not about learning."""

    seed: Annotated[int, Range(0, 2**62)] = 0
    """Seed of the problems' order and of the search noise. Equal seeds give equal runs."""
    num_threads: Annotated[int, Range(0, 1024)] = 1
    """CPU threads of PyTorch, at most one per core. 0 takes one per core that is idle when the run starts."""
    checkpoint_frequency: Annotated[int, Range(1, 10**7)] = 10
    """Save a checkpoint every that many iterations, and at the end."""
    keep_last: Annotated[int, Range(0, 10**7)] = 2
    """Newest checkpoints that are kept. 0 keeps all that are ever made."""
    keep_best: Annotated[int, Range(0, 10**7)] = 1
    """Checkpoints with the highest held-out greedy accuracy that are kept too, of those that were evaluated."""
    sample_frequency: Annotated[int, Range(1, 10**7)] = 5
    """Completions are shown every that many iterations."""
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where else a run is recorded, such as `tensorboard wandb`. Each needs the package of its name."""
    collective_timeout_s: Annotated[float, Range(1, 10**6)] = 600.0
    """With --distributed, seconds that a process waits for the slowest one before the run fails."""


@dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)


def search_size(config: Config) -> int:
    """M, the most problems up to `search.problems_per_search` that divide those of a step and of an iteration.

    A search then belongs to one optimizer step. M is 1 in mode sample with a whole K, where nothing is shared.
    """
    search, train = config.search, config.train
    if search.mode == "sample" and float(search.num_rollouts_per_problem).is_integer():
        return 1
    whole = math.gcd(train.batch_size, train.problems_per_iteration)
    return max(size for size in range(1, min(search.problems_per_search, whole) + 1) if whole % size == 0)


def root_tilt_of(config: Config) -> float:
    """The root's tilt. Only mode gumbel, where problems share a search, can choose between them and undo it."""
    return config.search.root_tilt if config.search.mode == "gumbel" and search_size(config) > 1 else 0.0
