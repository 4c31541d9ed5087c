"""True peaks of live tensor bytes, as real code runs. The predictions of `resources.memory` are tested against them.

Every storage that an operator returns is counted once, from the operator until the storage is freed. Temporary memory
inside one operator is not seen, nor what an allocator adds by rounding.
"""

from __future__ import annotations

import weakref

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Live bytes now, and their peak since the last `restart`. `watch` adds what existed before."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._bytes = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self):
        resize = self._resize

        def watched(storage, size):  # FSDP frees and refills its buffers so
            done = resize(storage, size)
            if id(storage) in self._bytes:
                self._set(id(storage), size)
            return done

        torch.UntypedStorage.resize_ = watched
        return super().__enter__()

    def __exit__(self, *args):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*args)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.watch(out)
        return out

    def watch(self, tensors):
        for x in tree_iter(tensors):
            if isinstance(x, torch.Tensor) and x.device.type != "meta":  # those have no bytes
                self._note((x.to_local() if isinstance(x, DTensor) else x).untyped_storage())

    def restart(self):
        self.peak = self.now

    def _note(self, storage):
        key = id(storage)
        if key not in self._bytes:
            self._bytes[key] = 0
            weakref.finalize(storage, self._forget, key)
        if storage.nbytes() != self._bytes[key]:
            self._set(key, storage.nbytes())

    def _set(self, key, size):
        self.now += size - self._bytes[key]
        self._bytes[key] = size
        self.peak = max(self.peak, self.now)

    def _forget(self, key):
        self.now -= self._bytes.pop(key)
