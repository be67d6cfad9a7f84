"""Warmup: step sizes, pooled moments, windows and lengths by themselves; then whole runs that must learn a posterior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from batched_targets import F64, TARGETS, correlated, normal, normals, run, settings

from bnn_pyro import results
from bnn_pyro.errors import OptionError
from bnn_pyro.inference import hmc_run, nuts_run
from bnn_pyro.inference.adaptation import DualAveraging, Moments, Schedule, first_step_size, windows
from bnn_pyro.inference.hmc import HMC, ChEES
from bnn_pyro.inference.hmc_run import LengthAdaptation, Trajectory, halton
from bnn_pyro.inference.mcmc import Adaptation
from bnn_pyro.inference.metric import Metric, leapfrog, log_acceptance
from bnn_pyro.inference.nuts import NUTS
from bnn_pyro.noise import Noise

CPU = torch.device("cpu")
DENSE = pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])

# ---- step sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.6, 0.8, 0.95])
def test_dual_averaging_reaches_its_target_in_every_chain(target):
    """Chain i accepts at a rate exp(-scale_i e) with noise: its answer is -log(target) / scale_i."""
    scale = torch.logspace(-3, 3, 8, dtype=F64)
    averaging = DualAveraging(torch.full((8,), 0.1, dtype=F64), target)
    everyone = torch.arange(8)
    for noise in normals(4000, 8, seed=1):
        rate = (-scale * averaging.step_size).exp()
        averaging.update(everyone, (rate + 0.05 * noise).clamp(0, 1))
    assert ((-scale * averaging.average).exp() - target).abs().max() < 0.02


def test_dual_averaging_follows_its_published_recursion_by_chain():
    """Hoffman & Gelman 2014, equation 6, in sums instead of running means; chains take part as they come."""
    start, target = torch.tensor([0.1, 2.0, 0.5], dtype=F64), 0.7
    averaging = DualAveraging(start, target)
    rates = torch.rand(40, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    takes_part = [torch.arange(3)[torch.arange(3) <= i % 3] for i in range(40)]  # chain 2 every third time
    for rate, rows in zip(rates, takes_part):
        averaging.update(rows, rate[rows])
    for chain in range(3):
        seen = [float(rate[chain]) for rate, rows in zip(rates, takes_part) if chain in rows]
        log_average = 0.0
        for t in range(1, len(seen) + 1):
            error = sum(target - rate for rate in seen[:t]) / (t + 10)
            log_step = math.log(10 * start[chain]) - math.sqrt(t) / 0.05 * error
            log_average = t**-0.75 * log_step + (1 - t**-0.75) * log_average
        assert averaging.log_step[chain].item() == pytest.approx(log_step, rel=1e-12)
        assert averaging.average[chain].log().item() == pytest.approx(log_average, rel=1e-12)
    before = averaging.average
    averaging.restart(before)
    assert torch.allclose(averaging.average, before) and torch.allclose(averaging.step_size, before)


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_step_size_is_the_largest_accepted_of_its_doublings(name):
    target, dim = TARGETS[name], TARGETS[name].dim
    noise, everyone = Noise(3, "first step"), torch.arange(30)
    metric, position = Metric(torch.full((dim,), 1e-3, dtype=F64)), target.exact(30, seed=1)
    steps = first_step_size(target, position, metric, noise)
    momentum = metric.momentum(noise.normals(everyone, 0 * everyone, dim))
    grad, log_density = target(position)

    def accepted(step):
        *_, end, end_density = leapfrog(position, momentum, grad, step, metric, target)
        return log_acceptance(metric.kinetic(momentum) - log_density, metric.kinetic(end) - end_density) > -0.7

    assert accepted(steps).all() and not accepted(2 * steps).any()
    assert ((steps / 0.1).log2() % 1 == 0).all()


# ---- the mass matrix ---------------------------------------------------------------------------------------------


@DENSE
def test_moments_are_the_covariance_of_all_draws_of_all_chains(dense):
    """Chains that lie apart and have seen unequal numbers of draws: neither may be forgotten."""
    chains, dim = 5, 3
    moments = Moments(chains, dim, dense, CPU)
    draws = normals(40, chains, dim, seed=1) @ correlated(dim) + 1e3 + 5 * torch.arange(chains, dtype=F64)[:, None]
    seen = [[] for _ in range(chains)]
    for again in range(2):  # the second time after a restart
        if again:
            moments.restart()
            seen = [[] for _ in range(chains)]
        for i, position in enumerate(draws if again else draws.flip(0)):
            rows = torch.arange(chains)[torch.arange(chains) <= i % chains]
            moments.update(rows, position[rows])
            for row in rows.tolist():
                seen[row].append(position[row].numpy())
    pooled = np.concatenate([np.array(one) for one in seen])
    n = len(pooled)
    expected = np.cov(pooled.T) * n / (n + 5) + 1e-3 * 5 / (n + 5) * np.eye(dim)
    made = moments.inverse_mass_matrix()
    assert made.dtype == F64
    np.testing.assert_allclose(made.numpy(), expected if dense else expected.diagonal(), rtol=1e-9)


@DENSE
def test_a_dense_mass_matrix_of_few_draws_can_be_factorised(dense):
    moments = Moments(2, 8, dense, CPU)
    moments.update(torch.arange(2), normals(2, 8, seed=1))
    momentum = Metric(moments.inverse_mass_matrix()).momentum(normals(4, 8, seed=2))
    assert torch.isfinite(momentum).all()


def test_moments_of_float32_positions_are_kept_in_float64():
    moments = Moments(1, 1, False, CPU)
    values = torch.tensor([10_000.0, 10_001.0, 10_002.0])
    for value in values:
        moments.update(torch.zeros(1, dtype=torch.int64), value.reshape(1, 1))
    assert moments.inverse_mass_matrix().item() == pytest.approx(1.0 * 3 / 8 + 1e-3 * 5 / 8, rel=1e-12)


# ---- windows -----------------------------------------------------------------------------------------------------


def test_windows_of_a_thousand_are_stans_but_for_the_tail():
    assert windows(1000).begin == 75 and windows(1000).ends == (100, 150, 250, 800)
    assert windows(150).begin == 75 and windows(150).ends == (100,)
    assert windows(100).begin == 15 and windows(100).ends == (65,)


def test_windows_fit_into_any_warmup():
    for warmup in range(20):
        assert windows(warmup).ends == () and windows(warmup).begin == warmup
    for warmup in range(20, 2001):
        schedule = windows(warmup)
        head, tail = (75, max(50, warmup // 5)) if warmup >= 150 else (int(0.15 * warmup), int(0.35 * warmup))
        assert schedule.begin == head and schedule.ends[-1] == warmup - tail < warmup
        sizes = np.diff([head, *schedule.ends])
        assert sizes[0] >= min(25, warmup - head - tail) > 0
        assert (sizes[:-1] == 25 * 2 ** np.arange(len(sizes) - 1)).all()  # all but the last double
        assert sizes[-1] >= (2 * sizes[-2] if len(sizes) > 1 else 1)


# ---- trajectories' length ----------------------------------------------------------------------------------------


def test_halton_numbers():
    assert [halton(i) for i in range(7)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]


@DENSE
def test_the_length_climbs_chees(dense):
    """Along exact orbits of a normal target the slope is the derivative of the criterion, and its root pi / 2."""
    covariance = correlated(4)
    metric = Metric(covariance if dense else covariance.diagonal())
    z, p = (x - x.mean(0) for x in (normals(3000, 4, seed=1), normals(3000, 4, seed=2)))

    def unwhiten(x):
        return x @ torch.linalg.cholesky(covariance).T if dense else x * covariance.diagonal().sqrt()

    def at(t):
        return z * math.cos(t) + p * math.sin(t), p * math.cos(t) - z * math.sin(t)

    def criterion(t):
        return float(((at(t)[0] ** 2).sum(1) - (z**2).sum(1)).square().mean() / 4)

    for t in (0.4, 1.2, 2.0):
        end, velocity = at(t)
        lengths = LengthAdaptation(torch.tensor(1.0))
        rate = torch.full((3000,), 0.7, dtype=F64)
        lengths.update(Trajectory(unwhiten(z) + 3, unwhiten(end) + 3, unwhiten(velocity), rate), metric, t, 0.01, 1000)
        slope = t * (criterion(t + 1e-5) - criterion(t - 1e-5)) / 2e-5
        assert math.copysign(1, float(lengths.log_length)) == math.copysign(1, slope) == (1 if t < math.pi / 2 else -1)
        assert float(lengths._square / (1 - lengths.decay)) ** 0.5 == pytest.approx(abs(slope), rel=1e-6)
        assert abs(float(lengths.log_length)) == pytest.approx(0.025, rel=1e-6)  # Adam's first step


def test_chains_that_failed_have_no_say_in_the_length():
    lengths = LengthAdaptation(torch.tensor(1.0))
    start = normals(4, 2, seed=1)
    lost = torch.full((4, 2), torch.nan, dtype=F64)
    nobody = Trajectory(start, lost, lost, torch.zeros(4, dtype=F64))
    lengths.update(nobody, Metric(torch.ones(2, dtype=F64)), 1.0, 0.1, 100)
    assert lengths.length == 1.0
    one_lost = Trajectory(start, torch.cat([2 * start[:3], lost[:1]]), torch.cat([start[:3], lost[:1]]), torch.ones(4))
    lengths.update(one_lost, Metric(torch.ones(2, dtype=F64)), 1.0, 0.1, 100)
    assert torch.isfinite(lengths.length) and lengths.length > 1


# ---- whole runs --------------------------------------------------------------------------------------------------

RUNS = {
    "nuts, dense": NUTS(chains=32, warmup=200, draws=150, dense_mass=True),
    "nuts, diagonal": NUTS(chains=32, warmup=100, draws=80),
    "hmc": HMC(chains=32, warmup=300, draws=300, dense_mass=True),
    "chees": ChEES(chains=32, warmup=300, draws=300, dense_mass=True),
    "chees, diagonal": ChEES(chains=32, warmup=300, draws=300),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_warmup_has_the_exact_means_and_variances(name):
    method, target = RUNS[name], TARGETS["correlated"]
    kept, learnt = run(method, target, 3 * target.exact(method.chains, seed=1), seed=2)
    draws = kept.draws[:, method.warmup :].numpy()
    variance = correlated().diagonal().numpy()
    for series, exact in ((draws, 0 * variance), (draws**2, variance)):
        table = xr.Dataset({"q": (("chain", "draw", "k"), series)})
        z = np.abs(series.mean((0, 1)) - exact) / results.mcse(table, method="mean")["q"]
        assert z.max() < 4.56
    after = {key: value[:, method.warmup :] for key, value in kept.stats.items()}
    assert after["acceptance_rate"].mean() > method.target_accept - 0.05
    assert not after["diverging"].any()
    assert (after["step_size"] == after["step_size"][:, :1]).all()  # fixed after warmup
    assert torch.equal(after["step_size"][:, 0], learnt.step_size.expand(method.chains))
    mass = learnt.inverse_mass_matrix
    assert mass.ndim == (2 if method.dense_mass else 1) and mass.dtype == F64
    ratio = (mass.diagonal() if method.dense_mass else mass) / correlated().diagonal()
    assert ratio.min() > 0.5 and ratio.max() < 1.6
    assert (learnt.trajectory_length is None) == (name.startswith("nuts"))


@pytest.mark.parametrize("kind", [NUTS, HMC, ChEES])
def test_step_sizes_reach_the_target_where_they_have_the_time(kind, monkeypatch):
    """The 50 transitions of an ordinary tail leave the rate up to 0.15 above its target, long ones do not."""
    for module in (hmc_run, nuts_run):
        monkeypatch.setattr(module, "windows", lambda warmup: Schedule(20, (50, 100)))
    warmup = 800 if kind is NUTS else 3000  # there, a rate of each chain's own
    method, target = kind(chains=16, warmup=warmup, draws=300), TARGETS["normal"]
    kept, _ = run(method, target, target.exact(16, seed=1), seed=2)
    rate = kept.stats["acceptance_rate"][:, method.warmup :]
    if kind is not NUTS:  # one step size for all, adapted to the harmonic mean over chains
        rate = 1 / (1 / rate).mean(0)
    assert abs(rate.mean() - method.target_accept) < 0.04


@pytest.mark.parametrize("name", ["nuts", "hmc", "chees"])
def test_what_was_learnt_is_used_as_it_is_and_given_back(name):
    target, mass = TARGETS["scaled"], torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)
    chosen = settings(name, 4, 10, 0.3, mass, length=1.2)
    kept, learnt = run(chosen, target, target.exact(4, seed=1), seed=1)
    assert (kept.stats["step_size"] == 0.3).all()
    assert torch.equal(learnt.inverse_mass_matrix, mass) and (learnt.step_size == 0.3).all()
    if name != "nuts":
        assert learnt.trajectory_length == 1.2
        assert kept.stats["n_steps"][0].tolist() == [math.ceil(2 * halton(i) * 1.2 / 0.3) for i in range(10)]


@pytest.mark.parametrize("warmup", [0, 1, 5, 19, 20, 21, 40])
@pytest.mark.parametrize("kind", [NUTS, HMC, ChEES])
def test_short_warmups_run_and_end_with_fixed_steps(kind, warmup):
    target = normal(torch.ones(3, dtype=F64))
    kept, learnt = run(kind(chains=3, warmup=warmup, draws=5), target, target.exact(3, seed=1), seed=1)
    assert torch.isfinite(kept.draws).all()
    steps = kept.stats["step_size"][:, warmup:]
    assert (steps == steps[:, :1]).all() and torch.equal(steps[:, 0], learnt.step_size.expand(3))


@pytest.mark.parametrize("kind", [HMC, ChEES])
def test_what_nuts_has_learnt_is_taken_or_refused_with_a_sentence(kind):
    target = normal(torch.ones(2, dtype=F64))
    of_nuts = Adaptation(torch.full((2,), 0.3, dtype=F64), torch.ones(2, dtype=F64))
    try:
        kept, _ = run(kind(chains=2, warmup=0, draws=5, adaptation=of_nuts), target, target.exact(2, 1), seed=1)
    except OptionError:
        return
    assert torch.isfinite(kept.draws).all()
