"""Bayesian layers against torch's with the same weights, their priors, and the guide of means and log sds."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch.func import grad, vmap

import bnn_pyro as bnn
from bnn_pyro.elbo import trace_elbo
from bnn_pyro.isolation import isolated
from bnn_pyro.mean_field import mean_field
from bnn_pyro.structure import build_target

torch_nn = torch.nn
LAYERS = {
    "linear": (lambda: bnn.nn.BayesianLinear(3, 4), lambda: torch_nn.Linear(3, 4), (5, 3)),
    "no bias": (
        lambda: bnn.nn.BayesianLinear(3, 4, bias_sd=None), lambda: torch_nn.Linear(3, 4, bias=False), (5, 3)),
    "convolution": (
        lambda: bnn.nn.BayesianConv2d(2, 3, 3, stride=2, padding=1), lambda: torch_nn.Conv2d(2, 3, 3, 2, 1), (5, 2, 6, 6)),
    "normalisation": (lambda: bnn.nn.BayesianLayerNorm(3), lambda: torch_nn.LayerNorm(3), (5, 3)),
    "gru": (lambda: bnn.nn.BayesianGRUCell(3, 4), lambda: torch_nn.GRUCell(3, 4), (5, 3)),
}  # fmt: skip


def sampled(layer, *inputs):
    """A layer's output, and the weights it drew."""
    with isolated(seed=3, dtype=torch.float64), poutine.trace() as trace:
        out = layer(*inputs)
    sites = trace.trace.nodes.items()
    return out, {n: s for n, s in sites if s["type"] == "sample" and not n.startswith("_")}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_computes_what_torchs_does_with_the_weights_it_draws(kind):
    make, like, shape = LAYERS[kind]
    x = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)
    out, sites = sampled(make(), x)
    other = like().double()
    assert set(sites) == {name for name, _ in other.named_parameters()}
    for name, parameter in other.named_parameters():
        assert sites[name]["value"].dtype == torch.float64
        parameter.data = sites[name]["value"]
    assert torch.allclose(out, other(x), atol=1e-12)


def test_the_gru_has_one_draw_of_its_weights_in_all_steps():
    class Sequence(PyroModule):
        def __init__(self):
            super().__init__()
            self.cell = bnn.nn.BayesianGRUCell(2, 3)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state

    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, 4, 2)
    out, sites = sampled(Sequence(), x)
    cell = torch_nn.GRU(2, 3, batch_first=True).double()
    for name, parameter in cell.named_parameters():
        parameter.data = sites[f"cell.{name.removesuffix('_l0')}"]["value"]
    assert torch.allclose(out, cell(x)[1][0], atol=1e-12)


def test_an_embedding_is_a_row_of_its_table():
    out, sites = sampled(bnn.nn.BayesianEmbedding(5, 2), torch.tensor([[4, 0], [1, 4]]))
    assert torch.equal(out, sites["weight"]["value"][torch.tensor([[4, 0], [1, 4]])])


def test_priors_are_normal_with_the_root_of_the_fan_in_unless_said():
    cases = [
        (bnn.nn.BayesianLinear(16, 2), {"weight": 0.25, "bias": 1.0}, torch.zeros(1, 16, dtype=torch.float64)),
        (bnn.nn.BayesianLinear(16, 2, prior_sd=3.0, bias_sd=2), {"weight": 3.0, "bias": 2.0},
         torch.zeros(1, 16, dtype=torch.float64)),
        (bnn.nn.BayesianConv2d(4, 2, 2), {"weight": 0.25, "bias": 1.0}, torch.zeros(1, 4, 3, 3, dtype=torch.float64)),
        (bnn.nn.BayesianEmbedding(7, 2), {"weight": 1.0}, torch.tensor([1])),
        (bnn.nn.BayesianLayerNorm(3), {"weight": 0.5, "bias": 1.0}, torch.zeros(1, 3, dtype=torch.float64)),
    ]  # fmt: skip
    for layer, sds, x in cases:
        _, sites = sampled(layer, x)
        for name, sd in sds.items():
            base = sites[name]["fn"].base_dist
            mean = float(isinstance(layer, bnn.nn.BayesianLayerNorm) and name == "weight")  # a gain is near 1
            assert torch.all(base.loc == mean) and torch.all(base.scale == sd)
            assert sites[name]["fn"].event_shape == sites[name]["value"].shape


@pytest.mark.parametrize("wrong", [0, -1.0, True, "wide", math.inf])
def test_a_prior_sd_that_is_no_positive_number_is_refused(wrong):
    with pytest.raises(bnn.OptionError, match=r"^BayesianLinear, prior_sd: expected a positive number or None, got"):
        bnn.nn.BayesianLinear(2, 2, prior_sd=wrong)


class Network(PyroModule):
    """10-H-1 tanh of Bayesian layers, with known noise."""

    def __init__(self, features, hidden):
        super().__init__()
        self.first, self.last = bnn.nn.BayesianLinear(features, hidden), bnn.nn.BayesianLinear(hidden, 1)

    def forward(self, x, y=None):
        f = self.last(torch.tanh(self.first(x))).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def network_elbo(closed_form=True, log_sd=-1.5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(40, generator=generator, dtype=torch.float64)
    program = Network(3, 4)
    target = build_target(program, x, y, dtype=torch.float64)
    guide = bnn.nn.MeanField(program, log_sd=log_sd)
    guide(x, y)
    return mean_field(trace_elbo(target, guide, path_gradient=True), closed_form)


def test_the_guide_has_a_mean_and_a_log_sd_for_each_weight():
    with isolated(seed=0, dtype=torch.float64):
        elbo = network_elbo(log_sd=-5.0)
        names = list(elbo.leaves)
        assert names[:4] == [f"MeanField.locs.{s.name}" for s in elbo.target.sites]
        means, log_sds = list(elbo.leaves.values())[:4], list(elbo.leaves.values())[4:]
        assert all(torch.allclose(v, torch.tensor(-5.0)) for v in log_sds)
        assert all(v.std() > 0.1 for v in means if v.numel() > 3)  # a draw of the prior, not zero
        parts = [torch.linspace(-1, 1, elbo.target.dim), torch.linspace(-2, 0, elbo.target.dim)]
        noise = torch.linspace(-2, 2, elbo.target.dim)
        leaves = torch.cat(parts).split([leaf.numel() for leaf in elbo.leaves.values()])
        shaped = [p.reshape(leaf.shape) for p, leaf in zip(leaves, elbo.leaves.values(), strict=True)]
        values, _ = elbo.as_run().draw(shaped, noise)
        flat = torch.cat([values[s.name].reshape(-1) for s in elbo.target.sites])
        assert torch.allclose(flat, parts[0] + parts[1].exp() * noise, atol=1e-12)


def test_gradients_of_the_reparameterised_kl_are_those_of_its_closed_form():
    """KL(N(m, s) || N(0, sd)): d/dm = m / sd**2, d/d log s = s**2 / sd**2 - 1, without the likelihood."""
    with isolated(seed=0, dtype=torch.float64):
        elbo = network_elbo()
        parts = [torch.linspace(-1, 1, elbo.target.dim), torch.linspace(-2, 0, elbo.target.dim)]
        noise = torch.randn(elbo.noise)
        of_kl = grad(lambda p: elbo.terms(p, noise).kl)(parts)
        precision = elbo.priors.precision
    assert torch.allclose(of_kl[0], parts[0] * precision, atol=1e-10)
    assert torch.allclose(of_kl[1], (2 * parts[1]).exp() * precision - 1, atol=1e-10)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_noise_of_the_rows_own_lowers_the_gradients_variance_and_leaves_the_mean(estimator):
    with isolated(seed=5, dtype=torch.float64):
        shared = network_elbo()
        own = shared.with_row_noise(estimator, None)
        parts = [torch.randn(shared.target.dim) * 0.5, torch.full((shared.target.dim,), -1.0)]
        found = []
        for elbo in (shared, own):
            noise = torch.randn(6000, elbo.noise)
            values = vmap(lambda e, elbo=elbo: elbo.terms(parts, e).log_likelihood)(noise)
            loss = grad(lambda p, e, elbo=elbo: -elbo.terms(p, e).log_likelihood)
            found.append((values, vmap(loss, in_dims=(None, 0))(parts, noise)))
    (a, grads_a), (b, grads_b) = found
    assert abs(a.mean() - b.mean()) < 4 * ((a.var() + b.var()) / len(a)).sqrt()
    for one, other in zip(grads_a, grads_b, strict=True):
        error = ((one.var(0) + other.var(0)) / len(a)).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()
    assert grads_b[0].var(0).mean() < 0.5 * grads_a[0].var(0).mean()


def test_a_latent_value_of_each_row_is_taken_for_its_rows_data():
    """Noise of its own it has without more: the product's outputs take numbers, and it takes none."""

    def factors(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([x.shape[0], 2]).to_event(1))
            pyro.sample("y", dist.Normal(z @ w, 0.5).to_event(1), obs=y)

    with isolated(seed=0, dtype=torch.float64):
        x, y = torch.randn(10, 1), torch.randn(10, 3)
        target = build_target(factors, x, y, dtype=torch.float64)
        guide = bnn.nn.MeanField(factors)
        guide(x, y)
        elbo = mean_field(trace_elbo(target, guide, path_gradient=True), True)
        assert elbo.with_row_noise("local", None).noise == target.dim + 10 * 3


@pytest.mark.slow
def test_a_network_of_layers_is_fitted_by_its_guide_and_by_nuts():
    data = bnn.load_dataset("diabetes")
    network = bnn.BNN(Network(10, 3), guide=bnn.nn.MeanField, standardize=True)
    by_svi = network.fit(data.train, inference="svi", steps=1500, estimator="local", progress=False)
    assert by_svi.draws.info["guide"] == "MeanField" and by_svi.draws.info["backend"] == "inductor"
    by_nuts = network.fit(data.train, inference="nuts", warmup=200, draws=100, progress=False)
    means = [p.predict(data.test.x).mean for p in (by_svi, by_nuts)]
    spread = by_nuts.predict(data.test.x).std
    assert abs(means[0] - means[1]).mean() < 0.3 * spread.mean()
