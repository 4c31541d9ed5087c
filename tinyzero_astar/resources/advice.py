"""Whether a run fits a machine: memory by phase, disk, time per iteration, and the options that mend what does not.

Everything comes from the configuration and the model's config.json, before any weights are read. Completions are
taken to be as long as they may become, so that a run may need less, but not more. transformers and the hub's client
are imported only where a model has to be looked for: they take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tinyzero_astar.config import Config, ModelConfig, check
from tinyzero_astar.data.generation import TEMPLATES, room_after
from tinyzero_astar.resources.known import known_shapes
from tinyzero_astar.resources.machine import Speed
from tinyzero_astar.resources.memory import Memory, checkpoint_bytes, kv_bytes, peak, phases
from tinyzero_astar.resources.workload import Shapes, Work
from tinyzero_astar.terminal import counted, readable_bytes

_LETTERS_PER_TOKEN = 3  # of prompts, where there is no tokenizer to ask: fewer than in English, as digits stand alone
_MOST_PROCESSES = 8  # of one machine
_RANK = 16  # of adapters that are proposed
_METRICS, _SAMPLE = 3_000, 250  # bytes of a line of metrics.jsonl and, without the completion, of samples.jsonl
_PROGRAM = "Python and libraries"
_PROGRAM_BYTES = 380_000_000  # resident after the imports and a small model, with PyTorch for CPUs
_PER_TOKEN = 6  # bytes of a token in samples.jsonl


@dataclass(frozen=True)
class Model:
    """What is known without weights."""

    shapes: Shapes
    prompt_length: int  # tokens of the longest prompt
    is_estimated: bool  # the prompt's length, for want of a tokenizer


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


@dataclass(frozen=True)
class Plan:
    """Options that make a run fit, or come as near as options can."""

    options: list[str]
    outlook: Outlook
    fits: bool


def check_options(config: Config, device: torch.device) -> None:
    """Refuse what this machine cannot do, before any model is looked for.

    Raises:
        ValueError: an option needs a GPU or a package that is not here.
    """
    if config.model.cuda_graphs and device.type != "cuda":
        raise ValueError(f"model.cuda_graphs is for GPUs, and the model would run on {device}: leave that option out")
    if config.model.lora_rank:
        from tinyzero_astar.model.adapters import import_peft

        import_peft(config.model.lora_rank)
    if config.model.liger:
        from tinyzero_astar.model.liger import import_liger

        import_liger(device)


def read_model(config: Config, say: Callable[[str], None] = print) -> Model:
    """Shapes and prompts of the model of a run.

    Raises:
        ValueError: there is no such model, it cannot be used, or its longest prompt leaves no room for a completion.
    """
    largest = 10**config.data.max_digits - 1
    prompt = TEMPLATES[config.data.template].format(a=largest, b=largest)
    estimated = -(-len(prompt) // _LETTERS_PER_TOKEN)
    if (shapes := _known(config.model)) is not None:
        return Model(shapes, estimated, True)
    from transformers.utils import logging as transformers_logging

    from tinyzero_astar.model.loading import read_config
    from tinyzero_astar.resources.shapes import shapes_of

    transformers_logging.disable_progress_bar()
    hf_config, tokenizer = read_config(config.model.model_name, config.model.max_seq_length, say)
    if tokenizer is None:
        return Model(shapes_of(hf_config), estimated, True)
    length = len(tokenizer(prompt)["input_ids"])
    room_after(length, config.model.max_seq_length, config.search.max_search_depth)  # or refuses
    return Model(shapes_of(hf_config), length, False)


def _known(model: ModelConfig) -> Shapes | None:
    """The shapes of a preset's model, unless its files are on this machine: they tell more."""
    shapes = known_shapes(model.model_name, model.max_seq_length)
    if shapes is None or Path(model.model_name).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    return None if isinstance(try_to_load_from_cache(model.model_name, "config.json"), str) else shapes


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


def seconds(config: Config, model: Model, num_processes: int, device: str, speed: Speed) -> dict[str, float]:
    """Estimated seconds of one iteration's parts, with every completion at full length.

    2 operations per parameter and token forward, 4 backward (2 for frozen weights), 2 more where layers run again.
    """
    work, n = work_of(config, model, num_processes, device), model.shapes.num_parameters
    tokens = work.num_problems * work.prompt_length + work.num_rows * work.depth  # completions share their prompts
    per_token = (4 if work.lora_rank else 6) + 2 * work.gradient_checkpointing
    return {
        "search": _decoding(model.shapes, work, work.num_problems, work.num_rollouts, speed),
        "update": config.train.num_epochs * per_token * n * tokens / speed.flops_per_s,
        # of the policy from its base, which only adapters have: a forward of either
        **({"divergence": 4 * n * tokens / speed.flops_per_s} if work.lora_rank else {}),
    }


def evaluation_seconds(
    config: Config, model: Model, num_processes: int, device: str, speed: Speed, is_whole: bool
) -> float:
    """Estimated seconds of one evaluation, with every completion at full length: see `EvalConfig`.

    What `eval.search` best_first adds is not counted: it depends on the policy.
    """
    work, total = work_of(config, model, num_processes, device), 0.0
    problems = work.eval_problems if is_whole else min(work.eval_problems, config.eval.num_problems_between)
    for samples in (1, work.eval_samples) if is_whole else (1,):
        at_once = max(1, work.eval_rows // samples)
        whole, rest = divmod(problems, at_once)
        total += whole * _decoding(model.shapes, work, at_once, samples, speed)
        total += _decoding(model.shapes, work, rest, samples, speed) if rest else 0.0
    return total


def num_evaluations(config: Config) -> int:
    """Before the first iteration, every `eval_frequency`, and at the end."""
    last, frequency = config.train.num_iterations, config.eval.eval_frequency
    return len({0, last, *range(frequency, last + 1, frequency)})


def _decoding(shapes: Shapes, work: Work, num_problems: int, per_problem: int, speed: Speed) -> float:
    """Seconds for a prompt per problem and `per_problem` completions of it.

    Each step reads all weights and the slots so far, or is bound by arithmetic.
    """
    n, rows = shapes.num_parameters, num_problems * per_problem
    slots = kv_bytes(shapes, work, rows) * (work.prompt_length + work.depth / 2) / (work.length + 1)
    read = (n * work.dtype_bytes + slots) / speed.bytes_per_s
    prompts = 2 * n * num_problems * work.prompt_length / speed.flops_per_s
    return prompts + work.depth * max(read, 2 * n * rows / speed.flops_per_s)


def mend(config: Config, model: Model, num_processes: int, device: str, available: int) -> Plan:
    """The options that make each phase fit into `available` bytes, the first phase that does not fit first.

    Of a phase's remedies the first that suffices alone is taken; where none does, its strongest are put together in
    their order. Every proposal is predicted anew.
    """
    options: dict[str, str] = {}
    while True:
        outlook = predict(config, model, num_processes, device)
        phase = next((name for name, parts in outlook.phases.items() if sum(parts.values()) > available), None)
        if phase is None:
            return Plan(_joined(options), outlook, True)
        now = sum(outlook.phases[phase].values())
        steps: list[tuple[str, str, Config, int]] = []
        for name, value, other, count in _remedies(phase, config, model, num_processes, device):
            need = sum(predict(other, model, count, device).phases[phase].values())
            if need < now:
                steps.append((name, value, other, count))
            if need <= available:
                break
        else:
            if not steps:
                return Plan(_joined(options), outlook, False)
            first = steps[0][0]  # the first kind of remedy at its strongest, then the next
            steps = [step for step in steps if step[0] == first]
        name, value, config, num_processes = steps[-1]
        options[name] = value


def _joined(options: dict[str, str]) -> list[str]:
    return [f"{name} {value}".rstrip() for name, value in options.items()]


def mend_disk(config: Config, model: Model, num_processes: int, device: str, available: int) -> Plan:
    """Fewer checkpoints, until they fit into `available` bytes."""
    options: list[str] = []
    while (outlook := predict(config, model, num_processes, device)).disk > available:
        if outlook.num_checkpoints <= 1:
            return Plan([], outlook, False)
        frequency = min(config.run.checkpoint_frequency * 2, config.train.num_iterations)
        config = replace(config, run=replace(config.run, checkpoint_frequency=frequency))
        options = [f"--run.checkpoint-frequency {frequency}"]
    return Plan(options, outlook, True)


def memory_advice(config: Config, model: Model, num_processes: int, device: str, available: int) -> str | None:
    """One sentence on the first phase that does not fit and the options that mend it; None when all fits."""
    found = predict(config, model, num_processes, device).phases
    phase = next((name for name, parts in found.items() if sum(parts.values()) > available), None)
    if phase is None:
        return None
    part = max(found[phase], key=lambda name: found[phase][name])
    plan = mend(config, model, num_processes, device, available)
    need, most = sum(found[phase].values()), found[phase][part]
    text = (
        f"memory: {phase} needs {readable_bytes(need)} of {readable_bytes(available)} free, {readable_bytes(most)} of"
        f" it for {part}; peak {readable_bytes(peak(found)[1])}; "
    )
    then = f"{' '.join(plan.options)}: predicted peak {readable_bytes(plan.outlook.memory)}"
    if plan.fits:
        return f"{text}use {then}"
    if plan.options:
        return f"{text}no option makes it fit, the nearest is {then}; use a smaller model or more memory"
    return f"{text}no option makes it fit; use a smaller model or more memory"


def disk_advice(config: Config, model: Model, num_processes: int, device: str, available: int) -> str | None:
    """One sentence when checkpoints and records do not fit the disk; None when they do."""
    outlook = predict(config, model, num_processes, device)
    if outlook.disk <= available:
        return None
    text = (
        f"disk: {counted(outlook.num_checkpoints, 'checkpoint')} of {readable_bytes(outlook.checkpoint)} and the"
        f" records need {readable_bytes(outlook.disk)} of {readable_bytes(available)} free; "
    )
    plan = mend_disk(config, model, num_processes, device, available)
    if plan.fits:
        return (
            f"{text}use {' '.join(plan.options)}: {readable_bytes(plan.outlook.disk)}, or --output-dir on a larger disk"
        )
    return f"{text}one is too much already: use --output-dir on a larger disk"


def _remedies(
    phase: str, config: Config, model: Model, num_processes: int, device: str
) -> Iterator[tuple[str, str, Config, int]]:
    """Option, value, the configuration with it, and processes; of each kind the mildest first.

    More processes help where each brings a device of its own; those on a CPU share its memory.
    """
    if phase == "search":
        yield from _halved(config, num_processes, "search", "num_rollouts_per_problem", 2)
        if config.search.mode == "best_first":
            yield from _halved(config, num_processes, "search", "beam_width", 2)
        yield from _halved(config, num_processes, "train", "problems_per_iteration", config.train.batch_size)
    if phase == "evaluation":
        yield from _halved(config, num_processes, "eval", "max_rows", config.eval.num_samples)
    if phase == "gradients" and not config.train.gradient_checkpointing:
        other = replace(config, train=replace(config.train, gradient_checkpointing=True))
        yield "--train.gradient-checkpointing", "", other, num_processes
    if phase in ("gradients", "divergence"):
        least = model.prompt_length + config.search.max_search_depth
        yield from _halved(config, num_processes, "train", "micro_batch_tokens", least)
    if config.model.lora_rank == 0:
        other = replace(config, model=replace(config.model, lora_rank=_RANK))
        yield "--model.lora-rank", str(_RANK), other, num_processes
    count = num_processes * 2
    while device == "cuda" and count <= _MOST_PROCESSES and config.train.problems_per_iteration % count == 0:
        yield "--distributed under torchrun --nproc_per_node", str(count), config, count
        count *= 2


def _halved(config: Config, num_processes: int, section: str, name: str, least: int) -> Iterator[Any]:
    """A number of the configuration halved again and again."""
    value = getattr(getattr(config, section), name) // 2
    option = f"--{section}.{name.replace('_', '-')}"
    while value >= least:
        changed = replace(getattr(config, section), **{name: value})
        other = replace(config, **{section: changed})
        try:
            check(other)
        except ValueError:  # other fields do not allow it
            return
        yield option, str(value), other, num_processes
        value //= 2
