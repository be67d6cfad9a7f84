"""Whether chains agree in function space, looked at while they run: for the progress bar, and for it only."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from torch import Tensor

from bnn_pyro.function_space import function_space
from bnn_pyro.target import Target
from bnn_pyro.units import Units

FIRST = 5.0  # seconds until the first look
SHARE = 0.01  # of the time that looking may take
DRAWS = 100  # of each chain that are looked at
FEWEST = 10


class Watch:
    """Called with the draws so far, gives R-hat and ESS of the function and the log likelihood, now and then."""

    def __init__(self, target: Target):
        self.target = target
        self._due = time.monotonic() + FIRST
        self._last: dict[str, str] = {}

    def __call__(self, kept: int, positions: Callable[[], Tensor]) -> dict[str, str]:
        """The last look, or a new one where it is due: ``positions`` gives (chains, kept, dim)."""
        if kept >= FEWEST and time.monotonic() >= self._due:
            began = time.monotonic()
            z = positions()
            step = max(1, z.shape[1] // DRAWS)
            self._last = self._look(z[:, ::step])
            took = time.monotonic() - began
            self._due = time.monotonic() + max(FIRST, took / SHARE)
        return self._last

    def _look(self, z: Tensor) -> dict[str, str]:
        from bnn_pyro import results  # ArviZ takes seconds to load

        found = function_space(self.target, Units({}, None), z)
        watched = {k: v for k, v in found.items() if k in ("f", "log_likelihood")}
        group = results.dataset(results.build({"posterior": watched}), "posterior")
        r_hat = max(float(np.max(v)) for v in results.r_hat(group).values())
        ess = min(float(np.min(v)) for v in results.ess(group).values())
        return {"r_hat": f"{r_hat:.2f}", "ess": f"{ess:.0f}"}
