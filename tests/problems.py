"""Targets with known answers, shared by the tests: Pyro programs as users write them, with rows to go with each.

``PROBLEMS`` maps a name to a function that makes a ``Problem``; its numbers are float32-representable, so that a
program means the same in both dtypes. ``pyro_log_density`` is Pyro's own answer, which shares no code with
``bnn_pyro.target`` but the constraining map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import OrderedTransform
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import constraints
from torch.func import jacfwd, vmap

import bnn_pyro as bnn
from bnn_pyro.structure import build_target
from bnn_pyro.target import Target

N, D = 12, 3


@dataclass(frozen=True)
class Problem:
    """A program with rows: x (n, ...) or a dict, y (n,) or (n, k), float64 or integers."""

    program: Callable[..., Any]
    x: Any
    y: Tensor

    def target(self, dtype: torch.dtype = torch.float64) -> Target:
        """``y`` keeps its kind, as ``bnn.fit`` passes it on."""
        return build_target(self.program, self.inputs(dtype), self.targets(dtype), name="problem", dtype=dtype)

    def inputs(self, dtype: torch.dtype = torch.float64) -> Any:
        if isinstance(self.x, dict):
            return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.x.items()}
        return self.x.to(dtype)

    def targets(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.y.to(dtype) if self.y.is_floating_point() else self.y


# ---- programs ----------------------------------------------------------------------------------------------------


def linear_model(x, y=None):
    """Known noise 0.5, so that ``linear_gaussian`` knows the posterior."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def intercept_model(x, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def _hierarchical(x, y=None):
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([x.shape[-1]]).to_event(1))
    w = pyro.sample("w", dist.Normal(0.0, tau * local).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def _simplex(x, y=None):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    sigma = pyro.sample("sigma", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ p, sigma), obs=y)


def _correlated(x, y=None):
    d = x.shape[-1]
    tril = pyro.sample("tril", dist.LKJCholesky(d, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([d]).to_event(1))
    w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(d), scale_tril=scale.unsqueeze(-1) * tril))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def _bounded_by_another(x, y=None):
    top = pyro.sample("top", dist.Gamma(2.0, 1.0))
    slope = pyro.sample("slope", dist.Uniform(0.0, top))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(slope * x[:, 0], top), obs=y)


def _embedding(x, y=None):
    table = pyro.sample("table", dist.Normal(0.0, 1.0).expand([4, 2]).to_event(2))
    w = pyro.sample("w", dist.Laplace(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", x["z"].shape[0]):
        f = table[x["unit"]] @ w + x["z"][:, 0]
        return pyro.sample("y", dist.Normal(f, 0.7), obs=y)


def _student(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    df = pyro.sample("df", dist.Gamma(3.0, 0.5))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.StudentT(2.0 + df, x @ w, 0.5), obs=y)


def _ordinal(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    cuts = pyro.sample("cuts", dist.TransformedDistribution(base, [OrderedTransform()]))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.OrderedLogistic(x @ w, cuts), obs=y)


def categorical_model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1], 4]).to_event(2))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


def _bernoulli(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def two_observed_model(x, y=None):
    """A latent stands between the two observed sites."""
    data = pyro.plate("data", x.shape[0])
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with data:
        pyro.sample("first", dist.Normal(x @ w, 1.0), obs=None if y is None else y[:, 0])
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    with data:
        pyro.sample("second", dist.Normal((x @ w) ** 2, rate), obs=None if y is None else y[:, 1])


def factor_model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    pyro.factor("soft", -((w.sum() - 1.0) ** 2))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)
        pyro.factor("penalty", -0.1 * (x @ w) ** 4)


def _scaled_and_masked(x, y=None):
    with poutine.scale(scale=0.5):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=2.0):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def _plate_of_outputs(x, y=None):
    outputs, data = pyro.plate("outputs", 2, dim=-1), pyro.plate("data", x.shape[0], dim=-2)
    with outputs:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))  # (2, d)
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))  # (2,)
    with data, outputs:
        return pyro.sample("y", dist.Normal(x @ w.mT, sigma), obs=y)


def _event_of_outputs(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1], 2]).to_event(2))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


def _reparameterised(x, y=None):
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with poutine.reparam(config={"w": LocScaleReparam(0.3)}):
        w = pyro.sample("w", dist.Normal(1.0, tau).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def gp_model(x, y=None):
    """One joint observation, no plate."""
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    amplitude = pyro.sample("amplitude", dist.HalfNormal(1.0))
    squared = ((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)
    k = amplitude**2 * torch.exp(-0.5 * squared / length**2) + 0.1 * torch.eye(x.shape[0])
    return pyro.sample("y", dist.MultivariateNormal(torch.zeros(x.shape[0]), covariance_matrix=k), obs=y)


def _one_latent_per_row(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        offset = pyro.sample("offset", dist.Gumbel(x @ w, 1.0))
        return pyro.sample("y", dist.Normal(offset, 0.5), obs=y)


def mixture_model(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", x.shape[0]):
        means = torch.stack([x @ w, -(x @ w)], -1)
        weights = torch.stack([p, 1 - p]).expand(x.shape[0], 2)
        likelihood = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, 0.5))
        return pyro.sample("y", likelihood, obs=y)


def _improper(x, y=None):
    w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), (x.shape[-1],)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


class _Net(PyroModule):
    def __init__(self):
        super().__init__()
        self.inner = PyroModule[torch.nn.Linear](D, 2)
        self.inner.weight = PyroSample(lambda _: dist.Normal(0.0, 1.0).expand([2, D]).to_event(2))
        self.inner.bias = PyroSample(lambda _: dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        self.scale = PyroSample(lambda _: dist.HalfNormal(1.0))

    def forward(self, x, y=None):
        f, scale = torch.tanh(self.inner(x)).sum(-1), self.scale
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(f, scale), obs=y)


# ---- rows for them -----------------------------------------------------------------------------------------------


@cache
def _rows(n: int = N, d: int = D, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float32).double()
    noise = torch.randn(n, generator=generator, dtype=torch.float32).double()
    return x, (x @ torch.linspace(-1, 1, d, dtype=torch.float64) + 0.5 * noise).float().double()


def _real(program: Callable) -> Callable[[], Problem]:
    return lambda: Problem(program, *_rows())


def _labels(program: Callable, classes: int) -> Callable[[], Problem]:
    return lambda: Problem(program, _rows()[0], torch.arange(N) % classes)


def _pairs(program: Callable) -> Callable[[], Problem]:
    return lambda: Problem(program, _rows()[0], torch.stack([_rows()[1], _rows()[1].flip(0)], -1))


def _units() -> Problem:
    x, y = _rows()
    return Problem(_embedding, {"unit": torch.arange(N) % 4, "z": x}, y)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "linear": _real(linear_model),
    "intercept": _real(intercept_model),
    "hierarchical": _real(_hierarchical),
    "simplex": _real(_simplex),
    "correlated": _real(_correlated),
    "bounded_by_another": _real(_bounded_by_another),
    "embedding": _units,
    "student": _real(_student),
    "ordinal": _labels(_ordinal, 3),
    "categorical": _labels(categorical_model, 4),
    "bernoulli": _labels(_bernoulli, 2),
    "two_observed": _pairs(two_observed_model),
    "factor": _real(factor_model),
    "scaled_and_masked": _real(_scaled_and_masked),
    "plate_of_outputs": _pairs(_plate_of_outputs),
    "event_of_outputs": _pairs(_event_of_outputs),
    "reparameterised": _real(_reparameterised),
    "gp": _real(gp_model),
    "one_latent_per_row": _real(_one_latent_per_row),
    "mixture": _real(mixture_model),
    "improper": _real(_improper),
    "pyro_module": lambda: Problem(_Net(), *_rows()),
    "zoo_linear": lambda: Problem(bnn.get_model("linear").model, *_rows()),
    "zoo_linear_known_noise": lambda: Problem(bnn.get_model("linear", noise=0.5, prior_sd=2.0).model, *_rows()),
    "zoo_mlp_relu": lambda: Problem(bnn.get_model("mlp_gaussian", hidden=(3,)).model, *_rows()),
    "zoo_mlp_tanh": lambda: Problem(bnn.get_model("mlp_gaussian", hidden=(3, 2), activation="tanh").model, *_rows()),
}
JOINT = ("gp",)  # one likelihood term for all rows
SEVERAL = ("two_observed", "factor")  # several terms for each row
BY_ROW = ("one_latent_per_row",)  # rows cannot be left out
POINTWISE = tuple(name for name in PROBLEMS if name not in JOINT)
BATCHED = tuple(name for name in POINTWISE if name not in BY_ROW)
SINGLE = tuple(name for name in PROBLEMS if name not in SEVERAL)


# ---- answers -----------------------------------------------------------------------------------------------------


def points(target: Target, count: int, seed: int = 0) -> Tensor:
    """Standard normal z (count, dim), float64 and float32-representable."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, target.dim, generator=generator, dtype=torch.float32).double()


def free_values(target: Target, z: Tensor) -> Tensor:
    """Constrained values (dim,) without the entries that the others determine: z -> this has a square Jacobian."""
    values = target.evaluate(z).values
    parts = []
    for site in target.sites:
        value = values[site.name]
        if site.name == "tril":  # Cholesky factor of a correlation matrix: the strictly lower part is free
            row, column = torch.tril_indices(value.shape[-1], value.shape[-1], -1)
            value = value[row, column]
        elif value.numel() != site.stop - site.start:  # a simplex: the last entry is one minus the others
            value = value[..., :-1]
        parts.append(value.reshape(-1))
    return torch.cat(parts)


def log_jacobian(target: Target, z: Tensor) -> Tensor:
    """log |d theta / d z| by automatic differentiation of the map, () float64."""
    map_ = lambda one: free_values(target, one)
    return torch.linalg.slogdet(torch.autograd.functional.jacobian(map_, z, create_graph=z.requires_grad))[1]


def log_jacobians(target: Target, z: Tensor) -> Tensor:
    """``log_jacobian`` of each z (draws, dim), at once where the program can be vmapped."""
    one_by_jvp = lambda one: torch.linalg.slogdet(jacfwd(lambda inner: free_values(target, inner))(one))[1]
    try:
        return vmap(one_by_jvp)(z)
    except RuntimeError:  # Pyro's OrderedLogistic writes in place
        return torch.stack([log_jacobian(target, one) for one in z])


def pyro_log_joint(problem: Problem, values: dict[str, Tensor]) -> Tensor:
    """Pyro's own log joint density at constrained values, integers of y given as floats."""
    program = poutine.condition(problem.program, data=values)
    trace = poutine.trace(program).get_trace(problem.inputs(), problem.y.double())
    return trace.log_prob_sum()


def pyro_log_density(problem: Problem, target: Target, z: Tensor) -> Tensor:
    """Pyro's log joint plus the log-Jacobian, () float64; differentiable in z."""
    return pyro_log_joint(problem, target.evaluate(z).values) + log_jacobian(target, z)


@dataclass(frozen=True)
class Exact:
    """A normal posterior: mean (d,) and covariance (d, d)."""

    mean: Tensor
    covariance: Tensor


def linear_gaussian(seed: int, n: int = 40, d: int = 3) -> tuple[Tensor, Tensor, Exact]:
    """x (n, d), y (n,) and the exact posterior of ``w`` under ``linear_model``."""
    x, y = _rows(n, d, seed)
    precision = torch.eye(d, dtype=torch.float64) + x.T @ x / 0.25
    covariance = torch.linalg.inv(precision)
    return x, y, Exact(covariance @ (x.T @ y) / 0.25, covariance)
