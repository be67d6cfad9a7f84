"""Class predictions against sums done by hand: mixture, entropy and its two parts, labels, blocks."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import digamma, expit, log_softmax

import bnn_pyro as bnn
import problems
from bnn_pyro.class_prediction import ClassPrediction, counts_classes, predict_classes
from bnn_pyro.function_space import function_space
from bnn_pyro.prediction import Prediction
from bnn_pyro.units import Units

PLAIN = Units({})
CLASSES = {"bernoulli": 2, "categorical": 4, "ordinal": 3}
CHAINS, DRAWS, ROWS = 2, 75, 6


def conditional_probs(kind, z, x):
    """Probabilities by draw (draws, n, k), from the flat vector by hand."""
    z, x = z.numpy(), x.numpy()
    if kind == "bernoulli":
        p = expit(z @ x.T)
        return np.stack([1 - p, p], -1)
    if kind == "categorical":
        return np.exp(log_softmax(np.einsum("nd,sdk->snk", x, z.reshape(len(z), 3, 4)), axis=-1))
    cuts = np.stack([z[:, 3], z[:, 3] + np.exp(z[:, 4])], -1)  # of an ordered pair
    below = expit(cuts[:, None, :] - (z[:, :3] @ x.T)[..., None])  # p(y <= c), c = 0, 1
    return np.diff(below, axis=-1, prepend=0.0, append=1.0)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


@pytest.fixture(scope="module", params=CLASSES)
def case(request):
    kind = request.param
    target = problems.PROBLEMS[kind]().target()
    z = problems.points(target, CHAINS * DRAWS).reshape(CHAINS, DRAWS, -1)
    x = problems._rows(ROWS, 3, seed=9)[0]
    classes = np.array(["ash", "beech", "cedar", "date"])[: CLASSES[kind]]
    probs = conditional_probs(kind, z.reshape(-1, z.shape[-1]), x)
    return target, z, x, classes, probs, predict_classes(target, PLAIN, z, x, seed=1, classes=classes)


def test_probs_entropy_and_its_parts_are_those_of_the_mixture(case):
    *_, classes, probs, prediction = case
    k = len(classes)
    assert prediction.probs.shape == (ROWS, k) and np.abs(prediction.probs.sum(-1) - 1).max() < 1e-12
    assert np.allclose(prediction.probs, probs.mean(0), rtol=1e-9)
    assert np.allclose(prediction.entropy, entropy(probs.mean(0)), rtol=1e-9)
    assert np.allclose(prediction.aleatoric, entropy(probs).mean(0), rtol=1e-9)
    mutual = (probs * np.log(probs / probs.mean(0))).sum(-1).mean(0)  # mean divergence from the mixture
    assert mutual.min() > 0.01, "the draws disagree here"
    assert np.allclose(prediction.epistemic, mutual, rtol=1e-7)
    assert np.allclose(prediction.epistemic + prediction.aleatoric, prediction.entropy, rtol=1e-12)
    assert (prediction.aleatoric <= prediction.entropy).all() and (prediction.entropy <= np.log(k)).all()
    assert np.allclose(prediction.function_draws, probs.reshape(CHAINS, DRAWS, ROWS, k), rtol=1e-9)
    assert list(prediction.label) == [classes[row.argmax()] for row in probs.mean(0)]


def test_log_prob_is_the_log_of_the_mean_probability(case):
    """Not the mean of the logs; labels are given as they were named."""
    *_, classes, probs, prediction = case
    codes = np.arange(ROWS) % len(classes)
    picked = probs[:, np.arange(ROWS), codes]
    expected = np.log(picked.mean(0))
    assert np.abs(expected - np.log(picked).mean(0)).min() > 0.01, "the two readings differ here"
    for y in (classes[codes], list(classes[codes]), pd.Series(classes[codes]), pd.Categorical(classes[codes])):
        assert np.allclose(prediction.log_prob(y), expected, rtol=1e-9)
    with pytest.raises(bnn.DataError, match=r"^problem, log_prob, y: expected a class known from training \('ash'"):
        prediction.log_prob(["elm"] * ROWS)
    with pytest.raises(bnn.DataError, match=r"log_prob, y: expected a class known from training"):
        prediction.log_prob(codes)  # codes are not labels
    for wrong in (classes[codes][:4], classes[codes][:, None]):
        with pytest.raises(bnn.ShapeError, match=r"^problem, log_prob, y: expected|^problem, log_prob: expected y of"):
            prediction.log_prob(wrong)


@pytest.mark.parametrize("block", [2, 3, 7, 149])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [(), (4,)])
def test_the_block_never_changes_the_numbers(block, dtype, hidden):
    """150 draws leave a lone last draw for a block of 149."""
    model = bnn.get_model("mlp_categorical", hidden=hidden, activation="tanh", classes=3).model
    target = problems.Problem(model, problems._rows()[0], torch.arange(12) % 3).target(dtype)
    z, x = problems.points(target, 150)[None], problems._rows(5, 3, seed=9)[0].to(dtype)
    whole, part = (predict_classes(target, PLAIN, z, x, 1, np.arange(3), block=b) for b in (150, block))
    for name in ("probs", "aleatoric", "entropy", "epistemic", "codes", "function_draws"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)), name
    assert np.array_equal(part.log_prob(np.arange(5) % 3), whole.log_prob(np.arange(5) % 3))


def test_labels_drawn_come_from_the_draws_own_probabilities():
    """Each draw's share of each class, over many equal rows, against its probability; draws share no noise."""
    target = problems.PROBLEMS["categorical"]().target()
    draws, n = 30, 4000
    z = problems.points(target, draws)[None]
    x = problems._rows(1, 3, seed=9)[0].expand(n, 3)
    prediction = predict_classes(target, PLAIN, z, x, seed=3, classes=np.array([7, 8, 9, 11]))
    assert prediction.draws.shape == (1, draws, n) and set(np.unique(prediction.draws)) <= {7, 8, 9, 11}
    probs = conditional_probs("categorical", z[0], x[:1])[:, 0]
    share = np.stack([(prediction.draws[0] == c).mean(-1) for c in (7, 8, 9, 11)], -1)
    assert np.ptp(probs[:, 0]) > 0.5
    bound = np.sqrt(np.log(2 * share.size / 1e-6) / (2 * n))  # Hoeffding, all at once, at 1e-6
    assert np.abs(share - probs).max() < bound
    centred = (prediction.draws[0] == 7) - probs[:, :1]
    correlation = (centred @ centred.T) / n / np.sqrt(np.outer(*[probs[:, 0] * (1 - probs[:, 0])] * 2))
    assert np.abs(correlation - np.diag(np.diag(correlation))).max() < 8 / np.sqrt(n), "noise is shared between draws"


def test_seeds_move_the_labels_only(case):
    target, z, x, classes, _, first = case
    same, other = (predict_classes(target, PLAIN, z, x, seed, classes) for seed in (1, 2))
    assert np.array_equal(first.draws, same.draws) and not np.array_equal(first.draws, other.draws)
    assert np.array_equal(first.probs, other.probs) and np.array_equal(first.function_draws, other.function_draws)


def test_one_draw_has_no_mutual_information(case):
    target, z, x, classes, *_ = case
    prediction = predict_classes(target, PLAIN, z[:1, :1], x, 1, classes)
    assert np.abs(prediction.epistemic).max() < 1e-14 and (prediction.aleatoric > 0).all()


def test_epistemic_is_the_closed_form_of_a_beta_posterior_and_shrinks_with_more_data():
    """p ~ Beta(a, b): E H(p) = psi(a + b + 1) - (a psi(a + 1) + b psi(b + 1)) / (a + b)."""

    def coin(x, y=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Bernoulli(probs=p.expand(x.shape[0])), obs=y)

    target = problems.Problem(coin, torch.zeros(4, 1), torch.arange(4) % 2).target()
    draws, found = 4000, []
    for a, b in ((2.0, 3.0), (14.0, 28.0), (134.0, 268.0)):
        p = stats.beta(a, b).ppf((np.arange(draws) + 0.5) / draws)
        z = torch.as_tensor(np.log(p) - np.log1p(-p))[None, :, None]
        prediction = predict_classes(target, PLAIN, z, torch.zeros(1, 1).double(), 1, np.arange(2))
        expected = digamma(a + b + 1) - (a * digamma(a + 1) + b * digamma(b + 1)) / (a + b)
        assert prediction.aleatoric[0] == pytest.approx(expected, abs=2e-4)
        assert prediction.probs[0, 1] == pytest.approx(a / (a + b), abs=2e-4)
        assert prediction.epistemic[0] == pytest.approx(entropy(np.array([a, b]) / (a + b)) - expected, abs=2e-4)
        found.append(prediction.epistemic[0])
    assert found[0] > 4 * found[1] > 16 * found[2] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_logits_beyond_any_exponent_stay_finite(kind, dtype):
    """Logits of +-1e4: probabilities of 0 and 1, and log probabilities of about -1e4 in place of -inf."""
    target = problems.PROBLEMS[kind]().target(dtype)
    z = torch.zeros(1, 3, target.dim, dtype=dtype)
    z[..., 0] = 1e4
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=dtype)
    k = CLASSES[kind]
    prediction = predict_classes(target, PLAIN, z, x, 1, np.arange(k))
    assert np.abs(prediction.probs.sum(-1) - 1).max() < 1e-12
    for attribute in ("probs", "entropy", "aleatoric", "epistemic"):
        assert np.isfinite(getattr(prediction, attribute)).all() and (getattr(prediction, attribute) >= 0).all()
    first, last = prediction.log_prob([0, 0]), prediction.log_prob([k - 1, k - 1])
    if kind == "bernoulli":
        assert np.allclose(first, [-1e4, 0]) and np.allclose(last, [0, -1e4])
    else:  # the other three share what the first leaves
        assert np.allclose(first, [0, -1e4 - np.log(3)]) and np.allclose(last, [-1e4, -np.log(3)])


def test_disagreeing_certain_draws_are_all_epistemic():
    target = problems.PROBLEMS["bernoulli"]().target()
    z = torch.zeros(1, 2, 3).double()
    z[0, 0, 0], z[0, 1, 0] = 1e4, -1e4
    prediction = predict_classes(target, PLAIN, z, torch.tensor([[1.0, 0, 0]]).double(), 1, np.arange(2))
    assert prediction.probs[0].tolist() == [0.5, 0.5]
    assert prediction.epistemic[0] == pytest.approx(np.log(2), rel=1e-14) and prediction.aleatoric[0] == 0.0
    assert prediction.label[0] == 0, "of equal ones, the first"
    assert np.allclose(prediction.log_prob([1]), -np.log(2))


# ---- which likelihoods are of classes ------------------------------------------------------------------------------


LIKELIHOODS = {
    "bernoulli_logits": (lambda f: dist.Bernoulli(logits=f), 2),
    "bernoulli_probs": (lambda f: dist.Bernoulli(probs=torch.sigmoid(f)), 2),
    "bernoulli_masked": (lambda f: dist.Bernoulli(logits=f).mask(f > -9), 2),
    "bernoulli_expanded": (lambda f: dist.Bernoulli(logits=f[0]).expand(f.shape), 2),
    "categorical_probs": (lambda f: dist.Categorical(probs=torch.softmax(torch.stack([f, -f, 0 * f], -1), -1)), 3),
    "categorical_masked": (lambda f: dist.Categorical(logits=torch.stack([f, -f, 0 * f], -1)).mask(True), 3),
    "categorical_expanded": (
        lambda f: dist.Categorical(logits=torch.stack([f[0], -f[0], 0 * f[0]])).expand(f.shape),
        3,
    ),
    "ordered": (lambda f: dist.OrderedLogistic(f, torch.tensor([-1.0, 0.5], dtype=f.dtype)), 3),
    "binomial": (lambda f: dist.Binomial(1, logits=f), None),
    "bernoulli_events": (lambda f: dist.Bernoulli(logits=torch.stack([f, f], -1)).to_event(1), None),
    "poisson": (lambda f: dist.Poisson(f.exp()), None),
    "normal": (lambda f: dist.Normal(f, 1.0), None),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_of_labels_are_told_from_others(name):
    make, count = LIKELIHOODS[name]

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", make(x @ w), obs=y)

    x, y = problems._rows()[0], torch.arange(12) % 2
    y = torch.stack([y, y], -1) if name == "bernoulli_events" else y
    posterior = bnn.fit(program, x, y, inference="prior", draws=20, dtype="float64")
    prediction = posterior.predict(x)
    assert counts_classes(posterior.target, posterior.draws.z[0, 0], x) == count
    assert isinstance(prediction, Prediction if count is None else ClassPrediction)
    watched = function_space(posterior.target, posterior.units, posterior.draws.z)
    assert ("noise_scale" in watched) == (count is None)
    if count is None:
        return
    rows, w = np.arange(12), posterior.draws.z[0]
    made = [make(x @ one) for one in w]
    every = [torch.full((12,), float(c), dtype=torch.float64) for c in range(count)]
    by_hand = np.array([np.stack([fn.log_prob(c).exp().numpy() for c in every], -1) for fn in made])
    assert prediction.classes.tolist() == list(range(count))
    assert np.allclose(prediction.function_draws[0], by_hand, rtol=1e-9)
    assert np.allclose(prediction.log_prob(y), np.log(by_hand[:, rows, y.numpy()].mean(0)), rtol=1e-9)
    assert np.allclose(posterior.log_predictive_density(x, y), prediction.log_prob(y), rtol=1e-14)
    assert watched["f"].shape == ((1, 20, 12) if count == 2 else (1, 20, 12, 3))
    assert np.allclose(watched["f"][0], by_hand[..., 1] if count == 2 else by_hand, rtol=1e-9)
    assert np.allclose(watched["log_likelihood"][0], np.log(by_hand[:, rows, y.numpy()]).sum(-1), rtol=1e-9)


# ---- labels through fit --------------------------------------------------------------------------------------------


def noisy_classes(n=80, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return x, (x[:, 0] + 0.7 * rng.normal(size=n) > 0).astype(int)


LABELS = {
    "text": np.array(["yes", "no"]),  # sorted, "no" comes first
    "numbers": np.array([1, 2]),
    "booleans": np.array([False, True]),
    "negative": np.array([1, -1]),
}


@pytest.mark.parametrize("name", LABELS)
def test_any_labels_are_learnt_and_given_back(name):
    x, codes = noisy_classes()
    y = LABELS[name][codes]
    posterior = bnn.get_model("logistic").fit(x, y, inference="svi", steps=300, draws=200)
    prediction = posterior.predict(x)
    assert prediction.classes.tolist() == sorted(LABELS[name].tolist())
    assert prediction.classes.dtype.kind == y.dtype.kind and prediction.label.dtype.kind == y.dtype.kind
    assert (prediction.label == y).mean() > 0.75, "labels are turned round"
    assert set(np.unique(prediction.draws)) == set(LABELS[name].tolist())
    scores = posterior.score(x, y)
    assert scores["test_accuracy"][0] == (prediction.label == y).mean()
    column = [prediction.classes.tolist().index(v) for v in y.tolist()]
    assert np.allclose(prediction.log_prob(y), np.log(prediction.probs[np.arange(80), column]), atol=1e-5)
    assert np.allclose(posterior.log_predictive_density(x, y), prediction.log_prob(y))


def test_a_categorical_keeps_its_order_and_its_unseen_class():
    x, codes = noisy_classes()
    y = pd.Categorical.from_codes(codes, categories=["small", "large", "huge"])
    posterior = bnn.get_model("mlp_categorical", hidden=()).fit(x, y, inference="prior", draws=300)
    prediction = posterior.predict(x)
    assert prediction.classes.tolist() == ["small", "large", "huge"] and prediction.probs.shape == (80, 3)
    assert np.isfinite(prediction.log_prob(["huge"] * 80)).all()
