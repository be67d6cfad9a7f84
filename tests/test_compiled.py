"""The traced and the compiled graph give the program's gradient, or are not used and say why."""

import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import grad_and_value

import problems
from bnn_pyro import compiled
from bnn_pyro.compiled import compile_gradient
from bnn_pyro.inductor import trusts_compiler
from bnn_pyro.isolation import isolated
from bnn_pyro.pace import FasterThreads
from bnn_pyro.zoo.mlp_gaussian import MLPGaussian
from problems import PROBLEMS


@pytest.fixture(autouse=True)
def float64():
    with isolated(seed=0, dtype=torch.float64):
        yield


def assert_same(gradient, target, tolerance, seed=3):
    points = problems.points(target, 5, seed=seed)
    grads, values = gradient(points)
    assert grads.shape == (5, target.dim) and values.shape == (5,) and values.dtype == torch.float64
    assert not grads.requires_grad and not values.requires_grad
    for z, grad, value in zip(points, grads, values, strict=True):
        expected, density = grad_and_value(target.log_density)(z)
        assert (grad - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)
        assert (value - density).abs() <= tolerance * density.abs().clamp(min=1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_traced_graph_gives_the_programs_gradient(name):
    target = PROBLEMS[name]().target()
    gradient = compile_gradient(target, problems.points(target, 3), "eager")
    if name == "ordinal":
        assert gradient.backend in ("eager", "pyro")  # writes in place, which some torch versions cannot trace
    else:
        assert (gradient.backend, gradient.reason) == ("eager", "")
    assert_same(gradient, target, 1e-12)


def test_the_traced_graph_in_float32():
    target = PROBLEMS["zoo_mlp_tanh"]().target(torch.float32)
    with isolated(dtype=torch.float32):
        gradient = compile_gradient(target, problems.points(target, 3), "eager")
        assert gradient.backend == "eager"
        assert_same(gradient, target, 1e-6)


@pytest.mark.slow
def test_the_compiled_graph_gives_the_programs_gradient():
    target = PROBLEMS["zoo_linear_known_noise"]().target()
    gradient = compile_gradient(target, problems.points(target, 3), "inductor")
    assert (gradient.backend, gradient.reason) == ("inductor", "")
    assert_same(gradient, target, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("chains", [4, 16])
def test_threads_share_the_chains_and_change_no_bit(monkeypatch, chains):
    monkeypatch.setattr(compiled, "WORK_PER_THREAD", 1)
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    target = problems.Problem(MLPGaussian(hidden=(40, 30)).model, x, x[:, 0]).target(torch.float32)
    before = torch.get_num_threads()
    with isolated(dtype=torch.float32):
        gradient = compile_gradient(target, problems.points(target, 3), "inductor", chains=chains)
        assert (gradient.backend, gradient.block) == ("inductor", chains)
        assert gradient.threads == chains
        assert isinstance(gradient.call, FasterThreads)
        gradient = replace(gradient, call=gradient.call.call)  # on as many as are set, be they faster or not
        z = problems.points(target, 2 * gradient.block + 1, seed=1)
        results = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(gradient(z))
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("least", [2, 5])
def test_one_thread_where_others_would_change_bits(monkeypatch, least):
    def inductor(graph, example):
        def call(z):
            grad, value = graph(z)
            return grad * (1 + 1e-15 * (torch.get_num_threads() >= least)), value

        return call

    monkeypatch.setattr(compiled, "inductor", inductor)
    monkeypatch.setattr(compiled, "WORK_PER_THREAD", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    target = PROBLEMS["linear"]().target()
    before = torch.get_num_threads()
    gradient = compile_gradient(target, problems.points(target, 3), "inductor")
    assert (gradient.backend, gradient.threads) == ("inductor", 1) and torch.get_num_threads() == before
    monkeypatch.setattr(compiled, "inductor", lambda graph, example: graph)
    assert compile_gradient(target, problems.points(target, 3), "inductor").threads > 1


@pytest.mark.parametrize("backend", ["pyro", "eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_matrix_that_fails_far_out_gives_nan_there_and_no_error(backend):
    """torch raises an error for a batch of chains, of which one fails: it is not to end the others."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 0.1).to_event(1))
        correlation = torch.eye(2) + w[0] * torch.eye(2).flip(0)  # positive definite within 1 of 0
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.MultivariateNormal(w, correlation), obs=y)

    rows = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = problems.Problem(program, rows, rows).target()
    with isolated(dtype=torch.float64):
        gradient = compile_gradient(target, torch.zeros(2, 2), backend)
        assert (gradient.backend, gradient.reason) == (backend, "")
        z = torch.tensor([[0.5, 2.0], [1.5, 1.0], [0.3, -1.0]], dtype=torch.float64)
        grad, value = gradient(z)
        alone = gradient(z[[0, 2]])
    assert grad[1].isnan().all() and value[1].isnan()
    assert torch.equal(grad[[0, 2]], alone[0]) and torch.equal(value[[0, 2]], alone[1])
    assert alone[0].isfinite().all() and alone[1].isfinite().all()


def test_a_strided_position_is_taken_for_what_it_is():
    target = PROBLEMS["linear"]().target()
    gradient = compile_gradient(target, problems.points(target, 3), "eager")
    read = replace(gradient, call=lambda z: (torch.as_strided(z, z.shape, (z.shape[1], 1)), z.sum(1)))
    z = torch.randn(target.dim, gradient.block, dtype=torch.float64).T
    assert torch.equal(read(z)[0], z)


def test_blocks_hold_the_samplers_usual_chains_unless_they_are_large(monkeypatch):
    target = PROBLEMS["linear"]().target()
    z = problems.points(target, 1)[0]
    monkeypatch.setattr(compiled, "BLOCK_BYTES", 1)
    assert [compiled.block_for(target, z, chains) for chains in (1, 4, 16, 1000)] == [1, 4, 16, 64]
    monkeypatch.setattr(compiled, "BLOCK_SPILL", 1)
    assert [compiled.block_for(target, z, chains) for chains in (1, 4, 16, 1000)] == [1, 4, 4, 4]
    monkeypatch.setattr(compiled, "BLOCK_BYTES", 10**12)
    assert compiled.block_for(target, z, 4) == 64 and compiled.block_for(target, z, 4, most=16) == 16
    for chains, block in ((4, 8), (16, 32), (100, 64)):  # a few chains are not to wait for many that are not there
        assert compile_gradient(target, z[None], "eager", chains=chains).block == block


@pytest.mark.parametrize("broken", ["raises", "wrong"])
def test_a_compiler_that_fails_or_errs_is_not_used(monkeypatch, broken):
    def inductor(graph, example):
        if broken == "raises":
            raise RuntimeError("no C++ compiler\nand much more")
        return lambda z: tuple(1.001 * t for t in graph(z))

    monkeypatch.setattr(compiled, "inductor", inductor)
    target = PROBLEMS["linear"]().target()
    gradient = compile_gradient(target, problems.points(target, 3), "inductor")
    assert gradient.backend == "eager"
    expected = (
        "inductor failed: RuntimeError: no C++ compiler" if broken == "raises" else "inductor failed: ArithmeticError"
    )
    assert gradient.reason.startswith(expected) and "\n" not in gradient.reason
    assert_same(gradient, target, 1e-12)


def test_the_program_itself_on_request():
    target = PROBLEMS["linear"]().target()
    assert compile_gradient(target, problems.points(target, 1), "pyro").backend == "pyro"


def test_auto_goes_by_model_size_and_rows_only(monkeypatch):
    monkeypatch.setattr(compiled, "inductor", lambda graph, example: graph)
    target = PROBLEMS["linear"]().target()
    for rule, backend in ((target.dim * target.n, "inductor"), (target.dim * target.n + 1, "eager")):
        monkeypatch.setattr(compiled, "COMPILE_FROM", rule)
        assert compile_gradient(target, problems.points(target, 3)).backend == backend


def branching(x, y=None):
    """Control flow on a value: no graph."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    sigma = 0.5 if w[0] > 0 else 2.0
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def counting(x, y=None):
    """The number of positive weights becomes a constant of the graph."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    count = torch.nonzero(w > 0).shape[0]
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 1.0 + count), obs=y)


def selecting(x, y=None):
    """The graph can hold only as many positive weights as there were when it was traced."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 1.0 + w[w > 0].sum()), obs=y)


@pytest.mark.parametrize("program", [branching, counting, selecting])
def test_programs_that_hang_on_values_run_as_they_are(program):
    """Points on both sides of the branch: whatever the graph has baked in shows."""
    target = problems.Problem(program, *problems._rows()).target()
    points = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.5, -0.5], [-1.0, -1.0, -1.0]])
    gradient = compile_gradient(target, points, "eager")
    assert gradient.backend == "pyro"
    assert gradient.reason.startswith("the program cannot be traced: ") and len(gradient.reason) > 40
    assert_same(gradient, target, 0.0)


def test_values_that_are_not_finite_are_the_same_in_the_graph():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.factor("hard", torch.where(w[0] > 0, 0.0, -torch.inf))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    target = problems.Problem(program, *problems._rows()).target()
    gradient = compile_gradient(target, torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]), "eager")
    assert gradient.backend == "eager"
    assert gradient(torch.tensor([[-1.0, 1.0, 1.0]]))[1] == -torch.inf


def test_a_check_that_finds_nan_on_one_side_only_fails():
    one, nan = torch.ones(2, 1), torch.full((2, 1), torch.nan)
    difference = compiled.relative_difference
    assert difference((one, one[0]), (one, one[0])) == 0.0
    assert difference((nan, one[0]), (nan, one[0])) == 0.0
    assert difference((nan, one[0]), (one, one[0])) == float("inf")
    assert difference((one, one[0]), (nan, one[0])) == float("inf")
    assert difference((one * torch.inf, one[0]), (one, one[0])) == float("inf")
    assert difference((one * 1.5, one[0]), (one, one[0])) == pytest.approx(0.5)


def test_vector_instructions_are_not_tried_out(monkeypatch):
    """Torch reads the setting while it compiles; it is afterwards what it was."""
    from torch._inductor import compile_fx, config

    seen = []
    compile_inner = compile_fx.compile_fx_inner
    monkeypatch.setattr(
        compile_fx, "compile_fx_inner", lambda *args: seen.append(config.cpp.vec_isa_ok) or compile_inner(*args)
    )
    target = PROBLEMS["linear"]().target()
    before = config.cpp.vec_isa_ok
    assert compile_gradient(target, problems.points(target, 3), "inductor").backend == "inductor"
    assert config.cpp.vec_isa_ok is before and seen == [True]


def test_torch_tries_the_compiler_in_a_thread_that_is_waited_for(monkeypatch, capfd):
    from torch._inductor import compile_fx, config, cpu_vec_isa

    seen = []

    def slow(*args):
        time.sleep(0.5)
        seen.append(
            (threading.current_thread() is threading.main_thread(), config.cpp.vec_isa_ok, config.cpp.dynamic_threads)
        )
        raise RuntimeError("there is no compiler")

    compile_inner = compile_fx.compile_fx_inner
    monkeypatch.setattr("bnn_pyro.inductor._trials", [])
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", slow)
    monkeypatch.setattr(compile_fx, "compile_fx_inner", lambda *args: seen.append("compiled") or compile_inner(*args))
    target = PROBLEMS["linear"]().target()
    points = problems.points(target, 3)
    with config.patch({"cpp.dynamic_threads": "the user's"}):  # which a thread that began afresh would not see
        assert compile_gradient(target, points, "inductor").backend == "inductor"
    assert seen == [(False, True, "the user's"), "compiled"]
    assert capfd.readouterr().err == ""
    seen.clear()
    assert compile_gradient(target, points, "inductor").backend == "inductor" and seen == ["compiled"]  # once a process
    seen.clear()
    assert compile_gradient(target, points, "eager").backend == "eager" and not seen


@pytest.mark.parametrize("own", [None, True, False])
def test_a_users_own_word_on_vector_instructions_stands(own):
    assert trusts_compiler(SimpleNamespace(cpp=SimpleNamespace(vec_isa_ok=own))) is (own is not False)


def test_a_compilers_error_is_told_with_its_cause():
    said = [
        "C++ compile error",
        "Command:",
        "g++ code.cpp",
        "Output:",
        "  code.cpp:2:10: fatal error: omp.h: No such file",
        "more",
    ]
    error = RuntimeError("\n\n".join(said))
    error.add_note("At site 'w'.")
    told = "RuntimeError: C++ compile error code.cpp:2:10: fatal error: omp.h: No such file At site 'w'."
    assert compiled.sentence(error) == told
    assert compiled.sentence(ValueError("one\ntwo")) == "ValueError: one"
