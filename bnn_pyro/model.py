"""A Bayesian neural network as a value: a Pyro program, a guide, and what may be said of its sites."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch.distributions import Distribution

from bnn_pyro.card import Card
from bnn_pyro.likelihoods import split


class Model:
    """Base of the zoo's models. A subclass is a frozen dataclass of hyper-parameters with ``model`` and ``guide``."""

    card: ClassVar[Card | None] = None

    @property
    def name(self) -> str:
        return self.card.name if self.card else type(self).__name__

    @property
    def standardize(self) -> bool:
        """Whether ``fit`` puts real-valued inputs (and the targets of a regression) into standard units by default."""
        return self.card is not None

    @property
    def task(self) -> str | None:
        """``"regression"``, ``"classification"`` (y are labels), or None where the program alone knows."""
        return self.card.task if self.card else None

    @property
    def class_count(self) -> int | None:
        """How many classes the labels have to have; None for any number, which ``for_data`` learns."""
        return getattr(self, "classes", None)

    @property
    def real_targets(self) -> bool:
        """Whether y is a real number with units, so that it may be standardised."""
        return self.task == "regression"

    def for_data(self, data: Any) -> Model:
        """This model with what it takes from the training rows, such as the number of classes; called by ``fit``."""
        return self

    def model(self, x: Any, y: Any = None) -> Any:
        """The Pyro program."""
        raise TypeError(f"{type(self).__name__} has no Pyro program: define model(self, x, y=None).")

    def guide(self) -> Any:
        """A fresh guide for ``inference="svi"``, or None for a mean-field normal."""
        return None

    def move(self, device: torch.device) -> None:
        """Puts what the program holds on a device; only ever called on what ``fresh`` gave."""

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Names for the axes of each latent site, as ArviZ shows them; sites may be left out."""
        return {}

    def fresh(self) -> Model:
        """This model without anything that a fit has changed in it; ``fit`` works on such a copy."""
        return self

    def fit(self, x: Any, y: Any = None, **settings: Any) -> Any:
        """Fits this model; ``bnn_pyro.fit`` explains the settings."""
        from bnn_pyro.fitting import fit

        return fit(self, x, y, **settings)


class BNN(Model):
    """A user's own Pyro program ``model(x, y=None)``, wrapped for reuse.

    Args:
        model: A Pyro program, or a PyroModule; its observed sites stand inside ``pyro.plate("data", x.shape[0])``.
        guide: A guide written by hand, an autoguide class, or an autoguide's name; None for a mean-field normal.
        dims: Names for the axes of latent sites, by site.
        name: What errors, plots and results call it.
        standardize: Whether ``fit`` puts x and y into standard units; integers and booleans keep theirs.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Any = None,
        *,
        dims: Mapping[str, tuple[str, ...]] | None = None,
        name: str | None = None,
        standardize: bool = False,
    ):
        self._program, self._guide, self._dims = model, guide, dict(dims or {})
        self._name = str(name or getattr(model, "__name__", type(model).__name__))
        self._standardize = standardize

    @property
    def name(self) -> str:
        return self._name

    @property
    def standardize(self) -> bool:
        return self._standardize

    @property
    def real_targets(self) -> bool:
        return True

    def model(self, x: Any, y: Any = None) -> Any:
        return self._program(x, y)

    def guide(self) -> Any:
        return self._guide

    def fresh(self) -> BNN:
        """A copy whose program, where it is a module, shares no parameters with the one that was given."""
        if not isinstance(self._program, torch.nn.Module):
            return self
        other = copy.copy(self)
        other._program = copy.deepcopy(self._program)
        return other

    def move(self, device: torch.device) -> None:
        if not isinstance(self._program, torch.nn.Module):
            return
        self._program.to(device)
        for module in self._program.modules():  # which leaves priors where they are
            priors = vars(module).get("_pyro_samples", {})
            for name, prior in priors.items():
                if isinstance(prior, Distribution):
                    tensors, make = split(prior)
                    priors[name] = make([t.to(device) for t in tensors])

    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return self._dims
