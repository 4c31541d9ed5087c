"""`tinyzero COMMAND …`, with the commands by name.

A command's module is imported when it is called, so that the list and a mistake answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from tinyzero_astar.terminal import complain, end_process, run_command

Command = Callable[[Sequence[str]], int]


def _train() -> Command:
    from tinyzero_astar.cli.train import train_main

    return train_main


def _eval() -> Command:
    from tinyzero_astar.cli.train import eval_main

    return eval_main


def _solve() -> Command:
    from tinyzero_astar.cli.solve import solve_main

    return solve_main


def _doctor() -> Command:
    from tinyzero_astar.cli.doctor import doctor_main

    return doctor_main


def _report() -> Command:
    from tinyzero_astar.cli.report import report_main

    return report_main


def _compare() -> Command:
    from tinyzero_astar.cli.compare import compare_main

    return compare_main


def _study() -> Command:
    from tinyzero_astar.cli.study import study_main

    return study_main


def _version() -> Command:
    from tinyzero_astar.cli.version import version_main

    return version_main


COMMANDS: dict[str, tuple[Callable[[], Command], str]] = {
    "train": (_train, "teach a model, or continue a run"),
    "eval": (_eval, "evaluate a checkpoint, or the base model"),
    "solve": (_solve, "one question, its answer and its search tree"),
    "doctor": (_doctor, "will a run fit this machine, and how long will it take"),
    "report": (_report, "a page with curves, search trees and completions of runs"),
    "compare": (_compare, "runs side by side, at equal tokens and at equal seconds"),
    "study": (_study, "many runs with several seeds, and what they show at equal cost"),
    "version": (_version, "versions of everything, and the device"),
}


def main(argv: Sequence[str]) -> int:
    """Run the command that the first word names, and return the exit status."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print("usage: tinyzero COMMAND [OPTIONS]\nor: python -m tinyzero_astar COMMAND [OPTIONS]\n")
        print("`tinyzero COMMAND --help` lists the options of a command.\n")
        print("\n".join(f"  {known:8s} {what}" for known, (_, what) in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        nearest = f" The nearest is {close[0]}." if close else ""
        return complain(f"{name!r} is not a command.{nearest} The commands are {', '.join(COMMANDS)}")
    load, _ = COMMANDS[name]
    return load()(rest)


def console_script() -> None:
    """What the installed `tinyzero` runs."""
    end_process(run_command(lambda: main(sys.argv[1:])))
