"""What makes a traced graph smaller or faster: each change is looked at by itself."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

import problems
from bnn_pyro.graphs import FEW, normal_priors, rational_tanh, trace, trace_function
from bnn_pyro.isolation import isolated
from bnn_pyro.simplify import simplify, spell_fills

aten = torch.ops.aten


def operations(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def simplified(function, *example):
    """A graph before and after; both compute the same."""
    graph = make_fx(function)(*example)
    before = operations(graph)
    wanted = function(*example)
    graph = simplify(graph)
    assert torch.equal(graph(*example), wanted)
    return before, operations(graph)


def test_what_is_constant_is_computed_once():
    constant = torch.linspace(0.1, 1.0, 5)
    before, after = simplified(lambda z: z * (constant.log() + torch.ones_like(z)).exp(), torch.randn(5))
    assert aten.log.default in before and aten.ones_like.default in before
    assert after == [aten.mul.Tensor]


def test_what_does_nothing_is_dropped():
    before, after = simplified(
        lambda z: z.view(3, 2).expand(3, 2).detach() ** 1 * 1.0 + 0.0 + z.exp(), torch.randn(3, 2)
    )
    assert len(before) > 5 and after == [aten.exp.default, aten.add.Tensor]


def test_what_only_looks_like_nothing_stays():
    z = torch.randn(2, 3)
    _, after = simplified(lambda z: torch.add(z, 0.0, alpha=2.0) + (z.double() * 1).float() + z.t().t() * 2, z)
    assert aten.mul.Tensor in after
    _, after = simplified(lambda z: z.expand(4, 3) * 1, torch.randn(1, 3))
    assert aten.expand.default in after


def test_what_is_computed_twice_is_shared_unless_it_is_random_or_differs():
    _, after = simplified(lambda z: z.exp() + z.exp(), torch.randn(3))
    assert after == [aten.exp.default, aten.add.Tensor]
    _, after = simplified(lambda z: z.sum(0, keepdim=True) + z.sum(0), torch.randn(3))
    assert after.count(aten.sum.dim_IntList) == 2
    graph = simplify(make_fx(lambda z: torch.rand_like(z) - torch.rand_like(z))(torch.zeros(50)))
    assert operations(graph).count(aten.rand_like.default) == 2 and not torch.equal(
        graph(torch.zeros(50)), torch.zeros(50)
    )


def test_a_graph_that_writes_in_place_is_left_alone():
    def writes(z):
        out = torch.zeros_like(z)
        out[0] = z[0] * 2
        return out + torch.ones_like(z)

    before, after = simplified(writes, torch.randn(3))
    assert before == after


def test_what_is_written_on_a_new_tensor_that_nobody_else_sees_is_made_by_a_plain_operation():
    y = torch.tensor([0.0, 1.0, 1.0])

    def loss(z):  # torch writes on a new tensor for 1 - y
        return torch.nn.functional.binary_cross_entropy_with_logits(z, y) + torch.ones_like(z).sum()

    before, after = simplified(vmap(loss), torch.randn(2, 3))
    assert aten.fill_.Scalar in before and aten.sub_.Tensor in before
    assert not any(target._schema.is_mutable for target in after) and len(after) < len(before) - 4


@pytest.mark.parametrize(
    "writes",
    [
        lambda z: z.mul_(2) + 1,  # an argument
        lambda z: torch.add((out := z.exp()).sum(), out.mul_(2)),  # seen by another operation
        lambda z: (out := z.exp(), out[:1].mul_(2))[0] + 1,  # a view
        lambda z: z.gt(0).mul_(z.gt(1)).float().add_(torch.ones(3, dtype=torch.float64)),  # of another type
    ],
)
def test_what_is_written_where_it_is_seen_is_left_alone(writes):
    graph = make_fx(writes)(torch.randn(3))
    before = operations(graph)
    after = operations(simplify(graph))
    assert [t for t in after if t._schema.is_mutable] == [t for t in before if t._schema.is_mutable][-1:] != []


def test_constants_of_one_number_are_spelt_out_and_no_others():
    ramp = torch.arange(3.0)
    ones = torch.ones(1).expand(4, 3)

    def f(z):
        return z * torch.full((3,), -2.5) + ramp + ones * torch.tensor(torch.inf) * z

    graph = simplify(make_fx(f)(torch.randn(4, 3)))
    spelt = spell_fills(graph)
    z = torch.randn(4, 3)
    assert torch.equal(spelt(z), graph(z)) and torch.equal(graph(z), f(z))
    left = [getattr(spelt, n.target) for n in spelt.graph.nodes if n.op == "get_attr"]
    assert len(left) == 1 and torch.equal(left[0], ramp)
    assert aten.full.default not in operations(graph)  # it works on a copy


def test_the_fast_tanh_is_within_its_error_and_its_bounds():
    x = torch.cat([torch.linspace(-12, 12, 400_001), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-30, 1e30])])
    found, exact = rational_tanh(x), torch.tanh(x.double())
    assert ((found.double() - exact).abs() <= 4.5e-7 * exact.abs()).all()
    assert found.abs().max() <= 1.0
    assert rational_tanh(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize(("units", "dtype", "fast"), [(FEW, torch.float32, True), (2, torch.float32, False),
                                                     (FEW, torch.float64, False)])  # fmt: skip
def test_tanh_is_replaced_for_many_numbers_in_float32_only(units, dtype, fast):
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([units]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(torch.tanh(w).sum() * x[:, 0], 1.0), obs=y)

    target = problems.Problem(program, *problems._rows()).target(dtype)
    with isolated(dtype=dtype):
        graph = trace(target, normal_priors(target), torch.zeros(4, target.dim, dtype=dtype))
    assert (aten.tanh.default not in operations(graph)) == fast


def test_normal_priors_with_fixed_parameters_are_found_and_no_others():
    def program(x, y=None):
        fixed = pyro.sample("fixed", dist.Normal(1.0, torch.tensor([2.0, 4.0])).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        below = pyro.sample("below", dist.Normal(0.0, scale))
        with pyro.poutine.scale(scale=0.5):
            tempered = pyro.sample("tempered", dist.Normal(0.0, 1.0))
        student = pyro.sample("student", dist.StudentT(3.0, 0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(fixed.sum() + below + tempered + student, scale), obs=y)

    target = problems.Problem(program, *problems._rows()).target()
    with isolated(dtype=torch.float64):
        priors = normal_priors(target)
        z = torch.randn(3, target.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        _, value = priors.add_to(z, torch.zeros(3, target.dim), torch.zeros(3))
        expected = dist.Normal(1.0, torch.tensor([2.0, 4.0])).log_prob(z[:, :2]).sum(1)
    assert priors.sites == {"fixed"}
    assert torch.allclose(value, expected, rtol=1e-12)


DECOMPOSITIONS = {
    "cholesky": torch.linalg.cholesky,
    "inverse": torch.linalg.inv,
    "solve": lambda a: torch.linalg.solve(a, a.sum(-1)),
    "factors": lambda a: torch.linalg.lu_factor(a)[0],
    "two": lambda a: torch.linalg.cholesky(a) @ torch.linalg.inv(a),
}


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_matrices_that_cannot_be_decomposed_become_nan_and_others_stay(name):
    fn = DECOMPOSITIONS[name]
    a = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = a @ a.mT + torch.eye(3, dtype=torch.float64)
    graph = trace_function(vmap(fn), (a,), 4)
    assert torch.allclose(graph(a), fn(a), atol=1e-14)
    singular = a.clone()
    singular[2, 1] = 0.0
    singular[2, :, 1] = 0.0
    with pytest.raises(RuntimeError, match="Batch element 2"):
        fn(singular)
    found = graph(singular)
    assert found[2].isnan().any() and torch.equal(found[[0, 1, 3]], graph(a)[[0, 1, 3]])
