"""`tinyzero version`: what a report of a fault should say of this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

import tyro


def version_main(argv: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    tyro.cli(_version, prog="tinyzero version", args=list(argv))
    return 0


def _version() -> None:
    """Print the versions of this package, Python, PyTorch and transformers, and the device that runs would use."""
    import torch

    from tinyzero_astar import __version__
    from tinyzero_astar.resources.machine import choose_device, num_cores

    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{num_cores()} cores"
    rows = {
        "tinyzero-astar": __version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": f"{device}, {name}",
    }
    for row in rows.items():
        print("{:15s} {}".format(*row))
