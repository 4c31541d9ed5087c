"""Print how the installed packages differ from constraints.txt: `python .ci/versions.py`."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
OWN = {"pip", "tinyzero-astar"}  # neither a dependency nor pinned


def normal(name: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Name to version of the lines `name==version`."""
    lines = (line.split("==") for line in text.splitlines() if "==" in line)
    return {normal(name): version.strip() for name, version in lines}


def differences(tested: dict[str, str], installed: dict[str, str]) -> list[str]:
    """One line for each installed package that is not at its tested version, then the number of those that are."""
    other = [name for name in sorted(installed) if tested.get(name) != installed[name]]
    lines = [f"  {name} {installed[name]} (constraints.txt: {tested.get(name, 'not listed')})" for name in other]
    return [*lines, f"  {len(installed) - len(other)} packages at the versions of constraints.txt"]


if __name__ == "__main__":
    found = {normal(d.metadata["Name"]): d.version.partition("+")[0] for d in distributions()}
    print("Installed versions:")
    print(*differences(pins(CONSTRAINTS.read_text()), {k: v for k, v in found.items() if k not in OWN}), sep="\n")
