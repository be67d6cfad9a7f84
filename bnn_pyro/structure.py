"""Runs a Pyro program once to learn its sites, and refuses what would give a wrong posterior, before any sampling.

Pyro accepts several programs that are not what was meant: its NUTS broadcasts y of shape (n, 1) to n x n, a batch of weights
without ``.to_event`` or a likelihood outside its plate is scaled wrongly in mini-batches. Each is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnn_pyro.data import Inputs, rows
from bnn_pyro.errors import BNNError, DataError, ModelError, ShapeError
from bnn_pyro.isolation import isolated, program_on
from bnn_pyro.sites import Structure, draw_from_prior, mirrored_draw
from bnn_pyro.target import Program, Target

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
        x, y: Tensors in the units that the program sees; the first axis is rows. Their device is the program's, too.
        name: What errors call the program.
        dims: Names for the axes of a site's value, by site; else plates' names and ``<site>_dim_<i>``.
        params: Values for the program's ``pyro.param`` statements, by name, such as a fit has learnt.
    Raises: ModelError or ShapeError, in one sentence, for a program that does not fit the contract of ``Target``.
    """
    shapes = f"x of shape {_shape(x)} and y of shape {_shape(y)}"
    program = program_on(program, y.device)
    runs = []
    for i in range(RUNS):
        latent = draw_from_prior if i % 2 == 0 else mirrored_draw
        structure = Structure(name, rows(x), dims or {}, dtype, params, latent)
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


def _check_observes_y(structure: Structure, y: Tensor) -> None:
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


def _unlike(name: str, first: Structure, other: Structure) -> str:
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


def _deterministic_over_rows(structure: Structure, program: Program, x: Inputs, y: Tensor) -> frozenset[str]:
    """Deterministic sites whose shape follows the number of rows: found by running the program on all rows but the last.

    A program that cannot run on fewer rows keeps those of length n in this set.
    """
    shapes = {k: v.shape for k, v in structure.deterministic.items()}
    fewer = rows(x) - 1
    if not any(rows(x) in shape for shape in shapes.values()):
        return frozenset()
    shorter = Structure(structure.program_name, fewer, {}, structure.dtype, structure.params)
    try:
        with isolated(seed=0, dtype=structure.dtype), shorter:
            program({k: v[:fewer] for k, v in x.items()} if isinstance(x, dict) else x[:fewer], y[:fewer])
    except Exception:  # a program may insist on its rows: then length is all there is to go by
        return frozenset(k for k, shape in shapes.items() if rows(x) in shape)
    found = {k: v.shape for k, v in shorter.deterministic.items()}  # a site may be named by what the last row has
    return frozenset(k for k, shape in shapes.items() if rows(x) in shape and found.get(k) != shape)


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
