"""Runs a Pyro program with values for its latent sites, and collects what each site has to say.

``Run`` is the one way to run a program; guides are run by ``elbo``, ``guides`` and ``pyro_svi``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import Parameter

from bnn_pyro.likelihoods import sum_to_rows

DATA_PLATE = "data"


class Stopped(Exception):
    """Ends a run at the observed site, before anything is drawn there."""


class OwnParameters(Messenger):
    """Inside it, ``pyro.param`` begins at a copy of the tensor that it is given: Pyro would train the user's own.

    Parameters of modules are left: a fit has a copy of the whole module.
    """

    def _pyro_param(self, msg: Any) -> None:
        name, *given = msg["args"]
        if given and isinstance(given[0], Tensor) and not isinstance(given[0], Parameter):
            msg["args"] = (name, given[0].detach().clone().to(torch.get_default_device()), *given[1:])


class Run(OwnParameters):
    """Gives every latent site its value and collects log densities; outermost handler around a program.

    Args:
        latent: (site name, distribution) -> value, log |d value / d z|.
        dtype: Integer observations are cast to it, since most likelihoods take floats only.
        stop_at: Name of the observed site where the run ends; its distribution is left in ``conditionals``.
        params: Values for ``pyro.param`` statements, by name.
        leave_out: Latent sites whose prior density is not computed: the caller adds it.

    ``at`` is the site that was reached last, for errors; ``scaled`` and ``masked`` are the observed sites inside
    ``poutine.scale`` and ``poutine.mask``.
    """

    def __init__(
        self,
        latent: Callable,
        dtype: torch.dtype,
        stop_at: str | None = None,
        params: dict | None = None,
        leave_out: frozenset[str] = frozenset(),
    ):
        super().__init__()
        self.latent, self.dtype, self.stop_at, self.params = latent, dtype, stop_at, params or {}
        self.leave_out, self.at = leave_out, ""
        self.log_prior: list[Tensor] = []
        self.log_likelihood: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.deterministic: dict[str, Tensor] = {}
        self.conditionals: dict[str, Distribution] = {}
        self.priors: dict[str, Distribution] = {}
        self.scaled: set[str] = set()
        self.masked: set[str] = set()

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.params:
            msg["value"], msg["done"] = self.params[msg["name"]], True
        else:
            super()._pyro_param(msg)

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or is_deterministic(msg):
            return
        self.at = msg["name"]
        if msg["name"] == self.stop_at:
            self.conditionals[msg["name"]] = msg["fn"]
            raise Stopped
        if msg["is_observed"]:
            if isinstance(msg["value"], Tensor) and not msg["value"].is_floating_point():
                msg["value"] = msg["value"].to(self.dtype)
            self.conditionals[msg["name"]] = msg["fn"]
            return
        msg["value"], log_jacobian = self.latent(msg["name"], msg["fn"])
        msg["done"] = True
        self.values[msg["name"]] = msg["value"]
        self.log_prior.append(log_jacobian)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if is_deterministic(msg):
            self.deterministic[msg["name"]] = msg["value"]
            return
        if not msg["is_observed"]:
            if msg["mask"] is None and isinstance(msg["scale"], float | int) and msg["scale"] == 1:
                self.priors[msg["name"]] = msg["fn"]
            if msg["name"] in self.leave_out:
                return
        else:
            if isinstance(msg["scale"], Tensor) or msg["scale"] != 1:
                self.scaled.add(msg["name"])
            if msg["mask"] is not None:
                self.masked.add(msg["name"])
        log_prob = scale_and_mask(msg["fn"].log_prob(msg["value"]), msg["scale"], msg["mask"])
        dim = data_dim(msg)
        if not msg["is_observed"] or (dim is None and is_factor(msg)):
            self.log_prior.append(log_prob.sum(dtype=torch.float64))
        elif dim is None:
            self.log_likelihood[msg["name"]] = log_prob.sum(dtype=torch.float64)
        else:
            self.log_likelihood[msg["name"]] = sum_to_rows(log_prob, dim)


def is_deterministic(msg: Any) -> bool:
    """``pyro.deterministic`` sites and those that a reparameterisation computed; Pyro counts both as observed."""
    if (msg["infer"] or {}).get("_deterministic", False):
        return True
    return bool(msg["is_observed"]) and getattr(msg["fn"], "_mask", None) is False


def is_factor(msg: Any) -> bool:
    return type(msg["fn"]).__name__ == "Unit"


def data_dim(msg: Any) -> int | None:
    """The axis of the data plate around a site, negative; None outside of it."""
    return next((f.dim for f in msg["cond_indep_stack"] if f.name == DATA_PLATE), None)
