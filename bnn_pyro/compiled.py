"""A target's log density and gradient for many chains at once, compiled where that pays.

The program is traced once (``graphs``), so that handlers, plates and distribution objects cost nothing per gradient.
Larger problems go through inductor: ``COMPILE_FROM`` states the rule, by model size and rows only, never by draws, chains
or the clock, so that the same call gives the same draws. Whatever is used is checked against the program before; what
fails the check, or cannot be traced or compiled, is not used, and ``reason`` says why.

Chains go through in blocks (``blocks``) of a size that the sampler, the model and its rows decide.
Threads share a block's chains, which leaves each chain's sums as they are; whether it does is checked, too. So they may be
as many as are faster at the time (``pace``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from bnn_pyro.batching import bytes_made
from bnn_pyro.blocks import in_blocks, padded
from bnn_pyro.errors import warn
from bnn_pyro.graphs import normal_priors, trace
from bnn_pyro.inductor import Compiled, inductor, sentence, try_compiler
from bnn_pyro.pace import FasterThreads
from bnn_pyro.recorded import NotRecordable, Recorded, can_record, record, refuse_external
from bnn_pyro.rows_last import rows_last
from bnn_pyro.simplify import spell_fills
from bnn_pyro.target import Target

BACKENDS = ("auto", "inductor", "eager", "pyro")
COMPILE_FROM = 3_000  # dim * rows: from here on, a run of usual length gains more than it takes to compile
ONE_THREAD_BELOW = 10_000_000  # dim * rows: up to here a second thread waits more than it works
# Bytes that a block's values may come to, backward pass included. Blocks this small stay in the processor's cache, and few
# chains, padded to a block, waste little.
BLOCK_BYTES = 4_000_000
BLOCK_SPILL = 200_000_000  # bytes that a block of a sampler of many chains may come to
FEW_CHAINS, MANY_CHAINS = 4, 64  # in a block
ROOM = 2  # times the sampler's usual chains that a block may hold: chains that are not there cost as much as those that are
WORK_PER_THREAD = 250_000  # dim * rows * chains of a block: another thread has to be worth waking up
SHARES = 8  # threads that a sampler of many chains has blocks of recorded calls for, in its usual number of chains
RECORDED_BYTES = 2**31  # that the calls of all threads may hold on to
ALONE_FROM = 20_000  # dim * rows: from here on, a chain is work enough for a block of recorded calls
HELD_BYTES = 32 * 2**20 - 2**16  # the most whose release teaches glibc anything
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative, graph against program

Call = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gradient:
    """``gradient(z)`` gives (gradient (c, dim), log density (c,) float64) at z (c, dim), in the target's dtype.

    ``backend`` is what runs: ``"inductor"``, ``"eager"`` (the graph as it is) or ``"pyro"`` (the program itself, chain by
    chain); ``reason`` says why a faster one is not. With ``y``, chain i has targets ``y[i]`` of its own. ``threads`` is how
    many are worth their while, at most; None for as many as torch is set to. ``graph`` is what inductor compiled to ``code``,
    which ``call`` calls. ``groups``: threads that may share chains, each making calls of its own (``recorded``); 0 for none.
    """

    call: Call
    backend: str
    block: int
    dtype: torch.dtype
    reason: str = ""
    y: Tensor | None = None
    threads: int | None = 1
    graph: Call | None = None
    code: Any = None
    groups: int = 0

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.to(self.dtype).contiguous()  # compiled code takes it as it lies
        count = z.shape[0]
        args = (z,) if self.y is None else (z, self.y[:count])
        if self.backend == "pyro":  # which takes chain by chain anyway
            return self.call(*args)
        call = self.graph if self.graph is not None and get_proxy_mode() is not None else self.call
        grad, value = in_blocks(call, self.block, *args)
        return grad, value

    @property
    def fuses(self) -> bool:
        """Whether what calls it may be compiled with it: traced, it is ``graph``, which inductor has compiled before."""
        return self.graph is not None

    def recorded(self, z: Tensor) -> Recorded | None:
        """The calls that a block's gradient comes down to, where these can be made without Python; z (c, dim) is an example."""
        if not isinstance(self.code, Compiled) or self.y is not None or z.device.type != "cpu":
            return None
        made = record(self.code.code, padded(z[: self.block].to(self.dtype), self.block), *self.code.tensors)
        if made is None:
            return None
        grad, density = made.results
        as_expected = grad.shape == made.argument.shape and grad.dtype == self.dtype
        as_expected &= density.shape == grad.shape[:1] and density.dtype == torch.float64 and density.is_contiguous()
        return made if as_expected else None


def threads_for(target: Target) -> int | None:
    """Threads for the program as it is: one below ``ONE_THREAD_BELOW``, else as many as torch is set to (None)."""
    return 1 if target.dim * target.n < ONE_THREAD_BELOW else None


def block_for(target: Target, z: Tensor, chains: int, most: int = MANY_CHAINS) -> int:
    """Chains in a block: a power of two, by how much memory one chain's values take at z (dim,).

    ``chains``, the sampler's usual number, is the least, unless they take more than ``BLOCK_SPILL`` bytes; ``most`` is the
    most.
    """
    each = 3 * bytes_made(lambda: target.log_density(z))
    fits = BLOCK_BYTES // each
    least = chains if chains * each <= BLOCK_SPILL else min(chains, FEW_CHAINS)
    return min(max(2 ** (fits.bit_length() - 1) if fits else 0, least), most)


def members_in_block(members: int, each: int) -> int:
    """The largest divisor of ``members`` of which a block fits, where one takes ``each`` bytes; or of up to ``FEW_CHAINS``."""
    most = max(BLOCK_BYTES // each, FEW_CHAINS)
    return max(size for size in range(1, min(members, most) + 1) if members % size == 0)


def compile_gradient(
    target: Target,
    points: Tensor,
    backend: str = "auto",
    y: Tensor | None = None,
    block: int | None = None,
    chains: int = FEW_CHAINS,
    to_record: bool = False,
) -> Gradient:
    """The fastest form of ``target.log_density`` and its gradient that agrees with the program at ``points`` (k, dim).

    Call it inside ``isolated(dtype=target.dtype)``, and use it there with ``threads`` of what it returned.

    Args:
        y: Targets of each chain's own, (chains, n, ...), with at least k chains.
        block: Chains in a block; None for the rule.
        chains: The sampler's usual number, never this run's: see ``block_for``.
        to_record: Not to be compiled if its calls cannot be ``recorded`` for sure.
    Raises: NotRecordable, with ``to_record``.
    """
    points = points.to(target.dtype)
    if backend == "auto":
        backend = "inductor" if target.dim * target.n >= COMPILE_FROM else "eager"
    if backend == "inductor" and target.device.type == "cpu":
        try_compiler()
    size = block or block_for(target, points[0], chains, min(ROOM * chains, MANY_CHAINS))
    program = Gradient(_one_by_one(target), "pyro", size, target.dtype, y=y, threads=threads_for(target))
    if backend == "pyro":
        return program
    example = (padded(points[:1], size),) if y is None else (padded(points[:1], size), padded(y[:1], size))
    try:
        graph = trace(target, normal_priors(target), *example)
        eager = _checked(replace(program, call=_without_grad(graph), backend="eager"), program, points)
    except Exception as error:  # tracing runs a user's program on symbolic tensors: anything may be raised
        return replace(program, reason=f"the program cannot be traced: {sentence(error)}")
    if backend == "eager":
        return eager
    if to_record:
        refuse_external(graph)
    try:
        graph = rows_last(spell_fills(graph))
        code = inductor(graph, example)
        fast = replace(program, call=_without_grad(code), backend="inductor", threads=1, graph=graph, code=code)
        fast = _checked(fast, program, points)
        _hold_freed_memory()
    except Exception as error:  # a missing C++ compiler, an operation without a lowering, a wrong result
        return replace(eager, reason=f"inductor failed: {sentence(error)}")
    threads = min(target.dim * target.n * size // WORK_PER_THREAD, size)
    if (
        target.device.type == "cpu"
        and threads > 1
        and _same_on_threads(fast, points, min(threads, os.cpu_count() or 1))
    ):
        return replace(fast, threads=threads, call=FasterThreads(fast.call))
    return fast


def compile_for_groups(
    target: Target, points: Tensor, backend: str = "auto", y: Tensor | None = None, **options: Any
) -> Gradient:
    """``compile_gradient`` in blocks of a few chains, for threads to have some each, if its calls can be recorded.

    Without Python in between, a chain takes nearly as little time in a block of a few as in a larger one: alone, but for the
    smallest problems.
    """
    work = target.dim * target.n
    compiles = backend == "inductor" or (backend == "auto" and work >= COMPILE_FROM)
    if compiles and can_record():
        few = (
            1 if work >= ONE_THREAD_BELOW else max(options.get("chains", FEW_CHAINS) // SHARES, 1 + (work < ALONE_FROM))
        )
        with suppress(NotRecordable):
            made = compile_gradient(target, points, backend, y, **{**options, "block": few, "to_record": True})
            if recorded := made.recorded(points):
                return replace(made, groups=max(1, RECORDED_BYTES // recorded.bytes))
    return compile_gradient(target, points, backend, y, **options)


def _hold_freed_memory() -> None:
    """Has glibc keep up to 64 MB of what is freed, as it does where a large tensor has come and gone.

    Until it has seen one, it hands a block's values back to the system after each gradient, and to have them zeroed and mapped
    again, page by page, takes as long as the arithmetic. Other allocators don't mind.
    """
    torch.empty(HELD_BYTES, dtype=torch.uint8)


def _same_on_threads(gradient: Gradient, points: Tensor, most: int) -> bool:
    """Whether each bit is the same on one thread, two and ``most``, for a block of unlike points near ``points``."""
    before, results = torch.get_num_threads(), []
    count = gradient.block if gradient.y is None else min(gradient.block, len(gradient.y))
    points = points.repeat(-(-count // len(points)), 1)[:count]
    points = points * torch.linspace(0.5, 1.5, len(points), dtype=points.dtype, device=points.device)[:, None]
    try:
        for threads in sorted({1, 2, most}):
            torch.set_num_threads(threads)
            results.append(gradient(points))
    finally:
        torch.set_num_threads(before)
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for other in results[1:]
        for a, b in zip(results[0], other, strict=True)
    )


def warn_of_backend(gradient: Gradient, name: str) -> None:
    """Warns that ``name``'s gradients come from a slower backend than was asked for, and why; not where they don't."""
    if gradient.reason:
        warn(f"{name}: {gradient.reason}. Gradients come from backend {gradient.backend!r}, which is slower.")


def _without_grad(graph: Callable) -> Call:
    def call(z: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            grad, value = graph(z, *y)
            return grad, value

    return call


def _one_by_one(target: Target) -> Call:
    """The program as it is, with torch's own autograd."""

    def call(z: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        results = [one(chain, *own) for chain, *own in zip(z, *y, strict=True)]
        return torch.stack([grad for grad, _ in results]), torch.stack([value for _, value in results])

    def one(z: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            try:
                value = target.log_density(z, *y)
                (grad,) = torch.autograd.grad(value, z)
            except torch.linalg.LinAlgError:  # far out a covariance may be singular; there a chain turns back
                return torch.full_like(z, torch.nan), z.new_full((), torch.nan, dtype=torch.float64)
        return grad, value.detach()

    return call


def _checked(fast: Gradient, program: Gradient, points: Tensor) -> Gradient:
    difference = relative_difference(fast(points), program(points))
    if difference > TOLERANCE[fast.dtype]:
        raise ArithmeticError(f"it differs from the program by {difference:.1e}, relative")
    return fast


def relative_difference(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Largest difference of tensors (points, ...), relative to each point's size; equal NaNs and infinities count as 0."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        a, b = a.double().reshape(len(a), -1), b.double().reshape(len(b), -1)
        same = torch.isclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        size = b.abs().nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True).clamp(min=1.0)
        gap = torch.where(same, torch.zeros_like(a), (a - b).abs() / size).max()
        worst = max(worst, float("inf") if torch.isnan(gap) else float(gap))
    return worst
