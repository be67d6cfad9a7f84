"""Stochastic variational inference and maximum a posteriori: settings.

    ELBO = E_q[log p(y | x, theta)] - KL(q(theta) || p(theta)),  maximised by Adam over the guide's parameters

Source: Hoffman et al. 2013, JMLR 14; Kingma & Welling 2014, arXiv:1312.6114; Kucukelbir et al. 2017, JMLR 18.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from bnn_pyro.errors import unknown
from bnn_pyro.inference.method import Method

GUIDES = (
    "delta",
    "diagonal",
    "flow",
    "gaussian",
    "hierarchical_normal_messenger",
    "iaf",
    "laplace",
    "lowrank",
    "multivariate",
    "normal",
    "normal_messenger",
    "regressive_messenger",
    "structured",
)


ESTIMATORS = ("weights", "local", "flipout")


@dataclass(frozen=True)
class SVI(Method):
    """Fits a guide by stochastic gradients of the ELBO; the posterior's draws are draws of the guide.

    Args:
        guide: None for the model's own guide (an AutoNormal where it has none), the name of a Pyro autoguide
            (``"normal"``, ``"multivariate"``, ``"lowrank"``, ``"iaf"``, ...), an autoguide class, or a guide written by
            hand: a Pyro program with the model's signature.
        steps: Gradient steps.
        lr: Learning rate of Adam at the first step; it falls exponentially to ``lr * lr_decay`` at the last. None is 0.05
            for a mean-field normal guide, 0.02 for any other: a full-rank guide takes the former's steps badly.
        lr_decay: Learning rate at the last step, relative to the first.
        particles: Draws of the guide a step, averaged.
        clip_norm: Bound of each entry of the gradient, as in Pyro's ClippedAdam, and of the same name; for mini-batches so
            many times it as their log likelihood is scaled up.
        batch_size: Rows a step, drawn anew for each epoch, whose log likelihood is scaled up to that of all; None for all.
        patience: Stop before ``steps`` once the mean ELBO of so many steps is no more than two standard errors above that of
            as many before; None to take all steps. At least 10. Where the ELBO was higher before the
            end, by more than four standard errors, the parameters from there are kept.
        closed_form_kl: For a mean-field normal guide: compute the KL of sites with a Normal prior, where a step else
            estimates it with the draw that it takes for the likelihood.
        estimator: For a mean-field normal guide, how a step's noise meets the rows: ``"weights"``, one draw of the weights for
            all rows; ``"local"``, activations drawn for each row (local reparameterisation); ``"flipout"``, the weights' draw
            with signs of each row's own, for convolutions too. The last two take weights with a fixed Normal prior, whose KL
            they have in closed form.
        draws: Draws kept from the fitted guide.
    """

    name: ClassVar[str] = "svi"

    guide: str | Callable[..., Any] | None = None
    steps: int = 4000
    lr: float | None = None
    lr_decay: float = 0.05
    particles: int = 1
    clip_norm: float = 10.0
    batch_size: int | None = None
    patience: int | None = None
    closed_form_kl: bool = False
    estimator: str = "weights"
    draws: int = 1000

    def __post_init__(self) -> None:
        if isinstance(self.guide, str) and self.guide not in GUIDES:
            raise unknown("guide", self.guide, GUIDES)
        self._require("guide", self.guide is None or isinstance(self.guide, str) or callable(self.guide),
                      "a name, an autoguide class or a Pyro program")  # fmt: skip
        for option in ("steps", "particles", "draws", *_given(self)):
            self._require_count(option, least=10 if option == "patience" else 1)
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)
        self._require("closed_form_kl", isinstance(self.closed_form_kl, bool), "True or False")
        for option in ("lr", "lr_decay", "clip_norm")[self.lr is None :]:
            self._require_positive(option)

    def beyond_pyro(self) -> list[str]:
        """Options, as they are set, that Pyro's own loop lacks."""
        more = {"closed_form_kl": self.closed_form_kl, "estimator": self.estimator != "weights"}
        return [*_given(self), *(option for option, on in more.items() if on)]


@dataclass(frozen=True)
class MAP(Method):
    """The mode of the posterior density of the constrained values, by Adam: a point, no uncertainty about weights.

    Under a Normal(0, sd) prior it is weight decay with factor 1 / sd**2.

    Args:
        steps, lr, lr_decay, clip_norm, batch_size, patience: As for ``SVI``, with a fixed default of lr.
        draws: Copies of the point that stand in ``posterior``, so that each ArviZ call works; they carry no spread.
    """

    name: ClassVar[str] = "map"

    steps: int = 2000
    lr: float = 0.02
    lr_decay: float = 0.05
    clip_norm: float = 10.0
    batch_size: int | None = None
    patience: int | None = None
    draws: int = 100

    def __post_init__(self) -> None:
        for option in ("steps", "draws", *_given(self)):
            self._require_count(option, least=10 if option == "patience" else 1)
        for option in ("lr", "lr_decay", "clip_norm"):
            self._require_positive(option)

    def beyond_pyro(self) -> list[str]:
        """Options, as they are set, that Pyro's own loop lacks."""
        return _given(self)


def _given(method: SVI | MAP) -> list[str]:
    return [option for option in ("batch_size", "patience") if getattr(method, option) is not None]
