"""Calls of compiled code, made without Python, give what the code gives, bit for bit; or they are not recorded."""

import gc
import threading
import weakref
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
import problems
from bnn_pyro import compiled as compiled_module
from bnn_pyro import native, recorded
from bnn_pyro.compiled import Gradient, compile_for_groups, compile_gradient
from bnn_pyro.inductor import inductor
from bnn_pyro.inference import native_walk
from bnn_pyro.isolation import isolated
from bnn_pyro.recorded import record
from problems import PROBLEMS

ROWS = 40
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(ROWS, 3, generator=GENERATOR, dtype=torch.float64)
REAL, LABELS = X[:, 0] - X[:, 1], (X[:, 0] > 0).long()
pytestmark = pytest.mark.skipif(native.load(recorded.SOURCE) is None, reason="a machine without a C++ compiler")


@pytest.fixture(autouse=True)
def float64():
    with isolated(seed=0, dtype=torch.float64):
        yield


def zoo(name, dtype):
    hidden = {"hidden": (5, 4)} if name.startswith("mlp") else {}
    y = LABELS if name in ("logistic", "mlp_categorical") else REAL
    target = bnn.fit(bnn.get_model(name, **hidden), X, y, inference="prior", draws=2, dtype=dtype).target
    return target, problems.points(target, 3).to(target.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["linear", "logistic", "mlp_gaussian", "mlp_hetero", "mlp_categorical"])
def test_calls_give_what_the_code_gives(name, dtype):
    target, points = zoo(name, dtype)
    with isolated(0, target.dtype):
        gradient = compile_gradient(target, points, "inductor", block=2)
        made = gradient.recorded(points)
        assert gradient.backend == "inductor" and made is not None
        for scale in (0.3, 1.0, 30.0):
            z = torch.randn(2, target.dim, generator=GENERATOR).to(target.dtype) * scale
            made.argument.copy_(z)
            made()
            for one, other in zip(made.results, gradient(z), strict=True):
                assert torch.equal(one.nan_to_num(), other.nan_to_num())  # sigma may overflow


def test_threads_have_calls_of_their_own():
    target, points = zoo("mlp_gaussian", "float64")
    gradient = compile_gradient(target, points, "inductor", block=1)
    positions = torch.randn(4, target.dim, generator=GENERATOR, dtype=torch.float64)
    expected = [gradient(z[None]) for z in positions]
    wrong = []

    def work(z, wanted):
        made = gradient.recorded(z[None])
        for _ in range(300):
            made.argument.copy_(z)
            made()
            wrong.extend(1 for a, b in zip(made.results, wanted, strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(positions, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_is_given_back():
    target, points = zoo("mlp_gaussian", "float64")
    gradient = compile_gradient(target, points, "inductor", block=1)
    made = gradient.recorded(points)
    memory = [weakref.ref(made.argument), *(weakref.ref(result) for result in made.results)]
    del made
    gc.collect()
    assert not any(ref() is not None for ref in memory)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a system without /proc")
def test_tensors_of_products_are_given_back():
    z, held = torch.randn(2, 3, 300, 300, generator=GENERATOR, dtype=torch.float64)
    code = compiled(lambda z, w: (torch.bmm(z, w).tanh(),), z, held)
    assert any(call.checked for call in record(code, z, held)._calls)
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    before = resident()
    for _ in range(60):  # 2 MB for a product's result, and as much for what is made of it
        record(code, z, held)
    assert resident() - before < 40 * 2**20


def compiled(function, *example):
    return inductor(torch.fx.symbolic_trace(function), example).code


def test_code_that_does_more_is_not_recorded():
    z = torch.randn(2, 3, 8, 8, generator=GENERATOR, dtype=torch.float64)
    kernel = torch.randn(4, 3, 3, 3, generator=GENERATOR, dtype=torch.float64)
    code = compiled(lambda z, k: (torch.conv2d(z, k).sum((1, 2, 3)),), z, kernel)
    assert record(code, z, kernel) is None
    ordered = torch.randn(2, 5, generator=GENERATOR, dtype=torch.float64)
    assert record(compiled(lambda z: (z.sort(-1).values,), ordered), ordered) is None


def test_calls_that_miss_something_are_not_used(monkeypatch):
    """Here a product, in whose place stands what it gave when it was recorded."""
    z = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64)
    held = torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
    code = compiled(lambda z, w: ((z @ w).tanh(),), z, held)
    assert record(code, z, held) is not None
    note = recorded._Log.note
    monkeypatch.setattr(
        recorded._Log, "note", lambda self, checked, *rest: None if checked else note(self, checked, *rest)
    )
    assert record(code, z, held) is None


def test_a_failed_call_is_told():
    z = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64)
    held = torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
    made = record(compiled(lambda z, w: ((z @ w).tanh(),), z, held), z, held)
    first = next(call for call in made._calls if call.checked)
    wrong = [recorded._Handle(t) for t in (z, z, z)]
    made._arguments.append((recorded.ctypes.c_void_p * 3)(*[handle.address for handle in wrong]))
    first.arguments = recorded.ctypes.addressof(made._arguments[-1])
    with pytest.raises(RuntimeError, match="of compiled code failed"):
        made()


def test_without_a_compiler_nothing_is_recorded(monkeypatch):
    target, points = zoo("linear", "float64")
    gradient = compile_gradient(target, points, "inductor", block=2)
    monkeypatch.setattr(native, "load", lambda source: None)
    assert gradient.recorded(points) is None


def test_chains_with_targets_of_their_own_are_not_recorded():
    target, points = zoo("linear", "float64")
    y = torch.randn(3, ROWS, generator=GENERATOR, dtype=torch.float64)
    assert compile_gradient(target, points, "inductor", y=y, block=3).recorded(points) is None


def test_blocks_are_small_only_where_calls_can_be_recorded(monkeypatch):
    target = PROBLEMS["linear"]().target()
    points = problems.points(target, 3)
    assert compile_for_groups(target, points, "inductor").block == 2
    assert compile_for_groups(target, points, "eager").block > 2


EXTERNAL = {
    "sort": lambda f: f.sort().values,
    "cumsum": lambda f: f.cumsum(0),
    "cumprod": lambda f: f.tanh().cumprod(0),
    "convolution": lambda f: torch.nn.functional.conv1d(f[None, None], f[None, None, :3].tanh(), padding=1)[0, 0],
    "linalg": lambda f: torch.linalg.solve(torch.eye(len(f)) + f.outer(f), f),
    "fft": lambda f: torch.fft.rfft(f, 2 * len(f) - 1).real,
    "topk": lambda f: f.topk(len(f)).values,
}


@pytest.mark.parametrize(
    "operation", [pytest.param(name, marks=pytest.mark.slow if name == "cumprod" else ()) for name in EXTERNAL]
)
def test_what_would_be_no_kernel_is_compiled_once_and_in_larger_blocks(operation, monkeypatch):
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(EXTERNAL[operation](x @ w), 1.0), obs=y)

    target = bnn.fit(bnn.BNN(program), X, REAL, inference="prior", draws=2, dtype="float64").target
    points, compiled = problems.points(target, 3), []
    right = compiled_module.inductor
    monkeypatch.setattr(compiled_module, "inductor", lambda *given: compiled.append(1) or right(*given))
    made = compile_for_groups(target, points, "inductor")
    assert made.block > 2 and made.groups == 0 and len(compiled) == (made.backend == "inductor"), made.reason
    assert compile_gradient(target, points, "inductor", block=2).recorded(points) is None  # it was no loss


def test_a_gradient_may_lie_column_by_column(monkeypatch):
    def regression(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([60]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x = torch.randn(60, 60, generator=GENERATOR)
    settings = {"inference": "nuts", "backend": "inductor", "warmup": 30, "draws": 10, "progress": False}
    posterior = bnn.fit(bnn.BNN(regression), x, x[:, 0], **settings)
    with isolated(0, torch.float32):
        points = problems.points(posterior.target, 3).float()
        made = compile_gradient(posterior.target, points, "inductor", block=2).recorded(points)
        assert not made.results[0].is_contiguous()
    monkeypatch.setattr(Gradient, "recorded", lambda self, z: made)  # so that the block stays
    monkeypatch.setattr(native_walk, "native_gradient", lambda *_: None)
    assert torch.equal(posterior.draws.z, bnn.fit(bnn.BNN(regression), x, x[:, 0], **settings).draws.z)


@pytest.mark.parametrize(
    "results", [lambda g, d: (g.double(), d), lambda g, d: (g, d.float()), lambda g, d: (g[:, 1:], d)]
)
def test_results_of_another_kind_are_not_used(results, monkeypatch):
    target, points = zoo("linear", "float32")
    with isolated(0, torch.float32):
        gradient = compile_gradient(target, points, "inductor", block=2)
        made = gradient.recorded(points)
        made.results = results(*made.results)
        monkeypatch.setattr(compiled_module, "record", lambda *args: made)
        assert gradient.recorded(points) is None
