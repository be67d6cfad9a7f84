"""Bayesian neural networks as plain Pyro programs, with posteriors that ArviZ reads.

    data = bnn.load_dataset("diabetes")
    model = bnn.get_model("mlp_gaussian", hidden=(50,))
    posterior = model.fit(data.train, inference="nuts", seed=0)
    posterior.idata
    prediction = posterior.predict(data.test.x)

Names are imported when first used, so that ``import bnn_pyro`` and ``bnn-pyro --help`` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bnn_pyro.version import __version__

if TYPE_CHECKING:
    from bnn_pyro import nn
    from bnn_pyro.calibration import Calibration, calibrate
    from bnn_pyro.card import Card, Published
    from bnn_pyro.class_prediction import ClassPrediction
    from bnn_pyro.datasets import fetch_dataset, list_datasets, load_dataset
    from bnn_pyro.errors import BNNError, DataError, ModelError, OptionError, RunError, ShapeError, UnknownNameError
    from bnn_pyro.estimators import BNNClassifier, BNNRegressor
    from bnn_pyro.files import load
    from bnn_pyro.fitting import fit
    from bnn_pyro.guides import init_to_prior
    from bnn_pyro.inference import (
        HMC,
        MAP,
        NUTS,
        SVI,
        Adaptation,
        ChEES,
        Ensemble,
        Laplace,
        MCDropout,
        Prior,
        list_inference,
    )
    from bnn_pyro.model import BNN, Model
    from bnn_pyro.own_table import load_table
    from bnn_pyro.passes import Passes, predict_proba, predict_regression
    from bnn_pyro.posterior import Posterior
    from bnn_pyro.prediction import Prediction
    from bnn_pyro.registry import get_model, list_models, register

_HOMES = {
    "calibration": ("Calibration", "calibrate"),
    "card": ("Card", "Published"),
    "class_prediction": ("ClassPrediction",),
    "datasets": ("fetch_dataset", "list_datasets", "load_dataset"),
    "errors": ("BNNError", "DataError", "ModelError", "OptionError", "RunError", "ShapeError", "UnknownNameError"),
    "estimators": ("BNNClassifier", "BNNRegressor"),
    "files": ("load",),
    "fitting": ("fit",),
    "guides": ("init_to_prior",),
    "inference": (
        "HMC",
        "MAP",
        "NUTS",
        "SVI",
        "Adaptation",
        "ChEES",
        "Ensemble",
        "Laplace",
        "MCDropout",
        "Prior",
        "list_inference",
    ),
    "model": ("BNN", "Model"),
    "own_table": ("load_table",),
    "passes": ("Passes", "predict_proba", "predict_regression"),
    "posterior": ("Posterior",),
    "prediction": ("Prediction",),
    "registry": ("get_model", "list_models", "register"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BNN",
    "HMC",
    "MAP",
    "NUTS",
    "SVI",
    "Adaptation",
    "BNNClassifier",
    "BNNError",
    "BNNRegressor",
    "Calibration",
    "Card",
    "ChEES",
    "ClassPrediction",
    "DataError",
    "Ensemble",
    "Laplace",
    "MCDropout",
    "Model",
    "ModelError",
    "OptionError",
    "Passes",
    "Posterior",
    "Prediction",
    "Prior",
    "Published",
    "RunError",
    "ShapeError",
    "UnknownNameError",
    "__version__",
    "calibrate",
    "fetch_dataset",
    "fit",
    "get_model",
    "init_to_prior",
    "list_datasets",
    "list_inference",
    "list_models",
    "load",
    "load_dataset",
    "load_table",
    "nn",
    "predict_proba",
    "predict_regression",
    "register",
]


def __getattr__(name: str) -> Any:
    if name == "nn":
        return import_module("bnn_pyro.nn")  # which then stands in this module's namespace
    if name not in _HOME:
        raise AttributeError(f"module 'bnn_pyro' has no attribute {name!r}")
    value = getattr(import_module(f"bnn_pyro.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
