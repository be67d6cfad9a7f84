"""Pictures of a run, as PNG files in its directory: predictions, predictive check, traces or the ELBO.

Drawn with matplotlib's objects on an Agg canvas: no pyplot, no global state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bnn_pyro import results
from bnn_pyro.class_pictures import calibration, class_counts
from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.drawing import BLUE, GREY, RED, density, moving_mean, new_figure, titled, write

CHAINS = ("#1f5fa8", "#d9822b", "#2f8f5b", "#8e4fa8", "#b3261e", "#5c4a3d", "#c04f8b", "#6f6f6f")
REPLICATES = 50  # of y, in the predictive check


def draw(directory: Path, posterior: Any, data: Any, prediction: Any) -> list[Path]:
    """Draws the pictures that a run can have into its directory and returns their paths.

    Args:
        data: The data set, with ``test`` rows and a card.
        prediction: At the test rows, or None where they have no mean to be drawn.
    Raises: OSError if a file cannot be written; no half of a picture is left.
    """
    name = f"{posterior.model.name} on {data.card.name} by {posterior.method.name}"
    unit = data.card.target
    figures: dict[str, Figure | None] = {}
    if isinstance(prediction, ClassPrediction):
        figures["calibration.png"] = calibration(prediction, data.test.y, name)
    elif prediction is not None:
        figures["predictions.png"] = predictions(prediction, np.asarray(data.test.y, dtype=np.float64), name, unit)
    if posterior.data.classes is not None:
        figures["ppc.png"] = class_counts(posterior, name, unit)
    else:
        figures["ppc.png"] = predictive_check(posterior.idata, name, unit)
    if posterior.draws.history:
        figures["elbo.png"] = elbo(
            posterior.draws.history, name, posterior.method.name in ("map", "ensemble"), posterior.units.y is not None
        )
    else:
        figures["trace.png"] = trace(posterior, name, unit)
    return [write(figure, directory / file) for file, figure in figures.items() if figure is not None]


def predictions(prediction: Any, y: np.ndarray, name: str, unit: str) -> Figure:
    """Held-out rows in the order of their predicted mean: what is known of y, and of the function."""
    order = np.argsort(prediction.mean)
    mean, sd, y = prediction.mean[order], np.sqrt(prediction.epistemic[order]), y[order]
    lower, upper = (bound[order] for bound in prediction.interval(0.9))
    rank = np.arange(1, len(y) + 1)
    inside = (y >= lower) & (y <= upper)
    figure, (axes,) = new_figure(9.0, 5.2, 1)
    _band(axes, lower, upper, 0.16, "90 % interval of y: epistemic and aleatoric (weights and noise)")
    _band(axes, mean - 2 * sd, mean + 2 * sd, 0.42, "mean ± 2 epistemic sd (not knowing the weights)")
    axes.plot(rank, mean, color=BLUE, linewidth=1.8, label="predicted mean")
    axes.plot(rank[inside], y[inside], "o", color="black", markersize=3.5, label=f"observed ({inside.sum()} inside)")
    axes.plot(rank[~inside], y[~inside], "X", color=RED, markersize=6.5, label=f"observed, outside ({(~inside).sum()})")
    axes.set_xlabel("held-out row, in the order of the predicted mean")
    axes.set_ylabel(f"{unit}, original units")
    if 1e-3 < np.abs(y).max() < 1e8:
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.set_xlim(0, len(y) + 1)
    axes.legend(loc="upper left", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))  # room for the legend
    share = f"{inside.sum()} of {len(y)} held-out rows lie in their 90 % interval"
    return titled(figure, f"Predictions: {name}", share)


def _band(axes: Any, lower: np.ndarray, upper: np.ndarray, alpha: float, label: str) -> None:
    """One bar a row, from half a row before it to half a row after."""
    edges = np.arange(len(lower) + 1) + 0.5
    bounds = (np.append(bound, bound[-1]) for bound in (lower, upper))
    axes.fill_between(edges, *bounds, step="post", color=BLUE, alpha=alpha, linewidth=0, label=label)


def predictive_check(idata: Any, name: str, unit: str) -> Figure | None:
    """Density of the observed y and of replicates drawn from the posterior predictive; None without such draws."""
    if "posterior_predictive" not in results.group_names(idata):
        return None
    (observed,) = results.dataset(idata, "observed_data").data_vars.values()
    (drawn,) = results.dataset(idata, "posterior_predictive").data_vars.values()
    y = np.asarray(observed.values, dtype=np.float64).ravel()
    flat = drawn.values.reshape(drawn.sizes["chain"] * drawn.sizes["draw"], -1)
    chosen = flat[np.unique(np.linspace(0, len(flat) - 1, REPLICATES).astype(int))].astype(np.float64)
    low, high = np.quantile(chosen, [0.002, 0.998])
    low, high = min(low, y.min()), max(high, y.max())
    grid = np.linspace(low - 0.08 * (high - low), high + 0.08 * (high - low), 400)
    figure, (axes,) = new_figure(8.0, 4.6, 1)
    curves = np.array([density(one, grid) for one in chosen])
    for i, curve in enumerate(curves):
        label = f"{len(chosen)} replicates of y, one a draw" if i == 0 else None
        axes.plot(grid, curve, color=BLUE, alpha=0.22, linewidth=0.8, label=label)
    axes.plot(grid, curves.mean(0), color=BLUE, linewidth=2.0, linestyle="--", label="mean of the replicates")
    axes.plot(grid, density(y, grid), color="black", linewidth=2.2, label=f"observed y ({len(y)} training rows)")
    axes.set_xlabel(f"{unit}, original units")
    axes.set_ylabel("density (smoothed)")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False)
    return titled(
        figure, f"Posterior predictive check: {name}", "does the model make data like those it was fitted to?"
    )


def trace(posterior: Any, name: str, unit: str) -> Figure:
    """Quantities of function space by chain: over draws, and their densities."""
    space = results.dataset(posterior.idata, "function_space")
    panels = _panels(posterior, space, unit)
    diverging = posterior.draws.stats.get("diverging")
    figure, axes = new_figure(10.0, 1.9 * len(panels) + 1.1, len(panels), columns=2, widths=(2.4, 1.0))
    for i, (label, axis_label, values) in enumerate(panels):
        left, right = axes[2 * i], axes[2 * i + 1]
        span = [np.nanmin(values), np.nanmax(values)]
        pad = 0.15 * (span[1] - span[0]) or 1.0
        low, high = (0.0, 1.0) if axis_label.startswith("P(") else (-np.inf, np.inf)  # a probability ends there
        grid = np.linspace(max(span[0] - pad, low), min(span[1] + pad, high), 300)
        for chain, one in enumerate(values):
            color = CHAINS[chain % len(CHAINS)]
            left.plot(
                np.arange(1, len(one) + 1), one, color=color, linewidth=0.6, alpha=0.75, label=f"chain {chain + 1}"
            )
            right.plot(density(one, grid), grid, color=color, linewidth=1.5)
        if diverging is not None and diverging.any():
            where = np.flatnonzero(diverging.any(axis=0)) + 1
            left.plot(
                where, np.full(len(where), grid[0] + pad / 3), "|", color="black", markersize=9, label="divergence"
            )
        left.set_title(label, fontsize=9.5, loc="left", pad=3)
        left.set_ylabel(axis_label, fontsize=9)
        left.set_xlim(0, values.shape[1] + 1)
        for one in (left, right):
            one.set_ylim(grid[0], grid[-1])
        right.set_yticklabels([])
        right.set_xticks([])
        right.set_xlim(left=0)
    axes[-2].set_xlabel("draw after warmup")
    axes[-1].set_xlabel("density (smoothed)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=9, frameon=False)
    return titled(figure, f"Traces in function space: {name}", "chains that agree lie on top of each other")


def _panels(posterior: Any, space: Any, unit: str) -> list[tuple[str, str, np.ndarray]]:
    """Title, axis label and values (chain, draw) of what is worth watching."""
    table = posterior.summary()

    def r_hat(row: str) -> str:
        value = table["r_hat"].get(row, np.nan)
        return "" if np.isnan(value) else f", R-hat {value:.3f}"

    panels = [(f"log likelihood of the training rows{r_hat('log_likelihood')}", "nats", space["log_likelihood"].values)]
    if "noise_scale" in space and np.ptp(space["noise_scale"].values) > 0:
        panels.append((f"noise scale{r_hat('noise_scale')}", f"{unit},\noriginal units", space["noise_scale"].values))
    else:
        panels.append((f"log prior{r_hat('log_prior')}", "nats", space["log_prior"].values))
    classes = posterior.data.classes
    axis = f"{unit},\noriginal units" if classes is None else f"P({classes[1]})"
    what = "network's mean" if classes is None else f"probability of {classes[1]}"
    if "f" in space and space["f"].ndim == 3:
        rows = [f"f[{label}]" for label in space["probe"].values]
        by_r_hat = np.argsort(np.nan_to_num(table["r_hat"].loc[rows].to_numpy(), nan=-1.0), kind="stable")
        for i, place in ((by_r_hat[-1], "the largest"), (by_r_hat[len(rows) // 2], "the median")):
            shown = r_hat(rows[i])
            said = f"{shown}: {place} of {len(rows)} rows watched" if shown else ""
            label = f"{what} at training row {space['probe'].values[i]}{said}"
            panels.append((label, axis, space["f"].values[:, :, i]))
    return panels


def elbo(history: dict[str, np.ndarray], name: str, point: bool = False, standard: bool = True) -> Figure:
    """The objective and its two terms over steps, smoothed, with each step's estimate behind."""
    labels = {
        "elbo": "log joint density" if point else "ELBO = expected log likelihood - KL",
        "expected_log_likelihood": "log likelihood" if point else "expected log likelihood",
        "kl": "minus log prior" if point else "KL divergence of the guide from the prior",
    }
    shown = [(history[key], label) for key, label in labels.items() if key in history]
    figure, axes = new_figure(9.0, 2.1 * len(shown) + 1.0, len(shown))
    for one, (values, label) in zip(axes, shown, strict=True):
        steps, window = np.arange(1, len(values) + 1), max(1, len(values) // 50)
        smooth = moving_mean(values, window)
        one.plot(steps, values, color=GREY, linewidth=0.5, alpha=0.45, label="each step")
        one.plot(steps[len(steps) - len(smooth) :], smooth, color=BLUE, linewidth=1.8,
                 label=f"running mean of {window} steps")  # fmt: skip
        settled = values[len(values) // 4 :]
        low, high = np.quantile(settled, [0.01, 0.99])
        late = smooth[len(smooth) // 10 :]
        low, high = min(low, float(np.quantile(late, 0.1))), max(high, float(np.quantile(late, 0.9)))
        pad = 0.12 * (high - low) or 1.0
        one.set_ylim(low - pad, high + pad)
        one.set_xlim(0, len(values))
        one.set_title(label, fontsize=9.5, loc="left", pad=3)
        one.set_ylabel("nats", fontsize=9)
    axes[-1].set_xlabel("gradient step")
    axes[0].legend(fontsize=8.5, loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    units = "standard" if standard else "original"
    about = f"y in {units} units; the axes show the settled part, where the curve should be flat at the end"
    return titled(figure, f"{'Objective' if point else 'ELBO'}: {name}", about)
