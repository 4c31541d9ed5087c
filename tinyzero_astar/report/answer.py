"""What an answer to a question about a run is made of."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """To one question."""

    question: str
    short: str
    reasons: list[str]  # paragraphs
    details: list[str]  # further ones, for those who want to know how this is known


def percent(share: float) -> str:
    """With a digit after the point below 10 %."""
    return f"{100 * share:.1f} %" if abs(100 * share) < 9.95 else f"{100 * share:.0f} %"
