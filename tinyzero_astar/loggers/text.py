"""Numbers and text of a run in few characters, for the line of an iteration and for the view of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"


def broken(text: str, width: int, indent: str = "") -> str:
    """Each line broken at its spaces, further ones with an indent. Longer words stay whole."""
    return "\n".join(
        textwrap.fill(line, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def on_one_line(text: str, most: int) -> str:
    """At most so many characters, with a sign for each line break, and how many more there are."""
    shown = text[:most]
    rest = len(text) - len(shown)
    return " ⏎ ".join(shown.split("\n")) + (f" … ({rest} more characters)" if rest else "")


def percent(value: float | None) -> str:
    """A share in five characters, two digits of it, or a dash where nothing could be measured."""
    if value is None:
        return "  –  "
    return f"{100 * value:3.1f} %" if 100 * value < 9.95 else f"{100 * value:3.0f} %"


def short_count(count: int) -> str:
    """At most three digits, in thousands, millions or billions, such as 950, 61 k, 1.2 M."""
    number, unit = float(count), ""
    for larger in (" k", " M", " G"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"


def short_seconds(seconds: float) -> str:
    """A digit after the point below 100 seconds."""
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def sparkline(shares: Sequence[float | None], width: int) -> str:
    """Shares between 0 and 1 as a row of bars, oldest first, in at most `width` characters.

    The eight heights stand for equal parts of [0, 1], and what lies outside has the nearest one. Where there are more
    shares than room, each bar is the mean of neighbours. What could not be measured is left out of the means, and a bar
    without any share is a space.
    """
    count = min(len(shares), width)
    bars = []
    for i in range(count):
        part = [x for x in shares[i * len(shares) // count : (i + 1) * len(shares) // count] if x is not None]
        level = int(len(_LEVELS) * sum(part) / len(part)) if part else 0
        bars.append(_LEVELS[min(max(level, 0), len(_LEVELS) - 1)] if part else " ")
    return "".join(bars)
