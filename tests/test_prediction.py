"""Predictions against sums done by hand: mixtures, moments, noise, units."""

import json
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import bnn_pyro as bnn
import problems
from bnn_pyro import batching, results
from bnn_pyro.draws import Draws
from bnn_pyro.inference import NUTS
from bnn_pyro.posterior import Posterior
from bnn_pyro.prediction import predict, predictive_mean
from bnn_pyro.units import Units

UNITS = Units({}, (np.array(100.0), np.array(7.0)))  # of y: mean and sd
PLAIN = Units({})


def target(dtype=torch.float64, hidden=(3,)):
    model = bnn.get_model("mlp_gaussian", hidden=hidden, activation="tanh").model
    return problems.Problem(model, *problems._rows()).target(dtype)


def by_hand(t, z, x):
    """Conditional means (draws, n) and standard deviations (draws,) of a network with one hidden layer."""
    means, sds = [], []
    for one in z:
        v = {k: a.double().numpy() for k, a in t.evaluate(one).values.items()}
        h = np.tanh(v["scale"] * x.double().numpy() @ v["w1"] / 3**0.5 + v["b1"])
        means.append((v["scale"] * h @ v["w2"] / 3**0.5 + v["b2"])[:, 0])
        sds.append(float(v["sigma"]))
    return np.array(means), np.array(sds)


@pytest.fixture(scope="module")
def case():
    """2 chains of 150 draws of quite different noise, at 5 new rows, in units of y far from standard."""
    t = target()
    z = problems.points(t, 300).reshape(2, 150, -1)
    x = problems._rows(5, 3, seed=9)[0]
    mean, sd = by_hand(t, z.reshape(300, -1), x)
    return t, z, x, 100 + 7 * mean, 7 * sd, predict(t, UNITS, z, x, seed=1)


def test_moments_follow_the_law_of_total_variance(case):
    _, _, _, mean, sd, prediction = case
    assert prediction.function_draws.shape == prediction.draws.shape == (2, 150, 5)
    assert np.allclose(prediction.function_draws.reshape(300, 5), mean, rtol=1e-12)
    assert np.allclose(prediction.mean, mean.mean(0), rtol=1e-12)
    assert np.allclose(prediction.epistemic, mean.var(0), rtol=1e-9)
    assert np.allclose(prediction.aleatoric, (sd**2).mean(), rtol=1e-9)
    second_moment = (mean**2 + sd[:, None] ** 2).mean(0)
    assert np.allclose(prediction.std**2, second_moment - mean.mean(0) ** 2, rtol=1e-7)
    assert np.allclose(prediction.epistemic + prediction.aleatoric, prediction.std**2, rtol=1e-12)


def test_log_prob_is_the_log_of_the_mean_density(case):
    """Not the mean of the logs, and in original units."""
    t, z, x, mean, sd, prediction = case
    y = np.array([90.0, 100.0, 103.0, 110.0, 140.0])
    logs = stats.norm(mean, sd[:, None]).logpdf(y)
    expected = logsumexp(logs, axis=0) - np.log(300)
    assert np.abs(expected - logs.mean(0)).min() > 0.1, "the two readings differ here"
    assert np.allclose(prediction.log_prob(y), expected, rtol=1e-10)
    assert np.allclose(prediction.log_prob(torch.as_tensor(y)), expected, rtol=1e-10)
    assert np.allclose(predict(t, UNITS, z, x, seed=2, block=7).log_prob(y), expected, rtol=1e-10)
    for wrong in (y[:4], y[:, None], 3.0):
        with pytest.raises(bnn.ShapeError, match=r"^problem, log_prob: expected y of shape \(5,\), got"):
            prediction.log_prob(wrong)


def test_far_tails_have_a_finite_log_prob(case):
    prediction = case[-1]
    far = prediction.log_prob(np.full(5, 1e6))
    assert np.isfinite(far).all() and (far < -1e3).all()


def test_noise_in_draws_is_each_draws_own():
    """Rows enough that each draw's noise has a standard deviation that can be read off."""
    t = target(torch.float32)
    z = problems.points(t, 40)[None]
    x = torch.zeros(4000, 3)
    _, sd = by_hand(t, z[0], x[:1])
    prediction = predict(t, UNITS, z, x, seed=3)
    noise = (prediction.draws - prediction.function_draws).astype(np.float64)[0] / (7 * sd[:, None])
    n = x.shape[0]
    assert sd.max() / sd.min() > 10
    assert np.abs(noise.std(1) - 1).max() < 4.5 / np.sqrt(2 * n)
    assert np.abs(noise.mean(1)).max() < 4.5 / np.sqrt(n)
    assert np.abs(np.corrcoef(noise) - np.eye(40)).max() < 5 / np.sqrt(n), "noise is shared between draws"
    assert stats.kstest(noise.ravel()[::7], "norm").pvalue > 1e-4


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_intervals_are_quantiles_of_the_mixture_with_noise(p):
    """Draws of mu that are normal make the mixture a known normal; 5 standard errors of a quantile's probability."""
    x = torch.zeros(1, 3, dtype=torch.float64)
    t = problems.PROBLEMS["intercept"]().target()
    draws = 20_000
    mu = stats.norm(1.0, 2.0).ppf((np.arange(draws) + 0.5) / draws)
    z = torch.stack([torch.as_tensor(mu), torch.full((draws,), float(np.log(1.5)), dtype=torch.float64)], -1)[None]
    lower, upper = predict(t, UNITS, z, x, seed=4).interval(p)
    mixture = stats.norm(100 + 7 * 1.0, 7 * np.sqrt(2.0**2 + 1.5**2))
    error = 5 * np.sqrt((1 - p) / 2 * (1 + p) / 2 / draws)
    assert abs(mixture.cdf(lower[0]) - (1 - p) / 2) < error
    assert abs(mixture.cdf(upper[0]) - (1 + p) / 2) < error


@pytest.mark.parametrize("p", [0, 1, -0.1, 90, float("nan")])
def test_intervals_take_probabilities_only(case, p):
    with pytest.raises(bnn.OptionError, match=r"^interval: expected a probability between 0 and 1, got"):
        case[-1].interval(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [2, 3, 7, 32, 299])
def test_the_block_never_changes_the_numbers(block, dtype):
    """300 draws leave a lone last draw for a block of 299."""
    t = target(dtype)
    z = problems.points(t, 300)[None]
    x = problems._rows(5, 3, seed=9)[0].to(dtype)
    whole, part = predict(t, UNITS, z, x, seed=1, block=300), predict(t, UNITS, z, x, seed=1, block=block)
    for name in ("draws", "function_draws", "mean", "std", "epistemic", "aleatoric"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)), name
    y = np.full(5, 101.0)
    assert np.array_equal(part.log_prob(y), whole.log_prob(y))


def test_seeds_move_the_noise_only(case):
    t, z, x, *_, first = case
    same, other = predict(t, UNITS, z, x, seed=1), predict(t, UNITS, z, x, seed=2)
    assert np.array_equal(first.draws, same.draws)
    assert not np.array_equal(first.draws, other.draws)
    assert np.array_equal(first.function_draws, other.function_draws) and np.array_equal(first.std, other.std)


def test_several_outputs_have_a_last_axis():
    t = problems.PROBLEMS["event_of_outputs"]().target()
    z = problems.points(t, 50)[None]
    units = Units({}, (np.array([100.0, -3.0]), np.array([7.0, 0.1])))
    prediction = predict(t, units, z, t.x, seed=5)
    w = z.reshape(50, 3, 2)
    mean = np.einsum("nd,sdk->snk", t.x.numpy(), w.numpy()) * units.y_sd + units.y_mean
    assert prediction.draws.shape == (1, 50, 12, 2)
    assert np.allclose(prediction.mean, mean.mean(0)) and np.allclose(prediction.epistemic, mean.var(0))
    assert np.allclose(prediction.aleatoric, 0.25 * units.y_sd**2)
    y = np.stack([np.full(12, 100.0), np.full(12, -3.0)], -1)
    logs = stats.norm(mean, 0.5 * units.y_sd).logpdf(y).sum(-1)
    assert np.allclose(prediction.log_prob(y), logsumexp(logs, axis=0) - np.log(50))
    assert prediction.interval(0.8)[0].shape == (12, 2)


def test_one_draw_has_no_epistemic_variance():
    t = target()
    prediction = predict(t, PLAIN, problems.points(t, 1)[None], t.x, seed=6)
    assert (prediction.epistemic == 0).all() and (prediction.aleatoric > 0).all()


def test_a_likelihood_without_a_mean_is_not_predicted_as_nan():
    t = problems.Problem(problems.categorical_model, problems._rows()[0], torch.arange(12) % 4).target()
    with pytest.raises(bnn.ModelError, match="expected a likelihood with a mean and a variance, got Categorical"):
        predict(t, PLAIN, problems.points(t, 3)[None], t.x, seed=7)


def test_offsets_far_from_zero_keep_the_spread():
    """Years or pressures: a mean of 1e6 and a spread of 1, predicted in float32."""
    t = target(torch.float32)
    z = problems.points(t, 200)[None]
    far = Units({}, (np.array(1e6), np.array(1.0)))
    near = predict(t, PLAIN, z, t.x.float(), seed=8)
    moved = predict(t, far, z, t.x.float(), seed=8)
    assert np.allclose(moved.mean - 1e6, near.mean, atol=1e-3)
    assert np.allclose(moved.epistemic, near.epistemic, rtol=1e-2)


# ---- through fit -------------------------------------------------------------------------------------------------


def posterior_of(x, y, standardize, draws=400, program=None, **settings):
    """A posterior whose draws are given rather than sampled, so that the sums below are exact."""
    model = bnn.BNN(program or problems.intercept_model, standardize=standardize)
    from bnn_pyro.data import collect
    from bnn_pyro.units import learn_units

    data = collect(x, y)
    units = learn_units(data, x=standardize, y=standardize, where="fit")
    t = sys.modules[bnn.fit.__module__].make_target(model, data, units, torch.float64, torch.device("cpu"))
    z = problems.points(t, draws, seed=11)[None]
    return Posterior(model, data, units, t, NUTS(), Draws(z), 0, [])


@pytest.mark.parametrize("standardize", [False, True])
def test_predictions_are_in_original_units(standardize):
    rng = np.random.default_rng(0)
    x, y = rng.normal(50, 10, size=(30, 2)), rng.normal(1000, 200, size=30)

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    posterior = posterior_of(x, y, standardize, program=program)
    shift, scale, x_shift, x_scale = (1000, 200, 50, 10) if standardize else (0, 1, 0, 1)
    if standardize:
        shift, scale, x_shift, x_scale = y.mean(), y.std(), x.mean(0), x.std(0)
    new = rng.normal(50, 10, size=(4, 2))
    w, sigma = posterior.draws.z[0, :, :2].numpy(), np.exp(posterior.draws.z[0, :, 2].numpy())
    mean = ((new - x_shift) / x_scale) @ w.T * scale + shift  # (4, draws)
    prediction = posterior.predict(new)
    assert np.allclose(prediction.function_draws[0], mean.T)
    assert np.allclose(prediction.aleatoric, (sigma**2).mean() * scale**2)
    density = logsumexp(stats.norm(mean, sigma * scale).logpdf(np.full((4, 1), 900.0)), axis=1) - np.log(400)
    assert np.allclose(prediction.log_prob(np.full(4, 900.0)), density)
    assert np.allclose(posterior.log_predictive_density(new, np.full(4, 900.0)), density)


def test_scores_by_hand():
    x, y = np.zeros((30, 1)), np.random.default_rng(1).normal(size=30)
    posterior = posterior_of(x, y, False)
    prediction, scores = posterior.predict(x), posterior.score(x, y)
    squared = (prediction.mean - y) ** 2
    assert scores["test_rmse"][0] == pytest.approx(np.sqrt(squared.mean()))
    assert scores["test_lpd"] == pytest.approx((prediction.log_prob(y).mean(), stats.sem(prediction.log_prob(y))))
    for p in (0.5, 0.9, 0.95):
        lower, upper = prediction.interval(p)
        covered = ((lower <= y) & (y <= upper)).astype(float)
        assert scores[f"test_coverage_{100 * p:.0f}"] == pytest.approx((covered.mean(), stats.sem(covered)))


@pytest.mark.parametrize(("x", "sentence"), [
    (np.zeros((4, 2)), "intercept_model, predict: expected x of shape (n, 3), as in fit, got (4, 2). Pass the"),
    (np.zeros(4), "intercept_model, predict: expected x of shape (n, 3), as in fit, got (4,). Pass the"),
    ({"a": np.zeros((4, 3))}, "intercept_model, predict: expected x as an array, as in fit, got a dict."),
])  # fmt: skip
def test_rows_unlike_the_training_rows_are_refused(x, sentence):
    with pytest.raises(bnn.ShapeError) as caught:
        posterior_of(np.ones((5, 3)) + np.arange(5)[:, None], np.arange(5.0), False).predict(x)
    assert str(caught.value).startswith(sentence)


def test_no_rows_have_no_prediction():
    with pytest.raises(bnn.DataError, match=r"^intercept_model, predict, x: expected at least one row, got none\.$"):
        posterior_of(*problems._rows(), False).predict(np.zeros((0, 3)))


def test_columns_in_another_order_are_refused():
    import pandas as pd

    x = pd.DataFrame(np.random.default_rng(2).normal(size=(5, 2)), columns=["a", "b"])
    posterior = posterior_of(x, np.arange(5.0), False)
    with pytest.raises(
        bnn.ShapeError, match=r"expected the order of the training rows, 'a' as column 0, got 'b'\. Pass"
    ):
        posterior.predict(x[["b", "a"]])
    assert posterior.predict(x).mean.shape == (5,)


def test_latents_by_row_have_no_new_rows():
    posterior = posterior_of(*problems._rows(), False, program=problems._one_latent_per_row)
    with pytest.raises(bnn.OptionError, match=r"expected latent sites outside the data plate, got \['offset'\] inside"):
        posterior.predict(np.zeros((2, 3)))


@pytest.mark.parametrize("seed", [-1, 1.5, 2**40])
def test_seeds_of_predict_are_checked_as_those_of_fit(seed):
    posterior = posterior_of(*problems._rows(), False)
    if seed == 2**40:  # a seed that fit takes
        assert posterior.predict(problems._rows()[0], seed=seed).mean.shape == (12,)
    else:
        with pytest.raises(bnn.OptionError, match="seed"):
            posterior.predict(problems._rows()[0], seed=seed)


@pytest.mark.parametrize("name", ["two_observed", "offset"])
def test_idata_is_built_for_programs_that_cannot_predict_at_some_rows(name):
    """A latent after the first observed site; a fixed offset for each training row."""
    x, y = problems._rows(60, 3)
    offset = torch.linspace(0, 1, 60, dtype=torch.float64)

    def with_offset(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w + offset, 1.0), obs=y)

    if name == "two_observed":
        posterior = posterior_of(x, torch.stack([y, y], -1), False, program=problems.two_observed_model, draws=10)
    else:
        posterior = posterior_of(x, y, False, program=with_offset, draws=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = posterior.idata.groups
    names = {g.strip("/") for g in (groups() if callable(groups) else groups)}  # ArviZ 0.2x or 1.x
    assert {"posterior", "log_likelihood", "function_space"} <= names


# ---- cost ---------------------------------------------------------------------------------------------------

M2 = """
import threading, time, numpy as np, torch
import bnn_pyro as bnn, problems
from bnn_pyro.units import Units
from bnn_pyro.prediction import predict

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024

x, y = torch.randn(20, 1), torch.randn(20)
model = bnn.get_model("mlp_gaussian", hidden=(50,), activation="tanh").model
target = problems.Problem(model, x, y).target(torch.float32)
z = torch.randn(4, 1000, target.dim) * 0.5
predict(target, Units({}), z[:1, :4], x, seed=0)
peak, done = [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], resident())

before, began = resident(), time.perf_counter()
thread = threading.Thread(target=watch)
thread.start()
p = predict(target, Units({}), z, torch.linspace(-2, 2, 10_000)[:, None], seed=0)
p.interval(0.9)
seconds = time.perf_counter() - began
done.set(); thread.join()
print(seconds, peak[0] - before, p.draws.nbytes + p.function_draws.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_4000_draws_at_10000_rows_stay_within_their_memory():
    """The peak is the two arrays of draws and at most 256 MB more. Pyro: 57 s and 1.17 GB, or 8 GB."""
    done = subprocess.run(
        [sys.executable, "-c", M2], capture_output=True, text=True, timeout=300, env=_env(), check=False
    )
    assert done.returncode == 0, done.stderr
    seconds, peak, output = (float(v) for v in done.stdout.split())
    print(f"M2: {seconds:.1f} s, {peak / 1e6:.0f} MB above the start for {output / 1e6:.0f} MB of output")
    assert peak <= output + 256e6


def _env():
    import os
    from pathlib import Path

    tests = Path(__file__).parent
    return os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}


def test_a_joint_observation_has_no_pointwise_density():
    """One term over all rows: a scalar is not a density of each row, whatever the units."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(w * x, 0.5).to_event(1), obs=y)

    x = torch.linspace(-1, 1, 30)
    posterior = bnn.fit(program, x, 2 * x, inference="svi", steps=200, draws=50)
    with pytest.raises(bnn.ModelError, match=r"log_prob: expected observations inside pyro.plate\('data', ...\)"):
        posterior.log_predictive_density(x, 2 * x)
    coverages = {f"test_coverage_{p}" for p in (50, 90, 95)}
    assert set(posterior.score(x, 2 * x)) == {"test_rmse"} | coverages
    whole = posterior.predict(np.array([0, 1]))  # integers where the fit had floats
    assert np.allclose(whole.mean, posterior.predict(np.array([0.0, 1.0])).mean)


@pytest.mark.parametrize(("dtype", "units"), [(torch.float64, UNITS), (torch.float32, UNITS), (torch.float32, PLAIN)])
def test_the_mean_alone_is_that_of_the_prediction(dtype, units):
    t = target(dtype)
    z, x = problems.points(t, 60).reshape(2, 30, -1), problems._rows(7, 3, seed=9)[0].to(dtype)
    assert np.array_equal(predictive_mean(t, units, z, x), predict(t, units, z, x, seed=1).mean)


def test_the_mean_alone_holds_no_array_of_draws(monkeypatch):
    """Its largest arrays are those of a block of draws; a prediction's are of all of them."""
    x, y = np.random.default_rng(3).normal(size=(40, 3)), np.arange(40.0)
    posterior = posterior_of(x, y, True, draws=4000)
    new = np.repeat(x, 50, 0)
    monkeypatch.setattr(batching, "block_size", lambda *_: 50)
    peaks = []
    for call in (lambda: posterior.predict(new).mean, lambda: posterior.predictive_mean(new)):
        tracemalloc.start()
        mean = call()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert mean.shape == (2000,)
    assert peaks[0] > 2 * 8 * 4000 * 2000 and peaks[1] < 8 * 4000 * 2000 / 10
    assert np.array_equal(posterior.predictive_mean(new), posterior.predict(new).mean)


def test_the_mean_alone_is_of_numbers():
    x = np.random.default_rng(2).normal(size=(30, 2))
    posterior = bnn.get_model("logistic").fit(x, x[:, 0] > 0, inference="prior", draws=10)
    with pytest.raises(bnn.ModelError, match=r"expected a likelihood of numbers, got one of classes\. Use predict"):
        posterior.predictive_mean(x)


def test_a_frame_whose_columns_are_x_and_y_is_rows():
    """Not an object that holds rows in .x and .y."""
    frame = pd.DataFrame(np.random.default_rng(2).normal(size=(5, 3)), columns=["x", "y", "z"])
    posterior = posterior_of(frame, np.arange(5.0), False)
    assert posterior.predict(frame).mean.shape == (5,)
    with pytest.raises(bnn.DataError, match=r"score, y: expected targets, got none\. Call score\(x, y\)\."):
        posterior.score(frame)


@dataclass(frozen=True)
class Activated(bnn.Model):
    """A user's model with settings that JSON has no word for."""

    activation: Callable = torch.tanh
    scales: np.ndarray = field(default_factory=lambda: np.array([1.0, 2.0]))

    def model(self, x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(self.activation(w * x[:, 0]), 1.0), obs=y)


def test_settings_that_json_does_not_know_are_described(tmp_path):
    posterior = bnn.fit(Activated(), *(np.linspace(-1, 1, s).reshape(20, -1).squeeze() for s in (40, 20)),
                        inference="map", steps=20, progress=False)  # fmt: skip
    assert json.loads(posterior.attrs["hyperparameters"]) == {"activation": "tanh", "scales": [1.0, 2.0]}
    assert "posterior" in results.group_names(posterior.idata)
    assert bnn.load(posterior.save(tmp_path / "run"), Activated().model).predict(np.zeros((2, 2))).mean.shape == (2,)
