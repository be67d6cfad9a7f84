"""Simulation-based calibration: right samplers give uniform ranks, and faults planted in them do not.

1000 sets, 99 draws, chi-square(19) < 50.8 for each quantity: a right sampler fails one of 1e4 quantities; a posterior sd that
is 20 % off, or a mean that is a quarter sd off, is seen with probability 0.89 or more (simulated).
"""

from functools import partial
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from tqdm.auto import tqdm

import bnn_pyro as bnn
from bnn_pyro import calibration, networks, sampling
from bnn_pyro.isolation import derive_seed
from bnn_pyro.sampling import run

ROWS = 20


def small_network(x, y=None):
    layers = networks.sample_layers((1, 5, 1))
    f = pyro.deterministic("f", networks.mlp(x, layers, "tanh").squeeze(-1), event_dim=1)
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(f, sigma), obs=y)


MODELS = {
    "linear": (bnn.get_model("linear"), 3),
    "logistic": (bnn.get_model("logistic"), 3),
    "network": (small_network, 1),
}


def rows(columns):
    return np.random.default_rng(0).normal(size=(ROWS, columns))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "inference"), [("linear", "nuts"), ("logistic", "nuts"), ("logistic", "chees"), ("network", "chees")]
)
def test_ranks_are_uniform(name, inference):
    model, columns = MODELS[name]
    found = bnn.calibrate(model, rows(columns), inference=inference, sets=1000, seed=1, warmup=200, thin=5)
    print(f"\n{name} by {inference}\n{found}")
    assert {len(r) for r in found.ranks.values()} == {1000}
    assert all(r.min() >= 0 and r.max() <= 99 for r in found.ranks.values())
    assert len(found.ranks) >= 10 and "log_likelihood" in found.ranks
    assert found.passed, str(found)


# ---- faults, planted ---------------------------------------------------------------------------------------------


def changed_density(change):
    """The sampler, on another density: ``change`` takes position, gradient and log density."""

    def sampler(gradient, starts, method, seed, recording):
        return run(lambda z: change(z, *gradient(z)), starts, method, seed, recording)

    return sampler


def changed_record(change):
    """The sampler, with draws that are not where the chains are: ``change`` takes position and what came before."""

    def sampler(gradient, starts, method, seed, recording):
        def record(chains, transition, position, info):
            recording.record(chains, transition, change(position), info)

        recorder = SimpleNamespace(record=record, should_stop=recording.should_stop)
        return run(gradient, starts, method, seed, recorder)

    return sampler


def without_prior(z, grad, value):
    return grad + z, value + 0.5 * (z * z).sum(-1)


FAULTS = {
    "temperature 0.6": changed_density(lambda z, grad, value: (0.6 * grad, 0.6 * value)),
    "temperature 1.6": changed_density(lambda z, grad, value: (1.6 * grad, 1.6 * value)),
    "prior dropped": changed_density(without_prior),
    "rows counted twice": changed_density(lambda z, grad, value: (2 * grad + z, 2 * value + 0.5 * (z * z).sum(-1))),
    "energy ignored": changed_density(lambda z, grad, value: (grad, 0.3 * value)),
    "draws shifted": changed_record(lambda position: position + 0.25),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault):
    """On logistic regression whose weights have prior sd 1, so that the log prior is -z^2 / 2 but for a constant."""
    model = bnn.get_model("logistic", prior_sd=1.0)
    found = bnn.calibrate(
        model, rows(3), inference="nuts", sets=1000, seed=1, warmup=100, thin=3, max_tree_depth=5, sampler=FAULTS[fault]
    )
    print(f"\n{fault}\n{found}")
    assert not found.passed, str(found)


@pytest.mark.slow
def test_without_a_fault_the_same_settings_pass():
    model = bnn.get_model("logistic", prior_sd=1.0)
    found = bnn.calibrate(model, rows(3), inference="nuts", sets=1000, seed=1, warmup=100, thin=3, max_tree_depth=5)
    assert found.passed, str(found)


def test_few_sets_run_and_are_the_same_again():
    settings = {
        "inference": "chees",
        "sets": 8,
        "draws": 19,
        "warmup": 30,
        "thin": 1,
        "max_steps": 10,
        "backend": "eager",
    }
    first, second = (bnn.calibrate(bnn.get_model("linear"), rows(2), **settings) for _ in range(2))
    assert first.ranks.keys() == second.ranks.keys()
    assert all(np.array_equal(first.ranks[k], second.ranks[k]) for k in first.ranks)
    page = str(first)
    assert "8 sets of data, 19 draws each" in page and max(map(len, page.splitlines())) <= 80


def test_ranks_of_uniform_numbers_pass_and_of_others_fail():
    random = np.random.default_rng(3)
    right = bnn.Calibration({"a": random.integers(0, 100, 1000)}, 99, {})
    assert right.passed and right.limit == pytest.approx(50.8, abs=0.1)
    counts = np.bincount(right.ranks["a"] // 5, minlength=20)
    assert right.chi_square["a"] == pytest.approx(((counts - 50) ** 2 / 50).sum())
    assert not bnn.Calibration({"a": random.binomial(99, 0.5, 1000)}, 99, {}).passed


@pytest.mark.parametrize("draws", [19, 50, 99, 120])
def test_uniform_ranks_have_the_chi_square_of_nineteen_degrees_of_freedom(draws):
    """For any number of draws: bins of 50 hold two ranks or three. The mean of 400 is known to 0.3."""
    random = np.random.default_rng(4)
    ranks = {str(i): random.integers(0, draws + 1, 1000) for i in range(400)}
    assert np.mean(list(bnn.Calibration(ranks, draws, {}).chi_square.values())) == pytest.approx(19, abs=1.3)


def test_chains_begin_where_the_density_is_finite(monkeypatch):
    """Starts that are spoilt are drawn again; where all are, a sentence says so."""
    spoilt, draw = [], calibration._prior_draw

    def prior_draw(target, seed):
        z = draw(target, seed)
        if seed in spoilt:
            z[:] = torch.nan
        return z

    monkeypatch.setattr(calibration, "_prior_draw", prior_draw)
    settings = {"sets": 4, "draws": 19, "warmup": 20, "thin": 1, "backend": "eager", "max_tree_depth": 4}
    spoilt += [derive_seed(0, "start", 2), derive_seed(0, "start", 2, 1)]
    found = bnn.calibrate(bnn.get_model("linear"), rows(2), **settings)
    assert all(len(ranks) == 4 for ranks in found.ranks.values())
    spoilt += [derive_seed(0, "start", 2, attempt) for attempt in range(2, 101)]
    with pytest.raises(bnn.ModelError, match=r"linear, calibrate: expected a finite density .* for 1 of 4 sets"):
        bnn.calibrate(bnn.get_model("linear"), rows(2), **settings)


def test_a_bar_counts_the_transitions_of_all_sets(monkeypatch):
    shown = StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(sampling, "tqdm", partial(tqdm, file=shown, mininterval=0.0))
    settings = {"inference": "hmc", "sets": 4, "draws": 19, "warmup": 5, "thin": 1, "backend": "eager"}
    bnn.calibrate(bnn.get_model("linear"), rows(2), **settings)
    assert f"{4 * (5 + 19)}/{4 * (5 + 19)}" in shown.getvalue()
    said = len(shown.getvalue())
    bnn.calibrate(bnn.get_model("linear"), rows(2), progress=False, **settings)
    assert len(shown.getvalue()) == said


def positive(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.LogNormal(x @ w, 0.5), obs=y)


def outputs(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1], 2]).to_event(2))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize("program", [positive, outputs], ids=lambda p: p.__name__)
def test_y_has_the_support_and_shape_that_the_program_gives_it(program):
    found = bnn.calibrate(program, rows(2), sets=8, draws=19, warmup=30, thin=1, max_tree_depth=4, backend="eager")
    assert all(len(ranks) == 8 for ranks in found.ranks.values())


def test_what_cannot_be_calibrated_is_refused():
    for said, options in {
        "draws: expected at least 19": {"draws": 18},
        "expected no chains, got 4. Write sets=": {"chains": 4},
        "expected no init": {"init": "map"},
        "progress: expected True or False, got 'no'": {"progress": "no"},
        "expected options inside the value, got thin": {"inference": bnn.NUTS(), "thin": 3},
        "expected 'nuts', 'hmc' or 'chees', got 'laplace'": {"inference": "laplace"},
    }.items():
        with pytest.raises(bnn.OptionError, match=said):
            bnn.calibrate(bnn.get_model("linear"), rows(2), **options)
    with pytest.raises(bnn.UnknownNameError, match="thinn"):
        bnn.calibrate(bnn.get_model("linear"), rows(2), thinn=3)
    with pytest.raises(bnn.OptionError, match="expected 'nuts', 'hmc' or 'chees', got 'svi'"):
        bnn.calibrate(bnn.get_model("linear"), rows(2), inference=bnn.SVI())
    with pytest.raises(bnn.OptionError, match="seed"):
        bnn.calibrate(bnn.get_model("linear"), torch.zeros(3, 1), seed=-1)
