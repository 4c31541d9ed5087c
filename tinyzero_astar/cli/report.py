"""`tinyzero report RUN [RUN …]`, which writes the page of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tinyzero_astar.terminal import complain, printable


@dataclass(frozen=True)
class Report:
    """One HTML file with curves, search trees, completions and settings of runs. It needs no network."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs. Several are drawn over each other."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write. The default is report.html, in the run's folder if there is one run."""


def report_main(argv: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    options = tyro.cli(Report, prog="tinyzero report", args=list(argv))
    from tinyzero_astar.report.page import PAGE, write_run_page

    if not options.runs:
        return complain("no run was named; give the folders of one or several, as in: tinyzero report runs/tiny-001")
    output = options.output or (options.runs[0] / PAGE if len(options.runs) == 1 else Path(PAGE))
    try:
        write_run_page(output, options.runs)
    except ValueError as error:
        return complain(error)
    except OSError as error:
        return complain(f"{output} cannot be written ({error.strerror}); name another file with --output")
    print(printable(str(output)))
    return 0
