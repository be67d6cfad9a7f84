"""The layers that a program's rows go through: their weights, what comes in, and what the output does to the likelihood.

Of a layer with inputs a and pre-activations s = a W + b, the gradient with respect to W is a g^T, g the gradient with
respect to s; the curvature of W is a sum over rows of products of a a^T and g g^T, which ``factors`` approximates by a product
of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from bnn_pyro.outputs import outputs
from bnn_pyro.products import Products, Weight
from bnn_pyro.target import Target, constrain_site


@dataclass(frozen=True)
class Layer:
    """A product of rows and a weight, and the bias that is added to it.

    Attributes:
        site, bias: Names of latent sites; ``bias`` is None where none is added.
        inputs: (n, places, a), of each row at each place that shares the weight; 1 for a bias comes last.
        index: (a, g): where each entry of (W; b) stands in z.
        scale: (a,): what entries of z are multiplied by to become those of (W; b), the same along a row of the matrix.
        shape: Of the product.
        channels: The axis of the product's outputs.
        patch: Rows of the matrix that belong to one input: more than 1 for a channel of an image.
    """

    site: str
    bias: str | None
    inputs: Tensor
    index: Tensor
    scale: Tensor
    shape: torch.Size
    channels: int
    patch: int = 1


class _Watch(Products):
    """Notes each product; ``shifts`` are added to the products, in order, if there are any."""

    def __init__(self, shifts: Sequence[Tensor] = ()):
        super().__init__()
        self.layers: list[Layer] = []
        self._shifts = shifts
        self._of: dict[int, int] = {}  # by id of a product: its layer

    def takes(self, x: Tensor, weight: Weight, channels: int) -> bool:
        return True

    def multiply(self, x: Tensor, weight: Weight, product: Callable[..., Tensor], channels: int) -> Tensor:
        out = product(x, weight.value)
        assert weight.place is not None, "follow was given it"
        if channels == -1:
            place, linear, inputs = weight.place, weight.linear, x.reshape(len(x), -1, x.shape[-1])
            if place.ndim == 1:  # x w
                place, linear = place[:, None], linear[:, None]
            elif product is not torch.matmul:  # functional.linear
                place, linear = place.mT, linear.mT
        else:
            place, linear, inputs = _unfolded(x, weight, product)
        if self._shifts:
            out = out + self._shifts[len(self.layers)]
        self._of[id(out)] = len(self.layers)
        scale = linear[:, 0] if bool((linear == linear[:, :1]).all()) else linear.new_full((len(linear),), torch.nan)
        patch = 1 if channels == -1 else weight.value.shape[2:].numel()
        self.layers.append(Layer(weight.site, None, inputs.detach(), place, scale, out.shape, channels, patch))
        return out

    def add(self, out: Tensor, bias: Tensor, weight: Weight | None, shape: list[int]) -> Tensor:
        at = self._of.get(id(out))
        result = out + bias.reshape(shape)
        if at is not None and weight is not None and weight.place is not None and bias.ndim <= 1:
            layer = self.layers[at]
            places, scales = weight.place.reshape(-1), weight.linear.reshape(-1)
            if len(places) == layer.index.shape[1] and bool((scales == scales[0]).all()):
                one = torch.ones_like(layer.inputs[..., :1])
                self.layers[at] = replace(
                    layer,
                    bias=weight.site,
                    inputs=torch.cat([layer.inputs, one], -1),
                    index=torch.cat([layer.index, places[None]]),
                    scale=torch.cat([layer.scale, scales[:1]]),
                )
        return result


def _unfolded(x: Tensor, weight: Weight, product: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution as a product of patches: places and scales (a, g) of its weight, and patches (n, places, a)."""
    settings = dict(zip(("stride", "padding", "dilation", "groups"), product.args, strict=False)) | product.keywords
    if settings.pop("groups", 1) != 1 or isinstance(settings.get("padding", 0), str):
        raise NotImplementedError("a convolution in groups or with padding by name is no product of patches here")
    assert weight.place is not None, "follow was given it"
    patches = torch.nn.functional.unfold(x, weight.place.shape[2:], **settings)
    place, linear = (t.reshape(len(t), -1).mT for t in (weight.place, weight.linear))
    return place, linear, patches.mT


def _run(target: Target, mode: Tensor, shifts: Sequence[Tensor]) -> tuple[Tensor, list[Layer], dict[str, list[str]]]:
    """The likelihood's free parameters (n, k) at the target's rows, the layers on the way, and how weights were used."""
    watch = _Watch(shifts)
    parts = target.parts(mode)
    sites = {s.name: s for s in target.sites}

    def latent(name: str, fn: Any) -> tuple[Tensor, Tensor]:
        value, log_jacobian = constrain_site(fn, parts[name])
        # in its own units, so that what scales it later is all there is; a value for each row is no weight
        if value is parts[name] and not sites[name].by_row:
            place = torch.arange(sites[name].start, sites[name].stop, device=value.device).reshape(value.shape)
            watch.follow(name, value, linear=torch.ones_like(value), place=place)
        return value, log_jacobian

    with watch:
        fn = target.conditional(latent, target.x)
    assert target.predicted is not None and target.predicted.dim is not None, "checked by check_outputs"
    return outputs(fn, target.predicted.dim).eta, watch.layers, watch.uses


def layers(target: Target, mode: Tensor) -> list[Layer]:
    """The layers in the order in which rows go through them: those whose weights are used for nothing else."""
    with torch.no_grad():
        _, found, uses = _run(target, mode, ())
    once = {site for site, how in uses.items() if how == ["rows"]}
    names = [{layer.site} | ({layer.bias} if layer.bias else set()) for layer in found]
    return [
        layer
        for layer, sites in zip(found, names, strict=True)
        if sites <= once and bool(torch.isfinite(layer.scale).all())
    ]


def factors(target: Target, mode: Tensor, roots: Tensor, wanted: Sequence[Layer]) -> list[tuple[Tensor, Tensor]]:
    """For each layer (A, G), (a, a) and (g, g), whose product approximates the Gauss-Newton matrix of its entries of z.

    A = sum over rows and places of a a^T;  G = mean over them of g g^T, summed over the likelihood's parameters.
    Exact where g g^T is the same for all rows, as in the last layer of a regression with a fixed noise.

    Args:
        roots: (n, k, k), of the information that y has of its parameters: ``curvature.likelihood_parameters``.
    Source: Martens & Grosse 2015, arXiv:1503.05671; of convolutions, Grosse & Martens 2016, arXiv:1602.01407.
    """
    _, every, _ = _run(target, mode, ())
    zeros = [torch.zeros(layer.shape, dtype=mode.dtype, device=mode.device) for layer in every]
    pull: Any = vjp(lambda *shifts: _run(target, mode, shifts)[0], *zeros)[1]
    gradients = vmap(pull)(roots.permute(2, 0, 1))  # by layer: (k, n, ...), of what each parameter's root weighs
    by_site = {layer.site: g for layer, g in zip(every, gradients, strict=True)}
    found = []
    for layer in wanted:
        inputs = (layer.inputs * layer.scale).reshape(-1, layer.inputs.shape[-1])
        g = by_site[layer.site].movedim(1 + layer.channels % len(layer.shape), -1)
        g = g.reshape(-1, layer.index.shape[1])
        found.append((inputs.mT @ inputs, g.mT @ g / len(inputs)))
    return found
