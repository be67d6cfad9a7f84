"""Rows through a function in blocks of one size, so that a row's result doesn't depend on how many others there are.

Matrix products and sums may round differently for another batch, or at another place in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def in_blocks(call: Callable[..., tuple[Tensor, ...]], block: int, *args: Tensor) -> tuple[Tensor, ...]:
    """``call`` on ``args`` (c, ...), ``block`` rows at a time, each at the same place of its block whatever c is.

    ``call`` gives tensors of as many rows as it gets; each row depends on its own only, but for rounding.
    """
    count = len(args[0])
    if count == block:
        return call(*args)
    if count < block:
        return tuple(part[:count] for part in call(*(padded(rows, block) for rows in args)))
    parts = [call(*(padded(rows[start : start + block], block) for rows in args)) for start in range(0, count, block)]
    return tuple(torch.cat(part)[:count] for part in zip(*parts, strict=True))


def padded(rows: Tensor, block: int) -> Tensor:
    """``rows`` (at most ``block``, ...), then the first again, at which nothing fails that doesn't fail anyway."""
    return rows.index_select(0, _places(len(rows), block, rows.device)) if len(rows) < block else rows.contiguous()


@cache
def _places(count: int, block: int, device: torch.device) -> Tensor:
    """Rows that fill a block."""
    return torch.cat([torch.arange(count), torch.zeros(block - count, dtype=torch.long)]).to(device)
