"""The graph of a program is the program: log density and gradient against Pyro's own trace, at many random points.

Pyro's trace knows no Jacobian; that comes from automatic differentiation of the map to constrained values. Differences are
relative to the size at each point, at least 1. A program that no graph can hold has to say so, and runs as it is.
"""

from dataclasses import dataclass, replace
from functools import cache

import arviz as az
import numpy as np
import pytest
import torch
from programs import UNTRACEABLE, WRITTEN, ZOO, in_place, own_operation
from torch import Tensor

import bnn_pyro as bnn
import problems
from bnn_pyro import compiled, target
from bnn_pyro.compiled import Gradient, compile_gradient
from bnn_pyro.isolation import isolated
from bnn_pyro.target import Target
from problems import Problem

TRACED = ZOO | WRITTEN
COUNT, FEW = 100, 10
VALUE = {torch.float64: 1e-10, torch.float32: 1e-5}
GRADIENT = {torch.float64: 1e-8, torch.float32: 1e-5}
SLOPE = 1e-5
STEP = 1e-6  # of central differences: error about 1e-7 from rounding, 1e-12 from the third derivative
BLOCKS = (2, 3, 7, 32)
SPREAD = {"ordinal": 0.3}  # further out, Pyro's OrderedLogistic is a difference of two numbers that rounding made equal


# ---- what Pyro says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """At z (points, dim): log density (points,), its gradient (points, dim), and its slope (points,) along a direction."""

    z: Tensor
    value: Tensor
    gradient: Tensor
    direction: Tensor
    slope: Tensor


def log_density(problem: Problem, target: Target, z: Tensor) -> Tensor:
    """``problems.pyro_log_density``, with the Jacobian of those sites only that the map changes.

    A site whose value is its part of z has a unit block in the Jacobian and zeros beside it, so the determinant is that of
    the rest. Networks of a hundred weights would take a hundred backward passes for each point otherwise.
    """
    values = target.evaluate(z).values
    changed = [
        i
        for site in target.sites
        if not torch.equal(values[site.name].reshape(-1), z[site.start : site.stop])
        for i in range(site.start, site.stop)
    ]
    joint = problems.pyro_log_joint(problem, values)
    if not changed:
        return joint
    free = lambda part: problems.free_values(target, z.index_copy(0, torch.tensor(changed), part))[changed]
    jacobian = torch.autograd.functional.jacobian(free, z[changed], create_graph=z.requires_grad)
    return joint + torch.linalg.slogdet(jacobian)[1]


@cache
def expected(name: str, count: int = COUNT) -> Expected:
    """Of a program of ``TRACED`` or ``UNTRACEABLE``; float64, at points that float32 can hold."""
    problem = TRACED[name]() if name in TRACED else UNTRACEABLE[name].problem()
    with isolated(seed=0, dtype=torch.float64):
        target = problem.target()
        z = problems.points(target, count, seed=11) * SPREAD.get(name, 1.0)
        z = z.float().double()
        direction = torch.nn.functional.normalize(problems.points(target, count, seed=12), dim=1)
        values, gradients, slopes = [], [], []
        for point, way in zip(z, direction, strict=True):
            leaf = point.clone().requires_grad_(True)
            value = log_density(problem, target, leaf)
            gradients.append(torch.autograd.grad(value, leaf)[0])
            values.append(value.detach())
            ahead, behind = (log_density(problem, target, point + side * STEP * way) for side in (1, -1))
            slopes.append((ahead - behind).detach() / (2 * STEP))
    return Expected(z, torch.stack(values), torch.stack(gradients), direction, torch.stack(slopes))


@dataclass(frozen=True)
class Errors:
    """The largest differences from what Pyro says, over all points."""

    value: float
    gradient: float
    slope: float

    def within(self, dtype: torch.dtype) -> bool:
        slope = self.slope <= SLOPE if dtype == torch.float64 else True  # rounding in float32 hides a slope
        return self.value <= VALUE[dtype] and self.gradient <= GRADIENT[dtype] and slope


def errors(gradient: Gradient, truth: Expected) -> Errors:
    grad, value = gradient(truth.z)
    assert grad.shape == truth.gradient.shape and value.shape == truth.value.shape and value.dtype == torch.float64
    grad, size = grad.double(), truth.gradient.abs().amax(1).clamp(min=1.0)
    slope = (grad * truth.direction).sum(1)
    return Errors(
        float(((value - truth.value).abs() / truth.value.abs().clamp(min=1.0)).max()),
        float(((grad - truth.gradient).abs().amax(1) / size).max()),
        float(((slope - truth.slope).abs() / size).max()),
    )


def compile_problem(problem: Problem, backend: str, dtype: torch.dtype) -> Gradient:
    """Call inside ``isolated``; checked at other points than those of the tests."""
    target = problem.target(dtype)
    return compile_gradient(target, problems.points(target, 3), backend)


# ---- programs that go through a graph ----------------------------------------------------------------------------


EACH = [(name, dtype) for name in TRACED for dtype in VALUE]
each_problem = pytest.mark.parametrize(("name", "dtype"), EACH, ids=lambda value: str(value))


@each_problem
def test_the_graph_is_the_program(name, dtype):
    with isolated(seed=0, dtype=dtype):
        gradient = compile_problem(TRACED[name](), "eager", dtype)
        found = errors(gradient, expected(name))
    assert_it_is_or_says_why_not(name, gradient, "eager")
    assert found.within(dtype), found


def assert_it_is_or_says_why_not(name: str, gradient: Gradient, backend: str) -> None:
    if name == "ordinal" and gradient.backend == "pyro":  # Pyro's OrderedLogistic writes in place
        assert "inplace" in gradient.reason and gradient.reason.endswith("had come to site 'cuts'.")
    else:
        assert (gradient.backend, gradient.reason) == (backend, "")


@pytest.mark.slow
@each_problem
def test_the_compiled_graph_is_the_program(name, dtype):
    with isolated(seed=0, dtype=dtype):
        gradient = compile_problem(TRACED[name](), "inductor", dtype)
        found = errors(gradient, expected(name, FEW))
    assert_it_is_or_says_why_not(name, gradient, "inductor")
    assert found.within(dtype), found


POINTS = 70  # more than the largest block
COUNTS = (1, 2, 4, 7, 16, 33, 64)


def assert_the_number_of_chains_changes_no_bit(name: str, backend: str, dtype: torch.dtype) -> None:
    with isolated(seed=0, dtype=dtype):
        gradient = compile_problem(TRACED[name](), backend, dtype)
        z = expected(name, POINTS).z
        grad, value = gradient(z)
        assert grad.shape[0] == POINTS
        for count in COUNTS:
            some_grad, some_value = gradient(z[:count])
            assert torch.equal(some_grad, grad[:count]) and torch.equal(some_value, value[:count])


@each_problem
def test_the_number_of_chains_changes_no_bit(name, dtype):
    assert_the_number_of_chains_changes_no_bit(name, "eager", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", VALUE, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_the_number_of_chains_changes_no_bit_of_compiled_code(name, dtype):
    assert_the_number_of_chains_changes_no_bit(name, "inductor", dtype)


# ---- faults, planted ---------------------------------------------------------------------------------------------


def no_jacobian(fn, unconstrained):
    value, log_jacobian = constrain_site(fn, unconstrained)
    return value, torch.zeros_like(log_jacobian)


constrain_site = target.constrain_site


@pytest.mark.parametrize("name", ["linear", "mlp_gaussian", "relevance", "correlated", "hierarchical"])
def test_a_lost_jacobian_shows(monkeypatch, name):
    """Program and graph lose it alike, so that only Pyro can tell."""
    truth = expected(name)
    monkeypatch.setattr(target, "constrain_site", no_jacobian)
    with isolated(seed=0, dtype=torch.float64):
        gradient = compile_problem(TRACED[name](), "eager", torch.float64)
        found = errors(gradient, truth)
    assert (gradient.backend, gradient.reason) == ("eager", "")
    assert found.value > 1e-3 and found.gradient > 1e-3 and found.slope > 1e-3


FAULTS = {
    "no_constant": lambda priors: replace(priors, constant=0.0),
    "no_priors": lambda priors: replace(priors, precision=torch.zeros_like(priors.precision), constant=0.0),
    "sd_for_variance": lambda priors: replace(priors, precision=priors.precision.sqrt()),
    "no_location": lambda priors: replace(priors, loc=priors.loc + 0.5 * (priors.precision > 0)),
}
find_priors = compiled.normal_priors


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_priors_beside_the_graph_show(monkeypatch, fault):
    """The check on building finds them, and without it the comparison with Pyro does."""
    monkeypatch.setattr(compiled, "normal_priors", lambda target: FAULTS[fault](find_priors(target)))
    name = "convolution"  # its priors are all of this kind, at several scales
    with isolated(seed=0, dtype=torch.float64):
        problem = TRACED[name]()
        gradient = compile_problem(problem, "eager", torch.float64)
        assert gradient.backend == "pyro" and "differs from the program" in gradient.reason
        assert errors(gradient, expected(name)).within(torch.float64)
        monkeypatch.setattr(compiled, "_checked", lambda fast, program, points: fast)
        gradient = compile_problem(problem, "eager", torch.float64)
        assert gradient.backend == "eager" and not errors(gradient, expected(name)).within(torch.float64)


# ---- programs that no graph can hold -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "eager", "inductor"])
@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_traced_says_where_and_why(name, backend):
    case = UNTRACEABLE[name]
    with isolated(seed=0, dtype=torch.float64):
        gradient = compile_problem(case.problem(), backend, torch.float64)
    assert gradient.backend == "pyro"
    assert case.says in gradient.reason and "\n" not in gradient.reason
    if case.site:
        assert gradient.reason.endswith(f"problem: the program had come to site {case.site!r}.")


@pytest.mark.parametrize("name", [name for name, case in UNTRACEABLE.items() if not case.random])
def test_what_cannot_be_traced_is_still_right(name):
    with isolated(seed=0, dtype=torch.float64):
        gradient = compile_problem(UNTRACEABLE[name].problem(), "eager", torch.float64)
        found = errors(gradient, expected(name))
    if name == "item":  # autograd, too, takes what was taken out of torch for fixed
        found = replace(found, slope=0.0)
    assert found.within(torch.float64), found


def fit(program, backend="auto", **options):
    x, y = problems._rows()
    options = {"chains": 1, "warmup": 20, "draws": 40, "max_tree_depth": 4, "dtype": "float64"} | options
    return bnn.fit(program, x, y, inference="nuts", backend=backend, seed=5, progress=False, **options)


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_traced_samples_as_it_is(name):
    """The draws are those of ``backend="pyro"``, and so do not depend on whether tracing was tried."""
    case = UNTRACEABLE[name]
    posterior, asked = fit(case.program), fit(case.program, "pyro")
    assert posterior.attrs["backend"] == asked.attrs["backend"] == "pyro"
    assert case.says in posterior.attrs["backend_reason"] and asked.attrs.get("backend_reason", "") == ""
    draws, same = (np.asarray(p.idata.posterior["w"]) for p in (posterior, asked))
    assert draws.shape == (1, 40, problems.D) and np.isfinite(draws).all()
    assert (
        case.random or len(np.unique(draws[..., 0])) > 20
    )  # a density that shakes may hold a chain where it was lucky once
    np.testing.assert_array_equal(draws, same)


@pytest.mark.parametrize("program", [in_place, own_operation])
def test_what_cannot_be_traced_samples_its_posterior(program):
    """Both are ``problems.linear_model`` written otherwise, whose posterior is known."""
    x, _, exact = problems.linear_gaussian(seed=0, n=problems.N)
    assert torch.equal(x, problems._rows()[0])
    draws = fit(program, chains=2, warmup=150, draws=250, max_tree_depth=10).idata.posterior["w"]
    mean_error = draws.mean(("chain", "draw")).values - exact.mean.numpy()
    assert (abs(mean_error) < 5 * az.mcse(draws)["w"].values).all()
    sd = exact.covariance.diagonal().sqrt().numpy()
    assert (abs(draws.std(("chain", "draw")).values - sd) < 5 * az.mcse(draws, method="sd")["w"].values).all()
