"""Monte Carlo dropout over a target: training with units left out by compiled steps, and draws of networks without them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnn_pyro.batching import gather_draws
from bnn_pyro.compiled import threads_for
from bnn_pyro.draws import Draws
from bnn_pyro.elbo_record import ElboRecord
from bnn_pyro.errors import ModelError, OptionError, warn
from bnn_pyro.graphs import NormalPriors, normal_priors
from bnn_pyro.inference import MCDropout
from bnn_pyro.interrupts import watch_interrupts
from bnn_pyro.isolation import derive_seed, isolated, reseed
from bnn_pyro.layers import Layer, layers
from bnn_pyro.likelihoods import unwrapped
from bnn_pyro.minibatches import MiniBatches
from bnn_pyro.points import PointData
from bnn_pyro.products import Products, Weight
from bnn_pyro.starts import feasible_point, learnt_params, prior_point
from bnn_pyro.substitution import Substituted
from bnn_pyro.target import Target, add_up
from bnn_pyro.training import Training, compile_training, optimise


def fit_dropout(target: Target, method: MCDropout, seed: int, backend: str, progress: bool = True) -> Draws:
    """Trains the means and draws networks: one chain of ``method.draws``, each a vector with units left out.

    ``state`` has ``mean`` (dim,), the vector before units are left out.
    Raises: OptionError where the program has no layers, or their weights no Normal prior.
    """
    began = time.perf_counter()
    with isolated(derive_seed(seed, "mc_dropout"), target.dtype, threads=threads_for(target)):
        units = find_units(target, method)
        start = feasible_point(target, derive_seed(seed, "member", 0))
        training = _compile(target, method, units, start, seed, backend)
        if training.step.reason:
            warn(f"{target.name}, mc_dropout: {training.step.reason}. Steps are taken by {training.step.backend!r}.")
        compiled = time.perf_counter()
        with watch_interrupts() as interrupts:
            record = ElboRecord(f"{target.name}, mc_dropout", method.steps, method.lr, "mc_dropout", progress)
            optimise(training, method, method.lr, record, interrupts)
            record.close()
        if interrupts.pressed:
            if not record.count:
                raise KeyboardInterrupt
            warn(f"{target.name}, mc_dropout: interrupted after {record.count} of {method.steps} steps.")
        trained = time.perf_counter()
        mean = training.state.position[0]
        reseed(derive_seed(seed, "mc_dropout draws"))
        z = mean * units.draw(method.draws)
    with isolated(dtype=target.dtype):
        lp = gather_draws(target.log_density, z)
    info: dict[str, Any] = {
        "gradient_evaluations": record.count,
        "steps_taken": record.count,
        "units": units.count,
        "backend": training.step.backend,
        "backend_reason": training.step.reason,
        "compile_time": compiled - began,
        "sampling_time": trained - compiled,
    }
    return Draws(
        z.cpu()[None],
        stats={"lp": lp.cpu().numpy()[None]},
        history=record.history(),
        state={"mean": mean.detach().cpu()},
        info=info,
        complete=not interrupts.pressed,
    )


def check_dropout(target: Target, method: MCDropout) -> None:
    """Raises: ModelError or OptionError for a program that cannot be trained so, or has no units, before any work."""
    learnt = learnt_params(target)
    if learnt:
        raise ModelError(
            f"{target.name}, mc_dropout: expected a program of sample statements, got pyro.param {learnt[0]!r}. Give it a "
            "prior, or use inference='map'."
        )
    with isolated(seed=0, dtype=target.dtype):
        find_units(target, method)


@dataclass(frozen=True)
class Units:
    """What can be left out, and how often.

    Attributes:
        of: (dim,), the unit that each entry of z belongs to; -1 for entries of none, such as biases.
        rates: (units,), the probability that each is left out.
        sites: By weight, its unit rate: what its products are told.
    """

    of: Tensor
    rates: Tensor
    sites: dict[str, float]

    @property
    def count(self) -> int:
        return len(self.rates)

    @property
    def extra(self) -> Tensor:
        """(dim,): the variance of an entry's factor, r / (1 - r); 0 for entries of no unit."""
        per_unit = torch.cat([self.rates / (1 - self.rates), self.rates.new_zeros(1)])
        return per_unit[self.of]

    def draw(self, draws: int) -> Tensor:
        """Factors (draws, dim): 0 where a unit is left out, 1 / (1 - r) where not, 1 for entries of none."""
        kept = torch.rand(draws, self.count, dtype=self.rates.dtype, device=self.rates.device) >= self.rates
        factors = torch.cat([kept / (1 - self.rates), self.rates.new_ones(draws, 1)], 1)
        return factors[:, self.of]


def find_units(target: Target, method: MCDropout) -> Units:
    """The inputs of each layer: columns of x for the first, units of the layer before for others; channels of an image."""
    where = f"{target.name}, mc_dropout"
    try:
        found, reason = layers(target, prior_point(target)), "no product of rows and weights that are used once"
    except NotImplementedError as error:
        found, reason = [], str(error)
    if not found:
        raise OptionError(f"{where}: expected layers whose units can be left out, got {reason}. Use inference='svi'.")
    with torch.no_grad():
        priors = target.evaluate(prior_point(target)).priors
    for layer in found:
        kind = type(unwrapped(priors[layer.site])).__name__ if layer.site in priors else "a scaled one"
        if kind != "Normal" and method.masks == "rows":
            raise OptionError(
                f"{where}, masks='rows': expected weights with a Normal prior, whose mean over units left out is known, got "
                f"{kind} for site {layer.site!r}. Use masks='step'."
            )
    of = torch.full((target.dim,), -1, device=target.device)
    rates: list[float] = []
    sites: dict[str, float] = {}
    for i, layer in enumerate(found):
        rate = method.input_rate if i == 0 and method.input_rate is not None else method.rate
        groups = _groups(layer)
        of[layer.index[: len(groups)]] = (len(rates) + groups)[:, None]
        rates += [rate] * (int(groups.max()) + 1)
        sites[layer.site] = float(rate)
    return Units(of, torch.tensor(rates, dtype=target.dtype, device=target.device), sites)


def _groups(layer: Layer) -> Tensor:
    """For each row of a layer's weight, which of its inputs it belongs to: an image's channel has a row for each place."""
    return torch.arange(len(layer.index) - (layer.bias is not None), device=layer.index.device) // layer.patch


class _LeftOut(Products):
    """Products whose inputs are left out, of each row its own."""

    def __init__(self, rates: dict[str, float]):
        super().__init__()
        self._rates = rates

    def takes(self, x: Tensor, weight: Weight, channels: int) -> bool:
        return weight.site in self._rates

    def multiply(self, x: Tensor, weight: Weight, product: Callable[[Tensor, Tensor], Tensor], channels: int) -> Tensor:
        rate = self._rates[weight.site]
        shape = [size if i in (0, channels % x.ndim) else 1 for i, size in enumerate(x.shape)]
        uniform = torch.rand(shape, dtype=x.dtype, device=x.device)
        return product(x * ((uniform >= rate).to(x.dtype) / (1 - rate)), weight.value)

    def add(self, out: Tensor, bias: Tensor, weight: Weight | None, shape: list[int]) -> Tensor:
        return out + bias.reshape(shape)


@dataclass(frozen=True)
class _Objective:
    """Minus the log joint density, by one draw of the units left out; with ``by_row``, the prior's mean over them."""

    target: Target
    priors: NormalPriors
    units: Units
    by_row: bool
    batches: MiniBatches | None

    def __call__(self, parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._evaluate(parts[0], Substituted(noise=noise), *rows)

    def count(self, z: Tensor, rows: list[Tensor]) -> int:
        """Random numbers that a step takes."""
        given = Substituted()
        self._evaluate(z, given, *rows)
        return given.used

    def _evaluate(self, z: Tensor, given: Substituted, *rows: Tensor) -> tuple[Tensor, Tensor]:
        target, data = self.target, PointData()
        if self.batches is not None:
            x, y, scale = self.batches.rows(*rows)
            data = PointData(x=x, y=y, scale=scale)
        watch: Any = nullcontext()
        if not self.by_row:
            with given:
                z = z * self.units.draw(1)[0]
        own = target.parts(z)
        if self.by_row:
            watch = _LeftOut(self.units.sites)
            for site in self.units.sites:
                watch.follow(site, own[site], linear=own[site])
        with given, watch:
            result = target.evaluate_sites(own, data.x, data.y, self.priors.sites, jacobian=False)
        log_prior = result.log_prior + self.priors.log_density(z)
        if self.by_row:
            log_prior = log_prior - 0.5 * self._wider(own, result.priors)
        log_likelihood = add_up(t.sum(dtype=torch.float64) for t in result.log_likelihood.values()) * data.scale
        return -log_prior - log_likelihood, torch.stack([log_likelihood, -log_prior])

    def _wider(self, own: dict[str, Tensor], priors: dict[str, Any]) -> Tensor:
        """What the weights' expected squares have beyond those of their means, in squared sds of their priors."""
        extra = self.target.parts(self.units.extra)
        return add_up(
            (own[site] ** 2 * extra[site] / unwrapped(priors[site]).scale ** 2).sum(dtype=torch.float64)
            for site in self.units.sites
        )


def _compile(target: Target, method: MCDropout, units: Units, start: Tensor, seed: int, backend: str) -> Training:
    batches = None
    if method.batch_size is not None and method.batch_size < target.n:
        batches = MiniBatches(target, method.batch_size, derive_seed(seed, "batches"))
    objective = _Objective(target, normal_priors(target), units, method.masks == "rows", batches)
    with torch.no_grad():
        counted = objective.count(start, [r[0] for r in batches.first()] if batches is not None else [])
    return compile_training(
        objective,
        objective,
        start[None],
        torch.randn(1, 1, counted, dtype=target.dtype, device=target.device),
        method.clip_norm * (1.0 if batches is None else batches.scale),
        target.dim * (target.n if batches is None else batches.size),
        backend,
        batches,
        [],
    )
