"""The no-U-turn sampler: settings.

Source: Hoffman & Gelman 2014, JMLR 15; multinomial weights and the generalised U-turn criterion of Betancourt 2017,
arXiv:1701.02434.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_pyro.inference.method import Method


@dataclass(frozen=True)
class NUTS(Method):
    """NUTS with a windowed warmup: dual averaging of the step size and an adapted mass matrix, both fixed afterwards.

    Args:
        chains: Independent chains; four or more let R-hat say something.
        warmup: Adapting iterations a chain, dropped.
        draws: Kept iterations a chain.
        target_accept: Acceptance rate that the step size is adapted to; raise it when draws diverge.
        max_tree_depth: A trajectory has at most 2**max_tree_depth - 1 leapfrog steps.
        dense_mass: Adapt a (dim, dim) mass matrix instead of a diagonal one.
        init: ``"prior"`` starts each chain at its own draw of the prior, ``"map"`` at a mode found from there,
            ``"uniform"`` at Uniform(-2, 2) in unconstrained space.
    """

    name: ClassVar[str] = "nuts"
    exact: ClassVar[bool] = True

    chains: int = 4
    warmup: int = 500
    draws: int = 500
    target_accept: float = 0.8
    max_tree_depth: int = 10
    dense_mass: bool = False
    init: str = "prior"

    def __post_init__(self) -> None:
        for option in ("chains", "draws"):
            self._require_count(option)
        self._require_count("warmup", least=0)
        self._require_count("max_tree_depth")
        rate = self.target_accept
        self._require("target_accept", isinstance(rate, int | float) and 0 < rate < 1, "a rate between 0 and 1")
        self._require("dense_mass", isinstance(self.dense_mass, bool), "True or False")
        self._require("init", self.init in ("prior", "map", "uniform"), "'prior', 'map' or 'uniform'")
