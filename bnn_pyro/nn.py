"""Bayesian layers as Pyro modules, and a guide of a mean and a log standard deviation for each weight.

    prior:      W ~ Normal(0, sd),  sd = 1 / sqrt(fan_in) unless given;  b ~ Normal(0, 1)
    posterior:  W = mean + exp(log_sd) * noise,  noise ~ Normal(0, 1)

Layers hold the prior and go into any ``PyroModule`` like torch's; a call draws their weights anew, or takes those that
inference has at hand. The guide holds the posterior: ``bnn.BNN(model, guide=bnn.nn.MeanField)``, or ``guide=`` of ``SVI``.
Source: Blundell et al. 2015, arXiv:1505.05424, section 3.2; Kingma & Welling 2014, arXiv:1312.6114, section 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from bnn_pyro.errors import OptionError
from bnn_pyro.guides import init_to_prior
from bnn_pyro.target import Program

__all__ = ["BayesianConv2d", "BayesianEmbedding", "BayesianGRUCell", "BayesianLayerNorm", "BayesianLinear", "MeanField"]

LOG_SD = -5.0  # where the guide's log sd starts: weights are nearly fixed at first, so that the network can learn


class MeanField(AutoNormal):
    """An independent normal for each weight: ``locs.<site>`` are means, and the parameters of ``scales.<site>`` log sds.

    Means start at a draw of the prior: zero would be a symmetric start, in which all units of a layer stay equal.
    """

    # its unconstrained value is the log
    scale_constraint = constraints.positive  # type: ignore[assignment]

    def __init__(self, model: Program, log_sd: float = LOG_SD):
        super().__init__(model, init_loc_fn=init_to_prior, init_scale=math.exp(log_sd))


class _Layer(PyroModule):
    """``weight`` and ``bias`` with their priors, built anew at each call, so that they follow the default dtype."""

    def _add(self, name: str, shape: Sequence[int], sd: float, mean: float = 0.0) -> None:
        events = len(shape)
        setattr(self, name, PyroSample(lambda _: dist.Normal(mean, sd).expand(torch.Size(shape)).to_event(events)))

    def _sd(self, prior_sd: float | None, fan_in: int) -> float:
        if prior_sd is None:
            return 1 / math.sqrt(max(fan_in, 1))
        if isinstance(prior_sd, bool) or not isinstance(prior_sd, int | float) or not 0 < prior_sd < math.inf:
            raise OptionError(f"{type(self).__name__}, prior_sd: expected a positive number or None, got {prior_sd!r}.")
        return float(prior_sd)


class BayesianLinear(_Layer):
    """x W^T + b, as ``torch.nn.Linear``: (..., in_features) -> (..., out_features).

    Args:
        prior_sd: Prior standard deviation of each weight; None for 1 / sqrt(in_features).
        bias_sd: That of each bias; None for no bias.
    """

    def __init__(self, in_features: int, out_features: int, prior_sd: float | None = None, bias_sd: float | None = 1.0):
        super().__init__()
        self._add("weight", (out_features, in_features), self._sd(prior_sd, in_features))
        self.bias = None
        if bias_sd is not None:
            self._add("bias", (out_features,), self._sd(bias_sd, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class BayesianConv2d(_Layer):
    """A convolution as ``torch.nn.Conv2d``: (n, in_channels, height, width) -> (n, out_channels, ...).

    Args:
        kernel_size, stride, padding: As there; one number for both axes.
        prior_sd: As for ``BayesianLinear``, with a fan-in of in_channels times the kernel's places.
        bias_sd: That of each channel's bias; None for no bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        prior_sd: float | None = None,
        bias_sd: float | None = 1.0,
    ):
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self._add("weight", shape, self._sd(prior_sd, in_channels * kernel_size**2))
        self.bias = None
        if bias_sd is not None:
            self._add("bias", (out_channels,), self._sd(bias_sd, 1))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)


class BayesianEmbedding(_Layer):
    """A vector for each of ``num_embeddings`` integers, as ``torch.nn.Embedding``: (...) -> (..., embedding_dim).

    Args:
        prior_sd: Prior standard deviation of each entry; None for 1.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, prior_sd: float | None = None):
        super().__init__()
        self._add("weight", (num_embeddings, embedding_dim), self._sd(prior_sd, 1))

    def forward(self, index: Tensor) -> Tensor:
        return functional.embedding(index.long(), self.weight)


class BayesianLayerNorm(_Layer):
    """Normalisation with uncertain gain and shift, as ``torch.nn.LayerNorm``: (..., features) -> (..., features).

    Args:
        prior_sd: Prior standard deviation of each feature's gain around 1.
        bias_sd: That of each feature's shift around 0; None for no shift.
        eps: Added to the variance over features.
    """

    def __init__(self, features: int, prior_sd: float = 0.5, bias_sd: float | None = 1.0, eps: float = 1e-5):
        super().__init__()
        self._add("weight", (features,), self._sd(prior_sd, 1), mean=1.0)
        self.bias = None
        if bias_sd is not None:
            self._add("bias", (features,), self._sd(bias_sd, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        return functional.layer_norm(x, weight.shape, weight, self.bias, self.eps)


class BayesianGRUCell(_Layer):
    """A gated recurrent unit as ``torch.nn.GRUCell``: input (n, input_size) and state (n, hidden_size) -> the next state.

    Called in a loop inside one model, it has the same weights at each step.

    Args:
        prior_sd: Prior standard deviation of each weight; None for 1 / sqrt(fan_in).
        bias_sd: That of each bias; None for no bias.
    """

    def __init__(self, input_size: int, hidden_size: int, prior_sd: float | None = None, bias_sd: float | None = 1.0):
        super().__init__()
        self.hidden_size = hidden_size
        self._add("weight_ih", (3 * hidden_size, input_size), self._sd(prior_sd, input_size))
        self._add("weight_hh", (3 * hidden_size, hidden_size), self._sd(prior_sd, hidden_size))
        self.bias_ih, self.bias_hh = None, None
        if bias_sd is not None:
            for name in ("bias_ih", "bias_hh"):
                self._add(name, (3 * hidden_size,), self._sd(bias_sd, 1))

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        if state is None:
            state = x.new_zeros(x.shape[0], self.hidden_size)
        given = functional.linear(x, self.weight_ih, self.bias_ih).chunk(3, -1)
        kept = functional.linear(state, self.weight_hh, self.bias_hh).chunk(3, -1)
        reset, update = ((a + b).sigmoid() for a, b in zip(given[:2], kept[:2], strict=True))
        new = torch.tanh(given[2] + reset * kept[2])
        return (1 - update) * new + update * state
