"""One judge for all libraries: densities, ESS, R-hat and predictive density of draws, in numpy and float64.

Draws come as unconstrained sites: an array (..., *shape) for each of ``w1``, ``b1``, ..., and log sigma as ``sigma``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from posteriors import Problem, Rows
from scipy.special import expit, log_expit, log_softmax, logsumexp

Sites = dict[str, np.ndarray]
LOG_2PI = np.log(2 * np.pi)
BLOCK = 50  # draws that are evaluated together


def network(problem: Problem, sites: Sites, x: np.ndarray) -> np.ndarray:
    """The network's outputs (draws, n, k) at rows x (n, d), for sites (draws, *shape)."""
    h = x.astype(np.float64)[None]
    for i, a, _ in problem.layers:
        w, b = sites[f"w{i}"].astype(np.float64), sites[f"b{i}"].astype(np.float64)
        h = h @ (w / np.sqrt(a)) + b[:, None, :]
        if i < len(problem.layers):
            h = np.tanh(h)
    return h


def log_likelihood(problem: Problem, sites: Sites, f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pointwise log likelihood (draws, n) of y at outputs f (draws, n, k), in nats."""
    if problem.likelihood == "normal":
        log_sigma = sites["sigma"].astype(np.float64)[:, None]
        return -0.5 * ((y - f[..., 0]) / np.exp(log_sigma)) ** 2 - log_sigma - 0.5 * LOG_2PI
    if problem.likelihood == "bernoulli":
        return log_expit(np.where(y > 0, f[..., 0], -f[..., 0]))
    return np.take_along_axis(log_softmax(f, -1), y[None, :, None], -1)[..., 0]


def log_density(problem: Problem, rows: Rows, sites: Sites) -> np.ndarray:
    """Log joint density plus log-Jacobian over the unconstrained sites, (draws,)."""
    total = log_likelihood(problem, sites, network(problem, sites, rows.x), rows.y).sum(1)
    for name, value in sites.items():
        value = value.astype(np.float64).reshape(len(value), -1)
        if name == "sigma":  # half normal: twice the normal's density; d sigma / d log sigma = sigma
            total += (np.log(2) - 0.5 * LOG_2PI - 0.5 * np.exp(value) ** 2 + value)[:, 0]
        else:
            total += (-0.5 * value**2 - 0.5 * LOG_2PI).sum(1)
    return total


def watched(problem: Problem, sites: Sites, f: np.ndarray) -> np.ndarray:
    """What has to mix, (draws, 20 * k): f itself, but the log probability of each class for a softmax.

    f of a softmax may move by a constant that changes nothing.
    """
    values = log_softmax(f, -1) if problem.likelihood == "categorical" else f
    return values.reshape(len(values), -1)


def judge(problem: Problem, rows: Rows, sites: Sites) -> dict[str, Any]:
    """Figures of draws (chain, draw, *shape).

    Returns: ``min_ess``, ``median_ess`` (bulk, over all chains) and ``max_r_hat``, over f at the held-out rows and the total
        log likelihood of the training rows; ``test_lpd``, nats a held-out row, standard units of y; ``test_score``, RMSE
        in standard units or accuracy; ``finite``, whether all draws are.
    """
    from bnn_pyro import results

    chains, draws = next(iter(sites.values())).shape[:2]
    flat = {name: value.reshape(chains * draws, *value.shape[2:]) for name, value in sites.items()}
    total, test, mean, probes = [], [], [], []
    for start in range(0, chains * draws, BLOCK):
        some = {name: value[start : start + BLOCK] for name, value in flat.items()}
        total.append(log_likelihood(problem, some, network(problem, some, rows.x), rows.y).sum(1))
        f = network(problem, some, rows.x_test)
        test.append(log_likelihood(problem, some, f, rows.y_test))
        probes.append(watched(problem, some, f))
        mean.append(predicted(problem, f))
    variables = {"f": np.concatenate(probes), "log_likelihood": np.concatenate(total)}
    finite = all(np.isfinite(v).all() for v in variables.values())
    groups = {"posterior": {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in variables.items()}}
    dataset = results.dataset(results.build(groups), "posterior")
    ess = np.concatenate([v.ravel() for v in results.ess(dataset).values()])
    r_hat = np.concatenate([v.ravel() for v in results.r_hat(dataset).values()])
    lpd = logsumexp(np.concatenate(test), axis=0) - np.log(chains * draws)
    return {
        "min_ess": float(np.min(ess)),
        "median_ess": float(np.median(ess)),
        "max_r_hat": float(np.max(r_hat)),
        "test_lpd": float(lpd.mean()),
        "test_score": score(problem, np.concatenate(mean).mean(0), rows.y_test),
        "finite": bool(finite),
    }


def predicted(problem: Problem, f: np.ndarray) -> np.ndarray:
    """Mean of y (draws, n), or probabilities of the classes (draws, n, k)."""
    if problem.likelihood == "categorical":
        return np.exp(log_softmax(f, -1))
    return expit(f[..., 0]) if problem.likelihood == "bernoulli" else f[..., 0]


def score(problem: Problem, mean: np.ndarray, y: np.ndarray) -> float:
    if problem.likelihood == "normal":
        return float(np.sqrt(np.mean((mean - y) ** 2)))
    labels = mean.argmax(-1) if problem.likelihood == "categorical" else mean > 0.5
    return float(np.mean(labels == y))
