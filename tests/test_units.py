"""Standard units and back: moments, scales, constant and repeated columns, indicators."""

import warnings

import numpy as np
import pandas as pd
import pytest

import bnn_pyro as bnn
from bnn_pyro.data import collect
from bnn_pyro.units import FURTHEST, Units, learn_units, warn_of_outliers, warn_of_units

RNG = np.random.default_rng(0)
X, Y = RNG.normal(2.0, 3.0, size=(20, 3)), RNG.normal(-1.0, 5.0, size=20)


def warned(call, *args, **kwargs):
    """What the call returns, and the sentences that it warned with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = call(*args, **kwargs)
    return value, [str(w.message) for w in caught]


def test_standard_units_have_mean_0_and_sd_1_and_map_back():
    y = np.stack([Y, 3 * Y + 1], 1)
    data = collect(X, y)
    units = learn_units(data, x=True, y=True, where="fit")
    x, standard = units.inputs(data.x), units.targets(data.y)
    assert np.allclose(x.mean(0), 0, atol=1e-14) and np.allclose(x.std(0), 1)
    assert np.allclose(standard.mean(0), 0, atol=1e-14) and np.allclose(standard.std(0), 1)
    assert np.allclose(standard * units.y_sd + units.y_mean, y, rtol=1e-14)
    assert units.log_jacobian == pytest.approx(np.log(y.std(0)).sum(), rel=1e-14)
    new = RNG.normal(size=(4, 3))
    assert np.allclose(units.inputs(new), (new - X.mean(0)) / X.std(0), rtol=1e-14)


def test_units_are_learnt_by_name_and_left_alone_where_not_asked():
    data = collect({"a": X, "b": Y}, Y)
    units = learn_units(data, x=True, y=False, where="fit")
    assert np.allclose(units.inputs(data.x)["b"].std(), 1) and np.allclose(units.inputs(data.x)["a"].mean(0), 0)
    assert units.targets(Y) is Y and units.log_jacobian == 0.0 and float(units.y_sd) == 1.0
    assert Units({}).inputs(X) is X


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_units_undo_any_scale(scale):
    plain = learn_units(collect(X, Y), x=True, y=True, where="fit")
    scaled = learn_units(collect(X * scale, Y * scale), x=True, y=True, where="fit")
    assert np.allclose(scaled.inputs(X * scale), plain.inputs(X), rtol=1e-9)
    assert np.allclose(scaled.targets(Y * scale), plain.targets(Y), rtol=1e-9)


def test_half_precision_rows_do_not_overflow_in_their_moments():
    """Sums and squares of float16 values beyond 65504 are infinite in float16."""
    x = (np.arange(20.0)[:, None] * 1000).astype(np.float16)
    units = learn_units(collect(x, Y), x=True, y=False, where="fit")
    assert np.isfinite(units.inputs(x)).all() and np.allclose(units.inputs(x).std(0), 1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -1e-9])
def test_constant_columns_are_named_in_one_warning_and_centred(value):
    x = X.copy()
    x[:, 1] = value
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        units = learn_units(collect(pd.DataFrame(x, columns=["a", "b", "c"]), Y), x=True, y=True, where="fit")
    text = "fit, x, column b: constant in the training rows, so it carries no information and is only centred."
    assert [str(w.message) for w in caught] == [text]
    assert np.allclose(units.inputs(x)[:, 1], 0, atol=1e-9) and np.isfinite(units.inputs(x + 1)).all()
    with pytest.warns(UserWarning, match="^fit, x, column 1: constant"):
        learn_units(collect(x, Y), x=True, y=True, where="fit")
    with pytest.warns(UserWarning, match="^fit, y: constant"):
        learn_units(collect(X, np.full(20, value)), x=True, y=True, where="fit")


def test_several_constant_columns_are_all_named():
    x = np.concatenate([X, np.zeros((20, 1)), np.ones((20, 1))], 1)
    with pytest.warns(UserWarning, match="^fit, x, columns 3, 4: constant"):
        learn_units(collect(x, Y), x=True, y=True, where="fit")


def test_repeated_columns_are_named_with_the_one_they_repeat():
    x = np.concatenate([X, X[:, :1], X[:, 1:2] * 2, X[:, :1]], 1)
    units, said = warned(learn_units, collect(x, Y), x=True, y=True, where="fit")
    text = "fit, x, columns 3, 5: equal to column 0 in each training row, so only the sum of their weights is learnt."
    assert said == [text], "twice a column is not that column"
    assert np.allclose(units.inputs(x)[:, 3], units.inputs(x)[:, 0])


def test_names_are_cut_after_ten():
    x = np.concatenate([X, np.zeros((20, 12))], 1)
    _, said = warned(learn_units, collect(x, Y), x=False, y=False, where="fit")
    assert said[0].startswith("fit, x, columns 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 2 more: constant")


def test_indicators_of_a_category_keep_their_values():
    """A level of 1 in 20 rows is 0 and 1, not -0.2 and 4.4; the numbers beside it are in standard units."""
    table = pd.DataFrame({"age": X[:, 0], "town": ["rare"] + ["a", "b"] * 9 + ["a"], "kind": ["u", "v"] * 10})
    data = collect(table, Y)
    assert data.columns == ("age", "town=a", "town=b", "town=rare", "kind=v")
    made = learn_units(data, x=True, y=True, where="fit").inputs(data.x)
    assert np.array_equal(made[:, 3], np.arange(20) == 0) and np.array_equal(made[:, 1:], data.x[:, 1:])
    assert np.allclose(made[:, 0], (X[:, 0] - X[:, 0].mean()) / X[:, 0].std())
    plain = collect(table[["age"]].assign(flag=np.arange(20) % 2), Y)  # numbers of the user's own are standardised
    assert np.allclose(learn_units(plain, x=True, y=False, where="fit").inputs(plain.x).std(0), 1)


def test_a_dicts_integers_keep_their_values():
    data = collect({"unit": np.arange(20) % 4, "z": X}, Y)
    made = learn_units(data, x=True, y=False, where="fit").inputs(data.x)
    assert np.array_equal(made["unit"], np.arange(20) % 4) and np.allclose(made["z"].std(0), 1)


def test_no_rows_and_one_row_have_no_units_of_their_own():
    none = learn_units(collect(np.zeros((0, 3)), np.zeros(0), empty=True), x=True, y=True, where="fit")
    assert np.array_equal(none.inputs(X), X) and np.array_equal(none.targets(Y), Y) and none.log_jacobian == 0.0
    one, said = warned(learn_units, collect(X[:1], Y[:1]), x=True, y=True, where="fit")
    assert said == [] and np.array_equal(one.inputs(X), X - X[0]) and np.array_equal(one.targets(Y), Y - Y[0])


@pytest.mark.parametrize(("x", "y", "start"), [
    (X, Y, None),
    (X * [1, 1e3, 1], Y, "fit, x, column 1: the priors expect numbers near 0 of standard deviation near 1, got mean"),
    (X * [1, 1, 1e-3], Y, "fit, x, column 2: the priors expect"),
    (X + [500, 0, 500], Y, "fit, x, columns 0, 2: the priors expect"),
    (X, Y * 1e4, "fit, y: the priors expect numbers near 0 of standard deviation near 1, got mean"),
    ({"a": Y * 1e3}, Y, "fit, x['a']: the priors expect"),
    (X > 0, Y, None),
    (X * [1, 0, 0] + [0, 1e6, 0], Y, None),  # constant columns have a warning of their own
], ids=["near", "wide", "narrow", "shifted", "y", "dict", "booleans", "constant"])  # fmt: skip
def test_columns_far_from_standard_units_are_named(x, y, start):
    _, said = warned(warn_of_units, collect(x, y), True, "fit")
    assert [s.startswith(start) for s in said] == [True] if start else said == []


def test_the_mean_and_sd_of_the_column_are_said():
    x = X.copy()
    x[:, 1] = x[:, 1] * 1e3 + 7e5
    _, (said,) = warned(warn_of_units, collect(x, Y), True, "fit")
    assert f"got mean {x[:, 1].mean():.3g} and standard deviation {x[:, 1].std():.3g}." in said
    _, said = warned(warn_of_units, collect(X, Y * 1e4), False, "fit")
    assert said == [], "y was not asked about"


def test_labels_are_never_standardised():
    y = np.array([10, 20] * 10)
    posterior = bnn.get_model("logistic").fit(X, y, inference="prior", draws=20)
    assert posterior.units.y is None and sorted(np.unique(posterior.target.y)) == [0, 1]
    assert np.allclose(posterior.target.x.std(0, correction=0), 1, atol=1e-6)


def test_a_value_far_from_the_training_rows_is_named_in_standard_deviations():
    x = np.column_stack([RNG.normal(size=400), np.zeros(400), np.full(400, 7.0)])
    x[3, 1] = 1.0  # constant but for one row: sd 0.05
    train = collect(pd.DataFrame(x, columns=["a", "pixel", "same"]), RNG.normal(size=400))
    (units, _) = warned(learn_units, train, x=True, y=True, where="fit")
    mean, sd = x[:, 1].mean(), x[:, 1].std()
    new = np.array([[0.0, 1.0, 7.0], [0.0, 16.0, 7.0], [0.5, 0.0, 7.0]])
    _, (said,) = warned(warn_of_outliers, units, new, train, "m, predict", pd.DataFrame(new))
    assert said.startswith(
        "m, predict, x, column pixel: expected values within 50 standard deviations, got 16 at row 1, "
    )
    assert (
        f"{(16 - mean) / sd:.0f} standard deviations from the mean of the training rows ({mean:.3g}, sd {sd:.3g})"
        in said
    )
    for value, warns in ((mean + (FURTHEST - 0.1) * sd, 0), (mean + (FURTHEST + 0.1) * sd, 1), (mean - 51 * sd, 1)):
        _, said = warned(warn_of_outliers, units, np.array([[0.0, value, 7.0]]), train, "m, predict")
        assert len(said) == warns and "row" not in "".join(said).partition("standard dev")[0]
    _, (said,) = warned(warn_of_outliers, units, np.array([[0.0, 0.0, 99.0]]), train, "m, predict")
    assert "column same: " in said and "got 99, where all training rows have 7" in said
    _, (said,) = warned(warn_of_outliers, units, np.array([[1e3, 1e6, 7.0]]), train, "m, predict")
    assert "columns pixel, a: " in said  # the furthest first
    assert warned(warn_of_outliers, Units({}), new * 1e6, train, "m, predict")[1] == []  # the program's own units


def test_a_training_value_far_from_the_others_is_named():
    x = np.zeros((3000, 2))
    x[:, 0], x[5, 1] = RNG.normal(size=3000), 1.0
    _, said = warned(learn_units, collect(x, x[:, 0]), x=True, y=True, where="fit")
    assert (
        len(said) == 1
        and said[0].startswith("fit, x, column 1: expected values within 50")
        and "55 standard" in said[0]
    )
    assert (
        warned(learn_units, collect(x[:2000], x[:2000, 0]), x=True, y=True, where="fit")[1] == []
    )  # sqrt(n - 1) at most
    assert warned(learn_units, collect(x, x[:, 0]), x=False, y=False, where="fit")[1] == []


def test_predictions_and_scores_warn_of_a_column_that_was_nearly_constant():
    x = np.column_stack([RNG.normal(size=400), np.zeros(400)])
    x[3, 1] = 1.0
    posterior = bnn.get_model("linear").fit(x, x[:, 0], inference="prior", draws=20)
    new = np.array([[0.0, 0.0], [0.0, 16.0]])
    for call, rows in ((posterior.predict, (new,)), (posterior.score, (new, np.zeros(2)))):
        _, said = warned(call, *rows)
        assert any(s.startswith("linear, predict, x, column 1: expected values within 50") for s in said), said
    for named in ({"a": new}, new[:1]):
        assert warned(warn_of_outliers, posterior.units, named, posterior.data, "m")[1] == []
