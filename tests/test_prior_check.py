"""``bnn-pyro prior``: numbers against draws of the prior, the rows of the picture's grid, and the pictures."""

import json

import numpy as np
import pandas as pd
import pytest
from test_cli import call, complaint
from test_own_table import table
from test_report import is_drawn

import bnn_pyro as bnn
from bnn_pyro import prior_check
from bnn_pyro.model import Model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = table().drop(columns="number")
    whole.assign(big=whole["age"] > 40).to_csv("mine.csv", index=False)
    whole.assign(age=whole["age"].where(whole.index != 3)).to_csv("gap.csv", index=False)
    return tmp_path


def prior(*words):
    result = call("prior", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def half68(values):
    low, high = np.quantile(values, [0.16, 0.84], axis=0)
    return (high - low) / 2


def test_numbers_are_those_of_draws_of_the_prior(folder):
    made = prior("linear", "--data", "diabetes", "--draws", "150", "--seed", "5", "--set", "prior_sd=0.5")
    data = bnn.load_dataset("diabetes").train
    posterior = bnn.get_model("linear", prior_sd=0.5).fit(data, inference="prior", draws=150, seed=5)
    drawn = posterior.predict(data.x)
    f, y = drawn.function_draws.reshape(150, -1), drawn.draws.reshape(150, -1)
    expected = {
        "observed_low": np.quantile(data.y, 0.05), "observed_high": np.quantile(data.y, 0.95),
        "observed_spread": half68(data.y), "prior_low": np.quantile(y, 0.05), "prior_high": np.quantile(y, 0.95),
        "function_spread": np.median(half68(f)), "noise_spread": np.median(half68(y - f)),
        "function_range": np.median(f.max(1) - f.min(1)),
    }  # fmt: skip
    for name, value in expected.items():
        assert made[name] == pytest.approx(value, rel=1e-5), name
    assert made["column"] == "age" and made["classes"] == [] and made["picture"] == "runs/prior-linear-diabetes.png"


def test_the_spread_of_a_function_is_that_of_the_formula(folder):
    """With a known noise, f(x) ~ N(mean, prior_sd^2 (1 + |x|^2)) in standard units: its quantiles are known."""
    made = prior("linear", "--data", "diabetes", "--draws", "2000", "--set", "noise=0.5", "--set", "prior_sd=2")
    data = bnn.load_dataset("diabetes").train
    x = (data.x - data.x.mean()) / data.x.std(ddof=0)
    z = 0.99446  # of the 84 % quantile
    spread = z * 2.0 * np.median(np.sqrt(1.0 + (x**2).sum(axis=1))) * data.y.std(ddof=0)
    assert made["function_spread"] == pytest.approx(
        spread, rel=0.07
    )  # it is a median over rows, so less than 3 standard errors of one row
    assert made["noise_spread"] == pytest.approx(z * 0.5 * data.y.std(ddof=0), rel=0.06)


def test_numbers_of_classes(folder):
    made = prior("logistic", "--data", "mine.csv", "--target", "sold", "--draws", "80", "--seed", "2")
    rows = bnn.load_table("mine.csv", "sold").train
    drawn = bnn.get_model("logistic").fit(rows, inference="prior", draws=80, seed=2).predict(rows.x)
    p = drawn.function_draws.reshape(80, -1, 2)
    mean = p.mean(0)
    top = p.max(-1)
    expected = {
        "entropy": -(mean * np.log(mean)).sum(-1).mean(), "largest_entropy": np.log(2),
        "aleatoric": -(p * np.log(p)).sum(-1).mean(), "confidence_median": np.median(top),
        "confidence_low": np.quantile(top, 0.05), "confidence_high": np.quantile(top, 0.95),
    }  # fmt: skip
    for name, value in expected.items():
        assert made[name] == pytest.approx(value, rel=1e-5), name
    assert made["classes"] == ["no", "yes"]


def test_the_grid_moves_one_column_and_keeps_the_others_at_their_middle():
    x = pd.DataFrame({
        "a": [1.0, 2.0, 4.0, np.nan], "town": ["x", "y", "y", None],
        "big": [True, True, False, True], "n": [1, 2, 3, 10],
        "kind": pd.Categorical(["u", "v", "v", "u"], categories=["w", "v", "u"]),
    })  # fmt: skip
    grid = prior_check.along(x, "a")
    assert list(grid.columns) == list(x.columns) and len(grid) == prior_check.POINTS
    assert grid["a"].iloc[0] == pytest.approx(1.0 - 0.75) and grid["a"].iloc[-1] == pytest.approx(4.0 + 0.75)
    assert np.ptp(np.diff(grid["a"])) < 1e-12
    for name, middle in (("town", "y"), ("big", True), ("n", 2.5)):
        assert (grid[name] == middle).all(), name
    assert list(grid["kind"].cat.categories) == ["w", "v", "u"] and grid["kind"].nunique() == 1
    assert list(prior_check.along(x, "town")["town"]) == ["x", "y"]
    assert list(prior_check.along(x, "big")["big"]) == [False, True]
    assert (prior_check.along(x, "town")["a"] == 2.0).all()
    still = prior_check.along(pd.DataFrame({"a": [3.0, 3.0]}), "a")["a"]
    assert (still.iloc[0], still.iloc[-1]) == (2.0, 4.0)


@pytest.mark.parametrize(("words", "column"), [
    ("linear --target price", "age"),
    ("linear --target price --column town", "town"),
    ("linear --target price --column big", "big"),
    ("logistic --target sold --drop price", "age"),
    ("logistic --target sold --drop price --column town", "town"),
    ("mlp_categorical --target town --column sold", "sold"),
    ("mlp_hetero --target price --set hidden=4", "age"),
])  # fmt: skip
def test_pictures_are_drawn_and_pages_fit(words, column, folder):
    model, *rest = words.split()
    result = call("prior", model, "--data", "mine.csv", *rest, "--draws", "30", "--out", "p.png")
    assert result.exit_code == 0, result.output
    assert is_drawn(folder / "p.png") and sorted(p.name for p in folder.glob("*.png")) == ["p.png"]
    assert f"along {column}," in " ".join(result.stdout.split()) and result.stdout.endswith("picture  p.png\n")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.startswith(f"Prior of {model} on mine.csv\n")


def test_the_picture_draws_the_functions_of_the_prior():
    data = bnn.load_dataset("stackloss").train
    posterior = bnn.get_model("linear").fit(data, inference="prior", draws=40)
    column = data.x.columns[0]
    grid = prior_check.along(data.x, column)
    curves = posterior.predict(grid)
    y = data.y.to_numpy(dtype=float)
    figure = prior_check._picture(grid[column], column, curves, data.x[column], y, "loss", "head")
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == prior_check.POINTS]
    assert len(drawn) == prior_check.CURVES
    for line, one in zip(drawn, curves.function_draws.reshape(40, -1)):
        np.testing.assert_array_equal(line.get_ydata(), one)
        assert np.ptp(np.diff(one)) < 1e-3 * np.abs(one).max()  # a line, for a linear model
    (points,) = (line for line in axes.lines if len(line.get_xdata()) == len(y))
    np.testing.assert_array_equal(points.get_ydata(), y)


def test_a_missing_value_is_filled_in_when_asked(folder):
    assert "at row 3 (line 5 of the file); 1 of 100 are missing" in complaint(
        call("prior", "linear", "--data", "gap.csv", "--target", "price")
    )
    made = prior("linear", "--data", "gap.csv", "--target", "price", "--missing", "impute", "--draws", "20")
    assert made["column"] == "age" and is_drawn(folder / "runs" / "prior-linear-gap.png")


REFUSED = [
    ("linear --data mine.csv", 2, "--target: expected the column of mine.csv to predict"),
    ("linear --data mine.csv --target price --column aeg", 2, "unknown column of mine.csv 'aeg': did you mean 'age'?"),
    ("linear --data mine.csv --target price --column price", 2, "unknown column of mine.csv 'price'"),
    ("linear --draws 1", 2, "--draws: expected at least 2"),
    ("linear --set draws=5", 2, "Write --draws."),
    ("linear --set prior_ds=5", 2, "did you mean 'prior_sd'?"),
    ("linear --seed -1", 2, "seed: expected a whole number of at least 0"),
    ("linear --out mine.csv", 74, "expected a new file, got one that exists"),
    ("linear --out .", 74, "expected a file, got a directory"),
    ("linear --out none/p.png", 74, "expected a folder to write to, got none"),
    ("logistic --data diabetes", 2, "expected data for classification"),
]


@pytest.mark.parametrize(("words", "code", "sentence"), REFUSED, ids=[words for words, _, _ in REFUSED])
def test_what_cannot_be_drawn_is_refused_first(words, code, sentence, folder, monkeypatch):
    monkeypatch.setattr(Model, "fit", lambda *_, **__: pytest.fail("drawing began"))
    before = sorted(folder.iterdir())
    assert sentence in complaint(call("prior", *words.split()), code)
    assert sorted(folder.iterdir()) == before
