"""Tensors that wait: small ones in memory, large ones in files, since each may be as large as all that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

IN_MEMORY = 1_000_000  # numbers


class Aside:
    """The values of a tensor, which may change afterwards; a file is gone when this is."""

    def __init__(self, tensor: Tensor):
        self._like = tensor.new_empty(0)
        self._shape = tensor.shape
        self._held: Tensor | None = None
        self.put(tensor)

    def put(self, tensor: Tensor) -> None:
        """Takes other values of the same shape."""
        if tensor.numel() < IN_MEMORY:
            self._held = tensor.detach().clone()
            return
        self._file = TemporaryFile()  # noqa: SIM115  # gone with this object
        tensor.detach().cpu().numpy().tofile(self._file)

    def take(self) -> Tensor:
        """The values, in the tensor's shape."""
        return self.part(0, self._shape.numel()).reshape(self._shape)

    def part(self, start: int, stop: int) -> Tensor:
        """The values from ``start`` to ``stop`` of the tensor, laid out flat."""
        if self._held is not None:
            return self._held.reshape(-1)[start:stop]
        kind = self._like.cpu().numpy().dtype
        self._file.seek(start * kind.itemsize)
        count = min(stop, self._shape.numel()) - start
        return torch.from_numpy(np.fromfile(self._file, kind, count)).to(self._like.device)


@contextmanager
def saved_aside() -> Iterator[None]:
    """Inside it, what autograd keeps for the backward pass waits so."""

    def pack(tensor: Tensor) -> Any:
        return tensor if tensor.numel() < IN_MEMORY else Aside(tensor)

    def unpack(kept: Any) -> Tensor:
        return kept.take() if isinstance(kept, Aside) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
