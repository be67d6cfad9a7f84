"""The ELBO of a mean-field normal guide, written out over the flat vector.

    z = mean + sd * noise,  sd = softplus(rho)  (exp(rho) for ``nn.MeanField``),  log q(z) = sum of log Normal(z; mean, sd)

The same numbers as ``elbo.Elbo`` gives for Pyro's AutoNormal and AutoDiagonalNormal, in a tenth of the operations: one on
the whole vector where the guide has several for each site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor
from torch.nn.functional import softplus

from bnn_pyro.elbo import Elbo, Rows, Terms
from bnn_pyro.graphs import NormalPriors, normal_priors
from bnn_pyro.layer_noise import RowNoise
from bnn_pyro.nn import MeanField
from bnn_pyro.substitution import Substituted
from bnn_pyro.target import Evaluation

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class MeanFieldElbo(Elbo):
    """``Elbo`` of a mean-field normal guide; ``leaves`` are all means, then all scales, then the program's parameters.

    Attributes:
        positive: What makes an sd of its parameter: softplus, or exp where that is a log sd.
        priors: Normal priors, whose density is computed for all sites at once.
        program_leaves: How many parameters are the program's.
        closed_form: Whether the KL of the sites of ``priors`` is computed, and not estimated by the draw.
        estimator: How weights of ``priors`` meet rows: by one draw for all, or as ``layer_noise`` has it.
    """

    positive: Callable[[Tensor], Tensor]
    priors: NormalPriors
    program_leaves: int
    closed_form: bool
    estimator: str = "weights"

    def as_run(self) -> Elbo:
        """The same by running the guide, with parameters in the same order."""
        return Elbo(**{f.name: getattr(self, f.name) for f in fields(Elbo)})

    @property
    def shapes(self) -> list[torch.Size]:
        flat = torch.Size([self.target.dim])
        return [flat, flat, *(leaf.shape for leaf in self._program())]

    def terms(self, parts: Sequence[Tensor] | None, noise: Tensor | None, rows: Rows | None = None) -> Terms:
        assert parts is not None and noise is not None
        mean, rho, *program = parts
        sd, target = self.positive(rho), self.target
        z = mean + sd * noise[: target.dim]
        result = self._evaluate(z, mean, sd, Substituted(self._program(), program, noise[target.dim :]), rows)
        log_prior = result.log_prior + self._log_prior(mean, sd, z)
        return Terms(self.scaled(result.log_likelihood, rows), self._log_q(mean, sd, z) - log_prior)

    def _evaluate(self, z: Tensor, mean: Tensor, sd: Tensor, given: Substituted, rows: Rows | None) -> Evaluation:
        values, means, sds = (self.target.parts(t) for t in (z, mean, sd))
        x, y = (None, None) if rows is None else rows[:2]
        count = len(self.target.y if y is None else y)
        watch = nullcontext() if self.estimator == "weights" else RowNoise(self.estimator, count)
        if isinstance(watch, RowNoise):
            by_row = {s.name for s in self.target.sites if s.by_row}  # which have noise of each row's own already
            for site in self.priors.sites - by_row:
                watch.follow(site, values[site], linear=means[site], size=sds[site])
        with given, watch:
            result = self.target.evaluate_sites(values, x, y, leave_out=self.priors.sites)
        if isinstance(watch, RowNoise):
            watch.check()
        return result

    def with_row_noise(self, estimator: str, rows: Rows | None) -> MeanFieldElbo:
        """The same with weights that meet rows as ``estimator`` has it; ``noise`` grows by what such rows take.

        Raises: NotImplementedError where the program does not use its weights so, or its rows are not independent given them.
        """
        if self.target.joint:  # one draw of the weights for all rows is a part of their covariance
            raise NotImplementedError(
                f"estimator={estimator!r} takes observations inside pyro.plate('data', ...), and one is joint over all rows"
            )
        made = replace(self, estimator=estimator)
        z = torch.zeros(self.target.dim, dtype=self.target.dtype, device=self.target.device)
        counted = Substituted()
        made._evaluate(z, z.clone(), torch.ones_like(z), counted, rows)
        return replace(made, noise=self.noise + counted.used)

    def _log_prior(self, mean: Tensor, sd: Tensor, z: Tensor) -> Tensor:
        away = (mean if self.closed_form else z) - self.priors.loc
        square = away * away + sd * sd if self.closed_form else away * away
        return self.priors.constant - 0.5 * (square * self.priors.precision).sum(dtype=torch.float64)

    def _log_q(self, mean: Tensor, sd: Tensor, z: Tensor) -> Tensor:
        """log q(z), with its mean in place of the entries whose KL is in closed form."""
        held_mean, held_sd = (mean.detach(), sd.detach()) if self.path_gradient else (mean, sd)
        away = (z - held_mean) / held_sd
        log_q = -0.5 * away * away - held_sd.log()
        if self.closed_form:
            log_q = torch.where(self.priors.precision > 0, -0.5 - sd.log(), log_q)
        return log_q.sum(dtype=torch.float64) - len(z) * _HALF_LOG_2PI

    def _program(self) -> list[Tensor]:
        return list(self.leaves.values())[len(self.leaves) - self.program_leaves :]


def mean_field(elbo: Elbo, closed_form: bool = False) -> MeanFieldElbo | None:
    """The ELBO written out, for a guide that is Pyro's AutoNormal or AutoDiagonalNormal; None for any other.

    The caller checks that both are the same.
    """
    names = list(elbo.leaves)
    if type(elbo.guide) in (AutoNormal, MeanField):
        means, scales = ([n for n in names if f".{kind}." in n] for kind in ("locs", "scales"))
    elif type(elbo.guide) is AutoDiagonalNormal:
        means, scales = ([n for n in names if n.endswith(f".{kind}")] for kind in ("loc", "scale"))
    else:
        return None
    ordered = [*means, *scales, *(n for n in names if n not in {*means, *scales})]
    leaves = {n: elbo.leaves[n] for n in ordered}
    sizes = [sum(elbo.leaves[n].numel() for n in some) for some in (means, scales)]
    if sizes != [elbo.target.dim] * 2 or elbo.noise != elbo.target.dim:
        return None
    given = {f.name: getattr(elbo, f.name) for f in fields(elbo)} | {"leaves": leaves}
    program_leaves = len(names) - len(means) - len(scales)
    return MeanFieldElbo(
        **given,
        positive=torch.exp if type(elbo.guide) is MeanField else softplus,
        priors=normal_priors(elbo.target),
        program_leaves=program_leaves,
        closed_form=closed_form,
    )
