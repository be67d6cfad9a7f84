"""Pictures of predictions of classes: calibration and confusion on held-out rows, and a posterior predictive check."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bnn_pyro import labels, results
from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.drawing import BLUE, GREY, ORANGE, new_figure, titled
from bnn_pyro.scores import BINS, calibration_error, reliability

MANY = 20  # classes: more are not labelled, nor are their counts written into the confusion matrix


def calibration(prediction: ClassPrediction, y: Any, name: str) -> Figure:
    """Held-out rows: how often the most probable class is right, by its probability; and which classes are mixed up."""
    codes = labels.encode(y, prediction.classes, "calibration, y")
    confidence = prediction.probs.max(-1)
    right = (prediction.probs.argmax(-1) == codes).astype(np.float64)
    rows, means, shares = reliability(confidence, right)
    figure, (left, matrix) = new_figure(10.5, 5.0, 1, columns=2, widths=(1.0, 1.0))
    filled = rows > 0
    error = np.sqrt(np.maximum(shares * (1 - shares), 0) / np.maximum(rows, 1))
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle="--", label="calibrated")
    left.bar((np.arange(BINS) + 0.5) / BINS, rows / rows.sum(), width=0.9 / BINS, color=BLUE, alpha=0.18,
             label="share of the rows")  # fmt: skip
    left.errorbar(means[filled], shares[filled], yerr=error[filled], fmt="o-", color=BLUE, markersize=5, linewidth=1.4,
                  label="share that is right, ± one standard error")  # fmt: skip
    left.set_xlim(0, 1)
    left.set_ylim(0, 1.02)
    left.set_xlabel("probability of the most probable class")
    left.set_ylabel("share of rows in the bin that is right")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    left.set_title(f"accuracy {right.mean():.3f}, calibration error {calibration_error(confidence, right):.3f}",
                   fontsize=9.5, loc="left")  # fmt: skip
    _confusion(matrix, prediction, codes)
    below = "points above the line: too cautious; below: too confident"
    return titled(figure, f"Calibration: {name}, {len(codes)} held-out rows", below)


def _confusion(axes: Any, prediction: ClassPrediction, codes: np.ndarray) -> None:
    k = len(prediction.classes)
    counts = np.zeros((k, k), dtype=int)
    np.add.at(counts, (codes, prediction.probs.argmax(-1)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.grid(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("rows by true and predicted class", fontsize=9.5, loc="left")
    if k > MANY:
        return
    names = _shortened(prediction.classes)
    turned = max(map(len, names)) > 3
    axes.set_xticks(range(k), names, rotation=45 if turned else 0, ha="right" if turned else "center", fontsize=8.5)
    axes.set_yticks(range(k), names, fontsize=8.5)
    for i, j in zip(*np.nonzero(counts)):
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=color)


def _shortened(classes: np.ndarray) -> list[str]:
    return [str(c) if len(str(c)) <= 12 else str(c)[:11] + "…" for c in classes]


def class_counts(posterior: Any, name: str, unit: str) -> Figure | None:
    """Rows in each class: observed, and in replicates drawn from the posterior predictive."""
    if "posterior_predictive" not in results.group_names(posterior.idata):
        return None
    (drawn,) = results.dataset(posterior.idata, "posterior_predictive").data_vars.values()
    classes = posterior.data.classes
    flat = drawn.values.reshape(drawn.sizes["chain"] * drawn.sizes["draw"], -1).astype(int)
    counts = np.array([np.bincount(one, minlength=len(classes)) for one in flat])
    low, middle, high = np.quantile(counts, [0.05, 0.5, 0.95], axis=0)
    observed = np.bincount(posterior.data.y, minlength=len(classes))
    figure, (axes,) = new_figure(8.0, 4.4, 1)
    at = np.arange(len(classes))
    axes.bar(at, observed, color=GREY, alpha=0.35, width=0.7, label=f"observed ({len(posterior.data.y)} training rows)")
    axes.errorbar(at, middle, yerr=[middle - low, high - middle], fmt="o", color=BLUE, markersize=5, capsize=4,
                  label="replicates: median and 90 % interval")  # fmt: skip
    outside = (observed < low) | (observed > high)
    if outside.any():
        axes.plot(at[outside], observed[outside], "X", color=ORANGE, markersize=8, label="observed, outside of it")
    if len(classes) <= MANY:
        names = _shortened(classes)
        turned = sum(map(len, names)) > 60
        axes.set_xticks(at, names, rotation=35 if turned else 0, ha="right" if turned else "center", fontsize=9)
    axes.set_xlabel(unit)
    axes.set_ylabel("rows")
    low_axis, high_axis = axes.get_ylim()
    axes.set_ylim(low_axis, high_axis * 1.25)  # room for the legend
    axes.legend(fontsize=8.5, frameon=False, ncols=2)
    return titled(figure, f"Posterior predictive check: {name}", "does the model make as many of each class?")
