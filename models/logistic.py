"""Bayesian logistic regression with independent normal priors.

    y ~ Bernoulli(1 / (1 + exp(-(b + x w)))),  w_j ~ Normal(0, prior_sd),  b ~ Normal(0, prior_sd)

Hard because: no closed form; the posterior is skewed where classes nearly separate, so its mode is not its mean.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoMultivariateNormal

import bnn_pyro as bnn
from bnn_pyro.networks import check_positive

CARD = bnn.Card(
    name="logistic",
    task="classification",
    dataset="breast_cancer",
    reference="Gelman et al. 2008, A weakly informative default prior distribution for logistic regression",
    tags=("two classes", "log-concave"),
    inference=("chees", "ensemble", "hmc", "laplace", "map", "mc_dropout", "nuts", "svi"),
)


@bnn.register(CARD)
@dataclass(frozen=True)
class Logistic(bnn.Model):
    """Inputs x (n, d) in standard units; labels y (n,) of two classes. The second class, in sorted order, is y = 1.

    Args:
        prior_sd: Prior standard deviation of weights and intercept, in log odds for a standard unit of x.
    """

    prior_sd: float = 1.0

    def __post_init__(self):
        check_positive("logistic", prior_sd=self.prior_sd)

    @property
    def class_count(self):
        return 2

    def model(self, x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, self.prior_sd).expand([x.shape[-1]]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, self.prior_sd))
        f = pyro.deterministic("f", x @ w + b, event_dim=1)  # (n,) log odds
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Bernoulli(logits=f), obs=y)

    def guide(self):
        """Full-rank normal: right but for the posterior's skew."""
        return AutoMultivariateNormal(self.model, init_scale=0.05)

    def dims(self):
        return {"w": ("feature",)}
