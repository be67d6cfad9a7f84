"""``bnn-pyro compare``: its table is ArviZ's, its scores are those of the runs, and other rows are refused."""

import json
import re
import shutil

import arviz as az
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import t
from test_cli import call, complaint

import bnn_pyro as bnn
from bnn_pyro import comparing, results

OLD = az.__version__.startswith("0.")
SVI = ("--inference", "svi", "--set", "steps=600", "--no-pictures")
MAP = ("--inference", "map", "--set", "steps=20", "--no-pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs of the same rows under long names, of other rows, and of other rows with the same inputs."""
    folder = tmp_path_factory.mktemp("compare")
    data = bnn.load_dataset("diabetes").train
    frame = data.x[["bmi", "bp", "s5"]].assign(y_now=data.y, other=data.y + 1.0)
    frame.head(150).to_csv(folder / "mine.csv", index=False)
    mine = ("--data", folder / "mine.csv", "--drop", "other", "--target", "y_now")
    made = {
        "a_rather_long_name_of_a_run-svi": ("linear", *mine, *SVI),
        "tight": (
            "linear",
            *mine,
            "--inference",
            "svi",
            "--set",
            "steps=100",
            "--no-pictures",
            "--set",
            "prior_sd=0.02",
        ),
        "point": ("linear", *mine, *MAP),
        "target": ("linear", "--data", folder / "mine.csv", "--drop", "y_now", "--target", "other", *MAP),
        "held_out": ("linear", *mine, "--held-out", "0.3", *MAP),
    }
    for name, words in made.items():
        result = call("fit", *words, "--out", folder / name)
        assert result.exit_code in (0, 1), result.output
    return folder


LONG = "a_rather_long_name_of_a_run-svi"


def loaded(home, *names):
    return {name: bnn.load(home / name) for name in names}


def test_the_table_is_that_of_arviz(home):
    made = json.loads(call("compare", home / "tight", home / LONG, "--json").stdout)["loo"]
    runs = loaded(home, "tight", LONG)
    with results._quiet():
        expected = az.compare({name: run.idata for name, run in runs.items()})
        expected["elpd_diff"] = expected["elpd_diff"].abs()  # 1.x counts it negative
        loos = {name: az.loo(run.idata, pointwise=True) for name, run in runs.items()}
    assert list(made) == [str(name) for name in expected.index] == [LONG, "tight"]  # weights of 0.02 explain nothing
    for name, row in made.items():
        loo = loos[name]
        assert row["elpd_loo"] == pytest.approx(float(loo.elpd_loo if OLD else loo.elpd), rel=1e-12)
        assert row["p_loo"] == pytest.approx(float(loo.p_loo if OLD else loo.p), rel=1e-9)
        assert row["se"] == pytest.approx(float(loo.se), rel=1e-12)
        assert row["high_k"] == (np.asarray(loo.pareto_k) > 0.7).mean()
        for column in ("elpd_diff", "dse", "weight"):
            assert row[column] == pytest.approx(float(expected.loc[name, column]), rel=1e-6, abs=0 if OLD else 0.1)
    one, other = made[LONG], made["tight"]
    assert other["elpd_diff"] == pytest.approx(one["elpd_loo"] - other["elpd_loo"]) and one["elpd_diff"] == 0
    assert one["weight"] + other["weight"] == pytest.approx(1.0)


def test_loo_is_near_refitting_without_each_row(home):
    """The exact leave-one-out of the conjugate model, in original units; SVI's guide is close to its posterior."""
    posterior = loaded(home, LONG)[LONG]
    units, x, y = posterior.units, posterior.data.x, np.asarray(posterior.data.y, dtype=np.float64)
    z = (np.asarray(units.inputs(x), dtype=np.float64), (y - units.y_mean) / units.y_sd)
    design = np.hstack([z[0], np.ones((len(y), 1))])
    total = 0.0
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        precision = design[kept].T @ design[kept] + np.eye(design.shape[1])  # prior_sd is 1
        mean = np.linalg.solve(precision, design[kept].T @ z[1][kept])
        shape = 1.0 + kept.sum() / 2
        rate = 1.0 + (z[1][kept] @ z[1][kept] - mean @ precision @ mean) / 2
        scale = np.sqrt(rate / shape * (1.0 + design[i] @ np.linalg.solve(precision, design[i])))
        total += t.logpdf(z[1][i], 2 * shape, design[i] @ mean, scale) - np.log(units.y_sd)
    pointwise = results.dataset(posterior.idata, "log_likelihood")["y"].values.reshape(-1, len(y))
    plain = float((-logsumexp(-pointwise, axis=0) + np.log(len(pointwise))).sum())  # importance sampling, unsmoothed
    made = json.loads(call("compare", home / LONG, home / "tight", "--json").stdout)["loo"][LONG]["elpd_loo"]
    assert made == pytest.approx(total, abs=0.5) and made == pytest.approx(plain, abs=0.2)
    in_sample = float((logsumexp(pointwise, axis=0) - np.log(len(pointwise))).sum())
    assert in_sample - made > 2.0  # what an error of sign or no leaving-out would show


def test_the_page_shows_scores_and_warns_of_a_point(home):
    result = call("compare", home / LONG, home / "point", home / "tight")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Leave-one-out on 120 training rows of mine.csv" in result.stdout
    assert re.search(r"^  …ther_long_name_of_a_run-svi|^  …\w+-svi ", result.stdout, re.M)
    assert "Not to be compared: point." in result.stdout and "tight." not in result.stdout
    assert re.search(r"^  point +-[\d.]+ +[\d.]+ +0\.000 ", result.stdout, re.M)  # p_loo is not -5.7e-14
    line = next(one for one in result.stdout.splitlines() if one.startswith("  test RMSE"))
    for name, shown in zip((LONG, "point", "tight"), re.findall(r"([\d.]+) ± ", line), strict=True):
        content = json.loads(call("summary", home / name, "--json").stdout)
        assert float(shown) == pytest.approx(content["scores"]["test_rmse"]["value"], rel=6e-4)  # four digits


def test_many_rows_of_high_k_are_called_unreliable(home):
    made = comparing.compare_runs([str(home / LONG), str(home / "tight")])
    assert "Not to be relied on" not in comparing.page(made)
    made.loo.loc[LONG, "high_k"] = 0.06
    page = " ".join(comparing.page(made).split())
    assert f"Not to be relied on for {LONG}: Pareto k is above 0.7" in page and "6 %" in page


@pytest.mark.parametrize(("difference", "close"), [(0.0, False), (1.9, True), (2.1, False)])
def test_a_difference_below_twice_its_error_is_called_unclear(home, difference, close):
    made = comparing.compare_runs([str(home / LONG), str(home / "tight")])
    made.loo.loc["tight", ["elpd_diff", "dse"]] = difference, 1.0
    page = " ".join(comparing.page(made).split())
    assert ("No clear difference to the best: tight (diff below twice dse)." in page) == close


def test_json_names_each_run(home):
    made = json.loads(call("compare", home / "tight", home / "point", "--json").stdout)
    assert made["runs"]["tight"]["model"]["hyperparameters"]["prior_sd"] == 0.02
    assert made["runs"]["point"]["inference"]["name"] == "map" and made["runs"]["point"]["wall_time"] > 0
    assert made["runs"]["tight"]["directory"] == str(home / "tight")


@pytest.mark.parametrize(("runs", "code", "sentence"), [
    ((), 2, "expected two or more run directories, got 0"),
    (("tight",), 2, "expected two or more run directories, got 1"),
    (("tight", "tight"), 2, "twice. Name each once."),
    (("tight", "point", "../{}/tight"), 2, "twice. Name each once."),
    (("tight", "none"), 74, "expected a directory, got none"),
    (("tight", "target"), 2, "expected runs fitted to the same rows, got tight (120 rows of mine.csv"),
    (("tight", "held_out"), 2, "held_out (105 rows of mine.csv"),
    (("tight", "mine.csv"), 74, "mine.csv"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(home, runs, code, sentence):
    paths = [home / name.replace("{}", home.name) for name in runs]
    assert sentence in complaint(call("compare", *paths), code)


def test_a_damaged_run_is_named(home, tmp_path):
    copy = shutil.copytree(home / "tight", tmp_path / "copy")
    (copy / "posterior.nc").unlink()
    assert "posterior.nc: expected a file, got none" in complaint(call("compare", home / "point", copy), 74)


def test_runs_whose_last_names_are_the_same_have_whole_names(home, tmp_path):
    copy = shutil.copytree(home / "tight", tmp_path / "tight")
    made = json.loads(call("compare", home / "tight", copy, "--json").stdout)
    assert set(made["loo"]) == {str(home / "tight"), str(copy)}
    assert made["loo"][str(copy)]["elpd_diff"] == 0.0
