"""Compiled steps of a guide against ``pyro.infer.SVI.step`` over the same guide, parameters and noise."""

import pytest
import torch
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO
from pyro.optim import ClippedAdam
from test_elbo import F32, F64, X, Y, by_auxiliary, by_hand, close, found, real_sites

import bnn_pyro as bnn
from bnn_pyro.guide_steps import compile_guide_step
from bnn_pyro.guides import autoguide_by_name, float_observations, latents_only
from bnn_pyro.inference.svi import GUIDES
from bnn_pyro.isolation import isolated
from bnn_pyro.pyro_svi import TwoTermELBO
from bnn_pyro.substitution import Substituted

LR, CLIP = 0.02, 1e6  # nothing is clipped: it would hide an error
EACH = [*GUIDES, "auxiliary", "constrained"]
HANDWRITTEN = {"auxiliary": by_auxiliary, "constrained": by_hand}
METHOD = bnn.SVI(clip_norm=CLIP, steps=100)


def started(name, dtype):
    """Inside ``isolated``: the same parameters and noise each time."""
    return found(real_sites, X, Y, lambda program: HANDWRITTEN.get(name) or autoguide_by_name(name, program), dtype)


def of_pyro(name, dtype):
    """Losses of three steps; of each parameter, after the first, Adam's means of gradient and square, and where it is."""
    with isolated(seed=0, dtype=dtype):
        elbo, noise = started(name, dtype)
        target, optimiser = elbo.target, ClippedAdam({"lr": LR, "clip_norm": CLIP})
        loss = TwoTermELBO(1, True) if elbo.path_gradient else Trace_ELBO()
        svi = PyroSVI(float_observations(target), latents_only(elbo.guide), optimiser, loss=loss)
        losses, reached = [], {}
        for _ in range(3):
            with Substituted(noise=noise):
                losses.append(svi.step(target.x, target.y))
            for key, leaf in elbo.leaves.items():
                adam = optimiser.optim_objs[leaf].state[leaf] if leaf in optimiser.optim_objs else None
                means = (adam["exp_avg"], adam["exp_avg_sq"]) if adam else (torch.zeros_like(leaf),) * 2
                reached.setdefault(key, [t.detach().clone() for t in (*means, leaf)])
        return losses, reached


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", EACH)
def test_the_compiled_step_is_pyros_step(name, dtype):
    losses, reached = of_pyro(name, dtype)
    with isolated(seed=0, dtype=dtype):
        elbo, noise = started(name, dtype)
        training, reason = compile_guide_step(elbo.target, elbo.guide, METHOD, 0, "inductor")
        assert training is not None and (training.step.backend, reason) == ("inductor", "")
        state, own = training.state, noise[None, None]
        found = [training.step(state, own, 1, LR)]
        places = {
            key: slice(leaf.storage_offset(), leaf.storage_offset() + leaf.numel()) for key, leaf in elbo.leaves.items()
        }
        gradient, square, moved = (
            [torch.cat([t.reshape(-1) for t in kind]) for kind in zip(*pairs)]
            for pairs in (
                [(whole[0, places[key]], of_pyro[i]) for key, of_pyro in reached.items()]
                for i, whole in enumerate((state.mean, state.square, state.position))
            )
        )
        assert close(*(10.0 * t for t in gradient), dtype) and gradient[1].abs().max() > 1e-3
        if dtype == F64:  # in float32 Adam moves a parameter whose gradient is rounding alone by a part of the step
            assert close(*(1000.0 * t for t in square), dtype) and close(*moved, dtype)
        assert all(torch.equal(leaf.reshape(-1), state.position[0, places[key]]) for key, leaf in elbo.leaves.items())
        found += [training.step(state, own, count, LR) for count in (2, 3)]
    for terms, loss in zip(found, losses):
        assert close(terms[0, 1] - terms[0, 0], loss, dtype)
    assert abs(losses[2] - losses[0]) > 1e-3
