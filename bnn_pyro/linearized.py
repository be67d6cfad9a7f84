"""A target whose network is linear in its weights around a mode: what a Laplace approximation predicts by.

    eta(z, x) ~ eta(m, x) + J(x) (z - m),  y ~ p(y | eta)

with eta the likelihood's free parameters (``outputs``) and J their Jacobian at the mode m. The Gauss-Newton Hessian of the
program is the exact Hessian of this one, so that the approximation is at home here; the network itself may be far off at
draws of the weights. Source: Immer, Korzepa & Bauer 2021, arXiv:2008.08400, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from bnn_pyro.data import Inputs
from bnn_pyro.errors import ModelError
from bnn_pyro.isolation import isolated
from bnn_pyro.likelihoods import sum_to_rows
from bnn_pyro.outputs import Outputs, check_remade, outputs
from bnn_pyro.target import Evaluation, Observation, Target


@dataclass(frozen=True)
class LinearizedTarget(Target):
    """``Target`` whose distribution of y at z is that of parameters linear in z; ``mode`` (dim,) is where they touch.

    Prior, latent values and deterministic sites are the program's own.
    """

    mode: Tensor = field(kw_only=True)

    def forward(self, z: Tensor, x: Inputs) -> Any:
        found, change = self._along(z, x)
        return found.make(found.eta + change)

    def evaluate(self, z: Tensor, x: Inputs | None = None, y: Tensor | None = None) -> Evaluation:
        result = super().evaluate(z, x, y)
        site = self._site()
        fn = self.forward(z, self.x if x is None else x)
        y = (self.y if y is None else y).to(self.dtype)
        assert site.dim is not None, "checked by linearize"
        terms = {site.name: sum_to_rows(fn.log_prob(y), site.dim)}
        return replace(result, log_likelihood=result.log_likelihood | terms, conditionals={site.name: fn})

    def _along(self, z: Tensor, x: Inputs) -> tuple[Outputs, Tensor]:
        """The outputs at the mode, and how far they move by the tangent from there to z."""
        made: list[Outputs] = []

        def eta(z: Tensor) -> Tensor:
            found = self.outputs_at(z, x)
            made[:] = [found]
            return found.eta

        along: Any = jvp(eta, (self.mode,), (z.to(self.dtype) - self.mode,))
        here, change = along
        return Outputs(here, made[0].make), change

    def outputs_at(self, z: Tensor, x: Inputs) -> Outputs:
        """The program's own parameters of y at z."""
        return outputs_at(self, z, x)

    def _site(self) -> Observation:
        assert self.predicted is not None, "checked by linearize"
        return self.predicted


def outputs_at(target: Target, z: Tensor, x: Inputs) -> Outputs:
    """The likelihood's free parameters at rows x given z (dim,). Raises: NotImplementedError where it has none to take out."""
    assert target.predicted is not None and target.predicted.dim is not None, "checked by check_outputs"
    return outputs(Target.forward(target, z, x), target.predicted.dim)


def check_outputs(target: Target, z: Tensor) -> str:
    """Why the likelihood's parameters cannot be told from y's noise; nothing where they can."""
    site = target.predicted
    if site is None:
        return "the program observes several sites"
    if site.dim is None:
        return "it observes all rows jointly"
    factors = [o.name for o in target.observed if o.factor]
    if factors:
        return f"pyro.factor {factors[0]!r} stands among the rows, which has no parameters"
    with isolated(dtype=target.dtype), torch.no_grad():
        try:
            result = target.evaluate(z)
            if site.name in result.scaled | result.masked:
                return f"site {site.name!r} stands inside poutine.scale or poutine.mask"
            fn = Target.forward(target, z, target.x)
            check_remade(outputs(fn, site.dim), fn, target.y.to(target.dtype))
        except NotImplementedError as error:
            return str(error)
    return ""


def linearize(target: Target, mode: Tensor) -> LinearizedTarget:
    """The target that is linear around ``mode`` (dim,). Raises: ModelError where ``check_outputs`` says why not."""
    reason = check_outputs(target, mode)
    if reason:
        raise ModelError(f"{target.name}: expected a likelihood whose parameters can be linearised, but {reason}.")
    return LinearizedTarget(**{f.name: getattr(target, f.name) for f in fields(Target)}, mode=mode)
