"""Weights are seen wherever a program uses them, and products are taken where they are of rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn import functional

from bnn_pyro.layer_noise import RowNoise
from bnn_pyro.layers import layers
from bnn_pyro.structure import build_target


@pytest.mark.parametrize(
    "use", [lambda w, v: torch.cat([w, v]), lambda w, v: torch.stack([v, w]), lambda w, v: torch.cat(tensors=(w, v))],
    ids=["cat", "stack", "keyword"],
)  # fmt: skip
def test_a_weight_in_a_list_of_arguments_is_used(use):
    x, w, v = torch.ones(5, 3), torch.ones(3, 2), torch.ones(3, 2)
    watch = RowNoise("local", 5)
    watch.follow("w", w, linear=w, size=w.abs())
    with watch:
        x @ w
        watch.check()
        use(w, v)
    with pytest.raises(NotImplementedError, match=r"site 'w' is used in a product with rows and in torch\.(cat|stack)"):
        watch.check()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def followed(estimator, rows, **weights):
    """A watch over weights whose mean is 0 and whose sd is 1."""
    watch = RowNoise(estimator, rows)
    for site, value in weights.items():
        watch.follow(site, value, linear=torch.zeros_like(value), size=torch.ones_like(value))
    return watch


# Programs of x (5, 4, 3), a (3, 2) and b (2, 4), in which no product of rows and a weight is of one row at a time.
NOT_ROWS = {
    "a product of weights": lambda x, a, b: x[:, 0] @ (a @ b),
    "a moved weight": lambda x, a, b: x[:, 0] @ (b.T @ a.T).T,
    "places in a row": lambda x, a, b: x.reshape(20, 3) @ a,
    "places in a row, linear": lambda x, a, b: functional.linear(x.reshape(20, 3), a.T),
    "another axis first": lambda x, a, b: x.transpose(0, 1) @ a,
}


@pytest.mark.parametrize("program", NOT_ROWS)
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_product_that_is_not_of_rows_is_left_as_the_program_has_it(estimator, program):
    x, a, b = normal(5, 4, 3), normal(3, 2), normal(2, 4)
    watch = followed(estimator, 5, a=a, b=b)
    with watch:
        out = NOT_ROWS[program](x, a, b)
    assert torch.allclose(out, NOT_ROWS[program](x, a, b))
    with pytest.raises(NotImplementedError, match="has found no product of rows and weights"):
        watch.check()


@pytest.mark.parametrize("change", [lambda a: a, lambda a: 0.5 * a, lambda a: torch.tanh(1.0 + a)])
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_product_of_weights_as_long_as_the_rows_is_none_of_rows(estimator, change):
    x, a, b = normal(5, 5), normal(5, 2), normal(2, 4)
    watch = followed(estimator, 5, a=a, b=b)
    with watch:
        out = x @ (change(a) @ b)
    assert torch.allclose(out, x @ (change(a) @ b)) and set(watch.uses) == {"a", "b"}
    with pytest.raises(NotImplementedError, match="has found no product of rows and weights"):
        watch.check()


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_product_of_weights_beside_one_of_rows_keeps_its_single_draw(estimator):
    x, a, b, c = torch.ones(5, 3), normal(3, 2), normal(2, 4), torch.ones(3, 4)
    watch = followed(estimator, 5, a=a, b=b, c=c)
    with watch:
        single, own = x @ (a @ b), x @ c
    watch.check()
    assert torch.allclose(single, x @ (a @ b)) and not torch.allclose(own, own[:1].expand(5, 4))


# Shapes of rows, weight and bias. Along the axis of the outputs the second and the last would be added without an error.
WIDE_BIASES = {
    "channels": ((5, 3, 2, 4), (3, 3, 1, 1), (3, 1, 1), functional.conv2d),
    "channels as many as columns": ((5, 3, 2, 3), (3, 3, 1, 1), (3, 1, 1), functional.conv2d),
    "places and outputs": ((5, 4, 2), (2, 3), (4, 3), torch.matmul),
    "places": ((5, 3, 2), (2, 3), (3, 1), torch.matmul),
}


@pytest.mark.parametrize("kind", WIDE_BIASES)
@pytest.mark.parametrize("add", [lambda out, b: out + b, lambda out, b: b + out], ids=["after", "before"])
def test_a_bias_of_more_than_one_axis_is_added_where_the_program_adds_it(kind, add):
    *shapes, product = WIDE_BIASES[kind]
    x, w, b = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    watch = RowNoise("flipout", 5)
    for site, value in {"w": w, "b": b}.items():  # of no spread, so that what comes out is known
        watch.follow(site, value, linear=value, size=torch.zeros_like(value))
    with watch:
        out = add(product(x, w), b)
    watch.check()
    assert torch.allclose(out, add(product(x, w), b)) and watch.uses == {"w": ["rows"], "b": ["add"]}


def test_a_product_of_weights_is_no_layer():
    """Its curvature would be that of the gradients' sum over rows, squared."""

    def program(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2, 1]).to_event(2))
        c = pyro.sample("c", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal((x @ (a @ b) + x @ c)[:, 0], 0.5), obs=y)

    target = build_target(program, normal(20, 3), normal(20))
    assert [layer.site for layer in layers(target, torch.ones(target.dim))] == ["c"]
