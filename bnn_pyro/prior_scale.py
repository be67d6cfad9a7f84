"""A program whose Normal priors are wider or narrower than it states, by a factor for each site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyro.distributions import Normal
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent

from bnn_pyro.target import Program, Target


class _Scale(Messenger):
    def __init__(self, factors: Mapping[str, float]):
        super().__init__()
        self._factors = factors

    def _pyro_sample(self, msg: Any) -> None:
        factor = self._factors.get(msg["name"])
        if factor is not None:
            msg["fn"] = _scaled(msg["fn"], factor)


def _scaled(fn: Any, factor: float) -> Any:
    if isinstance(fn, Independent):
        return _scaled(fn.base_dist, factor).to_event(fn.reinterpreted_batch_ndims)
    return Normal(fn.loc, fn.scale * factor)


@dataclass(frozen=True)
class _ScaledProgram:
    program: Program
    factors: Mapping[str, float]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Scale(self.factors):
            return self.program(*args, **kwargs)


def with_prior_sds(target: Target, factors: Mapping[str, float]) -> Target:
    """The target with the sds of Normal priors multiplied by ``factors``, by site; the target itself for none."""
    return replace(target, program=_ScaledProgram(target.program, dict(factors))) if factors else target
