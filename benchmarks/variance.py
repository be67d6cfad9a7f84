"""The variance of the ELBO's gradient by each estimator of SVI, on models of the zoo and real data.

    python benchmarks/variance.py                             # all problems, one thread; minutes
    python benchmarks/variance.py --draws 10000 --problems diabetes --out runs/variance

    weights     one draw of the weights for all rows, the KL by the same draw: what SVI does when nothing is asked
    weights+kl  the same with the KL of Normal priors in closed form (closed_form_kl=True)
    local       activations drawn for each row; the KL in closed form        (estimator="local")
    flipout     the weights' draw with each row's own signs; likewise        (estimator="flipout")

The gradient is of -ELBO by one draw, in nats summed over all training rows, by means and by softplus's argument for the sds of
a mean-field normal guide, before Adam clips it: ``variance`` is the trace of its covariance, ``+-%`` the standard error of
that in percent, ``ratio`` the variance over that of ``weights``. ``ELBO`` is the mean over draws and ``s.e.`` its standard
error. All estimators have one ELBO and one mean gradient: ``z`` is the difference of an ELBO to that of ``weights`` in
standard errors, ``gap`` the squared distance of their mean gradients over what noise alone makes of it on average. By noise
alone it is about 1 where many directions vary and may be several where few do; with more draws it stays there, while a bias
would let it grow as they do. All compare with the same draws of ``weights``, so that their z and gap are not independent.

Rows: the training part of the fixed split 0, in standard units, and nothing of the test part. Mini-batches are drawn anew,
without replacement, and their log likelihood is scaled up; each has two draws, half of whose mean squared distance is
``noise``, the variance that is left when the rows are given.
Where ``+-%`` is some tens, a few draws make up the variance, as under the exp of mlp_hetero's noise after thousands of steps:
then neither it nor its ratio is a figure to rely on.
At the start: the guide as the fit begins. After training: by ``weights``, at the library's default learning rate.
The variance is of a step; what a step takes in seconds, which differs among the estimators, is not measured here.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

ESTIMATORS = ("weights", "weights+kl", "local", "flipout")
CHUNK = 50  # draws that are evaluated together; an even number
SEED = 0
KINDS = ("locs", "scales")  # names of AutoNormal's parameters: all means, then all scales
COLUMNS = {"variance": 10, "+-%": 5, "ratio": 9, "noise": 9, "ELBO": 11, "s.e.": 8, "z": 6, "gap": 6}


@dataclass(frozen=True)
class Problem:
    """``guide``: None for the model's own, where that is mean-field. ``batch``: rows of a mini-batch, None for all."""

    model: str
    data: str
    guide: str | None = None
    batch: int | None = None

    @property
    def title(self) -> str:
        return f"{self.model}, {self.data}" + ("" if self.batch is None else f",\nbatches of {self.batch}")


PROBLEMS = {
    "engel": Problem("mlp_hetero", "engel"),
    "diabetes": Problem("mlp_gaussian", "diabetes"),
    "breast_cancer": Problem("logistic", "breast_cancer", guide="normal"),
    "digits": Problem("mlp_categorical", "digits"),
    "digits_batch": Problem("mlp_categorical", "digits", batch=128),
}


class Figures(NamedTuple):
    """``variance``, ``variance_error`` and ``noise`` as in this file's docstring; ``mean`` (parameters,) of the gradient."""

    draws: int
    variance: float
    variance_error: float
    noise: float
    mean: Tensor
    elbo: float
    elbo_error: float

    @property
    def variance_of_mean(self) -> float:
        """Trace of the covariance of ``mean``: rows are drawn once for two draws, noise for each."""
        return (2 * self.variance - self.noise) / self.draws


def measure(elbo: Any, parts: Sequence[Tensor], draws: int, seed: int, batch: int | None = None) -> Figures:
    """The gradient's moments at ``parts``, over ``draws`` draws (rounded up to whole chunks), two for each batch.

    Args:
        elbo: A ``MeanFieldElbo``; call this inside the ``isolated`` block that made it.
        parts: Values of its parameters, of ``elbo.shapes``.
        batch: Rows of a mini-batch; None for all.
    """
    from bnn_pyro.elbo import Rows

    target, parts = elbo.target, tuple(parts)
    generator = torch.Generator().manual_seed(seed)

    def loss(parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> Tensor:
        terms = elbo.terms(parts, noise, Rows(rows[0], rows[1], target.n / len(rows[1])) if rows else None)
        return terms.kl - terms.log_likelihood

    def gradients(noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        each = vmap(grad_and_value(loss), in_dims=(None, 0, *[0] * len(rows)))
        grads, values = each(parts, noise, *rows)
        return torch.cat([g.reshape(len(noise), -1) for g in grads], 1).double(), -values

    count, center, total, square = 0, torch.zeros(()), torch.zeros(()), 0.0
    elbos, variances, noises = [], [], []
    while count < draws:
        noise = torch.randn(CHUNK, elbo.noise, generator=generator, dtype=target.dtype)
        rows: list[Tensor] = []
        if batch is not None:
            mine = torch.rand(CHUNK // 2, target.n, generator=generator, dtype=torch.float64).argsort(1)[:, :batch]
            mine = mine.repeat_interleave(2, 0)
            rows = [target.x[mine], target.y[mine]]
        grad, value = gradients(noise, *rows)
        center = grad.mean(0) if not count else center  # near the mean, so that squares lose no digits
        away = grad - center
        count, total, square = count + CHUNK, total + away.sum(0), square + float((away * away).sum())
        elbos.append(value)
        variances.append(float(grad.var(0).sum()))
        noises.append(float(((grad[::2] - grad[1::2]) ** 2).sum()) / CHUNK)
    mean = total / count
    variance = (square - count * float(mean @ mean)) / (count - 1)
    by_chunk = torch.tensor(variances, dtype=torch.float64)
    pairs = torch.cat(elbos).reshape(-1, 2).mean(1)
    return Figures(
        count,
        variance,
        float(by_chunk.std()) / len(by_chunk) ** 0.5,
        variance if batch is None else sum(noises) / len(noises),
        center + mean,
        float(pairs.mean()),
        float(pairs.std()) / len(pairs) ** 0.5,
    )


def by_estimator(elbo: Any, batch: int | None) -> dict[str, Any]:
    """The ``MeanFieldElbo`` of each estimator, as ``guide_steps.compile_guide_step`` makes it."""
    from bnn_pyro.elbo import Rows
    from bnn_pyro.mean_field import mean_field

    sampled = mean_field(elbo, closed_form=False)
    assert sampled is not None, "guides here are mean-field normal"
    closed, target = replace(sampled, closed_form=True), elbo.target
    rows = None if batch is None else Rows(target.x[:batch], target.y[:batch], target.n / batch)
    own = {name: closed.with_row_noise(name, rows) for name in ("local", "flipout")}
    return {"weights": sampled, "weights+kl": closed, **own}


def run(problem: Problem, draws: int, steps: int) -> tuple[str, dict[str, dict[str, Figures]]]:
    """A heading, and figures by stage and estimator."""
    import bnn_pyro as bnn
    from bnn_pyro.elbo import trace_elbo
    from bnn_pyro.guides import PATH_GRADIENT_GUIDES, float_observations, make_guide
    from bnn_pyro.isolation import derive_seed, isolated

    method = bnn.SVI(guide=problem.guide, steps=steps, batch_size=problem.batch, draws=2)
    data = bnn.load_dataset(problem.data)
    posterior = bnn.get_model(problem.model).fit(data.train, inference=method, seed=SEED, progress=False)
    target, found = posterior.target, {}
    with isolated(derive_seed(SEED, "svi"), target.dtype, threads=1):  # the seed that the fit gave its guide
        guide = make_guide(problem.guide, posterior.model.guide, float_observations(target), "benchmark")
        guide(target.x, target.y)
        elbos = by_estimator(trace_elbo(target, guide, isinstance(guide, PATH_GRADIENT_GUIDES)), problem.batch)
        leaves = elbos["weights"].leaves
        start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        for stage, state in (("start", start), (f"{steps} steps", posterior.draws.state)):
            halves = [torch.cat([state[name].reshape(-1) for name in leaves if f".{kind}." in name]) for kind in KINDS]
            found[stage] = {
                name: measure(e, halves, draws, derive_seed(SEED, stage, name), problem.batch)
                for name, e in elbos.items()
            }
    rows = f"all {target.n} rows" if problem.batch is None else f"{problem.batch} of {target.n} rows"
    return f"{problem.model} on {problem.data}: {rows} a batch, {target.dim} latent numbers", found


def table(heading: str, found: dict[str, dict[str, Figures]]) -> str:
    lines = [heading]
    for stage, rows in found.items():
        lines += ["", f"{stage:<12}" + "".join(f"{name:>{width}}" for name, width in COLUMNS.items())]
        base = rows["weights"]
        for name, row in rows.items():
            ratio = row.variance / base.variance
            noise = "-" if row.noise == row.variance else f"{row.noise:.3g}"
            figures = f"{row.variance:>10.3g}{100 * row.variance_error / row.variance:>5.1f}{ratio:>9.3g}"
            figures += f"{noise:>9}{row.elbo:>11.2f}{row.elbo_error:>8.2g}"
            to_base = f"{'-':>6}{'-':>6}" if name == "weights" else f"{z_of(row, base):>6.2f}{gap_of(row, base):>6.2f}"
            lines.append(f"{name:<12}{figures}{to_base}")
    return "\n".join(lines)


def z_of(row: Figures, base: Figures) -> float:
    return (row.elbo - base.elbo) / (row.elbo_error**2 + base.elbo_error**2) ** 0.5


def gap_of(row: Figures, base: Figures) -> float:
    return float(((row.mean - base.mean) ** 2).sum()) / (row.variance_of_mean + base.variance_of_mean)


def draw(found: dict[str, dict[str, dict[str, Figures]]], steps: int) -> Any:
    """A panel for each stage, a line for each problem, a mark for each estimator; the axis of variances is logarithmic."""
    from bnn_pyro.drawing import BLUE, GREY, ORANGE, RED, new_figure, titled

    marks = dict(zip(ESTIMATORS, ((GREY, "o"), (RED, "D"), (BLUE, "s"), (ORANGE, "^")), strict=True))
    every = [row.variance for stages in found.values() for rows in stages.values() for row in rows.values()]
    figure, axes = new_figure(10.0, 1.7 + 0.55 * len(found), 1, 2)
    for i, axis in enumerate(axes):
        for line, stages in enumerate(found.values()):
            row = list(stages.values())[i]
            axis.axhspan(line - 0.4, line + 0.4, color="#f5f5f5", zorder=0)
            for y, (name, (color, mark)) in zip((-0.27, -0.09, 0.09, 0.27), marks.items(), strict=True):
                axis.plot(row[name].variance, line + y, mark, color=color, markersize=6, label=None if line else name)
        axis.grid(False, axis="y")
        axis.set_xscale("log")
        axis.set_xlim(min(every) / 2, max(every) * 2)
        axis.set_yticks(*((range(len(found)), [PROBLEMS[name].title for name in found]) if i == 0 else ([],)))
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.set_title(f"after {steps} steps" if i else "at the start", fontsize=10)
        axis.set_xlabel("trace of the gradient's covariance (nats²)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ESTIMATORS), frameon=False, fontsize=9)
    return titled(figure, "Variance of the ELBO's gradient by one draw", "mean-field guides, training rows")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument(
        "--draws", type=int, default=2000, help=f"of each estimator, rounded up to a multiple of {CHUNK}"
    )
    parser.add_argument("--steps", type=int, default=500, help="of training before the second measurement")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent / "results", help="for variance.png"
    )
    args = parser.parse_args(argv)
    from bnn_pyro.drawing import write

    torch.set_num_threads(1)
    warnings.filterwarnings(
        "ignore", "mlp_categorical, x, .*constant in the training rows"
    )  # pixels in digits' corners
    found = {}
    for name in args.problems:
        heading, found[name] = run(PROBLEMS[name], args.draws, args.steps)
        print(table(heading, found[name]), end="\n\n", flush=True)
    stages = [rows for of_problem in found.values() for rows in of_problem.values()]
    zs = [abs(z_of(row, rows["weights"])) for rows in stages for name, row in rows.items() if name != "weights"]
    print(f"largest |z| of {len(zs)}: {max(zs):.2f}")
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"figure: {write(draw(found, args.steps), args.out / 'variance.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
