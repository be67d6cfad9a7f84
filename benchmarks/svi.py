"""Steps a second of SVI: this library, Pyro, NumPyro, a network of PyroSample weights, and plain torch Adam beside them.

    python benchmarks/svi.py                                  # all problems and libraries, one thread; minutes
    python benchmarks/svi.py --problems mlp1 --libraries ours numpyro

The same model (see `posteriors.py`), a mean-field normal guide, Adam, float32. Each row runs in a process of its own with empty
caches of compiled code. `import` is seconds to import the library (here with torch's compiler, which otherwise is imported when
first needed), `setup` seconds from there until the first step can be taken (JAX: tracing and compiling a scan over all steps),
`steps/s` is the best of five runs of `--steps` steps, for which the libraries take turns; `first` is setup plus the first of
these runs. NumPyro's steps are those inside its own scan; Pyro's plain and jit loops are cut after `--pyro-seconds`. `adam` is
a step of plain torch Adam on the same network, without a posterior, which no SVI step needs to beat. `lenet` is on MNIST where
the folder that BNN_PYRO_DATA names has it. `--device cuda` runs all libraries there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import svi_libraries
from svi_cases import CASES, find_case

LIBRARIES = ("ours", "numpyro", "pyro", "pyro_jit", "pyro_sample", "adam")
ROUNDS = 5  # of which the fastest counts
IMPORTS = {
    "ours": ("bnn_pyro.guide_steps", "torch._inductor.compile_fx", "torch._inductor.codegen.cpp"),
    "numpyro": ("jax", "numpyro.infer.autoguide"),
    "adam": ("torch",),
}


def serve(library: str, problem: str) -> None:
    """A library's process: says what its setup took, then runs once for each line that it is sent, and says the seconds."""
    start = time.perf_counter()
    for name in IMPORTS.get(library, ("pyro.infer.autoguide",)):
        import_module(name)
    imported = time.perf_counter() - start
    job = svi_libraries.Job(find_case(problem), ARGS.steps, ARGS.pyro_seconds, ARGS.device)
    setup, run = getattr(svi_libraries, library)(job)
    print(json.dumps({"import_s": imported, "setup_s": setup}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(run(ARGS.steps)), flush=True)


class Library:
    """A library in a process of its own, on one core, with no compiled code from before; set up when this returns."""

    def __init__(self, library: str, problem: str, cache: str):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "XDG_CACHE_HOME": cache,
            "JAX_PLATFORMS": "cpu" if ARGS.device == "cpu" else "cuda",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        words = [sys.executable, __file__, "--row", library, problem, "--steps", str(ARGS.steps)]
        words += ["--pyro-seconds", str(ARGS.pyro_seconds), "--device", ARGS.device]
        self._said = open(f"{cache}/stderr", "w+")  # noqa: SIM115  # a pipe that nobody reads may fill up
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=self._said, text=True)
        self.row: dict[str, Any] = self._answer() or {}
        self._times: list[float] = []

    def _answer(self) -> Any:
        """The next line, as JSON; None where the process has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue  # something that a library prints
        self._said.seek(0)
        self.row = {"error": (self._said.read().strip().splitlines() or ["no message"])[-1]}
        return None

    def run(self) -> None:
        if "error" in self.row:
            return
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        if (seconds := self._answer()) is None:
            return
        self._times.append(seconds)
        self.row["steps_per_s"] = ARGS.steps / min(self._times)
        self.row["first_s"] = self.row["setup_s"] + self._times[0]

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()


def compare(problem: str) -> dict[str, dict[str, Any]]:
    """A row for each library, which run in turn, so that what slows the machine down for a while slows all of them."""
    with ExitStack() as stack:
        libraries: dict[str, Library] = {}
        for name in ARGS.libraries:
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            libraries[name] = Library(name, problem, cache)
            stack.callback(libraries[name].end)
            libraries[name].run()
        for _ in range(ROUNDS - 1):
            for library in libraries.values():
                library.run()
        return {name: library.row for name, library in libraries.items()}


def table(problem: str, found: dict[str, dict[str, Any]]) -> str:
    case = find_case(problem)
    rows = "all rows" if case.batch is None else f"mini-batches of {case.batch}"
    lines = [case.title, f"{rows}, {ARGS.steps} steps, {where()}", ""]
    lines.append(
        f"{'library':<13}{'import s':>9}{'setup s':>9}{'steps/s':>10}{'first s':>9}{'x NumPyro':>11}{'x Pyro':>8}"
    )
    for name, row in found.items():
        if "error" in row:
            lines.append(f"{name:<13}{row['error'][:66]}")
            continue
        ratios = [
            f"{row['steps_per_s'] / found[peer]['steps_per_s']:.2f}" if "steps_per_s" in found.get(peer, {}) else "-"
            for peer in ("numpyro", "pyro")
        ]
        figures = f"{row['import_s']:>9.1f}{row['setup_s']:>9.1f}{row['steps_per_s']:>10.0f}{row['first_s']:>9.1f}"
        lines.append(f"{name:<13}{figures}{ratios[0]:>11}{ratios[1]:>8}")
    return "\n".join(lines)


def where() -> str:
    if ARGS.device == "cpu":
        return "one thread"
    import torch

    return torch.cuda.get_device_name()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--pyro-seconds", type=float, default=10.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--row", nargs=2, metavar=("LIBRARY", "PROBLEM"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    ARGS = arguments()
    if ARGS.row:
        serve(*ARGS.row)
    else:
        for name in ARGS.problems:
            print(table(name, compare(name)), flush=True)
            print()
