"""A posterior put together again from the files of a run directory that ``files.load`` has checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bnn_pyro import labels, results
from bnn_pyro.arguments import DTYPES
from bnn_pyro.data import Data
from bnn_pyro.draws import Draws
from bnn_pyro.errors import ModelError, RunError
from bnn_pyro.files import NETCDF, STATE, method_from, model_from
from bnn_pyro.frames import Encoding
from bnn_pyro.inference import Laplace
from bnn_pyro.laplace import as_fitted
from bnn_pyro.posterior import Posterior
from bnn_pyro.rows_to_target import make_target
from bnn_pyro.target import Observation, Target
from bnn_pyro.units import Units


def restore(path: Path, content: dict[str, Any], model: Any) -> Posterior:
    """The posterior of a run directory whose ``run.toml`` reads ``content``."""
    tensors = load_file(path / STATE)
    idata = results.load(path / NETCDF)
    bnn = model_from(content, model).fresh()
    data = _data(idata, content)
    units = _units(tensors)
    params = _under(tensors, "params/")
    dtype = DTYPES[content["fit"]["dtype"]]
    target: Target | None
    try:
        target = make_target(bnn, data, units, dtype, torch.device("cpu"), params or None)
    except ModelError:
        if content["model"]["zoo"] or model is not None:
            raise
        target = _absent(bnn, data, units, dtype)
    keep = content["fit"].get("keep")
    _check_sites(target, _sites(content, results.dataset(idata, "posterior")), tensors["draws"].shape[-1], path)
    has_stats = "sample_stats" in results.group_names(idata)  # MAP of streamed rows has none
    sampled = results.dataset(idata, "sample_stats").data_vars if has_stats else {}
    draws = Draws(
        tensors["draws"],
        stats={str(k): v.values for k, v in sampled.items()},
        history={k: v.numpy() for k, v in _under(tensors, "history/").items()},
        state=_under(tensors, "state/"),
        params=params,
        info=content["fit"]["info"],
        complete=content["fit"]["complete"],
    )
    method, seed = method_from(content), content["fit"]["seed"]
    if isinstance(method, Laplace) and target.sites:
        target = as_fitted(target, draws)
    notes = list(content["fit"]["warnings"])
    posterior = Posterior(bnn, data, units, target, method, draws, seed, notes, None if keep is None else tuple(keep))
    posterior.__dict__["idata"] = idata  # as it was written, instead of built again
    return posterior


def _sites(content: dict[str, Any], saved: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the sites that were fitted, in order, perhaps with deterministic ones after them.

    Those of the group ``posterior``, where it holds all. Where it does not, run.toml states them; none if it was written
    without the program at hand.
    """
    if "keep" in content["fit"]:
        return [(name, tuple(shape)) for name, shape in content["fit"]["sites"]]
    return [(str(k), tuple(v.shape[2:])) for k, v in saved.data_vars.items()]


def _check_sites(target: Target, fitted: list[tuple[str, tuple[int, ...]]], dim: int, path: Path) -> None:
    """Refuses a program other than the one that was fitted: its sites would read each other's draws."""
    if not target.sites:
        return
    want = [(s.name, s.shape) for s in target.sites]
    have = fitted[: len(want)] or want
    if want != have or target.dim != dim:
        raise RunError(f"{path}: expected the program that was fitted, with sites {have}, got {want}. Pass that one.")


def _under(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _data(idata: Any, content: dict[str, Any]) -> Data:
    constant = results.dataset(idata, "constant_data")
    arrays = {str(k): v.values for k, v in constant.data_vars.items() if k != "probe_row"}
    observed = results.dataset(idata, "observed_data")
    (y,) = {str(k): v.values for k, v in observed.data_vars.items()}.values()
    about = content["data"]
    x: np.ndarray | dict[str, np.ndarray] = arrays if about["x_is_dict"] else arrays["x"]
    encoding = Encoding.from_table(about["encoding"]) if "encoding" in about else None
    classes = labels.from_list(about["classes"]) if "classes" in about else None
    return Data(x, y, tuple(about["columns"]) or None, about["target"] or None, encoding, classes)


def _units(tensors: dict[str, Any]) -> Units:
    saved = {k: v.numpy() for k, v in _under(tensors, "units/").items()}
    x = {}
    for key in saved:
        if key.startswith("x/") and key.endswith("/mean"):
            name = key[len("x/") : -len("/mean")]
            x[name] = (saved[key], saved[f"x/{name}/sd"])
    y = (saved["y/mean"], saved["y/sd"]) if "y/mean" in saved else None
    return Units(x, y)


def _absent(bnn: Any, data: Data, units: Units, dtype: Any) -> Target:
    """A target without its program: it knows rows, but each evaluation says that the program is to be passed."""
    from bnn_pyro.data import inputs_to_tensors, to_tensor

    x = inputs_to_tensors(units.inputs(data.x), dtype, "cpu", False)
    assert data.y is not None, "a run has observed data"
    y = to_tensor(units.targets(data.y), dtype, "cpu")
    return Target(bnn.model, bnn.name, x, y, (), (Observation("y", -1, tuple(y.shape)),), dtype, torch.device("cpu"))
