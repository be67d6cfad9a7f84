"""What all pictures share: colours, axes, titles, smoothed densities, and writing a file whole or not at all.

Drawn with matplotlib's objects on an Agg canvas: no pyplot, no global state.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

BLUE, ORANGE, GREY, RED = "#1f5fa8", "#d9822b", "#8a8a8a", "#b3261e"
DPI = 120


def new_figure(
    width: float, height: float, rows: int, columns: int = 1, widths: Any = None
) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"width_ratios": widths} if widths else None)
    axes = list(grid.ravel())
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e6e6e6", linewidth=0.6)
        one.set_axisbelow(True)
        one.tick_params(labelsize=9)
    return figure, axes


def titled(figure: Figure, title: str, below: str) -> Figure:
    figure.suptitle(f"{title}\n{below}", fontsize=11)
    return figure


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A Gaussian kernel density, or zero everywhere for values that are all (nearly) the same or not finite."""
    values = values[np.isfinite(values)]
    if len(values) < 2 or np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(grid)
    return gaussian_kde(values)(grid)


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    total = np.cumsum(np.concatenate([[0.0], values]))
    return (total[window:] - total[:-window]) / window


def write(figure: Figure, path: Path) -> Path:
    """The picture under a temporary name, then renamed, so that it is there whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".png", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
        os.replace(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)
    return path
