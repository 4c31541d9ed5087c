"""Arms on tasks with several seeds, by `tinyzero study FILE.toml`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tinyzero_astar.terminal import FAILED, FailedError, complain, counted, status_of

if TYPE_CHECKING:
    from tinyzero_astar.study.outcomes import Outcome
    from tinyzero_astar.study.trials import Study, Trial

_MOST_PAGE_RUNS = 60  # of a page, which grows with them


@dataclass(frozen=True)
class Options:
    """Train every arm of a study on every task with every seed, and compare them at equal cost.

    Runs that are done are not repeated, so a study can be stopped and started again.
    """

    file: tyro.conf.Positional[Path]
    """TOML file with arms, tasks and seeds (docs/study.md)."""
    output: Path | None = None
    """Folder of the study. By default runs/study-NAME, after the file."""
    cores: int = 0
    """Runs at a time, each on one thread. 0 takes one per core."""
    report_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start no run. Compare the seeds that every arm of a task has done."""


def study_main(argv: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    options = tyro.cli(Options, prog="tinyzero study", args=list(argv))
    try:
        return _study(options)
    except ValueError as error:
        return complain(error)
    except OSError as error:
        return complain(f"{error.filename or 'a file of the study'} cannot be written ({error.strerror})", FAILED)
    except FailedError as error:
        return complain(f"{error}; start the study again to go on", FAILED)


def _study(options: Options) -> int:
    from tinyzero_astar.resources.machine import num_cores
    from tinyzero_astar.run.lock import locked
    from tinyzero_astar.study.plan import read_study
    from tinyzero_astar.study.running import StoppedError

    study = read_study(options.file)
    _check_algorithms(study, options.file)
    root = options.output or Path("runs") / f"study-{options.file.stem}"
    if options.cores < 0:
        raise ValueError(f"--cores {options.cores} is negative; name how many runs go at a time")
    cores = options.cores or num_cores()
    if root.is_file():
        raise ValueError(f"--output {root} is a file; name a folder, which may be new")
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        try:
            _run_and_report(study, root, cores, options)
        except StoppedError as stopped:
            print("stopped. The runs have saved what they had, and the same command goes on with them")
            return status_of(stopped.number)
    return 0


def _check_algorithms(study: Study, file: Path) -> None:
    """Refuse before any run what `tinyzero train` would refuse of an arm.

    Raises:
        ValueError: an algorithm does not go with the search of its arm.
    """
    from tinyzero_astar.training.algorithms import make_algorithm  # imports PyTorch, which takes seconds

    unswept = {(task, arm): None for task in study.tasks for arm in study.arms}
    for trial in study.swept() or study.reported(unswept):
        try:
            make_algorithm(trial.config)
        except ValueError as error:
            raise ValueError(f"{file}, {trial.task}, {trial.arm}: {error}") from None


def _run_and_report(study: Study, root: Path, cores: int, options: Options) -> None:
    from tinyzero_astar.study.outcomes import outcome_of
    from tinyzero_astar.study.running import finished, run_trials
    from tinyzero_astar.study.summary import choose

    swept, chosen = study.swept(), {}
    if swept:
        if not options.report_only:
            run_trials(swept, root, cores, print)
        known = finished(swept, root)
        if len(known) < len(swept):
            raise ValueError(f"{root}: the sweep of {options.file} is not done; start the study without --report-only")
        chosen = choose([outcome_of(trial, root) for trial in known], study.baseline)
    trials = study.reported({(task, arm): chosen.get((task, arm)) for task in study.tasks for arm in study.arms})
    if not options.report_only:
        run_trials(trials, root, cores, print)
    known = finished(trials, root)
    for line in _left_out(study, known):
        print(line)
    done = _balanced(study, [outcome_of(trial, root) for trial in known])
    if not done:
        raise ValueError(f"{root}: no seed is done with every arm of a task; start the study without --report-only")
    _report(study, done, root)


def _balanced(study: Study, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of those seeds that every arm of their task has."""
    count: dict[tuple[str, int], int] = {}
    for outcome in outcomes:
        key = outcome.trial.task, outcome.trial.seed
        count[key] = count.get(key, 0) + 1
    return [o for o in outcomes if count[o.trial.task, o.trial.seed] == len(study.arms)]


def _left_out(study: Study, known: Sequence[Trial]) -> Iterator[str]:
    """A line for each task some of whose seeds are not compared, given the runs that are done."""
    done = {(trial.task, trial.arm, trial.seed) for trial in known}
    for task in study.tasks:
        lacking = {arm: [seed for seed in study.seeds if (task, arm, seed) not in done] for arm in study.arms}
        arms = "; ".join(f"{arm} lacks {', '.join(map(str, seeds))}" for arm, seeds in lacking.items() if seeds)
        count = len(set().union(*lacking.values()))
        if count:
            yield f"{task}: {counted(count, 'seed')} left out, which not every arm has done ({arms})"


def _report(study: Study, outcomes: Sequence[Outcome], root: Path) -> None:
    """Print the tables, and write them, the curves and the results of every run."""
    from tinyzero_astar.cli.compare import write_page
    from tinyzero_astar.files import replace_text
    from tinyzero_astar.report.compare import compare_runs
    from tinyzero_astar.study.summary import summarise
    from tinyzero_astar.study.tables import as_json, markdown, spread_of, terminal_lines

    summary = summarise(outcomes, study.baseline, study.lost_below, study.levels)
    lines = "".join(json.dumps(outcome.record()) + "\n" for outcome in outcomes)
    replace_text(root / "results.jsonl", lines)
    replace_text(root / "summary.json", json.dumps(as_json(summary), indent=1) + "\n")
    level = study.levels[min(2, len(study.levels) - 1)]
    for task, rows in summary.items():
        print(f"\n{study.name}, {task}: accuracy in % {spread_of(len(rows[0].seeds))}\n")
        print("\n".join(terminal_lines(rows, study.baseline, level)))
        replace_text(root / f"{task}.md", markdown(rows, study.baseline, study.levels))
        own = [outcome for outcome in outcomes if outcome.trial.task == task]
        if find_spec("matplotlib") is None:
            print("\nno picture of the curves: pip install matplotlib")
        else:
            from tinyzero_astar.study.curves import draw_curves

            draw_curves(own, study.baseline, root / f"{task}.png")
        if len(own) <= _MOST_PAGE_RUNS:
            write_page(root / f"{task}.html", compare_runs([root / o.trial.folder for o in own], "tokens"))
    print(f"\nall tables, curves and results: {root}")
