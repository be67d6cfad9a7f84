"""What is compared: this library's samplers, and Pyro's NUTS; ``jax_samplers`` has NumPyro's and BlackJAX's.

A sampler is ``sample(problem, rows, job) -> Run``. All adapt a diagonal mass matrix, work in float32, and start each
chain at its own draw of the prior; ChEES where Adam leads from there, which is part of its setup. Imports happen inside, so
that a library that is missing is missed by its own rows only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax_samplers
import numpy as np
from jax_samplers import Run
from measure import Sites
from posteriors import Problem, Rows, pyro_program

PYRO_TREE_DEPTH = 6  # trees of 63 leapfrog steps
PYRO_STEP_SIZE = 1e-4  # so small that no tree turns or diverges: what a step costs doesn't depend on where it is taken


@dataclass(frozen=True)
class Job:
    """One measurement, as ``mcmc.py`` hands it to a process of its own; ``kept`` counts draws over all chains."""

    mode: str  # "run" or "first400"
    problem: str
    sampler: str
    chains: int
    seed: int
    warmup: int
    kept: int
    threads: int
    leapfrogs: int = 2000
    device: str = "cpu"

    @property
    def draws(self) -> int:
        """Kept draws of a chain, rounded up."""
        return -(-self.kept // self.chains)

    @property
    def key(self) -> tuple:
        """Rows with equal keys measure the same."""
        same = (self.mode, self.problem, self.sampler, self.chains, self.seed, self.threads)
        return (*same, self.leapfrogs) if self.sampler == "pyro_nuts" else (*same, self.warmup, self.kept)


@dataclass(frozen=True)
class Sampler:
    """``title`` and ``mark`` stand in tables, ``note`` below.

    ``chains`` is the only chain count that it is run at. With ``devices``, XLA shows the processor as one for each chain.
    """

    title: str
    needs: tuple[str, ...]
    sample: Callable[[Problem, Rows, Job], Run]
    note: str = ""
    mark: str = ""
    chains: int | None = None
    devices: bool = False


def ours(inference: str) -> Callable[[Problem, Rows, Job], Run]:
    def sample(problem: Problem, rows: Rows, job: Job) -> Run:
        import bnn_pyro as bnn

        began = time.perf_counter()
        posterior = bnn.fit(
            pyro_program(problem), rows.x, rows.y, inference=inference, seed=job.seed, engine="compiled", dtype="float32",
            standardize=False, progress=False, device=job.device, chains=job.chains, warmup=job.warmup, draws=job.draws,
        )  # fmt: skip
        wall = time.perf_counter() - began
        info = posterior.draws.info
        return Run(
            sites=_unconstrained(posterior),
            setup=wall - info["sampling_time"],  # tracing, compiling, checking and starting points
            sampling=info["sampling_time"],
            gradients=info["gradient_evaluations"],
            divergences=int(posterior.draws.stats["diverging"].sum()),
            facts={
                "backend": info["backend"],
                "backend_reason": info["backend_reason"],
                "start_s": info["start_time"],
            },
        )

    return sample


def _unconstrained(posterior) -> Sites:
    z = posterior.draws.z.numpy()
    sites = posterior.target.sites
    return {s.name: z[..., s.start : s.stop].reshape(*z.shape[:2], *s.unconstrained_shape) for s in sites}


def pyro_nuts(problem: Problem, rows: Rows, job: Job) -> Run:
    """Times ``job.leapfrogs`` leapfrog steps of Pyro's NUTS, its trees included; draws nothing that is kept.

    Its whole run would take hours. As NUTS is the same algorithm in all libraries, tables give it the ESS per gradient of
    NumPyro's, at the speed that is measured here.
    """
    import pyro
    import torch
    from pyro.infer import NUTS

    pyro.set_rng_seed(job.seed)
    began = time.perf_counter()
    kernel = NUTS(
        pyro_program(problem), jit_compile=True, ignore_jit_warnings=True, step_size=PYRO_STEP_SIZE, adapt_step_size=False,
        adapt_mass_matrix=False, max_tree_depth=PYRO_TREE_DEPTH,
    )  # fmt: skip
    kernel.setup(0, torch.from_numpy(rows.x), torch.from_numpy(rows.y))
    potential, calls = kernel.potential_fn, 0

    def counted(z):
        nonlocal calls
        calls += 1
        return potential(z)

    kernel.potential_fn = counted
    with pyro.validation_enabled(False):
        z = kernel.sample(kernel.initial_params)  # torch's jit optimises in its first calls
        setup, calls, began = time.perf_counter() - began, 0, time.perf_counter()
        while calls < job.leapfrogs:
            z = kernel.sample(z)
    return Run(None, setup=setup, sampling=time.perf_counter() - began, gradients=calls, divergences=None)


SAMPLERS = {
    "ours_nuts": Sampler("bnn_pyro NUTS", ("bnn_pyro",), ours("nuts")),
    "ours_chees": Sampler("bnn_pyro ChEES", ("bnn_pyro",), ours("chees")),
    "numpyro_nuts": Sampler("NumPyro NUTS", ("numpyro",), jax_samplers.numpyro_nuts, "all chains at once (vectorised)"),
    "numpyro_nuts_seq": Sampler(
        "NumPyro NUTS seq",
        ("numpyro",),
        partial(jax_samplers.numpyro_nuts, form="sequential"),
        "one chain after another",
    ),
    "numpyro_nuts_par": Sampler(
        "NumPyro NUTS par",
        ("numpyro",),
        partial(jax_samplers.numpyro_nuts, form="parallel"),
        "a device for each chain",
        devices=True,
    ),
    "blackjax_nuts": Sampler(
        "BlackJAX NUTS", ("blackjax", "numpyro"), jax_samplers.blackjax_nuts, "window_adaptation, vmapped"
    ),
    "blackjax_mclmc": Sampler(
        "BlackJAX MCLMC",
        ("blackjax", "numpyro"),
        jax_samplers.blackjax_mclmc,
        "unadjusted: its draws are biased, which ESS does not see; "
        f"{jax_samplers.MCLMC_STEPS} steps of {jax_samplers.MCLMC_GRADIENTS} gradients to a kept draw",
        mark="u",
    ),
    "pyro_nuts": Sampler(
        "Pyro NUTS jit",
        ("pyro",),
        pyro_nuts,
        "extrapolated from its gradients a second and NumPyro's ESS per gradient",
        mark="e",
        chains=1,
    ),
}


def kept_draws(run: Run) -> int:
    return 0 if run.sites is None else int(np.prod(next(iter(run.sites.values())).shape[:2]))
