"""Laplace approximations of a target: the mode, the curvature there in the structure asked for, draws, and the evidence."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bnn_pyro import shapes
from bnn_pyro.batching import gather_draws
from bnn_pyro.compiled import compile_gradient, threads_for
from bnn_pyro.draws import Draws
from bnn_pyro.errors import ModelError, OptionError, warn
from bnn_pyro.gaussians import Dense, Gaussian
from bnn_pyro.graphs import normal_priors
from bnn_pyro.hyper import hyper_entries, settle, ways
from bnn_pyro.inference import Laplace
from bnn_pyro.isolation import derive_seed, isolated, reseed
from bnn_pyro.linearized import check_outputs, linearize
from bnn_pyro.modes import Mode, find_mode
from bnn_pyro.prior_scale import with_prior_sds
from bnn_pyro.prior_tuning import Found, tune
from bnn_pyro.shapes import Shape, Shaper, choose_shape
from bnn_pyro.starts import feasible_point, learnt_params, prior_point, starting_points
from bnn_pyro.target import Target

INNER = 0.1  # of the tolerance, is what the weights' mode is found to, while scales move


def fit_laplace(target: Target, method: Laplace, seed: int, backend: str, progress: bool = True) -> Draws:
    """Finds the mode and draws from the density around it: one chain of ``method.draws`` draws.

    ``stats`` has ``log_p`` and ``log_q``, unconstrained log densities up to the same constant; ``state`` is the density's
    tensors; ``info`` has ``log_evidence``, in the units that the program sees, and ``rise``, nats that the log density would
    still rise by.
    Raises: ModelError where the curvature is not positive definite, which then is no mode's; OptionError for a structure that
        the program does not have.
    """
    began = time.perf_counter()
    with isolated(derive_seed(seed, "laplace"), target.dtype, threads=threads_for(target)):
        work = _Work(target, method, backend, progress)
        compiled = time.perf_counter()
        with work.bar:
            target, found, factors = work.run(seed)
        mode, density = found.mode, found.density
        reseed(derive_seed(seed, "laplace draws"))
        z = density.sample(method.draws)
        log_q = density.log_density(z)
        log_p = gather_draws(target.log_density, z)
        log_evidence = found.log_evidence(target)
    stats = {"lp": log_p, "log_p": log_p, "log_q": log_q}
    info: dict[str, Any] = {
        "gradient_evaluations": mode.gradients,
        "structure": work.shape.structure,
        "curvature": work.shape.kind,
        "predictive": "weights" if work.reason else method.predictive,
        "rise": mode.rise,
        "stalled": mode.stalled,
        "log_evidence": log_evidence,
        "points": target.dim - density.dim,
        "scales": work.scale_names(),
        "backend": work.gradient.backend,
        "backend_reason": work.gradient.reason,
        "compile_time": compiled - began,
        "sampling_time": time.perf_counter() - compiled,
        **{f"prior_sd_factor_{name}": factor for name, factor in factors.items()},
    }
    state = {name: tensor.cpu() for name, tensor in density.tensors().items()}
    return Draws(
        z.cpu()[None],
        stats={k: v.double().cpu().numpy()[None] for k, v in stats.items()},
        state=state,
        info=info,
    )


def check_laplace(target: Target) -> None:
    """Raises: ModelError for a program that has no one mode to go round, before any work."""
    learnt = learnt_params(target)
    by_row = [s.name for s in target.sites if s.by_row]
    if learnt:
        raise ModelError(
            f"{target.name}, laplace: expected a program of sample statements, got pyro.param {learnt[0]!r}. Give it a "
            "prior, or use inference='svi', guide='laplace'."
        )
    if by_row:
        raise ModelError(
            f"{target.name}, laplace: expected latent sites outside the data plate, got {by_row} inside. Use inference='svi'."
        )


def gaussian(draws: Draws) -> Gaussian:
    """The normal density over the flat vector that a fit by Laplace's method has left."""
    return Gaussian.from_tensors(draws.state)


def as_fitted(target: Target, draws: Draws) -> Target:
    """The target that predictions and log likelihoods are of: its priors tuned, and linear around the mode, if asked."""
    factors = {k.removeprefix("prior_sd_factor_"): v for k, v in draws.info.items() if k.startswith("prior_sd_factor_")}
    target = with_prior_sds(target, factors)
    if draws.info["predictive"] == "weights":
        return target
    return linearize(target, draws.state["mean"].to(target.device))


class _Work:
    """What a fit has at hand: the gradient, the structure, and a bar."""

    def __init__(self, target: Target, method: Laplace, backend: str, progress: bool):
        self.target, self.method, self.backend = target, method, backend
        example = prior_point(target)
        self.reason = check_outputs(target, example)
        if self.reason:
            warn(
                f"{target.name}, laplace: {self.reason}, so that the curvature is the exact Hessian and predictions are of "
                "draws of the weights."
            )
        self.scales = hyper_entries(target, example) if method.scales == "marginal" and not self.reason else None
        every = torch.arange(target.dim, device=target.device)
        if self.scales is not None and not len(self.scales):
            self.scales = None
        inner = every if self.scales is None else every[~torch.isin(every, self.scales)]
        self.shape: Shape = choose_shape(target, method, example, bool(self.reason), inner)
        self.bar: Any = tqdm(total=method.rounds, desc="laplace", disable=None if progress else True, unit="round")
        self.gradient = self._compile(target)
        if self.gradient.reason:
            warn(
                f"{target.name}, laplace: {self.gradient.reason}. Gradients come from {self.gradient.backend!r}, which is "
                "slower."
            )

    def _compile(self, target: Target) -> Any:
        points = torch.stack([prior_point(target) for _ in range(3)])
        return compile_gradient(target, points, self.backend, block=1)

    def run(self, seed: int) -> tuple[Target, Found, dict[str, float]]:
        """Target (its priors tuned, if asked for), what was found, and factors of the priors' sds."""
        if self.scales is None:
            start = starting_points(self.target, self.gradient, "map", seed, 1)[0]
        else:
            start = feasible_point(self.target, derive_seed(seed, "laplace start"))
        found = self._around(self.target, self.gradient, start)
        if not self.method.tune_prior:
            return self.target, found, {}
        factors = self._tunable(found.mode.position)
        if not factors:
            raise OptionError(
                f"{self.target.name}, tune_prior: expected a site whose prior is a fixed Normal, and no other site its scale, "
                "got none. Leave it out."
            )
        return tune(self.target, found, factors, lambda target, z: self._around(target, self._compile(target), z))

    def scale_names(self) -> str:
        """Sites that go to the top of their own density, with commas."""
        if self.scales is None:
            return ""
        return ", ".join(s.name for s in self.target.sites if bool(torch.isin(self.scales, s.start).any()))

    def _tunable(self, z: Tensor) -> list[str]:
        """Sites with a fixed Normal prior whose scale is no other site: that goes to its own maximum anyway."""
        fixed = sorted(normal_priors(self.target).sites)
        if self.scales is None:
            return fixed
        tied = (ways(self.target, z, self.scales) != 0).any(0)
        return [s.name for s in self.target.sites if s.name in fixed and not bool(tied[s.start : s.stop].any())]

    def _around(self, target: Target, gradient: Any, start: Tensor) -> Found:
        def watch(value: float, rise: float) -> None:
            self.bar.update()
            self.bar.set_postfix(density=f"{value:.2f}", rise=f"{rise:.1e}")

        tolerance, rounds = self.method.tolerance, self.method.rounds
        try:
            if self.scales is None:
                mode = find_mode(gradient, start, partial(self.shape.guide, target), tolerance, rounds, watch)
                return self._shaped(lambda shaper: shaper(target, mode.position), mode)
            settled = settle(
                target,
                start,
                self.scales,
                lambda z: find_mode(gradient, z, partial(self.shape.guide, target), INNER * tolerance, rounds),
                self.shape.every,
                (1 - INNER) * tolerance,
                rounds,
                watch,
            )
            z = settled.mode.position
            return self._shaped(lambda shaper: self._with_scales(target, z, shaper, settled.precision), settled.mode)
        except torch.linalg.LinAlgError as error:
            raise ModelError(
                f"{target.name}, laplace: expected a positive definite curvature at the point reached, got none. "
                + self._remedy()
            ) from error

    def _remedy(self) -> str:
        if self.shape.kind == "exact" and not self.reason:
            return "It is no mode of the density. Use curvature='ggn', or more rounds."
        return (
            "The prior does not curve downwards there, as where it has heavy tails or a kink, or its scale is a site beside "
            "it. Use Normal priors, write such a weight as loc + scale * w with w ~ Normal(0, 1), or use inference='nuts'."
        )

    def _shaped(self, made: Callable[[Shaper], Gaussian], mode: Mode) -> Found:
        density = made(self.shape.density)
        every = density if self.shape.every is self.shape.density else made(self.shape.every)
        return Found(mode, density, every)

    def _with_scales(self, target: Target, z: Tensor, shaper: Shaper, precision: Tensor) -> Gaussian:
        """The weights' density given the scales, and theirs, whose precision (b, b) is that with the weights integrated out.

        With all of the curvature kept, the weights' mode moves with the scales; else they are independent.
        """
        weights = shaper(target, z)
        assert self.scales is not None
        if self.shape.structure == "full":
            inner = weights.blocks[0].index
            index = torch.cat([inner, self.scales])
            whole = shapes.precision(target, z, index, self.method.curvature == "exact")
            cut = len(inner)
            across = whole[:cut, cut:]
            moved = torch.cholesky_solve(across, torch.linalg.cholesky(whole[:cut, :cut]))
            whole[cut:, cut:] = precision + across.mT @ moved
            return Gaussian(z, [Dense.of(index, whole)])
        return Gaussian(z, [*weights.blocks, Dense.of(self.scales, precision)])
