"""Quantities of a network that do not change when its units are permuted or change sign: what can be seen to converge.

Weights of a network have many equivalent modes, so their R-hat may stay high for ever. The function at fixed inputs, the
log likelihood, the log prior, the noise and each layer's size do not know which unit is which.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.batching import map_draws
from bnn_pyro.isolation import isolated
from bnn_pyro.likelihoods import class_count, class_log_probs, has_mean, mean_and_variance
from bnn_pyro.target import Target
from bnn_pyro.units import Units

PROBES = 50


def probe_rows(n: int) -> np.ndarray:
    """Indices of the training rows at which the function is watched: 50 evenly spaced ones, or all if there are fewer."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, PROBES)).round().astype(int))


def watched(target: Target, z: Tensor) -> Callable[..., dict[str, Tensor]]:
    """The function of (z (dim,), y or None) that gives each quantity of ``function_space``, in standard units.

    Args:
        z: A draw (dim,), to see what kind of likelihood the program has.
    """
    index = torch.as_tensor(probe_rows(target.n), device=target.device)
    site = target.predicted
    with isolated(dtype=target.dtype), torch.no_grad():
        first = target.evaluate(z)
    conditional = first.conditionals[site.name] if site is not None and target.n else None
    classes = class_count(conditional) if conditional is not None else None
    known = conditional is not None and (classes is not None or has_mean(conditional))
    predicted = site.name if known and site is not None else None

    def one(z: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        result = target.evaluate(z, y=y)
        out = {
            "log_likelihood": torch.stack([t.sum(dtype=torch.float64) for t in result.log_likelihood.values()]).sum(),
            "log_prior": result.log_prior,
        }
        for latent in target.sites:
            if latent.shape:
                out[f"norm_{latent.name}"] = result.values[latent.name].double().norm()
        if predicted is not None and classes is not None:
            p = class_log_probs(result.conditionals[predicted]).exp()[index]
            out["f"] = p[:, 1] if classes == 2 else p
        elif predicted is not None:
            mean, variance = mean_and_variance(result.conditionals[predicted], target.name)
            out |= {"f": mean[index], "noise_scale": variance[index].double().mean(0).sqrt()}
        return out

    return one


def function_space(target: Target, units: Units, z: Tensor, block: int | None = None) -> dict[str, np.ndarray]:
    """By name, arrays (chain, draw, ...) of draws z (chain, draw, dim).

    ``f``: conditional mean of y at the probe rows, original units, where the likelihood has one; where y is a label, the
    probabilities of the classes (of the second one where there are two). ``noise_scale``: root of the mean conditional
    variance there; none for labels. ``log_likelihood``: of all training rows, original units of y. ``log_prior``: with the
    log-Jacobian, standard units. ``norm_<site>``: Euclidean norm of each site that is not a single number.
    """
    chains, draws, dim = z.shape
    flat = z.reshape(-1, dim).to(target.device)
    one = watched(target, flat[0])
    parts: dict[str, list[np.ndarray]] = {}
    with isolated(dtype=target.dtype), torch.no_grad():
        for _, part in map_draws(one, flat, block):
            for name, value in part.items():
                parts.setdefault(name, []).append(value.cpu().double().numpy())
    joined = {name: np.concatenate(blocks) for name, blocks in parts.items()}
    joined["log_likelihood"] = joined["log_likelihood"] - target.n * units.log_jacobian
    if "noise_scale" in joined:
        joined["f"] = joined["f"] * units.y_sd + units.y_mean
        joined["noise_scale"] = joined["noise_scale"] * units.y_sd
    order = ["f", "noise_scale", "log_likelihood", "log_prior"]
    names = [n for n in order if n in joined] + [n for n in joined if n not in order]
    return {name: joined[name].reshape(chains, draws, *joined[name].shape[1:]) for name in names}
