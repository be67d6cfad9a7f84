"""A multilayer perceptron with Gaussian noise whose weights share one unknown scale.

    W_l = scale * w_l / sqrt(fan_in),  w_l ~ Normal(0, 1),  b_l ~ Normal(0, 1),  scale ~ HalfCauchy(1)
    y ~ Normal(f(x), sigma),  sigma ~ HalfNormal(1)

Hard because: units can be permuted and rescaled, so R-hat of the raw weights may stay high while R-hat of f does not.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal

import bnn_pyro as bnn
from bnn_pyro import networks

CARD = bnn.Card(
    name="mlp_gaussian",
    task="regression",
    dataset="diabetes",
    reference="Neal 1996, Bayesian Learning for Neural Networks",
    tags=("hierarchical",),
    inference=("chees", "ensemble", "hmc", "laplace", "map", "mc_dropout", "nuts", "svi"),
    published=[
        bnn.Published(inference="svi", dataset="uci/wine", metric="test_lpd", value=-0.970, stdev=0.061,
                      splits="20 fixed 90/10", source="hjljhl/BNN, README"),
        bnn.Published(inference="svi", dataset="uci/concrete", metric="test_lpd", value=-3.285, stdev=0.184,
                      splits="20 fixed 90/10", source="hjljhl/BNN, README"),
    ],
)  # fmt: skip


@bnn.register(CARD)
@dataclass(frozen=True)
class MLPGaussian(bnn.Model):
    """Inputs x (n, d) and targets y (n,), both in standard units.

    Args:
        hidden: Units of each hidden layer.
        activation: ``"relu"`` or ``"tanh"``. NUTS takes longer steps where the density is smooth, as under tanh.
    """

    hidden: tuple[int, ...] = (50,)
    activation: str = "relu"

    def __post_init__(self):
        object.__setattr__(self, "hidden", networks.as_layers(self.hidden))
        networks.check_layers("mlp_gaussian", self.hidden, self.activation)

    def model(self, x, y=None):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        layers = networks.sample_layers((x.shape[-1], *self.hidden, 1), scale)
        f = pyro.deterministic("f", networks.mlp(x, layers, self.activation).squeeze(-1), event_dim=1)  # (n,)
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(f, sigma), obs=y)

    def guide(self):
        """Mean-field normal: understates weight variance; a quick first look."""
        return AutoNormal(self.model, init_loc_fn=bnn.init_to_prior, init_scale=0.01)

    def dims(self):
        return networks.layer_dims(self.hidden)
