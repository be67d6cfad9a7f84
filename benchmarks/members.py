"""A deep ensemble trained in one compiled step, beside one eager run of plain torch Adam on the same network.

    python benchmarks/members.py                              # 50 members, 2000 steps, one thread; a minute
    python benchmarks/members.py --members 100 --steps 5000

10-50-1 tanh on diabetes (``mlp1`` of `posteriors.py`), 422 training rows, all in each step, float32. Both minimise minus the
log joint density of weights, biases and sigma, from a learning rate of 0.02: a member is a MAP estimate. Plain torch is
torch.nn.Sequential, torch.optim.Adam and that loss written out, for one network.

In both figures: forward pass, loss, gradient and update of every step. In the ensemble's alone: its falling learning rate, the
clipping of its gradients and the record of its loss. ``compile`` is bnn_pyro's starting points, tracing, compiling and check
against the program; its first run begins with an empty cache of compiled code, and the others find that code. ``together`` is
both; outside of all are imports, reading the data and checking the arguments. ``cpu`` is what this process took of its core
for the whole call, without the compiler, which is another process: where other work shares the cores it says more than the
clock. Runs of the two alternate, and ratios are of the best runs of each. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from typing import Any, NamedTuple

from posteriors import PROBLEMS, Problem, Rows, load_rows, pyro_program

PROBLEM = PROBLEMS["mlp1"]
LR = 0.02  # the library's default for ensembles


class Trained(NamedTuple):
    """Seconds, and the log joint density after the steps, in nats: of the network, or the mean over members."""

    compiling: float
    steps: float
    cpu: float
    log_joint: float


class Plain:
    """The network as a user of torch writes one: W_l = w_l sqrt(1 / fan-in), so that W_l ~ Normal(0, sqrt(1 / fan-in))."""

    def __init__(self, problem: Problem, rows: Rows):
        import torch

        layers: list[Any] = []
        for _, a, b in problem.layers:
            layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
        self.network = torch.nn.Sequential(*layers[:-1])
        self.linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        self.log_sigma = torch.nn.Parameter(torch.zeros(()))
        self.x, self.y = torch.as_tensor(rows.x), torch.as_tensor(rows.y)

    def loss(self) -> Any:
        """Minus the log joint density of weights, biases and sigma (not log sigma), () nats, without its constants."""
        sigma = self.log_sigma.exp()
        away = (self.y - self.network(self.x).squeeze(-1)) / sigma
        loss = 0.5 * (away * away).sum() + len(self.y) * self.log_sigma + 0.5 * sigma * sigma
        for layer in self.linear:
            loss = loss + 0.5 * (layer.in_features * (layer.weight**2).sum() + (layer.bias**2).sum())
        return loss

    def constant(self) -> float:
        """What ``loss`` leaves out of the log joint density, that of w_l being meant: HalfNormal is twice a Normal."""
        numbers = sum(layer.weight.numel() + layer.bias.numel() for layer in self.linear)
        return math.log(2.0) - 0.5 * math.log(2 * math.pi) * (len(self.y) + numbers + 1)


def plain(rows: Rows, steps: int, seed: int) -> Trained:
    import torch

    torch.manual_seed(seed)
    start, cpu = time.perf_counter(), time.process_time()
    run = Plain(PROBLEM, rows)
    optimiser = torch.optim.Adam([*run.network.parameters(), run.log_sigma], lr=LR)
    for _ in range(steps):
        loss = run.loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Trained(0.0, seconds, cpu, run.constant() - float(run.loss().detach()))


def ensemble(rows: Rows, members: int, steps: int, seed: int) -> Trained:
    import bnn_pyro as bnn

    cpu = time.process_time()
    posterior = bnn.fit(
        pyro_program(PROBLEM), rows.x, rows.y, inference="ensemble", members=members, steps=steps, lr=LR, seed=seed,
        progress=False,
    )  # fmt: skip
    cpu = time.process_time() - cpu
    info, history = posterior.draws.info, posterior.draws.history["elbo"]
    if info["backend"] != "inductor":
        reason = info["backend_reason"] or "too few rows and weights"
        raise SystemExit(
            f"members.py: expected compiled steps, got {info['backend']!r} ({reason}). Install a C++ compiler."
        )
    return Trained(info["compile_time"], info["sampling_time"], cpu, float(history[-1]))


def table(rows: int, members: int, steps: int, ours: list[Trained], eager: list[Trained]) -> str:
    """Every run, then the best of each and the ratios."""
    one, many = f"plain torch, 1 x {steps}", f"bnn_pyro, {members} x {steps}"
    lines = [str(PROBLEM), f"all {rows} rows, {steps} steps, one thread; seconds", ""]
    lines.append(f"{'run':<26}{'compile':>9}{'steps':>9}{'together':>10}{'cpu':>8}{'log joint':>11}")
    for i, pair in enumerate(zip(eager, ours, strict=True), 1):
        for name, run in zip((one, many), pair, strict=True):
            compiling = f"{run.compiling:.2f}" if run.compiling else "-"
            seconds = f"{compiling:>9}{run.steps:>9.2f}{run.compiling + run.steps:>10.2f}{run.cpu:>8.2f}"
            lines.append(f"{i} {name:<24}{seconds}{run.log_joint:>11.1f}")
    base, base_cpu = min(run.steps for run in eager), min(run.cpu for run in eager)
    later = ours[1:]  # the first compiled
    figures = {
        "steps alone, best": (min(run.steps for run in ours), base),
        "together, code found, best": (min(run.compiling + run.steps for run in later), base),
        "together, code found, cpu, best": (min(run.cpu for run in later), base_cpu),
        "together, empty cache": (ours[0].compiling + ours[0].steps, base),
    }
    lines += ["", f"{f'{members} members, over one plain run':<42}{'seconds':>9}{'x plain':>9}"]
    lines.append(f"{'plain torch, one network, best':<42}{base:>9.2f}{1:>9.2f}")
    lines.append(f"{'plain torch, one network, cpu, best':<42}{base_cpu:>9.2f}{1:>9.2f}")
    lines += [f"{name:<42}{value:>9.2f}{value / by:>9.2f}" for name, (value, by) in figures.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3, help="of each, at least two: the first compiles")
    args = parser.parse_args(argv)
    if args.runs < 2:
        parser.error(f"--runs: expected at least 2, got {args.runs}. The first compiles, the others find its code.")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        import torch

        torch.set_num_threads(1)
        rows = load_rows(PROBLEM)
        plain(rows, 10, 0)  # what torch sets up when first used
        ours, eager = [], []
        for seed in range(args.runs):
            eager.append(plain(rows, args.steps, seed))
            ours.append(ensemble(rows, args.members, args.steps, seed))
        print(table(len(rows.x), args.members, args.steps, ours, eager))
    return 0


if __name__ == "__main__":
    sys.exit(main())
