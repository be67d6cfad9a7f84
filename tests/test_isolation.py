"""Nothing that a caller can observe differs after a call, and no earlier fit reaches a later one."""

import random
import threading
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
import problems
from bnn_pyro.isolation import derive_seed, isolated

X, Y, _ = problems.linear_gaussian(seed=0, n=12)
QUICK = {
    "svi": {"inference": "svi", "steps": 3, "draws": 4},
    "nuts": {"inference": "nuts", "warmup": 3, "draws": 3, "chains": 2, "max_tree_depth": 3},
    "map": {"inference": "map", "steps": 3, "draws": 2},
}


def state():
    """Everything global, as values that compare."""
    store = pyro.get_param_store()
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "param names": list(store.keys()),
        "params": [(n, v.tolist(), id(v)) for n, v in store.named_parameters()],
        "pyro distributions validate": dist.distribution.Distribution.__dict__.get("_validate_args", None),
        "pyro validates": dist.is_validation_enabled(),
        "torch validates": torch.distributions.Distribution._validate_args,
        "infer validates": pyro.infer.util.is_validation_enabled(),
        "poutine validates": pyro.poutine.util.is_validation_enabled(),
        "warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
    }


@pytest.fixture(params=["plain", "unusual"], autouse=True)
def users_state(request):
    """The state of a user who has used Pyro before, with Pyro's defaults and with everything the other way round."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    flags = dist.is_validation_enabled(), torch.distributions.Distribution._validate_args
    with torch.random.fork_rng(), pyro.get_param_store().scope(), warnings.catch_warnings():
        torch.manual_seed(3)
        pyro.enable_validation(request.param == "plain")
        torch.distributions.Distribution.set_default_validate_args(request.param == "unusual")
        pyro.param("w", torch.tensor([1.0, 2.0]))
        pyro.param("auto.w", torch.tensor(3.0), constraint=dist.constraints.positive)
        if request.param == "unusual":
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(1)
            warnings.simplefilter("error", ResourceWarning)
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    pyro.enable_validation(flags[0])
    torch.distributions.Distribution.set_default_validate_args(flags[1])


def failing(x, y=None):
    """Runs when it is first looked at, and fails later."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    if len(calls) > 6:
        torch.set_default_dtype(torch.float64)
        raise FloatingPointError("late")
    calls.append(1)
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


calls: list[int] = []


def is_unchanged(before):
    after = state()
    assert [k for k in before if before[k] != after[k]] == []


@pytest.mark.parametrize("method", QUICK)
def test_fit_predict_and_idata_leave_no_trace(method):
    before = state()
    posterior = bnn.fit(problems.linear_model, X, Y, progress=False, **QUICK[method])
    is_unchanged(before)
    prediction = posterior.predict(X)
    is_unchanged(before)
    prediction.log_prob(Y)
    posterior.log_predictive_density(X, Y)
    is_unchanged(before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _ = posterior.idata
    is_unchanged(before)


@pytest.mark.parametrize("method", QUICK)
def test_fits_that_raise_leave_no_trace(method):
    calls.clear()
    before = state()
    with pytest.raises((FloatingPointError, bnn.BNNError)):
        bnn.fit(failing, X, Y, progress=False, **QUICK[method])
    assert len(calls) > 2, "the program ran before it failed"
    is_unchanged(before)


def test_refusals_leave_no_trace():
    before = state()
    with pytest.raises(bnn.ShapeError):
        bnn.fit(problems.linear_model, X, Y[:, None])
    with pytest.raises(bnn.UnknownNameError):
        bnn.fit(problems.linear_model, X, Y, inference="nutz")
    posterior = bnn.fit(problems.linear_model, X, Y, progress=False, **QUICK["map"])
    with pytest.raises(bnn.ShapeError):
        posterior.predict(X[:, :2])
    is_unchanged(before)


def test_the_zoo_leaves_no_trace():
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = bnn.get_model("mlp_gaussian", hidden=(2,)).fit(X, Y, progress=False, **QUICK["svi"])
        _ = posterior.idata
    is_unchanged(before)


@pytest.mark.parametrize("method", QUICK)
def test_a_fit_depends_on_its_seed_and_not_on_what_went_before(method):
    """Pyro's second fit starts at the first one's optimum; other widths clash."""
    other = bnn.get_model("mlp_gaussian", hidden=(2,))
    first = bnn.fit(problems.linear_model, X, Y, progress=False, seed=5, **QUICK[method])
    other.fit(X, Y, progress=False, **QUICK[method])
    bnn.get_model("mlp_gaussian", hidden=(3,)).fit(X, Y, progress=False, **QUICK[method])
    pyro.get_param_store().clear()
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again = bnn.fit(problems.linear_model, X, Y, progress=False, seed=5, **QUICK[method])
    assert torch.equal(first.draws.z, again.draws.z)
    assert np.array_equal(first.predict(X).draws, again.predict(X).draws)
    different = bnn.fit(problems.linear_model, X, Y, progress=False, seed=6, **QUICK[method])
    assert not torch.equal(first.draws.z, different.draws.z)


def test_a_chain_depends_on_its_own_number_only():
    """Chain i is the same among any number of chains."""
    settings = QUICK["nuts"] | {"progress": False, "seed": 7}
    two = bnn.fit(problems.linear_model, X, Y, **settings).draws.z
    three = bnn.fit(problems.linear_model, X, Y, **settings | {"chains": 3}).draws.z
    assert torch.equal(two, three[:2]) and not torch.equal(three[0], three[1])


def test_two_fits_in_two_threads_are_those_of_one():
    alone = [bnn.fit(problems.linear_model, X, Y, progress=False, seed=s, **QUICK["svi"]).draws.z for s in (1, 2)]
    together = {}

    def run(seed):
        together[seed] = bnn.fit(problems.linear_model, X, Y, progress=False, seed=seed, **QUICK["svi"]).draws.z

    threads = [threading.Thread(target=run, args=(s,)) for s in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert torch.equal(together[1], alone[0]) and torch.equal(together[2], alone[1])


def test_the_callers_arrays_are_unchanged():
    x, y = X.clone().requires_grad_(True), Y.numpy().copy()
    before = x.detach().clone(), y.copy()
    posterior = bnn.fit(problems.linear_model, x, y, standardize=True, progress=False, **QUICK["map"])
    prediction = posterior.predict(x)
    prediction.draws[:] = 0.0
    assert torch.equal(x.detach(), before[0]) and x.grad is None and np.array_equal(y, before[1])
    posterior.data.y[:] = 0.0
    assert np.array_equal(y, before[1])


def test_inside_there_are_a_seed_a_dtype_and_an_empty_store():
    pyro.param("mine", torch.tensor(1.0))
    with isolated(seed=1, dtype=torch.float64):
        assert torch.get_default_dtype() == torch.float64
        assert list(pyro.get_param_store().keys()) == []
        assert not torch.distributions.Distribution._validate_args and not dist.is_validation_enabled()
        first = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
        pyro.param("theirs", torch.tensor(2.0))
    with isolated(seed=1, dtype=torch.float64):
        second = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert "theirs" not in pyro.get_param_store() and "mine" in pyro.get_param_store()


def test_derived_seeds_differ_by_seed_and_key():
    seeds = {
        derive_seed(s, *keys)
        for s in range(5)
        for keys in [("a",), ("b",), ("a", 0), ("a", 1), ("a", "b"), ("ab",), ()]
    }
    assert len(seeds) == 35 and all(0 <= s < 2**32 for s in seeds)
    assert derive_seed(7, "chain", 3) == derive_seed(7, "chain", 3)


def test_tensors_are_made_on_the_cpu_and_gradients_taken_whatever_the_user_has_set():
    with torch.device("meta"), torch.inference_mode():
        with isolated(seed=0):
            w = torch.ones(3, requires_grad=True)
            (w * torch.randn(3)).sum().backward()
            assert w.device.type == "cpu" and w.grad is not None
        assert torch.ones(1).device.type == "meta" and torch.is_inference_mode_enabled()
        with pytest.raises(ValueError, match="inside"), isolated():
            raise ValueError("inside")
        assert torch.ones(1).device.type == "meta" and torch.is_inference_mode_enabled()


def test_products_are_of_full_precision_whatever_the_user_has_set():
    """TF32 and bfloat16 have a thousandth of float32's digits; with them a trajectory's energy is not kept."""
    settings = [
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,
        torch.backends.mkldnn.matmul,
        torch.backends.mkldnn.rnn,
    ]
    read = lambda: [setting.fp32_precision for setting in settings]
    before = read()
    torch.set_float32_matmul_precision("medium")
    try:
        users = read()
        assert users != ["ieee"] * 4
        with isolated():
            assert read() == ["ieee"] * 4
        assert read() == users and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
