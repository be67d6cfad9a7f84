"""Scales and other numbers that are no weights, at the maximum of their own density with the weights integrated out.

    L(h) = log p(y, w(h), h) - 1/2 log det H_w(w(h), h),   w(h) the mode of the weights given h

by Laplace's method over the weights. The mode of weights and scales together would be another point, and often none at all: a
network that can go through every row has a density without bound as its noise goes to 0, where the weights have no room left.
Of the slope of L, the part by which H_w changes as the weights' mode moves is taken with a network that stays what it is.
Source: MacKay 1992, Neural Computation 4(3); Rue, Martino & Chopin 2009, JRSS B 71(2), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from bnn_pyro.errors import warn
from bnn_pyro.layers import layers
from bnn_pyro.modes import Mode
from bnn_pyro.shapes import Shaper
from bnn_pyro.target import Target

MOST = 20  # numbers
SMALL = 1e-3  # in unconstrained units, of differences of log det
STEP = 0.05  # of differences of L's slope, between which the weights move too
FURTHEST = 0.5  # that one of Newton's goes
FLATTEST = 1e-3  # precision that is told from none: a scale that is free within a factor of e**30


class Settled(NamedTuple):
    """``mode`` of the weights, where L is highest; ``rise`` of its own and of L; ``precision`` (b, b), minus L's Hessian."""

    mode: Mode
    precision: Tensor


def hyper_entries(target: Target, example: Tensor) -> Tensor:
    """Entries of z that are in no layer, where there are layers and those entries are few; else none."""
    try:
        found = layers(target, example)
    except NotImplementedError:
        found = []
    inside = [layer.index.reshape(-1) for layer in found]
    every = torch.arange(target.dim, device=example.device)
    rest = every[~torch.isin(every, torch.cat(inside))] if inside else every[:0]
    if len(rest) <= MOST:
        return rest
    warn(
        f"{target.name}, laplace: {len(rest)} numbers are in no layer, and scales='marginal' takes at most {MOST}. All go to "
        "the mode of the joint density with the weights, where a noise or a prior's sd may be far too small."
    )
    return every[:0]


def settle(
    target: Target,
    start: Tensor,
    index: Tensor,
    weights_mode: Callable[[Tensor], Mode],
    weights: Shaper,
    tolerance: float,
    rounds: int,
    watch: Callable[[float, float], None] = lambda *_: None,
) -> Settled:
    """Moves the entries ``index`` of ``start`` (dim,) up L by Newton's method, its Hessian learnt on the way (SR1).

    Args:
        weights_mode: z -> the mode of the other entries, with these held.
        weights: The density of the other entries.
        tolerance: Rise of L in nats that is small enough.
        watch: Told the log density and the rise of L that the next step promises.
    """
    count = 0

    def solve(z: Tensor) -> _Point:
        nonlocal count
        mode = weights_mode(z)
        count += mode.gradients
        along = ways(target, mode.position, index)
        return _Point(mode, along, _slope(target, mode.position, along, weights))

    def hessian(at: _Point, sides: tuple[float, ...]) -> Tensor:
        """By differences between here and one side, which suffice to begin with, or between both sides."""
        rows = []
        for way in at.ways:
            slopes = [solve(at.mode.position + side * way).slope for side in sides]
            first = at.slope if len(sides) == 1 else slopes[0]
            rows.append((first - slopes[-1]) / (sum(abs(side) for side in sides)))
        found = torch.stack(rows)
        return (found + found.mT) / 2

    here = solve(start)
    bend, exact = hessian(here, (STEP,)), False
    for _ in range(rounds):
        move = _ascent(bend, here.slope)
        rise = float(here.slope @ move) / 2
        watch(float(target.log_density(here.mode.position)), rise)
        if rise <= tolerance and exact:
            break
        if rise <= tolerance:
            bend, exact = hessian(here, (-STEP, STEP)), True
            continue
        move = move * min(1.0, FURTHEST / float(move.abs().max()))
        there = solve(here.mode.position + move @ here.ways)
        missed = here.slope - there.slope - bend @ move
        if abs(float(missed @ move)) > 1e-8 * float(missed.norm() * move.norm()):
            bend = bend + torch.outer(missed, missed) / (missed @ move)
        here, exact = there, False
    if not exact:
        bend = hessian(here, (-STEP, STEP))
    rise = float(here.slope @ _ascent(bend, here.slope)) / 2
    values, vectors = torch.linalg.eigh(bend)
    precision = (vectors * values.clamp(min=FLATTEST)) @ vectors.mT
    return Settled(here.mode._replace(rise=here.mode.rise + rise, gradients=count), precision)


class _Point(NamedTuple):
    """The weights' mode, directions (b, dim) in which each of h is moved from there, and L's slopes (b,) along them."""

    mode: Mode
    ways: Tensor
    slope: Tensor


def ways(target: Target, z: Tensor, index: Tensor) -> Tensor:
    """For each entry of h the direction in which it grows by 1 while the network stays what it is.

    A scale of weights grows as the weights shrink. At a mode the slope is the same with the weights held; but scale and
    weights are tied so closely that steps would be tiny, and on a kink of the network the slope would be of one side only.
    """
    along = torch.nn.functional.one_hot(index, len(z)).to(z)
    for way, entry in zip(along, index, strict=True):
        sides = []
        for step in (-SMALL, SMALL):
            moved = z.clone()
            moved[entry] += step
            sides.append(layers(target, moved))
        for before, after in zip(*sides, strict=True):
            growth = (after.scale.abs().log() - before.scale.abs().log()) / (2 * SMALL)
            way[before.index] = -z[before.index] * growth[:, None]
    return along


def _slope(target: Target, z: Tensor, ways: Tensor, weights: Shaper) -> Tensor:
    """The slopes (b,) of L along ``ways`` at the weights' mode."""
    slope = ways @ grad(target.log_density)(z)
    for i, way in enumerate(ways):
        before, after = (float(weights(target, z + step * way).log_det) for step in (-SMALL, SMALL))
        slope[i] -= (after - before) / (4 * SMALL)
    return slope


def _ascent(bend: Tensor, slope: Tensor) -> Tensor:
    """Newton's step, upwards where L is not concave too."""
    values, vectors = torch.linalg.eigh(bend)
    return vectors @ ((vectors.mT @ slope) / values.abs().clamp(min=FLATTEST))
