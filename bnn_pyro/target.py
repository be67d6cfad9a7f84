"""A Pyro program and data as a log density over one flat, unconstrained vector.

    log density(z) = log prior(theta) + log |d theta / d z| + sum over rows of log p(y_i | theta, x_i),  theta = T(z)

The program is run by ``handlers.Run``. The rest of the package sees functions of flat tensors: ``log_prior``,
``log_likelihood``, ``log_density``, ``forward``, ``constrain``, ``unconstrain``. Sites stand in z in program order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, IndependentTransform, Transform, biject_to, identity_transform

from bnn_pyro.data import Inputs, rows
from bnn_pyro.errors import ModelError
from bnn_pyro.handlers import Run, Stopped

Program = Callable[..., Any]


@dataclass(frozen=True)
class Site:
    """A latent site: where it stands in z, and its shapes."""

    name: str
    start: int
    unconstrained_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dims: tuple[str, ...]  # a name for each axis of shape
    by_row: bool = False  # inside the data plate: one value for each row

    @property
    def stop(self) -> int:
        size = 1
        for length in self.unconstrained_shape:
            size *= length
        return self.start + size

    def take(self, z: Tensor) -> Tensor:
        return z[self.start : self.stop].reshape(self.unconstrained_shape)


@dataclass(frozen=True)
class Observation:
    """An observed site: ``dim`` is the data plate's axis (negative), or None for one joint term over all rows."""

    name: str
    dim: int | None
    shape: tuple[int, ...]
    factor: bool = False  # a pyro.factor inside the data plate: a term of the likelihood, not a value to predict


@dataclass(frozen=True)
class Evaluation:
    """What one run of the program gave; log densities are float64 sums."""

    log_prior: Tensor  # () log-Jacobian included
    log_likelihood: dict[str, Tensor]  # by observed site: (n,), or () for a joint term
    values: dict[str, Tensor]  # latent sites, constrained
    deterministic: dict[str, Tensor]
    conditionals: dict[str, Distribution]  # by observed site: the distribution of y given the latents
    priors: dict[str, Distribution]  # by latent site that is neither scaled nor masked
    scaled: set[str]  # observed sites inside poutine.scale
    masked: set[str]  # and inside poutine.mask


@dataclass(frozen=True)
class Target:
    """The log density of one program on one set of rows. Made by ``structure.build_target``.

    ``x`` and ``y`` are tensors in the units that the program sees; ``n`` rows. All methods are pure functions of their
    arguments, safe under ``torch.func`` transforms, and expect to run inside ``isolated(dtype=target.dtype)``.
    """

    program: Program
    name: str
    x: Inputs
    y: Tensor
    sites: tuple[Site, ...]
    observed: tuple[Observation, ...]
    dtype: torch.dtype
    device: torch.device
    params: dict[str, Tensor] = field(default_factory=dict)
    over_rows: frozenset[str] = frozenset()  # deterministic sites with an entry for each row, such as f
    empty: bool = False  # no training rows: x and y hold one row that stands in and is not counted

    @property
    def predicted(self) -> Observation | None:
        """The one observed site that can be predicted; None where a program observes several."""
        sites = [o for o in self.observed if not o.factor]
        return sites[0] if len(sites) == 1 else None

    @property
    def n(self) -> int:
        return 0 if self.empty else rows(self.x)

    @property
    def dim(self) -> int:
        return self.sites[-1].stop

    @property
    def joint(self) -> bool:
        """Whether some observation is one joint term, so that rows cannot be left out or sampled."""
        return any(o.dim is None for o in self.observed)

    def parts(self, z: Tensor) -> dict[str, Tensor]:
        """z (dim,) by site, split at once: the gradient of many slices would be many vectors, mostly zero, to add."""
        split = z.split([s.stop - s.start for s in self.sites])
        return {s.name: part.reshape(s.unconstrained_shape) for s, part in zip(self.sites, split, strict=True)}

    def evaluate(self, z: Tensor, x: Inputs | None = None, y: Tensor | None = None) -> Evaluation:
        """Runs the program at z (dim,), on the training rows unless others are given."""
        z = z.to(self.dtype)
        return self.evaluate_sites({s.name: s.take(z) for s in self.sites}, x, y)

    def evaluate_sites(
        self,
        unconstrained: dict[str, Tensor],
        x: Inputs | None = None,
        y: Tensor | None = None,
        leave_out: frozenset[str] = frozenset(),
        jacobian: bool = True,
    ) -> Evaluation:
        """``evaluate`` with each site's part of z by itself; the log prior is without the sites of ``leave_out``.

        Without ``jacobian`` it is the density of the constrained values.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.device)

        def latent(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
            value, log_jacobian = constrain_site(fn, unconstrained[name])
            return value, log_jacobian if jacobian else zero

        run = Run(latent, self.dtype, params=self.params, leave_out=leave_out)
        try:
            with run:
                self.program(self.x if x is None else x, self.y if y is None else y)
        except Exception as error:
            error.add_note(f"{self.name}: the program had come to site {run.at!r}.")
            raise
        log_prior = add_up(run.log_prior)
        log_likelihood = run.log_likelihood
        if self.empty and x is None:
            log_likelihood = {k: v[:0] if v.ndim else torch.zeros_like(v) for k, v in log_likelihood.items()}
        values = (run.values, run.deterministic, run.conditionals, run.priors, run.scaled, run.masked)
        return Evaluation(log_prior, log_likelihood, *values)

    def log_prior(self, z: Tensor) -> Tensor:
        """Log prior of the constrained values plus log |d theta / d z|, () float64."""
        return self.evaluate(z).log_prior

    def log_likelihood(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Pointwise log likelihood (n,), summed over observed sites, for all rows or those with the given indices."""
        if self.joint:
            raise ModelError(
                f"{self.name}: expected observations inside pyro.plate('data', ...), got one joint observation of all "
                "rows. It has no pointwise log likelihood, so mini-batches and LOO are refused."
            )
        if rows is None:
            result = self.evaluate(z)
        else:
            x = {k: v[rows] for k, v in self.x.items()} if isinstance(self.x, dict) else self.x[rows]
            result = self.evaluate(z, x, self.y[rows])
        terms = result.log_likelihood.values()
        return torch.stack(list(terms)).sum(0)

    def log_density(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Log joint density plus log-Jacobian, summed over all rows, () float64; ``y`` in place of the training rows'."""
        result = self.evaluate(z, y=y)
        return result.log_prior + sum(t.sum(dtype=torch.float64) for t in result.log_likelihood.values())

    def forward(self, z: Tensor, x: Inputs) -> Distribution:
        """The distribution of y at new rows given z (dim,): the program runs up to its observed site and draws nothing."""
        z = z.to(self.dtype)
        by_name = {s.name: s for s in self.sites}
        return self.conditional(lambda name, fn: constrain_site(fn, by_name[name].take(z)), x)

    def conditional(self, latent: Callable, x: Inputs) -> Distribution:
        """``forward`` with any rule that gives latent sites their values, such as drawing them from the prior."""
        if self.predicted is None:
            names = ", ".join(repr(o.name) for o in self.observed if not o.factor)
            raise ModelError(
                f"{self.name}, predict: expected one observed site, got {names or 'factors only'}. "
                "Write a program that observes the one to predict."
            )
        without_prior = frozenset(s.name for s in self.sites)  # nobody asks for its density here
        run = Run(latent, self.dtype, stop_at=self.predicted.name, params=self.params, leave_out=without_prior)
        try:
            with run:
                self.program(x, None)
        except Stopped:
            pass
        return run.conditionals[self.predicted.name]

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Constrained values by site, with the deterministic sites that do not stand over rows."""
        result = self.evaluate(z)
        extra = {k: v for k, v in result.deterministic.items() if k not in self.over_rows}
        return result.values | extra

    def unconstrain(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """z (dim,) from constrained values by site, and log |d theta / d z| () there."""
        parts: dict[str, Tensor] = {}
        jacobians: list[Tensor] = []

        def latent(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
            transform = biject_to(fn.support)
            parts[name] = transform.inv(values[name])
            log_jacobian = transform.log_abs_det_jacobian(parts[name], values[name]).sum(dtype=torch.float64)
            jacobians.append(log_jacobian)
            return values[name], log_jacobian

        with Run(latent, self.dtype, params=self.params):
            self.program(self.x, self.y)
        z = torch.cat([parts[s.name].reshape(-1) for s in self.sites])
        return z, add_up(jacobians)


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """The sum of terms, each (), in float64; one by one, which compiles to fewer buffers than a stack."""
    return torch.as_tensor(sum(term.to(torch.float64) for term in terms))


def constrain_site(fn: Distribution, unconstrained: Tensor) -> tuple[Tensor, Tensor]:
    """A site's constrained value, and log |d value / d unconstrained| as a float64 sum.

    The support is read from the distribution at hand, so that one that depends on other sites is followed.
    """
    transform = biject_to(fn.support)
    if _is_identity(transform):
        return unconstrained, unconstrained.new_zeros((), dtype=torch.float64)
    value = transform(unconstrained)
    log_jacobian = transform.log_abs_det_jacobian(unconstrained, value)
    return value, log_jacobian.sum(dtype=torch.float64)


def _is_identity(transform: Transform) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform is identity_transform
