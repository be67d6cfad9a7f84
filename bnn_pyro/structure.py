"""Runs a Pyro program once to learn its sites, and refuses what would give a wrong posterior, before any sampling.

Pyro accepts several programs that are not what was meant: y of shape (n, 1) is broadcast to n x n, a batch of weights
without ``.to_event`` or a likelihood outside its plate is scaled wrongly in mini-batches. Each is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, biject_to

from bnn_pyro.data import Inputs, rows
from bnn_pyro.errors import BNNError, ModelError, ShapeError
from bnn_pyro.isolation import isolated
from bnn_pyro.target import (
    DATA_PLATE,
    Observation,
    Program,
    Run,
    Site,
    Target,
    data_dim,
    is_deterministic,
    is_factor,
)


def build_target(
    program: Program,
    x: Inputs,
    y: Tensor,
    *,
    name: str = "program",
    dims: Mapping[str, tuple[str, ...]] | None = None,
    dtype: torch.dtype = torch.float32,
    params: dict[str, Tensor] | None = None,
    params_state: dict | None = None,
) -> Target:
    """The target of ``program(x, y)``.

    Args:
        program: A Pyro program ``model(x, y=None)`` whose observed sites stand inside ``pyro.plate("data", n)``.
        x, y: Tensors in the units that the program sees; the first axis is rows.
        name: What errors call the program.
        dims: Names for the axes of a site's value, by site; else plates' names and ``<site>_dim_<i>``.
        params: Values for the program's ``pyro.param`` statements, by name, such as a fit has learnt.
    Raises: ModelError or ShapeError, in one sentence, for a program that does not fit the contract of ``Target``.
    """
    structure = _Structure(name, rows(x), dims or {}, dtype, params)
    shapes = f"x of shape {_shape(x)} and y of shape {_shape(y)}"
    with isolated(seed=0, dtype=dtype, params=params_state):
        _run(structure, lambda: program(x, y), f"{name}: the program failed on {shapes}")
    structure.check()
    device = y.device
    target = Target(
        program, name, x, y, tuple(structure.sites), tuple(structure.observations), dtype, device, params or {}
    )
    if len(target.observed) == 1:
        with isolated(seed=0, dtype=dtype, params=params_state):
            action = f"{name}: the program failed on {shapes.split(' and ')[0]} and y=None, as prediction runs it"
            _run(None, lambda: target.conditional(draw_from_prior, x), action)
    return target


def draw_from_prior(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
    """A draw from a site's prior; for an improper one, Uniform(-2, 2) in unconstrained space, as Stan starts."""
    zero = torch.zeros((), dtype=torch.float64)
    try:
        return fn.sample(), zero
    except NotImplementedError:
        transform = biject_to(fn.support)
        shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
        return transform(torch.rand(shape) * 4 - 2), zero


def _run(handler: Any, body: Callable[[], Any], action: str) -> None:
    try:
        if handler is None:
            body()
        else:
            with handler:
                body()
    except BNNError:
        raise
    except Exception as error:  # a user's program may raise anything; it is shown with what was being tried
        raise ModelError(f"{action}: {type(error).__name__}: {error}") from error


def _shape(value: Any) -> Any:
    return {k: tuple(v.shape) for k, v in value.items()} if isinstance(value, dict) else tuple(value.shape)


class _Structure(Run):
    """A run whose latent sites are drawn from the prior; notes each site and complains of what does not fit."""

    def __init__(self, name: str, n: int, dims: Mapping[str, tuple[str, ...]], dtype: torch.dtype, params: dict | None):
        super().__init__(draw_from_prior, dtype, params=params)
        self.program_name, self.n, self.dims = name, n, dims
        self.sites: list[Site] = []
        self.observations: list[Observation] = []

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            size, subsample = msg["fn"].size, msg["fn"].subsample_size
            if subsample is not None and subsample < size:
                raise ModelError(
                    f"{self._where(msg)}: expected a plate over all rows, got subsample_size={subsample} of {size}: "
                    "the plate would draw its own rows. Use pyro.plate('data', x.shape[0])."
                )
            return
        if is_deterministic(msg):
            return
        if msg["is_observed"]:
            super()._pyro_sample(msg)
            self._check_observed(msg)
        else:
            self._check_latent(msg)
            super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or is_deterministic(msg):
            return
        if msg["is_observed"]:
            self._note_observed(msg)
        else:
            self._note_latent(msg)

    def check(self) -> None:
        """Complaints that need the whole program."""
        if not self.sites:
            raise ModelError(f"{self.program_name}: expected latent pyro.sample sites, got none. There is nothing to infer.")
        if not self.observations:
            raise ModelError(
                f"{self.program_name}: expected an observed site, got none. Pass obs=y to the likelihood's pyro.sample."
            )
        unknown = set(self.dims) - {s.name for s in self.sites}
        if unknown:
            raise ModelError(
                f"{self.program_name}, dims: expected names of latent sites, got {sorted(unknown)}. "
                f"The sites are {[s.name for s in self.sites]}."
            )

    def _where(self, msg: Any) -> str:
        return f"{self.program_name}, site {msg['name']!r}"

    def _unplated(self, msg: Any) -> list[int]:
        """Batch axes longer than one that belong to no plate, counted from the left."""
        plated = {frame.dim for frame in msg["cond_indep_stack"]}
        batch = msg["fn"].batch_shape
        return [i for i, length in enumerate(batch) if length > 1 and i - len(batch) not in plated]

    def _check_latent(self, msg: Any) -> None:
        fn = msg["fn"]
        if not isinstance(fn, Distribution):
            raise ModelError(f"{self._where(msg)}: expected a distribution, got {type(fn).__name__}.")
        if fn.support is not None and getattr(fn.support, "is_discrete", False):
            raise ModelError(
                f"{self._where(msg)}: expected a continuous latent, got a discrete {type(fn).__name__}. "
                "Sum it out of the likelihood, for example with dist.MixtureSameFamily."
            )
        if self._unplated(msg):
            axes = len(fn.batch_shape)
            raise ModelError(
                f"{self._where(msg)}: expected batch_shape (), got {tuple(fn.batch_shape)}. Add .to_event({axes})."
            )

    def _check_observed(self, msg: Any) -> None:
        fn, value = msg["fn"], msg["value"]
        if is_factor(msg):
            return
        expected = tuple(fn.batch_shape + fn.event_shape)
        dim = data_dim(msg)
        plate = next((f for f in msg["cond_indep_stack"] if f.name == DATA_PLATE), None)
        if plate is not None and plate.size != self.n:
            raise ShapeError(
                f"{self._where(msg)}: expected pyro.plate('data', {self.n}), one place for each row, got size {plate.size}. "
                "Use pyro.plate('data', x.shape[0])."
            )
        if self._unplated(msg):
            if dim is None:
                raise ModelError(
                    f"{self._where(msg)}: expected an observed site inside pyro.plate('data', {self.n}), got batch_shape "
                    f"{tuple(fn.batch_shape)} outside of it. Put it into `with pyro.plate('data', x.shape[0]):`."
                )
            raise ShapeError(
                f"{self._where(msg)}: expected batch_shape ({self.n},), got {tuple(fn.batch_shape)}: an axis of the "
                "likelihood's parameters does not line up with the data plate. Squeeze the network's last axis, or add "
                ".to_event(1) for several outputs."
            )
        if tuple(value.shape) != expected:
            advice = f"Pass y.reshape({', '.join(map(str, expected))})." if value.numel() == torch.Size(expected).numel() else (
                "Pass one target for each row, or a model whose likelihood has that shape."
            )
            raise ShapeError(f"{self._where(msg)}: expected y of shape {expected}, got {tuple(value.shape)}. {advice}")

    def _note_latent(self, msg: Any) -> None:
        value, transform = msg["value"], biject_to(msg["fn"].support)
        plates = {frame.dim - msg["fn"].event_dim: frame.name for frame in msg["cond_indep_stack"]}
        shape = tuple(value.shape)
        default = tuple(plates.get(i - len(shape), f"{msg['name']}_dim_{i}") for i in range(len(shape)))
        dims = tuple(self.dims.get(msg["name"], default))
        if len(dims) != len(shape):
            raise ModelError(f"{self._where(msg)}: expected dims for shape {shape}, got {dims}. Name each axis once.")
        start = self.sites[-1].stop if self.sites else 0
        unconstrained = tuple(transform.inv(value).shape)
        self.sites.append(Site(msg["name"], start, unconstrained, shape, dims, by_row=data_dim(msg) is not None))

    def _note_observed(self, msg: Any) -> None:
        dim = data_dim(msg)
        if dim is None and is_factor(msg):
            return  # a term of the prior
        self.observations.append(Observation(msg["name"], dim, tuple(msg["value"].shape)))
