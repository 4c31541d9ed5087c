"""The presets, each a complete run.

`tiny` has been run to its end on a CPU, and so has `small`, with the instruct weights of its model. Parts of both have
been run on a GPU. `local` and `training` need one, and have not been run as whole commands (docs/gpu.md).

`python train.py --config local --search.beam-width 12` starts from preset `local` and changes one field.
"""

from tinyzero_astar.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    SearchConfig,
    TrainConfig,
    ValueConfig,
)

_TINY = Config(
    search=SearchConfig(num_rollouts_per_problem=1, problems_per_search=32, root_tilt=0.5),
    train=TrainConfig(num_iterations=50, problems_per_iteration=64, batch_size=64, learning_rate=2e-4),
    eval=EvalConfig(eval_frequency=10),
    run=RunConfig(checkpoint_frequency=25, sample_frequency=5),
)

_SMALL = Config(
    model=ModelConfig(model_name="HuggingFaceTB/SmolLM2-135M", max_seq_length=192),
    data=DataConfig(num_problems=500, num_shots=3, second_min_digits=1, second_max_digits=1),
    search=SearchConfig(num_rollouts_per_problem=1, problems_per_search=32, root_tilt=0.5, max_search_depth=40),
    train=TrainConfig(
        num_iterations=30,
        problems_per_iteration=128,
        batch_size=128,
        learning_rate=4e-5,
        warmup_iterations=3,
        ratio_tolerance=1e-3,
    ),
    eval=EvalConfig(eval_frequency=5, num_problems=144, num_problems_between=100),
    run=RunConfig(checkpoint_frequency=10, sample_frequency=5, num_threads=0),
)

_LOCAL = Config(
    model=ModelConfig(model_name="Qwen/Qwen2.5-1.5B", max_seq_length=512, dtype="bfloat16"),
    data=DataConfig(min_digits=2, max_digits=2, num_problems=100, template="conversation"),
    search=SearchConfig(num_rollouts_per_problem=4, problems_per_search=4, beam_width=8, max_search_depth=200),
    value=ValueConfig(hidden_size=512, learning_rate=1e-4, update_frequency=1),
    train=TrainConfig(
        num_iterations=20,
        problems_per_iteration=16,
        batch_size=4,
        learning_rate=1e-5,
        warmup_iterations=2,
        micro_batch_tokens=16384,
        gradient_checkpointing=True,
        ratio_tolerance=0.1,
    ),
    eval=EvalConfig(eval_frequency=5, num_problems=100, num_samples=4, max_rows=128),
    run=RunConfig(checkpoint_frequency=10, num_threads=0),
)

_TRAINING = Config(
    model=ModelConfig(model_name="Qwen/Qwen2.5-3B", max_seq_length=512, dtype="bfloat16"),
    data=DataConfig(min_digits=2, max_digits=3, num_problems=1000, template="conversation"),
    search=SearchConfig(num_rollouts_per_problem=4, problems_per_search=4, beam_width=8, max_search_depth=200),
    value=ValueConfig(hidden_size=512, learning_rate=1e-4, update_frequency=5),
    train=TrainConfig(
        num_iterations=100,
        problems_per_iteration=32,
        batch_size=4,
        learning_rate=1e-5,
        warmup_iterations=5,
        micro_batch_tokens=16384,
        gradient_checkpointing=True,
        ratio_tolerance=0.1,
    ),
    eval=EvalConfig(eval_frequency=10, num_problems=500, num_samples=4, max_rows=256),
    run=RunConfig(checkpoint_frequency=20, num_threads=0),
)

PRESETS = {"tiny": _TINY, "small": _SMALL, "local": _LOCAL, "training": _TRAINING}
