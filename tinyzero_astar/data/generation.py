"""Multiplication problems: who is held out, how a question is asked, and its verifier.

The split is a property of the *unordered* operand pair, decided by a hash that knows neither seed nor preset:
23*45 and 45*23 are always on the same side, and a model trained on one side has never seen the other.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from tinyzero_astar.interfaces import Problem, Verdict

HELD_OUT_PERCENT = 20

TEMPLATES = {
    "conversation": (
        "The user asks a question about arithmetic and the assistant works it out. The assistant first writes"
        " down its reasoning, step by step, between <think> and </think>, and then states nothing but the"
        " final integer between <answer> and </answer>, as in <answer>42</answer>.\n"
        "User: What is {a} * {b}?\n"
        "Assistant: <think>"
    ),
    "compact": "{a}*{b}=?\n<think>",
}


def is_held_out(a: int, b: int) -> bool:
    """Whether the unordered pair {a, b} belongs to the held-out set (20 % of all pairs do)."""
    low, high = sorted((a, b))
    digest = hashlib.blake2b(f"multiply {low} {high}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT
