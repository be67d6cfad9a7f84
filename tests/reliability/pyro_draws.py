"""What Pyro's own NUTS says of five models on real rows, stored for other engines to be compared with.

    python tests/reliability/pyro_draws.py                   # all models, one after another: about 20 minutes
    python tests/reliability/pyro_draws.py mlp_gaussian      # one

writes ``stored/<model>.json``: at each of 200 new rows, mean and sd of the function f (the conditional mean of y, or the
probability of a class), and sd of y where y is a number, each with its Monte Carlo error; effective sample sizes, R-hat,
settings, seed and versions. Draws themselves are not kept.

Pyro's chains run in float64, one after another; what is compared with them may be another sampler, precision and seed.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import bnn_pyro as bnn
from bnn_pyro import results
from bnn_pyro.batching import gather_draws
from bnn_pyro.data import inputs_to_tensors
from bnn_pyro.isolation import isolated

STORED = Path(__file__).parent / "stored"
POINTS = 200
DIGITS = 6  # significant ones of stored numbers: a thousand times less than the Monte Carlo errors
SEED = 20
# hidden layers are tanh: on the kinks of relu Pyro's chains take several times as many steps for the same answer
MODELS: dict[str, dict[str, Any]] = {
    "linear": {},
    "logistic": {},
    "mlp_gaussian": {"hidden": (5,), "activation": "tanh"},
    "mlp_hetero": {"hidden": (5,), "activation": "tanh"},
    "mlp_categorical": {"hidden": (5,), "activation": "tanh"},
}
SETTINGS = {"inference": "nuts", "engine": "pyro", "dtype": "float64", "chains": 4, "warmup": 500, "draws": 1500}
FAULTS = ("wider prior", "row left out")  # prior_sd, where a model has one, times 1.1; the first row missing


@dataclass(frozen=True)
class Rows:
    """Training rows x (n, d) and y (n,), and ``POINTS`` new rows."""

    x: np.ndarray
    y: np.ndarray
    new: np.ndarray


def rows(name: str) -> Rows:
    """Of scikit-learn's data, the first so many rows and a few columns: small enough for Pyro, and the same everywhere."""
    if name == "logistic":
        data, train, columns = load_breast_cancer(), 100, [0, 1, 4, 7, 27]
        x, y = data.data[:, columns], data.target
    elif name == "mlp_categorical":
        data, train, columns = load_digits(), 100, [20, 28, 36, 43]  # four pixels of zeros, ones and twos
        few = data.target < 3
        x, y = data.data[few][:, columns], data.target[few]
    else:
        data = load_diabetes()
        train, columns = (100, [0, 1, 2, 3, 8]) if name == "linear" else (100, [2, 8])  # body mass and s5
        x, y = data.data[:, columns], data.target
    return Rows(x[:train], y[:train], x[train : train + POINTS])


def fit(name: str, fault: str = "", **settings: Any) -> bnn.Posterior:
    """The posterior of model ``name`` on its rows, with nothing changed unless by one of ``FAULTS``."""
    data = rows(name)
    hyperparameters = dict(MODELS[name])
    if fault == "wider prior":
        hyperparameters["prior_sd"] = 1.1 * bnn.get_model(name).prior_sd
    first = 1 if fault == "row left out" else 0
    return bnn.get_model(name, **hyperparameters).fit(data.x[first:], data.y[first:], progress=False, **settings)


def summaries(posterior: bnn.Posterior, new: np.ndarray) -> dict[str, np.ndarray]:
    """At rows ``new``: ``mean``, ``sd`` (of f), ``total_sd`` (of y, a number), their ``*_mcse``, ``ess`` and ``r_hat``.

    Each (n,), or (n, classes). ``ess`` is the smaller of bulk and tail. Var[y] is the mean of (f - mean f)^2 + Var[y | f],
    so its error is that of a mean.
    """
    f = posterior.predict(new).function_draws.astype(np.float64)  # (chain, draw, n) or (chain, draw, n, classes)
    of_f = _as_dataset(f)
    flat = f.reshape(-1, *f.shape[2:])
    out = {
        "mean": flat.mean(0),
        "mean_mcse": results.mcse(of_f)["value"],
        "sd": flat.std(0, ddof=1),
        "sd_mcse": results.mcse(of_f, "sd")["value"],
        "ess": np.minimum(results.ess(of_f)["value"], results.ess(of_f, "tail")["value"]),
        "r_hat": results.r_hat(of_f)["value"],
    }
    if not hasattr(posterior.predict(new[:1]), "probs"):
        terms = (f - out["mean"]) ** 2 + noise_variance(posterior, new)
        out["total_sd"] = np.sqrt(terms.mean((0, 1)))
        out["total_sd_mcse"] = results.mcse(_as_dataset(terms))["value"] / (2 * out["total_sd"])
    return out


def noise_variance(posterior: bnn.Posterior, new: np.ndarray) -> np.ndarray:
    """Var[y | weights] (chain, draw, n) in squared units of y."""
    target, units, z = posterior.target, posterior.units, posterior.draws.z
    inputs = inputs_to_tensors(units.inputs(new), target.dtype, target.device, True)
    with isolated(dtype=target.dtype):
        one = lambda draw: target.forward(draw, inputs).variance.double().expand(len(new))
        variance = gather_draws(one, z.reshape(-1, z.shape[-1]))
    return variance.reshape(*z.shape[:2], -1).numpy() * units.y_sd**2


def stored(name: str) -> dict[str, Any]:
    """What ``main`` has written, with numbers by point as arrays."""
    content = json.loads((STORED / f"{name}.json").read_text())
    content["values"] = {k: np.array(v) for k, v in content["values"].items()}
    return content


def make(name: str) -> dict[str, Any]:
    began = time.time()
    settings = {"seed": SEED, **SETTINGS, "backend": "inductor"}
    posterior = fit(name, **settings)
    values = summaries(posterior, rows(name).new)
    return {
        "model": name,
        "hyperparameters": MODELS[name],
        "settings": settings,
        "versions": {k: version(k) for k in ("torch", "pyro-ppl", "arviz", "numpy", "scikit-learn")},
        "seconds": round(time.time() - began),
        "gradient_evaluations": posterior.draws.info["gradient_evaluations"],
        "divergences": int(posterior.draws.stats["diverging"].sum()),
        "least_ess": float(values["ess"].min().round()),
        "largest_r_hat": float(values["r_hat"].max().round(4)),
        "values": {k: _rounded(v) for k, v in values.items() if k not in ("r_hat",)},
    }


def _as_dataset(values: np.ndarray) -> xr.Dataset:
    rest = [f"axis_{i}" for i in range(values.ndim - 2)]
    return xr.Dataset({"value": (("chain", "draw", *rest), values)})


def _rounded(values: Any) -> Any:
    array = np.asarray(values)
    return [float(f"{v:.{DIGITS}g}") for v in array] if array.ndim == 1 else [_rounded(row) for row in array]


def main(names: list[str]) -> None:
    for name in names or MODELS:
        content = make(name)
        STORED.mkdir(exist_ok=True)
        (STORED / f"{name}.json").write_text(json.dumps(content) + "\n")
        print({k: v for k, v in content.items() if k != "values"}, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
