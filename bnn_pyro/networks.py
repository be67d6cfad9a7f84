"""Multilayer perceptrons as Pyro statements: weights drawn layer by layer, and the function that they make.

    h_0 = x,  h_l = activation(h_{l-1} W_l + b_l),  output = h_{L-1} W_L + b_L
    W_l = scale * w_l / sqrt(fan_in),  w_l ~ Normal(0, 1),  b_l ~ Normal(0, 1)

Dividing by the root of the fan-in keeps the spread of the function, under the prior, the same for any width (Neal 1996).
Weights are drawn in standard form and scaled afterwards, so that the posterior's geometry does not depend on the width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bnn_pyro.errors import OptionError

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}
Layers = list[tuple[Tensor, Tensor]]


def sample_layers(sizes: Sequence[int], scale: float | Tensor = 1.0) -> Layers:
    """Draws sites ``w1``, ``b1``, ``w2``, ...: W_l (fan_in, fan_out), scaled as above, and b_l (fan_out,) for each layer.

    Args:
        sizes: Inputs, units of each hidden layer, outputs.
        scale: Of all weights: a number, or a site.
    """
    return [
        (
            scale * pyro.sample(f"w{i}", dist.Normal(0.0, 1.0).expand([a, b]).to_event(2)) / max(a, 1) ** 0.5,
            pyro.sample(f"b{i}", dist.Normal(0.0, 1.0).expand([b]).to_event(1)),
        )
        for i, (a, b) in enumerate(zip(sizes, sizes[1:]), 1)
    ]


def mlp(x: Tensor, layers: Layers, activation: str) -> Tensor:
    """The network's output (n, outputs) at rows x (n, d)."""
    *inner, (w, b) = layers
    for w_i, b_i in inner:
        x = ACTIVATIONS[activation](x @ w_i + b_i)  # (n, fan_in) -> (n, fan_out)
    return x @ w + b


def layer_dims(hidden: Sequence[int], output: str = "output") -> dict[str, tuple[str, ...]]:
    """Names for the axes of the sites of ``sample_layers``."""
    layers = ("feature", *(f"hidden_{i}" for i in range(1, len(hidden) + 1)), output)
    pairs = enumerate(zip(layers, layers[1:]), 1)
    return {k: v for i, (a, b) in pairs for k, v in ((f"w{i}", (a, b)), (f"b{i}", (b,)))}


def as_layers(hidden: Any) -> Any:
    """One number of units as a layer of so many, a list as a tuple."""
    if isinstance(hidden, int) and not isinstance(hidden, bool):
        return (hidden,)
    return tuple(hidden) if isinstance(hidden, list) else hidden


def check_layers(name: str, hidden: Sequence[int], activation: str, fewest: int = 1) -> None:
    """Raises: OptionError for hidden layers or an activation that ``name`` cannot take."""
    given = isinstance(hidden, tuple | list) and len(hidden) >= fewest
    if not given or not all(isinstance(h, int) and not isinstance(h, bool) and h > 0 for h in hidden):
        none = " No hidden layer is ()." if fewest == 0 else ""
        raise OptionError(
            f"{name}, hidden: expected a tuple of whole numbers above 0, got {hidden!r}. One layer of 50 units is (50,)."
            + none
        )
    if activation not in list(ACTIVATIONS):  # a list, as what was given may not be hashable
        raise OptionError(f"{name}, activation: expected {' or '.join(map(repr, ACTIVATIONS))}, got {activation!r}.")


def check_positive(name: str, **values: float) -> None:
    """Raises: OptionError for a hyper-parameter that is no positive, finite number."""
    for option, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise OptionError(f"{name}, {option}: expected a positive number, got {value!r}.")
