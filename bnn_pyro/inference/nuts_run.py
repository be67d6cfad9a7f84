"""NUTS from starts to draws: warmup and the loop over ``Trees``.

Chains rest only at the ends of warmup's windows, where the mass matrix is learnt from all of them, and when they have all
their draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnn_pyro.inference.adaptation import DualAveraging, Moments, Schedule, first_settings, stretch, windows
from bnn_pyro.inference.mcmc import Adaptation, Recorder
from bnn_pyro.inference.metric import GradientCall
from bnn_pyro.inference.nuts import NUTS
from bnn_pyro.inference.random_tables import Momenta, Uniforms
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
    trees = Trees(gradient, position, metric, step_size, uniforms, momenta, method.max_tree_depth)
    transition = torch.zeros_like(everyone)
    trees.begin(everyone, transition)
    for pause in pauses:
        if pause > 0:
            _run_to(pause, trees, transition, method, averaging, moments, schedule, recorder)
        if recorder.should_stop():
            break
        if pause in schedule.ends:
            before, trees.metric = trees.metric, moments.metric(position.dtype)
            averaging.restart(averaging.average * stretch(before, trees.metric))
            trees.step_size = averaging.step_size
            trees.begin(everyone, transition)
    return Adaptation(trees.step_size, trees.metric.inverse_mass_matrix.double())


def _run_to(
    pause: int,
    trees: Trees,
    transition: Tensor,
    method: NUTS,
    averaging: DualAveraging,
    moments: Moments,
    schedule: Schedule,
    recorder: Recorder,
) -> None:
    """Until every chain has made ``pause`` transitions."""
    left = int((pause - transition).sum())
    last_window = schedule.ends[-1] if schedule.ends else 0
    while left and not recorder.should_stop():
        rows = trees.advance()
        if not len(rows):
            continue
        info = trees.info(rows)
        position = trees.position[rows]
        recorder.record(rows, transition[rows], position, info)
        now = transition[rows] + 1
        transition[rows] = now
        adapting = now <= method.warmup
        if adapting.any():
            averaging.update(rows[adapting], info.acceptance_rate[adapting])
            step = torch.where(now == method.warmup, averaging.average[rows], averaging.step_size[rows])
            trees.step_size[rows[adapting]] = step[adapting]
            inside = (now > schedule.begin) & (now <= last_window)
            moments.update(rows[inside], position[inside])
        left -= len(rows)
        resting = now >= pause
        trees.rest(rows[resting])
        trees.begin(rows[~resting], now[~resting])
