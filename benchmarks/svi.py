"""Steps a second of SVI: this library, Pyro, NumPyro, a network of PyroSample weights, and plain torch Adam beside them.

    python benchmarks/svi.py                                  # all problems and libraries, one thread; minutes
    python benchmarks/svi.py --problems mlp1 --libraries ours numpyro

The same model (see `posteriors.py`), a mean-field normal guide, Adam, float32. Each row runs in a process of its own with empty
caches of compiled code. `import` is seconds to import the library (here with torch's compiler, which otherwise is imported when
first needed), `setup` seconds from there until the first step can be taken (JAX: tracing and compiling a scan over all steps),
`steps/s` is the best of five runs of `--steps` steps, for which the libraries take turns; `first` is setup plus the first of
these runs. NumPyro's steps are those inside its own scan; Pyro's plain and jit loops are cut after `--pyro-seconds`. `adam` is
a step of plain torch Adam on the same network, without a posterior, which no SVI step needs to beat.
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
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from posteriors import PROBLEMS, load_rows, numpyro_model, pyro_program

LIBRARIES = ("ours", "numpyro", "pyro", "pyro_jit", "pyro_sample", "adam")
CASES = {"mlp1": None, "mlp2": None, "digits": 128}  # problem: rows of a mini-batch, None for all
LR = 0.01
ROUNDS = 5  # of which the fastest counts
IMPORTS = {
    "ours": ("bnn_pyro.guide_steps", "torch._inductor.compile_fx", "torch._inductor.codegen.cpp"),
    "numpyro": ("jax", "numpyro.infer.autoguide"),
    "adam": ("torch",),
}
Measured = tuple[float, Callable[[int], float]]  # setup seconds; steps -> seconds


def ours(problem: Any, batch: int | None) -> Measured:
    import torch

    from bnn_pyro.guide_steps import compile_guide_step
    from bnn_pyro.guides import make_guide
    from bnn_pyro.inference import SVI
    from bnn_pyro.isolation import isolated
    from bnn_pyro.structure import build_target
    from bnn_pyro.training import optimise

    class Quiet:
        """Takes the ELBO as a fit's record does, without a bar."""

        pressed = False

        def add(self, terms: Any) -> None:
            self.terms = terms

        def elbo(self, steps: int) -> Any:
            return self.terms[:, 0] - self.terms[:, 1]

    rows = load_rows(problem)
    start = time.perf_counter()
    held = isolated(seed=0)
    held.__enter__()  # until the process ends
    target = build_target(pyro_program(problem), torch.as_tensor(rows.x), torch.as_tensor(rows.y))
    guide = make_guide("normal", None, target.program, "benchmark")
    guide(target.x, target.y)
    trained, reason = compile_guide_step(target, guide, SVI(batch_size=batch), 0, "inductor")
    assert trained is not None, reason
    setup = time.perf_counter() - start

    def run(steps: int) -> float:
        quiet: Any = Quiet()
        start = time.perf_counter()
        optimise(trained, SVI(steps=steps, lr=LR), LR, quiet, quiet)
        return time.perf_counter() - start

    return setup, run


def numpyro(problem: Any, batch: int | None) -> Measured:
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.optim import ClippedAdam

    rows = load_rows(problem)
    x, y = jax.numpy.asarray(rows.x), jax.numpy.asarray(rows.y)
    start = time.perf_counter()
    model = numpyro_model(problem)
    scaled = model if batch is None else _numpyro_batches(model, len(y) / batch)
    svi = SVI(scaled, AutoNormal(scaled), ClippedAdam(LR), Trace_ELBO())
    state = svi.init(jax.random.PRNGKey(0), x[:batch], y[:batch])
    compiled: dict[int, Any] = {}

    def body(carry: Any, _: Any) -> Any:
        state, key = carry
        if batch is None:
            state, loss = svi.update(state, x, y)
        else:
            key, own = jax.random.split(key)
            mine = jax.random.randint(own, (batch,), 0, len(y))
            state, loss = svi.update(state, x[mine], y[mine])
        return (state, key), loss

    def compile_for(steps: int) -> Any:
        if steps not in compiled:
            scan = jax.jit(lambda carry: jax.lax.scan(body, carry, None, length=steps))
            compiled[steps] = scan.lower((state, jax.random.PRNGKey(1))).compile()
        return compiled[steps]

    compile_for(ARGS.steps)
    setup = time.perf_counter() - start

    def run(steps: int) -> float:
        scan = compile_for(steps)
        start = time.perf_counter()
        jax.block_until_ready(scan((state, jax.random.PRNGKey(1))))
        return time.perf_counter() - start

    return setup, run


def _numpyro_batches(model: Callable, scale: float) -> Callable:
    """The model with the likelihood alone scaled up."""
    from numpyro.primitives import Messenger

    class Scale(Messenger):
        def process_message(self, msg: Any) -> None:
            if msg["type"] == "sample" and msg["is_observed"]:
                msg["scale"] = scale if msg.get("scale") is None else msg["scale"] * scale

    def scaled(x: Any, y: Any = None) -> Any:
        with Scale():
            return model(x, y)

    return scaled


def _pyro_loop(program: Callable, problem: Any, batch: int | None, jit: bool) -> Measured:
    import torch
    from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
    from pyro.infer.autoguide import AutoNormal
    from pyro.optim import ClippedAdam

    rows = load_rows(problem)
    x, y = torch.as_tensor(rows.x), torch.as_tensor(rows.y)
    start = time.perf_counter()
    loss = JitTrace_ELBO(ignore_jit_warnings=True) if jit else Trace_ELBO()
    svi = SVI(program, AutoNormal(program), ClippedAdam({"lr": LR}), loss=loss)

    def step() -> None:
        mine = slice(None) if batch is None else torch.randint(len(y), (batch,))
        svi.step(x[mine], y[mine])

    step()
    setup = time.perf_counter() - start

    def run(steps: int) -> float:
        start, done = time.perf_counter(), 0
        while done < steps and time.perf_counter() - start < ARGS.pyro_seconds:
            step()
            done += 1
        return (time.perf_counter() - start) * steps / done

    return setup, run


def pyro(problem: Any, batch: int | None) -> Measured:
    return _pyro_loop(pyro_program(problem), problem, batch, jit=False)


def pyro_jit(problem: Any, batch: int | None) -> Measured:
    return _pyro_loop(pyro_program(problem), problem, batch, jit=True)


def pyro_sample(problem: Any, batch: int | None) -> Measured:
    """The network as Pyro's users write one: torch layers whose weights are PyroSample."""
    import pyro as pp
    import pyro.distributions as dist
    import torch
    from pyro.nn import PyroModule, PyroSample

    class Network(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = PyroModule[torch.nn.ModuleList](
                [PyroModule[torch.nn.Linear](a, b) for _, a, b in problem.layers]
            )
            for layer, (_, a, b) in zip(self.layers, problem.layers, strict=True):
                layer.weight = PyroSample(dist.Normal(0.0, a**-0.5).expand([b, a]).to_event(2))
                layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([b]).to_event(1))

        def forward(self, x: Any, y: Any = None) -> None:
            for layer in self.layers[:-1]:
                x = torch.tanh(layer(x))
            out = self.layers[-1](x)
            if problem.likelihood == "categorical":
                likelihood: Any = dist.Categorical(logits=out)
            else:
                likelihood = dist.Normal(out.squeeze(-1), pp.sample("sigma", dist.HalfNormal(1.0)))
            with pp.plate("data", len(x)):
                pp.sample("y", likelihood, obs=y)

    return _pyro_loop(Network(), problem, batch, jit=False)


def adam(problem: Any, batch: int | None) -> Measured:
    import torch

    rows = load_rows(problem)
    x, y = torch.as_tensor(rows.x), torch.as_tensor(rows.y)
    start = time.perf_counter()
    layers: list[Any] = []
    for _, a, b in problem.layers:
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    network = torch.nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(network.parameters(), lr=LR)
    labels = problem.likelihood == "categorical"

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            mine = slice(None) if batch is None else torch.randint(len(y), (batch,))
            out = network(x[mine])
            target = y[mine]
            loss = (
                torch.nn.functional.cross_entropy(out, target) if labels else ((out.squeeze(-1) - target) ** 2).mean()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return time.perf_counter() - start

    return time.perf_counter() - start, run


def serve(library: str, problem: str) -> None:
    """A library's process: says what its setup took, then runs once for each line that it is sent, and says the seconds."""
    start = time.perf_counter()
    for name in IMPORTS.get(library, ("pyro.infer.autoguide",)):
        import_module(name)
    imported = time.perf_counter() - start
    setup, run = globals()[library](PROBLEMS[problem], CASES[problem])
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
        }
        words = [sys.executable, __file__, "--row", library, problem, "--steps", str(ARGS.steps)]
        words += ["--pyro-seconds", str(ARGS.pyro_seconds)]
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
    rows = "all rows" if CASES[problem] is None else f"mini-batches of {CASES[problem]}"
    lines = [str(PROBLEMS[problem]), f"{rows}, {ARGS.steps} steps, one thread", ""]
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--pyro-seconds", type=float, default=10.0)
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
