"""Samplers on a CUDA device, at 4 to 8,192 chains; NumPyro beside them where JAX has it. SVI: `svi.py --device cuda`.

    python benchmarks/gpu.py                                    # everything: an hour or more
    python benchmarks/gpu.py --problems mlp1 --chains 4 1024 --samplers ours_nuts numpyro_nuts

Each row runs in a process of its own, with empty caches of compiled code, and is appended to `--out` with versions and device.
`min ESS` is of a second of sampling, warmup included and compiling not, over f at held-out rows and the log likelihood.
`us/it` is microseconds of sampling for a gradient of each chain (NumPyro's chains wait for one another, and theirs is the time
that this takes, too); `launches` are those of kernels and CUDA graphs in an iteration, counted by torch's profiler in a
short run; `peak` is the share of the device's float32 arithmetic (no tensor cores) that the products of the network come to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mcmc import versions
from measure import judge
from posteriors import PROBLEMS, load_rows, pyro_program
from samplers import SAMPLERS, Job, kept_draws

OUT = Path(__file__).resolve().parent / "results" / "gpu.jsonl"
NETWORKS = ("mlp1", "mlp2", "digits")
ROW = {
    "sampler": 17,
    "chains": 6,
    "min ESS/s": 10,
    "grad/s": 8,
    "us/it": 8,
    "launches": 9,
    "peak": 7,
    "GiB": 6,
    "R-hat": 7,
}
PROFILED = (3, 23)  # transitions
LANES = 128  # float32 units of a multiprocessor, of two operations a cycle each


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.one is not None:
        job, answer = args.one
        Path(answer).write_text(json.dumps(measure(Job(**json.loads(job)))))
        return 0
    import torch

    if not torch.cuda.is_available():
        print(f"gpu.py: expected a CUDA device, torch {torch.__version__} finds none.", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name()
    for problem in args.problems:
        print(f"\n{PROBLEMS[problem]}\n{name}, {args.warmup} warmup a chain, {args.kept} kept in all, seed {args.seed}")
        print(
            "".join(f"{title:>{width}}" if i else f"{title:<{width}}" for i, (title, width) in enumerate(ROW.items()))
        )
        for sampler in args.samplers:
            for chains in args.chains:
                kept = max(args.kept, args.least * chains)
                job = Job("run", problem, sampler, chains, args.seed, args.warmup, kept, 1, device="cuda")
                row = {**asdict(job), "device_name": name, **attempt(job, args.limit)}
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(line(row), flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--problems", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    made.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=["ours_nuts", "ours_chees", "numpyro_nuts"])
    made.add_argument("--chains", nargs="+", type=int, default=[4, 64, 1024, 8192])
    made.add_argument("--warmup", type=int, default=300, help="iterations of each chain (default: %(default)s)")
    made.add_argument("--kept", type=int, default=8192, help="draws over all chains (default: %(default)s)")
    made.add_argument("--least", type=int, default=8, help="draws of a chain, at least (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--limit", type=float, default=1800.0, help="seconds that a process may take (default: %(default)s)"
    )
    made.add_argument("--out", type=Path, default=OUT)
    made.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return made


def attempt(job: Job, limit: float) -> dict[str, Any]:
    """The figures of ``measure`` from a fresh process, or ``error``, its last line."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        own = {
            "JAX_PLATFORMS": "cuda",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # so that memory can be told
            "TORCHINDUCTOR_CACHE_DIR": scratch,
            "XDG_CACHE_HOME": scratch,
        }
        command = [sys.executable, __file__, "--one", json.dumps(asdict(job)), str(answer)]
        try:
            done = subprocess.run(command, env={**os.environ, **own}, timeout=limit, capture_output=True)
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {limit:g} s"}
        if done.returncode or not answer.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return {"error": f"status {done.returncode}: {lines[-1] if lines else 'no output'}"}
        return json.loads(answer.read_text())


def measure(job: Job) -> dict[str, Any]:
    """One run in this process, and what its draws are worth."""
    problem, ours = PROBLEMS[job.problem], job.sampler.startswith("ours")
    rows = load_rows(problem)
    began = time.perf_counter()
    run = SAMPLERS[job.sampler].sample(problem, rows, job)
    row = {
        "wall": time.perf_counter() - began,
        "setup_s": run.setup,
        "sampling_s": run.sampling,
        "gradients": run.gradients,
        "gradients_per_s": run.gradients / run.sampling,
        "kept_draws": kept_draws(run),
        "memory": torch_memory() if ours else jax_memory(),
        "versions": versions(),
        **run.facts,
        **judge(problem, rows, run.sites),
    }
    row["min_ess_per_s"] = row["min_ess"] / run.sampling
    row["peak"] = row["gradients_per_s"] * operations(problem, len(rows.x)) / peak_of_device()
    if ours:
        row["launches"] = launches_of_an_iteration(problem, rows, job)
    return row


def operations(problem: Any, rows: int) -> int:
    """Arithmetic of a gradient's matrix products: forward, and for weights and inputs backward."""
    return 6 * rows * sum(a * b for _, a, b in problem.layers)


def peak_of_device() -> float:
    """float32 operations a second at the highest clock."""
    import torch

    asked = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "--id=0"]
    clock = float(subprocess.run(asked, capture_output=True, check=True, text=True).stdout)
    return torch.cuda.get_device_properties(0).multi_processor_count * LANES * 2 * clock * 1e6


def torch_memory() -> int:
    import torch

    return torch.cuda.max_memory_allocated()


def jax_memory() -> int:
    import jax

    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def launches_of_an_iteration(problem: Any, rows: Any, job: Job) -> float:
    """By what a longer run has more than a shorter one, both going on where a first one has ended."""
    import bnn_pyro as bnn

    settings: dict[str, Any] = {"inference": job.sampler.removeprefix("ours_"), "device": job.device, "progress": False}
    settings |= {"chains": job.chains, "standardize": False, "dtype": "float32", "engine": "compiled"}
    settings["adaptation"] = bnn.fit(
        pyro_program(problem), rows.x, rows.y, warmup=100, draws=1, **settings
    ).adaptation  # fmt: skip
    (few, short_run), (many, long_run) = (
        counted(lambda: bnn.fit(pyro_program(problem), rows.x, rows.y, warmup=0, draws=draws, **settings))  # noqa: B023
        for draws in PROFILED
    )
    return (many - few) / (iterations(long_run) - iterations(short_run))


def counted(fit: Callable[[], Any]) -> tuple[int, Any]:
    """Launches of kernels and graphs while ``fit`` runs, and what it gives."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        result = fit()
        torch.cuda.synchronize()
    return sum(e.count for e in seen.key_averages() if e.key.startswith("cu") and "Launch" in e.key), result


def iterations(posterior: Any) -> float:
    """Steps in which each chain may have had a gradient: as many as the chain that took the most."""
    return float(posterior.draws.stats["n_steps"].sum(1).max())


def line(row: dict[str, Any]) -> str:
    from table import short

    title = SAMPLERS[row["sampler"]].title
    if "error" in row:
        return f"{title:<17}{row['chains']:>6}  {row['error']}"
    per_iteration = row["sampling_s"] * row["chains"] / row["gradients"]
    launches = f"{row['launches']:.1f}" if "launches" in row else "-"
    cells = (
        row["chains"], short(row["min_ess_per_s"]), short(row["gradients_per_s"]), f"{per_iteration * 1e6:.0f}", launches,
        f"{row['peak']:.1%}", f"{row['memory'] / 2**30:.1f}", f"{row['max_r_hat']:.3f}",
    )  # fmt: skip
    widths = list(ROW.values())[1:]
    return f"{title:<17}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


if __name__ == "__main__":
    sys.exit(main())
