"""A distribution taken apart into tensors and put together again around others is the distribution it was."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform, ExpTransform
from torch.func import vmap

import bnn_pyro as bnn
import problems
from bnn_pyro import results
from bnn_pyro.errors import ModelError
from bnn_pyro.isolation import isolated
from bnn_pyro.likelihoods import class_count, class_log_probs, has_mean, mean_and_variance, no_mean, split, sum_to_rows


@pytest.fixture(autouse=True)
def float64():
    with isolated(seed=0, dtype=torch.float64):
        yield


A, B = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.linspace(0.5, 2, 4, dtype=torch.float64)

MAKERS = {
    "normal": lambda a, b: dist.Normal(a, b),
    "expanded": lambda a, b: dist.Normal(a[0], b[0]).expand([4]),
    "events": lambda a, b: dist.Normal(torch.stack([a, a]), torch.stack([b, b])).to_event(1),
    "student": lambda a, b: dist.StudentT(b + 2, a, b),
    "bernoulli": lambda a, b: dist.Bernoulli(logits=a),
    "poisson": lambda a, b: dist.Poisson(b),
    "negative_binomial": lambda a, b: dist.NegativeBinomial(b, logits=a),
    "multivariate": lambda a, b: dist.MultivariateNormal(a, torch.diag(b)),
    "low_rank": lambda a, b: dist.LowRankMultivariateNormal(a, b[:, None], b),
    "mixture": lambda a, b: dist.MixtureSameFamily(
        dist.Categorical(torch.stack([b, b**2], -1)), dist.Normal(torch.stack([a, -a], -1), b[:, None])
    ),
    "transformed": lambda a, b: dist.TransformedDistribution(
        dist.Normal(a, b), [ExpTransform(), AffineTransform(a, b)]
    ),
    "lognormal": lambda a, b: dist.LogNormal(a, b),
    "truncated": lambda a, b: dist.Uniform(a, a + b),
    "ordinal": lambda a, b: dist.OrderedLogistic(a, torch.stack([-b[0], b[0]])),
    "zero_inflated": lambda a, b: dist.ZeroInflatedPoisson(b, gate=torch.sigmoid(a)),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_rebuilt_distributions_draw_and_score_as_the_original(name):
    fn = MAKERS[name](A, B)
    tensors, make = split(fn)
    assert tensors
    again = make(tensors)
    torch.manual_seed(1)
    y = fn.sample()
    torch.manual_seed(1)
    assert torch.equal(again.sample(), y)
    assert torch.equal(again.log_prob(y), fn.log_prob(y))
    assert again.batch_shape == fn.batch_shape and again.event_shape == fn.event_shape


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "ordinal"])  # its constructor writes in place: no vmap
def test_distributions_made_under_vmap_are_rebuilt_from_their_tensors(name):
    """Each draw has its own parameters, not the first draw's and not the trace's."""
    shifts = torch.tensor([0.0, 0.3, 0.9])
    made = []

    def one(shift):
        tensors, make = split(MAKERS[name](A + shift, B + shift))
        made[:] = [make]
        return tensors

    batched = vmap(one)(shifts)
    for i, shift in enumerate(shifts):
        expected = MAKERS[name](A + shift, B + shift)
        again = made[0]([t[i] for t in batched])
        torch.manual_seed(2)
        y = expected.sample()
        torch.manual_seed(2)
        assert torch.allclose(again.sample(), y, rtol=1e-12)
        if name != "transformed":
            assert torch.allclose(again.log_prob(y), expected.log_prob(y), rtol=1e-12)


def test_new_tensors_leave_the_original_alone():
    fn = dist.TransformedDistribution(dist.Normal(A, B), [AffineTransform(A, B)])
    tensors, make = split(fn)
    make([torch.zeros_like(t) for t in tensors])
    assert torch.equal(fn.transforms[0].loc, A) and torch.equal(fn.base_dist.scale, B)


WITH_MOMENTS = ("normal", "expanded", "student", "bernoulli", "poisson", "negative_binomial", "mixture", "lognormal")


@pytest.mark.parametrize("name", [*WITH_MOMENTS, "truncated"])
def test_mean_and_variance_are_those_of_many_draws(name):
    fn = MAKERS[name](A * 0.5, B * 0.5)
    if name == "student":
        fn = dist.StudentT(B + 8, A, B)
    mean, variance = mean_and_variance(fn, "here")
    y = fn.sample((200_000,))
    assert mean.shape == variance.shape == (4,)
    error = y.std(0) / 200_000**0.5
    assert ((y.mean(0) - mean).abs() < 5 * error).all()
    assert ((y.var(0) / variance - 1).abs() < 0.06).all()


@pytest.mark.parametrize("fn", [
    dist.Categorical(torch.ones(4, 3) / 3),
    dist.OrderedLogistic(torch.zeros(4), torch.tensor([-1.0, 1.0])),
    dist.Cauchy(torch.zeros(4), 1.0),
], ids=["categorical", "ordinal", "cauchy"])  # fmt: skip
def test_likelihoods_without_a_mean_say_so(fn):
    """torch gives NaN as the mean of a categorical or Cauchy distribution; NaN predictions say nothing."""
    assert not has_mean(fn) and has_mean(dist.Normal(torch.zeros(4), 1.0))
    assert f"expected a likelihood with a mean and a variance, got {type(fn).__name__}" in str(no_mean(fn, "here"))


def test_predictions_without_a_mean_are_refused_by_name():
    fn = dist.Cauchy(torch.zeros(4), 1.0)

    def program(x, y=None):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("y", fn, obs=y)

    posterior = bnn.fit(program, torch.zeros(4), torch.zeros(4), inference="svi", steps=30, draws=5)
    with pytest.raises(ModelError, match=r"^program, predict: expected a likelihood with a mean.*Cauchy"):
        posterior.predict(torch.zeros(4))
    assert "posterior_predictive" in results.group_names(posterior.idata)


def test_rows_are_kept_and_other_axes_summed():
    log_prob = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(sum_to_rows(log_prob, -1), log_prob.sum((0, 1)))
    assert torch.equal(sum_to_rows(log_prob, -2), log_prob.sum((0, 2)))
    assert torch.equal(sum_to_rows(log_prob, -3), log_prob.sum((1, 2)))
    assert torch.equal(sum_to_rows(log_prob[0, 0], -1), log_prob[0, 0])


def test_a_mixture_likelihood_has_its_own_moments():
    target = problems.PROBLEMS["mixture"]().target()
    z = problems.points(target, 1)[0]
    v = target.constrain(z)
    f, p = target.x @ v["w"], v["p"]
    mean, variance = mean_and_variance(target.forward(z, target.x), "here")
    expected = (2 * p - 1) * f
    assert torch.allclose(mean, expected, rtol=1e-12)
    assert torch.allclose(variance, 0.25 + f**2 - expected**2, rtol=1e-12)


L = torch.stack([A, -A, B], -1)  # (4, 3) logits
OF_CLASSES = {
    "bernoulli": dist.Bernoulli(logits=A),
    "bernoulli_probs": dist.Bernoulli(probs=torch.sigmoid(A)),
    "categorical": dist.Categorical(logits=L),
    "categorical_probs": dist.Categorical(probs=torch.softmax(L, -1)),
    "ordinal": MAKERS["ordinal"](A, B),
    "expanded": dist.Categorical(logits=L[0]).expand([4]),
    "masked": dist.Bernoulli(logits=A).mask(A > 0),
    "masked_and_expanded": dist.Categorical(logits=L[0]).mask(True).expand([4]),
    "no_event": dist.Bernoulli(logits=A).to_event(0),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_CLASSES)
def test_class_probabilities_are_those_that_the_likelihood_scores_with(name):
    fn = OF_CLASSES[name]
    k = class_count(fn)
    log_probs = class_log_probs(fn)
    assert k == (2 if name in ("bernoulli", "bernoulli_probs", "masked", "no_event") else 3)
    assert log_probs.shape == (4, k) and log_probs.dtype == torch.float64
    plain = dist.Bernoulli(logits=A) if name == "masked" else fn  # a mask changes what counts, not what y is
    expected = torch.stack([plain.log_prob(torch.full((4,), float(c))) for c in range(k)], -1)
    assert torch.allclose(log_probs, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(4), atol=1e-14)


def test_class_probabilities_of_float32_logits_add_up_in_float64():
    fn = dist.Categorical(logits=torch.randn(50, 10).float() * 5)
    assert (class_log_probs(fn).exp().sum(-1) - 1).abs().max() < 1e-14
    far = class_log_probs(dist.Bernoulli(logits=torch.tensor([1e4, -1e4, 40.0])))
    assert torch.equal(far[:2], torch.tensor([[-1e4, 0], [0, -1e4]]))
    assert torch.allclose(far[2], torch.tensor([-40.0, -4.248354255291589e-18]), rtol=1e-12)


@pytest.mark.parametrize("fn", [
    dist.Normal(A, B),
    dist.Binomial(1, logits=A),
    dist.Poisson(B),
    dist.OneHotCategorical(logits=L),
    dist.Bernoulli(logits=torch.stack([A, A], -1)).to_event(1),
    dist.Bernoulli(logits=A).to_event(1),
    dist.Bernoulli(logits=torch.stack([A, A], -1)),
    dist.Bernoulli(logits=A[0]),
    MAKERS["mixture"](A, B),
], ids=["normal", "binomial", "poisson", "one_hot", "events", "joint", "two_axes", "one_number", "mixture"])  # fmt: skip
def test_likelihoods_that_are_no_label_for_each_row(fn):
    assert class_count(fn) is None
