"""Sds of Normal priors, one factor for each site, at a maximum of Laplace's log evidence.

MacKay's fixed point says where to go; the evidence says how far, as the fixed point of a network may run away: weights of two
layers can trade their sizes without a change of the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from bnn_pyro.gaussians import Gaussian
from bnn_pyro.graphs import normal_priors
from bnn_pyro.modes import Mode
from bnn_pyro.prior_scale import with_prior_sds
from bnn_pyro.target import Target

ROUNDS = 30
SETTLED = 0.01  # share of an sd, below which no change counts
SHORTEST = 1 / 64  # of the fixed point's steps, in logarithms of the sds
SLACK = 0.05  # nats that the evidence may fall by, as modes are found to a tolerance


class Found(NamedTuple):
    """``every``: as ``density``, with those entries too that this leaves at a point."""

    mode: Mode
    density: Gaussian
    every: Gaussian

    def log_evidence(self, target: Target) -> float:
        """log p(y, mode) + dim/2 log 2 pi - 1/2 log det H, nats."""
        at_mode = float(target.log_density(self.mode.position))
        return at_mode + 0.5 * (self.every.dim * math.log(2 * math.pi) - float(self.every.log_det))


def tune(
    target: Target, found: Found, sites: Sequence[str], around: Callable[[Target, Tensor], Found]
) -> tuple[Target, Found, dict[str, float]]:
    """The target with tuned priors, what was found there, and the factors by site. The evidence is no lower than at first.

    Args:
        found: With the priors as they are; its mode has all gradients, of every round, in what is returned.
        around: What is found for a target, starting from a point.
    """
    factors, tuned = dict.fromkeys(sites, 1.0), target
    evidence, share, count = found.log_evidence(target), 1.0, found.mode.gradients
    for _ in range(ROUNDS):
        steps = {name: share * math.log(_raise(tuned, found.every, name)) for name in factors}
        if max(abs(step) for step in steps.values()) < SETTLED * share:
            break
        tried = {name: factor * math.exp(steps[name]) for name, factor in factors.items()}
        there = with_prior_sds(target, tried)
        new = around(there, found.mode.position)
        count += new.mode.gradients
        height = new.log_evidence(there)
        if height < evidence - SLACK:
            share /= 4
            if share < SHORTEST:
                break
            continue
        factors, tuned, found, evidence = tried, there, new, max(evidence, height)
    return tuned, found._replace(mode=found.mode._replace(gradients=count)), factors


def _raise(target: Target, density: Gaussian, name: str) -> float:
    """The factor of a site's prior sd that raises the evidence: MacKay's fixed point, gamma / (w^T D w) for the precision.

    gamma = sum of (1 - prior precision times posterior variance): how many of the site's numbers the data determine.
    Source: MacKay 1992, Neural Computation 4(3), equation 4.9 of the thesis' notation.
    """
    (site,) = [s for s in target.sites if s.name == name]
    priors = normal_priors(target)
    part = slice(site.start, site.stop)
    precision = priors.precision[part]
    determined = float((1.0 - precision * density.variances()[part]).sum())
    pull = float(((density.mean[part] - priors.loc[part]).square() * precision).sum())
    return math.sqrt(max(pull, 1e-12) / max(determined, 1e-12))
