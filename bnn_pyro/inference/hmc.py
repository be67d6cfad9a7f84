"""Hamiltonian Monte Carlo with trajectories of a given or a learnt length: settings.

Sources: Neal 2011, "MCMC using Hamiltonian dynamics"; Hoffman, Radul & Sountsov 2021, AISTATS 130 (ChEES).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_pyro.inference.mcmc import MCMC


@dataclass(frozen=True)
class HMC(MCMC):
    """HMC whose trajectories have the same length in all chains, jittered from one iteration to the next.

    Args:
        trajectory_length: Mean of step size times steps, in units where the posterior has unit spread. A quarter turn of
            a normal distribution's orbit is pi / 2. None for that of ``adaptation``, or a quarter turn.
        max_steps: Leapfrog steps of a trajectory, at most.

    ``chains``, ``warmup``, ``draws``, ``thin``, ``target_accept``, ``dense_mass``, ``init`` and ``adaptation`` are as
    in ``NUTS``; one step size serves all chains.
    """

    name: ClassVar[str] = "hmc"

    trajectory_length: float | None = None
    max_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trajectory_length is not None:
            self._require_positive("trajectory_length")
        self._require_count("max_steps")


@dataclass(frozen=True)
class ChEES(MCMC):
    """HMC over many chains that learns its trajectories' length: the one that changes the distance from the mean most.

    All chains take the same number of steps, which suits batches; the length is learnt from all of them together, so take
    many chains.

    Args:
        max_steps: Leapfrog steps of a trajectory, at most.

    The other settings are as in ``NUTS``; one step size serves all chains, so that one chain far out would slow all of them,
    and chains start where Adam leads them.
    """

    name: ClassVar[str] = "chees"

    chains: int = 16
    draws: int = 250
    target_accept: float = 0.651
    init: str = "map"
    max_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_count("max_steps")
        self._require("chains", self.chains >= 2 or self.warmup == 0, "at least 2, to learn the length from")
        knows = self.adaptation is not None and self.adaptation.trajectory_length is not None
        self._require(
            "warmup", self.warmup > 0 or knows, "at least 1, or the adaptation of a posterior by HMC or ChEES"
        )
