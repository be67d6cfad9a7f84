"""What an inference method hands back: draws of the flat vector, and what happened on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass
class Draws:
    """Draws and their record.

    Attributes:
        z: Unconstrained draws, (chain, draw, dim), on the CPU.
        stats: ``sample_stats`` by ArviZ's names, each (chain, draw).
        history: Traces over optimiser steps, each (steps,): ``elbo``, ``expected_log_likelihood``, ``kl``.
        state: Tensors that describe the fit: guide parameters, step sizes, mass matrices.
        params: Values of ``pyro.param`` statements of the program after the fit, constrained.
        info: Facts for ``attrs``, such as gradient evaluations.
        complete: False if the run was stopped before it had all draws.
    """

    z: Tensor
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    history: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    params: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
