"""Programs as users write them, with rows: those that go through a graph, and those that cannot and must say so.

``WRITTEN`` and ``ZOO`` are traced whole. Each of ``UNTRACEABLE`` does one thing that no graph of tensor operations can
hold, and names the site that the program has come to where it does so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

import bnn_pyro as bnn
import problems
from bnn_pyro.data import collect
from problems import D, N, Problem


def normal(name: str, *shape: int, sd: float = 1.0) -> Tensor:
    return pyro.sample(name, dist.Normal(0.0, sd).expand(list(shape)).to_event(len(shape)))


# ---- programs that go through a graph ----------------------------------------------------------------------------


def relevance(x, y=None):
    """A network whose inputs each have a scale, below a scale of scales."""
    top = pyro.sample("top", dist.LogNormal(0.0, 0.5))
    scale = pyro.sample("scale", dist.InverseGamma(3.0, 2.0 * top).expand([x.shape[-1]]).to_event(1))
    w = pyro.sample("w", dist.Normal(0.0, scale.sqrt().unsqueeze(-1).expand(-1, 2)).to_event(2))
    v, noise = normal("v", 2), pyro.sample("noise", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(torch.tanh(x @ w) @ v, noise), obs=y)


def known_covariance(x, y=None):
    """A correlated prior with a location and a covariance that are given."""
    d = x.shape[-1]
    covariance = 0.4 + 0.6 * torch.eye(d)
    w = pyro.sample("w", dist.MultivariateNormal(torch.linspace(-1, 1, d), covariance_matrix=covariance))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def convolution(x, y=None):
    """x (n, 1, 8, 8), y one of three classes: two 3 x 3 filters, pooled to 3 x 3."""
    filters, bias = normal("filters", 2, 1, 3, 3, sd=0.5), normal("bias", 2)
    hidden = functional.max_pool2d(torch.relu(functional.conv2d(x, filters, bias)), 2).flatten(1)  # (n, 18)
    logits = hidden @ normal("w", 18, 3, sd=0.3)
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def recurrent(x, y=None):
    """x (n, steps, d): a gated recurrent unit with two states, written out."""
    d, k = x.shape[-1], 2
    from_x, from_h, bias = normal("from_x", d, 3 * k), normal("from_h", k, 3 * k, sd=0.7), normal("bias", 3 * k, sd=0.3)
    h = torch.zeros(x.shape[0], k)
    for t in range(x.shape[1]):
        reset_x, update_x, new_x = (x[:, t] @ from_x + bias).chunk(3, -1)
        reset_h, update_h, new_h = (h @ from_h).chunk(3, -1)
        update = torch.sigmoid(update_x + update_h)
        h = (1 - update) * torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h) + update * h
    out, noise = normal("out", k), pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(h @ out, noise), obs=y)


def attention(x, y=None):
    """x (n, positions, d): each position asks all others, with a learnt place, and the answers are averaged."""
    positions, d = x.shape[1], x.shape[2]
    x = x + normal("place", positions, d, sd=0.3)
    q, k, v = (x @ normal(name, d, 2) for name in ("query", "key", "value"))
    weights = torch.softmax(q @ k.mT / 2**0.5, -1)  # (n, positions, positions)
    f = functional.gelu(weights @ v).mean(1) @ normal("out", 2)
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def cumulative(x, y=None):
    """Three ordered classes, their log probabilities written so that none is lost in rounding; Pyro's are."""
    f, first = x @ normal("w", x.shape[-1]), normal("first")
    gap = pyro.sample("gap", dist.LogNormal(0.0, 1.0))
    below, above = functional.logsigmoid(first - f), functional.logsigmoid(f - first - gap)
    between = functional.logsigmoid(first + gap - f) + functional.logsigmoid(f - first) + torch.log(-torch.expm1(-gap))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Categorical(logits=torch.stack([below, between, above], -1)), obs=y)


# ---- rows for them -----------------------------------------------------------------------------------------------


def _series() -> Problem:
    x = problems._rows(N, 4 * D)[0].reshape(N, 4, D)
    return Problem(recurrent, x, problems._rows()[1])


def _positions() -> Problem:
    return Problem(attention, _series().x, problems._rows()[1])


@cache
def _digits() -> Problem:
    """The first images of 0, 1 and 2 among the digits, pixels from 0 to 1."""
    train = bnn.load_dataset("digits").train
    x, y = torch.tensor(train.x.to_numpy(dtype=float)), torch.tensor(train.y.to_numpy(dtype=int))
    rows = torch.cat([(y == label).nonzero()[:5, 0] for label in range(3)])
    return Problem(convolution, (x[rows] / 16.0).reshape(-1, 1, 8, 8).float().double(), y[rows])


def _zoo(name: str, **hyperparameters) -> Callable[[], Problem]:
    def make() -> Problem:
        model = bnn.get_model(name, **hyperparameters)
        x, y = problems._rows()
        if model.task == "classification":
            y = torch.arange(N) % (model.class_count or 3)
            model = model.for_data(collect(x.numpy(), y.numpy(), where=name, classes=True))
        return Problem(model.model, x, y)

    return make


SMALLER = {"mlp_gaussian": {"hidden": (4, 3)}, "mlp_hetero": {"hidden": (4, 3)}, "mlp_categorical": {"hidden": (4,)}}
ZOO = {name: _zoo(name, **SMALLER.get(name, {})) for name in bnn.list_models()}
ZOO["mlp_gaussian_tanh"] = _zoo("mlp_gaussian", hidden=(3,), activation="tanh")  # its own code in float32
WRITTEN: dict[str, Callable[[], Problem]] = {
    "relevance": lambda: Problem(relevance, *problems._rows()),
    "known_covariance": lambda: Problem(known_covariance, *problems._rows()),
    "convolution": _digits,
    "recurrent": _series,
    "attention": _positions,
    "cumulative": lambda: Problem(cumulative, problems._rows()[0], torch.arange(N) % 3),
    **{
        name: problems.PROBLEMS[name]
        for name in ("hierarchical", "correlated", "embedding", "student", "ordinal", "two_observed")
    },
}


# ---- programs that do not ----------------------------------------------------------------------------------------


def in_place(x, y=None):
    """``linear_model``, adding into zeros: ``vmap`` cannot write many chains into the one tensor."""
    w = normal("w", x.shape[-1])
    f = torch.zeros(x.shape[0])
    for j in range(x.shape[-1]):
        f += x[:, j] * w[j]
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(f, 0.5), obs=y)


class _Same(torch.autograd.Function):
    """The identity, in the form that has no rule for ``vmap``."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()


def own_operation(x, y=None):
    """``linear_model``, through an operation of the user's own that autograd knows and ``vmap`` does not."""
    w = _Same.apply(normal("w", x.shape[-1]))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def branching(x, y=None):
    """Control flow on a value."""
    w = normal("w", x.shape[-1])
    sigma = 0.5 if w[0] > 0 else 2.0
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def counting(x, y=None):
    w = normal("w", x.shape[-1])
    count = torch.nonzero(w > 0).shape[0]
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 1.0 + count), obs=y)


def selecting(x, y=None):
    w = normal("w", x.shape[-1])
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 1.0 + w[w > 0].sum()), obs=y)


def number(x, y=None):
    """A value taken out of torch."""
    w = normal("w", x.shape[-1])
    sigma = 1.0 + abs(w[0].item())
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def dropping(x, y=None):
    """Random numbers inside, new ones at each run: not a density at all, but it must not become a fixed one either."""
    w = normal("w", x.shape[-1])
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w + 0.1 * torch.randn(x.shape[0]), 0.5), obs=y)


def shaking(x, y=None):
    """The same with Python's generator, which tracing does not see: its number would stand in the graph for good."""
    w = normal("w", x.shape[-1])
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w + 0.1 * random.gauss(0.0, 1.0), 0.5), obs=y)


@dataclass(frozen=True)
class Untraceable:
    """A program and the site that it has come to when tracing stops; ``says`` is a part of the reason."""

    program: Callable
    site: str
    says: str
    random: bool = False

    def problem(self) -> Problem:
        return Problem(self.program, *problems._rows())


UNTRACEABLE = {
    "branching": Untraceable(branching, "w", "data-dependent control flow"),
    "nonzero": Untraceable(counting, "w", "nonzero"),
    "boolean_index": Untraceable(selecting, "w", "dynamic shape"),
    "item": Untraceable(number, "w", ".item()"),
    "torch_randn": Untraceable(dropping, "w", "random", random=True),
    "python_random": Untraceable(shaking, "", "differs from the program", random=True),
    "in_place": Untraceable(in_place, "w", "doesn't match the broadcast shape (8, 12)"),
    "no_vmap_rule": Untraceable(own_operation, "w", "vmap"),
}
