"""A fit on several devices: each part as a fit of its own, what is joined, what is refused, and how it is interrupted."""

import os
import signal
import threading
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro.draws import Draws
from bnn_pyro.isolation import derive_seed
from bnn_pyro.parts import divide, join
from problems import linear_gaussian, linear_model

MODEL = bnn.get_model("mlp_gaussian", hidden=(4,), activation="tanh")
TWO = ("cpu", "cpu")
QUICK = {"warmup": 20, "draws": 10, "backend": "eager", "progress": False, "seed": 3}
X = np.random.default_rng(0).normal(size=(30, 2))


@pytest.fixture(scope="module")
def rows():
    return bnn.load_dataset("stackloss").train


@pytest.mark.parametrize("inference", ["nuts", "hmc", "chees"])
def test_each_part_is_a_fit_of_its_own_chains(rows, inference):
    most = {"max_tree_depth": 4} if inference == "nuts" else {"max_steps": 20}
    whole = MODEL.fit(rows, inference=inference, chains=5, device="cpu,cpu", **QUICK, **most)
    first, second = (
        MODEL.fit(rows, inference=inference, chains=chains, **QUICK | most | {"seed": derive_seed(3, "part", k)}).draws
        for k, chains in enumerate((2, 3))
    )
    assert whole.draws.z.shape[0] == 5 and torch.equal(whole.draws.z, torch.cat([first.z, second.z]))
    assert set(whole.draws.stats) == set(first.stats)
    for name, values in whole.draws.stats.items():
        assert np.array_equal(values, np.concatenate([first.stats[name], second.stats[name]]))
    assert whole.attrs["device"] == "cpu,cpu" and whole.attrs["complete"] is True
    evaluations = [draws.info["gradient_evaluations"] for draws in (first, second)]
    assert whole.attrs["gradient_evaluations"] == sum(evaluations)
    for draws, mass in zip((first, second), whole.draws.state["inverse_mass_matrix"], strict=True):
        assert torch.equal(mass, draws.state["inverse_mass_matrix"])


def test_members_of_an_ensemble_are_divided(rows):
    options = {"inference": "ensemble", "steps": 30, "draws": 2, "backend": "eager", "progress": False}
    whole = MODEL.fit(rows, members=5, device=TWO, seed=3, **options).draws
    alone = [MODEL.fit(rows, members=m, seed=derive_seed(3, "part", k), **options).draws for k, m in enumerate((2, 3))]
    assert torch.equal(whole.z, torch.cat([draws.z for draws in alone]))
    for name, trace in whole.history.items():
        np.testing.assert_allclose(trace, 0.4 * alone[0].history[name] + 0.6 * alone[1].history[name], rtol=1e-12)


def test_the_posterior_is_the_exact_one():
    x, y, exact = linear_gaussian(seed=1)
    posterior = bnn.fit(
        linear_model, x, y, inference="nuts", chains=8, warmup=300, draws=1000, device=TWO, dtype="float64",
        progress=False,
    )  # fmt: skip
    group = posterior.idata.posterior["w"]
    import arviz as az

    error = np.sqrt(np.diag(exact.covariance)) / np.sqrt(az.ess(group, method="mean")["w"].values)
    assert np.all(np.abs(group.mean(("chain", "draw")).values - exact.mean.numpy()) < 4.56 * error)
    assert float(az.rhat(group)["w"].max()) < 1.01


def test_a_run_is_saved_and_read_back_and_has_no_one_adaptation(rows, tmp_path):
    posterior = MODEL.fit(rows, inference="nuts", chains=2, device=TWO, max_tree_depth=4, **QUICK)
    posterior.save(tmp_path / "run")
    again = bnn.load(tmp_path / "run")
    assert torch.equal(again.draws.z, posterior.draws.z)
    for one in (posterior, again):
        with pytest.raises(bnn.OptionError, match="expected a posterior of one device, got one of 2"):
            _ = one.adaptation


def test_programs_that_no_module_has_are_sent_and_come_back_as_they_were():
    scale = torch.tensor(2.0)

    class Net(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.layer = pyro.nn.PyroModule[torch.nn.Linear](2, 1)
            self.layer.weight = pyro.nn.PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

        def forward(self, x, y=None):
            mean = self.layer(x).squeeze(-1) * scale
            with pyro.plate("data", x.shape[0]):
                return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for program in (net, lambda x, y=None: net(x, y)):
        posterior = bnn.fit(program, X, X.sum(1), inference="nuts", chains=2, device=TWO, **QUICK)
        alone = bnn.fit(program, X, X.sum(1), inference="nuts", chains=1, **QUICK | {"seed": derive_seed(3, "part", 1)})
        assert torch.equal(posterior.draws.z[1], alone.draws.z[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_parts_warn_of_is_said_once():
    def looking(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        sd = 0.5 if float(w.sum()) > 0 else 0.6
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, sd), obs=y)

    short = QUICK | {"backend": "auto", "warmup": 2, "draws": 2}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bnn.fit(looking, X, X.sum(1), inference="nuts", chains=4, device=TWO, max_tree_depth=2, **short)
    texts = [str(w.message) for w in caught]
    assert len(texts) == len(set(texts)) and any("cannot be traced" in text for text in texts)


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x[:, 0] * w, 0.5), obs=y)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"inference": "svi"}, "expected one for svi, which has no chains or members, got 2. Name one."),
        ({"inference": "prior"}, "expected one for prior, which has no chains or members, got 2. Name one."),
        ({"inference": "nuts", "chains": 1}, "chains: expected at least 2 for 2 devices, got 1. Name fewer."),
        ({"inference": "chees", "chains": 3}, "chains: expected at least 4 for 2 devices, got 3. Name fewer."),
        ({"inference": "ensemble", "members": 1}, "members: expected at least 2 for 2 devices, got 1. Name fewer."),
        ({"device": ["cpu", "tpu"]}, "unknown device 'tpu': did you mean 'cpu'?"),
        ({"device": []}, "unknown device ''"),
        ({"device": "cpu,auto"}, "expected names of devices, got 'auto' among 2. Name each, or 'auto' alone."),
        ({"model": Locked()}, "expected a model that can be sent to another process, got TypeError: cannot pickle"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_any_work(rows, monkeypatch, options, sentence):
    monkeypatch.setattr("joblib.Parallel", lambda *_, **__: pytest.fail("work began"))
    settings = {"model": MODEL, "x": rows, "device": TWO, "progress": False} | options
    if settings["model"] is not MODEL:
        settings |= {"x": X, "y": X.sum(1)}
    with pytest.raises(bnn.BNNError) as error:
        bnn.fit(**settings)
    assert sentence in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_a_part_does_not_find_is_named(rows):
    with pytest.raises(bnn.OptionError, match=r"device: expected 'cpu' or 'auto', got 'cuda:1'"):
        MODEL.fit(rows, inference="nuts", chains=2, device=["cpu", "cuda:1"], **QUICK)


def test_a_process_that_dies_is_told_of():
    home = os.getpid()

    def dying(x, y=None):
        if os.getpid() != home:
            os._exit(1)
        return linear_model(x, y)

    with pytest.raises(
        bnn.OptionError, match="dying, device: expected 2 processes to end their parts, got one that the"
    ):
        bnn.fit(dying, X, X.sum(1), inference="nuts", chains=2, device=TWO, **QUICK)
    bnn.fit(linear_model, X, X.sum(1), inference="nuts", chains=2, device=TWO, **QUICK)  # with new ones


def test_an_adaptation_is_divided_with_its_chains(rows):
    """Five chains' steps, and positions of four of them, to go on from."""
    learnt = MODEL.fit(rows, inference="nuts", chains=5, max_tree_depth=4, **QUICK).adaptation
    learnt = learnt._replace(position=learnt.position[:4])
    first, second = divide(bnn.NUTS(chains=5, warmup=0, adaptation=learnt), 2, "here")
    assert (first.chains, second.chains) == (2, 3)
    assert torch.equal(torch.cat([first.adaptation.step_size, second.adaptation.step_size]), learnt.step_size)
    assert torch.equal(torch.cat([first.adaptation.position, second.adaptation.position]), learnt.position)
    assert divide(bnn.NUTS(chains=5, warmup=0, adaptation=learnt), 5, "here")[4].adaptation.position is None
    options = {"inference": "nuts", "warmup": 0, "draws": 5, "max_tree_depth": 4, "backend": "eager", "progress": False}
    whole = MODEL.fit(rows, chains=5, adaptation=learnt, device=TWO, **options).draws.z
    own = {"chains": 3, "adaptation": second.adaptation, "seed": derive_seed(0, "part", 1)}
    assert torch.equal(whole[2:], MODEL.fit(rows, **options, **own).draws.z)


def test_parts_that_ended_early_are_joined_as_far_as_all_have_drawn():
    drawn = [
        Draws(torch.full((c, kept, 3), c), stats={"lp": np.full((c, kept), c)}, state={"step_size": torch.ones(c)},
              info={"e_bfmi": c, "backend": f"b{c}", "compile_time": kept, "divergences": c}, complete=kept == 7)
        for c, kept in ((1, 5), (2, 7))
    ]  # fmt: skip
    whole = join(drawn)
    assert whole.z[:, 0, 0].tolist() == [1, 2, 2] and whole.z.shape == (3, 5, 3) == (*whole.stats["lp"].shape, 3)
    assert not whole.complete and len(whole.state["step_size"]) == 3
    assert whole.info == {"e_bfmi": 1, "backend": "b1, b2", "compile_time": 7, "divergences": 3}


@pytest.mark.usefixtures("usual_interrupts")
@pytest.mark.parametrize("all_processes", [False, True], ids=["this process", "all, as from a terminal"])
def test_an_interrupt_keeps_the_draws_of_all_parts(rows, all_processes):
    from joblib.externals.loky import reusable_executor

    MODEL.fit(rows, inference="nuts", chains=2, device=TWO, max_tree_depth=4, **QUICK)  # the processes are there

    def processes():
        return set(reusable_executor._executor._processes)

    def press():
        time.sleep(5)
        for pid in [os.getpid(), *(processes() if all_processes else ())]:
            os.kill(pid, signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=press).start()
    with pytest.warns(UserWarning, match=r"nuts: interrupted, so \d+ of 1000000 draws of each chain are kept"):
        posterior = MODEL.fit(
            rows, inference="nuts", chains=2, device=TWO, max_tree_depth=4, **QUICK | {"draws": 1_000_000, "thin": 10}
        )
    assert 0 < posterior.draws.z.shape[1] < 1_000_000 and posterior.attrs["complete"] is False
    assert signal.getsignal(signal.SIGINT) is before
    waiting = processes()
    for pid in waiting:  # as of those whose part has ended before others
        os.kill(pid, signal.SIGINT)
    time.sleep(1)
    whole = MODEL.fit(rows, inference="nuts", chains=2, device=TWO, max_tree_depth=4, **QUICK | {"thin": 10}).draws.z
    assert torch.equal(posterior.draws.z[:, :10], whole) and processes() == waiting


@pytest.mark.slow
def test_a_cluster_of_dask_gives_the_same_draws(rows, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    import joblib

    options = {"inference": "nuts", "chains": 4, "device": TWO, "max_tree_depth": 4, **QUICK}
    here = MODEL.fit(rows, **options).draws
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "local_directory": tmp_path}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
        there = MODEL.fit(rows, **options).draws
        with pytest.raises(bnn.OptionError, match="cuda:99"):
            MODEL.fit(rows, **options | {"device": ("cpu", "cuda:99")})
    assert torch.equal(there.z, here.z)


def test_fits_of_their_own_are_work_for_joblib(rows):
    """Seeds, splits and models need no help of this library's."""
    import joblib

    options = {"inference": "nuts", "chains": 2, "max_tree_depth": 4, **QUICK}
    made = joblib.Parallel(n_jobs=2)(joblib.delayed(MODEL.fit)(rows, **options | {"seed": seed}) for seed in (1, 2))
    for seed, posterior in zip((1, 2), made, strict=True):
        here = MODEL.fit(rows, **options | {"seed": seed})
        assert torch.equal(posterior.draws.z, here.draws.z)
        np.testing.assert_array_equal(posterior.predict(rows.x).mean, here.predict(rows.x).mean)
        assert posterior.verdict == here.verdict and posterior.idata is not None
