"""Runs a Pyro program once to learn its sites, and refuses what would give a wrong posterior, before any sampling.

Pyro accepts several programs that are not what was meant: y of shape (n, 1) is broadcast to n x n, a batch of weights
without ``.to_event`` or a likelihood outside its plate is scaled wrongly in mini-batches. Each is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, biject_to

from bnn_pyro.data import Inputs, rows
from bnn_pyro.errors import BNNError, DataError, ModelError, ShapeError
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

RUNS = 4  # of the program: two draws of the prior and their mirror images must have the same sites


def build_target(
    program: Program,
    x: Inputs,
    y: Tensor,
    *,
    name: str = "program",
    dims: Mapping[str, tuple[str, ...]] | None = None,
    dtype: torch.dtype = torch.float32,
    params: dict[str, Tensor] | None = None,
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
    shapes = f"x of shape {_shape(x)} and y of shape {_shape(y)}"
    runs = []
    for i in range(RUNS):
        latent = draw_from_prior if i % 2 == 0 else _mirrored_draw
        structure = _Structure(name, rows(x), dims or {}, dtype, params, latent)
        with isolated(seed=i // 2, dtype=dtype):
            _run(structure, lambda: program(x, y), f"{name}: the program failed on {shapes}", flat=_is_flat(x))
        structure.check()
        runs.append(structure)
    first = runs[0]
    _check_observes_y(first, y)
    for other in runs[1:]:
        if other.sites != first.sites or other.observations != first.observations:
            raise ModelError(_unlike(name, first, other))
    over_rows = _deterministic_over_rows(first, program, x, y)
    target = Target(
        program, name, x, y, tuple(first.sites), tuple(first.observations), dtype, y.device, params or {}, over_rows
    )
    if target.predicted is not None:
        with isolated(seed=0, dtype=dtype):
            action = f"{name}: the program failed on {shapes.split(' and ')[0]} and y=None, as prediction runs it"
            _run(None, lambda: target.conditional(draw_from_prior, x), action, flat=_is_flat(x))
    return target


def build_empty_target(program: Program, x: Inputs, y: Tensor, **more: Any) -> Target:
    """``build_target`` for no rows: the prior. Pyro has no plate of size 0, so one row of zeros stands in, uncounted.

    Its y is 0, or 1 where the likelihood gives 0 no density.
    """
    one = (
        {k: v.new_zeros(1, *v.shape[1:]) for k, v in x.items()} if isinstance(x, dict) else x.new_zeros(1, *x.shape[1:])
    )
    try:
        target = build_target(program, one, y.new_zeros(1, *y.shape[1:]), **more)
    except DataError:
        target = build_target(program, one, y.new_ones(1, *y.shape[1:]), **more)
    return replace(target, empty=True)


def _check_observes_y(structure: _Structure, y: Tensor) -> None:
    """One observed site must hold y itself: scores, units and predictions are of y as it was passed."""
    sites = [(o.name, structure.observed_values[o.name]) for o in structure.observations if not o.factor]
    if len(sites) != 1:
        return
    name, value = sites[0]
    if value.shape != y.shape or not torch.equal(value, y.to(value.dtype)):
        raise ModelError(
            f"{structure.program_name}, site {name!r}: expected obs=y, got another value: predictions and scores would not be "
            "of the y that was passed. Transform y before fit, or use dist.TransformedDistribution."
        )


def _unlike(name: str, first: _Structure, other: _Structure) -> str:
    """Which site is not the same in two runs of the program."""
    shapes = [
        {s.name: s.shape for s in run.sites} | {o.name: o.shape for o in run.observations} for run in (first, other)
    ]
    site = next((k for k in [*shapes[0], *shapes[1]] if shapes[0].get(k) != shapes[1].get(k)), "?")
    got = " and ".join(str(s[site]) if site in s else "no such site" for s in shapes)
    return (
        f"{name}, site {site!r}: expected the same sites and shapes in every run, got {got}: the program's structure "
        "depends on a draw. Give it the largest shape and mask what is not used."
    )


def _deterministic_over_rows(structure: _Structure, program: Program, x: Inputs, y: Tensor) -> frozenset[str]:
    """Deterministic sites whose shape follows the number of rows: found by running the program on all rows but the last.

    A program that cannot run on fewer rows keeps those of length n in this set.
    """
    shapes = {k: v.shape for k, v in structure.deterministic.items()}
    fewer = rows(x) - 1
    if not any(rows(x) in shape for shape in shapes.values()):
        return frozenset()
    shorter = _Structure(structure.program_name, fewer, {}, structure.dtype, structure.params)
    try:
        with isolated(seed=0, dtype=structure.dtype), shorter:
            program({k: v[:fewer] for k, v in x.items()} if isinstance(x, dict) else x[:fewer], y[:fewer])
    except Exception:  # a program may insist on its rows: then length is all there is to go by
        return frozenset(k for k, shape in shapes.items() if rows(x) in shape)
    return frozenset(k for k, shape in shapes.items() if shorter.deterministic[k].shape != shape)


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


def _mirrored_draw(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
    """A draw of the prior with its sign turned in unconstrained space: what a branch on a sign does next time."""
    value, zero = draw_from_prior(name, fn)
    transform = biject_to(fn.support)
    return transform(-transform.inv(value)), zero


def _is_flat(x: Inputs) -> bool:
    return isinstance(x, Tensor) and x.ndim == 1


def _run(handler: Any, body: Callable[[], Any], action: str, flat: bool) -> None:
    """``flat``: whether x has no column axis, which most programs need."""
    try:
        if handler is None:
            body()
        else:
            with handler:
                body()
    except BNNError:
        raise
    except Exception as error:  # a user's program may raise anything; it is shown with what was being tried
        text = f"{action}: {type(error).__name__}: {error}"
        if flat:
            end = "" if text.endswith(".") else "."
            raise ShapeError(f"{text}{end} Rows of one column are x.reshape(-1, 1), of shape (n, 1).") from error
        raise ModelError(text) from error


def _shape(value: Any) -> Any:
    return {k: tuple(v.shape) for k, v in value.items()} if isinstance(value, dict) else tuple(value.shape)


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


class _Structure(Run):
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
