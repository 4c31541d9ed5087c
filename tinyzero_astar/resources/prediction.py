"""Memory by phase and disk of a run, predicted from its configuration and the shapes of its model.

Completions are taken to be as long as they may become, so that a run may need less, but not more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tinyzero_astar.config import Config
from tinyzero_astar.resources.memory import Memory, checkpoint_bytes, peak, phases
from tinyzero_astar.resources.model import Model
from tinyzero_astar.resources.workload import Work

_METRICS, _SAMPLE = 3_000, 250  # bytes of a line of metrics.jsonl and, without the completion, of samples.jsonl
_PROGRAM = "Python and libraries"
_PROGRAM_BYTES = 380_000_000  # resident after the imports and a small model, with PyTorch for CPUs
_PER_TOKEN = 6  # bytes of a token in samples.jsonl


@dataclass(frozen=True)
class Outlook:
    """What a run will need of each process's device, and of the disk."""

    phases: dict[str, Memory]
    checkpoint: int  # bytes of one
    num_checkpoints: int
    records: int  # bytes of the .jsonl files

    @property
    def memory(self) -> int:
        """Bytes at the peak."""
        return peak(self.phases)[1]

    @property
    def disk(self) -> int:
        """Bytes at the end of the run."""
        return self.checkpoint * self.num_checkpoints + self.records


def predict(config: Config, model: Model, num_processes: int, device: str) -> Outlook:
    """Memory of each process, and the disk of the run."""
    work, train, run = work_of(config, model, num_processes, device), config.train, config.run
    saved = {*range(run.checkpoint_frequency, train.num_iterations + 1, run.checkpoint_frequency)}
    shown = len({*range(run.sample_frequency, train.num_iterations + 1, run.sample_frequency), train.num_iterations})
    leaves = train.problems_per_iteration * work.num_rollouts
    program = {_PROGRAM: _PROGRAM_BYTES} if work.is_host else {}
    return Outlook(
        phases={name: parts | program for name, parts in phases(model.shapes, work).items()},
        checkpoint=checkpoint_bytes(model.shapes, work),
        num_checkpoints=len(saved | ({train.num_iterations} if train.num_iterations else set())),
        records=(train.num_iterations + 1) * _METRICS + shown * leaves * (_SAMPLE + _PER_TOKEN * work.depth),
    )


def work_of(config: Config, model: Model, num_processes: int, device: str) -> Work:
    """What one of `num_processes` processes does, on a device of type "cpu" or "cuda"."""
    search, train, evaluation = config.search, config.train, config.eval
    leaves = search.num_rollouts_per_problem
    local = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))
    return Work(
        dtype_bytes=2 if config.model.dtype == "bfloat16" else 4,
        prompt_length=model.prompt_length,
        depth=max(1, min(search.max_search_depth, config.model.max_seq_length - model.prompt_length)),
        mode=search.mode,
        is_guided=search.guidance_strength > 0 and search.mode == "gumbel",
        num_problems=-(-train.problems_per_iteration // num_processes),
        num_rollouts=leaves,
        beam_width=search.beam_width,
        eval_problems=-(-evaluation.num_problems // num_processes),
        eval_samples=evaluation.num_samples,
        eval_rows=evaluation.max_rows,
        eval_beam_width=evaluation.beam_width if evaluation.search == "best_first" else None,
        num_rows=-(-train.problems_per_iteration * leaves // num_processes),
        step_rows=-(-train.batch_size * leaves // num_processes),
        micro_batch_tokens=train.micro_batch_tokens,
        value_hidden_size=config.value.hidden_size,
        num_shards=min(local, num_processes) if train.sharding == "hybrid" else num_processes,
        is_foreach=device == "cuda",
        is_host=device == "cpu",
        gradient_checkpointing=train.gradient_checkpointing,
        lora_rank=config.model.lora_rank,
        cuda_graphs=config.model.cuda_graphs,
    )
