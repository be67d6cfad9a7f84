"""Statistics of transitions as one table of numbers, for a single trip from a device to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = {"tree_depth": torch.int64, "n_steps": torch.int64, "diverging": torch.bool}  # others are float64


def stacked(info: Any) -> Tensor:
    """The columns (c,) of a NamedTuple as a table (columns, c) float64."""
    return torch.stack([column.double() for column in info])


def unstacked(kind: Any, table: Tensor) -> Any:
    """The NamedTuple ``kind`` of a table's rows, in the types that they had."""
    rows = zip(kind._fields, table, strict=True)
    return kind(*(row.to(DTYPES.get(name, torch.float64)) for name, row in rows))
