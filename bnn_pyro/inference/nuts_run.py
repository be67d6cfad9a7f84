"""NUTS from starts to draws: a ``Walk`` from one end of warmup's windows to the next.

Chains rest only at the ends of warmup's windows, where the mass matrix is learnt from all of them, and when they have all
their draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnn_pyro.inference.adaptation import Moments, first_settings, stretch, windows
from bnn_pyro.inference.mcmc import Adaptation, Recorder
from bnn_pyro.inference.metric import GradientCall
from bnn_pyro.inference.native_trees import make_trees
from bnn_pyro.inference.native_walk import make_walk
from bnn_pyro.inference.nuts import NUTS
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.step_sizes import DualAveraging
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
    last_window = schedule.ends[-1] if schedule.ends else 0
    trees = make_trees(gradient, position, metric, step_size, uniforms, momenta, method.max_tree_depth)
    walk = make_walk(trees, averaging, method.warmup)
    for pause in [*schedule.ends, method.transitions]:
        for ended in walk.to(pause, recorder.should_stop):
            recorder.record(*ended)
            seen = (ended.transition >= schedule.begin) & (ended.transition < last_window)
            if seen.any():
                moments.update(ended.rows[seen], ended.position[seen])
        if recorder.should_stop():
            break
        if pause in schedule.ends:
            learnt = moments.metric(position.dtype)
            averaging.restart(averaging.average * stretch(trees.metric, learnt))
            trees.use(learnt, averaging.step_size)
    return Adaptation(trees.step_size, trees.metric.inverse_mass_matrix.double())
