"""The benchmarks: both forms of each problem have one density, draws are judged rightly, tables say what the rows say."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # at the end: names of the tests' own files go first

import mcmc
import measure
import overview
import table
from posteriors import HELD_OUT, PROBLEMS, Rows, load_rows, numpyro_model, pyro_program
from samplers import SAMPLERS, Job

from bnn_pyro.isolation import isolated
from bnn_pyro.structure import build_target


@pytest.fixture(params=list(PROBLEMS))
def problem(request):
    return PROBLEMS[request.param]


def points(problem, count=5):
    """Unconstrained sites at ``count`` points, (count, *shape) float64."""
    rng = np.random.default_rng(3)
    sites = {}
    for i, a, b in problem.layers:
        sites |= {f"w{i}": rng.normal(size=(count, a, b)), f"b{i}": rng.normal(size=(count, b))}
    if problem.likelihood == "normal":
        sites["sigma"] = rng.normal(size=count)
    return sites


def is_constant(difference, size):
    return np.ptp(difference) < 1e-9 * np.abs(size).max()


def test_pyro_program_has_the_density_that_is_written_out(problem):
    rows, sites = load_rows(problem), points(problem)
    y = rows.y if rows.y.dtype == np.int64 else rows.y.astype(np.float64)
    with isolated(dtype=torch.float64):
        target = build_target(
            pyro_program(problem), torch.from_numpy(rows.x).double(), torch.from_numpy(y), name=problem.name,
            dims={}, dtype=torch.float64,
        )  # fmt: skip
        flat = np.concatenate([sites[s.name].reshape(5, -1) for s in target.sites], 1)
        by_pyro = np.array([float(target.log_density(torch.from_numpy(z))) for z in flat])
    assert flat.shape[1] == target.dim == problem.dim
    written = measure.log_density(problem, rows, sites)
    assert is_constant(by_pyro - written, written)


def test_numpyro_model_has_the_density_that_is_written_out(problem):
    pytest.importorskip("numpyro")
    import jax
    from numpyro.infer.util import potential_energy

    rows, sites = load_rows(problem), points(problem)
    with jax.enable_x64(True):
        x, y = jax.numpy.asarray(rows.x, dtype="float64"), jax.numpy.asarray(rows.y)
        one = lambda z: -potential_energy(numpyro_model(problem), (x, y), {}, z)
        by_numpyro = np.array([float(one({k: v[i] for k, v in sites.items()})) for i in range(5)])
    written = measure.log_density(problem, rows, sites)
    assert is_constant(by_numpyro - written, written)


def test_rows_are_disjoint_and_in_units_of_the_training_part(problem):
    rows = load_rows(problem)
    assert rows.x_test.shape == (HELD_OUT, problem.sizes[0]) and len(rows.y_test) == HELD_OUT
    varies = rows.x.std(0) > 0
    assert np.allclose(rows.x.mean(0), 0, atol=1e-5) and np.allclose(rows.x.std(0)[varies], 1, atol=1e-5)
    assert not (rows.x_test[:, None] == rows.x[None]).all(-1).any()
    assert problem.likelihood != "normal" or abs(rows.y.std() - 1) < 1e-5
    assert problem.name != "digits" or len(rows.x) == 1000


def test_independent_draws_are_judged_as_such():
    problem, rng = PROBLEMS["linear"], np.random.default_rng(5)
    rows = load_rows(problem)
    sites = {"w1": rng.normal(size=(4, 250, 10, 1)), "b1": rng.normal(size=(4, 250, 1)), "sigma": np.zeros((4, 250))}
    found = measure.judge(problem, rows, sites)
    assert 600 < found["min_ess"] <= found["median_ess"] < 1400  # of 1000 independent draws
    assert found["max_r_hat"] < 1.02
    f = rows.x_test @ (sites["w1"].reshape(1000, 10).T / 10**0.5) + sites["b1"].reshape(1000)  # (20, 1000)
    expected = np.log(stats.norm.pdf(rows.y_test[:, None], f, 1.0).mean(1)).mean()
    assert found["test_lpd"] == pytest.approx(expected, rel=1e-9)
    assert found["test_score"] == pytest.approx(np.sqrt(np.mean((f.mean(1) - rows.y_test) ** 2)), rel=1e-9)
    assert found["finite"]


def test_chains_that_differ_are_judged_as_such():
    problem, rng = PROBLEMS["digits"], np.random.default_rng(6)
    rows = load_rows(problem)
    small = Rows(rows.x[:20], rows.y[:20], rows.x_test, rows.y_test)
    sites = {name: np.repeat(v[:, None], 10, 1) for name, v in points(problem, 4).items()}  # each chain at one point
    sites = {name: v + 1e-3 * rng.normal(size=v.shape) for name, v in sites.items()}
    assert measure.judge(problem, small, sites)["max_r_hat"] > 1.5
    f = measure.network(problem, {name: v[:, 0] for name, v in sites.items()}, small.x_test)
    assert np.allclose(np.exp(measure.watched(problem, {}, f)).reshape(4, HELD_OUT, 10).sum(-1), 1)


def row(sampler, chains, speed, r_hat=1.001, seed=0, **more):
    figures = {
        "mode": "run", "problem": "mlp1", "sampler": sampler, "chains": chains, "seed": seed, "threads": 2, "warmup": 500,
        "kept": 2048, "min_ess_per_s": speed, "median_ess_per_s": 2 * speed, "max_r_hat": r_hat, "gradients_per_s": 1000.0,
        "gradients": 4000, "min_ess_per_gradient": speed / 1000, "test_lpd": -1.25, "setup_s": 7.0, "sampling_s": 4.0,
        "total_s": 11.0, "import_s": 1.0, "divergences": 0,
    }  # fmt: skip
    return figures | more


def pyro_row(**more):
    """Speed only, as Pyro's draws are not drawn."""
    whole = row("pyro_nuts", 1, 0.0, gradients_per_s=50.0, **more)
    return {k: v for k, v in whole.items() if "ess" not in k and k not in ("max_r_hat", "test_lpd")}


def line_of(text, title):
    (line,) = [line for line in text.splitlines() if line.startswith(title) and not line.startswith(title + ":")]
    return line.removeprefix(title).split()


def test_table_takes_medians_at_the_best_chain_count_that_converged():
    rows = [
        *(row("ours_nuts", 4, speed, seed=i) for i, speed in enumerate((10.0, 30.0, 500.0))),
        *(row("ours_nuts", 16, 90.0, r_hat=1.02, seed=i) for i in range(3)),  # faster, but not converged
        *(row("numpyro_nuts", 16, 20.0, seed=i) for i in range(3)),
        row("numpyro_nuts_seq", 4, 5.0),
        row("blackjax_nuts", 4, 3.0, r_hat=1.5),
        row("blackjax_nuts", 16, 4.0, r_hat=1.6),
        pyro_row(),
        {**{k: row("blackjax_mclmc", 4, 0)[k] for k in ("mode", "problem", "sampler", "chains", "threads", "warmup", "kept",
                                                        "seed")}, "missing": "blackjax not installed"},
    ]  # fmt: skip
    text = table.render(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert line_of(text, "bnn_pyro NUTS") == ["4", "30.0", "60.0", "1000", "1.001", "-1.25", "7.0", "1.50", "6.00"]
    assert line_of(text, "NumPyro NUTS seq")[-2:] == ["0.25", "1.00"]
    assert line_of(text, "BlackJAX NUTS")[:2] == ["16", "4.00"] and "1.600*" in line_of(text, "BlackJAX NUTS")
    assert line_of(text, "BlackJAX NUTS")[-2:] == ["0.20*", "0.80*"]
    assert line_of(text, "Pyro NUTS jit e")[1:4] == ["1.00", "2.00", "50.0"]  # 0.02 ESS per gradient at 50 a second
    assert line_of(text, "BlackJAX MCLMC") == ["blackjax", "not", "installed"]
    assert table.best_chains(rows, "mlp1", "ours_nuts", 2) == 4
    assert table.best_chains(rows, "mlp1", "ours_nuts", 1) is None


def test_table_of_first_draws_ranks_by_time_and_extrapolates_pyro():
    rows = [
        pyro_row(setup_s=2.0),
        row("ours_nuts", 16, 1.0, mode="first400", total_s=10.0, kept=400),
        row("ours_nuts", 4, 1.0, mode="first400", total_s=8.0, kept=400),
        row("numpyro_nuts", 4, 1.0, mode="first400", total_s=16.0, kept=400),
    ]
    text = table.render(rows).split("Seconds to the first 400")[1]
    assert line_of(text, "bnn_pyro NUTS") == ["4", "7.0", "4.0", "8.0", "1.0", "1.001", "2.00", "-"]
    assert line_of(text, "Pyro NUTS jit e")[1:4] == ["2.0", "80.0", "82.0"]  # 4000 gradients at 50 a second


def test_the_overview_has_a_line_for_each_problem():
    rows = [
        *(row("ours_nuts", 4, speed, seed=i) for i, speed in enumerate((10.0, 30.0, 500.0))),
        row("ours_nuts", 4, 777.0, kept=99),  # of other settings than most
        row("numpyro_nuts", 16, 20.0, r_hat=1.02),
        row("numpyro_nuts", 16, 20.0, problem="mlp2"),
        pyro_row(),
        row("ours_nuts", 4, 1.0, r_hat=1.1, mode="first400", total_s=8.04, kept=400),
    ]
    text = overview.render(rows)
    assert max(map(len, text.splitlines())) <= 80
    speeds, firsts = ([line.split() for line in part.splitlines()] for part in text.split("\n\n")[:2])
    assert speeds[2] == ["NUTS", "ChEES", "vec", "seq", "par", "BlackJAX", "Pyro", "e"]
    assert speeds[3] == ["mlp1", "30.0", "-", "20.0*", "-", "-", "-", "1.00*"]  # Pyro's from NumPyro's, by gradients
    assert speeds[4] == ["mlp2", "-", "-", "20.0", "-", "-", "-", "-"]
    assert firsts[3] == ["mlp1", "8.0", "-", "-", "-", "-", "-"] and len(firsts) == 4


def test_a_run_is_resumed_and_failures_are_tried_again(tmp_path, monkeypatch):
    out, tried = tmp_path / "deep" / "mcmc.jsonl", []
    answers = iter([{"gradients": 1}, {"error": "stopped"}, {"gradients": 2}])
    monkeypatch.setattr(mcmc, "attempt", lambda job, limit: tried.append(job.seed) or next(answers))
    jobs = [Job("run", "linear", "ours_nuts", 4, seed, 10, 20, 1) for seed in (0, 1)]
    mcmc.perform(jobs, out, 1.0)
    with out.open("a") as file:
        file.write('{"problem": "linear", "cut sho')  # as a machine that stops leaves it
    assert len(mcmc.read(out)) == 2
    mcmc.perform(jobs, out, 1.0)
    assert tried == [0, 1, 1]
    assert [r.get("gradients") for r in mcmc.read(out)] == [1, None, 2]


def test_chain_counts_far_behind_at_the_first_seed_have_no_others(tmp_path, monkeypatch):
    out, tried = tmp_path / "mcmc.jsonl", []
    speeds = {2: 4.0, 4: 10.0, 16: 6.0, 64: None}

    def attempt(job, limit):
        tried.append((job.seed, job.chains))
        speed = speeds[job.chains]
        return (
            {"error": "took more than 9 s", "limit": limit}
            if speed is None
            else {"min_ess_per_s": speed, "max_r_hat": 1.0}
        )

    monkeypatch.setattr(mcmc, "attempt", attempt)
    jobs = [Job("run", "linear", "ours_nuts", chains, seed, 10, 20, 1) for seed in (0, 1) for chains in speeds]
    mcmc.perform(jobs, out, 9.0, near=0.5)
    assert tried == [(0, 2), (0, 4), (0, 16), (0, 64), (1, 4), (1, 16)]
    mcmc.perform(jobs[:4], out, 9.0)  # what took too long is not tried again
    assert len(tried) == 6
    mcmc.perform(jobs[:4], out, 10.0)
    assert tried[6:] == [(0, 64)]

    slow = row("ours_nuts", 2, 5.0)
    assert not table.is_behind([slow, row("ours_nuts", 4, 20.0, r_hat=1.5)], 2, 0.5)  # the faster one did not converge


def test_counts_with_fewer_seeds_are_not_chosen():
    rows = [row("ours_nuts", 4, speed, seed=i) for i, speed in enumerate((10.0, 11.0, 12.0))]
    assert table.choose([*rows, row("ours_nuts", 16, 90.0)], "ours_nuts")["chains"] == 4


def test_a_peer_that_is_missing_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(mcmc.util, "find_spec", lambda name: None)
    out = tmp_path / "mcmc.jsonl"
    mcmc.main(
        [
            "run",
            "--problems",
            "linear",
            "--samplers",
            "numpyro_nuts",
            "--chains",
            "4",
            "--seeds",
            "0",
            "--out",
            str(out),
        ]
    )
    (written,) = map(json.loads, out.read_text().splitlines())
    assert written["missing"] == "numpyro not installed" and written["chains"] == 4


def test_draws_of_a_chain_are_rounded_up_and_first_draws_run_at_the_best_chain_count(tmp_path):
    assert Job("run", "linear", "ours_nuts", 64, 0, 10, 400, 1).draws == 7
    args = mcmc.parser().parse_args(["first400", "--problems", "mlp1", "--seeds", "0", "--samplers", "ours_nuts", "pyro_nuts",
                                     "blackjax_nuts"])  # fmt: skip
    jobs = list(mcmc.first_jobs(args, [row("ours_nuts", 64, 1.0)]))
    assert [(j.sampler, j.chains, j.kept) for j in jobs] == [("ours_nuts", 64, 400), ("blackjax_nuts", 16, 400)]


def test_every_sampler_has_a_title_that_fits():
    assert all(len(f"{s.title} {s.mark}") <= 17 for s in SAMPLERS.values())


@pytest.mark.parametrize(
    ("sampler", "devices"), [("numpyro_nuts_par", "16"), ("numpyro_nuts_seq", "1"), ("ours_nuts", "1")]
)
def test_chains_in_parallel_have_a_device_each(sampler, devices):
    set_to = mcmc.environment(mcmc.Job("run", "mlp1", sampler, 16, 0, 500, 2048, 2), "scratch")
    assert set_to["JAX_NUM_CPU_DEVICES"] == devices and set_to["OMP_NUM_THREADS"] == "2"
