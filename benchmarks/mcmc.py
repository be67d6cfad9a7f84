"""Measures MCMC samplers against one another: ``run``, ``first400``, ``table``, ``overview``. README.md explains the figures.

python benchmarks/mcmc.py run --problems mlp1 --samplers ours_chees numpyro_nuts --chains 16 --seeds 0
python benchmarks/mcmc.py first400
python benchmarks/mcmc.py table
python benchmarks/mcmc.py overview
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import overview
import table
from posteriors import PROBLEMS, load_rows
from samplers import SAMPLERS, Job, kept_draws

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "mcmc.jsonl"
PACKAGES = ("bnn-pyro", "torch", "pyro-ppl", "jax", "numpyro", "blackjax")
FIRST = 400  # kept draws of ``first400``


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.command in ("table", "overview"):
        print((table if args.command == "table" else overview).render(read(args.file)))
    elif args.command == "one":
        Path(args.answer).write_text(json.dumps(measure(Job(**json.loads(args.job)))))
    else:
        jobs = list(run_jobs(args) if args.command == "run" else first_jobs(args, read(args.out)))
        perform(jobs, args.out, args.limit, args.near if args.command == "run" else 0.0)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    for name, text in (("run", "ESS a second"), ("first400", f"seconds to the first {FIRST} kept draws")):
        one = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        one.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME")
        one.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), metavar="NAME")
        fallback = "" if name == "run" else "; what `run` found best goes first"
        one.add_argument("--chains", nargs="+", type=int, default=[4, 16, 64] if name == "run" else [16],
                         help=f"each of these{fallback}")  # fmt: skip
        one.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each of these")
        one.add_argument("--warmup", type=int, default=500, help="iterations of each chain")
        one.add_argument("--threads", type=int, default=2, help="of each process; it is also kept to so many cores")
        one.add_argument("--leapfrogs", type=int, default=2000, help="that Pyro's NUTS is timed over")
        one.add_argument("--limit", type=float, default=3600.0, help="seconds that a process may take")
        one.add_argument("--out", type=Path, default=RESULTS, help="file to append to; what it has is not run again")
    run = commands.choices["run"]
    run.add_argument("--kept", type=int, default=2048, help="draws over all chains together")
    run.add_argument("--near", type=float, default=0.5, metavar="SHARE",
                     help="of a sampler's best chain count at the first seed; those below it have no other seeds")  # fmt: skip
    for name, text in (("table", "prints what a file holds"), ("overview", "a line for each problem")):
        shown = commands.add_parser(name, help=text)
        shown.add_argument("file", type=Path, nargs="?", default=RESULTS)
    single = commands.add_parser("one", help="one measurement, in this process: what the others call")
    single.add_argument("job")
    single.add_argument("answer")
    return top


def run_jobs(args: argparse.Namespace) -> Iterator[Job]:
    """Seed by seed, so that a run that is cut short has every sampler."""
    for seed in args.seeds:
        for problem in args.problems:
            for name in args.samplers:
                only = SAMPLERS[name].chains
                for chains in [only] if only else args.chains:
                    yield Job("run", problem, name, chains, seed, args.warmup, args.kept, args.threads, args.leapfrogs)


def first_jobs(args: argparse.Namespace, rows: list[dict]) -> Iterator[Job]:
    """Pyro's is left out: tables take it from its gradients a second and the gradients that NumPyro's NUTS needed."""
    for seed in args.seeds:
        for problem in args.problems:
            for name in args.samplers:
                if name == "pyro_nuts":
                    continue
                best = table.best_chains(rows, problem, name, args.threads)
                for chains in [best] if best else args.chains:
                    yield Job("first400", problem, name, chains, seed, args.warmup, FIRST, args.threads)


def perform(jobs: list[Job], out: Path, limit: float, near: float = 0.0) -> None:
    """Runs each job that ``out`` has no figures of, in a process of its own, and appends what it answers.

    Left out are chain counts that came to less than ``near`` of their sampler's best at the first seed.
    """
    done = {tuple(row["key"]) for row in read(out) if "problem" in row and is_final(row, limit)}
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not out.read_bytes().endswith(b"\n"):  # a line that was cut short would spoil the next one
        with out.open("a") as file:
            file.write("\n")
    for i, job in enumerate(jobs, 1):
        label = f"[{i}/{len(jobs)}] {job.mode} {job.problem} {job.sampler} chains={job.chains} seed={job.seed}"
        if job.key in done:
            print(label, "is there")
            continue
        if job.seed != jobs[0].seed and table.is_behind(
            [r for r in read(out) if same_but_chains(r, job, jobs[0].seed)], job.chains, near
        ):
            print(label, "is left out: it was far behind at the first seed")
            continue
        began = time.perf_counter()
        row = {**asdict(job), "key": job.key, **attempt(job, limit), "wall": time.perf_counter() - began}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        figures = f"R-hat {row['max_r_hat']:.3f}, min ESS {row['min_ess']:.0f}" if "min_ess" in row else ""
        print(label, f"{row['wall']:.0f} s", row.get("missing") or row.get("error") or figures, flush=True)


def is_final(row: dict[str, Any], limit: float) -> bool:
    """Whether another try would bring nothing new: there are figures, or it was given as long before."""
    return not (row.get("error") or row.get("missing")) or row.get("limit", 0.0) >= limit


def same_but_chains(row: dict[str, Any], job: Job, seed: int) -> bool:
    """Whether a row is of the same measurement at ``seed``, with any number of chains."""
    return tuple(row.get("key", ())) == replace(job, chains=row.get("chains"), seed=seed).key


def attempt(job: Job, limit: float) -> dict[str, Any]:
    """The figures of ``measure`` from a fresh process; or ``missing``, a package; or ``error``, its last line."""
    absent = [name for name in SAMPLERS[job.sampler].needs if util.find_spec(name) is None]
    if absent:
        return {"missing": f"{' and '.join(absent)} not installed"}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        command = [sys.executable, str(HERE / "mcmc.py"), "one", json.dumps(asdict(job)), str(answer)]
        try:
            done = subprocess.run(command, env=environment(job, scratch), timeout=limit, capture_output=True)
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {limit:g} s", "limit": limit}
        if done.returncode or not answer.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return {"error": f"status {done.returncode}: {lines[-1] if lines else 'no output'}"}
        return json.loads(answer.read_text())


def environment(job: Job, scratch: str) -> dict[str, str]:
    """The caller's, with thread counts, and with empty caches for compiled code: a fresh process compiles everything."""
    threads = job.threads
    eigen = "true" if threads > 1 else "false"
    own = {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={threads}",
        "JAX_NUM_CPU_DEVICES": str(job.chains if SAMPLERS[job.sampler].devices else 1),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": scratch,
        "XDG_CACHE_HOME": scratch,  # where this library keeps what it built
    }
    return {**os.environ, **own}


def measure(job: Job) -> dict[str, Any]:
    """One run of a sampler in this process, and what its draws are worth."""
    import torch

    if hasattr(os, "sched_setaffinity"):  # XLA and torch count the cores that they may use, whatever they are told
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: job.threads])
    torch.set_num_threads(job.threads)
    problem = PROBLEMS[job.problem]
    rows = load_rows(problem)
    began = time.perf_counter()
    for name in SAMPLERS[job.sampler].needs:
        getattr(import_module(name), "fit", None)  # bnn_pyro imports what it needs when a name is asked for
    imported = time.perf_counter() - began

    run = SAMPLERS[job.sampler].sample(problem, rows, job)
    row = {
        "dim": problem.dim,
        "rows": len(rows.x),
        "kept_draws": kept_draws(run),
        "import_s": imported,
        "setup_s": run.setup,
        "sampling_s": run.sampling,
        "warmup_s": run.warmup,
        "total_s": run.setup + run.sampling,
        "gradients": run.gradients,
        "gradients_per_s": run.gradients / run.sampling,
        "divergences": run.divergences,
        **run.facts,
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    if run.sites is not None:
        from measure import judge

        figures = judge(problem, rows, run.sites)
        row |= figures
        for name in ("min", "median"):
            row[f"{name}_ess_per_s"] = figures[f"{name}_ess"] / run.sampling
            row[f"{name}_ess_per_gradient"] = figures[f"{name}_ess"] / run.gradients
        row["min_ess_per_total_s"] = figures["min_ess"] / row["total_s"]
        row["min_ess_per_kept_s"] = None if run.warmup is None else figures["min_ess"] / (run.sampling - run.warmup)
    return row


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read(path: Path) -> list[dict]:
    """Rows of a JSON-lines file, without a last line that was cut short; none if there is no file."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


if __name__ == "__main__":
    sys.exit(main())
