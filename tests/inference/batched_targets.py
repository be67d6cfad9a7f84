"""Densities with gradients by hand over batches of positions, and what keeps a sampler's draws: no Pyro, no compiler.

``TARGETS`` maps a name to a ``BatchedTarget``, which is called as samplers call a compiled one: z (c, dim) to its gradient
(c, dim) and its log density (c,) float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import logsigmoid

from bnn_pyro.inference.hmc import HMC, ChEES
from bnn_pyro.inference.hmc_run import run_hmc
from bnn_pyro.inference.mcmc import Adaptation
from bnn_pyro.inference.nuts import NUTS
from bnn_pyro.inference.nuts_run import run_nuts

F64 = torch.float64


@dataclass(frozen=True)
class BatchedTarget:
    """``draw`` makes exact draws (c, dim) from standard normal numbers (c, dim)."""

    dim: int
    log_density: Callable[[Tensor], Tensor]
    grad: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor], Tensor]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.grad(z), self.log_density(z).double()

    def exact(self, count: int, seed: int) -> Tensor:
        """Exact draws (count, dim) float64."""
        return self.draw(normals(count, self.dim, seed=seed))


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def normal(covariance: Tensor) -> BatchedTarget:
    """Mean zero; covariance (dim,) or (dim, dim)."""
    if covariance.ndim == 1:
        grad = lambda z: -z / covariance.to(z)
        draw = lambda n: n * covariance.sqrt()
    else:
        precision, root = torch.linalg.inv(covariance), torch.linalg.cholesky(covariance)
        grad = lambda z: -z @ precision.to(z)
        draw = lambda n: n @ root.T
    return BatchedTarget(len(covariance), lambda z: 0.5 * (z * grad(z)).sum(-1), grad, draw)


def correlated(dim: int = 10, seed: int = 5) -> Tensor:
    """A covariance (dim, dim) whose standard deviations span 0.5 to 2 and whose correlations reach 0.9."""
    a = normals(dim, 3, seed=seed)
    covariance = a @ a.T + 0.3 * torch.eye(dim, dtype=F64)
    sd = covariance.diagonal().sqrt()
    scale = torch.logspace(-1, 1, dim, base=2.0, dtype=F64)
    return covariance / torch.outer(sd, sd) * torch.outer(scale, scale)


def banana(bend: float = 0.5, sd: float = 0.7) -> BatchedTarget:
    """z0 ~ Normal(0, 1), z1 ~ Normal(bend (z0^2 - 1), sd)."""
    residual = lambda z: (z[:, 1] - bend * (z[:, 0] ** 2 - 1)) / sd
    return BatchedTarget(
        2,
        lambda z: -0.5 * (z[:, 0] ** 2 + residual(z) ** 2),
        lambda z: torch.stack([-z[:, 0] + residual(z) * 2 * bend / sd * z[:, 0], -residual(z) / sd], -1),
        lambda n: torch.stack([n[:, 0], bend * (n[:, 0] ** 2 - 1) + sd * n[:, 1]], -1),
    )


def by_quantiles(quantile: Callable) -> Callable[[Tensor], Tensor]:
    """Exact draws of independent coordinates by their quantile function."""
    return lambda n: torch.as_tensor(quantile(stats.norm.cdf(n.numpy())))


def logit_beta(a: float, b: float) -> BatchedTarget:
    """The logit of Beta(a, b): log density a log s(z) + b log s(-z), the Jacobian included."""
    return BatchedTarget(
        1,
        lambda z: (a * logsigmoid(z) + b * logsigmoid(-z)).sum(-1),
        lambda z: a - (a + b) * torch.sigmoid(z),
        by_quantiles(lambda u: np.log(stats.beta(a, b).ppf(u)) - np.log1p(-stats.beta(a, b).ppf(u))),
    )


def log_gamma(a: float) -> BatchedTarget:
    """The logarithm of Gamma(a, 1), in three coordinates."""
    return BatchedTarget(
        3,
        lambda z: (a * z - z.exp()).sum(-1),
        lambda z: a - z.exp(),
        by_quantiles(lambda u: np.log(stats.gamma(a).ppf(u))),
    )


def student(df: float) -> BatchedTarget:
    return BatchedTarget(
        3,
        lambda z: -0.5 * (df + 1) * torch.log1p(z**2 / df).sum(-1),
        lambda z: -(df + 1) * z / (df + z**2),
        by_quantiles(stats.t(df).ppf),
    )


def funnel(sd: float = 0.5) -> BatchedTarget:
    """v ~ Normal(0, sd), x ~ Normal(0, exp(v / 2)) in two coordinates."""

    def grad(z: Tensor) -> Tensor:
        v, x = z[:, :1], z[:, 1:]
        inside = -v / sd**2 - 1 + 0.5 * (x**2).sum(-1, keepdim=True) * (-v).exp()
        return torch.cat([inside, -x * (-v).exp()], -1)

    return BatchedTarget(
        3,
        lambda z: -0.5 * (z[:, 0] / sd) ** 2 - z[:, 0] - 0.5 * (z[:, 1:] ** 2).sum(-1) * (-z[:, 0]).exp(),
        grad,
        lambda n: torch.cat([sd * n[:, :1], n[:, 1:] * (0.5 * sd * n[:, :1]).exp()], -1),
    )


def independent(dim: int, log_density: Callable, grad: Callable) -> BatchedTarget:
    """Coordinates with the same density on (-8, 8), of any scale; exact draws by a table of its distribution function."""
    grid = torch.linspace(-8, 8, 40_001, dtype=F64)
    cdf = torch.cumulative_trapezoid(log_density(grid).exp(), grid)
    cdf = np.concatenate([[0.0], (cdf / cdf[-1]).numpy()])
    return BatchedTarget(
        dim, lambda z: log_density(z).sum(-1), grad, by_quantiles(lambda u: np.interp(u, cdf, grid.numpy()))
    )


TARGETS: dict[str, BatchedTarget] = {
    "normal": normal(torch.ones(3, dtype=F64)),
    "scaled": normal(torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64) ** 2),
    "correlated": normal(correlated()),
    "banana": banana(),
    "logit_beta": logit_beta(2.0, 3.0),
    "log_gamma": log_gamma(2.0),
    "student": student(5.0),
    "funnel": funnel(),
    "double_well": independent(2, lambda z: -0.25 * (z**2 - 1) ** 2, lambda z: -z * (z**2 - 1)),
    "two_modes": independent(
        2, lambda z: -0.5 * z**2 + torch.log(torch.cosh(1.2 * z)), lambda z: -z + 1.2 * torch.tanh(1.2 * z)
    ),
}


# ---- runs --------------------------------------------------------------------------------------------------------


class Kept:
    """A recorder: ``draws`` (chains, transitions, dim) and a dict of statistics (chains, transitions)."""

    def __init__(self, chains: int, transitions: int, dim: int, dtype: torch.dtype = F64):
        self.draws = torch.full((chains, transitions, dim), torch.nan, dtype=dtype)
        self.stats: dict[str, Tensor] = {}

    def record(self, rows, transition, position, info):
        self.draws[rows, transition] = position
        for name, value in info._asdict().items():
            if name not in self.stats:
                self.stats[name] = torch.zeros(self.draws.shape[:2], dtype=value.dtype)
            self.stats[name][rows, transition] = value

    def should_stop(self):
        return False


def settings(name: str, chains: int, draws: int, step_size, inverse_mass: Tensor, **options) -> NUTS | HMC | ChEES:
    """A method by name, its adaptation given: ``length`` is the trajectory's, of HMC and ChEES."""
    step_size = torch.as_tensor(step_size, dtype=F64).reshape(-1)
    length = torch.tensor(options.pop("length", 1.5), dtype=F64)
    adaptation = Adaptation(step_size, inverse_mass, None if name == "nuts" else length)
    kind = {"nuts": NUTS, "hmc": HMC, "chees": ChEES}[name]
    return kind(chains=chains, warmup=0, draws=draws, adaptation=adaptation, **options)


def run(method: NUTS | HMC | ChEES, gradient: Callable, start: Tensor, seed: int) -> tuple[Kept, Adaptation]:
    """All transitions of ``method``, warmup included, and what it learnt."""
    kept = Kept(len(start), method.transitions, start.shape[1], start.dtype)
    runner = run_nuts if isinstance(method, NUTS) else run_hmc
    return kept, runner(gradient, start, method, seed, kept)


def padded(gradient: Callable) -> Callable:
    """As whoever calls a sampler is to do: a lone chain is evaluated as two."""

    def call(z: Tensor) -> tuple[Tensor, Tensor]:
        if len(z) > 1:
            return gradient(z)
        grad, log_density = gradient(z.repeat(2, 1))
        return grad[:1], log_density[:1]

    return call
