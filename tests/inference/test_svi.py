"""SVI and MAP against exact posteriors, the guides by name, and the ELBO's two terms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import bnn_pyro as bnn
from bnn_pyro.inference.svi import GUIDES

NOISE = 0.7


@pytest.fixture(scope="module")
def problem():
    """`linear` with known noise on diabetes, and the exact posterior."""
    data = bnn.load_dataset("diabetes")
    model = bnn.get_model("linear", noise=NOISE)
    probe = model.fit(data.train, inference="map", dtype="float64", steps=1500)
    return data, model, probe, model.exact(probe.target.x, probe.target.y)


def fitted_normal(posterior):
    """The normal distribution that a full-rank guide has come to."""
    state = {k.split(".")[-1]: v for k, v in posterior.draws.state.items()}
    scale = torch.nn.functional.softplus(state["scale"])
    return MultivariateNormal(state["loc"], scale_tril=scale[:, None] * _unit_tril(state["scale_tril"]))


def _unit_tril(raw):
    return raw.tril(-1) + torch.eye(len(raw), dtype=raw.dtype)


def test_map_is_the_exact_mode_and_weight_decay(problem):
    _, model, posterior, exact = problem
    point = posterior.draws.z[0, 0]
    assert torch.allclose(point, exact.mean, atol=1e-6)
    x, y = posterior.target.x, posterior.target.y
    w = point.clone().requires_grad_(True)
    loss = ((y - x @ w[:10] - w[10]) ** 2).sum() / (2 * NOISE**2) + (w**2).sum() / (2 * model.prior_sd**2)
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.abs().max() < 1e-3  # ridge regression with factor 1 / prior_sd**2 has its minimum there
    assert posterior.draws.z.shape == (1, 100, 11) and (posterior.draws.z == point).all()


@pytest.mark.slow
def test_full_rank_reaches_the_exact_posterior(problem):
    data, model, _, exact = problem
    posterior = model.fit(
        data.train, inference="svi", guide="multivariate", dtype="float64", steps=8000, lr=0.05, lr_decay=0.02, seed=1
    )
    reached = fitted_normal(posterior)
    truth = MultivariateNormal(exact.mean, covariance_matrix=exact.covariance)
    assert kl_divergence(reached, truth) < 5e-3
    assert posterior.diagnose().numbers["pareto_k"] < 0.5
    draws = posterior.draws.z[0]
    assert torch.allclose(draws.mean(0), reached.mean, atol=5 * float(draws.std(0).max()) / len(draws) ** 0.5)
    assert posterior.diagnose().numbers["elbo"] == pytest.approx(exact.log_evidence, abs=0.1)


@pytest.mark.slow
def test_mean_field_has_the_mean_and_the_known_too_small_variance(problem):
    data, model, _, exact = problem
    posterior = model.fit(
        data.train, inference="svi", guide="diagonal", dtype="float64", steps=12000, lr=0.02, lr_decay=0.003, seed=2
    )
    state = {k.split(".")[-1]: v for k, v in posterior.draws.state.items()}
    sd = torch.nn.functional.softplus(state["scale"])
    precision = torch.linalg.inv(exact.covariance)
    assert torch.allclose(sd**2, 1 / precision.diagonal(), rtol=0.05)
    assert (sd**2 < 0.5 * exact.covariance.diagonal()).any()  # and that is the bias of mean field, not the posterior
    assert ((state["loc"] - exact.mean).abs() < 0.1 * exact.covariance.diagonal().sqrt()).all()


def test_elbo_at_the_exact_posterior_is_the_evidence(problem):
    """With the guide at the exact posterior, log p - log q is the log evidence at each draw, without spread."""
    data, model, _, exact = problem

    def guide(x, y=None):
        joint = pyro.sample(
            "joint",
            dist.MultivariateNormal(exact.mean, covariance_matrix=exact.covariance),
            infer={"is_auxiliary": True},
        )
        pyro.sample("w", dist.Delta(joint[:10], event_dim=1))
        pyro.sample("b", dist.Delta(joint[10]))

    posterior = model.fit(data.train, inference=bnn.SVI(guide=guide, steps=200, draws=50), dtype="float64")
    weights = posterior.draws.stats["log_p"] - posterior.draws.stats["log_q"]
    assert weights.std() < 1e-9
    assert weights.mean() == pytest.approx(exact.log_evidence, abs=1e-8)
    assert np.allclose(posterior.draws.history["elbo"], exact.log_evidence, atol=1e-8)
    assert posterior.diagnose().numbers["pareto_k"] == 0.0


def test_the_two_terms_of_the_elbo_add_up_and_kl_is_right(problem):
    """KL of a fixed normal guide from the prior has a closed form; the mean of the recorded terms is it."""
    data, model, _, exact = problem

    def guide(x, y=None):
        pyro.sample("w", dist.Normal(exact.mean[:10], 0.1).to_event(1))
        pyro.sample("b", dist.Normal(exact.mean[10], 0.1))

    posterior = model.fit(data.train, inference=bnn.SVI(guide=guide, steps=2000, draws=50), dtype="float64", seed=4)
    history = posterior.draws.history
    assert np.allclose(history["elbo"], history["expected_log_likelihood"] - history["kl"])
    prior = torch.distributions.Normal(torch.zeros(11, dtype=torch.float64), model.prior_sd)
    exact_kl = float(kl_divergence(torch.distributions.Normal(exact.mean, torch.tensor(0.1)), prior).sum())
    error = history["kl"].std() / len(history["kl"]) ** 0.5
    assert abs(history["kl"].mean() - exact_kl) < 4.5 * error


@pytest.mark.parametrize("guide", [g for g in GUIDES if g not in ("delta", "hierarchical_normal_messenger", "laplace")])
def test_every_autoguide_by_name_has_the_density_it_samples_from(guide):
    """log_q and the draws of a guide belong together: E_q[p / q] over a normalised p is 1, so k-hat and ELBO mean something.

    The program's posterior is its prior here (a likelihood without information), so log p - log q averages, as exp, to the
    evidence of that likelihood, whatever the guide.
    """

    def program(x, y=None):
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(0.0 * (a.sum() + b), 1.0).expand([len(x)]), obs=y)

    x, y = torch.zeros(5), torch.linspace(-1, 1, 5)
    settings = {"steps": 2500, "draws": 2000, "dtype": "float64", "lr": 0.05, "progress": False}
    posterior = bnn.fit(program, x, y, inference="svi", guide=guide, seed=8, **settings)
    evidence = float(torch.distributions.Normal(0.0, 1.0).log_prob(y.double()).sum())
    log_w = (posterior.draws.stats["log_p"] - posterior.draws.stats["log_q"]).reshape(-1)
    weights = np.exp(log_w - evidence)
    assert weights.mean() == pytest.approx(1.0, abs=max(0.05, 4.5 * weights.std() / len(weights) ** 0.5))
    assert abs(log_w.mean() - evidence) < 0.3  # and the guide has found the posterior


def test_laplace_guide_is_exact_on_a_normal_posterior(problem):
    data, model, _, exact = problem
    posterior = model.fit(
        data.train, inference="svi", guide="laplace", steps=3000, draws=4000, dtype="float64", lr_decay=1e-4
    )
    draws = posterior.draws.z[0]
    z = (draws.mean(0) - exact.mean) / (exact.covariance.diagonal() / len(draws)).sqrt()
    assert z.abs().max() < 4.5
    ratio = draws.var(0) / exact.covariance.diagonal()
    assert (ratio - 1).abs().max() < 4.5 * (2 / len(draws)) ** 0.5


def test_a_class_of_autoguide_and_a_models_own_guide_are_taken():
    from pyro.infer.autoguide import AutoDiagonalNormal

    data = bnn.load_dataset("stackloss")
    fit = {"inference": "svi", "steps": 40, "draws": 10}
    assert bnn.get_model("linear").fit(data.train, **fit).draws.info["guide"] == "AutoMultivariateNormal"
    by_class = bnn.get_model("linear").fit(data.train, guide=AutoDiagonalNormal, **fit)
    assert by_class.draws.info["guide"] == "AutoDiagonalNormal"


def test_parameters_of_the_program_are_learnt_and_used_in_prediction():
    def program(x, y=None):
        shift = pyro.param("shift", torch.tensor(0.0))
        w = pyro.sample("w", dist.Normal(0.0, 0.01))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(shift + w * x, 0.1), obs=y)

    x = torch.linspace(-1, 1, 40)
    posterior = bnn.fit(program, x, 3.0 + 0.0 * x, inference="svi", steps=800, lr=0.05, draws=50)
    assert float(posterior.draws.params["shift"]) == pytest.approx(3.0, abs=0.05)
    assert posterior.predict(x).mean == pytest.approx(np.full(40, 3.0), abs=0.1)
    assert len(pyro.get_param_store()) == 0


def simple(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
SHORT = {"inference": "svi", "steps": 60, "draws": 20, "seed": 3}


def test_a_guide_of_a_bnn_may_be_a_name_a_class_or_a_guide():
    from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

    kinds = {"AutoLowRankMultivariateNormal": "lowrank", "AutoDiagonalNormal": AutoDiagonalNormal}
    for kind, guide in kinds.items():
        assert bnn.BNN(simple, guide=guide).fit(X, X.sum(1), **SHORT).draws.info["guide"] == kind
    guide = AutoNormal(simple)
    first, second = (bnn.BNN(simple, guide=guide).fit(X, X.sum(1), **SHORT) for _ in range(2))
    assert torch.equal(first.draws.z, second.draws.z)  # the first fit has not trained the guide that was given
    assert guide.prototype_trace is None


def test_a_module_is_not_trained_in_place():
    from pyro.nn import PyroModule, PyroParam, PyroSample

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.shift = PyroParam(torch.zeros(2))
            self.w = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

        def forward(self, x, y=None):
            f = x @ (self.w + self.shift)
            with pyro.plate("data", x.shape[0]):
                return pyro.sample("y", dist.Normal(f, 0.5), obs=y)

    net = Net()
    first, second = (bnn.fit(net, X, X.sum(1), **SHORT) for _ in range(2))
    assert torch.equal(first.draws.z, second.draws.z)
    assert torch.equal(net.shift, torch.zeros(2)) and not torch.equal(first.draws.params["shift"], torch.zeros(2))


def test_a_guide_with_a_stray_site_is_refused():
    def guide(x, y=None):
        for name in ("w", "stray"):
            pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(bnn.ModelError, match=r"got \['stray'\] as well"):
        bnn.fit(simple, X, X.sum(1), guide=guide, **SHORT)


def test_the_path_gradient_has_the_mean_of_the_whole_gradient():
    """Both estimators over many draws, at a guide that is not the posterior; the path one alone is quiet at the optimum."""
    from pyro.infer import Trace_ELBO
    from pyro.infer.autoguide import AutoDiagonalNormal

    from bnn_pyro.isolation import isolated
    from bnn_pyro.pyro_svi import _TwoTermELBO

    def prior_only(x, y=None):
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def gradients(loss, scale, seed):
        with isolated(seed=seed, dtype=torch.float64):
            guide = AutoDiagonalNormal(prior_only, init_loc_fn=pyro.infer.autoguide.init_to_mean, init_scale=scale)
            guide(X, None)
            out = []
            for _ in range(3000):
                loss.differentiable_loss(prior_only, guide, X, None).backward()
                out.append(torch.cat([p.grad.reshape(-1) for p in guide.parameters()]))
                guide.zero_grad()
            return torch.stack(out)

    whole, path = gradients(Trace_ELBO(), 0.5, 1), gradients(_TwoTermELBO(1, True), 0.5, 2)
    error = ((whole.var(0) + path.var(0)) / 3000).sqrt()
    assert ((whole.mean(0) - path.mean(0)).abs() < 4.5 * error).all() and path.mean(0).abs().max() > 0.1
    assert gradients(_TwoTermELBO(1, True), 1.0, 3).abs().max() < 1e-12 < gradients(Trace_ELBO(), 1.0, 3).abs().max()
