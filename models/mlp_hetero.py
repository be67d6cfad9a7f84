"""A multilayer perceptron that gives each input its own noise: one output is the mean, the other the log-scale.

    (f(x), s(x)) = network(x),  W_l = prior_sd * w_l / sqrt(fan_in),  w_l ~ Normal(0, 1),  b_l ~ Normal(0, 1)
    y ~ Normal(f(x), exp(s(x)))

Hard because: where few rows lie, a small noise at the right place explains them too well; maximum likelihood over-fits
the noise, and a chain that starts there stays long.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal

import bnn_pyro as bnn
from bnn_pyro import networks

LOG_SCALE = 10.0  # |s| is cut off there: exp(-10) of y's spread is noise too small to see, and exp overflows near 88

CARD = bnn.Card(
    name="mlp_hetero",
    task="regression",
    dataset="engel",
    reference="Nix & Weigend 1994, Estimating the mean and variance of the target probability distribution",
    tags=("heteroscedastic",),
    inference=("chees", "ensemble", "hmc", "laplace", "map", "mc_dropout", "nuts", "svi"),
    published=[
        bnn.Published(inference="nuts", dataset="airfoil", metric="test_rmse", value=0.1215, stdev=0.0042,
                      splits="train_test_split(test_size=0.2, random_state=42), 5 seeds; y in standard units; hidden "
                      "16,16,16,16, prior Normal(0, 1), members of an ensemble sampled by MCLMC",
                      source="scikit-learn-contrib/bde, paper/paper.md"),
    ],
)  # fmt: skip


@bnn.register(CARD)
@dataclass(frozen=True)
class MLPHetero(bnn.Model):
    """Inputs x (n, d) and targets y (n,), both in standard units.

    Args:
        hidden: Units of each hidden layer; () is a linear mean and a linear log-scale.
        activation: ``"relu"`` or ``"tanh"``. NUTS takes longer steps where the density is smooth, as under tanh.
        prior_sd: Prior standard deviation of a weight times the root of its fan-in.
    """

    hidden: tuple[int, ...] = (16, 16)
    activation: str = "relu"
    prior_sd: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "hidden", networks.as_layers(self.hidden))
        networks.check_layers("mlp_hetero", self.hidden, self.activation, fewest=0)
        networks.check_positive("mlp_hetero", prior_sd=self.prior_sd)

    def model(self, x, y=None):
        layers = networks.sample_layers((x.shape[-1], *self.hidden, 2), self.prior_sd)
        output = networks.mlp(x, layers, self.activation)  # (n, 2)
        f = pyro.deterministic("f", output[..., 0], event_dim=1)
        noise = pyro.deterministic("noise", output[..., 1].clamp(-LOG_SCALE, LOG_SCALE).exp(), event_dim=1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(f, noise), obs=y)

    def guide(self):
        """Mean-field normal: understates weight variance; a quick first look."""
        return AutoNormal(self.model, init_loc_fn=bnn.init_to_prior, init_scale=0.01)

    def dims(self):
        return networks.layer_dims(self.hidden)
