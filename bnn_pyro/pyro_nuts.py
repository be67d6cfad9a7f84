"""Pyro's own inference over a target (``engine="pyro"``): NUTS, chain after chain.

NUTS is given the target's flat density, so that its draws and statistics are those of every other engine. Its chains run
one after another in this process, never in Pyro's workers, which hang when one dies and give other draws.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bnn_pyro.compiled import Gradient, compile_gradient, threads_for, warn_of_backend
from bnn_pyro.draws import Draws
from bnn_pyro.inference import NUTS
from bnn_pyro.isolation import derive_seed, isolated, made_on
from bnn_pyro.starts import starting_points
from bnn_pyro.target import Target

STATS = ("lp", "energy", "diverging", "tree_depth", "n_steps", "acceptance_rate", "step_size")


class _Potential(torch.autograd.Function):
    """Minus the log density with the gradient that came with it, for Pyro's integrator, which differentiates itself."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gradient: Gradient) -> Tensor:
        grad, value = gradient(z.detach()[None])
        ctx.save_for_backward(grad[0].to(z.dtype))
        return -value[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return -grad * upstream, None


class _RecordedNUTS(pyro.infer.NUTS):
    """Pyro's NUTS, which also keeps the energy and the depth of its last tree."""

    energy: float = float("nan")
    depth: int = 0

    def _build_tree(self, z: Any, r: Any, z_grads: Any, log_slice: Any, direction: int, depth: int, energy: Any) -> Any:
        self.depth = max(self.depth, depth + 1)  # inner calls have lower depths
        self.energy = float(energy)
        return super()._build_tree(z, r, z_grads, log_slice, direction, depth, energy)


def sample_nuts(target: Target, method: NUTS, seed: int, backend: str = "auto", progress: bool = True) -> Draws:
    """Runs ``method.chains`` chains one after another; chain i depends on (seed, i) only.

    ``energy`` is the Hamiltonian at the start of each trajectory, ``tree_depth`` the doublings that were begun.
    """
    with isolated(derive_seed(seed, "check"), target.dtype, threads=threads_for(target)):
        gradient = compile_gradient(target, torch.randn(3, target.dim, device=target.device) * 0.5, backend, block=1)
    warn_of_backend(gradient, target.name)
    total = method.chains * (method.warmup + method.draws)
    starts = starting_points(target, gradient, method.init, seed, method.chains).double()
    chains = []
    with tqdm(total=total, disable=None if progress else True, unit="it", smoothing=0.05) as bar:
        for chain in range(method.chains):
            seeded = isolated(derive_seed(seed, "nuts", chain), target.dtype, threads=threads_for(target))
            with seeded, made_on(target.device):
                chains.append(_one_chain(gradient, method, starts[chain], bar, f"chain {chain + 1}/{method.chains}"))
    z = torch.stack([c["z"] for c in chains]).to(target.dtype)
    stats = {name: np.stack([c[name] for c in chains]) for name in STATS}
    state = {
        "step_size": torch.tensor([c["step_size"][-1] for c in chains], dtype=torch.float64),
        "inverse_mass_matrix": torch.stack([c["inverse_mass_matrix"] for c in chains]),
    }
    info = {
        "gradient_evaluations": int(sum(c["gradients"] for c in chains)),
        "backend": gradient.backend,
        "backend_reason": gradient.reason,
    }
    return Draws(z, stats=stats, state=state, info=info)


def _one_chain(gradient: Gradient, method: NUTS, start: Tensor, bar: Any, label: str) -> dict[str, Any]:
    calls = 0

    def potential(params: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return _Potential.apply(params["z"], gradient)

    kernel = _RecordedNUTS(
        potential_fn=potential,
        target_accept_prob=method.target_accept,
        max_tree_depth=method.max_tree_depth,
        full_mass=method.dense_mass,
    )
    kernel.initial_params = {"z": start}
    kernel.setup(method.warmup)
    params = {"z": start}
    kept: list[Tensor] = []
    rows: list[tuple] = []
    shown = time.monotonic()
    for i in range(method.warmup + method.draws):
        before, kernel.depth, divergences = calls, 0, len(kernel._divergences)
        done, mean_before = i - method.warmup, kernel._mean_accept_prob
        if done == 0:
            mean_before = 0.0
        params = kernel.sample(params)
        if done >= 0:
            rate = kernel._mean_accept_prob * (done + 1) - mean_before * done
            rate = min(max(rate, 0.0), 1.0)  # taken from a running mean, so rounded
            kept.append(params["z"].detach().clone())
            diverged = len(kernel._divergences) > divergences
            lp = -float(kernel._potential_energy_last)  # type: ignore[arg-type]
            rows.append((lp, kernel.energy, diverged, kernel.depth, calls - before, rate, float(kernel.step_size)))
        bar.update()
        if time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            stage = "warmup" if done < 0 else "draws"
            bar.set_description(f"{label} {stage}", refresh=False)
            bar.set_postfix(accept=f"{kernel._mean_accept_prob:.2f}", depth=kernel.depth,
                            divergences=len(kernel._divergences))  # fmt: skip
    (mass,) = kernel.inverse_mass_matrix.values()
    return {
        "z": torch.stack(kept).cpu(),
        **{name: np.array(column) for name, column in zip(STATS, zip(*rows, strict=True), strict=True)},
        "inverse_mass_matrix": mass.detach().double().cpu(),
        "gradients": calls,
    }
