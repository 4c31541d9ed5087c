"""Arms on tasks with several seeds, by `tinyzero study FILE.toml`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tinyzero_astar.terminal import FAILED, FailedError, complain

if TYPE_CHECKING:
    from tinyzero_astar.study.outcomes import Outcome
    from tinyzero_astar.study.plan import Study

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

    study = read_study(options.file)
    root = options.output or Path("runs") / f"study-{options.file.stem}"
    if options.cores < 0:
        raise ValueError(f"--cores {options.cores} is negative; name how many runs go at a time")
    cores = options.cores or num_cores()
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        _run_and_report(study, root, cores, options)
    return 0


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
    done = _balanced(study, [outcome_of(trial, root) for trial in finished(trials, root)])
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


def _report(study: Study, outcomes: Sequence[Outcome], root: Path) -> None:
    """Print the tables, and write them, the curves and the results of every run."""
    from tinyzero_astar.cli.compare import write_page
    from tinyzero_astar.files import replace_text
    from tinyzero_astar.report.compare import compare_runs
    from tinyzero_astar.study.summary import summarise
    from tinyzero_astar.study.tables import as_json, markdown, terminal_lines

    summary = summarise(outcomes, study.baseline, study.lost_below, study.levels)
    lines = "".join(json.dumps(outcome.record()) + "\n" for outcome in outcomes)
    replace_text(root / "results.jsonl", lines)
    replace_text(root / "summary.json", json.dumps(as_json(summary), indent=1) + "\n")
    level = study.levels[min(2, len(study.levels) - 1)]
    for task, rows in summary.items():
        print(f"\n{study.name}, {task}: accuracy in % and 95 % intervals over {len(rows[0].seeds)} seeds\n")
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
