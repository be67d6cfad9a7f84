"""What TF32 would do to the energy of a sampler, for which it is off: leapfrog trajectories in three arithmetics.

    python benchmarks/precision.py                            # a minute
    python benchmarks/precision.py --problems digits --steps 64

Trajectories of ``--steps`` leapfrog steps start at draws of NUTS, with momenta, step sizes and mass matrix of that run. They
are taken in float64, float32, and float32 whose matrix products are in TF32: of factors rounded to 10 bits after the point,
summed in float32. A CUDA device has TF32 of its own; elsewhere factors are rounded before a float32 product, as it does.

    log density   its error at the starts against float64, root mean square, nats, without the mean: a constant moves nothing
    energy        change of the energy along a trajectory, root mean square, as the sampler sees it: all in one arithmetic
    acceptance    the rate that follows, min(1, exp(-change)), averaged
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from posteriors import PROBLEMS, load_rows, pyro_program
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NETWORKS = ("mlp1", "mlp2", "digits")
CHAINS, WARMUP, DRAWS = 4, 300, 32
DROPPED = 13  # of float32's 23 bits after the point
aten = torch.ops.aten
FACTORS = {aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.addmm.default: (1, 2), aten.baddbmm.default: (1, 2)}


def rounded(factor: Tensor) -> Tensor:
    """To the nearest number of TF32, ties to even; float32 as before."""
    bits = factor.contiguous().view(torch.int32)
    half = (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
    return ((bits + half) & -(1 << DROPPED)).view(torch.float32)


class RoundedProducts(TorchDispatchMode):
    """Inside it, factors of float32 products have TF32's digits."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = list(args)
        for place in FACTORS.get(function, ()):
            if args[place].dtype == torch.float32:
                args[place] = rounded(args[place])
        return function(*args, **(kwargs or {}))


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        with RoundedProducts():
            yield
        return
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def measure(name: str, steps: int, device: torch.device) -> dict[str, tuple[float, float, float]]:
    """By arithmetic: error of the log density, change of the energy, acceptance rate."""
    import bnn_pyro as bnn
    from bnn_pyro.compiled import compile_gradient
    from bnn_pyro.isolation import isolated

    program, rows = pyro_program(PROBLEMS[name]), load_rows(PROBLEMS[name])
    options: dict[str, Any] = {"standardize": False, "device": str(device), "progress": False}
    run = bnn.fit(
        program, rows.x, rows.y, inference="nuts", dtype="float32", chains=CHAINS, warmup=WARMUP, draws=DRAWS, **options
    )
    start = run.draws.z.reshape(-1, run.target.dim).to(device).double()
    normal = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    step = run.adaptation.step_size.to(device).repeat_interleave(DRAWS)
    found, densities = {}, {}
    for title, dtype, products in (
        ("float64", "float64", nullcontext),
        ("float32", "float32", nullcontext),
        ("TF32 products", "float32", lambda: tf32(device)),
    ):
        target = bnn.fit(program, rows.x, rows.y, inference="prior", draws=2, dtype=dtype, **options).target
        with isolated(0, target.dtype), torch.no_grad():
            gradient = compile_gradient(target, start[:2], "eager")
            with products():
                change, densities[title] = trajectory(gradient, start, normal, step, steps, run.adaptation)
        error = densities[title] - densities["float64"]
        rate = change.nan_to_num(torch.inf).neg().clamp(max=0).exp()
        found[title] = (float(error.std()), float(change.square().mean().sqrt()), float(rate.mean()))
    return found


def trajectory(
    gradient: Callable, start: Tensor, normal: Tensor, step: Tensor, steps: int, adaptation: Any
) -> tuple[Tensor, Tensor]:
    """Change of the energy (c,) along leapfrog steps, and log density (c,) where they start, float64."""
    from bnn_pyro.inference.metric import Metric, leapfrog

    metric = Metric(adaptation.inverse_mass_matrix.to(start.device, gradient.dtype))
    position, momentum = start.to(gradient.dtype), metric.momentum(normal.to(gradient.dtype))
    grad, first = gradient(position)
    before = metric.kinetic(momentum) - first
    for _ in range(steps):
        position, grad, momentum, density = leapfrog(position, momentum, grad, step, metric, gradient)
    return metric.kinetic(momentum) - density - before, first


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--problems", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    made.add_argument("--steps", type=int, default=32, help="leapfrog steps (default: %(default)s)")
    args = made.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "by rounding"
    print(f"{CHAINS * DRAWS} trajectories of {args.steps} leapfrog steps, TF32 {where}; torch {torch.__version__}")
    for name in args.problems:
        print(f"\n{PROBLEMS[name]}\n{'':<15}{'log density':>12}{'energy':>12}{'acceptance':>12}")
        for title, figures in measure(name, args.steps, device).items():
            print(f"{title:<15}{figures[0]:>12.2g}{figures[1]:>12.3g}{figures[2]:>12.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
