"""One transition of 50 000 chains that start at exact draws leaves their distribution as it was.

Bounds are those of Dvoretzky, Kiefer and Wolfowitz at a false alarm rate of 1e-6: 0.0120 for a known distribution, 0.0170
between two samples. Normal targets are looked at along random directions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batched_targets import F64, TARGETS, correlated, normals, run, settings
from scipy import stats

from bnn_pyro.inference import hmc_run, leapfrogs, metric, nuts_run, random_tables, trees
from bnn_pyro.inference.metric import Metric
from bnn_pyro.inference.random_tables import Momenta
from bnn_pyro.inference.trees import Trees

COUNT = 50_000
ONE_SAMPLE, TWO_SAMPLES = 0.0120, 0.0170
METHODS = ["nuts", "hmc", "chees"]
STEP = {"normal": 1.5, "logit_beta": 0.8, "banana": 0.8, "correlated": 0.4}  # at which some are refused


@pytest.fixture(autouse=True)
def _short_tables(monkeypatch):
    """Uniform numbers for 8 steps at a time: they depend on chain and step only, and 256 would be 12.8 million."""
    monkeypatch.setattr(random_tables, "_STEPS", 8)


def inverse_mass(name):
    """Right only by half, so that it matters where it stands."""
    if name == "correlated":
        return correlated().diagonal() * 0.7
    return torch.full((TARGETS[name].dim,), 0.5, dtype=F64)


def move(method, name, step=None, transitions=1, seed=3):
    """Exact draws (count, dim), where chains are after ``transitions``, and the runs' statistics."""
    target = TARGETS[name]
    start = target.exact(COUNT, seed=seed)
    step = step or STEP[name]
    options = {"max_tree_depth": 6} if method == "nuts" else {"length": 2.2}
    chosen = settings(method, COUNT, transitions, step, inverse_mass(name), **options)
    kept, _ = run(chosen, target, start, seed=11)
    return start.numpy(), kept.draws[:, -1].numpy(), kept.stats


# ---- distances ---------------------------------------------------------------------------------------------------


def from_uniform(u):
    """Largest distance of the empirical distribution of u (n, k) from Uniform(0, 1), by column."""
    u, n = np.sort(u, 0), len(u)
    rank = np.arange(n)[:, None]
    return np.maximum((rank + 1) / n - u, u - rank / n).max(0)


def quantities(name, z):
    """Numbers (n, k) that follow Uniform(0, 1) if z (n, dim) follows the target: marginals, residuals, directions."""
    if name == "logit_beta":
        return stats.beta(2.0, 3.0).cdf(1 / (1 + np.exp(-z)))
    if name == "banana":  # as ``banana`` is made of two standard normal numbers
        return stats.norm.cdf(np.stack([z[:, 0], (z[:, 1] - 0.5 * (z[:, 0] ** 2 - 1)) / 0.7], -1))
    covariance = correlated().numpy() if name == "correlated" else np.eye(z.shape[1])
    directions = normals(len(covariance), 100 if name == "correlated" else 10, seed=7).numpy()
    sd = np.sqrt(np.einsum("ik,ij,jk->k", directions, covariance, directions))
    return stats.norm.cdf(z @ directions / sd)


def distance(name, z):
    """The largest over all quantities, in multiples of its bound."""
    largest = from_uniform(quantities(name, z)).max() / ONE_SAMPLE
    if name == "banana":  # its second coordinate has no closed form: against draws that have nothing to do with z
        fresh = TARGETS[name].exact(COUNT, seed=99).numpy()
        largest = max(largest, stats.ks_2samp(z[:, 1], fresh[:, 1], method="asymp").statistic / TWO_SAMPLES)
    return largest


@pytest.mark.parametrize("name", STEP)
@pytest.mark.parametrize("method", METHODS)
def test_one_transition_leaves_the_target_as_it_was(method, name):
    start, end, kept = move(method, name)
    assert np.isfinite(end).all()
    assert distance(name, start) < 1  # the exact draws are
    assert distance(name, end) < 1
    white = Metric(inverse_mass(name)).whiten(torch.from_numpy(end - start)).norm(dim=1)
    assert white.mean() > STEP[name]
    assert 0.5 < kept["acceptance_rate"].mean() < 0.98  # refusing matters


@pytest.mark.parametrize("name", STEP)
def test_a_shift_of_the_distribution_function_by_three_percent_is_seen(name):
    u = quantities(name, TARGETS[name].exact(COUNT, seed=3).numpy())
    assert from_uniform(np.clip(u + 0.03, 0, 1)).min() > ONE_SAMPLE


def test_trees_with_a_dense_metric_leave_the_target_as_it_was():
    target, start = TARGETS["correlated"], TARGETS["correlated"].exact(COUNT, seed=4)
    chosen = settings("nuts", COUNT, 1, 1.1, correlated(seed=5), max_tree_depth=6)
    kept, _ = run(chosen, target, start, seed=12)
    assert distance("correlated", kept.draws[:, 0].numpy()) < 1


# ---- planted faults ----------------------------------------------------------------------------------------------


def _accept_all(monkeypatch):
    monkeypatch.setattr(hmc_run, "log_acceptance", lambda before, after: torch.zeros_like(before))


def _drop_half_a_step(monkeypatch):
    def broken(position, momentum, grad, step, mass, gradient):
        position = position + step[:, None] * mass.velocity(momentum)
        grad, log_density = gradient(position)
        return position, grad, momentum + step[:, None] * grad, log_density

    monkeypatch.setattr(leapfrogs, "leapfrog", broken)


def _swap_the_mass(monkeypatch):
    monkeypatch.setattr(Metric, "momentum", lambda self, normal: normal * self.root)


def _share_momenta(monkeypatch):
    right, right_all = Momenta.take, Momenta.take_all
    monkeypatch.setattr(Momenta, "take", lambda self, rows, t: right(self, rows[:1], t[:1]).expand(len(rows), -1))
    monkeypatch.setattr(Momenta, "take_all", lambda self, t: right_all(self, t)[:1].expand(len(t), -1))


def _keep_momenta(monkeypatch):
    right, ready = Momenta.take_all, Momenta.ready
    monkeypatch.setattr(Momenta, "ready", lambda self, t, more=0: ready(self, 0 * t))
    monkeypatch.setattr(Momenta, "take_all", lambda self, t: right(self, 0 * t))


def _sign_of_the_energy(monkeypatch):
    for module in (hmc_run, trees):
        monkeypatch.setattr(module, "log_acceptance", lambda before, after: metric.log_acceptance(after, before))


def _equal_weights(monkeypatch):
    right = metric.log_acceptance
    monkeypatch.setattr(trees, "log_acceptance", lambda a, b: torch.where(right(a, b) > -1000, 0 * a, right(a, b)))


def _always_the_new_leaves(monkeypatch):
    right = Trees._double
    first = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)
    monkeypatch.setattr(Trees, "_double", lambda self, rows, draw: right(self, rows, draw * first))


def _forward_only(monkeypatch):
    right = Trees._grow
    monkeypatch.setattr(Trees, "_grow", lambda self, rows, coin: right(self, rows, 0 * coin))


def _halves_unseen(monkeypatch):
    """Trees that stop at their own ends alone: the path back would have stopped elsewhere."""
    monkeypatch.setattr(Trees, "_turned_within", lambda self: torch.zeros_like(self.active))


FAULTS = [
    ("hmc", _accept_all),
    ("hmc", _drop_half_a_step),
    ("hmc", _swap_the_mass),
    ("hmc", _share_momenta),
    ("hmc", _keep_momenta),
    ("hmc", _sign_of_the_energy),
    ("nuts", _swap_the_mass),
    ("nuts", _share_momenta),
    ("nuts", _sign_of_the_energy),
    ("nuts", _equal_weights),
    ("nuts", _always_the_new_leaves),
    ("nuts", _forward_only),
    ("nuts", _halves_unseen),
    ("chees", _accept_all),
    ("chees", _swap_the_mass),
]


# planted in ``Trees``; ``test_trees.py`` plants the like in ``trees.cpp``
TORCH_ONLY = (_sign_of_the_energy, _equal_weights, _always_the_new_leaves, _forward_only, _halves_unseen)


@pytest.mark.parametrize(("method", "fault"), FAULTS)
def test_a_broken_sampler_is_seen(method, fault, monkeypatch):
    if fault in TORCH_ONLY:
        monkeypatch.setattr(nuts_run, "make_trees", Trees)
    fault(monkeypatch)
    worst = max(distance(name, move(method, name, transitions=2)[1]) for name in ("normal", "banana"))
    assert worst > 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["normal", "banana"])
def test_two_transitions_leave_the_target_as_it_was(method, name):
    assert distance(name, move(method, name, transitions=2)[1]) < 1
