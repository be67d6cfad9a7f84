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
        clip_norm: Gradients are clipped to this norm, by parameter.
        draws: Draws kept from the fitted guide.
    """

    name: ClassVar[str] = "svi"

    guide: str | Callable[..., Any] | None = None
    steps: int = 4000
    lr: float | None = None
    lr_decay: float = 0.05
    particles: int = 1
    clip_norm: float = 10.0
    draws: int = 1000

    def __post_init__(self) -> None:
        if isinstance(self.guide, str) and self.guide not in GUIDES:
            raise unknown("guide", self.guide, GUIDES)
        self._require("guide", self.guide is None or isinstance(self.guide, str) or callable(self.guide),
                      "a name, an autoguide class or a Pyro program")  # fmt: skip
        for option in ("steps", "particles", "draws"):
            self._require_count(option)
        for option in ("lr", "lr_decay", "clip_norm")[self.lr is None :]:
            self._require_positive(option)


@dataclass(frozen=True)
class MAP(Method):
    """The mode of the posterior density of the constrained values, by Adam: a point, no uncertainty about weights.

    Under a Normal(0, sd) prior it is weight decay with factor 1 / sd**2.

    Args:
        steps, lr, lr_decay, clip_norm: As for ``SVI``, with a fixed default of lr.
        draws: Copies of the point that stand in ``posterior``, so that each ArviZ call works; they carry no spread.
    """

    name: ClassVar[str] = "map"

    steps: int = 2000
    lr: float = 0.02
    lr_decay: float = 0.05
    clip_norm: float = 10.0
    draws: int = 100

    def __post_init__(self) -> None:
        for option in ("steps", "draws"):
            self._require_count(option)
        for option in ("lr", "lr_decay", "clip_norm"):
            self._require_positive(option)
