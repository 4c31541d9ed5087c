"""Memory by phase and disk of a run, predicted from its configuration and the shapes of its model.

Completions are taken to be as long as they may become, so that a run may need less, but not more.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

from tinyzero_astar.config import WITH_CRITIC, WITH_REFERENCE, Config, search_size
from tinyzero_astar.files import TRACED_NODES, TRACED_PROBLEMS
from tinyzero_astar.resources.memory import peak, phases
from tinyzero_astar.resources.model import Model
from tinyzero_astar.resources.standing import Memory, checkpoint_bytes, checkpoint_copies
from tinyzero_astar.resources.workload import Work

_METRICS, _SAMPLE = 3_000, 250  # bytes of a line of metrics.jsonl and, without the completion, of samples.jsonl
_PROGRAM = "Python and libraries"
_PROGRAM_BYTES = 380_000_000  # resident after the imports and a small model, with PyTorch for CPUs
_PER_TOKEN = 6  # bytes of a token in samples.jsonl
_PER_NODE = 75  # bytes of a prefix in trace.jsonl


@dataclass(frozen=True)
class Outlook:
    """What a run will need of each process's device, and of the disk."""

    phases: dict[str, Memory]
    checkpoint: int  # bytes of one
    num_checkpoints: int  # most of them at a time, with the one that is being written
    records: int  # bytes of the .jsonl files
    host: int  # bytes of the machine's memory while a GPU's run writes a checkpoint. 0 where the phases have it

    @property
    def memory(self) -> int:
        """Bytes at the peak."""
        return peak(self.phases)[1]

    def needed(self, phase: str) -> int:
        """Bytes at the peak of a phase."""
        return sum(self.phases[phase].values())

    def too_large(self, available: int) -> str | None:
        """The first phase that needs more than `available` bytes. None when all fit."""
        return next((phase for phase in self.phases if self.needed(phase) > available), None)

    @property
    def disk(self) -> int:
        """Bytes when most of them are in use, over the whole run."""
        return self.checkpoint * self.num_checkpoints + self.records


@dataclass(frozen=True)
class PlannedRun:
    """A run before it starts, with all that its memory, disk and time depend on."""

    config: Config
    model: Model
    num_processes: int
    device: str  # the type of each process's device, "cpu" or "cuda"

    def changed(self, section: str, name: str, value: object) -> PlannedRun:
        """The same run with another value of one field of its configuration."""
        fields = replace(getattr(self.config, section), **{name: value})
        return replace(self, config=replace(self.config, **{section: fields}))

    @property
    def work(self) -> Work:
        """What one process does."""
        config, prompt = self.config, self.model.prompt_length
        search, train, evaluation = config.search, config.train, config.eval
        share, leaves = self._share(train.problems_per_iteration), search.num_rollouts_per_problem
        num_updates = -(-train.problems_per_iteration // train.batch_size) * train.num_epochs
        return Work(
            dtype_bytes=2 if config.model.dtype == "bfloat16" else 4,
            prompt_length=prompt,
            shared_length=self.model.shared_length,
            depth=max(1, min(search.max_search_depth, config.model.max_seq_length - prompt)),
            mode=search.mode,
            is_guided=search.guidance_strength > 0 and search.mode == "gumbel" and train.algorithm in WITH_CRITIC,
            num_problems=share,
            num_rollouts=math.ceil(leaves),
            num_leaves=math.ceil(share * leaves),
            beam_width=search.beam_width,
            eval_problems=self._share(evaluation.num_problems),
            eval_samples=evaluation.num_samples,
            eval_rows=evaluation.max_rows,
            eval_beam_width=evaluation.beam_width if evaluation.search == "best_first" else None,
            num_rows=self._share(math.ceil(train.problems_per_iteration * leaves)),
            step_rows=self._share(math.ceil(train.batch_size * leaves)),
            micro_batch_tokens=train.micro_batch_tokens,
            value_hidden_size=config.value.hidden_size,
            kept_updates=min(config.value.update_frequency, num_updates) * (train.algorithm in WITH_CRITIC),
            num_shards=self._num_shards,
            is_fused=self.device == "cuda",
            is_host=self.device == "cpu",
            gradient_checkpointing=train.gradient_checkpointing,
            lora_rank=config.model.lora_rank,
            has_liger=config.model.liger,
            cuda_graphs=config.model.cuda_graphs and self.device == "cuda" and self.num_processes == 1,
            num_reference_samples=train.num_reference_samples if train.algorithm in WITH_REFERENCE else 0,
        )

    @property
    def outlook(self) -> Outlook:
        """Memory of each process, and the disk of the run."""
        work, shapes, last = self.work, self.model.shapes, self.config.train.num_iterations
        run = self.config.run
        saved = _due(run.checkpoint_frequency, last) | ({last} if last else set())
        most = run.keep_last + run.keep_best + 1 if run.keep_last else len(saved)
        shown = _due(self.config.run.sample_frequency, last) | {1, last}
        search, per_iteration = self.config.search, self.config.train.problems_per_iteration
        leaves = math.ceil(per_iteration * search.num_rollouts_per_problem)
        traced = min(per_iteration, max(TRACED_PROBLEMS, search_size(self.config))) * search.num_rollouts_per_problem
        nodes = min(TRACED_NODES, math.ceil(traced * work.depth))
        shown_bytes = leaves * (_SAMPLE + _PER_TOKEN * work.depth) + nodes * _PER_NODE
        program = {_PROGRAM: _PROGRAM_BYTES} if work.is_host else {}
        return Outlook(
            phases={name: parts | program for name, parts in phases(shapes, work).items()},
            checkpoint=checkpoint_bytes(shapes, work),
            num_checkpoints=min(len(saved), most),
            records=(last + 1) * _METRICS + len(shown) * shown_bytes * (last > 0),
            host=checkpoint_copies(shapes, work) if self.device == "cuda" else 0,
        )

    @property
    def _num_shards(self) -> int:
        """Processes that weights are split over."""
        if self.config.train.sharding == "hybrid":
            return min(int(os.environ.get("LOCAL_WORLD_SIZE", self.num_processes)), self.num_processes)
        return self.num_processes

    def _share(self, number: int) -> int:
        """Of so many things, those of the process that has most."""
        return -(-number // self.num_processes)


def _due(frequency: int, last: int) -> set[int]:
    """Every iteration of a frequency. The caller adds what happens at the last one in any case."""
    return {*range(frequency, last + 1, frequency)}
