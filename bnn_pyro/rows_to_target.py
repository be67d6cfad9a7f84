"""From rows as a user passed them to ``fit`` to a target: checked, encoded, in standard units, as tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.data import Data, Inputs, collect, holds_both, inputs_to_tensors, refuse_not_finite, to_tensor
from bnn_pyro.errors import DataError
from bnn_pyro.labels import encode
from bnn_pyro.model import Model
from bnn_pyro.structure import build_empty_target, build_target
from bnn_pyro.target import Target
from bnn_pyro.units import Units


def training_rows(bnn: Model, x: Any, y: Any, missing: str | None = None) -> Data:
    """What a user passed to ``fit`` as rows, checked: x and y, or one object that holds both."""
    told = getattr(x, "missing", None)  # a part of a table says; a data frame may have a column of that name
    missing = missing or (told if isinstance(told, str) else "refuse")
    labels = bnn.task == "classification"
    how: dict[str, Any] = {"where": bnn.name, "missing": missing, "classes": labels, "empty": True}
    how |= {"count": bnn.class_count} if labels else {}
    if y is None and holds_both(x):
        data = collect(x.x, x.y, **how)
        named = getattr(x, "columns", None)
        columns = data.columns or (None if named is None else tuple(map(str, named)))
        return replace(data, columns=columns, target=data.target or getattr(x, "target", None))
    if y is None:
        raise DataError(f"{bnn.name}, y: expected targets, got none. Call fit(x, y), or fit(data.train).")
    return collect(x, y, **how)


def make_target(bnn: Model, data: Data, units: Any, dtype: torch.dtype, device: Any, params: Any = None) -> Target:
    """The target of a model on rows in original units."""
    assert data.y is not None, "checked by training_rows"
    x, y = _to_tensors(bnn, units, dtype, device, data.x, data.y)
    if units.y is None:
        _refuse_rounding(data.y, y, dtype, f"{bnn.name}, y")
    else:
        _refuse_extreme(units.y, dtype, f"{bnn.name}, y")
    for label, tensor in (
        [*((f"x[{k!r}]", v) for k, v in x.items()), ("y", y)] if isinstance(x, dict) else [("x", x), ("y", y)]
    ):
        if tensor.is_floating_point():  # a number may be finite in float64 and not in float32
            remedy = "Pass dtype='float64', or rescale." if dtype != torch.float64 else "Rescale those columns."
            refuse_not_finite(
                tensor.cpu().numpy(), label, bnn.name, data.columns, f"numbers that {dtype} can hold", remedy
            )
    bnn.move(device)
    build = build_target if data.n else build_empty_target
    return build(bnn.model, x, y, name=bnn.name, dims=bnn.dims(), dtype=dtype, params=params)


def _to_tensors(
    bnn: Model, units: Units, dtype: torch.dtype, device: Any, x: Any, y: np.ndarray
) -> tuple[Inputs, Tensor]:
    """Rows in original units, their labels as codes, as the model takes them."""
    floating = bnn.card is not None  # zoo models take floats; a user's program gets integers as it passed them
    inputs = inputs_to_tensors(units.inputs(x), dtype, device, floating)
    return inputs, to_tensor(units.targets(y), dtype, device, floating=floating and bnn.task != "classification")


def encode_rows(
    bnn: Model, units: Units, classes: Any, dtype: torch.dtype, device: Any, x: Any, y: np.ndarray
) -> tuple[Inputs, Tensor]:
    """``_to_tensors`` of rows as a user gave them."""
    return _to_tensors(bnn, units, dtype, device, x, y if classes is None else encode(y, classes, f"{bnn.name}, y"))


def _refuse_rounding(y: np.ndarray, tensor: Tensor, dtype: torch.dtype, where: str) -> None:
    """Raises: DataError for whole numbers, in their own units, that the dtype cannot hold; an observed site casts to it."""
    if y.dtype.kind not in "iu":
        return
    whole = torch.as_tensor(y.astype(np.int64))  # int64 compares exactly where float64 would round, too
    changed = np.flatnonzero(
        (tensor.cpu().to(dtype).to(torch.int64) != whole).reshape(len(y), -1 if len(y) else 1).any(1)
    )
    if len(changed):
        raise DataError(
            f"{where}: expected whole numbers that {dtype} can hold, got {y[changed[0]]} at row {changed[0]}. "
            "Pass dtype='float64', or standardise."
        )


def _refuse_extreme(moments: tuple[np.ndarray, np.ndarray], dtype: torch.dtype, where: str) -> None:
    """Raises: DataError where predictions, or their variances, would overflow or vanish in the units of y."""
    limit = 1e30 if dtype == torch.float32 else 1e150
    mean, sd = (np.abs(moment) for moment in moments)
    if float(np.max(mean)) > limit or float(np.max(sd)) > limit or float(np.min(sd)) < 1 / limit:
        remedy = "Pass dtype='float64', or rescale." if dtype == torch.float32 else "Rescale."
        raise DataError(
            f"{where}: expected a spread between {1 / limit:g} and {limit:g}, for predictions in {dtype}, got a mean of "
            f"size {np.max(mean):.3g} and standard deviations from {np.min(sd):.3g} to {np.max(sd):.3g}. {remedy}"
        )


def has_units(bnn: Model, data: Data) -> bool:
    """Whether y is a real number: said by a zoo model's task, and for a user's program by its values being floats."""
    return bnn.real_targets and (bnn.card is not None or (data.y is not None and data.y.dtype.kind == "f"))
