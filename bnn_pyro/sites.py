"""One run of a Pyro program that notes each site, and refuses a site that would give a wrong posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, biject_to

from bnn_pyro.errors import DataError, ModelError, ShapeError
from bnn_pyro.handlers import DATA_PLATE, Run, data_dim, is_deterministic, is_factor
from bnn_pyro.target import Observation, Site


def draw_from_prior(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
    """A draw from a site's prior; for an improper one, Uniform(-2, 2) in unconstrained space, as Stan starts."""
    zero = torch.zeros((), dtype=torch.float64)
    try:
        value = fn.sample()
    except NotImplementedError:
        transform = biject_to(fn.support)
        shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
        value = transform(torch.rand(shape) * 4 - 2)
    return value.to(torch.get_default_dtype()), zero  # a prior may have been built under another default dtype


def mirrored_draw(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
    """A draw of the prior with its sign turned in unconstrained space: what a branch on a sign does next time."""
    value, zero = draw_from_prior(name, fn)
    transform = biject_to(fn.support)
    return transform(-transform.inv(value)), zero


class Structure(Run):
    """A run that draws latent sites (from the prior, or by ``latent``), notes each site and complains of what does not fit."""

    def __init__(
        self,
        name: str,
        n: int,
        dims: Mapping[str, tuple[str, ...]],
        dtype: torch.dtype,
        params: dict | None,
        latent: Callable = draw_from_prior,
    ):
        super().__init__(latent, dtype, params=params)
        self.program_name, self.n, self.dims = name, n, dims
        self.sites: list[Site] = []
        self.observations: list[Observation] = []
        self.seen: set[str] = set()
        self.observed_values: dict[str, Tensor] = {}

    def _pyro_param(self, msg: Any) -> None:
        if "$$$" in msg["name"]:
            raise ModelError(
                f"{self.program_name}, pyro.module {msg['name'].partition('$$$')[0]!r}: expected pyro.sample or pyro.param "
                "statements, got a module that every fit would train in place. Make it a PyroModule with PyroSample weights."
            )
        super()._pyro_param(msg)

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            size, subsample = msg["fn"].size, msg["fn"].subsample_size
            if subsample is not None and subsample < size:
                raise ModelError(
                    f"{self._where(msg)}: expected a plate over all rows, got subsample_size={subsample} of {size}: "
                    "the plate would draw its own rows. Use pyro.plate('data', x.shape[0])."
                )
            return
        if msg["name"] in self.seen:
            raise ModelError(f"{self._where(msg)}: expected a name for each site, got two of that name. Rename one.")
        if "/" in msg["name"] or msg["name"] in ("chain", "draw"):
            raise ModelError(
                f"{self._where(msg)}: expected a name that a results file can hold, got one with '/' or of a dimension. "
                "Rename it."
            )
        self.seen.add(msg["name"])
        if is_deterministic(msg):
            return
        if msg["is_observed"]:
            super()._pyro_sample(msg)
            self._check_observed(msg)
        else:
            self._check_latent(msg)
            super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if is_deterministic(msg):
            self.deterministic[msg["name"]] = msg["value"]
        elif msg["is_observed"]:
            self._note_observed(msg)
        else:
            self._note_latent(msg)

    def check(self) -> None:
        """Complaints that need the whole program."""
        if not self.sites:
            raise ModelError(
                f"{self.program_name}: expected latent pyro.sample sites, got none. There is nothing to infer."
            )
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
        if dim is None and fn.batch_shape.numel() > 1:
            raise ModelError(
                f"{self._where(msg)}: expected an observed site inside pyro.plate('data', {self.n}), got batch_shape "
                f"{tuple(fn.batch_shape)} outside of it. Put it into `with pyro.plate('data', x.shape[0]):`."
            )
        if self._unplated(msg):
            raise ShapeError(
                f"{self._where(msg)}: expected batch_shape ({self.n},), got {tuple(fn.batch_shape)}: an axis of the "
                "likelihood's parameters does not line up with the data plate. Squeeze the network's last axis, or add "
                ".to_event(1) for several outputs."
            )
        if tuple(value.shape) != expected:
            advice = (
                f"Pass y.reshape({', '.join(map(str, expected))})."
                if value.numel() == torch.Size(expected).numel()
                else ("Pass one target for each row, or a model whose likelihood has that shape.")
            )
            raise ShapeError(f"{self._where(msg)}: expected y of shape {expected}, got {tuple(value.shape)}. {advice}")
        self._check_support(msg)

    def _check_support(self, msg: Any) -> None:
        """Refuses a value that the likelihood gives no density, such as a label of 2 under Bernoulli."""
        fn, value = msg["fn"], msg["value"]
        try:
            inside = fn.support.check(value)
        except (NotImplementedError, AttributeError):  # a distribution that does not state its support
            return
        if bool(inside.all()):
            return
        index = (~inside).nonzero()[0].tolist()
        shown = value[tuple(index)] if index else value
        given = f"{float(shown):g}" if shown.numel() == 1 else str(shown.tolist())
        row = f" at row {index[0]}" if index else ""
        raise DataError(
            f"{self._where(msg)}: expected y in the support of {_kind(fn)} ({_support(fn.support)}), got {given}{row}. "
            "Recode y, or choose another likelihood."
        )

    def _note_latent(self, msg: Any) -> None:
        value, transform = msg["value"], biject_to(msg["fn"].support)
        plates = {
            frame.dim - msg["fn"].event_dim: frame.name for frame in msg["cond_indep_stack"] if frame.dim is not None
        }
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
        factor = is_factor(msg)
        self.observed_values[msg["name"]] = msg["value"]
        shape = () if factor else tuple(msg["value"].shape)
        self.observations.append(Observation(msg["name"], dim, shape, factor))


def _kind(fn: Any) -> str:
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def _support(constraint: Any) -> str:
    """A constraint as a person would say it: ``integers 0 to 2``, ``Boolean``, ``GreaterThan(lower_bound=0)``."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if hasattr(constraint, "lower_bound") and hasattr(constraint, "upper_bound") and constraint.is_discrete:
        bounds = [torch.as_tensor(b).flatten()[0].item() for b in (constraint.lower_bound, constraint.upper_bound)]
        return f"integers {bounds[0]:g} to {bounds[1]:g}"
    if constraint.is_discrete and hasattr(constraint, "lower_bound"):
        return f"integers from {torch.as_tensor(constraint.lower_bound).flatten()[0].item():g}"
    return "0 or 1" if type(constraint).__name__ == "_Boolean" else str(constraint).removesuffix("()")
