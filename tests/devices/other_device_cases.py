"""Every model and method on a device that is not the CPU: nothing is left behind there, and the numbers are the CPU's.

Torch has to know of a device before a process first takes a gradient, so this runs in one of its own:

    python -m pytest tests/devices/other_device_cases.py
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import bnn_pyro as bnn

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(24, 3))
REAL = X @ [1.0, -2.0, 0.5] + 0.3 * GENERATOR.normal(size=24)
LABELS = (REAL > 0).astype(int)
FEW = {"warmup": 5, "draws": 4, "chains": 3}  # rounding grows with each transition
METHODS = {
    "nuts": {**FEW, "max_tree_depth": 4},
    "nuts, dense": {**FEW, "max_tree_depth": 4, "dense_mass": True},
    "hmc": FEW,
    "chees": FEW,
    "svi": {"steps": 120, "draws": 10},
    "svi, batches": {"steps": 120, "draws": 10, "batch_size": 8},
    "svi, local": {"steps": 120, "draws": 10, "estimator": "local", "guide": "normal"},
    "map": {"steps": 50},
    "laplace": {"draws": 10},
    "ensemble": {"members": 3, "steps": 50, "bootstrap": True},
    "mc_dropout": {"steps": 50, "draws": 10},
    "prior": {"draws": 10},
}
MODELS = ["linear", "logistic", "mlp_gaussian", "mlp_hetero", "mlp_categorical"]
REFUSED = [
    ("linear", "mc_dropout"),
    ("logistic", "mc_dropout"),
    ("linear", "svi, local"),
]  # no units; a prior with a scale
GUIDES = ["diagonal", "multivariate", "lowrank", "iaf", "flow", "structured"]

pytestmark = pytest.mark.usefixtures("allowed")


@pytest.fixture
def allowed(other_device, monkeypatch):
    """``device="other"`` is taken by ``fit``."""
    fitting = sys.modules[bnn.fit.__module__]
    find = fitting.find_devices
    own = ("other",), other_device
    monkeypatch.setattr(fitting, "find_devices", lambda name, *more: own if name == "other" else find(name, *more))
    monkeypatch.setattr(sys.modules["bnn_pyro.sampling"], "memory_of", lambda device: 2**34)


def fitted(model, method, device, y, **more):
    options = {**METHODS[method], **more}
    return bnn.fit(
        model, X, y, inference=method.partition(",")[0], device=device, backend="eager", dtype="float64", progress=False,
        **options,
    )  # fmt: skip


def both(model, method, y, **more):
    """A fit on the other device and one on the CPU, of which all that is asked of a posterior has been asked."""
    made = [fitted(model, method, device, y, **more) for device in ("other", "cpu")]
    assert made[0].attrs["device"] == "other:0"
    for posterior in made:
        posterior.predict(X[:3])
        posterior.score(X, y)
        posterior.diagnose()
        assert posterior.idata is not None
    return made


def rise(posterior):
    """Nats that the ELBO has risen by."""
    elbo = posterior.draws.history["elbo"]
    return elbo[-20:].mean() - elbo[:20].mean()


@pytest.mark.parametrize(
    ("name", "method"),
    [(n, m) for n in MODELS for m in METHODS if (n, m) not in REFUSED],
)
def test_a_zoo_model_is_fitted_as_on_the_cpu(name, method, tmp_path):
    hidden = {"hidden": (4,)} if name.startswith("mlp") else {}
    y = LABELS if name in ("logistic", "mlp_categorical") else REAL
    one, other = both(bnn.get_model(name, **hidden), method, y)
    if method.startswith("svi"):  # whose guide may begin at another draw of the prior
        assert rise(one) > 0 and rise(other) > 0
    else:
        assert torch.allclose(one.draws.z[:, 0], other.draws.z[:, 0], 1e-3, 1e-3)
    assert torch.allclose(
        torch.as_tensor(one.predict(X[:3]).log_prob(y[:3])),
        torch.as_tensor(bnn.load(one.save(tmp_path / "run")).predict(X[:3]).log_prob(y[:3])),
    )


@pytest.mark.parametrize("guide", GUIDES)
def test_guides_train_there(guide):
    one, other = both(bnn.get_model("mlp_gaussian", hidden=(4,)), "svi", REAL, guide=guide)
    assert torch.allclose(one.draws.z, other.draws.z, 1e-3, 1e-3)


@pytest.mark.parametrize("name", ["linear", "logistic"])
@pytest.mark.parametrize("guide", ["multivariate", "laplace"])
def test_guides_come_to_the_same_posterior(name, guide):
    y = LABELS if name == "logistic" else REAL
    one, other = (
        posterior.draws.z[0] for posterior in both(bnn.get_model(name), "svi", y, guide=guide, steps=3000, draws=1000)
    )
    sd = other.std(0)
    assert ((one.mean(0) - other.mean(0)).abs() < 0.3 * sd).all()
    assert (one.std(0) / sd).log().abs().max() < 0.2


def test_a_module_with_tensors_of_its_own_is_moved_and_the_users_stays():
    import pyro
    import pyro.distributions as dist
    from pyro.nn import PyroModule, PyroSample

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
            self.w = PyroSample(dist.Normal(0.0, 1.0).expand([3]).to_event(1))

        def forward(self, x, y=None):
            mean = (x * self.scale) @ self.w
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    net = Net()
    one, other = both(bnn.BNN(net), "nuts", REAL)
    assert torch.allclose(one.draws.z[:, 0], other.draws.z[:, 0], 1e-3, 1e-3)
    assert net.scale.device.type == "cpu"


def test_steps_as_a_device_takes_them_are_those_of_a_cpu(monkeypatch):
    """One launch after another in place of call after call: on the CPU, so that not a bit may differ."""
    from bnn_pyro import replay

    usual = fitted(bnn.get_model("mlp_gaussian", hidden=(4,)), "svi, batches", "cpu", REAL)
    monkeypatch.setattr(replay, "waits", lambda device: False)
    replayed = fitted(bnn.get_model("mlp_gaussian", hidden=(4,)), "svi, batches", "cpu", REAL)
    assert torch.equal(usual.draws.z, replayed.draws.z)
    assert np.array_equal(usual.draws.history["elbo"], replayed.draws.history["elbo"])
