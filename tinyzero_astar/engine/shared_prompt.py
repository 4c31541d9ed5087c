"""What all prompts of a search begin with, such as worked examples. It is read once."""

from __future__ import annotations

from collections.abc import Sequence

MIN_SAVED = 512  # positions, since reading what is shared apart takes one forward more


def shared_length(prompts: Sequence[Sequence[object]]) -> int:
    """How many tokens all prompts begin with. Each has one more at least."""
    first = prompts[0]
    most = min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts[1:]:
        most = next((i for i in range(most) if prompt[i] != first[i]), most)
    return most


def length_read_apart(shared: int, num_prompts: int) -> int:
    """How many of the shared tokens are read in a forward of their own, all or none."""
    return shared if shared * (num_prompts - 1) >= MIN_SAVED else 0
