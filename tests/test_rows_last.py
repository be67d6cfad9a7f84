"""Turned graphs compute what they did, with the rows of data as the last axis of what stands between products."""

import pytest
import torch
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from bnn_pyro.rows_last import rows_last
from bnn_pyro.simplify import simplify, spell_thin_products, tensor_like

aten = torch.ops.aten
CHAINS, ROWS, COLUMNS, UNITS, CLASSES = 3, 20, 4, 5, 2


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def turned(function, *example):
    """The graph of ``function`` after it has been turned; both compute the same."""
    graph = simplify(make_fx(function)(*example))
    new = rows_last(graph)
    for got, wanted in zip(tree_leaves(new(*example)), tree_leaves(function(*example)), strict=True):
        assert got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-12, atol=1e-13)
    return new


def nodes(graph, *targets):
    return [n for n in graph.graph.nodes if n.target in targets]


def test_between_the_products_of_a_network_rows_are_last():
    x, labels = torch.randn(ROWS, COLUMNS), torch.randint(CLASSES, (ROWS,))

    def loss(parts):
        first, bias, second, last = parts
        hidden = torch.tanh(torch.tanh(x @ first + bias) @ second)
        return functional.cross_entropy(hidden @ last, labels, reduction="sum")

    shapes = ((COLUMNS, UNITS), (UNITS,), (UNITS, UNITS), (UNITS, CLASSES))
    parts = tuple(torch.randn(CHAINS, *shape) for shape in shapes)
    graph = turned(vmap(grad_and_value(loss)), parts)

    values = [tensor_like(n) for n in nodes(graph, aten.bmm.default, aten.tanh.default, aten.tanh_backward.default)]
    long = [v.shape for v in values if ROWS in v.shape]
    assert len(long) == 3 + 2 + 2 + 2  # products forward and back, tanh, its gradients
    assert all(shape[-1] == ROWS for shape in long)
    weights = [v.shape for v in values if ROWS not in v.shape]
    assert sorted(map(tuple, weights)) == sorted((CHAINS, *s) for s in shapes if len(s) == 2)  # gradients, as they were


w, b = torch.randn(CHAINS, COLUMNS, UNITS, dtype=torch.float64), torch.randn(CHAINS, UNITS, dtype=torch.float64)
x, row = torch.randn(ROWS, COLUMNS, dtype=torch.float64), torch.randn(UNITS, dtype=torch.float64)
column = torch.randn(ROWS, 1, dtype=torch.float64)
USES = {
    "a row": lambda h: h + row,
    "a column": lambda h: column - h,
    "a matrix": lambda h: h / (h.detach()[0] ** 2 + 1.0),
    "numbers": lambda h: torch.clamp(2.0 * h, -1.0, 1.0) + torch.tensor(3.0),
    "where": lambda h: torch.where(h > row, h, column),
    "itself, turned and not": lambda h: h * h.exp() + (h.mT @ h).sum(1, keepdim=True),
    "sums": lambda h: (h.sum(1), h.sum(2), h.sum(-1, keepdim=True), h.exp().sum((1, 2)), h.sum(0), h.sum()),
    "other sums": lambda h: (h.logsumexp(2), h.logsumexp(1, keepdim=True), h.mean(-1), h.amax(1), h.amin((1, 2))),
    "every axis by name": lambda h: h.exp().sum((0, 1, 2)),
    "a lone axis": lambda h: (h.sum(2, keepdim=True).exp().squeeze(2), h.sum(1, keepdim=True).exp().squeeze(-2)),
    "other operations": lambda h: (h.cumsum(1), h.exp().softmax(2), h.exp().flatten(1), h.exp().view(-1), h.exp()[:, 3]),
    "sums that leave rows": lambda h: (h.sum(0).tanh().sum(0), h.mean(0).tanh(), h.sum(0).tanh().sum(1)),
    "axes that are no lone ones": lambda h: h.exp().squeeze((0, 2)) + h.sum(0, keepdim=True).exp().squeeze(0),
    "a fourth axis": lambda h: h.exp()[:, None] * torch.ones(2, 1, 1),
    "another type": lambda h: h.exp().float().double(),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_whatever_is_done_with_a_turned_product_is_the_same(use):
    graph = turned(lambda w: USES[use](torch.bmm(x.expand(CHAINS, -1, -1), w)), w)
    (product,) = (n for n in nodes(graph, aten.bmm.default) if ROWS in tensor_like(n).shape)
    assert tensor_like(product).shape == (CHAINS, UNITS, ROWS)


def test_a_thin_product_that_was_spelt_out_is_turned_with_the_rest():
    y, last = torch.randn(ROWS), torch.randn(UNITS, 1)

    def loss(w):  # the mean over chains of a layer, then a lone product with one column
        return ((torch.bmm(x.expand(CHAINS, -1, -1), w).sum(0).tanh() @ last).squeeze(-1) - y).square().sum()

    graph = rows_last(spell_thin_products(simplify(make_fx(grad_and_value(loss))(w))))
    for got, wanted in zip(tree_leaves(graph(w)), tree_leaves(grad_and_value(loss)(w)), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12)
    assert [tensor_like(n).shape for n in nodes(graph, aten.tanh_backward.default)] == [(UNITS, ROWS)]
    assert not nodes(graph, aten.mm.default)


def test_numbers_pass_without_a_transposition_on_the_way():
    graph = turned(lambda w, b: ((torch.bmm(x.expand(CHAINS, -1, -1), w) + b[:, None]).tanh() * 2).exp().sum(1), w, b)
    after = list(graph.graph.nodes)
    after = after[after.index(nodes(graph, aten.bmm.default)[0]) + 1 :]
    mine = [n for n in after if n.target is aten.transpose.int]
    assert all(tensor_like(n).shape[1] in (1, UNITS) for n in mine) and len(mine) == 1  # the bias


def test_what_is_not_on_a_cpu_is_left_alone():
    graph = make_fx(torch.bmm)(torch.empty(CHAINS, ROWS, COLUMNS, device="meta"), w.to("meta"))
    assert rows_last(graph) is graph


def test_what_has_no_long_rows_or_must_lie_as_it_does_is_left_alone():
    def left_alone(function, *example):
        graph = simplify(make_fx(function)(*example))
        return rows_last(graph) is graph

    a = torch.randn(CHAINS, ROWS, COLUMNS)
    assert left_alone(torch.bmm, a.mT.contiguous(), torch.randn(CHAINS, ROWS, UNITS))  # sums over rows
    assert left_alone(torch.bmm, w, torch.randn(CHAINS, UNITS, ROWS))  # rows are last already
    assert left_alone(lambda a: torch.bmm(a, a), torch.randn(CHAINS, UNITS, UNITS))
    assert left_alone(torch.mm, x, w[0])
    assert not left_alone(torch.bmm, a, w)
    assert left_alone(lambda a, w: torch.bmm(a, w).as_strided((2,), (1,)), a, w)

    def writing(a, w):
        out = torch.bmm(a, w)
        out[:, 0] = 0.0
        return out

    assert left_alone(writing, a, w)
