"""Simulation-based calibration: does a sampler, on a model, give posteriors that are right on average?

    theta ~ prior,  y ~ p(y | x, theta),  theta_1 ... theta_L ~ posterior given y  =>  rank of g(theta) among g(theta_l)
    is uniform on 0 ... L, for any g

Each set of data is a chain of one run, with targets of its own, so that a thousand fits are one batch. Ranks are looked at
for quantities that no permutation of units changes, the log likelihood among them, which sees faults that no function of
theta alone does (Modrak et al. 2023).
Sources: Talts et al. 2018, arXiv:1804.06788; Modrak et al. 2023, arXiv:2211.02383.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.func import vmap

from bnn_pyro.arguments import as_model, check_flag, find_dtype
from bnn_pyro.compiled import BACKENDS, Gradient, block_for, compile_gradient, threads_for, warn_of_backend
from bnn_pyro.data import Inputs, inputs_to_tensors, rows
from bnn_pyro.errors import BNNError, ModelError, OptionError, unknown
from bnn_pyro.function_space import watched
from bnn_pyro.handlers import Run
from bnn_pyro.inference import MCMC, Method, make_method
from bnn_pyro.inference.adaptation import check_adaptation
from bnn_pyro.interrupts import Interrupts
from bnn_pyro.isolation import check_seed, derive_seed, isolated
from bnn_pyro.recording import Recording
from bnn_pyro.sampling import run, transitions_bar
from bnn_pyro.sites import draw_from_prior
from bnn_pyro.starts import TRIES, prior_point, usable
from bnn_pyro.structure import build_target
from bnn_pyro.target import Target

BINS = 20
PROBES = 8  # rows at which the function is ranked
P_VALUE = 1e-4  # of a quantity, below which it fails


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true values among the posterior's draws, by quantity.

    Attributes:
        ranks: By quantity, (sets,) whole numbers from 0 to ``draws``.
        draws: Draws of each posterior.
        info: Facts about the run.
    """

    ranks: dict[str, np.ndarray]
    draws: int
    info: dict[str, Any]

    @property
    def chi_square(self) -> dict[str, float]:
        """By quantity, of ranks in 20 bins against uniform ones: 19 degrees of freedom."""
        found = {}
        edges = np.linspace(0, self.draws + 1, BINS + 1)
        share = np.histogram(np.arange(self.draws + 1), edges)[0] / (self.draws + 1)  # bins may hold unequal ranks
        for name, ranks in self.ranks.items():
            counts = np.histogram(ranks, edges)[0]
            expected = len(ranks) * share
            found[name] = float((((counts - expected) ** 2) / expected).sum())
        return found

    @property
    def limit(self) -> float:
        """Of chi-square, exceeded with probability 1e-4 where all is right: 50.8."""
        return float(stats.chi2.isf(P_VALUE, BINS - 1))

    @property
    def passed(self) -> bool:
        return max(self.chi_square.values()) < self.limit

    def __str__(self) -> str:
        sets = len(next(iter(self.ranks.values())))
        lines = [f"{sets} sets of data, {self.draws} draws each; chi-square(19) below {self.limit:.1f} passes"]
        for name, value in self.chi_square.items():
            mean = float(np.mean(self.ranks[name]) / self.draws)
            lines.append(
                f"  {name:24} {value:7.1f}  mean rank {mean:.3f}  {'' if value < self.limit else 'FAILED'}".rstrip()
            )
        return "\n".join(lines)


def calibrate(
    model: Any,
    x: Any,
    *,
    inference: str | Method = "nuts",
    sets: int = 1000,
    draws: int = 99,
    seed: int = 0,
    dtype: str = "float64",
    backend: str = "inductor",
    progress: bool = True,
    sampler: Any = None,
    **options: Any,
) -> Calibration:
    """Simulation-based calibration of a model under an inference method, at rows x (n, ...) in the model's own units.

    All sets go through one run. So they share what warmup learns from all chains, the mass matrix, and for HMC and ChEES the
    step size and length: transitions are tested with the metric that suits the prior predictive as a whole.

    Args:
        model: As in ``fit``; its y is drawn from the prior predictive, so it needs proper priors and one observed site.
        inference: ``"nuts"``, ``"hmc"`` or ``"chees"`` with options as in ``fit``, such as ``warmup=300, thin=10``, which is
            what they are unless said; ``thin`` is to make draws nearly independent. Or a value, such as ``NUTS(thin=10)``.
            Chains begin at draws of the prior.
        sets: Sets of data, each a chain.
        draws: Of each posterior, at least 19.
        seed: As in ``fit``.
        dtype, backend: As in ``fit``, but that float64 and ``"inductor"`` are the defaults: what is tested is the sampler,
            and rounding has tests of its own.
        progress: Show a bar on a terminal.
        sampler: Replaces the run of all chains, ``bnn_pyro.sampling.run``; to see that a broken one is found.
    Raises: OptionError or UnknownNameError for a method that is not MCMC and for options; ModelError for a program that
        cannot be simulated from.
    """
    check_seed(seed)
    check_flag("calibrate, progress", progress)
    floating = find_dtype(dtype)
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    bnn = as_model(model).fresh()
    if not isinstance(draws, int) or draws < BINS - 1:
        raise OptionError(f"calibrate, draws: expected at least {BINS - 1}, for ranks in {BINS} bins, got {draws!r}.")
    for option, instead in (("chains", "Write sets=..."), ("init", "Chains begin at draws of the prior")):
        if option in options:
            raise OptionError(f"calibrate: expected no {option}, got {options[option]!r}. {instead}.")
    method = make_method(inference, {} if isinstance(inference, str) else options)
    if not isinstance(method, MCMC):
        raise OptionError(f"calibrate, inference: expected 'nuts', 'hmc' or 'chees', got {method.name!r}.")
    size: dict[str, Any] = {"chains": sets, "draws": draws}
    if isinstance(inference, str):
        size = {"warmup": 300, "thin": 10, **options, **size}
        make_method(inference, size)  # refuses an option that is misspelt
    method = replace(method, **size)
    target, truth, y = simulate(bnn, x, sets, seed, floating)
    if method.adaptation is not None:
        check_adaptation(method.adaptation, target.dim, bnn.name)
    with isolated(derive_seed(seed, "check"), floating, threads=threads_for(target)):
        block = block_for(target, truth[0], type(method).chains)  # as many as fit: there are many chains
        gradient = compile_gradient(target, truth[:3], backend, y=y, block=block)
    warn_of_backend(gradient, bnn.name)
    starts = _starts(target, gradient, sets, seed)
    with isolated(dtype=floating, threads=gradient.threads), transitions_bar(method, progress) as bar:
        recording = Recording(method, target.dim, floating, Interrupts(), bar)
        (sampler or run)(gradient, starts, method, derive_seed(seed, "run"), recording)
        recording.close()
    found = _quantities(target, torch.cat([truth[:, None], recording.positions()], 1), y)
    ranks = {name: (values[:, 1:] < values[:, :1]).sum(1) for name, values in found.items()}
    info = {
        "backend": gradient.backend,
        "backend_reason": gradient.reason,
        "gradients": recording.gradients,
        "divergences": recording.divergences,
    }
    return Calibration(ranks, draws, info)


def simulate(bnn: Any, x: Any, sets: int, seed: int, dtype: torch.dtype) -> tuple[Target, Tensor, Tensor]:
    """A target on rows x, draws of its prior (sets, dim), and targets drawn given each (sets, n, ...)."""
    inputs = inputs_to_tensors(x, dtype, torch.device("cpu"), True)
    target = _target(bnn, inputs, dtype)
    if target.predicted is None:
        raise ModelError(f"{bnn.name}, calibrate: expected one observed site, got {len(target.observed)}.")
    truth, ys = [], []
    for i in range(sets):
        z = _prior_draw(target, derive_seed(seed, "truth", i))
        with isolated(derive_seed(seed, "data", i), dtype), torch.no_grad():
            truth.append(z)
            ys.append(target.forward(z, inputs).sample().to(dtype))
    return replace(target, y=ys[0]), torch.stack(truth), torch.stack(ys)


def _target(bnn: Any, inputs: Inputs, dtype: torch.dtype) -> Target:
    """The program's target with some y that it can have: what a run without y draws, which no other site can tell from y's."""
    n = rows(inputs)
    run = Run(draw_from_prior, dtype)
    with (
        isolated(0, dtype),
        torch.no_grad(),
        suppress(Exception),
        run,
    ):  # ``build_target`` says what is wrong with a program
        bnn.model(inputs, None)
    drawn = [value for value in run.values.values() if value.ndim and len(value) == n]
    first: BNNError | None = None
    for y in [torch.zeros(n, dtype=dtype), *reversed(drawn)]:
        try:
            return build_target(bnn.model, inputs, y, name=bnn.name, dims=bnn.dims(), dtype=dtype)
        except BNNError as error:
            first = first or error
    assert first is not None
    raise first


def _prior_draw(target: Target, seed: int) -> Tensor:
    with isolated(seed, target.dtype), torch.no_grad():
        return prior_point(target)


def _starts(target: Target, gradient: Gradient, sets: int, seed: int) -> Tensor:
    """Draws of the prior (sets, dim) at which each set's density is finite. Raises: ModelError after 100 tries."""
    starts = torch.stack([_prior_draw(target, derive_seed(seed, "start", i)) for i in range(sets)])
    for attempt in range(1, TRIES + 1):
        bad = (~usable(starts, gradient, target)).nonzero()[:, 0]
        if not len(bad):
            return starts
        starts[bad] = torch.stack([_prior_draw(target, derive_seed(seed, "start", int(i), attempt)) for i in bad])
    raise ModelError(
        f"{target.name}, calibrate: expected a finite density at a draw of the prior, got none in {TRIES} tries for "
        f"{len(bad)} of {sets} sets of data. Check the priors' scales."
    )


def _quantities(target: Target, z: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """By name, (sets, points) of z (sets, points, dim), where each set has targets of its own."""
    one = watched(target, z[0, 0])
    parts = []
    with isolated(dtype=target.dtype), torch.no_grad():
        over_draws = vmap(one, in_dims=(0, None))
        for points, own in zip(z, y, strict=True):
            parts.append(over_draws(points, own))
    found: dict[str, np.ndarray] = {}
    for name in parts[0]:
        values = torch.stack([part[name] for part in parts]).double().numpy()
        if values.ndim == 2:
            found[name] = values
            continue
        values = values.reshape(*values.shape[:2], -1)
        pick = np.unique(np.linspace(0, values.shape[2] - 1, PROBES).round().astype(int))
        found |= {f"{name}[{i}]": values[:, :, i] for i in pick}
    return {k: v for k, v in found.items() if np.ptp(v) > 0}
