"""Monte Carlo dropout: every way to leave units out against draws, the objective against its mean, and what is trained."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import grad

import bnn_pyro as bnn
from bnn_pyro import dropout, results
from bnn_pyro.graphs import normal_priors
from bnn_pyro.isolation import isolated
from bnn_pyro.structure import build_target
from bnn_pyro.substitution import Substituted

F64 = torch.float64
D, H = 3, 8
QUICK = {"standardize": False, "progress": False, "dtype": "float64", "backend": "eager"}


@pytest.fixture
def inside():
    with isolated(seed=0, dtype=F64):
        yield


def rows(n=30, d=D, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=F64)
    return x, torch.sin(x.sum(1)) + 0.3 * torch.randn(n, generator=generator, dtype=F64)


def network(x, y=None):
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([x.shape[-1], H]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([H]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.5, 0.8).expand([H]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(torch.tanh(x @ (w1 / 2) + b1) @ w2, 0.3), obs=y)


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def every_mask(rate, units=H):
    """All ways to keep or leave out the units, (2**units, units), and their probabilities."""
    kept = torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=F64)
    return kept, (rate ** (1 - kept) * (1 - rate) ** kept).prod(1)


def test_mean_and_variance_are_those_over_all_masks():
    """Eight hidden units, so 256 networks: what 20,000 draws predict, within 4.26 Monte Carlo errors."""
    x, y = rows()
    rate, draws = 0.3, 20_000
    posterior = bnn.fit(
        network, x, y, inference="mc_dropout", rate=rate, input_rate=0.0, steps=50, draws=draws, **QUICK
    )
    mean = posterior.draws.state["mean"]
    w1, b1, w2 = mean[: D * H].reshape(D, H), mean[D * H : D * H + H], mean[D * H + H :]
    kept, probability = every_mask(rate)
    functions = (torch.tanh(x @ (w1 / 2) + b1)[None] * kept[:, None] / (1 - rate)) @ w2  # (256, n)
    exact = probability @ functions
    variance = probability @ functions**2 - exact**2
    fourth = probability @ (functions - exact) ** 4
    found = torch.as_tensor(posterior.predict(x.numpy()).function_draws[0])
    assert ((found.mean(0) - exact).abs() < 4.26 * (variance / draws).sqrt()).all()
    assert ((found.var(0) - variance).abs() < 4.26 * ((fourth - variance**2) / draws).sqrt()).all()
    distinct = torch.unique(torch.as_tensor(posterior.draws.z[0]), dim=0)
    assert len(distinct) <= 256 and float(variance.min()) > 1e-4
    assert posterior.draws.info["units"] == D + H
    with isolated(dtype=F64):
        density = [float(posterior.target.log_density(z)) for z in posterior.draws.z[0, ::997]]
    assert posterior.draws.stats["lp"][0, ::997] == pytest.approx(np.array(density), abs=1e-9)


def test_the_variance_of_one_layer_is_that_by_hand():
    """Var[sum_i h_i v_i s_i / (1 - r)] = r / (1 - r) sum_i (h_i v_i)^2."""
    x, y = rows()
    rate, draws = 0.25, 20_000
    posterior = bnn.fit(linear, x, y, inference="mc_dropout", rate=rate, steps=50, draws=draws, **QUICK)
    v = posterior.draws.state["mean"]
    exact = rate / (1 - rate) * ((x * v) ** 2).sum(1)
    kept, probability = every_mask(rate, D)
    fourth = probability @ ((kept / (1 - rate) - 1) @ (x * v).mT) ** 4
    found = posterior.predict(x.numpy()).epistemic
    assert (abs(found - exact.numpy()) < 4.26 * ((fourth - exact**2) / draws).sqrt().numpy()).all()


def centred(x, y=None):
    """Weights whose prior another site has a part in."""
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    w1 = pyro.sample("w1", dist.Normal(0.3, tau).expand([x.shape[-1], 2]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0.0, tau).expand([2]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1) @ w2, 0.3), obs=y)


def test_a_prior_with_a_latent_scale_has_its_mean_over_all_masks(inside):
    x, y = rows(n=5)
    target = build_target(centred, x, y, dtype=F64)
    units = dropout.find_units(target, bnn.MCDropout(rate=0.3))
    objective = dropout._Objective(target, normal_priors(target), units, True, None)
    z = torch.randn(target.dim)
    kept, probability = every_mask(0.3, 5)
    factors = torch.ones(len(kept), target.dim)
    factors[:, 1:7], factors[:, 7:] = (kept[:, :3] / 0.7).repeat_interleave(2, 1), kept[:, 3:] / 0.7
    at = torch.stack([target.log_prior(z * f) for f in factors]) - z[0]  # log |d tau / d z| = z, which modes leave out
    found = objective((z,), torch.randn(objective.count(z, [])))[1][1]
    assert abs(found + probability @ at) < 1e-10


@pytest.mark.parametrize("by_row", [True, False], ids=["rows", "step"])
def test_the_objective_has_the_mean_over_all_masks_of_the_log_joint_density(by_row, inside):
    x, y = rows(n=5)
    target = build_target(network, x, y, dtype=F64)
    rate = 0.3
    units = dropout.find_units(target, bnn.MCDropout(rate=rate, input_rate=0.0))
    objective = dropout._Objective(target, normal_priors(target), units, by_row, None)
    z = torch.randn(target.dim)
    kept, probability = every_mask(rate)
    factors = torch.ones(len(kept), target.dim)
    factors[:, -H:] = kept / (1 - rate)
    densities = torch.stack([target.log_density(z * f) for f in factors])
    likelihoods = torch.stack([target.log_likelihood(z * f).sum() for f in factors])
    count, draws = objective.count(z, []), 4000
    assert count == (5 * (D + H) if by_row else D + H)
    noise = torch.randn(draws, count)
    values, terms = torch.func.vmap(lambda own: objective((z,), own))(noise)
    error = values.std() / draws**0.5
    assert abs(values.mean() + probability @ densities) < 4.26 * error
    assert abs(terms[:, 0].mean() - probability @ likelihoods) < 4.26 * error
    if by_row:
        assert torch.allclose(terms[:, 1], -(probability @ (densities - likelihoods)).expand(draws))  # in closed form
    assert float(values.std()) > 0.1


def test_masks_of_each_row_have_less_noise_in_the_gradient(inside):
    x, y = rows(n=200)
    target = build_target(network, x, y, dtype=F64)
    z, spread = 0.3 * torch.randn(target.dim), {}
    for by_row in (True, False):
        units = dropout.find_units(target, bnn.MCDropout(rate=0.2))
        objective = dropout._Objective(target, normal_priors(target), units, by_row, None)
        noise = torch.randn(300, objective.count(z, []))
        grads = torch.func.vmap(grad(lambda z, own: objective((z,), own)[0]), (None, 0))(z, noise)  # noqa: B023
        spread[by_row] = float(grads.var(0).sum())
    assert spread[True] < 0.25 * spread[False]


def test_a_rate_of_zero_is_the_mode():
    x, y = rows()
    options = {"steps": 3000, **QUICK}
    without = bnn.fit(linear, x, y, inference="mc_dropout", rate=0.0, **options)
    mode = bnn.fit(linear, x, y, inference="map", **options)
    assert torch.allclose(without.draws.z[0, 0], mode.draws.z[0, 0], atol=1e-5)
    assert np.ptp(without.draws.z.numpy(), axis=1).max() == 0.0


def test_training_reaches_the_optimum_of_a_linear_model():
    """Expected squares add r / (1 - r) sum_i x_ij^2 to the diagonal of X^T X: ridge regression by column."""
    x, y = rows(n=60)
    rate = 0.3
    posterior = bnn.fit(linear, x, y, inference="mc_dropout", rate=rate, steps=6000, lr=0.05, lr_decay=1e-4, **QUICK)
    more = rate / (1 - rate)
    precision = x.mT @ x / 0.25 + torch.diag(more * x.square().sum(0) / 0.25) + torch.eye(D) * (1 + more)
    exact = torch.linalg.solve(precision, x.mT @ y / 0.25)
    assert torch.allclose(posterior.draws.state["mean"], exact, atol=0.02)
    assert (exact - torch.linalg.lstsq(x, y).solution).abs().max() > 0.05


def test_channels_of_an_image_are_left_out_whole(inside):
    def program(x, y=None):
        k = pyro.sample("k", dist.Normal(0.0, 1.0).expand([2, 3, 2, 2]).to_event(4))
        with pyro.plate("data", x.shape[0]):
            f = torch.nn.functional.conv2d(x, k).mean((2, 3))
            pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    target = build_target(program, torch.randn(6, 3, 3, 3), torch.randn(6, 2), dtype=F64)
    units = dropout.find_units(target, bnn.MCDropout(rate=0.5))
    factors = units.draw(200).reshape(200, 2, 3, 4)
    assert units.count == 3 and set(factors.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(factors, factors[:, :1, :, :1].expand_as(factors))
    objective = dropout._Objective(target, normal_priors(target), units, True, None)
    assert objective.count(torch.zeros(target.dim), []) == 6 * 3
    z = torch.randn(target.dim)
    masks = torch.tensor(list(itertools.product((0.0, 2.0), repeat=3)), dtype=F64)
    each = torch.stack([target.log_likelihood(z * m.repeat_interleave(4).repeat(2)).sum() for m in masks])
    noise = torch.randn(3000, 18)
    found = torch.func.vmap(lambda own: objective((z,), own)[1][0])(noise)
    assert abs(found.mean() - each.mean()) < 4.26 * found.std() / 3000**0.5


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["rows", "step"])
def test_compiled_steps_are_the_steps_and_batches_work(masks, inside):
    x, y = rows(n=50)
    found = {}
    for backend in ("eager", "inductor"):
        options = QUICK | {"backend": backend}
        posterior = bnn.fit(network, x, y, inference="mc_dropout", masks=masks, batch_size=10, steps=40, **options)
        assert posterior.draws.info["backend"] == backend and posterior.draws.info["backend_reason"] == ""
        found[backend] = posterior.draws.state["mean"]
    assert torch.allclose(found["eager"], found["inductor"], atol=1e-8)


def test_it_comes_back_from_its_files_and_has_all_groups(tmp_path):
    x, y = rows()
    model = bnn.get_model("mlp_gaussian", hidden=(4,))
    posterior = model.fit(x.numpy(), y.numpy(), inference="mc_dropout", steps=1000, draws=40, progress=False)
    verdict = posterior.diagnose()
    assert verdict.verdict == "approximate" and "a rate of 0.1" in str(verdict), verdict
    wanted = {"posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive",
              "observed_data", "constant_data", "function_space"}  # fmt: skip
    assert wanted <= set(results.group_names(posterior.idata))
    loaded = bnn.load(posterior.save(tmp_path / "run"))
    assert np.array_equal(loaded.predict(x.numpy()).draws, posterior.predict(x.numpy()).draws)
    w2 = posterior.idata.posterior["w2"].values[0]
    left_out = (w2 == 0).all(-1)
    assert left_out.any() and not left_out.all()
    assert np.ptp(posterior.idata.posterior["b1"].values, axis=1).max() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, "at least 0 and below 1"),
        ({"input_rate": -0.1}, "at least 0 and below 1"),
        ({"masks": "row"}, "did you mean 'rows'"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 1000}, "at most the 30 training rows"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(bnn.BNNError, match=message):
        bnn.fit(network, *rows(), inference="mc_dropout", **options)


def test_programs_without_layers_or_normal_priors_are_refused():
    def scales(x, y=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(0.0, rate), obs=y)

    def heavy(x, y=None):
        w = pyro.sample("w", dist.StudentT(4.0, 0.0, 1.0).expand([x.shape[-1]]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    with pytest.raises(bnn.OptionError, match="no product of rows and weights"):
        bnn.fit(scales, *rows(), inference="mc_dropout")
    with pytest.raises(bnn.OptionError, match="got StudentT for site 'w'"):
        bnn.fit(heavy, *rows(), inference="mc_dropout")
    bnn.fit(heavy, *rows(), inference="mc_dropout", masks="step", steps=20, **QUICK)


def test_noise_comes_from_the_vector_alone(inside):
    x, y = rows()
    target = build_target(network, x, y, dtype=F64)
    objective = dropout._Objective(
        target, normal_priors(target), dropout.find_units(target, bnn.MCDropout()), True, None
    )
    z = torch.randn(target.dim)
    noise = torch.randn(objective.count(z, []))
    assert torch.equal(objective((z,), noise)[1], objective((z,), noise)[1])
    with pytest.raises(NotImplementedError, match="random numbers"), Substituted():
        objective((z,), noise[:-1])


def learnt(x, y=None):
    shift = pyro.param("shift", lambda: torch.zeros(()))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1], 1]).to_event(2))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal((x @ w)[:, 0] + shift, 0.5), obs=y)


def test_a_parameter_that_would_not_be_learnt_is_said():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        bnn.ModelError, match=r"mc_dropout: expected a program of sample statements, got pyro\.param 'shift'"
    ):
        bnn.fit(learnt, x, x[:, 0] + 5, inference="mc_dropout", progress=False)
    with pytest.warns(UserWarning, match=r"nuts: latent sites are sampled, and pyro\.param 'shift' stays as"):
        bnn.fit(learnt, x, x[:, 0], inference="nuts", chains=2, warmup=10, draws=5, max_tree_depth=3, progress=False)


def test_latent_values_of_each_row_are_rows_of_a_layer():
    def factors(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ w, 0.5).to_event(1), obs=y)

    x = torch.zeros(12, 1)
    y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    found = bnn.fit(factors, x, y, inference="mc_dropout", steps=20, draws=10, standardize=False, progress=False)
    assert found.draws.info["units"] == 2
