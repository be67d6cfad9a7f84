"""The no-U-turn sampler: settings.

Source: Hoffman & Gelman 2014, JMLR 15; multinomial weights and the generalised U-turn criterion of Betancourt 2017,
arXiv:1701.02434.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_pyro.inference.mcmc import MCMC

DEEPEST = 20  # tables of a tree's leaves are made beforehand


@dataclass(frozen=True)
class NUTS(MCMC):
    """NUTS with a windowed warmup: dual averaging of the step size and an adapted mass matrix, both fixed afterwards.

    Args:
        chains: Four or more let R-hat say something, and further ones cost less than the first. They share nothing but the
            mass matrix, which warmup learns from all of them.
        warmup: Adapting iterations a chain, dropped.
        draws: Kept iterations a chain.
        thin: Keep every so-many-th iteration after warmup, of which there are ``draws * thin``.
        target_accept: Acceptance rate that the step size is adapted to; raise it when draws diverge.
        max_tree_depth: A trajectory has at most 2**max_tree_depth - 1 leapfrog steps.
        dense_mass: Adapt a (dim, dim) mass matrix instead of a diagonal one. Without a C++ compiler its products round
            differently for other numbers of chains: a chain's draws are then the same to rounding only.
        init: ``"prior"`` starts each chain at its own draw of the prior; ``"map"`` at the mode that Adam finds from there;
            ``"ensemble"`` at a member of a deep ensemble: the same but with a tenth of the rows held out, stopped where
            these are most likely; ``"uniform"`` at Uniform(-2, 2) in unconstrained space.
        adaptation: ``earlier.adaptation`` of a posterior of the same model and data, where it begins: chains at the
            earlier ones' last draws, and with ``warmup=0`` what they learnt stays as it is.
    """

    name: ClassVar[str] = "nuts"

    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("max_tree_depth")
        self._require("max_tree_depth", self.max_tree_depth <= DEEPEST, f"at most {DEEPEST}, a million leapfrog steps")
