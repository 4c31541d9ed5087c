"""What mends a run that does not fit a machine: options, each predicted anew, and the sentences that name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tinyzero_astar.config import Config, check
from tinyzero_astar.resources.memory import peak
from tinyzero_astar.resources.model import Model
from tinyzero_astar.resources.prediction import Outlook, predict
from tinyzero_astar.terminal import counted, readable_bytes

_MOST_PROCESSES = 8  # of one machine
_RANK = 16  # of adapters that are proposed


@dataclass(frozen=True)
class Plan:
    """Options that make a run fit, or come as near as options can."""

    options: list[str]
    outlook: Outlook
    fits: bool


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
