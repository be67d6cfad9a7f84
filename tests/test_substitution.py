"""Programs with their parameters and random numbers given from outside, against the same programs run by hand."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from scipy import stats
from torch import nn
from torch.func import grad, vmap
from torch.nn.functional import softplus

from bnn_pyro.isolation import isolated
from bnn_pyro.substitution import Substituted

F64 = torch.float64


@pytest.fixture(autouse=True)
def clean():
    with isolated(seed=0, dtype=F64):
        yield


def noise(count, seed=1):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Deep(nn.Module):
    """A layer below a container, as users nest them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.Tanh())

    def forward(self, x):
        return self.body(x)


# ---- parameters --------------------------------------------------------------------------------------------------


def test_a_constrained_parameter_of_the_store_is_read_through_its_constraint():
    def program():
        return pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=dist.constraints.softplus_positive) * 3.0

    program()
    leaf = pyro.get_param_store()._params["scale"]
    given = torch.tensor([0.3, -2.0])
    with Substituted([leaf], [given]):
        assert torch.allclose(program(), 3.0 * softplus(given), atol=1e-15, rtol=0)
    assert torch.allclose(program().detach(), torch.tensor([3.0, 6.0]), atol=1e-12)


def test_a_parameter_of_a_pyro_module_is_read_as_given():
    class Module(PyroModule):
        def __init__(self):
            super().__init__()
            self.shift = PyroParam(torch.ones(2))
            self.rate = PyroParam(torch.ones(2), constraint=dist.constraints.positive)

        def forward(self):
            return self.shift * 2.0, self.rate * 1.0

    module = Module()
    module()
    leaves = [dict(module.named_parameters())[name] for name in ("shift_unconstrained", "rate_unconstrained")]
    given = [torch.tensor([5.0, -1.0]), torch.tensor([0.5, 0.1])]
    with Substituted(leaves, given):
        shift, rate = module()
    assert torch.equal(shift, 2.0 * given[0]) and torch.allclose(rate, given[1].exp(), atol=1e-15, rtol=0)
    assert torch.equal(module()[0].detach(), torch.full((2,), 2.0))


def test_weights_of_a_layer_inside_a_module_are_read_as_given():
    module, x = Deep(), noise(8).reshape(4, 2)
    leaves = list(module.parameters())
    given = [torch.randn_like(leaf) for leaf in leaves]
    with Substituted(leaves, given):
        found = module(x)
    assert torch.allclose(found, torch.tanh(x @ given[0].T + given[1]), atol=1e-14, rtol=0)
    assert torch.allclose(module(x), torch.tanh(x @ leaves[0].T + leaves[1]), atol=1e-14, rtol=0)


def test_a_parameter_of_a_closure_is_read_as_given_in_any_argument():
    leaf, other = torch.ones(3, requires_grad=True), torch.zeros(3)
    given = torch.tensor([1.0, 2.0, 3.0])

    def program():
        joined = torch.stack([leaf, other])
        nested = torch.cat((other, leaf))
        return joined, nested, leaf.sum(), torch.add(other, other=leaf), leaf.clone(), other + leaf, leaf[1]

    with Substituted([leaf], [given]):
        joined, nested, total, keyword, copied, added, entry = program()
    assert torch.equal(joined, torch.stack([given, other])) and torch.equal(nested, torch.cat((other, given)))
    assert float(total) == 6.0 and float(entry) == 2.0
    assert all(torch.equal(t, given) for t in (keyword, copied, added))


def test_gradients_and_batches_are_those_of_the_given_values():
    leaf = torch.ones(2, requires_grad=True)

    def value(given, own):
        with Substituted([leaf], [given], own):
            return ((leaf * torch.randn(2)) ** 2).sum()

    given, own = noise(10, 2).reshape(5, 2), noise(10, 3).reshape(5, 2)
    assert torch.allclose(vmap(grad(value))(given, own), 2 * given * own**2, atol=1e-14, rtol=1e-14)
    assert leaf.grad is None


# ---- random numbers ----------------------------------------------------------------------------------------------

FILLED = {  # how a tensor is filled, and the distribution that it has to have
    "normal_": (lambda t: t.normal_(2.0, 3.0), stats.norm(2.0, 3.0)),
    "uniform_": (lambda t: t.uniform_(-1.0, 4.0), stats.uniform(-1.0, 5.0)),
    "uniform_ by keyword": (lambda t: t.uniform_(**{"from": -1.0, "to": 4.0}), stats.uniform(-1.0, 5.0)),
    "exponential_": (lambda t: t.exponential_(2.5), stats.expon(scale=1 / 2.5)),
    "cauchy_": (lambda t: t.cauchy_(1.0, 0.5), stats.cauchy(1.0, 0.5)),
}
MADE = {
    "randn": (lambda: torch.randn(3, 4), stats.norm()),
    "randn of a tuple": (lambda: torch.randn((3, 4)), stats.norm()),
    "randn by keyword": (lambda: torch.randn(size=(3, 4)), stats.norm()),
    "rand": (lambda: torch.rand(3, 4), stats.uniform()),
    "rand of a size": (lambda: torch.rand(torch.Size([3, 4])), stats.uniform()),
    "randn_like": (lambda: torch.randn_like(torch.zeros(3, 4)), stats.norm()),
    "rand_like": (lambda: torch.rand_like(torch.zeros(3, 4)), stats.uniform()),
    "normal of tensors": (lambda: torch.normal(torch.full((3, 4), 2.0), torch.full((4,), 0.5)), stats.norm(2.0, 0.5)),
    "normal of a tensor": (lambda: torch.normal(torch.full((3, 4), 2.0), 0.5), stats.norm(2.0, 0.5)),
    "normal of a spread": (lambda: torch.normal(2.0, torch.full((3, 4), 0.5)), stats.norm(2.0, 0.5)),
    "normal of numbers": (lambda: torch.normal(2.0, 0.5, (3, 4)), stats.norm(2.0, 0.5)),
    "normal by keyword": (lambda: torch.normal(mean=2.0, std=0.5, size=(3, 4)), stats.norm(2.0, 0.5)),
}
# From smaller noise to larger, exponential numbers fall.
FALLING = ("exponential_",)


def is_the_quantile(found, given, law, falling):
    """Exact: the number's probability under its law is the noise's under the standard normal one."""
    probability = stats.norm.cdf(given.numpy())
    expected = law.ppf(1 - probability if falling else probability)
    return np.allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", FILLED)
def test_a_filled_tensor_is_the_quantile_of_the_noise(how):
    fill, law = FILLED[how]
    given = noise(12)
    with Substituted(noise=given) as mode:
        found = fill(torch.empty(3, 4))
    assert found.shape == (3, 4) and mode.used == 12
    assert is_the_quantile(found.reshape(-1), given, law, how in FALLING)


@pytest.mark.parametrize("how", FILLED)
def test_a_tensor_that_is_filled_in_place_reads_as_the_drawn_value(how):
    """Without a look at what the filling returns, in a function, a method and an operation in place."""
    fill, law = FILLED[how]
    given = noise(12)
    with Substituted(noise=given):
        filled = torch.zeros(3, 4)
        fill(filled)
        read, turned, doubled = filled + 0.0, filled.T.clone(), torch.mul(2.0, filled)
    assert is_the_quantile(read.reshape(-1), given, law, how in FALLING)
    assert torch.equal(turned, read.T) and torch.equal(doubled, 2 * read)


@pytest.mark.parametrize("how", MADE)
def test_a_made_tensor_is_the_quantile_of_the_noise(how):
    make, law = MADE[how]
    given = noise(12)
    with Substituted(noise=given) as mode:
        found = make()
    assert found.shape == (3, 4) and mode.used == 12
    assert is_the_quantile(found.reshape(-1), given, law, falling=False)


def test_the_noise_is_taken_in_order_and_each_number_once():
    given = noise(9)
    with Substituted(noise=given) as mode:
        first, second, third = torch.randn(2, 2), torch.empty(2).normal_(), torch.normal(torch.zeros(3), 1.0)
    assert torch.equal(torch.cat([first.reshape(-1), second, third]), given) and mode.used == 9


def test_without_noise_the_numbers_are_torchs_and_are_counted():
    with Substituted() as mode:
        found = torch.cat([torch.randn(50_000), torch.empty(50_000).uniform_(), torch.empty(50_000).exponential_()])
    assert mode.used == 150_000
    for part, law in zip(found.split(50_000), (stats.norm(), stats.uniform(), stats.expon())):
        assert stats.kstest(part.numpy(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    ("fn", "law"),
    [
        (dist.Normal(torch.full((4,), 1.0), 2.0), stats.norm(1.0, 2.0)),
        (dist.Laplace(torch.full((4,), 1.0), 2.0), stats.laplace(1.0, 2.0)),
        (dist.Gumbel(torch.full((4,), 1.0), 2.0), stats.gumbel_r(1.0, 2.0)),
        (dist.LogNormal(torch.full((4,), 0.2), 0.5), stats.lognorm(0.5, scale=math.exp(0.2))),
        (dist.HalfCauchy(torch.full((4,), 2.0)), stats.halfcauchy(scale=2.0)),
        (dist.HalfNormal(torch.full((4,), 2.0)), stats.halfnorm(scale=2.0)),
        (dist.Exponential(torch.full((4,), 2.0)), stats.expon(scale=0.5)),
        (dist.Uniform(torch.full((4,), 1.0), 3.0), stats.uniform(1.0, 2.0)),
        (dist.Weibull(torch.full((4,), 2.0), 1.5), stats.weibull_min(1.5, scale=2.0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.distributions.Distribution) else "",
)
def test_distributions_drawn_by_noise_have_their_law(fn, law):
    given = noise(40_000)
    with Substituted(noise=given):
        found = fn.rsample((10_000,))
    assert stats.kstest(found.reshape(-1).numpy(), law.cdf).pvalue > 1e-4


def test_the_spread_of_torchs_normal_may_be_a_parameter():
    mean, spread = torch.zeros(2), torch.ones(2)
    with Substituted([mean, spread], [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])], noise(2)):
        found = torch.normal(mean, spread)
    assert torch.equal(found, noise(2) * torch.tensor([10.0, 20.0]) + torch.tensor([1.0, 2.0]))


def test_uniform_numbers_keep_away_from_their_ends():
    with Substituted(noise=torch.tensor([-40.0, 40.0, -9.0, 9.0])):
        found = torch.rand(4)
    assert ((found > 0) & (found < 1)).all()
    with Substituted(noise=torch.tensor([-40.0, 40.0])):
        assert torch.isfinite(torch.empty(2).exponential_()).all()


def test_numbers_have_the_dtype_that_is_asked_for():
    with Substituted(noise=noise(8)):
        assert torch.randn(2, dtype=torch.float32).dtype == torch.float32
        assert torch.randn(2).dtype == F64
        assert torch.empty(2, dtype=torch.float32).normal_().dtype == torch.float32
        assert torch.randn_like(torch.zeros(2, dtype=torch.float32)).dtype == torch.float32


def test_too_little_noise_is_refused():
    with Substituted(noise=noise(5)):
        torch.randn(4)
        with pytest.raises(NotImplementedError, match="expected 5 random numbers, as before, got 6"):
            torch.randn(2)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: dist.Gamma(2.0, 1.0).rsample(),
        lambda: dist.Beta(2.0, torch.tensor(1.0)).rsample(),
        lambda: dist.Dirichlet(torch.ones(3)).rsample(),
        lambda: dist.StudentT(3.0).rsample(),
        lambda: dist.Categorical(torch.ones(3)).sample(),
        lambda: dist.Bernoulli(torch.tensor(0.5)).sample(),
        lambda: dist.Poisson(torch.tensor(3.0)).sample(),
        lambda: torch.nn.functional.dropout(torch.ones(3)),
        lambda: nn.Dropout(0.5)(torch.ones(3)),
        lambda: torch.multinomial(torch.ones(3), 2),
        lambda: torch.ones(3).multinomial(2),
        lambda: torch.randperm(3),
        lambda: torch.randint(0, 3, (2,)),
        lambda: torch.zeros(3).bernoulli_(),
    ],
    ids=["gamma", "beta", "dirichlet", "student", "categorical", "bernoulli", "poisson", "dropout", "layer", "multinomial",
         "method", "randperm", "randint", "in place"],
)  # fmt: skip
@pytest.mark.parametrize("given", [None, noise(50)], ids=["counting", "given"])
def test_numbers_that_are_not_made_of_normal_ones_are_refused(draw, given):
    refused = pytest.raises(NotImplementedError, match=r"random numbers by torch\.\w+ do not come from normal ones")
    with refused, Substituted(noise=given):
        draw()


def test_nothing_is_different_afterwards():
    leaf, filled = torch.ones(2, requires_grad=True), torch.zeros(3)
    given, kept = noise(20), noise(20)
    before = torch.get_rng_state()

    def inside():
        filled.normal_()
        assert float((leaf * 1.0).sum()) == 18.0 and torch.equal(filled + 0.0, given[:3])
        torch.rand(2)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), Substituted([leaf], [torch.full((2,), 9.0)], given):
        inside()
    assert torch.equal(torch.get_rng_state(), before)  # given noise leaves torch's generator alone
    assert torch.equal(leaf.detach() * 1.0, torch.ones(2)) and torch.equal(filled * 1.0, torch.zeros(3))
    assert torch.equal(given, kept)
