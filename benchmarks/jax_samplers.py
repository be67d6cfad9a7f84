"""NumPyro's NUTS and BlackJAX's NUTS and MCLMC over the same model, driven so that compiling can be told from sampling.

Each library's own kernel and adaptation are used with their defaults. The loop around a kernel is ``lax.fori_loop`` or
``lax.scan``, compiled ahead of time by ``jit(...).lower(...).compile()``: ``setup`` is that, plus what finds starting points.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from measure import Sites
from posteriors import Problem, Rows, numpyro_model

MCLMC_STEPS = 32  # integrator steps from one kept draw to the next, and to one warmup iteration
MCLMC_GRADIENTS = 2  # of a step of the McLachlan integrator
MCLMC_TUNED = 0.1 + 0.1 + 0.1 / 3 + 0.1  # share of ``num_steps`` that BlackJAX's tuning takes, by its defaults


@dataclass
class Run:
    """What a sampler hands back.

    Attributes:
        sites: Unconstrained draws (chain, draw, *shape) by site; None for a timing only.
        setup: Seconds to trace, compile and find starting points.
        sampling: Seconds of warmup and kept draws.
        warmup: Those of warmup alone, where a library tells.
        gradients: Gradient evaluations in ``sampling``, over all chains.
        divergences: Among kept draws.
        facts: More for the record.
    """

    sites: Sites | None
    setup: float
    sampling: float
    gradients: int
    divergences: int | None
    warmup: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def numpyro_nuts(problem: Problem, rows: Rows, job: Any, form: str = "vectorized") -> Run:
    """NUTS in a form of NumPyro's ``chain_method``: all chains in one kernel, or a kernel of one chain, which is run chain
    after chain (``"sequential"``) or on a device for each (``"parallel"``; they share the machine's cores).
    """
    import jax
    import jax.numpy as jnp
    from numpyro.infer import NUTS, init_to_sample

    began = time.perf_counter()
    kernel = NUTS(numpyro_model(problem), init_strategy=init_to_sample)
    args = (jnp.asarray(rows.x), jnp.asarray(rows.y))
    keys = jax.random.split(jax.random.key(job.seed), job.chains)
    if form == "vectorized":
        states = [kernel.init(keys, job.warmup, model_args=args)]
    else:
        states = [kernel.init(key, job.warmup, model_args=args) for key in keys]

    def advance(carry, start, stop):
        """Transitions start to stop; those after warmup leave their positions in ``store``, as MCMC.run does."""

        def body(i, carry):
            state, store, steps, divergences = carry
            state = kernel.sample(state, args, {})
            row = jnp.maximum(i - job.warmup, 0)
            store = jax.tree.map(lambda all, one: all.at[row].set(one), store, state.z)
            return state, store, steps + state.num_steps, divergences + (state.diverging & (i >= job.warmup))

        return jax.lax.fori_loop(start, stop, body, carry)

    def fresh(state):
        store = jax.tree.map(lambda z: jnp.zeros((job.draws, *z.shape), z.dtype), state.z)
        count = jnp.zeros(state.num_steps.shape, jnp.int32)
        return state, store, count, count

    if form == "parallel":
        states = [jax.tree.map(lambda *ones: jnp.stack(ones), *states)]
        fresh, advance = _a_device_for_each(fresh, advance, job.chains)
    compiled = jax.jit(advance).lower(fresh(states[0]), 0, 0).compile()
    setup = time.perf_counter() - began
    warmup, sampling, stores, steps, divergences = 0.0, 0.0, [], 0, 0
    for state in states:
        began = time.perf_counter()
        carry = jax.block_until_ready(compiled(fresh(state), 0, job.warmup))
        warmup += time.perf_counter() - began
        _, store, n, bad = jax.block_until_ready(compiled(carry, job.warmup, job.warmup + job.draws))
        sampling += time.perf_counter() - began
        stores.append(store)
        steps, divergences = steps + int(n.sum()), divergences + int(bad.sum())
    if form == "vectorized":
        sites = {name: np.swapaxes(np.asarray(value), 0, 1) for name, value in stores[0].items()}
    elif form == "parallel":
        sites = {name: np.asarray(value) for name, value in stores[0].items()}
    else:
        sites = {name: np.stack([np.asarray(store[name]) for store in stores]) for name in stores[0]}
    return Run(sites, setup, sampling, steps, divergences, warmup)


def _a_device_for_each(fresh: Callable, advance: Callable, chains: int) -> tuple[Callable, Callable]:
    """The two for states of all chains, each with its loop on a device of its own."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh, own, shared = jax.make_mesh((chains,), ("chain",)), PartitionSpec("chain"), PartitionSpec()

    def spread(state):
        return jax.device_put(jax.vmap(fresh)(state), NamedSharding(mesh, own))

    def one(carry, start, stop):
        carry = advance(jax.tree.map(lambda all: all[0], carry), start, stop)
        return jax.tree.map(lambda one: one[None], carry)

    return spread, jax.shard_map(one, mesh=mesh, in_specs=(own, shared, shared), out_specs=own, check_vma=False)


def _numpyro_start(problem: Problem, rows: Rows, job: Any) -> tuple[Any, Any]:
    """NumPyro's log density and a starting point for each chain, drawn from the prior: a dict of (chains, *shape)."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer import init_to_sample
    from numpyro.infer.util import initialize_model

    keys = jax.random.split(jax.random.key(job.seed), job.chains)
    args = (jnp.asarray(rows.x), jnp.asarray(rows.y))
    info = initialize_model(keys, numpyro_model(problem), init_strategy=init_to_sample, model_args=args)
    return (lambda z: -info.potential_fn(z)), info.param_info.z


def blackjax_nuts(problem: Problem, rows: Rows, job: Any) -> Run:
    import blackjax
    import jax
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    began = time.perf_counter()
    log_density, starts = _numpyro_start(problem, rows, job)
    only_steps = get_filter_adapt_info_fn(info_keys={"num_integration_steps"})
    adaptation = blackjax.window_adaptation(blackjax.nuts, log_density, adaptation_info_fn=only_steps)

    def warm(key, position):
        (state, parameters), info = adaptation.run(key, position, job.warmup)
        return state, _arrays(parameters), info.info.num_integration_steps.sum()

    kernel = blackjax.nuts.build_kernel()

    def draw(key, state, parameters):
        def body(state, key):
            state, info = kernel(key, state, log_density, **parameters)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        return jax.lax.scan(body, state, jax.random.split(key, job.draws))[1]

    result = _warm_and_draw(job, warm, draw, starts, began)
    (_, _, warm_steps), (sites, steps, diverging), times = result
    return Run(sites, gradients=int(warm_steps.sum() + steps.sum()), divergences=int(diverging.sum()), **times)


def blackjax_mclmc(problem: Problem, rows: Rows, job: Any) -> Run:
    """Microcanonical Langevin Monte Carlo without adjustment, tuned by BlackJAX over ``warmup * MCLMC_STEPS`` steps a chain."""
    import blackjax
    import jax

    began = time.perf_counter()
    log_density, starts = _numpyro_start(problem, rows, job)
    kernel = blackjax.mcmc.mclmc.build_kernel()
    num_steps = round(job.warmup * MCLMC_STEPS / MCLMC_TUNED)

    def warm(key, position):
        init_key, tune_key = jax.random.split(key)
        state = blackjax.mcmc.mclmc.init(position, log_density, init_key)
        state, tuned, steps = blackjax.mclmc_find_L_and_step_size(
            kernel, num_steps, state, tune_key, logdensity_fn=log_density
        )
        return state, tuned._asdict(), steps

    def draw(key, state, parameters):
        def step(state, key):
            state, info = kernel(key, state, log_density, **parameters)
            return state, ~info.nonans

        def body(state, key):
            state, failed = jax.lax.scan(step, state, jax.random.split(key, MCLMC_STEPS))
            return state, (state.position, failed.any())

        return jax.lax.scan(body, state, jax.random.split(key, job.draws))[1]

    (_, tuned, warm_steps), (sites, failed), times = _warm_and_draw(job, warm, draw, starts, began)
    gradients = MCLMC_GRADIENTS * int(warm_steps.sum() + job.chains * job.draws * MCLMC_STEPS)
    facts = {"step_size": float(np.median(tuned["step_size"])), "L": float(np.median(tuned["L"]))}
    return Run(sites, gradients=gradients, divergences=int(failed.sum()), facts=facts, **times)


def _warm_and_draw(job: Any, warm: Any, draw: Any, starts: Any, began: float) -> tuple[Any, Any, dict[str, float]]:
    """Compiles both stages over all chains, runs them, and times each. The second one's arrays are (chain, draw, ...)."""
    import jax

    warm_keys, draw_keys = jax.random.split(jax.random.key(job.seed + 1_000_000), (2, job.chains))
    warm, draw = jax.jit(jax.vmap(warm)), jax.jit(jax.vmap(draw))
    warm = warm.lower(warm_keys, starts).compile()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), warm.out_info)
    draw = draw.lower(draw_keys, *shapes[:2]).compile()
    setup = time.perf_counter() - began
    began = time.perf_counter()
    warmed = jax.block_until_ready(warm(warm_keys, starts))
    between = time.perf_counter() - began
    drawn = jax.block_until_ready(draw(draw_keys, *warmed[:2]))
    times = {"setup": setup, "sampling": time.perf_counter() - began, "warmup": between}
    return jax.tree.map(np.asarray, warmed), jax.tree.map(np.asarray, drawn), times


def _arrays(parameters: dict[str, Any]) -> dict[str, Any]:
    """Without settings that are no arrays, such as the integrator, and that the kernel has as defaults."""
    import jax.numpy as jnp

    return {k: jnp.asarray(v) for k, v in parameters.items() if k in ("step_size", "inverse_mass_matrix")}
