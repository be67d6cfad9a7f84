"""Six posteriors over networks, on data that come with scikit-learn, each as a Pyro program and as a NumPyro model.

    h_0 = x,  h_l = tanh(h_{l-1} W_l + b_l),  f = h_{L-1} W_L + b_L
    W_l = w_l sqrt(1 / fan_in),  w_l ~ Normal(0, 1),  b_l ~ Normal(0, 1)
    normal:       y ~ Normal(f, sigma), sigma ~ HalfNormal(1)
    bernoulli:    y ~ Bernoulli(sigmoid(f))
    categorical:  y ~ Categorical(softmax(f))

The two forms have the same sites, and the same density over the unconstrained ones (log sigma in place of sigma), which
``measure.log_density`` writes out a third time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

SPLIT_SEED = 2026  # draws the held-out rows
HELD_OUT = 20


@dataclass(frozen=True)
class Problem:
    """``sizes``: inputs, units of each hidden layer, outputs. ``train_rows``: train on so many of the first rows only."""

    name: str
    data: str
    sizes: tuple[int, ...]
    likelihood: str
    train_rows: int | None = None

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """Number (from 1), fan-in and fan-out of each layer."""
        return [(i, a, b) for i, (a, b) in enumerate(zip(self.sizes, self.sizes[1:]), 1)]

    @property
    def dim(self) -> int:
        """Latent numbers."""
        return sum(a * b + b for _, a, b in self.layers) + (self.likelihood == "normal")

    def __str__(self) -> str:
        kind = "tanh, " if len(self.sizes) > 2 else ""
        return f"{self.name}: {'-'.join(map(str, self.sizes))} {kind}{self.likelihood}, {self.data}, {self.dim} latent numbers"


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("linear", "diabetes", (10, 1), "normal"),
        Problem("mlp1", "diabetes", (10, 50, 1), "normal"),
        Problem("mlp2", "diabetes", (10, 50, 50, 1), "normal"),
        Problem("logistic", "breast_cancer", (30, 1), "bernoulli"),
        Problem("classifier", "breast_cancer", (30, 50, 1), "bernoulli"),
        Problem("digits", "digits", (64, 32, 10), "categorical", train_rows=1000),
    )
}


@dataclass(frozen=True)
class Rows:
    """Inputs (n, d) float32 in standard units of the training part; y (n,): float32, but int64 for categorical."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_rows(problem: Problem) -> Rows:
    """The training rows, in the order of the data set, and 20 held-out ones drawn with ``SPLIT_SEED``.

    They are drawn from all rows, or from those after the first ``train_rows``. A real-valued y is in standard units, too.
    """
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{problem.data}")(return_X_y=True)
    first = problem.train_rows or 0
    test = first + np.random.default_rng(SPLIT_SEED).choice(len(x) - first, HELD_OUT, replace=False)
    train = np.arange(problem.train_rows) if problem.train_rows else np.setdiff1d(np.arange(len(x)), test)

    def standard(values: np.ndarray) -> np.ndarray:
        sd = values[train].std(0)
        return ((values - values[train].mean(0)) / np.where(sd > 0, sd, 1.0)).astype(np.float32)

    x = standard(x)
    if problem.likelihood == "normal":
        y = standard(y)
    y = y.astype(np.int64 if problem.likelihood == "categorical" else np.float32)
    return Rows(x[train], y[train], x[test], y[test])


def pyro_program(problem: Problem) -> Callable:
    """The Pyro program ``program(x, y=None)``, as a user would write it."""
    import pyro
    import pyro.distributions as dist
    import torch

    def program(x, y=None):
        h = x
        for i, a, b in problem.layers:
            w = pyro.sample(f"w{i}", dist.Normal(0.0, 1.0).expand([a, b]).to_event(2))
            bias = pyro.sample(f"b{i}", dist.Normal(0.0, 1.0).expand([b]).to_event(1))
            h = h @ (w * sqrt(1 / a)) + bias
            if i < len(problem.layers):
                h = torch.tanh(h)
        if problem.likelihood == "normal":
            likelihood = dist.Normal(h.squeeze(-1), pyro.sample("sigma", dist.HalfNormal(1.0)))
        elif problem.likelihood == "bernoulli":
            likelihood = dist.Bernoulli(logits=h.squeeze(-1))
        else:
            likelihood = dist.Categorical(logits=h)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", likelihood, obs=y)

    return program


def numpyro_model(problem: Problem) -> Callable:
    """Its twin for NumPyro, line by line; BlackJAX samples the potential that NumPyro makes of it."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x, y=None):
        h = x
        for i, a, b in problem.layers:
            w = numpyro.sample(f"w{i}", dist.Normal(0.0, 1.0).expand([a, b]).to_event(2))
            bias = numpyro.sample(f"b{i}", dist.Normal(0.0, 1.0).expand([b]).to_event(1))
            h = h @ (w * sqrt(1 / a)) + bias
            if i < len(problem.layers):
                h = jnp.tanh(h)
        if problem.likelihood == "normal":
            likelihood = dist.Normal(h.squeeze(-1), numpyro.sample("sigma", dist.HalfNormal(1.0)))
        elif problem.likelihood == "bernoulli":
            likelihood = dist.Bernoulli(logits=h.squeeze(-1))
        else:
            likelihood = dist.Categorical(logits=h)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", likelihood, obs=y)

    return model
