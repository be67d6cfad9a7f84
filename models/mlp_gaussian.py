"""A multilayer perceptron with Gaussian noise whose weights share one unknown scale.

    W_l = scale * w_l / sqrt(fan_in),  w_l ~ Normal(0, 1),  b_l ~ Normal(0, 1),  scale ~ HalfCauchy(1)
    y ~ Normal(f(x), sigma),  sigma ~ HalfNormal(1)

Hard because: units can be permuted and rescaled, so R-hat of the raw weights may stay high while R-hat of f does not.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

import bnn_pyro as bnn

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}

CARD = bnn.Card(
    name="mlp_gaussian",
    task="regression",
    dataset="diabetes",
    reference="Neal 1996, Bayesian Learning for Neural Networks",
    tags=("hierarchical",),
    inference=("map", "nuts", "svi"),
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
        given = isinstance(self.hidden, tuple | list) and bool(self.hidden)
        if not given or not all(isinstance(h, int) and h > 0 for h in self.hidden):
            raise bnn.OptionError(
                f"mlp_gaussian, hidden: expected a tuple of whole numbers above 0, got "
                f"{self.hidden!r}. One layer of 50 units is (50,)."
            )
        if self.activation not in ACTIVATIONS:
            raise bnn.OptionError(f"mlp_gaussian, activation: expected 'relu' or 'tanh', got {self.activation!r}.")

    def model(self, x, y=None):
        f = pyro.deterministic("f", self.network(x, self.weights(x.shape[-1])), event_dim=1)
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(f, sigma), obs=y)

    def weights(self, d):
        """Draws the latent sites; one (fan_in, fan_out) matrix and one (fan_out,) bias for each layer."""
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        sizes = (d, *self.hidden, 1)
        return [
            (
                scale * pyro.sample(f"w{i}", dist.Normal(0.0, 1.0).expand([a, b]).to_event(2)) / a**0.5,
                pyro.sample(f"b{i}", dist.Normal(0.0, 1.0).expand([b]).to_event(1)),
            )
            for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False), 1)
        ]

    def network(self, x, weights):
        *inner, (w, b) = weights
        for w_i, b_i in inner:
            x = ACTIVATIONS[self.activation](x @ w_i + b_i)  # (n, fan_in) -> (n, fan_out)
        return (x @ w + b).squeeze(-1)  # (n,)

    def guide(self):
        """Mean-field normal: understates weight variance; a quick first look."""
        return AutoNormal(self.model, init_loc_fn=bnn.init_to_prior, init_scale=0.01)

    def dims(self):
        layers = ("feature", *(f"hidden_{i}" for i in range(1, len(self.hidden) + 1)), "output")
        pairs = enumerate(zip(layers, layers[1:], strict=False), 1)
        return {k: v for i, (a, b) in pairs for k, v in ((f"w{i}", (a, b)), (f"b{i}", (b,)))}
