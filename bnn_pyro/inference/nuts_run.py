"""NUTS from starts to draws: warmup and the loop over ``Trees``.

Chains rest only at the ends of warmup's windows, where the mass matrix is learnt from all of them, and when they have all
their draws.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.inference.adaptation import Moments, Schedule, first_settings, stretch, windows
from bnn_pyro.inference.mcmc import Adaptation, Recorder
from bnn_pyro.inference.metric import GradientCall
from bnn_pyro.inference.native_trees import make_trees
from bnn_pyro.inference.nuts import NUTS
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.step_sizes import DualAveraging
from bnn_pyro.inference.trees import Trees
from bnn_pyro.noise import Noise


def run_nuts(
    gradient: GradientCall,
    position: Tensor,
    method: NUTS,
    seed: int,
    recorder: Recorder,
) -> Adaptation:
    """Runs ``method.transitions`` of every chain into ``recorder``; what warmup learnt.

    Warmup goes on from ``method.adaptation`` where one is given.

    Args:
        gradient: (c, dim) -> (c, dim), (c,): gradient and log density.
        position: Starts (chains, dim), of finite density.
    """
    chains, dim = position.shape
    device = position.device
    everyone = torch.arange(chains, device=device)
    uniforms = Uniforms(Noise(seed, "nuts", device), everyone)
    momenta = Momenta(Noise(seed, "momentum", device), everyone, dim, position.dtype)
    metric, step_size = first_settings(gradient, position, method, seed)
    averaging = DualAveraging(step_size, method.target_accept)
    moments = Moments(chains, dim, method.dense_mass, device)
    schedule = windows(method.warmup)
    pauses = [*schedule.ends, method.transitions]
    trees = make_trees(gradient, position, metric, step_size, uniforms, momenta, method.max_tree_depth)
    transition = np.zeros(chains, dtype=np.int64)
    trees.begin(everyone, torch.zeros_like(everyone))
    for pause in pauses:
        if pause > 0:
            _run_to(pause, trees, transition, method, averaging, moments, schedule, recorder)
        if recorder.should_stop():
            break
        if pause in schedule.ends:
            before, trees.metric = trees.metric, moments.metric(position.dtype)
            averaging.restart(averaging.average * stretch(before, trees.metric))
            trees.step_size = averaging.step_size
            trees.begin(everyone, torch.from_numpy(transition).to(device))
    return Adaptation(trees.step_size, trees.metric.inverse_mass_matrix.double())


def _run_to(
    pause: int,
    trees: Trees,
    transition: np.ndarray,
    method: NUTS,
    averaging: DualAveraging,
    moments: Moments,
    schedule: Schedule,
    recorder: Recorder,
) -> None:
    """Until every chain has made ``pause`` transitions; ``transition`` (c,) counts them."""
    left = int((pause - transition).sum())
    last_window = schedule.ends[-1] if schedule.ends else 0
    while left and not recorder.should_stop():
        rows = trees.advance()
        if not len(rows):
            continue
        info = trees.info(rows)
        position = trees.position.index_select(0, rows)
        # a few numbers that are looked at again and again: NumPy answers several times faster than torch
        ended = rows.cpu().numpy()
        before = transition[ended]
        now = transition[ended] = before + 1
        recorder.record(rows, torch.from_numpy(before).to(rows.device), position, info)
        if now.min() <= method.warmup:
            adapting, rate = _those(now <= method.warmup, rows, info.acceptance_rate)
            averaging.update(adapting, rate)
            trees.step_size.index_copy_(0, adapting, averaging.step_size.index_select(0, adapting))
            (fixed,) = _those(now == method.warmup, rows)
            if len(fixed):
                trees.step_size[fixed] = averaging.average[fixed]
            seen, at = _those((now > schedule.begin) & (now <= last_window), rows, position)
            if len(seen):
                moments.update(seen, at)
        left -= len(rows)
        (resting,) = _those(now >= pause, rows)
        if len(resting):
            trees.rest(resting)
        trees.begin(*_those(now < pause, rows, torch.from_numpy(now).to(rows.device)))


def _those(mask: np.ndarray, *columns: Tensor) -> list[Tensor]:
    """The columns (k, ...) where ``mask`` (k,) holds: mostly all of them or none."""
    if mask.all():
        return list(columns)
    at = torch.from_numpy(mask.nonzero()[0]).to(columns[0].device)
    return [column.index_select(0, at) for column in columns]
