"""What ``fit`` is asked for, checked before any work: model, method, engine, dtype, device, flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnn_pyro.devices import device_names, nearest_device
from bnn_pyro.errors import ModelError, OptionError, printable, unknown
from bnn_pyro.inference import MAP, MCMC, NUTS, SVI, Method, Prior, make_method
from bnn_pyro.isolation import isolated
from bnn_pyro.model import BNN, Model
from bnn_pyro.parts import divide
from bnn_pyro.starts import prior_point
from bnn_pyro.target import Target

ENGINES = ("auto", "compiled", "eager", "pyro")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def as_model(model: Any) -> Model:
    """A model of the zoo or a ``BNN`` as it is, a Pyro program as a ``BNN``. Raises: ModelError for anything else."""
    if isinstance(model, Model):
        return model
    if callable(model) and not (isinstance(model, type) and issubclass(model, Model)):
        return BNN(model)
    remedy = "Write bnn.get_model('linear'), or pass a program."
    if isinstance(model, str):
        remedy = f"Write bnn.get_model({printable(model)})."
    elif isinstance(model, type):
        remedy = f"Write {model.__name__}()."
    raise ModelError(
        f"fit, model: expected a model of the zoo, a BNN, or a Pyro program model(x, y=None), got {printable(model)}. {remedy}"
    )


def check_flag(where: str, value: Any, or_none: bool = False) -> None:
    """Raises: OptionError for a flag that is no truth value, such as the text 'no', which Python takes for True."""
    if not (isinstance(value, bool) or (value is None and or_none)):
        raise OptionError(f"{where}: expected True or False{', or None' if or_none else ''}, got {value!r}.")


def check_names(keep: Any) -> None:
    """Raises: OptionError unless ``keep`` is a list of names, or None. A lone name would be taken letter by letter."""
    if keep is not None and not (isinstance(keep, list | tuple) and all(isinstance(name, str) for name in keep)):
        remedy = f" Write keep=[{printable(keep)}]." if isinstance(keep, str) else ""
        raise OptionError(
            f"fit, keep: expected a list of sites' names, or None for all, got {printable(keep)}.{remedy}"
        )


def known_sites(keep: Sequence[str], target: Target) -> tuple[str, ...]:
    """``keep`` without repeats. Raises: UnknownNameError for a name that the group ``posterior`` would not have."""
    with isolated(seed=0, dtype=target.dtype), torch.no_grad():
        known = list(target.constrain(prior_point(target)))
    for name in keep:
        if name not in known:
            raise unknown(f"site in keep of {target.name}", name, known, f"Its sites are {', '.join(known)}.")
    return tuple(dict.fromkeys(keep))


def choose_engine(method: Method, engine: str, backend: str) -> tuple[str, str]:
    """The engine and backend that run a method. Raises: OptionError where the engine that was asked for has it not."""
    if isinstance(method, Prior):
        return "pyro", backend
    if isinstance(method, SVI | MAP) and backend == "pyro":
        engine = "pyro"
    if engine == "pyro" and isinstance(method, SVI | MAP):
        for option in method.beyond_pyro():
            raise OptionError(f"engine='pyro': expected {method.name} without {option}. Use engine='compiled'.")
    elif engine == "pyro" and not isinstance(method, NUTS):
        raise OptionError(f"engine: expected 'compiled' or 'eager' for {method.name}, which Pyro runs not, got 'pyro'.")
    if engine == "pyro" and isinstance(method, MCMC) and (method.thin > 1 or method.adaptation is not None):
        raise OptionError("engine='pyro': expected NUTS without thin and adaptation. Use engine='compiled'.")
    if engine == "eager":
        if backend == "inductor":
            raise OptionError(
                "engine='eager': expected backend 'auto' or 'eager', got 'inductor'. Drop one of the two."
            )
        backend = "eager" if backend == "auto" else backend
    return ("pyro" if engine == "pyro" else "compiled"), backend


def find_method(inference: str | Method, options: dict) -> Method:
    return make_method(
        inference,
        options,
        also=("seed", "standardize", "dtype", "device", "engine", "backend", "progress", "missing", "keep"),
    )


def find_devices(
    device: str | torch.device | Sequence[str], method: Method, where: str
) -> tuple[tuple[str, ...], torch.device | None]:
    """The names of the devices, and where this process computes, None for ``"auto"``.

    Raises: UnknownNameError or OptionError for what cannot be had, or for a method that several devices cannot share.
    """
    names = device_names(device)
    if len(names) > 1:
        divide(method, len(names), where)
    return names, nearest_device(names)


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]
