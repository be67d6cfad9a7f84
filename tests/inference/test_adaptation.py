"""Warmup: pooled moments, windows and lengths by themselves; then whole runs that must learn a posterior."""

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
from bnn_pyro.inference.adaptation import Moments, Schedule, windows
from bnn_pyro.inference.hmc import HMC, ChEES
from bnn_pyro.inference.lengths import LengthAdaptation, Trajectory, halton
from bnn_pyro.inference.mcmc import Adaptation
from bnn_pyro.inference.metric import Metric
from bnn_pyro.inference.nuts import NUTS

CPU = torch.device("cpu")
DENSE = pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])

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


SCALES = torch.logspace(0, 4, 30, dtype=F64)  # variances: standard deviations of 1 to 100


def window(chains, dense, place=None, width=1.0, draws=100, seed=1):
    """Moments of draws with variances ``SCALES``; the first chain is at ``place`` standard deviations, ``width`` as wide."""
    moments = Moments(chains, len(SCALES), dense, CPU)
    for position in normals(draws, chains, len(SCALES), seed=seed):
        if place is not None:
            position[0] = place + width * position[0]
        moments.update(torch.arange(chains), position * SCALES.sqrt())
    return moments


def diagonal(moments):
    matrix = moments.inverse_mass_matrix()
    return matrix.diagonal() if matrix.ndim == 2 else matrix


ONE_OUT = torch.eye(30, dtype=F64)[7]
FAR_OUT = {"everywhere": 30.0, "in one coordinate": 1e3 * ONE_OUT, "of ten million": torch.full((30,), 1e7, dtype=F64)}


@DENSE
@pytest.mark.parametrize("chains", [4, 16])
@pytest.mark.parametrize("width", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("place", FAR_OUT)
def test_a_chain_that_is_far_out_does_not_spoil_the_metric(dense, chains, width, place):
    """It may stand still, move as the others do or more. Without it, 100 draws of each other chain are what is left."""
    moments = window(chains, dense, FAR_OUT[place], width)
    assert moments.usual().tolist() == [False] + [True] * (chains - 1)
    n = 100 * (chains - 1)
    ratio = diagonal(moments) / SCALES * (n + 5) / n
    assert (ratio - 1).abs().max() < 4.5 * (2 / n) ** 0.5  # 30 coordinates, chi squared with n degrees of freedom
    others = window(chains, dense, FAR_OUT[place], width)
    others._count[0], others._mean[0], others._spread[0] = 0.0, 0.0, 0.0
    assert torch.allclose(moments.inverse_mass_matrix(), others.inverse_mass_matrix(), rtol=1e-10)


@DENSE
def test_which_chains_are_left_out_does_not_depend_on_their_order(dense):
    made, order = window(16, dense, 30.0), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    expected, usual = made.inverse_mass_matrix(), made.usual()
    made._count, made._mean, made._spread = made._count[order], made._mean[order], made._spread[order]
    assert torch.equal(made.usual(), usual[order])
    assert torch.allclose(made.inverse_mass_matrix(), expected, rtol=1e-12)


@pytest.mark.parametrize("chains", [1, 2, 3])
def test_of_few_chains_none_is_left_out(chains):
    moments = window(chains, False, 30.0)
    assert moments.usual().all()
    assert chains == 1 or diagonal(moments).min() > 100


@pytest.mark.parametrize("name", TARGETS)
def test_chains_that_mix_are_all_kept(name):
    """Windows of 25 draws, autocorrelation 0.5, heavy tails and funnels too: of 3200 chains less than 1 in 1000 is lost."""
    target, lost = TARGETS[name], 0
    for seed in range(200):
        moments, state = Moments(16, target.dim, False, CPU), 0.0
        for n in normals(25, 16, target.dim, seed=seed):
            state = 0.5 * state + 0.75**0.5 * n if torch.is_tensor(state) else n
            moments.update(torch.arange(16), target.draw(state))
        lost += int((~moments.usual()).sum())
    assert lost <= 3


def test_chains_in_modes_of_their_own_are_all_kept():
    """As of a network's weights: each chain in another mode, much narrower than the modes lie apart."""
    centres = 100 * normals(16, 50, seed=1)
    moments = Moments(16, 50, False, CPU)
    for position in normals(50, 16, 50, seed=2):
        moments.update(torch.arange(16), centres + position)
    assert moments.usual().all()
    assert (moments.inverse_mass_matrix() / centres.var(0)).log().abs().max() < 0.2


def test_chains_of_very_unlike_widths_are_all_kept():
    """As where none has mixed yet: the widest is 260 times as far as usual, squared, and still one of them."""
    widths = torch.exp(1.5 * torch.special.ndtri((torch.arange(16, dtype=F64) + 0.5) / 16))
    moments = Moments(16, 50, False, CPU)
    for position in normals(50, 16, 50, seed=2):
        moments.update(torch.arange(16), widths[:, None] * position)
    assert moments.usual().all()


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


@pytest.mark.parametrize("kind", [HMC, ChEES])
@pytest.mark.parametrize("warmup", [200, 500])
def test_the_shared_step_is_right_after_an_ordinary_warmup(kind, warmup):
    """Where leapfrog steps become unstable at once: 100 coordinates with correlations up to 0.9."""
    target = normal(correlated(100))
    kept, _ = run(kind(chains=16, warmup=warmup, draws=200), target, target.exact(16, seed=1), seed=2)
    rate = 1 / (1 / kept.stats["acceptance_rate"][:, warmup:].clamp(min=1e-10)).mean(0)
    assert abs(rate.mean() - kind(chains=16).target_accept) < 0.08
    swing = kept.stats["step_size"][0, warmup - 30 : warmup].log()
    assert swing.max() - swing.min() < 0.7


@pytest.mark.parametrize("kind", [NUTS, HMC, ChEES])
def test_one_chain_far_out_spoils_neither_metric_nor_length(kind):
    """Standard deviations of 1 to 100, and from 1e6 in the first coordinate on, no gradient: there a chain stays.

    The density falls there by 1e9, so that no other chain goes there and that one does not come back.
    """
    target = normal(SCALES)

    def gradient(z):
        grad, log_density = target(z)
        far = z[:, 0] > 5e5
        return torch.where(far[:, None], 0.0, grad), torch.where(far, -1e9, log_density)

    start = target.exact(16, seed=1)
    among, lone = start.clone(), torch.tensor([3])
    among[lone, 0] = 1e6
    options = {"max_tree_depth": 6} if kind is NUTS else {}  # where it is flat, trees grow as far as they may
    method = kind(chains=16, warmup=400, draws=10, **options)
    kept, spoilt = run(method, gradient, among, seed=2)
    _, healthy = run(method, target, start, seed=2)
    assert (kept.draws[lone, :, 0] > 5e5).all()
    for learnt in (spoilt, healthy):
        assert (learnt.inverse_mass_matrix / SCALES - 1).abs().max() < 0.3
    others = torch.arange(len(spoilt.step_size)) != lone if len(spoilt.step_size) > 1 else slice(None)
    assert (spoilt.step_size[others] / healthy.step_size[others]).log().abs().max() < 0.35
    if kind is ChEES:
        assert (spoilt.trajectory_length / healthy.trajectory_length).log().abs() < 0.35


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


@pytest.mark.parametrize(("kind", "warmup"), [
    (kind, warmup) for kind in (NUTS, HMC, ChEES) for warmup in (0, 1, 5, 19, 20, 21, 40) if warmup or kind is not ChEES
])  # fmt: skip
def test_short_warmups_run_and_end_with_fixed_steps(kind, warmup):
    target = normal(torch.ones(3, dtype=F64))
    kept, learnt = run(kind(chains=3, warmup=warmup, draws=5), target, target.exact(3, seed=1), seed=1)
    assert torch.isfinite(kept.draws).all()
    steps = kept.stats["step_size"][:, warmup:]
    assert (steps == steps[:, :1]).all() and torch.equal(steps[:, 0], learnt.step_size.expand(3))


def test_a_length_that_nobody_has_learnt_is_a_quarter_turn_or_refused():
    target, start = normal(torch.ones(2, dtype=F64)), torch.zeros(2, 2, dtype=F64)
    of_nuts = Adaptation(torch.full((2,), 0.3, dtype=F64), torch.ones(2, dtype=F64))
    _, learnt = run(HMC(chains=2, warmup=0, draws=5, adaptation=of_nuts), target, start, seed=1)
    assert learnt.trajectory_length == math.pi / 2
    for given in (of_nuts, None):
        with pytest.raises(OptionError, match="chees, warmup: expected at least 1, or the adaptation"):
            ChEES(chains=2, warmup=0, draws=5, adaptation=given)


def test_a_length_that_is_asked_for_goes_before_one_that_was_learnt():
    target, mass = TARGETS["scaled"], torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)
    chosen = settings("hmc", 4, 10, 0.3, mass, length=1.2, trajectory_length=0.6)
    _, learnt = run(chosen, target, target.exact(4, seed=1), seed=1)
    assert learnt.trajectory_length == 0.6
