"""Whether kernels can be compiled. Without Triton, the torch functions beside them do their work."""

from __future__ import annotations

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
