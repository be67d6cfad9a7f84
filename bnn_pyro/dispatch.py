"""Runs an inference method on a target, whichever it is."""

from __future__ import annotations

import torch

from bnn_pyro.devices import out_of_memory
from bnn_pyro.draws import Draws
from bnn_pyro.dropout import fit_dropout
from bnn_pyro.ensemble import fit_ensemble
from bnn_pyro.inference import MAP, MCMC, NUTS, SVI, Ensemble, Laplace, MCDropout, Method, Prior
from bnn_pyro.laplace import fit_laplace
from bnn_pyro.model import Model
from bnn_pyro.prior import sample_prior
from bnn_pyro.pyro_nuts import sample_nuts
from bnn_pyro.sampling import sample
from bnn_pyro.svi import fit_guide
from bnn_pyro.target import Target


def infer(target: Target, method: Method, bnn: Model, seed: int, engine: str, backend: str, progress: bool) -> Draws:
    """Draws by ``method``, its settings checked. Raises: OptionError where the device has not enough memory."""
    try:
        return _by_method(target, method, bnn, seed, engine, backend, progress)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(f"{target.name}, {method.name}", target.device) from error


def _by_method(
    target: Target, method: Method, bnn: Model, seed: int, engine: str, backend: str, progress: bool
) -> Draws:
    if isinstance(method, Prior):
        return sample_prior(target, method, seed)
    if isinstance(method, NUTS) and engine == "pyro":
        return sample_nuts(target, method, seed, backend, progress)
    if isinstance(method, MCMC):
        return sample(target, method, seed, backend, progress)
    if isinstance(method, Ensemble):
        return fit_ensemble(target, method, seed, backend, progress)
    if isinstance(method, MCDropout):
        return fit_dropout(target, method, seed, backend, progress)
    if isinstance(method, Laplace):
        return fit_laplace(target, method, seed, backend, progress)
    assert isinstance(method, SVI | MAP), "make_method knows no other"
    return fit_guide(target, method, bnn.guide, seed, engine, backend, progress)
