"""What NUTS, HMC and ChEES-HMC share: settings, and what a run hands to whoever keeps its draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from bnn_pyro.inference.method import Method

if TYPE_CHECKING:  # settings are read, and refused, before torch is loaded
    from torch import Tensor

INITS = ("prior", "map", "ensemble", "uniform")


class Adaptation(NamedTuple):
    """What warmup learns, float64.

    Attributes:
        step_size: (chains,), or (1,) for all.
        inverse_mass_matrix: (dim,) or (dim, dim).
        trajectory_length: () of HMC and ChEES: step size times steps, in units where the posterior has unit spread.
        position: (k, dim) unconstrained, from which chains 0 ... k - 1 go on; others begin as ``init`` says. None for none.
    """

    step_size: Tensor
    inverse_mass_matrix: Tensor
    trajectory_length: Tensor | None = None
    position: Tensor | None = None


class Recorder(Protocol):
    """Takes transitions as they end, in any order of chains."""

    def record(self, rows: Tensor, transition: Tensor, position: Tensor, info: NamedTuple) -> None:
        """Chains ``rows`` (k,) have made transition number ``transition`` (k,) to ``position`` (k, dim).

        A chain may come more than once, in order of time.
        """

    def should_stop(self) -> bool:
        """Whether the run is to end where it stands."""


@dataclass(frozen=True)
class MCMC(Method):
    """Settings of samplers that leave the posterior invariant; see each for the defaults and what else it takes."""

    exact: ClassVar[bool] = True

    chains: int = 4
    warmup: int = 500
    draws: int = 500
    thin: int = 1
    target_accept: float = 0.8
    dense_mass: bool = False
    init: str = "prior"
    adaptation: Adaptation | None = None

    def __post_init__(self) -> None:
        for option in ("chains", "draws", "thin"):
            self._require_count(option)
        self._require_count("warmup", least=0)
        rate = self.target_accept
        self._require("target_accept", isinstance(rate, int | float) and 0 < rate < 1, "a rate between 0 and 1")
        self._require("dense_mass", isinstance(self.dense_mass, bool), "True or False")
        self._require("init", self.init in INITS, "'prior', 'map', 'ensemble' or 'uniform'")
        given = self.adaptation
        self._require(
            "adaptation",
            given is None or (isinstance(given, Adaptation) and tuple(given.step_size.shape) in ((1,), (self.chains,))),
            f"the adaptation of a posterior by {self.chains} chains, or one step size for all",
        )

    def settings(self) -> dict[str, Any]:
        """Without the adaptation, which is no plain value: ``state`` of the draws has the one that was sampled with."""
        return {k: v for k, v in super().settings().items() if k != "adaptation"}

    @property
    def transitions(self) -> int:
        """Of each chain, warmup and dropped ones included."""
        return self.warmup + self.draws * self.thin
