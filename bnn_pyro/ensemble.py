"""Deep ensembles over a target: all members in one compiled step of Adam."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from bnn_pyro.batching import gather_draws
from bnn_pyro.compiled import threads_for
from bnn_pyro.draws import Draws
from bnn_pyro.elbo_record import ElboRecord
from bnn_pyro.errors import ModelError, warn
from bnn_pyro.graphs import normal_priors
from bnn_pyro.inference import Ensemble
from bnn_pyro.interrupts import watch_interrupts
from bnn_pyro.isolation import derive_seed, isolated, reseed
from bnn_pyro.likelihoods import unwrapped
from bnn_pyro.minibatches import MiniBatches
from bnn_pyro.points import Point, PointData
from bnn_pyro.starts import feasible_point, learnt_params, prior_point
from bnn_pyro.target import Target
from bnn_pyro.training import Training, compile_training, optimise

SAME = 1e-6  # relative: sds of the likelihood at two draws of the prior that are called equal


def fit_ensemble(target: Target, method: Ensemble, seed: int, backend: str, progress: bool = True) -> Draws:
    """Trains the members: a chain of ``method.draws`` copies for each.

    Raises: ModelError where the density of some member is not finite.
    """
    began = time.perf_counter()
    noise_sd, learnt = _noise_sd(target, method, seed, backend) if method.anchored else (None, False)
    with isolated(derive_seed(seed, "ensemble"), target.dtype, threads=threads_for(target)):
        without_anchor = _without_anchor(target, method, noise_sd)
        starts = torch.stack([feasible_point(target, derive_seed(seed, "member", m)) for m in range(method.members)])
        training = _compile(target, method, seed, backend, starts, noise_sd, learnt)
        if training.step.reason:
            warn(f"{target.name}, ensemble: {training.step.reason}. Steps are taken by {training.step.backend!r}.")
        compiled = time.perf_counter()
        with watch_interrupts() as interrupts:
            record = ElboRecord(
                f"{target.name}, ensemble", method.steps, method.lr, "ensemble", progress, "log joint density"
            )
            optimise(training, method, method.lr, record, interrupts)
            record.close()
    if interrupts.pressed:
        warn(f"{target.name}, ensemble: interrupted after {record.count} of {method.steps} steps.")
    z = training.state.position
    with isolated(dtype=target.dtype):
        lp = gather_draws(target.log_density, z)
    stats = {"lp": lp.cpu().numpy()[:, None].repeat(method.draws, 1)}
    info: dict[str, Any] = {
        "gradient_evaluations": record.count * method.members,
        "steps_taken": record.count,
        "backend": training.step.backend,
        "backend_reason": training.step.reason,
        "compile_time": compiled - began,
        "sampling_time": time.perf_counter() - compiled,
    }
    if method.anchored:
        info["without_anchor"] = without_anchor
    z = z.cpu()[:, None].expand(-1, method.draws, -1).contiguous()
    return Draws(z, stats=stats, history=record.history(), info=info, complete=not interrupts.pressed)


def check_ensemble(target: Target, method: Ensemble) -> None:
    """Raises: ModelError for a program that members cannot be trained on as asked, before any work."""
    learnt = learnt_params(target)
    with isolated(seed=0, dtype=target.dtype), torch.no_grad():
        feasible_point(target, 0)
        result = target.evaluate(prior_point(target))
    if learnt:
        raise ModelError(
            f"{target.name}, ensemble: expected a program of sample statements, got pyro.param {learnt[0]!r}, which each "
            "member would need its own of. Give it a prior, or use inference='map'."
        )
    if method.bootstrap and (target.joint or any(s.by_row for s in target.sites)):
        raise ModelError(
            f"{target.name}, bootstrap: expected rows that are independent given the latent sites, got a joint observation or "
            "sites of each row's own. Use bootstrap=False."
        )
    if method.anchored and result.scaled:
        raise ModelError(
            f"{target.name}, anchored: expected a likelihood as it is, got site {min(result.scaled)!r} inside poutine.scale, "
            "which the noise of the targets would not follow. Use anchored=False."
        )


def _without_anchor(target: Target, method: Ensemble, noise_sd: Tensor | None) -> str:
    """What an anchored ensemble's spread lacks: sites whose prior is not a fixed Normal, and y where it gets no noise."""
    if not method.anchored:
        return ""
    fixed = normal_priors(target).sites
    return ", ".join([*(s.name for s in target.sites if s.name not in fixed), *(["y"] if noise_sd is None else [])])


def _compile(
    target: Target, method: Ensemble, seed: int, backend: str, starts: Tensor, noise_sd: Tensor | None, learnt: bool
) -> Training:
    """The step of all members. Where the noise's sd is ``learnt``, y's last axis has the noisy one and each row's own."""
    members = len(starts)
    priors = normal_priors(target)
    reseed(derive_seed(seed, "diversity"))
    population = torch.randint(target.n, (members, target.n), device="cpu") if method.bootstrap else None
    y = None
    if noise_sd is not None:
        y = target.y + noise_sd * torch.randn(members, *target.y.shape, dtype=target.dtype, device=target.device)
        y = torch.stack([y, target.y.expand_as(y)], -1) if learnt else y
    batches, more, names = None, [], []
    if method.batch_size is not None and method.batch_size < target.n:
        batches = MiniBatches(target, method.batch_size, derive_seed(seed, "batches"), members, y, population)
    else:
        if y is not None:
            more, names = [y], ["y"]
        if population is not None:
            counts = torch.stack([torch.bincount(p, minlength=target.n) for p in population])
            more, names = [*more, counts.to(target.dtype).to(target.device)], [*names, "weights"]
    if method.anchored:
        more, names = [*more, _anchors(priors, members)], [*names, "shift"]
    unpack = _unpacker(batches, names, learnt)
    plain = Point(target, priors if method.anchored else None)  # whose shift is of those priors
    return compile_training(
        Point(target, priors).objective(unpack),
        plain.objective(unpack),
        starts,
        starts.new_zeros(members, 1, 0),
        method.clip_norm * (1.0 if batches is None else batches.scale),
        starts.shape[1] * (target.n if batches is None else batches.size),
        backend,
        batches,
        more,
    )


def _unpacker(batches: MiniBatches | None, names: list[str], both: bool) -> Callable[..., PointData]:
    """What makes a member's data of a step's tensors: those of its batch first, then those that ``names`` says.

    ``both``: y's last axis has the noisy one and each row's own.
    """

    def unpack(*tensors: Tensor) -> PointData:
        cut = len(tensors) - len(names)
        given: dict[str, Any] = dict(zip(names, tensors[cut:], strict=True))
        data = PointData(**given)
        if batches is not None:
            x, y, scale = batches.rows(*tensors[:cut])
            data = data._replace(x=x, y=y, scale=scale)
        if both and data.y is not None:
            noisy, seen = data.y.unbind(-1)
            data = data._replace(y=noisy, seen=seen)
        return data

    return unpack


def _anchors(priors: Any, members: int) -> Tensor:
    """Draws (members, dim) of the Normal priors, less their means; 0 for other sites."""
    sd = torch.where(
        priors.precision > 0, priors.precision.clamp(min=1e-30) ** -0.5, torch.zeros_like(priors.precision)
    )
    return sd * torch.randn(members, len(sd), dtype=sd.dtype, device=sd.device)


def _noise_sd(target: Target, method: Ensemble, seed: int, backend: str) -> tuple[Tensor | None, bool]:
    """The sd of a Normal likelihood by row, at a mode where it is latent, and whether it is.

    None for another likelihood, such as a label's.
    """
    with isolated(derive_seed(seed, "noise"), target.dtype), torch.no_grad():
        first, second = (_sd_at(target, prior_point(target)) for _ in range(2))
    if first is None or second is None:
        return None, False
    if torch.allclose(first, second, rtol=SAME, atol=0.0):
        return first, False
    alone = replace(method, members=1, draws=1, anchored=False, bootstrap=False)
    mode = fit_ensemble(target, alone, derive_seed(seed, "mode"), backend, progress=False)
    if not mode.complete:  # the interrupt was of the whole fit
        raise KeyboardInterrupt
    with isolated(dtype=target.dtype), torch.no_grad():
        return _sd_at(target, mode.z[0, 0].to(target.device)), True


def _sd_at(target: Target, z: Tensor) -> Tensor | None:
    predicted = target.predicted
    fn = unwrapped(target.evaluate(z).conditionals[predicted.name]) if predicted is not None else None
    return fn.scale.expand(target.y.shape) if isinstance(fn, Normal) else None
