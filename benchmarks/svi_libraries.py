"""Each library's steps of SVI on a case, as ``svi.py`` measures them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from svi_cases import Case, with_samples

LR = 0.01
Measured = tuple[float, Callable[[int], float]]  # setup seconds; steps -> seconds


class Job(NamedTuple):
    """``steps`` are those of a run; Pyro's own loops are cut after ``pyro_seconds`` of them; ``device`` is torch's name."""

    case: Case
    steps: int
    pyro_seconds: float
    device: str


def ours(job: Job) -> Measured:
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

    x, y = tensors(job)
    start = time.perf_counter()
    held = isolated(seed=0)
    held.__enter__()  # until the process ends
    target = build_target(job.case.pyro(), x, y)
    guide = make_guide("normal", None, target.program, "benchmark")
    guide(target.x, target.y)
    trained, reason = compile_guide_step(target, guide, SVI(batch_size=job.case.batch), 0, "inductor")
    assert trained is not None, reason
    setup = time.perf_counter() - start

    def run(steps: int) -> float:
        quiet: Any = Quiet()
        start = time.perf_counter()
        optimise(trained, SVI(steps=steps, lr=LR), LR, quiet, quiet)
        return time.perf_counter() - start

    return setup, run


def numpyro(job: Job) -> Measured:
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.optim import ClippedAdam

    x, y = map(jax.numpy.asarray, job.case.load())
    start = time.perf_counter()
    batch, model = job.case.batch, job.case.numpyro()
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

    compile_for(job.steps)
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


def _pyro_loop(job: Job, program: Callable, jit: bool = False) -> Measured:
    import torch
    from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
    from pyro.infer.autoguide import AutoNormal
    from pyro.optim import ClippedAdam

    torch.set_default_device(job.device)  # where the numbers of a prior are made
    x, y = tensors(job)
    start = time.perf_counter()
    loss = JitTrace_ELBO(ignore_jit_warnings=True) if jit else Trace_ELBO()
    svi = SVI(program, AutoNormal(program), ClippedAdam({"lr": LR}), loss=loss)

    def step() -> None:
        svi.step(*some_rows(job, x, y))

    step()
    setup = time.perf_counter() - start

    def run(steps: int) -> float:
        start, done = time.perf_counter(), 0
        while done < steps and time.perf_counter() - start < job.pyro_seconds:
            step()
            done += 1
        wait(job)
        return (time.perf_counter() - start) * steps / done

    return setup, run


def pyro(job: Job) -> Measured:
    return _pyro_loop(job, job.case.pyro())


def pyro_jit(job: Job) -> Measured:
    return _pyro_loop(job, job.case.pyro(), jit=True)


def pyro_sample(job: Job) -> Measured:
    """The network as Pyro's users write one: torch layers whose weights are PyroSample."""
    return _pyro_loop(job, with_samples(job.case.torch(), job.case.labels).to(job.device))


def adam(job: Job) -> Measured:
    import torch

    x, y = tensors(job)
    start = time.perf_counter()
    network = job.case.torch().to(job.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=LR)

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            inputs, target = some_rows(job, x, y)
            out = network(inputs)
            if job.case.labels:
                loss = torch.nn.functional.cross_entropy(out, target)
            else:
                loss = ((out.squeeze(-1) - target) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        wait(job)
        return time.perf_counter() - start

    return time.perf_counter() - start, run


def tensors(job: Job) -> Any:
    """x and y on the device."""
    import torch

    return [torch.as_tensor(array, device=job.device) for array in job.case.load()]


def some_rows(job: Job, x: Any, y: Any) -> Any:
    """Of all, those of a mini-batch."""
    import torch

    if job.case.batch is None:
        return x, y
    mine = torch.randint(len(y), (job.case.batch,), device=job.device)
    return x[mine], y[mine]


def wait(job: Job) -> None:
    """Until the device has done what it was told."""
    import torch

    if job.device != "cpu":
        torch.cuda.synchronize()
