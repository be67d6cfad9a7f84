"""The benchmarks of SVI's gradients and of ensembles: variances that are known, one loss, tables that say what was found."""

import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # at the end: names of the tests' own files go first

import measure
import members
import svi_cases
import variance
from posteriors import PROBLEMS, load_rows

from bnn_pyro.elbo import trace_elbo
from bnn_pyro.guides import autoguide_by_name
from bnn_pyro.isolation import isolated
from bnn_pyro.structure import build_target

NOISE_SD, PRIOR_SD = 0.8, 1.5
GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(20, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(20, generator=GENERATOR, dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
RHO = torch.tensor([-1.5, -0.5, 0.2], dtype=torch.float64)
SD, SLOPE = torch.nn.functional.softplus(RHO), torch.sigmoid(RHO)  # of the guide; d sd / d rho


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, PRIOR_SD).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, NOISE_SD), obs=y)


def known_variance(estimator):
    """Trace of the covariance of -ELBO's gradient for ``linear``, by hand: sums of moments of normal numbers and signs."""
    away, s2 = X @ MEAN - Y, NOISE_SD**2
    square, spread = X**2, X**2 @ SD**2  # of each row's f
    if estimator.startswith("weights"):  # gradient by w is r + b (sd e), and e times that by the sds
        r, b = X.T @ away / s2, X.T @ X / s2
        if estimator == "weights":  # log prior and log q by the same draw; means and sds inside log q are held fixed
            r, b = r + MEAN / PRIOR_SD**2, b + torch.eye(3, dtype=torch.float64) / PRIOR_SD**2 - torch.diag(SD**-2)
        c = b * SD
        by_mean, by_sd = (c**2).sum(1), r**2 + (c**2).sum(1) + c.diagonal() ** 2
    elif estimator == "local":
        by_mean = square.T @ spread / s2**2
        by_sd = ((square * SD) ** 2 / spread[:, None] * (away**2 + 2 * spread)[:, None]).sum(0) / s2**2
    else:
        by_mean = square.T @ spread / s2**2
        by_sd = (square.T @ (away**2 + spread) + SD**2 * (2 * square.sum(0) ** 2 - (square**2).sum(0))) / s2**2
    return float((by_mean + SLOPE**2 * by_sd).sum())


def known_means():
    """The ELBO, and the gradient of minus it by means and rho."""
    s2, p2 = NOISE_SD**2, PRIOR_SD**2
    spread = X**2 @ SD**2
    likelihood = -0.5 * ((Y - X @ MEAN) ** 2 + spread) / s2 - np.log(NOISE_SD) - 0.5 * np.log(2 * np.pi)
    kl = torch.distributions.kl_divergence(dist.Normal(MEAN, SD), dist.Normal(torch.zeros_like(SD), PRIOR_SD)).sum()
    by_sd = (X**2).sum(0) * SD / s2 + SD / p2 - 1 / SD
    return float(likelihood.sum() - kl), torch.cat([X.T @ (X @ MEAN - Y) / s2 + MEAN / p2, SLOPE * by_sd])


def measured(estimator, rho=RHO, draws=10_000, batch=None):
    with isolated(seed=0, dtype=torch.float64):
        target = build_target(linear, X, Y, dtype=torch.float64)
        guide = autoguide_by_name("normal", linear)
        guide(X, Y)
        elbo = variance.by_estimator(trace_elbo(target, guide, path_gradient=True), batch)[estimator]
        return variance.measure(elbo, [MEAN, rho], draws, 1, batch)


@pytest.mark.parametrize("estimator", variance.ESTIMATORS)
def test_a_linear_models_gradient_has_the_variance_and_the_mean_that_are_known(estimator):
    found, (elbo, gradient) = measured(estimator), known_means()
    assert abs(found.variance - known_variance(estimator)) < 5 * found.variance_error
    assert found.variance_error < 0.05 * found.variance and found.noise == found.variance
    assert abs(found.elbo - elbo) < 5 * found.elbo_error
    assert float(((found.mean - gradient) ** 2).sum()) < 8 * found.variance_of_mean
    assert found.variance_of_mean == found.variance / found.draws


def test_draws_that_are_added_up_in_chunks_have_the_variance_of_all_together():
    generator = torch.Generator().manual_seed(1)
    noise = torch.cat([torch.randn(variance.CHUNK, 3, generator=generator, dtype=torch.float64) for _ in range(3)])
    by_mean = ((MEAN + SD * noise) @ X.T - Y) @ X / NOISE_SD**2
    expected = torch.cat([by_mean, SLOPE * noise * by_mean], 1).var(0).sum()
    found = measured("weights+kl", draws=2 * variance.CHUNK + 1)
    assert found.draws == 3 * variance.CHUNK and found.variance == pytest.approx(float(expected), rel=1e-10)


def test_the_estimators_variances_on_a_linear_model_differ_by_more_than_their_errors():
    """So that the comparison above could tell one from another."""
    known = sorted(known_variance(estimator) for estimator in variance.ESTIMATORS)
    assert all(b > 1.1 * a for a, b in zip(known, known[1:]))


def test_batches_of_all_rows_leave_the_noise_alone():
    found = measured("weights+kl", batch=len(X))
    assert found.noise == pytest.approx(known_variance("weights+kl"), rel=0.05)
    assert found.variance == pytest.approx(found.noise, rel=0.05)


def test_rows_drawn_without_replacement_have_the_variance_of_a_finite_population():
    """A guide with next to no spread: n^2 / m (1 - m / n) times the variance among rows' gradients."""
    n, m = len(X), 5
    found = measured("weights+kl", rho=torch.full((3,), -20.0, dtype=torch.float64), batch=m)
    by_row = X * (X @ MEAN - Y)[:, None] / NOISE_SD**2
    assert found.variance == pytest.approx(n**2 / m * (1 - m / n) * float(by_row.var(0).sum()), rel=0.05)
    assert found.noise < 1e-9 * found.variance
    error = found.elbo_error * (found.draws / 2) ** 0.5  # pairs share their rows: as many batches as pairs
    by_row = -0.5 * ((Y - X @ MEAN) / NOISE_SD) ** 2
    assert error == pytest.approx(float(n**2 / m * (1 - m / n) * by_row.var()) ** 0.5, rel=0.05)


def figures(value, elbo, mean):
    return variance.Figures(1000, value, value / 50, value, torch.tensor(mean), elbo, 0.3)


def test_the_table_says_ratio_z_and_gap():
    base = figures(1.2345e11, -123456.78, [1.0, 2.0])
    other = figures(1.2345e2, -123455.28, [1.0, 3.0])._replace(elbo_error=0.4, noise=12.0)
    text = variance.table("heading", {"start": {"weights": base, "local": other}})
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-2].split() == ["weights", "1.23e+11", "2.0", "1", "-", "-123456.78", "0.3", "-", "-"]
    row = text.splitlines()[-1].split()
    assert row == ["local", "123", "2.0", "1e-09", "12", "-123455.28", "0.4", "3.00", "0.00"]
    assert variance.gap_of(other, base._replace(variance=2e3, noise=2e3)) == pytest.approx(1 / (2.0 + 0.2349))


def test_the_figure_has_a_mark_for_each_variance():
    stage = {name: figures(10.0**i, 0.0, [0.0]) for i, name in enumerate(variance.ESTIMATORS)}
    drawn = variance.draw({"engel": {"start": stage, "500 steps": stage}}, 500)
    assert len(drawn.axes) == 2 and all(axis.get_xscale() == "log" for axis in drawn.axes)
    marks = {line.get_label(): float(line.get_xdata()[0]) for line in drawn.axes[0].lines}
    assert marks == {"weights": 1.0, "weights+kl": 10.0, "local": 100.0, "flipout": 1000.0}


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws(tmp_path, capsys):
    variance.main(["--problems", "breast_cancer", "--draws", "200", "--steps", "50", "--out", str(tmp_path / "deep")])
    said = capsys.readouterr().out
    assert max(map(len, said.split("figure:")[0].splitlines())) <= 80
    assert [said.count(f"\n{name} ") for name in variance.ESTIMATORS] == [2] * 4
    assert float(said.split("largest |z| of 6: ")[1].split()[0]) < 4.5
    assert (tmp_path / "deep" / "variance.png").read_bytes().startswith(b"\x89PNG")


def test_plain_torchs_loss_is_the_log_joint_density_that_is_written_out():
    """Which has the Jacobian of sigma = exp(log sigma), that a MAP estimate leaves out."""
    problem, rows, rng = PROBLEMS["mlp1"], load_rows(PROBLEMS["mlp1"]), np.random.default_rng(3)
    plain = members.Plain(problem, rows)
    sites = {"sigma": rng.normal(size=1)}
    for (i, a, b), layer in zip(problem.layers, plain.linear, strict=True):
        sites |= {f"w{i}": rng.normal(size=(1, a, b)), f"b{i}": rng.normal(size=(1, b))}
        layer.weight.data = torch.from_numpy(sites[f"w{i}"][0].T / a**0.5).float()
        layer.bias.data = torch.from_numpy(sites[f"b{i}"][0]).float()
    plain.log_sigma.data = torch.tensor(float(sites["sigma"][0]))
    written = float(measure.log_density(problem, rows, sites)[0] - sites["sigma"][0])
    assert plain.constant() - float(plain.loss().detach()) == pytest.approx(written, rel=1e-5)


def test_the_table_of_members_takes_the_best_runs():
    ours = [members.Trained(*row) for row in ((10, 8, 9, -1), (2, 9, 12, -2), (3, 7, 11, -3))]
    eager = [members.Trained(0, seconds, seconds - 1, -4) for seconds in (4, 3, 5)]
    text = members.table(422, 100, 5000, ours, eager)
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split()[-2:] for line in text.splitlines()[-6:]] == [
        ["3.00", "1.00"], ["2.00", "1.00"], ["7.00", "2.33"], ["10.00", "3.33"], ["11.00", "5.50"], ["18.00", "6.00"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def lenet():
    """Eight images, their labels, and values of LeNet's sites, float64."""
    x, y = (torch.from_numpy(array[:8]) for array in svi_cases.load_images())
    torch.manual_seed(1)
    values = {}
    for name, shape in svi_cases.SHAPES.items():
        outs = svi_cases.outputs(name)
        values |= {name: torch.randn(shape, dtype=torch.float64), name.replace("w", "b"): torch.randn(outs).double()}
    return x.double(), y, values


def in_torch(values):
    """The plain network with these weights."""
    network = svi_cases.lenet_in_torch().double()
    for i, layer in enumerate((layer for layer in network if hasattr(layer, "weight")), 1):
        w = values[f"w{i}"] * svi_cases.fan_in(f"w{i}") ** -0.5
        layer.weight.data, layer.bias.data = w if w.ndim == 4 else w.T, values[f"b{i}"]
    return network


def test_lenet_in_pyro_is_the_plain_network(lenet):
    x, y, values = lenet
    trace = pyro.poutine.trace(pyro.condition(svi_cases.lenet_in_pyro, values)).get_trace(x, y)
    assert sum(v.numel() for v in values.values()) == 61_706
    logits = in_torch(values)(x).detach()
    expected = -torch.nn.functional.cross_entropy(logits, y, reduction="sum")
    assert trace.nodes["y"]["fn"].log_prob(y).sum() == pytest.approx(float(expected), rel=1e-9)


def test_a_torch_network_whose_weights_are_sampled_has_the_same_posterior(lenet):
    """Up to the constant of its weights' other scale."""
    x, y, values = lenet

    def log_joint(program, given):
        return float(pyro.poutine.trace(pyro.condition(program, given)).get_trace(x, y).log_prob_sum())

    differences = []
    with isolated(dtype=torch.float64):
        bayesian = svi_cases.with_samples(svi_cases.lenet_in_torch(), labels=True)
        for factor in (1.0, 0.3):
            given, own = {name: factor * value for name, value in values.items()}, {}
            for name, parameter in in_torch(given).named_parameters():
                own[f"network.{name}"] = parameter.detach()
            differences.append(log_joint(svi_cases.lenet_in_pyro, given) - log_joint(bayesian, own))
    assert differences[0] == pytest.approx(differences[1], rel=1e-9)


def test_lenet_in_numpyro_has_the_density_of_pyros(lenet):
    pytest.importorskip("numpyro")
    import jax
    from numpyro.infer.util import log_density

    x, y, values = lenet
    with jax.enable_x64(True):
        arrays = {name: jax.numpy.asarray(value.numpy()) for name, value in values.items()}
        inputs = (jax.numpy.asarray(x.numpy()), jax.numpy.asarray(y.numpy()))
        found = float(log_density(svi_cases.lenet_in_numpyro(), inputs, {}, arrays)[0])
    trace = pyro.poutine.trace(pyro.condition(svi_cases.lenet_in_pyro, values)).get_trace(x, y)
    assert found == pytest.approx(float(trace.log_prob_sum()), rel=1e-9)
