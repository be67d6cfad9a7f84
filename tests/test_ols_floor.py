"""Least squares on the UCI benchmark: a loader with another target, split or unit does not give these digits."""

import numpy as np
import pytest

from bnn_pyro.datasets import dataset_card, load_dataset

# RMSE and mean log density of the test part in original units, mean ± standard error over the splits. The table that
# states the maximum-likelihood variance rounds the log density; the longer figures hold for the unbiased variance, over
# n - d - 1. The two differ in one digit: boston's ± is 0.051 with the former and 0.050 with the latter.
ROUNDED = {
    "boston": ("4.59±0.22", "-2.97±0.05"),
    "concrete": ("10.31±0.15", "-3.76±0.01"),
    "kin8nm": ("0.202±0.001", "0.179±0.005"),
    "naval": ("0.0059±0.0000", "3.714±0.003"),
    "protein": ("5.213±0.023", "-3.070±0.005"),
    "wine": ("0.654±0.008", "-1.00±0.01"),
}
LONGER = {
    "boston": ("4.588±0.215", "-2.973±0.050"),
    "concrete": ("10.314±0.147", "-3.755±0.014"),
    "kin8nm": ("0.2023±0.0009", "0.179±0.005"),
    "naval": ("0.0059±0.0000", "3.714±0.003"),
    "protein": ("5.213±0.023", "-3.070±0.005"),
    "wine": ("0.654±0.008", "-0.997±0.012"),
}


def least_squares(train, test):
    """Test RMSE of y ~ Normal(intercept + x w, variance), and its mean log density with either variance."""

    def design(x):
        return np.column_stack([np.ones(len(x)), (x.to_numpy() - mean) / sd])

    mean, sd = train.x.to_numpy().mean(0), train.x.to_numpy().std(0)
    sd[sd < 1e-12 * np.abs(mean)] = 1.0  # constant columns add nothing: lstsq gives them the smallest weights
    weights, _, rank, _ = np.linalg.lstsq(design(train.x), train.y.to_numpy(), rcond=None)
    residuals = np.sum((train.y - design(train.x) @ weights) ** 2)
    squares = (test.y - design(test.x) @ weights) ** 2
    densities = [
        np.mean(-0.5 * np.log(2 * np.pi * variance) - 0.5 * squares / variance)
        for variance in (residuals / len(train), residuals / (len(train) - rank))
    ]
    return np.sqrt(squares.mean()), *densities


def shown(values, like):
    """``mean±standard error`` with as many digits as ``like``."""
    digits = len(like.split("±")[0].rpartition(".")[2])
    return f"{np.mean(values):.{digits}f}±{np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


@pytest.mark.parametrize("name", LONGER)
def test_least_squares_gives_the_published_digits(name, data_folder, monkeypatch):
    monkeypatch.setenv("BNN_PYRO_DATA", str(data_folder))
    runs = []
    for k in range(dataset_card(f"uci/{name}").splits):
        data = load_dataset(f"uci/{name}", split=k)
        runs.append(least_squares(data.train, data.test))
    rmse, density, unbiased = np.array(runs).T
    rounded = tuple(shown(values, like) for values, like in zip((rmse, density), ROUNDED[name]))
    longer = tuple(shown(values, like) for values, like in zip((rmse, unbiased), LONGER[name]))
    print(f"\n{name:9}{len(runs):3} splits   RMSE {longer[0]:15} log density {shown(density, '.000'):15}", end="")
    assert rounded == ROUNDED[name]
    assert longer == LONGER[name]
