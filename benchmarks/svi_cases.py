"""What ``svi.py`` measures: networks on rows, as a Pyro program, as a NumPyro model and as plain torch.

LeNet (LeCun et al. 1998), with ReLU and the largest of four in its pools, has the priors of ``posteriors.py``; so has any torch
network here whose weights become PyroSample.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from posteriors import PROBLEMS, Problem, load_rows, numpyro_model, pyro_program

IMAGES = 10_000  # of MNIST, the first
SHAPES = {"w1": (6, 1, 5, 5), "w2": (16, 6, 5, 5), "w3": (400, 120), "w4": (120, 84), "w5": (84, 10)}


@dataclass(frozen=True)
class Case:
    """A network on rows.

    Attributes:
        labels: Whether y (n,) are classes, of a softmax; else real numbers, of a normal with a latent sd.
        batch: Rows of a mini-batch; None for all.
        load: Gives x and y as arrays.
        pyro, numpyro: Give the model in the words of each.
        torch: Gives the network alone, as a ``torch.nn.Sequential``.
    """

    title: str
    labels: bool
    batch: int | None
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    pyro: Callable[[], Callable]
    numpyro: Callable[[], Callable]
    torch: Callable[[], Any]


def find_case(name: str) -> Case:
    if name == "lenet":
        source = "MNIST" if mnist_file("images-idx3") else "random images in place of MNIST (BNN_PYRO_DATA)"
        dim = sum(prod(shape) + outputs(name) for name, shape in SHAPES.items())
        title = f"lenet: 5x5 6, 5x5 16, 120-84-10 relu, categorical, {IMAGES} of {source}, {dim} latent numbers"
        return Case(title, True, 128, load_images, lambda: lenet_in_pyro, lenet_in_numpyro, lenet_in_torch)
    problem, batch = PROBLEMS[name], {"mlp1": None, "mlp2": None, "digits": 128}[name]

    def load() -> tuple[np.ndarray, np.ndarray]:
        rows = load_rows(problem)
        return rows.x, rows.y

    makers = (partial(make, problem) for make in (pyro_program, numpyro_model, dense_in_torch))
    return Case(str(problem), problem.likelihood == "categorical", batch, load, *makers)


CASES = ("mlp1", "mlp2", "digits", "lenet")


def dense_in_torch(problem: Problem) -> Any:
    import torch

    layers: list[Any] = []
    for _, a, b in problem.layers:
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


def mnist_file(what: str) -> Path | None:
    path = Path(os.environ.get("BNN_PYRO_DATA", "")) / "mnist" / f"train-{what}-ubyte.gz"
    return path if path.is_file() else None


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """x (n, 1, 28, 28) from 0 to 1 and labels (n,); without the files, noise of that shape, which takes as long."""
    images, labels = mnist_file("images-idx3"), mnist_file("labels-idx1")
    if images is None or labels is None:
        rng = np.random.default_rng(0)
        return rng.random((IMAGES, 1, 28, 28), np.float32), rng.integers(10, size=IMAGES)
    with gzip.open(images) as file:
        pixels = np.frombuffer(file.read(16 + IMAGES * 784)[16:], np.uint8)
    with gzip.open(labels) as file:
        y = np.frombuffer(file.read(8 + IMAGES)[8:], np.uint8)
    return pixels.reshape(-1, 1, 28, 28).astype(np.float32) / 255, y.astype(np.int64)


def outputs(name: str) -> int:
    """Of a layer, whose filters come first in the shape, and whose dense outputs come last."""
    shape = SHAPES[name]
    return shape[0] if len(shape) == 4 else shape[1]


def fan_in(name: str) -> int:
    return prod(SHAPES[name]) // outputs(name)


def lenet_in_pyro(x: Any, y: Any = None) -> None:
    import pyro
    import pyro.distributions as dist
    import torch
    from torch.nn.functional import conv2d, max_pool2d, relu

    def layer(i: int) -> tuple[Any, Any]:
        shape, outs = SHAPES[f"w{i}"], outputs(f"w{i}")
        w = pyro.sample(f"w{i}", dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))
        bias = pyro.sample(f"b{i}", dist.Normal(0.0, 1.0).expand([outs]).to_event(1))
        return w * sqrt(1 / fan_in(f"w{i}")), bias

    h = max_pool2d(relu(conv2d(x, *layer(1), padding=2)), 2)
    h = max_pool2d(relu(conv2d(h, *layer(2))), 2).flatten(1)
    for i in (3, 4, 5):
        w, bias = layer(i)
        h = h @ w + bias
        h = torch.relu(h) if i < 5 else h
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Categorical(logits=h), obs=y)


def lenet_in_numpyro() -> Callable:
    import jax
    import numpyro
    import numpyro.distributions as dist

    def layer(i: int) -> tuple[Any, Any]:
        shape, outs = SHAPES[f"w{i}"], outputs(f"w{i}")
        w = numpyro.sample(f"w{i}", dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))
        bias = numpyro.sample(f"b{i}", dist.Normal(0.0, 1.0).expand([outs]).to_event(1))
        return w * sqrt(1 / fan_in(f"w{i}")), bias

    def convolve(h: Any, i: int, padding: str) -> Any:
        w, bias = layer(i)
        h = jax.nn.relu(jax.lax.conv_general_dilated(h, w, (1, 1), padding) + bias[:, None, None])
        return jax.lax.reduce_window(h, -jax.numpy.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def model(x: Any, y: Any = None) -> None:
        h = convolve(convolve(x, 1, "SAME"), 2, "VALID").reshape(len(x), -1)
        for i in (3, 4, 5):
            w, bias = layer(i)
            h = h @ w + bias
            h = jax.nn.relu(h) if i < 5 else h
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=h), obs=y)

    return model


def lenet_in_torch() -> Any:
    from torch import nn

    convolutions = (nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5))
    layers = [part for layer in convolutions for part in (layer, nn.ReLU(), nn.MaxPool2d(2))]
    dense = [part for a, b in ((400, 120), (120, 84), (84, 10)) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), *dense[:-1])


def with_samples(network: Any, labels: bool) -> Any:
    """A torch network as Pyro's users make it Bayesian: its weights and biases become PyroSample."""
    import pyro
    import pyro.distributions as dist
    from pyro.nn import PyroModule, PyroSample
    from pyro.nn.module import to_pyro_module_

    class Bayesian(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            to_pyro_module_(self.network)
            for layer in self.network:
                if hasattr(layer, "weight"):
                    shape = layer.weight.shape
                    sd = prod(shape[1:]) ** -0.5
                    layer.weight = PyroSample(dist.Normal(0.0, sd).expand(shape).to_event(len(shape)))
                    layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand(shape[:1]).to_event(1))

        def forward(self, x: Any, y: Any = None) -> None:
            out = self.network(x)
            if labels:
                likelihood: Any = dist.Categorical(logits=out)
            else:
                likelihood = dist.Normal(out.squeeze(-1), pyro.sample("sigma", dist.HalfNormal(1.0)))
            with pyro.plate("data", len(x)):
                pyro.sample("y", likelihood, obs=y)

    return Bayesian()
