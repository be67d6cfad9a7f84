"""A posterior as ArviZ groups: arrays, dimension names and coordinates, in original units where y is concerned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnn_pyro import labels, results
from bnn_pyro.batching import gather_draws
from bnn_pyro.errors import warn
from bnn_pyro.function_space import function_space, probe_rows
from bnn_pyro.isolation import derive_seed, isolated
from bnn_pyro.prediction import predictive_draws
from bnn_pyro.prior import prior_draws

if TYPE_CHECKING:
    from bnn_pyro.posterior import Posterior

PRIOR_DRAWS = 500


def build_groups(posterior: Posterior) -> Any:
    """All groups of a fitted posterior, as InferenceData (ArviZ 0.2x) or DataTree (1.x).

    A group that the program cannot give (no prior draws of an improper prior, no pointwise log likelihood of a joint
    observation) is left out with a warning that says so.
    """
    target, units, z = posterior.target, posterior.units, posterior.draws.z
    space = function_space(target, units, z)
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": _constrained(posterior)}
    if not groups["posterior"]:  # az.loo takes the draws' efficiency from this group
        groups["posterior"] = {"log_likelihood": space["log_likelihood"]}
    groups["sample_stats"] = posterior.draws.stats
    if target.empty:
        pass  # no rows, so no log likelihood by row, and nothing to compare with replicates
    elif target.joint:
        warn(
            f"{target.name}: one joint observation of all rows has no pointwise log likelihood, so 'log_likelihood' is "
            "left out and az.loo refuses.",
        )
    else:
        groups["log_likelihood"] = _log_likelihood(posterior)
    prior = prior_draws(target, units, PRIOR_DRAWS, derive_seed(posterior.seed, "prior"))
    if prior is not None:
        groups["prior"] = {k: v for k, v in prior[0].items() if _is_kept(posterior, k)}
        groups["prior_predictive"] = {} if target.empty else prior[1]
    else:
        warn(f"{target.name}: a prior is improper, so 'prior' and 'prior_predictive' are left out.")
    name = "y"
    if target.predicted is not None:
        name = target.predicted.name
    if target.predicted is not None and not target.empty:
        seed = derive_seed(posterior.seed, "posterior predictive")
        groups["posterior_predictive"] = {name: predictive_draws(target, units, z.to(target.device), target.x, seed)}
    groups["function_space"] = space
    assert posterior.data.y is not None, "fit refuses rows without targets"
    groups["observed_data"] = {name: posterior.data.y}
    groups["constant_data"] = _inputs(posterior)
    dims, coords = _names(posterior, groups)
    return results.build(groups, dims, coords, posterior.attrs)


def _is_kept(posterior: Posterior, site: str) -> bool:
    return posterior.keep is None or site in posterior.keep


def _constrained(posterior: Posterior) -> dict[str, np.ndarray]:
    """Draws of the sites that are kept, (chain, draw, ...); the others are dropped block by block of draws."""
    if posterior.keep == ():
        return {}
    target, z = posterior.target, posterior.draws.z
    flat = z.reshape(-1, z.shape[-1]).to(target.device)
    with isolated(dtype=target.dtype):
        values = gather_draws(
            lambda one: {k: v for k, v in target.constrain(one).items() if _is_kept(posterior, k)}, flat
        )
    return {k: v.reshape(*z.shape[:2], *v.shape[1:]).cpu().numpy() for k, v in values.items()}


def _log_likelihood(posterior: Posterior) -> dict[str, np.ndarray]:
    target, z = posterior.target, posterior.draws.z
    flat = z.reshape(-1, z.shape[-1]).to(target.device)
    with isolated(dtype=target.dtype):
        terms = gather_draws(lambda one: {k: v.double() for k, v in target.evaluate(one).log_likelihood.items()}, flat)
    shape = z.shape[:2]
    jacobian = {o.name: 0.0 if o.factor else posterior.units.log_jacobian for o in target.observed}
    arrays = {k: v.reshape(*shape, -1).cpu().numpy() - jacobian[k] for k, v in terms.items()}
    return {k: results.untie(v) for k, v in arrays.items()}


def _inputs(posterior: Posterior) -> dict[str, np.ndarray]:
    x = posterior.data.x
    probe = {"probe_row": probe_rows(posterior.data.n)}
    return (dict(x) if isinstance(x, dict) else {"x": x}) | probe


def _names(posterior: Posterior, groups: dict[str, dict[str, np.ndarray]]) -> tuple[dict, dict]:
    target, data = posterior.target, posterior.data
    sites = {s.name: s.dims for s in target.sites}
    extra = [f"output_{i}" for i in range(1, 8)]
    f, predicted = groups["function_space"].get("f"), target.predicted
    by_class = f is not None and predicted is not None and f.ndim - 2 > len(predicted.shape)  # an axis that y lacks
    watched = ["class"] if by_class else extra
    row_dims = {name: ("row", *extra) for name in ("y", *(o.name for o in target.observed))}
    dims: dict[str, dict[str, tuple[str, ...]]] = {"posterior": sites, "prior": sites}
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive", "observed_data"):
        lead = 0 if group == "observed_data" else 2
        dims[group] = {k: row_dims[k][: v.ndim - lead] for k, v in groups.get(group, {}).items()}
    dims["function_space"] = {
        k: ("probe", *watched)[: v.ndim - 2] if k == "f" else tuple(extra[: v.ndim - 2])
        for k, v in groups["function_space"].items()
    }
    dims["constant_data"] = {
        k: ("probe",) if k == "probe_row" else ("row", *_input_dims(k, v)) for k, v in groups["constant_data"].items()
    }
    coords: dict[str, Any] = {"row": np.arange(data.n), "probe": probe_rows(data.n)}
    if data.classes is not None:
        coords["class"] = labels.as_list(data.classes)
    if data.columns is not None:
        coords["feature"] = list(data.columns)
    return dims, coords


def _input_dims(name: str, value: np.ndarray) -> tuple[str, ...]:
    if name == "x" and value.ndim == 2:
        return ("feature",)
    return tuple(f"{name}_dim_{i}" for i in range(1, value.ndim))
