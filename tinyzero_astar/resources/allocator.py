"""Freed memory kept for the next tensor, where the C library is glibc.

A tensor of a whole vocabulary is larger than what glibc keeps. Each one would be fetched from the kernel and given
back, page by page, which takes as long as the arithmetic on it.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, from now on. Without glibc it changes nothing and returns False.

    The process then holds the most that it has ever used at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
