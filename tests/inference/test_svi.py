"""SVI and MAP against exact posteriors, the guides by name, and the ELBO's two terms."""

import os
import re
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, kl_divergence

import bnn_pyro as bnn
import problems
from bnn_pyro.elbo_record import ElboRecord
from bnn_pyro.guide_draws import draw_guide
from bnn_pyro.inference.svi import GUIDES
from bnn_pyro.isolation import isolated
from bnn_pyro.steps import State
from bnn_pyro.structure import build_target
from bnn_pyro.training import WINDOW, Training, optimise

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


@pytest.mark.parametrize("shape", [(), (3,), (1, 2)])
@pytest.mark.parametrize("engine", ["compiled", "pyro"])
def test_a_guide_with_a_site_of_another_shape_is_refused_before_the_first_step(engine, shape):
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(w.sum() * x[:, 0], 0.5), obs=y)

    def guide(x, y=None):
        m = pyro.param("m", lambda: torch.zeros(shape))
        pyro.sample("w", dist.Normal(m, 0.1).to_event(len(shape)))

    expected = f"program, guide, site 'w': expected a value of shape (2,), as the program has, got {shape}. Give"
    with pytest.raises(bnn.ModelError, match=re.escape(expected)):
        bnn.fit(program, X, X.sum(1), guide=guide, engine=engine, progress=False, **SHORT)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_noise_of_the_rows_own_is_refused_where_rows_are_not_independent_or_not_seen(estimator):
    def joint(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        covariance = 0.3 * torch.eye(len(x)) + 0.5
        pyro.sample("y", dist.MultivariateNormal(x @ w, covariance_matrix=covariance), obs=y)

    def low_rank(x, y=None):
        a, b = (pyro.sample(n, dist.Normal(0.0, 1.0).expand(s).to_event(2)) for n, s in (("a", [2, 1]), ("b", [1, 2])))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal((x @ (a @ b)).sum(1), 0.5), obs=y)

    for program, reason in ((joint, "one is joint over all rows"), (low_rank, "no product of rows and weights")):
        with pytest.raises(bnn.OptionError, match=rf"svi, estimator: expected steps .*{reason}.*Leave estimator out"):
            bnn.fit(program, X, X.sum(1), estimator=estimator, progress=False, **SHORT)


def test_the_path_gradient_has_the_mean_of_the_whole_gradient():
    """Both estimators over many draws, at a guide that is not the posterior; the path one alone is quiet at the optimum."""
    from pyro.infer import Trace_ELBO
    from pyro.infer.autoguide import AutoDiagonalNormal

    from bnn_pyro.isolation import isolated
    from bnn_pyro.pyro_svi import TwoTermELBO

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

    whole, path = gradients(Trace_ELBO(), 0.5, 1), gradients(TwoTermELBO(1, True), 0.5, 2)
    error = ((whole.var(0) + path.var(0)) / 3000).sqrt()
    assert ((whole.mean(0) - path.mean(0)).abs() < 4.5 * error).all() and path.mean(0).abs().max() > 0.1
    assert gradients(TwoTermELBO(1, True), 1.0, 3).abs().max() < 1e-12 < gradients(Trace_ELBO(), 1.0, 3).abs().max()


# ---- both engines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["compiled", "eager", pytest.param("pyro", marks=pytest.mark.slow)])
@pytest.mark.parametrize("guide", ["multivariate", "diagonal"])
def test_every_engine_reaches_the_closed_form(engine, guide):
    x, y, exact = problems.linear_gaussian(seed=1)
    posterior = bnn.fit(
        problems.linear_model, x, y, inference="svi", guide=guide, engine=engine, dtype="float64", standardize=False,
        steps=2500, lr=0.05, lr_decay=2e-3, draws=50, seed=1, progress=False,
    )  # fmt: skip
    assert (posterior.draws.info["backend"] == "pyro") == (engine == "pyro")
    if guide == "multivariate":
        truth = MultivariateNormal(exact.mean, covariance_matrix=exact.covariance)
        assert kl_divergence(fitted_normal(posterior), truth) < 5e-3
    else:
        state = {k.split(".")[-1]: v for k, v in posterior.draws.state.items()}
        sd = torch.linalg.inv(exact.covariance).diagonal().rsqrt()
        assert torch.allclose(torch.nn.functional.softplus(state["scale"]), sd, rtol=0.03)
        assert ((state["loc"] - exact.mean).abs() < 0.05 * sd).all()


def test_the_same_seed_has_the_same_result_and_another_has_another():
    first, again, other = (
        bnn.fit(simple, X, X.sum(1), inference="svi", steps=60, draws=20, seed=seed, batch_size=7, progress=False)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.draws.z, again.draws.z)
    assert np.array_equal(first.draws.history["elbo"], again.draws.history["elbo"])
    assert not torch.equal(first.draws.z, other.draws.z)
    assert not np.array_equal(first.draws.history["elbo"], other.draws.history["elbo"])


@pytest.mark.parametrize("option", ["batch_size", "patience"])
@pytest.mark.parametrize("inference", ["svi", "map"])
def test_pyros_engine_refuses_what_it_has_not(inference, option):
    with pytest.raises(
        bnn.OptionError, match=f"engine='pyro': expected {inference} without {option}. Use engine='compiled'"
    ):
        bnn.fit(simple, X, X.sum(1), inference=inference, engine="pyro", progress=False, **{option: 10})


def test_options_of_compiled_steps_are_refused_where_there_are_none():
    """A guide that no graph can hold: its options must not be dropped without a word."""

    def guide(x, y=None):
        m = pyro.param("m", lambda: torch.zeros(2))
        sd = 0.1 if float(m.sum()) > 1.0 else 0.2
        pyro.sample("w", dist.Normal(m, sd).to_event(1))

    with pytest.raises(
        bnn.OptionError, match=r"simple, svi, batch_size: expected steps that can be compiled, but .* Leave"
    ):
        bnn.fit(simple, X, X.sum(1), inference=bnn.SVI(guide=guide, steps=20, batch_size=10), progress=False)
    with pytest.warns(UserWarning, match="cannot be traced.* Pyro's own steps are taken"):
        posterior = bnn.fit(simple, X, X.sum(1), inference=bnn.SVI(guide=guide, steps=20), progress=False)
    assert posterior.draws.info["backend"] == "pyro"


# ---- when to stop, and what to keep ------------------------------------------------------------------------------


def drive(elbo, steps, patience=None, press=None, noise=1.0):
    """``optimise`` over a step whose ELBO is ``elbo(count)`` and noise; position is the number of steps taken."""
    draws, interrupts = np.random.default_rng(1).normal(size=steps + 1), SimpleNamespace(pressed=False)

    def step(state, own, count, lr, *rows):
        interrupts.pressed = interrupts.pressed or count == press
        lrs.append(lr)
        terms = torch.tensor([[elbo(count) + noise * draws[count], 0.0]], dtype=torch.float64)
        state.position.fill_(count)
        return terms

    lrs = []
    trained = Training(step, State(torch.zeros(1, 1), [1]), torch.Size([1, 1, 1]))
    record = ElboRecord("here", steps, 0.1, "svi", progress=False)
    with isolated(seed=0):
        optimise(trained, SimpleNamespace(steps=steps, lr_decay=0.01), 0.1, record, interrupts, patience)
    record.close()
    return int(trained.state.position), record, lrs


def test_the_learning_rate_falls_to_its_last_value():
    _, record, lrs = drive(lambda count: 0.0, 350)
    assert record.count == len(lrs) == 350
    assert lrs[-1] == pytest.approx(0.001) and lrs[174] == pytest.approx(0.01)


def test_patience_stops_on_a_settled_elbo():
    """Two windows are needed to tell; one comparison in about forty says that flat noise has risen."""
    kept, record, _ = drive(lambda count: -500.0, 20_000, patience=300)
    assert 600 <= record.count <= 1200 and kept <= record.count


def test_patience_does_not_stop_while_the_elbo_rises():
    """By 0.002 a step: 0.6 between windows of 300, seven standard errors of 0.08."""
    kept, record, _ = drive(lambda count: 0.002 * count, 5000, patience=300)
    assert record.count == kept == 5000


def test_patience_stops_once_a_rise_has_ended():
    _, record, _ = drive(lambda count: 0.01 * min(count, 2000), 20_000, patience=300)
    assert 2300 <= record.count <= 3200


def test_without_patience_all_steps_are_taken():
    assert drive(lambda count: -500.0, 2000)[1].count == 2000


def test_the_state_before_a_collapse_is_kept():
    kept, record, _ = drive(lambda count: 0.01 * count if count <= 1500 else -50.0, 2000)
    assert kept == 1500 and record.count == 2000  # the end of the last window before


def test_the_last_state_is_kept_where_the_elbo_fell_by_less_than_its_noise():
    kept, _, _ = drive(lambda count: 0.01 * count if count <= 1900 else 18.36, 2000)
    assert kept == 2000
    assert drive(lambda count: 0.01 * count, 2050)[0] == 2050  # and an incomplete window at the end counts


def test_an_elbo_that_is_not_finite_is_refused_with_its_step():
    with pytest.raises(
        bnn.ModelError, match=r"here: expected a finite ELBO, got nan at step 150\. Lower lr \(now 0\.1\)"
    ):
        drive(lambda count: np.nan if count == 150 else 0.0, 400)


def test_an_interrupt_ends_the_steps_at_the_next_look():
    kept, record, _ = drive(lambda count: 0.1 * count, 5000, press=730)
    assert kept == record.count == (730 // WINDOW + 1) * WINDOW


@pytest.mark.usefixtures("usual_interrupts")
@pytest.mark.parametrize("engine", ["compiled", "pyro"])
def test_an_interrupt_keeps_what_is_fitted_and_says_so(engine):
    def press():
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until steps are taken
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.warns(UserWarning, match=r"svi: interrupted after \d+ of 10000000 steps"):
        posterior = bnn.fit(
            simple, X, X.sum(1), inference="svi", steps=10_000_000, draws=30, engine=engine, seed=1, progress=False
        )
    thread.join()
    draws = posterior.draws
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not draws.complete and posterior.attrs["complete"] is False
    assert 0 < draws.info["steps_taken"] < 10_000_000 and len(draws.history["elbo"]) == draws.info["steps_taken"]
    assert draws.z.shape == (1, 30, 2) and torch.isfinite(draws.z).all()


def test_patience_through_fit_stops_early_at_the_optimum():
    x, y, exact = problems.linear_gaussian(seed=1)
    posterior = bnn.fit(
        problems.linear_model, x, y, inference="svi", guide="multivariate", dtype="float64", standardize=False,
        steps=100_000, patience=1000, lr=0.02, draws=50, seed=1, progress=False,
    )  # fmt: skip
    assert 2000 <= posterior.draws.info["steps_taken"] < 30_000
    truth = MultivariateNormal(exact.mean, covariance_matrix=exact.covariance)
    assert kl_divergence(fitted_normal(posterior), truth) < 0.1


# ---- checks of the draws -----------------------------------------------------------------------------------------


def exact_guide(exact, shift=0.0, spread=1.0):
    """The posterior of ``problems.linear_model`` as a guide without parameters; off by ``shift`` sd in each latent."""
    tril = torch.linalg.cholesky(exact.covariance)
    mean = exact.mean + shift * exact.covariance.diagonal().sqrt()

    def guide(x, y=None):
        pyro.sample("w", dist.MultivariateNormal(mean, scale_tril=spread * tril))

    return guide


@pytest.mark.slow
def test_simulated_weights_are_uniform_among_an_exact_guides_draws_and_not_among_a_shifted_ones():
    """Variational simulation-based calibration (Yao et al. 2018, section 3.2)."""
    sets, draws, d = 300, 200, 3
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(20, d, generator=generator, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(d, dtype=torch.float64) + x.T @ x / 0.25)
    found = {0.0: [], 1.0: []}
    for i in range(sets):
        truth = torch.randn(d, generator=generator, dtype=torch.float64)
        y = x @ truth + 0.5 * torch.randn(20, generator=generator, dtype=torch.float64)
        exact = problems.Exact(covariance @ (x.T @ y) / 0.25, covariance)
        with isolated(seed=i, dtype=torch.float64):
            target = build_target(problems.linear_model, x, y, dtype=torch.float64)
            for shift, below in found.items():
                z, _ = draw_guide(target, exact_guide(exact, shift), draws)
                below.append((z < truth).double().mean(0))
    for j in range(d):
        p = {shift: stats.kstest(torch.stack(below)[:, j].numpy(), "uniform").pvalue for shift, below in found.items()}
        assert p[0.0] > 1e-4 and p[1.0] < 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Pyro's own steps are taken")
@pytest.mark.parametrize(
    ("spread", "right"),
    [(0.5, lambda k: k > 0.7), (1.1, lambda k: k < 0.5), (1.0, lambda k: k < 0.5)],
    ids=["half", "wider", "exact"],
)
def test_k_hat_tells_a_narrow_guide_from_a_good_one(spread, right):
    x, y, exact = problems.linear_gaussian(seed=2, n=60, d=10)
    for seed in range(20):
        posterior = bnn.fit(
            problems.linear_model, x, y, inference=bnn.SVI(guide=exact_guide(exact, spread=spread), steps=200),
            dtype="float64", standardize=False, progress=False, seed=seed,
        )  # fmt: skip
        verdict = posterior.diagnose()
        assert right(verdict.numbers["pareto_k"]), (seed, verdict.numbers)
        assert any(("k-hat" in reason) and (("good" in reason) == (spread >= 1.0)) for reason in verdict.reasons)


def test_log_densities_are_at_the_programs_own_parameters_as_trained():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        sd = pyro.param("sd", torch.tensor(5.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x[:, 0], sd), obs=y)

    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 1))
    posterior = bnn.fit(program, x, x[:, 0] + 0.1 * generator.normal(size=50), inference="svi", steps=1500, draws=3,
                        standardize=False, progress=False)  # fmt: skip
    assert 0.05 < float(posterior.draws.params["sd"]) < 0.2
    expected = [float(posterior.target.log_density(z)) for z in posterior.draws.z[0]]
    assert posterior.draws.stats["lp"][0] == pytest.approx(expected)


@pytest.mark.parametrize("where", ["guide", "program"])
@pytest.mark.parametrize("engine", ["auto", "pyro"])
def test_a_tensor_that_parameters_begin_at_stays_the_users(where, engine):
    start = torch.zeros(2)

    def program(x, y=None):
        shift = pyro.param("shift", start) if where == "program" else start
        w = pyro.sample("w", dist.Normal(shift.detach() * 0, 1.0).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ (w + shift), 0.5), obs=y)

    def guide(x, y=None):
        loc = pyro.param("loc", start if where == "guide" else torch.zeros(2))
        pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))

    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    found = [
        bnn.fit(
            program, x, x[:, 0], inference="svi", guide=guide, steps=30, draws=5, engine=engine, progress=False
        ).draws
        for _ in range(2)
    ]
    assert torch.equal(start, torch.zeros(2)) and not start.requires_grad
    assert torch.equal(found[0].z, found[1].z) and found[0].z.abs().max() > 0.1
