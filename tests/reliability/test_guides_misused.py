"""Guides, batches and ensembles that would give a wrong posterior without a word: each is right, refused, or said."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import UNTRACEABLE
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

import bnn_pyro as bnn

X = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
Y = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 1.0
SVI = {"inference": "svi", "dtype": "float64", "progress": False, "draws": 50}
ENSEMBLE = {"inference": "ensemble", "dtype": "float64", "progress": False, "members": 2, "steps": 50}


def program(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def sd_of(guide, **settings):
    posterior = bnn.fit(program, X, Y, guide=guide, steps=2000, lr=0.02, **SVI | settings)
    return posterior.draws.params["sd"].item(), posterior.draws.info


def test_a_guide_inside_scale_has_the_elbo_that_pyro_gives_it():
    def guide(x, y=None):
        mean = pyro.param("mean", lambda: torch.tensor(0.0))
        sd = pyro.param("sd", lambda: torch.tensor(0.1), constraint=dist.constraints.positive)
        with poutine.scale(scale=0.2):
            pyro.sample("w", dist.Normal(mean, sd))

    compiled, pyros = sd_of(guide), sd_of(guide, engine="pyro")
    assert compiled[1]["backend"] != "pyro" and compiled[0] == pytest.approx(pyros[0], rel=0.1)
    assert compiled[0] == pytest.approx((0.2 / 41) ** 0.5, rel=0.1)  # where d/ds of 0.2 log s - 41 s**2 / 2 is zero


def test_a_parameter_that_cannot_be_seen_is_trained_by_pyro():
    def guide(x, y=None):
        raw = pyro.param("raw", lambda: torch.zeros(2))
        mean = torch.vmap(lambda m: 1.0 * m)(raw)
        pyro.sample("w", dist.Normal(mean[0], mean[1].exp() * 0.15))

    with pytest.warns(UserWarning, match=r"a step differs from the program's by .* Pyro's own steps are taken"):
        posterior = bnn.fit(program, X, Y, guide=guide, steps=1500, **SVI)
    assert posterior.draws.params["raw"][0] == pytest.approx(Y.sum().item() / 41, abs=0.05)


def test_steps_that_could_not_be_compiled_are_said_to_be_slow(monkeypatch):
    def broken(graph, example):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("bnn_pyro.steps.inductor", broken)
    with pytest.warns(
        UserWarning, match=r"program, svi: inductor failed: RuntimeError: no compiler. Steps are taken by 'eager'"
    ):
        posterior = bnn.fit(program, X, Y, backend="inductor", steps=20, **SVI)
    assert posterior.draws.info["backend"] == "eager"


def test_a_factor_in_a_guide_is_refused():
    def guide(x, y=None):
        mean = pyro.param("mean", lambda: torch.tensor(0.0))
        pyro.sample("w", dist.Delta(mean))
        pyro.factor("jacobian", -mean)

    with pytest.raises(
        bnn.ModelError, match=r"^program, guide: expected sample statements, got pyro.factor 'jacobian'"
    ):
        bnn.fit(program, X, Y, guide=guide, steps=10, **SVI)


@pytest.mark.parametrize("fill", ["part", "numpy", "inside"])
def test_noise_that_cannot_be_seen_is_left_to_pyro(fill):
    import numpy as np

    def noise():
        e = torch.zeros(2)
        if fill == "part":
            e[0].normal_()
            return e[0]
        if fill == "inside":
            return torch.nn.init.normal_(e)[0]
        return torch.tensor(np.random.standard_normal())  # noqa: NPY002

    def guide(x, y=None):
        mean = pyro.param("mean", lambda: torch.tensor(0.9))
        pyro.sample("w", dist.Delta(mean + 0.15 * noise(), log_density=torch.zeros(())))

    with pytest.warns(UserWarning, match=r"Pyro's own steps are taken"):
        posterior = bnn.fit(program, X, Y, guide=guide, steps=50, **SVI)
    assert 0.05 < posterior.draws.z.std() < 0.3


def test_a_closed_form_over_sites_in_another_order_is_not_used():
    def two(x, y=None):
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a + 2 * b, 1.0), obs=y)

    def turned(x, y=None):
        b, a = pyro.sample("b", dist.Normal(0.0, 1.0)), pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a + 2 * b, 1.0), obs=y)

    with pytest.raises(bnn.OptionError, match=r"closed_form_kl: expected steps that can be compiled"):
        bnn.fit(two, X, Y, guide=AutoNormal(turned), closed_form_kl=True, steps=50, **SVI)


def whole_x_prior(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 0.3 / len(x) ** 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


def whole_x_likelihood(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * (x[:, 0] - x.mean()), 1.0), obs=y)


def whole_x_factor(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("rows", w * len(x))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)


@pytest.mark.parametrize("whole", [whole_x_prior, whole_x_likelihood, whole_x_factor])
def test_a_program_that_takes_x_as_a_whole_is_not_given_batches(whole):
    with pytest.raises(bnn.ModelError, match=r"depends on (that row alone|no rows), got another one"):
        bnn.fit(whole, X, Y, batch_size=10, steps=10, **SVI)
    bnn.fit(whole, X, Y, steps=10, **SVI)


@pytest.mark.parametrize("inference", ["ensemble", "map", "svi"])
def test_rare_labels_are_not_clipped_away_in_batches(inference):
    def rare(x, y=None):
        logit = pyro.sample("logit", dist.Normal(-3.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=logit), obs=y)

    x, y = torch.zeros(5000, 1), torch.zeros(5000)
    y[::100] = 1.0
    settings = {"inference": inference, "batch_size": 20, "draws": 20, "progress": False, "steps": 3000}
    bound, free = (bnn.fit(rare, x, y, **settings | more).draws.z for more in ({}, {"clip_norm": 1e9}))
    assert torch.equal(bound, free) and 0.005 < bound.sigmoid().mean() < 0.02


@pytest.mark.parametrize("name", [name for name, case in UNTRACEABLE.items() if not case.random])
def test_an_ensemble_of_a_program_that_cannot_be_traced_is_trained_member_by_member(name):
    problem = UNTRACEABLE[name].problem()
    posterior = bnn.fit(problem.program, problem.x, problem.y, **ENSEMBLE | {"steps": 20})
    assert posterior.draws.info["backend"] == "pyro" and "cannot be traced" in posterior.draws.info["backend_reason"]


def test_what_members_cannot_be_trained_on_is_refused():
    def learnt(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w + pyro.param("shift", lambda: torch.tensor(0.0)), 1.0), obs=y)

    def joint(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.MultivariateNormal(w.expand(len(x)), torch.eye(len(x))), obs=y)

    def scaled(x, y=None):
        with poutine.scale(scale=4.0):
            program(x, y)

    for what, options, words in (
        (learnt, {}, "learnt, ensemble: expected a program of sample statements, got pyro.param 'shift'"),
        (joint, {"bootstrap": True}, "joint, bootstrap: expected rows that are independent"),
        (
            scaled,
            {"anchored": True},
            "scaled, anchored: expected a likelihood as it is, got site 'y' inside poutine.scale",
        ),
    ):
        with pytest.raises(bnn.ModelError, match=f"^{words}"):
            bnn.fit(what, X, Y, **ENSEMBLE | options)


def test_what_has_no_anchor_is_said_in_the_verdict():
    def hierarchical(x, y=None):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        w = pyro.sample("w", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(5.0, w, 1.0), obs=y)

    posterior = bnn.fit(hierarchical, X, Y, anchored=True, **ENSEMBLE | {"steps": 800})
    assert posterior.draws.info["without_anchor"] == "scale, w, y"
    assert "without an anchor or noise for scale, w, y" in str(posterior.diagnose())
    plain = bnn.fit(program, X, Y, anchored=True, **ENSEMBLE | {"steps": 800})
    assert "draws of the posterior where the model is linear" in str(plain.diagnose())
