"""The ELBO's two terms as a fit goes on: kept, shown on the bar, and refused once they are not finite."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from bnn_pyro.errors import ModelError

SHOW_EVERY = 0.2  # seconds
SHOWN = 100  # steps that the bar's figures are means of


class ElboRecord:
    """``add`` takes the terms of the next steps, ``count`` says of how many; ``history`` gives all of them, by name.

    Args:
        where: The program's and the method's name, for the error.
        lr: The learning rate, likewise.
        what: What the difference of the terms is, likewise.
    """

    def __init__(self, where: str, steps: int, lr: float, desc: str, progress: bool, what: str = "ELBO"):
        self._where, self._lr, self._what = where, lr, what
        self._terms = np.empty((steps, 2))  # log likelihood, KL
        self.count, self._shown = 0, time.monotonic()
        self._bar: Any = tqdm(total=steps, desc=desc, disable=None if progress else True, unit="step")

    def add(self, terms: np.ndarray) -> None:
        """Terms (k, 2) of the next k steps. Raises: ModelError for the first that is not finite."""
        start, self.count = self.count, self.count + len(terms)
        self._terms[start : self.count] = terms
        elbo = terms[:, 0] - terms[:, 1]
        if not np.isfinite(elbo).all():
            bad = int(np.flatnonzero(~np.isfinite(elbo))[0])
            raise ModelError(
                f"{self._where}: expected a finite {self._what}, got {elbo[bad]} at step {start + bad + 1}. "
                f"Lower lr (now {self._lr}), or standardise the data."
            )
        self._bar.update(len(terms))
        if time.monotonic() - self._shown > SHOW_EVERY:
            self._shown = time.monotonic()
            log_likelihood, kl = self._terms[max(0, self.count - SHOWN) : self.count].mean(0)
            self._bar.set_postfix(ELBO=f"{log_likelihood - kl:.1f}", loglik=f"{log_likelihood:.1f}", KL=f"{kl:.1f}")

    def elbo(self, steps: int) -> np.ndarray:
        """The ELBO of the last ``steps`` steps, fewer if there are not so many."""
        terms = self._terms[max(0, self.count - steps) : self.count]
        return terms[:, 0] - terms[:, 1]

    def history(self) -> dict[str, np.ndarray]:
        """Traces over steps for ``Draws.history``."""
        log_likelihood, kl = self._terms[: self.count].T
        return {"elbo": log_likelihood - kl, "expected_log_likelihood": log_likelihood.copy(), "kl": kl.copy()}

    def close(self) -> None:
        self._bar.close()
