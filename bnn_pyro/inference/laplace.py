"""The Laplace approximation: settings.

    q(z) = Normal(m, H^-1),  m a mode of log p(z, y),  H its curvature there
    log p(y) ~ log p(m, y) + dim/2 log 2 pi - 1/2 log det H

Source: MacKay 1992, Neural Computation 4(3); Daxberger et al. 2021, arXiv:2106.14806.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_pyro.errors import unknown
from bnn_pyro.inference.method import Method

STRUCTURES = ("auto", "full", "kronecker", "diagonal", "last_layer")
CURVATURES = ("ggn", "exact")
PREDICTIVES = ("linearized", "weights")
SCALES = ("marginal", "joint")


@dataclass(frozen=True)
class Laplace(Method):
    """A normal density at a mode of the unconstrained density, as wide as the curvature there says.

    Args:
        structure: Which entries of the curvature are kept. ``"full"``: all, 24 dim**2 bytes. ``"kronecker"``: a product of two
            matrices for each layer, and all of the numbers that are in no layer. ``"diagonal"``: dim numbers.
            ``"last_layer"``: all of the last layer and of the numbers that are in no layer; other weights stay at the mode.
            Scales, prior sds and the log evidence are found with all weights integrated out, others by Kronecker's products.
            ``"auto"``: full up to 2,000 latent numbers, else Kronecker where layers are found, else diagonal.
        curvature: ``"ggn"``: the generalised Gauss-Newton matrix of the likelihood, positive definite anywhere; ``"exact"``:
            the Hessian, for structures full, diagonal and last layer.
        predictive: ``"linearized"``: predictions, scores and log likelihoods of the network made linear in its weights around
            the mode; ``"weights"``: of the network itself at draws of the weights, which under-fits where the density is wide.
        scales: What is done with sites that are in no layer, such as a noise or a prior's scale, where there are layers and
            those are 20 numbers at most. ``"marginal"``: they go to the maximum of their own density, weights integrated out by
            the same approximation. ``"joint"``: to the mode of all, which a network large enough does not have, as it can go
            through every row and the noise to 0.
        tune_prior: Scale the sds of Normal priors, one factor for each site, so that the log evidence is highest. Else they
            are as the program states them.
        tolerance: Nats that the log density may still rise by at what is called a mode.
        rounds: At most so many times the optimiser of the weights starts anew, and scales are moved.
        draws: Draws kept.
    """

    name: ClassVar[str] = "laplace"
    dtype: ClassVar[str] = "float64"

    structure: str = "auto"
    curvature: str = "ggn"
    predictive: str = "linearized"
    scales: str = "marginal"
    tune_prior: bool = False
    tolerance: float = 1e-2
    rounds: int = 50
    draws: int = 1000

    def __post_init__(self) -> None:
        known_by_option = {
            "structure": STRUCTURES, "curvature": CURVATURES, "predictive": PREDICTIVES, "scales": SCALES,
        }  # fmt: skip
        for option, known in known_by_option.items():
            if getattr(self, option) not in known:
                raise unknown(option, getattr(self, option), known)
        self._require("tune_prior", isinstance(self.tune_prior, bool), "True or False")
        self._require_positive("tolerance")
        for option in ("rounds", "draws"):
            self._require_count(option)
        if self.curvature == "exact":
            self._require(
                "structure", self.structure != "kronecker", "'full', 'diagonal' or 'last_layer' beside 'exact'"
            )
