"""`tinyzero version`, which prints what a report of a fault should say of this machine."""

from __future__ import annotations

from collections.abc import Sequence

import tyro


def version_main(argv: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    tyro.cli(_version, prog="tinyzero version", args=list(argv))
    return 0


def _version() -> None:
    """Print the versions of this package, Python, PyTorch and transformers, and the device that runs would use."""
    from tinyzero_astar.resources.machine import choose_device
    from tinyzero_astar.run.processes import device_name, versions

    for row in (versions() | {"device": device_name(choose_device("auto"))}).items():
        print("{:15s} {}".format(*row))
