"""NUTS from starts to draws: walks, in groups of chains, from one end of warmup's windows to the next.

Chains rest only at the ends of warmup's windows, where the mass matrix is learnt from all of them, and when they have all
their draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnn_pyro.inference.adaptation import Moments, first_settings, stretch, windows
from bnn_pyro.inference.groups import Groups, shares
from bnn_pyro.inference.mcmc import Adaptation, Recorder
from bnn_pyro.inference.metric import GradientCall
from bnn_pyro.inference.native_trees import make_trees
from bnn_pyro.inference.native_walk import make_walk
from bnn_pyro.inference.nuts import NUTS
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.step_sizes import DualAveraging
from bnn_pyro.inference.walk import Walk
from bnn_pyro.noise import Noise


def run_nuts(
    gradient: GradientCall,
    position: Tensor,
    method: NUTS,
    seed: int,
    recorder: Recorder,
    threads: int = 1,
) -> Adaptation:
    """Runs ``method.transitions`` of every chain into ``recorder``; what warmup learnt.

    Warmup goes on from ``method.adaptation`` where one is given.

    Args:
        gradient: (c, dim) -> (c, dim), (c,): gradient and log density.
        position: Starts (chains, dim), of finite density.
        threads: That chains may be shared among; which changes no draw.
    """
    chains, dim = position.shape
    device = position.device
    everyone = torch.arange(chains, device=device)
    metric, step_size = first_settings(gradient, position, method, seed)

    def begin(rows: slice) -> Walk:
        uniforms = Uniforms(Noise(seed, "nuts", device), everyone[rows])
        momenta = Momenta(Noise(seed, "momentum", device), everyone[rows], dim, position.dtype)
        own = position[rows], metric, step_size[rows].clone()
        trees = make_trees(gradient, *own, uniforms, momenta, method.max_tree_depth)
        return make_walk(trees, DualAveraging(step_size[rows], method.target_accept), method.warmup)

    walk = Groups([begin(rows) for rows in shares(gradient, position, threads)])
    moments = Moments(chains, dim, method.dense_mass, device)
    schedule = windows(method.warmup)
    last_window = schedule.ends[-1] if schedule.ends else 0
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
            walk.use(learnt, stretch(walk.metric, learnt))
    return Adaptation(walk.step_size, walk.metric.inverse_mass_matrix.double())
