"""Inference methods as values: ``NUTS(chains=4)``, ``SVI(guide="lowrank")``, ``MAP()``; a name is the same value."""

from __future__ import annotations

from dataclasses import fields

from bnn_pyro.errors import OptionError, unknown
from bnn_pyro.inference.dropout import MCDropout
from bnn_pyro.inference.ensemble import Ensemble
from bnn_pyro.inference.hmc import HMC, ChEES
from bnn_pyro.inference.laplace import Laplace
from bnn_pyro.inference.mcmc import MCMC, Adaptation
from bnn_pyro.inference.method import Method
from bnn_pyro.inference.nuts import NUTS
from bnn_pyro.inference.prior import Prior
from bnn_pyro.inference.svi import MAP, SVI

METHODS: dict[str, type[Method]] = {
    "chees": ChEES,
    "ensemble": Ensemble,
    "hmc": HMC,
    "laplace": Laplace,
    "map": MAP,
    "mc_dropout": MCDropout,
    "nuts": NUTS,
    "prior": Prior,
    "svi": SVI,
}

__all__ = [
    "HMC",
    "MAP",
    "MCMC",
    "METHODS",
    "NUTS",
    "SVI",
    "Adaptation",
    "ChEES",
    "Ensemble",
    "Laplace",
    "MCDropout",
    "Method",
    "Prior",
    "list_inference",
    "make_method",
]


def list_inference() -> list[str]:
    """Names that ``inference=`` takes."""
    return sorted(METHODS)


def make_method(inference: str | Method, options: dict, also: tuple[str, ...] = ()) -> Method:
    """The method that ``inference`` and its options name; ``also`` are names that a misspelt option may have meant.

    Raises: UnknownNameError for a misspelt method or option, with the nearest right one; OptionError for options beside
        a value, which carries its own.
    """
    if isinstance(inference, Method):
        if options:
            names = ", ".join(sorted(options))
            raise OptionError(
                f"inference={inference.name}: expected options inside the value, got {names} beside it. "
                f"Write {type(inference).__name__}({names.split(',')[0]}=...)."
            )
        return inference
    if not isinstance(inference, str) or inference not in METHODS:
        raise unknown("inference", inference, METHODS, "bnn.list_inference() shows all.")
    kind = METHODS[inference]
    known = [f.name for f in fields(kind)]
    for option in options:
        if option not in known:
            raise unknown(
                f"option of {inference}", option, [*known, *also], f"help(bnn.{kind.__name__}) explains each."
            )
    return kind(**options)
