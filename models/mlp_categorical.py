"""A multilayer perceptron with a softmax: a class for each row.

    f(x) = network(x),  W_l = prior_sd * w_l / sqrt(fan_in),  w_l ~ Normal(0, 1),  b_l ~ Normal(0, 1)
    y ~ Categorical(softmax(f(x)))

Hard because: units can be permuted, and the same constant added to all logits changes nothing, so R-hat of weights may
stay high while that of the class probabilities does not.
"""

from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal

import bnn_pyro as bnn
from bnn_pyro import networks

CARD = bnn.Card(
    name="mlp_categorical",
    task="classification",
    dataset="digits",
    reference="Neal 1996, Bayesian Learning for Neural Networks",
    tags=("softmax",),
    inference=("chees", "ensemble", "hmc", "laplace", "map", "mc_dropout", "nuts", "svi"),
)


@bnn.register(CARD)
@dataclass(frozen=True)
class MLPCategorical(bnn.Model):
    """Inputs x (n, d) in standard units; labels y (n,) of two or more classes.

    Args:
        hidden: Units of each hidden layer; () is multinomial logistic regression.
        activation: ``"relu"`` or ``"tanh"``. NUTS takes longer steps where the density is smooth, as under tanh.
        prior_sd: Prior standard deviation of a weight times the root of its fan-in. 2 rather than 1, since standard
            weights keep logits within a few units, so that no class could be nearly certain; the ELBO, which
            bnn-pyro fit mlp_categorical --inference svi --set prior_sd=1 prints, prefers 2 too.
        classes: Number of classes; None for as many as the labels have.
    """

    hidden: tuple[int, ...] = (50,)
    activation: str = "relu"
    prior_sd: float = 2.0
    classes: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "hidden", networks.as_layers(self.hidden))
        networks.check_layers("mlp_categorical", self.hidden, self.activation, fewest=0)
        networks.check_positive("mlp_categorical", prior_sd=self.prior_sd)
        whole = isinstance(self.classes, int) and not isinstance(self.classes, bool)
        if self.classes is not None and not (whole and self.classes >= 2):
            raise bnn.OptionError(
                f"mlp_categorical, classes: expected a whole number of at least 2, or None, got {self.classes!r}."
            )

    def for_data(self, data):
        return replace(self, classes=len(data.classes))

    def model(self, x, y=None):
        if self.classes is None:
            raise bnn.ModelError(
                "mlp_categorical, classes: expected a number, got None. fit takes it from the labels; elsewhere write "
                "bnn.get_model('mlp_categorical', classes=3)."
            )
        layers = networks.sample_layers((x.shape[-1], *self.hidden, self.classes), self.prior_sd)
        f = pyro.deterministic("f", networks.mlp(x, layers, self.activation), event_dim=2)  # (n, classes) logits
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Categorical(logits=f), obs=y)

    def guide(self):
        """Mean-field normal: understates weight variance; a quick first look."""
        return AutoNormal(self.model, init_loc_fn=bnn.init_to_prior, init_scale=0.01)

    def dims(self):
        return networks.layer_dims(self.hidden, output="class")
