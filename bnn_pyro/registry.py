"""The zoo by name. A model is one file under ``models/``, imported as ``bnn_pyro.zoo.<name>`` when it is asked for."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from bnn_pyro.card import Card
from bnn_pyro.errors import ModelError, unknown

ENTRY_POINTS = "bnn_pyro.models"
_REGISTERED: dict[str, type] = {}


def register(card: Card) -> Callable[[type], type]:
    """Class decorator: makes a zoo model known under its card's name."""

    def decorate(kind: type) -> type:
        kind.card = card  # type: ignore[attr-defined]
        _REGISTERED[card.name] = kind
        return kind

    return decorate


def model_names() -> list[str]:
    """Names of all models, our own and those of installed packages, without importing any."""
    from bnn_pyro import zoo

    own = [m.name for m in pkgutil.iter_modules(zoo.__path__) if not m.name.startswith("_")]
    return sorted({*own, *(e.name for e in entry_points(group=ENTRY_POINTS)), *_REGISTERED})


def check_model_name(name: str) -> None:
    """Imports no model. Raises: UnknownNameError, with the nearest right name."""
    if not isinstance(name, str) or name not in model_names():
        raise unknown("model", name, model_names(), "bnn.list_models() shows all.")


def model_class(name: str) -> Any:
    """The class of the model called ``name``. Raises: UnknownNameError, with the nearest right name."""
    if not isinstance(name, str) or name not in _REGISTERED:
        check_model_name(name)
        outside = {e.name: e for e in entry_points(group=ENTRY_POINTS)}
        if name in outside:
            outside[name].load()
        else:
            import_module(f"bnn_pyro.zoo.{name}")
        if name not in _REGISTERED:
            raise ModelError(
                f"model {name!r}: expected its file to register a card of that name. Use @bnn.register(CARD)."
            )
    return _REGISTERED[name]


def get_model(name: str, **hyperparameters: Any) -> Any:
    """The model called ``name`` with the given hyper-parameters: a value with ``model``, ``guide``, ``card`` and ``fit``.

    Raises: UnknownNameError for a misspelt name or hyper-parameter, with the nearest right one.
    """
    check_hyperparameters(name, hyperparameters)
    return model_class(name)(**hyperparameters)


def check_hyperparameters(name: str, given: Iterable[str]) -> None:
    """Raises: UnknownNameError for a misspelt model, or one of ``given`` that it does not have."""
    known = [f.name for f in fields(model_class(name))]
    for option in given:
        if option not in known:
            raise unknown(f"hyper-parameter of {name}", option, known, f"bnn-pyro show {name} explains each.")


def list_models(task: str | None = None) -> list[str]:
    """Names of the zoo's models, of one task (such as ``"regression"``) if one is given."""
    names = model_names()
    return names if task is None else [n for n in names if model_class(n).card.task == task]
