"""A target's log density and gradient as one graph of tensor operations, compiled where that pays.

The program is traced once (``make_fx`` over ``grad_and_value``), so that handlers, plates and distribution objects cost
nothing per gradient. Larger problems go through inductor: ``COMPILE_FROM`` states the rule, by model size and rows only,
never by draws, chains or the clock, so that the same call gives the same draws. Whatever is used is checked against the
program before; what fails the check, or cannot be traced or compiled, is not used, and ``reason`` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from bnn_pyro.target import Target

BACKENDS = ("auto", "inductor", "traced", "program")
COMPILE_FROM = 10_000  # dim * rows: from here on, a gradient takes longer to dispatch than inductor's code to run
ONE_THREAD_BELOW = (
    10_000_000  # dim * rows: up to here a second thread waits more than it works (3 times slower measured)
)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative, graph against program

Call = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gradient:
    """``gradient(z)`` gives (gradient (dim,), log density ()), both float64, at z (dim,) float64.

    Samplers keep positions in float64 whatever the target's dtype: only the program runs in that.

    ``backend`` is what runs: ``"inductor"``, ``"traced"`` (the graph as it is) or ``"program"`` (no graph could be used);
    ``reason`` says why a faster one is not.
    """

    call: Call
    backend: str
    reason: str = ""

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.call(z)


def threads_for(target: Target) -> int | None:
    """Threads for gradients of this target: one below ``ONE_THREAD_BELOW``, else as many as torch is set to (None)."""
    return 1 if target.dim * target.n < ONE_THREAD_BELOW else None


def compile_gradient(target: Target, points: Tensor, backend: str = "auto") -> Gradient:
    """The fastest form of ``target.log_density`` and its gradient that agrees with the program at ``points`` (k, dim).

    Call and use it inside ``isolated(dtype=target.dtype)``.
    """
    points = points.double()  # a graph casts as its example did
    program = grad_and_value(target.log_density)
    if backend == "program":
        return Gradient(program, backend)
    if backend == "auto":
        backend = "inductor" if target.dim * target.n >= COMPILE_FROM else "traced"
    try:
        graph = _without_detach(make_fx(lambda z: program(z))(points[0]))
        traced = _checked(graph, program, points, target.dtype)
    except Exception as error:  # tracing runs a user's program on symbolic tensors: anything may be raised
        return Gradient(program, "program", f"the program cannot be traced: {type(error).__name__}: {error}")
    if backend == "traced":
        return Gradient(traced, backend)
    try:
        return Gradient(_checked(_inductor(graph, points[0]), program, points, target.dtype), backend)
    except Exception as error:  # a missing C++ compiler, an operation without a lowering, a wrong result
        return Gradient(traced, "traced", f"inductor failed: {type(error).__name__}: {str(error).splitlines()[0]}")


def _inductor(graph: GraphModule, point: Tensor) -> Call:
    """Compiled code. ``torch._inductor.compile`` has half the cost per call of ``torch.compile``, but is private."""
    from torch import _inductor

    compile_graph = getattr(_inductor, "compile", None)
    with torch.no_grad():
        return compile_graph(graph, [point]) if compile_graph is not None else torch.compile(graph)


def _checked(fast: Call, program: Call, points: Tensor, dtype: torch.dtype) -> Call:
    def call(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            grad, value = fast(z)
        return grad, value

    difference = max(_relative_difference(call(z), program(z)) for z in points)
    if difference > TOLERANCE[dtype]:
        raise ArithmeticError(f"it differs from the program by {difference:.1e}, relative")
    return call


def _relative_difference(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Largest difference of gradients and values, relative to the size of each; equal NaNs and infinities count as 0."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        a, b = a.double(), b.double()
        same = torch.isclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        finite = b[torch.isfinite(b)]
        size = finite.abs().max().clamp(min=1.0) if finite.numel() else torch.ones(())
        gap = torch.where(same, torch.zeros_like(a), (a - b).abs() / size).max()
        worst = max(worst, float("inf") if torch.isnan(gap) else float(gap))
    return worst


def _without_detach(graph: GraphModule) -> GraphModule:
    """Drops ``detach`` nodes, which autograd leaves behind and which only cost dispatch here."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
