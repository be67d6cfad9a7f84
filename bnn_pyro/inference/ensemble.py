"""Deep ensembles: settings.

    member m:  maximise  sum_i w_mi log p(y_mi | theta, x_i) + log p(theta - a_m)   from a draw of the prior

Source: Lakshminarayanan, Pritzel & Blundell 2017, arXiv:1612.01474; anchors: Pearce, Leibfried & Brintrup 2020,
arXiv:1810.05546.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_pyro.inference.method import Method


@dataclass(frozen=True)
class Ensemble(Method):
    """Modes of the posterior that Adam finds from draws of the prior, all trained together; each is a chain in ArviZ.

    Members differ by where they start, by the order of their rows where ``batch_size`` is given, and by ``bootstrap`` and
    ``anchored``. Their spread is epistemic uncertainty, though in general not the posterior's.

    Args:
        members: Networks.
        steps: Gradient steps of each.
        lr: Learning rate of Adam at the first step; it falls exponentially to ``lr * lr_decay`` at the last.
        lr_decay: Learning rate at the last step, relative to the first.
        clip_norm: Bound of each entry of the gradient; for mini-batches so many times it as their log likelihood is scaled up.
        batch_size: Rows a step, each member's in an order of its own, whose log likelihood is scaled up; None for all.
        bootstrap: Train each member on rows drawn with replacement (w_mi: how often row i was drawn).
        anchored: Move each Normal prior to a draw a_m of it, and add noise of the likelihood's sd to the targets of a Normal
            likelihood. On a linear model of known noise the members are then draws of the exact posterior. Where the sd is
            latent, that at a mode found beforehand is taken, and members learn it from the targets as they are.
        draws: Copies of each member that stand in ``posterior``, so that each ArviZ call works.
    """

    name: ClassVar[str] = "ensemble"

    members: int = 5
    steps: int = 2000
    lr: float = 0.02
    lr_decay: float = 0.05
    clip_norm: float = 10.0
    batch_size: int | None = None
    bootstrap: bool = False
    anchored: bool = False
    draws: int = 20

    def __post_init__(self) -> None:
        for option in ("members", "steps", "draws", *(["batch_size"] if self.batch_size is not None else [])):
            self._require_count(option)
        for option in ("lr", "lr_decay", "clip_norm"):
            self._require_positive(option)
        for option in ("bootstrap", "anchored"):
            self._require(option, isinstance(getattr(self, option), bool), "True or False")
