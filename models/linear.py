"""Bayesian linear regression with conjugate priors: the posterior and the evidence are known exactly.

    y ~ Normal(b + x w, sigma),  w_j ~ Normal(0, prior_sd sigma),  b ~ Normal(0, prior_sd sigma)
    sigma**2 ~ InverseGamma(shape, rate),  or sigma = noise where that is given (then w_j ~ Normal(0, prior_sd))

Source: Bishop 2006, Pattern Recognition and Machine Learning, section 3.3; Murphy 2012, section 7.6.
"""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.distributions.transforms import PowerTransform

import bnn_pyro as bnn
from bnn_pyro.networks import check_positive

CARD = bnn.Card(
    name="linear",
    task="regression",
    dataset="diabetes",
    reference="Bishop 2006, Pattern Recognition and Machine Learning, section 3.3",
    tags=("conjugate", "exact"),
    inference=("chees", "ensemble", "hmc", "laplace", "map", "mc_dropout", "nuts", "svi"),
)


@dataclass(frozen=True)
class Exact:
    """The posterior of (w, b) and of the noise, and the log evidence, for the rows that ``Linear.exact`` was given.

    ``mean`` (d + 1,) and ``covariance`` (d + 1, d + 1) are of w_1, ..., w_d, b. With known noise they are those of a normal
    distribution; otherwise of a Student-t with ``2 shape`` degrees of freedom, and sigma**2 ~ InverseGamma(shape, rate).
    """

    mean: Tensor
    covariance: Tensor
    log_evidence: float
    shape: float | None = None
    rate: float | None = None


@bnn.register(CARD)
@dataclass(frozen=True)
class Linear(bnn.Model):
    """Inputs x (n, d) and targets y (n,), both in standard units.

    Args:
        prior_sd: Prior standard deviation of weights and bias, in units of sigma (of y, where the noise is known).
        noise: Known noise standard deviation, or None to learn it.
        shape, rate: Of the inverse-gamma prior of sigma**2.
    """

    prior_sd: float = 1.0
    noise: float | None = None
    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self):
        check_positive("linear", prior_sd=self.prior_sd, shape=self.shape, rate=self.rate)
        if self.noise is not None:
            check_positive("linear", noise=self.noise)

    def model(self, x, y=None):
        if self.noise is None:
            variance = dist.InverseGamma(torch.tensor(float(self.shape)), torch.tensor(float(self.rate)))
            sigma = pyro.sample("sigma", dist.TransformedDistribution(variance, [PowerTransform(torch.tensor(0.5))]))
            scale = self.prior_sd * sigma
        else:
            sigma = torch.tensor(float(self.noise))
            scale = torch.tensor(float(self.prior_sd))
        w = pyro.sample("w", dist.Normal(0.0, scale).expand([x.shape[-1]]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, scale))
        f = pyro.deterministic("f", x @ w + b, event_dim=1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(f, sigma), obs=y)

    def guide(self):
        """Full-rank normal: exact where the noise is known."""
        return AutoMultivariateNormal(self.model, init_scale=0.05)

    def dims(self):
        return {"w": ("feature",)}

    def exact(self, x: Tensor, y: Tensor) -> Exact:
        """The posterior and evidence given x (n, d) and y (n,), in the units that ``model`` sees, as float64.

        With Z = (x, 1), prior precision P0 = I / prior_sd**2: precision P = P0 + Z'Z, mean m = P^-1 Z'y.
        """
        x, y = x.double(), y.double()
        n = x.shape[0]
        z = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], 1)
        prior = torch.eye(z.shape[1], dtype=x.dtype) / self.prior_sd**2
        if self.noise is not None:
            precision = prior + z.T @ z / self.noise**2
            mean = torch.linalg.solve(precision, z.T @ y) / self.noise**2
            misfit = (y @ y) / self.noise**2 - mean @ precision @ mean
            log_evidence = 0.5 * (
                torch.logdet(prior) - torch.logdet(precision) - n * math.log(2 * math.pi * self.noise**2) - misfit
            )
            return Exact(mean, torch.linalg.inv(precision), float(log_evidence))
        precision = prior + z.T @ z
        mean = torch.linalg.solve(precision, z.T @ y)
        shape = self.shape + n / 2
        rate = self.rate + 0.5 * float(y @ y - mean @ precision @ mean)
        log_evidence = (
            0.5 * float(torch.logdet(prior) - torch.logdet(precision))
            - 0.5 * n * math.log(2 * math.pi)
            + self.shape * math.log(self.rate)
            - shape * math.log(rate)
            + math.lgamma(shape)
            - math.lgamma(self.shape)
        )
        covariance = torch.linalg.inv(precision) * rate / (shape - 1)
        return Exact(mean, covariance, log_evidence, shape, rate)
