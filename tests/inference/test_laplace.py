"""Laplace approximations: exact where the posterior is normal, and elsewhere what curvature by hand says."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.func import hessian, jacfwd

import bnn_pyro as bnn
import problems
from bnn_pyro import curvature, hyper, laplace, layers, modes, outputs, results, shapes
from bnn_pyro.gaussians import Dense, Diagonal, Gaussian, Kronecker
from bnn_pyro.isolation import isolated
from bnn_pyro.linearized import LinearizedTarget, check_outputs
from bnn_pyro.structure import build_target

F64 = torch.float64
KNOWN = bnn.get_model("linear", noise=0.7)


@pytest.fixture
def inside():
    with isolated(seed=0, dtype=F64):
        yield


def rows(n=40, d=3, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=F64)
    return x, torch.sin(x.sum(1)) + 0.3 * torch.randn(n, generator=generator, dtype=F64)


def fitted(model, x, y, **options):
    options = {"standardize": False, "progress": False, "draws": 50} | options
    return bnn.fit(model, x, y, inference="laplace", **options)


def network(x, y=None):
    """One hidden layer, known noise."""
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([x.shape[-1], 4]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.5).expand([4]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 0.8).expand([4]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1 + b1) @ w2, 0.3), obs=y)


def classes(x, y=None):
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([x.shape[-1], 4]).to_event(2))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Categorical(logits=torch.tanh(x @ w1) @ w2), obs=y)


def two_outputs(x, y=None):
    """Linear: the Kronecker product is exact, its two inputs' and the bias's priors unlike."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1], 2]).to_event(2))
    b = pyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ (w / 3.0) + b, 0.5).to_event(1), obs=y)


def positive(x, y=None):
    """A rate that is transformed, with no layer."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Exponential(rate), obs=y)


# ---- exact where the posterior is normal -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("structure", "kind"),
    [("full", "ggn"), ("full", "exact"), ("kronecker", "ggn"), ("last_layer", "ggn"), ("last_layer", "exact")],
)
def test_posterior_and_evidence_of_a_linear_model_are_exact(structure, kind):
    x, y = rows()
    posterior = fitted(KNOWN, x, y, structure=structure, curvature=kind)
    exact, density = KNOWN.exact(x, y), laplace.gaussian(posterior.draws)
    assert torch.allclose(density.mean, exact.mean, rtol=0, atol=1e-8)
    assert torch.allclose(density.covariance(), exact.covariance, rtol=0, atol=1e-8)
    assert abs(posterior.draws.info["log_evidence"] - exact.log_evidence) < 1e-8
    assert abs(posterior.draws.stats["log_p"] - posterior.draws.stats["log_q"]).std() > 0
    gap = posterior.draws.stats["log_p"] - posterior.draws.stats["log_q"]
    assert np.ptp(gap) < 1e-9 and abs(gap.mean() - exact.log_evidence) < 1e-8


def test_a_diagonal_has_the_variances_that_it_should():
    x, y = rows()
    density = laplace.gaussian(fitted(KNOWN, x, y, structure="diagonal").draws)
    precision = torch.linalg.inv(KNOWN.exact(x, y).covariance)
    assert torch.allclose(density.variances(), 1.0 / precision.diagonal(), rtol=1e-10)
    assert torch.allclose(density.mean, KNOWN.exact(x, y).mean, atol=1e-8)


def test_the_evidence_is_in_the_units_of_y():
    x, y = rows()
    evidence = [
        fitted(KNOWN, x.numpy(), scale * y.numpy(), standardize=True).draws.info["log_evidence"] for scale in (1, 10)
    ]
    assert abs(evidence[0] - evidence[1] - len(y) * math.log(10)) < 1e-8


def test_one_output_layer_and_one_batch_make_the_kronecker_product_exact():
    x, _ = rows()
    y = torch.stack([x[:, 0], x[:, 1] - x[:, 2]], 1)
    full, kronecker = (laplace.gaussian(fitted(two_outputs, x, y, structure=s).draws) for s in ("full", "kronecker"))
    assert [type(b).__name__ for b in kronecker.blocks] == ["Kronecker"]
    assert torch.allclose(full.covariance(), kronecker.covariance(), rtol=0, atol=1e-10)
    assert abs(float(full.log_det - kronecker.log_det)) < 1e-8


# ---- curvature by hand -------------------------------------------------------------------------------------------


def test_the_ggn_of_classes_is_that_by_hand(inside):
    x, _ = rows()
    target = build_target(classes, x, torch.arange(40) % 3, dtype=F64)
    z = torch.randn(target.dim)

    def logits(z):
        return torch.tanh(x @ z[:12].reshape(3, 4)) @ z[12:].reshape(4, 3)

    def loss(f):
        return torch.nn.functional.cross_entropy(f, target.y, reduction="sum")

    jacobian = jacfwd(logits)(z).reshape(-1, target.dim)
    by_hand = jacobian.mT @ hessian(loss)(logits(z)).reshape(120, 120) @ jacobian
    found = curvature.ggn(target, z, torch.arange(target.dim))
    assert torch.allclose(found, by_hand, rtol=0, atol=1e-10)
    assert torch.allclose(curvature.ggn_diagonal(target, z, torch.arange(target.dim)), by_hand.diagonal(), atol=1e-10)
    own = torch.tensor([5, 0, 20])
    assert torch.allclose(curvature.ggn(target, z, own), by_hand[own[:, None], own], atol=1e-10)
    assert curvature.likelihood_parameters(target, z)[1] == "fisher"


@pytest.mark.parametrize("name", ["hierarchical", "simplex", "bounded_by_another", "student", "gp"])
def test_exact_curvature_is_that_of_the_log_density(name, inside):
    target = problems.PROBLEMS[name]().target()
    z, index = problems.points(target, 1)[0], torch.arange(target.dim)
    by_hand = -hessian(target.log_density)(z)
    assert torch.allclose(curvature.hessian(target.log_density, z, index), by_hand, atol=1e-9)
    assert torch.allclose(curvature.hessian_diagonal(target.log_density, z), by_hand.diagonal(), atol=1e-9)
    prior = -hessian(target.log_prior)(z)
    assert torch.allclose(curvature.prior_hessian(target, z, index), prior, atol=1e-9)


def test_a_program_that_insists_on_its_rows_has_the_same_ggn(inside):
    x, y = rows()

    def fixed(x, y=None):
        assert len(x) == 40
        return network(x, y)

    z = torch.randn(20)
    first, second = (curvature.ggn(build_target(p, x, y, dtype=F64), z, torch.arange(20)) for p in (network, fixed))
    assert torch.allclose(first, second, atol=1e-10) and float(first.norm()) > 1


def centred(x, y=None):
    """Linear and normal throughout; the mean of the weights' prior is a site with a fixed Normal prior of its own."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(mu, 0.7).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def scaled_prior(x, y=None):
    log_tau = pyro.sample("log_tau", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(0.0, log_tau.exp()).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def tied(x, y=None):
    """A factor outside of the plate is a part of the prior."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    pyro.factor("tie", -3.0 * (w[0] - w[1]) ** 2)
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


@pytest.mark.parametrize("program", [centred, scaled_prior, tied], ids=lambda p: p.__name__)
def test_a_prior_curves_in_the_sites_that_others_depend_on_too(program, inside):
    target = build_target(program, *rows(), dtype=F64)
    z = torch.linspace(-0.7, 0.5, target.dim)
    by_hand = -hessian(target.log_prior)(z)
    assert torch.allclose(curvature.prior_hessian(target, z, torch.arange(target.dim)), by_hand, atol=1e-9)
    some = torch.tensor([target.dim - 1, 0])
    assert torch.allclose(curvature.prior_hessian(target, z, some), by_hand[some[:, None], some], atol=1e-9)
    assert torch.allclose(curvature.prior_diagonal(target, z), by_hand.diagonal(), atol=1e-9)


@pytest.mark.parametrize("scales", ["joint", "marginal"])
def test_a_linear_model_with_a_mean_of_its_weights_is_exact(scales):
    x, y = rows()
    found = fitted(centred, x, y, scales=scales).draws
    target = build_target(centred, x, y, dtype=F64)
    with isolated(dtype=F64):
        precision = -hessian(target.log_density)(torch.zeros(4, dtype=F64))
        mean = torch.linalg.solve(precision, torch.func.grad(target.log_density)(torch.zeros(4, dtype=F64)))
    gaussian = laplace.gaussian(found)
    assert torch.allclose(found.state["mean"], mean, atol=1e-5)
    assert torch.allclose(torch.as_tensor(gaussian.log_det), torch.logdet(precision), atol=1e-6)
    (block,) = gaussian.blocks
    order = block.index.argsort()
    made = (block.factor @ block.factor.mT)[order[:, None], order]
    assert torch.allclose(made, precision, rtol=1e-6, atol=1e-6)


def test_masked_rows_are_not_counted():
    x, y = rows()
    mask = x[:, 0] > 0

    def masked(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
        with pyro.plate("data", x.shape[0]), pyro.poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    with pytest.warns(
        UserWarning, match=r"inside poutine\.scale or poutine\.mask, so that the curvature is the exact Hessian"
    ):
        found = fitted(masked, x, y).draws
    precision = torch.eye(3, dtype=F64) + x[mask].T @ x[mask] / 0.25
    assert abs(float(laplace.gaussian(found).log_det - torch.logdet(precision))) < 1e-6


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_a_prior_without_curvature_is_not_given_one(structure):
    def kinked(x, y=None):
        w1 = pyro.sample("w1", dist.Laplace(0.0, 10.0).expand([x.shape[-1], 4]).to_event(2))
        w2 = pyro.sample("w2", dist.Laplace(0.0, 10.0).expand([4]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(torch.tanh(0 * (x @ w1)) @ w2, 0.3), obs=y)

    with pytest.raises(bnn.ModelError, match="does not curve downwards there"):
        fitted(kinked, *rows(), structure=structure, rounds=3)


def test_a_program_that_looks_at_its_rows_has_the_same_ggn(inside):
    def looks(x, y=None):
        if bool((x.abs() > 100).any()):
            raise ValueError("x")
        return network(x, y)

    z = torch.randn(20)
    first, second = (curvature.ggn(build_target(p, *rows(), dtype=F64), z, torch.arange(20)) for p in (network, looks))
    assert torch.allclose(first, second, atol=1e-10) and float(first.norm()) > 1


def test_a_centred_hierarchy_is_climbed_through_points_where_its_prior_curves_upwards():
    """From a start near which the precision has a negative eigenvalue, to a mode or to a sentence that fits."""

    def schools(x, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.LogNormal(1.0, 0.5))
        theta = pyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(theta[x[:, 0].long()], 10.0), obs=y)

    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    found = fitted(schools, np.arange(8.0)[:, None], y, rounds=200)
    assert found.draws.z.isfinite().all() and found.draws.state["mean"].isfinite().all()


def test_two_classes_of_several_outputs_have_the_information_of_all(inside):
    logits = torch.randn(5, 3)
    made = outputs.outputs(dist.Bernoulli(logits=logits), -2)
    found, kind = outputs.information(made, torch.ones(5, 3))
    p = logits.sigmoid()
    assert kind == "fisher" and torch.allclose(found, torch.diag_embed(p * (1 - p)))


def test_too_many_scales_for_the_marginal_mode_are_said(monkeypatch):
    monkeypatch.setattr(hyper, "MOST", 0)
    with pytest.warns(UserWarning, match="numbers are in no layer, and scales='marginal' takes at most 0"):
        fitted(bnn.get_model("mlp_gaussian", hidden=(3,)), *rows(), rounds=3)


def test_a_transformed_site_is_approximated_where_it_is_free():
    x = torch.zeros(30, 1, dtype=F64)
    y = torch.linspace(0.1, 2.0, 30, dtype=F64)
    posterior = fitted(positive, x, y, tolerance=1e-12, curvature="exact")
    mean, (precision,) = posterior.draws.state["mean"], [b.factor**2 for b in laplace.gaussian(posterior.draws).blocks]
    # log p(u) = (2 + n) u - (1 + sum y) e^u + const: the mode of u = log rate, and its curvature 2 + n
    assert abs(float(mean.exp()) - 32 / (1 + float(y.sum()))) < 1e-6
    assert abs(float(precision) - 32) < 1e-6


# ---- scales ------------------------------------------------------------------------------------------------------


def test_an_unknown_noise_goes_to_the_top_of_its_own_density():
    """sigma**2 ~ InverseGamma(a, b) exactly, so that log sigma has its mode at half log(b / a), with curvature 4 a."""
    x, y = rows()
    model = bnn.get_model("linear")
    exact = model.exact(x, y)
    posterior = fitted(model, x, y, tolerance=1e-9)
    density = laplace.gaussian(posterior.draws)
    a, b = exact.shape, exact.rate
    assert abs(float(density.mean[0]) - 0.5 * math.log(b / a)) < 1e-5
    assert abs(float(density.variances()[0]) * 4 * a - 1) < 0.01
    assert torch.allclose(density.mean[1:], exact.mean, atol=1e-6)
    assert torch.allclose(density.covariance()[1:, 1:] * a / (a - 1), exact.covariance, rtol=0.02, atol=1e-5)
    # one dimension's Laplace approximation of a gamma integral, off by Stirling's 1 / (12 a)
    assert abs(posterior.draws.info["log_evidence"] - exact.log_evidence + 1 / (12 * a)) < 1e-3


def test_without_marginal_scales_a_network_that_goes_through_every_row_has_no_mode():
    x, y = rows(n=8)
    model = bnn.get_model("mlp_gaussian", hidden=(40,))
    with_scales = fitted(model, x.numpy(), y.numpy(), structure="full", seed=1)
    assert with_scales.diagnose().verdict == "approximate"
    sigma = with_scales.idata.posterior["sigma"].values
    assert sigma.mean() > 0.1
    joint = fitted(model, x.numpy(), y.numpy(), structure="full", scales="joint", seed=1, rounds=10)
    assert joint.idata.posterior["sigma"].values.mean() < sigma.mean() / 5


def test_tuned_priors_have_the_highest_evidence():
    x, y = rows()

    def program(x, y=None, sds=(1.0, 1.0)):
        w = pyro.sample("w", dist.Normal(0.0, sds[0]).expand([x.shape[-1]]).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, sds[1]))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w + b, 0.5), obs=y)

    def evidence(sds):
        return fitted(lambda x, y=None: program(x, y, sds), x, y + 3.0).draws.info["log_evidence"]

    posterior = fitted(program, x, y + 3.0, tune_prior=True)
    info = posterior.draws.info
    sds = (info["prior_sd_factor_w"], info["prior_sd_factor_b"])
    assert abs(info["log_evidence"] - evidence(sds)) < 1e-6 and sds[1] > 2.0
    for i in range(2):
        for factor in (0.9, 1.1):
            moved = tuple(sd * (factor if i == j else 1.0) for j, sd in enumerate(sds))
            assert evidence(moved) < info["log_evidence"]
    assert info["log_evidence"] > evidence((1.0, 1.0))
    assert np.allclose(posterior.target.log_prior(torch.zeros(4, dtype=F64)), _normal_log_density(sds), atol=1e-9)


def _normal_log_density(sds):
    return sum(-math.log(sd) - 0.5 * math.log(2 * math.pi) for sd in (sds[0],) * 3 + (sds[1],))


# ---- predictions -------------------------------------------------------------------------------------------------


def test_linearised_predictions_are_those_of_a_process_with_the_tangent_kernel(inside):
    """Prior precision P0 and Jacobians J at the mode: the posterior of the function is a Gaussian process' with J P0^-1 J^T."""
    x, y = rows()
    new, _ = rows(n=7, seed=9)
    posterior = fitted(network, x, y, tolerance=1e-10)
    density, mode = laplace.gaussian(posterior.draws), posterior.draws.state["mean"]

    def f(x):
        return lambda z: torch.tanh(x @ z[:12].reshape(3, 4) + z[12:16]) @ z[16:]

    j, j_new = jacfwd(f(x))(mode), jacfwd(f(new))(mode)
    sds = torch.cat([torch.full((12,), 1.0), torch.full((4,), 1.5), torch.full((4,), 0.8)])
    cross, kernel, own = (a * sds**2 @ b.mT for a, b in ((j_new, j), (j, j), (j_new, j_new)))
    process = own - cross @ torch.linalg.solve(kernel + 0.09 * torch.eye(40), cross.mT)
    assert torch.allclose(j_new @ density.covariance() @ j_new.mT, process, rtol=0, atol=1e-8)
    target = posterior.target
    assert isinstance(target, LinearizedTarget)
    z = posterior.draws.z[0, 3]
    fn = target.forward(z, new)
    assert torch.allclose(fn.loc, f(new)(mode) + j_new @ (z - mode), atol=1e-10)
    assert torch.equal(fn.scale, torch.full((7,), 0.3))
    prediction = posterior.predict(new.numpy())
    assert np.allclose(prediction.function_draws[0, 3], fn.loc.numpy(), atol=1e-10)


def test_the_linearised_log_likelihood_has_the_ggn_for_its_hessian(inside):
    x, _ = rows()
    target = build_target(classes, x, torch.arange(40) % 3, dtype=F64)
    mode = torch.randn(target.dim)
    linear = laplace.linearize(target, mode)
    found = -hessian(lambda z: linear.evaluate(z).log_likelihood["y"].sum())(mode)
    assert torch.allclose(found, curvature.ggn(target, mode, torch.arange(target.dim)), atol=1e-10)
    same, there = linear.evaluate(mode), target.evaluate(mode)
    assert torch.allclose(same.log_likelihood["y"], there.log_likelihood["y"], atol=1e-12)
    assert torch.equal(same.log_prior, there.log_prior)


def test_draws_of_the_weights_are_run_through_the_network_on_request():
    x, y = rows()
    posterior = fitted(network, x, y, predictive="weights")
    z = posterior.draws.z[0, 3]
    assert not isinstance(posterior.target, LinearizedTarget)
    f = torch.tanh(x @ z[:12].reshape(3, 4) + z[12:16]) @ z[16:]
    assert np.allclose(posterior.predict(x.numpy()).function_draws[0, 3], f.numpy(), atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["full", "kronecker", "diagonal", "last_layer"])
def test_it_comes_back_from_its_files_and_has_all_groups(structure, tmp_path):
    x, y = rows()
    posterior = fitted(bnn.get_model("mlp_gaussian", hidden=(4,)), x.numpy(), y.numpy(), structure=structure)
    assert posterior.diagnose().verdict == "approximate", posterior.diagnose()
    wanted = {"posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive",
              "observed_data", "constant_data", "function_space"}  # fmt: skip
    assert wanted <= set(results.group_names(posterior.idata))
    loaded = bnn.load(posterior.save(tmp_path / "run"))
    assert np.array_equal(loaded.predict(x.numpy()).draws, posterior.predict(x.numpy()).draws)
    saved, own = loaded.draws.state, posterior.draws.state
    assert set(saved) == set(own) and all(torch.equal(saved[k], own[k]) for k in own)
    assert loaded.diagnose() == posterior.diagnose()


def test_tuning_never_leaves_the_evidence_lower():
    """A network whose two layers trade their sizes: MacKay's fixed point alone ends far below where it began."""
    x = rows(60)[0]
    labels = (x[:, 0] + 0.5 * torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=F64) > 0).long()
    model = bnn.get_model("mlp_categorical", hidden=(3,), activation="tanh")
    before, after = (
        fitted(model, x.numpy(), labels.numpy(), tune_prior=tuned, backend="eager").draws.info
        for tuned in (False, True)
    )
    assert after["log_evidence"] > before["log_evidence"] + 0.5
    assert 0.1 < after["prior_sd_factor_w1"] < 10 and 0.1 < after["prior_sd_factor_w2"] < 10


@pytest.mark.slow
def test_tuned_priors_come_back_too(tmp_path):
    x, y = rows()
    posterior = fitted(network, x, y, tune_prior=True, seed=2)
    loaded = bnn.load(posterior.save(tmp_path / "run"), model=network)
    z = torch.zeros(20, dtype=F64)
    assert (
        loaded.target.log_prior(z)
        == posterior.target.log_prior(z)
        != build_target(network, x, y, dtype=F64).log_prior(z)
    )
    assert np.array_equal(loaded.predict(x.numpy()).draws, posterior.predict(x.numpy()).draws)


@pytest.mark.slow
def test_a_prior_whose_scale_is_a_site_is_not_tuned():
    x, y = rows()
    posterior = fitted(
        bnn.get_model("mlp_gaussian", hidden=(3,), activation="tanh"),
        x.numpy(),
        y.numpy(),
        tune_prior=True,
        tolerance=0.3,
    )
    tuned = {k for k in posterior.draws.info if k.startswith("prior_sd_factor")}
    assert tuned == {"prior_sd_factor_b1", "prior_sd_factor_b2"}


def test_other_layers_stay_at_the_mode():
    x, y = rows()
    posterior = fitted(network, x, y, structure="last_layer")
    z = posterior.draws.z[0]
    assert np.ptp(z[:, :16].numpy(), axis=0).max() == 0.0 and z[:, 16:].std(0).min() > 0.01
    assert posterior.draws.info["points"] == 16 and "16 weights stay" in str(posterior.diagnose())


@pytest.mark.slow
def test_scales_and_evidence_of_the_last_layer_are_with_all_weights_integrated_out():
    """By the last layer alone the others' scale would grow and the noise go towards 0: points go through every row."""
    x, y = rows()
    model = bnn.get_model("mlp_gaussian", hidden=(4,), activation="tanh")
    last, whole = (fitted(model, x.numpy(), y.numpy(), structure=s) for s in ("last_layer", "kronecker"))
    for name in ("scale", "sigma"):
        one, other = (np.log(p.idata.posterior[name].values.mean()) for p in (last, whole))
        assert one == pytest.approx(other, abs=0.1), name
    assert last.draws.info["log_evidence"] == pytest.approx(whole.draws.info["log_evidence"], abs=1.0)
    assert last.draws.info["points"] == 16 and last.draws.info["scales"] == "scale, sigma"
    assert "weights integrated out: scale, sigma." in str(last.diagnose())
    assert "curvature last_layer, Gauss-Newton" in str(last.diagnose())


# ---- layers ------------------------------------------------------------------------------------------------------


def test_layers_are_found_with_their_biases_and_scales(inside):
    x, y = rows()
    target = build_target(bnn.get_model("mlp_gaussian", hidden=(4, 2)).model, x, y, dtype=F64)
    z = torch.randn(target.dim)
    found = layers.layers(target, z)
    shapes_found = [(f.site, f.bias, tuple(f.index.shape)) for f in found]
    assert shapes_found == [("w1", "b1", (4, 4)), ("w2", "b2", (5, 2)), ("w3", "b3", (3, 1))]
    scale = target.constrain(z)["scale"]
    assert torch.allclose(found[0].scale, torch.stack([scale / 3**0.5] * 3 + [torch.ones(())]))
    assert torch.equal(found[0].inputs[:, 0], torch.cat([x, torch.ones(40, 1)], 1))
    entries = torch.cat([f.index.reshape(-1) for f in found])
    assert len(set(entries.tolist())) == len(entries) == target.dim - 2  # all but scale and sigma


def test_a_convolution_is_a_layer_of_patches(inside):
    def program(x, y=None):
        k = pyro.sample("k", dist.Normal(0.0, 1.0).expand([2, 1, 3, 3]).to_event(4))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        f = torch.nn.functional.conv2d(x, k, b, padding=1).sum((2, 3)) / 16
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    x = torch.randn(20, 1, 4, 4)
    target = build_target(program, x, torch.randn(20, 2), dtype=F64)
    (layer,) = layers.layers(target, torch.zeros(target.dim))
    assert layer.index.shape == (10, 2) and layer.inputs.shape == (20, 16, 10)
    weights = torch.randn(target.dim)
    matrix = weights[layer.index]
    made = (layer.inputs @ matrix).sum(1) / 16
    assert torch.allclose(made, target.forward(weights, x).base_dist.loc, atol=1e-10)


def test_a_weight_that_is_used_twice_is_in_no_layer(inside):
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
        v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(torch.tanh(x @ w) @ w @ v, 0.5), obs=y)

    x, y = rows()
    found = layers.layers(build_target(program, x, y, dtype=F64), torch.zeros(12))
    assert [f.site for f in found] == ["v"]


# ---- what is refused or said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "kron"}, "did you mean 'kronecker'"),
        ({"predictive": "linear"}, "did you mean 'linearized'"),
        ({"structure": "kronecker", "curvature": "exact"}, "'full', 'diagonal' or 'last_layer' beside 'exact'"),
        ({"tolerance": 0.0}, "a positive number"),
        ({"draws": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(bnn.BNNError, match=message):
        fitted(network, *rows(), **options)


def test_a_likelihood_without_parameters_of_its_own_has_the_exact_hessian():
    problem = problems.PROBLEMS["gp"]()
    with pytest.warns(UserWarning, match="exact Hessian"):
        posterior = fitted(problem.program, problem.x, problem.y)
    assert posterior.draws.info["curvature"] == "exact" and posterior.draws.info["predictive"] == "weights"
    with pytest.raises(bnn.OptionError, match="structure='kronecker'"), pytest.warns(UserWarning, match="exact"):
        fitted(problem.program, problem.x, problem.y, structure="kronecker")


def test_a_program_with_parameters_is_refused():
    def learnt(x, y=None):
        a = pyro.param("a", lambda: torch.tensor(0.5, dtype=F64), constraint=constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, a).expand([x.shape[-1]]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    with pytest.raises(bnn.ModelError, match=r"pyro\.param 'a'"):
        fitted(learnt, *rows())


def test_a_large_site_whose_entries_are_tied_has_no_diagonal(inside, monkeypatch):
    target = problems.PROBLEMS["correlated"]().target()
    monkeypatch.setattr(curvature, "FEW", 1)
    with pytest.raises(bnn.OptionError, match="Use structure='full'"):
        curvature.prior_diagonal(target, problems.points(target, 1)[0])
    free = problems.PROBLEMS["hierarchical"]().target()
    z = problems.points(free, 1)[0]
    assert torch.allclose(curvature.prior_diagonal(free, z), -hessian(free.log_prior)(z).diagonal(), atol=1e-9)


def test_memory_is_said_beforehand(monkeypatch):
    monkeypatch.setattr(shapes, "LARGE", 100)
    with pytest.warns(UserWarning, match="20 latent numbers take about 0.0 GiB, and draws=5 of them 0.0"):
        fitted(network, *rows(), structure="full", draws=5)
    monkeypatch.setattr(shapes.os, "sysconf", lambda name: 1)
    with pytest.raises(bnn.OptionError, match="Use 'kronecker', 'last_layer' or 'diagonal'"):
        fitted(network, *rows(), structure="full", draws=5)
    with pytest.raises(bnn.OptionError, match=r"draws=500 of them .* Use fewer draws"):
        fitted(network, *rows(), structure="full", draws=500)


def test_an_optimiser_that_has_not_arrived_is_told():
    posterior = fitted(network, *rows(), rounds=1, tolerance=1e-300)
    verdict = posterior.diagnose()
    assert verdict.verdict == "not converged" and "rounds=4" in str(verdict)


def test_what_can_be_linearised(inside):
    target = problems.PROBLEMS["two_observed"]().target()
    assert check_outputs(target, torch.zeros(target.dim)) == "the program observes several sites"
    target = problems.PROBLEMS["factor"]().target()
    assert "pyro.factor" in check_outputs(target, torch.zeros(target.dim))
    for name in ("bernoulli", "categorical", "student", "event_of_outputs", "plate_of_outputs"):
        target = problems.PROBLEMS[name]().target()
        assert check_outputs(target, torch.zeros(target.dim)) == "", name


@pytest.mark.parametrize(
    "fn",
    [
        lambda: dist.Normal(torch.randn(9), torch.rand(9) + 0.5),
        lambda: dist.Bernoulli(logits=torch.randn(9)),
        lambda: dist.Categorical(logits=torch.randn(9, 4)),
    ],
    ids=["normal", "bernoulli", "categorical"],
)
def test_the_usual_likelihoods_have_their_information_in_closed_form(fn, inside, monkeypatch):
    found, y = outputs.outputs(fn(), -1), fn().sample()
    closed, kind = outputs.information(found, y)
    monkeypatch.setattr(outputs, "_closed_form", lambda found: None)
    general = outputs.information(found, y)
    assert kind == general[1] == "fisher" and torch.allclose(closed, general[0], atol=1e-10)
    assert torch.allclose(outputs.root(closed) @ outputs.root(closed).mT, closed, atol=1e-12)


def _log_prob(found, eta, y):
    return found.make(eta).log_prob(y).sum()


def test_information_is_the_variance_of_the_score(inside):
    """Of a Poisson rate and of a Normal in events: E[score score^T] over draws of y."""
    for fn, draws in (
        (dist.Poisson(torch.tensor([0.5, 3.0])), 200_000),
        (dist.LogNormal(torch.zeros(2), 0.7), 200_000),
    ):
        found = outputs.outputs(fn.expand([2]), -1)
        y = fn.expand([2]).sample((draws,))
        score = torch.func.vmap(torch.func.grad(partial(_log_prob, found)), (None, 0))(found.eta, y)
        products = score[..., :, None] * score[..., None, :]
        expected, kind = outputs.information(found, y[0])
        assert kind == "fisher"
        assert ((products.mean(0) - expected).abs() < 5 * products.std(0) / draws**0.5 + 1e-12).all()


def test_other_likelihoods_have_the_observed_information_without_negative_parts(inside):
    fn = dist.StudentT(4.0, torch.zeros(3), 1.0)
    found, y = outputs.outputs(fn.expand([3]), -1), torch.tensor([0.1, 1.0, 8.0])
    inside_, kind = outputs.information(found, y)
    assert kind == "observed" and torch.linalg.eigvalsh(inside_).min() > -1e-12
    full = -hessian(lambda eta: found.make(eta).log_prob(y).sum())(found.eta)
    first = full[0, :, 0]
    values, vectors = torch.linalg.eigh(first)
    assert torch.allclose(inside_[0], (vectors * values.clamp(min=0)) @ vectors.mT, atol=1e-10)


# ---- densities by blocks -------------------------------------------------------------------------------------------


def blocks():
    a, g = (torch.randn(k, 9) for k in (3, 2))
    index = torch.tensor([[4, 0], [1, 7], [2, 3]])
    prior_a, prior_g = torch.rand(3) + 0.5, torch.rand(2) + 0.5
    kronecker = Kronecker.of(index, a @ a.mT, g @ g.mT, prior_a, prior_g)
    precision = torch.kron(a @ a.mT, g @ g.mT) + torch.kron(torch.diag(prior_a), torch.diag(prior_g))
    dense = torch.randn(2, 9)
    yield kronecker, precision
    yield Dense.of(torch.tensor([9, 5]), dense @ dense.mT), dense @ dense.mT
    yield Diagonal(torch.tensor([6]), torch.tensor([2.5])), torch.tensor([[2.5]])


def test_blocks_are_the_normal_density_that_their_precision_says(inside):
    made = list(blocks())
    density = Gaussian(torch.randn(11), [block for block, _ in made])
    covariance = torch.zeros(11, 11)
    for block, precision in made:
        covariance[block.index[:, None], block.index] = torch.linalg.inv(precision)
        assert abs(float(block.log_det - torch.logdet(precision))) < 1e-10
    free = torch.cat([block.index for block, _ in made]).sort().values  # all but entry 8, a point
    assert density.dim == len(free) == 9 + 0 and 8 not in free and 10 not in free
    assert torch.allclose(density.covariance(), covariance, atol=1e-10)
    assert torch.allclose(density.variances(), covariance.diagonal(), atol=1e-10)
    z = density.sample(50)
    own = torch.distributions.MultivariateNormal(density.mean[free], covariance[free[:, None], free])
    assert torch.allclose(density.log_density(z), own.log_prob(z[:, free]), atol=1e-9)
    assert torch.equal(z[:, 8], density.mean[8].expand(50))
    v = torch.randn(11)
    assert torch.allclose(density.solve(v), covariance @ v, atol=1e-10)
    u = torch.randn(11)
    assert abs(float(density.displace(u) @ v - u @ density.turn(v))) < 1e-10
    again = Gaussian.from_tensors(density.tensors())
    assert torch.equal(again.covariance(), density.covariance()) and torch.equal(again.mean, density.mean)


def test_a_scale_grows_as_the_weights_shrink(inside):
    x, y = rows()
    target = build_target(bnn.get_model("mlp_gaussian", hidden=(4, 2)).model, x, y, dtype=F64)
    z = torch.randn(target.dim)
    scales = hyper.hyper_entries(target, z)
    (scale,) = [s for s in target.sites if s.name == "scale"]
    way = hyper.ways(target, z, scales)[scales.tolist().index(scale.start)]
    weights = torch.cat([torch.arange(s.start, s.stop) for s in target.sites if s.name.startswith("w")])
    assert (
        torch.allclose(way[weights], -z[weights], atol=1e-6)
        and way[scale.start] == 1.0
        and way.count_nonzero() == 1 + len(weights)
    )
    f, moved = (target.forward(at, x).loc for at in (z, z + 1e-3 * way))
    straight = target.forward(z + 1e-3 * torch.nn.functional.one_hot(torch.tensor(scale.start), target.dim), x).loc
    assert (moved - f).abs().max() < 0.01 * (straight - f).abs().max()


def test_at_a_kink_the_search_ends_soon_and_says_so(monkeypatch):
    """Kinks as of ReLU units, where the mode is: L-BFGS would go on for all of its iterations."""
    generator = torch.Generator().manual_seed(5)
    across = torch.randn(30, 20, generator=generator, dtype=F64)
    aim = torch.randn(20, generator=generator, dtype=F64)

    def gradient(z):
        def density(z):
            return -(across @ z).abs().sum() - 0.5 * (z - aim).square().sum()

        return torch.func.grad(density)(z[0])[None], density(z[0])[None]

    around = lambda z: Gaussian(z, [Diagonal(torch.arange(20), torch.ones(20, dtype=F64))])
    found = modes.find_mode(gradient, aim, around, 1e-2, 50)
    assert found.stalled and found.rise > 1e-2
    monkeypatch.setattr(modes, "PATIENCE", 10**9)
    longer = modes.find_mode(gradient, aim, around, 1e-2, 50)
    assert found.gradients < 0.8 * longer.gradients
    assert float(gradient(found.position[None])[1]) > float(gradient(longer.position[None])[1]) - 0.1
