"""A function of one draw, mapped over many in blocks that fit a memory budget.

``vmap`` evaluates a block at once; a function that it refuses (control flow on values, an operation without a batching
rule) is called draw by draw. The block size follows from the function and the draws, so the same call gives the same bits.
Another block size gives the same bits for the matrix products of networks (a lone last draw is padded to two, since CPU
kernels treat one draw differently), and the same to the last bit or two for smaller products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

MEMORY_BUDGET = 32 * 2**20  # bytes of intermediate tensors in a block; larger ones are mapped anew for each operation
ALONE = 4 * MEMORY_BUDGET  # bytes of a draw, from which on another one beside it gains nothing


class _CountBytes(TorchDispatchMode):
    """Adds up the sizes of all tensors made: an upper bound of a function's memory, the same on every run."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, out)
        return out

    def _add(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def block_size(function: Callable[[Tensor], Any], z: Tensor, budget: int = MEMORY_BUDGET) -> int:
    """How many draws to evaluate at once: no more than the budget allows, but two unless a draw takes ``ALONE``."""
    each = bytes_made(lambda: function(z[0]))
    return 1 if each >= ALONE else max(2, min(z.shape[0], budget // each))


def bytes_made(function: Callable[[], Any]) -> int:
    """Sizes of all tensors that a call makes, added up; at least 1."""
    with torch.no_grad(), _CountBytes() as count:
        function()
    return max(count.bytes, 1)


@torch.no_grad()
def map_draws(function: Callable[[Tensor], Any], z: Tensor, block: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yields (index of the block's first draw, results with a leading draw axis) for draws z (draws, dim), in order."""
    block = block or block_size(function, z)
    batched: Callable[[Tensor], Any] = _one_by_one(function) if block == 1 else vmap(function)
    for start in range(0, z.shape[0], block):
        part = z[start : start + block]
        lone = part.shape[0] == 1 != block
        try:
            out = batched(part.repeat(2, 1) if lone else part)
        except Exception:  # a user's program under vmap may raise anything; draw by draw it either works or says why
            batched = _one_by_one(function)
            out = batched(part)
            lone = False
        yield start, tree_map(lambda t: t[:1], out) if lone else out


def _one_by_one(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def call(part: Tensor) -> Any:
        results = [function(z) for z in part]
        return tree_map(lambda *leaves: torch.stack(leaves), results[0], *results[1:])

    return call


def gather_draws(function: Callable[[Tensor], Any], z: Tensor, block: int | None = None) -> Any:
    """All results of ``map_draws``, joined along the draw axis."""
    parts = [out for _, out in map_draws(function, z, block)]
    return parts[0] if len(parts) == 1 else tree_map(lambda *leaves: torch.cat(leaves), parts[0], *parts[1:])
