"""Options that make a run fit a machine, each predicted anew, and the sentences that name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tinyzero_astar.config import search_size
from tinyzero_astar.config_checks import check
from tinyzero_astar.resources.prediction import Outlook, PlannedRun
from tinyzero_astar.terminal import counted, readable_bytes

_MOST_PROCESSES = 8  # of one machine
_RANK = 16  # of adapters that are proposed


@dataclass(frozen=True)
class Remedy:
    """One option, and what becomes of the run with it."""

    option: str
    value: str  # as it is typed, empty for a switch
    run: PlannedRun


@dataclass(frozen=True)
class Plan:
    """Options that make a run fit, or come as near as options can."""

    options: list[str]
    outlook: Outlook
    fits: bool


def memory_advice(run: PlannedRun, available: int) -> str | None:
    """The first phase that does not fit and the options that mend it, in words. None when all fits."""
    outlook = run.outlook
    if (phase := outlook.too_large(available)) is None:
        return None
    part, most = max(outlook.phases[phase].items(), key=lambda item: item[1])
    text = (
        f"memory: {phase} needs {readable_bytes(outlook.needed(phase))} of {readable_bytes(available)} free,"
        f" {readable_bytes(most)} of it for {part}. The peak is {readable_bytes(outlook.memory)}. "
    )
    plan = mend_memory(run, available)
    then = f"{' '.join(plan.options)}, with a predicted peak of {readable_bytes(plan.outlook.memory)}"
    if plan.fits:
        return f"{text}Use {then}"
    if plan.outlook.memory < outlook.memory:
        return f"{text}No option makes it fit. The nearest is {then}. Use a smaller model or more memory"
    return f"{text}No option makes it fit. Use a smaller model or more memory"


def disk_advice(run: PlannedRun, available: int) -> str | None:
    """What to do when checkpoints and records do not fit the disk, in words. None when they do."""
    outlook = run.outlook
    if outlook.disk <= available:
        return None
    text = (
        f"disk: {counted(outlook.num_checkpoints, 'checkpoint')} of {readable_bytes(outlook.checkpoint)} and the"
        f" records need {readable_bytes(outlook.disk)} of {readable_bytes(available)} free. "
    )
    plan = mend_disk(run, available)
    if plan.fits:
        then = f"{' '.join(plan.options)} for {readable_bytes(plan.outlook.disk)}"
        return f"{text}Use {then}, or --output-dir on a larger disk"
    return f"{text}One is too much already. Use --output-dir on a larger disk"


def mend_memory(run: PlannedRun, available: int) -> Plan:
    """The options that make each phase fit into `available` bytes, the first phase that does not fit first.

    Every proposal is predicted anew.
    """
    options: dict[str, str] = {}
    outlook = run.outlook
    while (phase := outlook.too_large(available)) is not None:
        if (remedy := _best(run, phase, available)) is None:
            break
        options[remedy.option] = remedy.value
        run, outlook = remedy.run, remedy.run.outlook
    return Plan([f"{option} {value}".rstrip() for option, value in options.items()], outlook, phase is None)


def _best(run: PlannedRun, phase: str, available: int) -> Remedy | None:
    """Of a phase's remedies the first that suffices alone, else the strongest of the first kind that helps."""
    now, helpful = run.outlook.needed(phase), list[Remedy]()
    for remedy in _remedies(run, phase):
        need = remedy.run.outlook.needed(phase)
        if need <= available:
            return remedy
        if need < now:
            helpful.append(remedy)
    return next((remedy for remedy in reversed(helpful) if remedy.option == helpful[0].option), None)


def mend_disk(run: PlannedRun, available: int) -> Plan:
    """Fewer checkpoints at a time, then fewer at all, until they fit into `available` bytes."""
    options: dict[str, str] = {}
    while (outlook := run.outlook).disk > available:
        if outlook.num_checkpoints <= 1:
            return Plan([], outlook, False)
        name, value = _fewer_checkpoints(run)
        run = run.changed("run", name, value)
        options[f"--run.{name.replace('_', '-')}"] = str(value)
    return Plan([f"{option} {value}" for option, value in options.items()], outlook, True)


def _fewer_checkpoints(run: PlannedRun) -> tuple[str, int]:
    """The mildest change that leaves fewer of them on the disk."""
    for name, value in (("keep_last", 1), ("keep_best", 0)):
        if run.changed("run", name, value).outlook.num_checkpoints < run.outlook.num_checkpoints:
            return name, value
    return "checkpoint_frequency", min(run.config.run.checkpoint_frequency * 2, run.config.train.num_iterations)


def _remedies(run: PlannedRun, phase: str) -> Iterator[Remedy]:
    """The options of each kind, the mildest first.

    More processes help where each brings a device of its own. Those on a CPU share its memory.
    """
    search, train = run.config.search, run.config.train
    if phase == "search":
        yield from _halved(run, "search", "num_rollouts_per_problem", 2)
        if search.mode == "best_first":
            yield from _halved(run, "search", "beam_width", 2)
        yield from _halved(run, "train", "problems_per_iteration", train.batch_size)
    if phase == "reference":
        yield from _halved(run, "train", "num_reference_samples", 1)
    if phase == "evaluation":
        yield from _halved(run, "eval", "max_rows", run.config.eval.num_samples)
    if phase == "gradients" and not train.gradient_checkpointing:
        yield Remedy("--train.gradient-checkpointing", "", run.changed("train", "gradient_checkpointing", True))
    if phase == "value training":
        yield from _halved(run, "value", "update_frequency", 1)
    if phase in ("gradients", "divergence", "reference", "value training"):
        least = run.model.prompt_length + search.max_search_depth
        yield from _halved(run, "train", "micro_batch_tokens", least)
    if run.config.model.lora_rank == 0:
        yield Remedy("--model.lora-rank", str(_RANK), run.changed("model", "lora_rank", _RANK))
    yield from _more_processes(run)


def _halved(run: PlannedRun, section: str, name: str, least: int) -> Iterator[Remedy]:
    """A number of the configuration halved again and again, as long as other fields allow it."""
    value = getattr(getattr(run.config, section), name) // 2
    while value >= least:
        changed = run.changed(section, name, value)
        try:
            check(changed.config)
        except ValueError:
            return
        yield Remedy(f"--{section}.{name.replace('_', '-')}", str(value), changed)
        value //= 2


def _more_processes(run: PlannedRun) -> Iterator[Remedy]:
    """Twice as many, again and again, as long as they share the searches of an iteration evenly."""
    count = run.num_processes * 2
    shared = run.config.train.problems_per_iteration // search_size(run.config)
    while run.device == "cuda" and count <= _MOST_PROCESSES and shared % count == 0:
        changed = replace(run, num_processes=count)
        yield Remedy("--distributed under torchrun --nproc_per_node", str(count), changed)
        count *= 2
