"""Draws of the prior, as if nothing had been observed: settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_pyro.inference.method import Method


@dataclass(frozen=True)
class Prior(Method):
    """Independent draws of the prior: what the model says before it sees y. Its predictions are the prior predictive.

    Args:
        draws: Draws kept.
    """

    name: ClassVar[str] = "prior"
    exact: ClassVar[bool] = False

    draws: int = 1000

    def __post_init__(self) -> None:
        self._require_count("draws")
