"""The scikit-learn estimators: their numbers are the posterior's, and scikit-learn's tools work on them."""

import io
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import bnn_pyro as bnn

QUICK = {"steps": 200, "lr": 0.1, "draws": 60}
SMALL = {"hidden": (6,)}


def regressor(**settings):
    return bnn.BNNRegressor(**{"hyperparameters": SMALL, "options": QUICK, **settings})


def linear(**settings):
    return bnn.BNNRegressor("linear", **{"options": QUICK, **settings})


def classifier(**settings):
    return bnn.BNNClassifier(**{"hyperparameters": SMALL, "options": QUICK, **settings})


@pytest.fixture(scope="module")
def numbers():
    """x (60, 3) in units far apart, and y (60,) far from 0: slope 3 and -0.2, noise of standard deviation 0.3."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 3)) * [1.0, 10.0, 0.1] + [5.0, 0.0, 2.0]
    return x, 100.0 + 3.0 * x[:, 0] - 0.2 * x[:, 1] + 0.3 * rng.normal(size=60)


@pytest.fixture(scope="module")
def groups():
    """x (90, 2) in three clouds, and the cloud's name; the names' order is not that in which they appear."""
    rng = np.random.default_rng(4)
    names = np.repeat(["pear", "apple", "fig"], 30)
    centres = {"pear": (0.0, 0.0), "apple": (4.0, 0.0), "fig": (0.0, 4.0)}
    return np.array([centres[name] for name in names]) + rng.normal(size=(90, 2)), names


@pytest.fixture(scope="module")
def flats():
    """A data frame with text: rent is 10 a square metre, and 200 more in the centre."""
    rng = np.random.default_rng(5)
    place = np.array(["centre", "edge", "hill"])[np.arange(80) % 3]
    size = rng.uniform(30.0, 90.0, 80)
    rent = 10.0 * size + np.where(place == "centre", 200.0, 0.0) + rng.normal(size=80)
    return pd.DataFrame({"place": place, "size": size}), rent


@pytest.fixture(scope="module")
def fitted(numbers):
    return regressor(random_state=7).fit(*numbers)


@pytest.fixture(scope="module")
def sorted_fruit(groups):
    return classifier(random_state=7).fit(*groups)


def test_a_regressor_predicts_what_its_posterior_does(fitted, numbers):
    x, y = numbers
    expected = fitted.posterior_.predict(x)
    mean, std = fitted.predict(x, return_std=True)
    assert np.array_equal(fitted.predict(x), expected.mean) and np.array_equal(mean, expected.mean)
    assert np.allclose(std**2, expected.epistemic + expected.aleatoric, rtol=1e-12)
    direct = bnn.fit(bnn.get_model("mlp_gaussian", **SMALL), x, y, inference="svi", seed=7, dtype="float64", **QUICK)
    assert np.array_equal(mean, direct.predict(x).mean)
    assert fitted.score(x, y) == r2_score(y, mean) and fitted.n_features_in_ == 3
    assert fitted.model_.hidden == (6,) and fitted.posterior_.seed == 7


def test_an_interval_is_the_posteriors_and_comes_last(fitted, numbers):
    x = numbers[0]
    lower, upper = fitted.posterior_.predict(x).interval(0.8)
    got = fitted.predict(x, return_std=True, return_interval=0.8)
    assert len(got) == 4 and np.array_equal(got[2], lower) and np.array_equal(got[3], upper)
    assert np.array_equal(fitted.predict(x, return_interval=0.8)[1], lower)
    with pytest.raises(bnn.OptionError, match="probability between 0 and 1"):
        fitted.predict(x, return_interval=90)


def test_a_classifier_predicts_what_its_posterior_does(sorted_fruit, groups):
    x, names = groups
    expected = sorted_fruit.posterior_.predict(x)
    probs = sorted_fruit.predict_proba(x)
    assert sorted_fruit.classes_.tolist() == ["apple", "fig", "pear"] == expected.classes.tolist()
    assert np.array_equal(probs, expected.probs) and np.allclose(probs.sum(1), 1.0, atol=1e-12)
    assert np.array_equal(sorted_fruit.predict_log_proba(x), np.log(probs))
    assert np.array_equal(sorted_fruit.predict(x), expected.label)
    assert sorted_fruit.score(x, names) == accuracy_score(names, expected.label) > 0.9
    for column, name in enumerate(sorted_fruit.classes_):  # each column is high where its class is
        assert probs[names == name, column].mean() > 0.7


@pytest.mark.parametrize(
    "labels", [np.array([3.0, 8.0]), np.array([False, True]), np.array(["no", "yes"], dtype=object)]
)
@pytest.mark.parametrize("model", ["logistic", "mlp_categorical"])
def test_labels_come_back_as_they_were_given(groups, labels, model):
    x = groups[0][:60]
    y = labels[np.repeat([1, 0], 30)]
    made = bnn.BNNClassifier(model, options=QUICK | {"steps": 120}).fit(x, y)
    assert made.classes_.dtype == labels.dtype and made.classes_.tolist() == labels.tolist()
    assert made.predict(x).dtype == labels.dtype and made.score(x, y) > 0.9


def test_the_same_random_state_gives_the_same_bits(fitted, numbers):
    x, y = numbers
    short = {"steps": 5, "draws": 20}
    at_zero = linear(options=short).fit(x, y).predict(x)
    assert np.array_equal(clone(fitted).fit(x, y).predict(x), fitted.predict(x))
    assert np.array_equal(
        linear(random_state=np.int64(0), options=short).fit(x, y).predict(x), at_zero
    )  # None is seed 0
    assert not np.array_equal(linear(random_state=1, options=short).fit(x, y).predict(x), at_zero)
    drawn = [linear(random_state=np.random.RandomState(5), options=short).fit(x, y) for _ in range(2)]
    assert drawn[0].posterior_.seed == drawn[1].posterior_.seed != 0
    state = np.random.RandomState(5)
    one, two = (linear(random_state=state, options=short).fit(x, y).posterior_.seed for _ in range(2))
    assert one == drawn[0].posterior_.seed != two


@pytest.mark.parametrize("wrong", [-1, 1.5, "zero", True])
def test_a_random_state_that_is_no_seed_is_refused(numbers, wrong):
    with pytest.raises(bnn.OptionError, match="seed: expected a whole number"):
        linear(random_state=wrong).fit(*numbers)


def test_global_random_state_is_left_alone(numbers):
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    linear().fit(*numbers).predict(numbers[0])
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_a_scaler_in_front_changes_nothing(fitted, numbers):
    x, y = numbers
    scaled = make_pipeline(StandardScaler(), clone(fitted)).fit(x, y)
    mean, std = scaled.predict(x, return_std=True)  # a pipeline hands arguments on to its last step
    assert np.allclose(mean, fitted.predict(x), rtol=1e-9)
    assert np.allclose(std, fitted.predict(x, return_std=True)[1], rtol=1e-9)
    unscaled = regressor(random_state=7, options=QUICK | {"standardize": False})
    with pytest.warns(UserWarning, match="Leave standardize=True"):
        unscaled.fit(x, y)
    assert abs(unscaled.predict(x) - mean).max() > 1.0


def test_one_row_is_predicted_as_among_many(fitted, sorted_fruit, numbers, groups):
    x, rows = numbers[0], groups[0]
    alone = np.concatenate([fitted.predict(x[i : i + 1]) for i in range(20)])
    assert np.allclose(alone, fitted.predict(x)[:20], rtol=1e-12)
    alone = np.concatenate([sorted_fruit.predict_proba(rows[i : i + 1]) for i in range(20)])
    assert np.allclose(alone, sorted_fruit.predict_proba(rows)[:20], rtol=1e-12)


def test_text_columns_are_encoded(flats):
    x, rent = flats
    made = linear(options=QUICK | {"steps": 400}).fit(x, rent)
    assert made.feature_names_in_.tolist() == ["place", "size"] and made.n_features_in_ == 2
    assert made.posterior_.data.columns == ("place=centre", "place=edge", "place=hill", "size")
    assert np.array_equal(made.predict(x), made.posterior_.predict(x).mean) and made.score(x, rent) > 0.97
    new = pd.DataFrame({"place": ["centre", "edge"], "size": [50.0, 50.0]})
    difference = made.predict(new)
    assert 150.0 < difference[0] - difference[1] < 250.0
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        assert np.array_equal(made.predict(new.to_numpy(dtype=object)), difference)
    with pytest.raises(ValueError, match="feature names should match"):
        made.predict(x[["size", "place"]])
    with (
        pytest.raises(ValueError, match="X has 1 features, but BNNRegressor is expecting 2"),
        pytest.warns(UserWarning, match="valid feature names"),
    ):
        made.predict(x[["size"]].to_numpy())
    with pytest.raises(bnn.DataError, match="got 'moon' at row 1"):
        made.predict(new.assign(place=["centre", "moon"]))


def test_y_beside_text_columns_is_checked_too(flats):
    x, rent = flats
    for y, message in (
        (rent[:-1], "inconsistent numbers of samples"),
        (np.where(rent > rent.min(), rent, np.nan), "Input y contains NaN"),
        (np.stack([rent, rent], 1), "y should be a 1d array"),
        (None, "requires y to be passed"),
    ):
        with pytest.raises(ValueError, match=message):
            linear().fit(x, y)


def test_a_frame_of_numbers_keeps_its_names(numbers):
    x, y = numbers
    frame = pd.DataFrame(x, columns=["age", "weight", "height"])
    made = linear().fit(frame, y)
    assert (
        made.feature_names_in_.tolist() == ["age", "weight", "height"] and made.posterior_.data.columns[1] == "weight"
    )
    assert np.array_equal(made.predict(frame), linear().fit(x, y).predict(x))  # names change no number
    assert np.array_equal(made.posterior_.predict(frame).mean, made.predict(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        made.predict(frame[["weight", "age", "height"]])


def test_missing_values_are_refused_dropped_or_imputed(numbers):
    x, y = numbers[0].copy(), numbers[1]
    x[4, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        linear().fit(x, y)
    kept = np.arange(60) != 4
    dropped = linear(missing="drop").fit(x, y)
    assert np.array_equal(dropped.predict(x[kept]), linear().fit(x[kept], y[kept]).predict(x[kept]))
    with pytest.raises(ValueError, match="contains NaN"):
        dropped.predict(x)
    imputed = linear(missing="impute").fit(x, y)
    median = x.copy()
    median[4, 1] = np.nanmedian(x[:, 1])
    assert imputed.posterior_.data.columns == ("x0", "x1", "x2", "x1=missing")
    assert np.isfinite(imputed.predict(x)).all() and np.allclose(
        imputed.predict(x)[kept], imputed.predict(median)[kept]
    )
    assert imputed.__sklearn_tags__().input_tags.allow_nan and not dropped.__sklearn_tags__().input_tags.allow_nan
    with pytest.raises(bnn.UnknownNameError, match="did you mean 'impute'"):
        linear(missing="imput").fit(x, y)


def test_data_are_refused_in_the_words_of_scikit_learn(numbers, groups, fitted):
    x, y = numbers
    for estimator in (regressor(), classifier()):
        with pytest.raises(NotFittedError, match=r"is not fitted yet\. Call 'fit' with appropriate arguments"):
            estimator.predict(x)
    with pytest.raises(TypeError, match="Sparse data was passed"):
        linear().fit(scipy.sparse.csr_array(x), y)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        classifier().fit(x, y)
    with pytest.raises(ValueError, match="X has 2 features, but BNNRegressor is expecting 3"):
        fitted.predict(x[:, :2])
    with pytest.raises(ValueError, match="y should be a 1d array"):
        linear().fit(x, np.stack([y, y], 1))
    with pytest.raises(bnn.DataError, match="at least two classes, got only 'fig'"):
        classifier().fit(groups[0], np.full(90, "fig"))
    with pytest.raises(bnn.DataError, match=r"two classes, got 3. Only binary classification is supported"):
        bnn.BNNClassifier("logistic").fit(*groups)
    with pytest.raises(TypeError, match="sample_weight"):
        linear().fit(x, y, sample_weight=np.ones(60))


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"model": "mlp_gausian"}, bnn.UnknownNameError, "did you mean 'mlp_gaussian'"),
        (
            {"model": "logistic"},
            bnn.OptionError,
            r"model of regression, got 'logistic' \(classification\). Use BNNClassifier",
        ),
        ({"model": 3}, bnn.OptionError, "a zoo model's name or a model, got 3"),
        ({"model": bnn.BNN}, bnn.OptionError, "a zoo model's name or a model, got <class"),
        ({"hyperparameters": {"hiden": (3,)}}, bnn.UnknownNameError, "did you mean 'hidden'"),
        ({"hyperparameters": [3]}, bnn.OptionError, r"hyperparameters: expected a dict .* got \[3\]"),
        ({"model": bnn.get_model("linear")}, bnn.OptionError, "hyperparameters: expected None beside a model"),
        ({"options": {"step": 3}}, bnn.UnknownNameError, "did you mean 'steps'"),
        ({"options": {"seed": 3}}, bnn.OptionError, r"got 'seed'. Write BNNRegressor\(random_state=...\)"),
        ({"inference": "sv"}, bnn.UnknownNameError, "did you mean 'svi'"),
        ({"inference": bnn.SVI()}, bnn.OptionError, "options inside the value"),
        ({"dtype": "float16"}, bnn.UnknownNameError, "dtype"),
    ],
)
def test_settings_are_refused_by_name(numbers, settings, kind, message):
    with pytest.raises(kind, match=message):
        regressor(**settings).fit(*numbers)


def test_a_classifier_takes_models_of_classes_only(groups):
    with pytest.raises(bnn.OptionError, match=r"'linear' \(regression\). Use BNNRegressor"):
        bnn.BNNClassifier("linear").fit(*groups)
    with pytest.raises(bnn.OptionError, match=r"got 'a program'. Use BNNRegressor, or bnn.fit"):
        bnn.BNNClassifier(slope_program).fit(*groups)


def slope_program(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def coin_program(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def test_models_may_be_values_and_programs_and_methods_values(numbers):
    x, y = numbers
    by_name = linear(hyperparameters={"prior_sd": np.float64(2.0)}).fit(x, y)
    by_value = bnn.BNNRegressor(bnn.get_model("linear", prior_sd=2.0), inference=bnn.SVI(**QUICK)).fit(x, y)
    assert np.array_equal(by_name.predict(x), by_value.predict(x))
    centred = x - x.mean(0)
    own = bnn.BNNRegressor(slope_program, options=QUICK | {"steps": 600}).fit(centred, y - y.mean())
    w = own.posterior_.idata.posterior["w"].mean(("chain", "draw")).values
    assert np.allclose(w[:2], [3.0, -0.2], atol=0.25)
    coin = bnn.BNNRegressor(coin_program, options=QUICK).fit(centred, (y > y.mean()).astype(int))
    with pytest.raises(bnn.ModelError, match="expected a likelihood of numbers, got one of classes"):
        coin.predict(x)


def test_parameters_can_be_read_set_and_cloned(fitted):
    parameters = fitted.get_params()
    assert parameters["hyperparameters"] == SMALL and parameters["random_state"] == 7
    other = clone(fitted).set_params(options={"steps": 9}, random_state=None)
    assert not hasattr(other, "posterior_") and other.get_params()["options"] == {"steps": 9}
    assert fitted.get_params() == parameters and "random_state=7" in repr(fitted)
    with pytest.raises(ValueError, match="Invalid parameter 'steps'"):
        other.set_params(steps=9)


def test_a_grid_search_finds_the_better_settings(numbers):
    x, y = numbers
    grid = [
        {"hyperparameters": [{"prior_sd": 1e-3}, {"prior_sd": 1.0}], "inference": ["svi", "map"]},
        {"model": ["mlp_gaussian"], "hyperparameters": [{"hidden": (2,)}]},
    ]
    search = GridSearchCV(linear(options=QUICK | {"steps": 80}), grid, cv=2, error_score="raise").fit(x, y)
    scores = dict(zip((str(p) for p in search.cv_results_["params"]), search.cv_results_["mean_test_score"]))
    assert len(scores) == 5 and search.best_params_["hyperparameters"] != {"prior_sd": 1e-3}
    assert all(score < 0.2 for p, score in scores.items() if "0.001" in p) and search.best_score_ > 0.8
    assert np.array_equal(search.predict(x), search.best_estimator_.posterior_.predict(x).mean)


def test_a_search_reaches_into_the_dictionaries(numbers):
    x, y = numbers
    grid = {"hyperparameters__prior_sd": [1e-3, 1.0], "options__lr": [0.1, 0.2]}
    asked = linear(hyperparameters={"noise": 0.1}, options=QUICK | {"steps": 80})
    search = GridSearchCV(asked, grid, cv=2, error_score="raise").fit(x, y)
    best = search.best_estimator_
    assert len(search.cv_results_["params"]) == 4 and search.best_params_["hyperparameters__prior_sd"] == 1.0
    assert (best.posterior_.model.prior_sd, best.posterior_.model.noise, best.posterior_.method.steps) == (1.0, 0.1, 80)
    assert best.posterior_.method.lr == search.best_params_["options__lr"]
    assert asked.get_params()["hyperparameters__noise"] == 0.1 and asked.hyperparameters == {"noise": 0.1}
    piped = make_pipeline(StandardScaler(), asked).set_params(bnnregressor__options__steps=9)
    assert piped[-1].options == QUICK | {"steps": 9} and "options__steps" not in asked.get_params(deep=False)


def test_nested_names_make_new_dictionaries():
    given = {"hidden": (6,)}
    one = bnn.BNNRegressor(hyperparameters=given)
    one.set_params(hyperparameters__hidden=(9,), options__steps=3)
    assert given == {"hidden": (6,)} and one.hyperparameters == {"hidden": (9,)} and one.options == {"steps": 3}
    one.set_params(model="linear", hyperparameters={"noise": 0.2}, hyperparameters__prior_sd=2.0)
    assert one.hyperparameters == {"noise": 0.2, "prior_sd": 2.0}
    one.set_params(**one.get_params())
    assert one.hyperparameters == {"noise": 0.2, "prior_sd": 2.0} and one.options == {"steps": 3}
    with pytest.raises(bnn.UnknownNameError, match="'prior_ds': did you mean 'prior_sd'"):
        one.set_params(hyperparameters__prior_ds=1.0)


def test_cross_validation_works(numbers, groups):
    scores = cross_val_score(linear(), *numbers, cv=KFold(2), error_score="raise")
    assert scores.shape == (2,) and (scores > 0.9).all()
    x, names = groups
    probs = cross_val_predict(classifier(), x, names, cv=2, method="predict_proba")
    assert probs.shape == (90, 3)
    assert (np.array(["apple", "fig", "pear"])[probs.argmax(1)] == names).mean() > 0.9


def test_probabilities_can_be_calibrated_and_drawn(groups):
    x, names = groups
    made = CalibratedClassifierCV(bnn.BNNClassifier("logistic", options=QUICK), cv=2).fit(x[:60], names[:60])
    assert made.score(x[:60], names[:60]) > 0.9 and made.classes_.tolist() == ["apple", "pear"]
    display = CalibrationDisplay.from_estimator(made, x[:60], names[:60], n_bins=3)
    assert display.pos_label == "pear"


def test_pipelines_may_hand_on_frames(flats):
    x, rent = flats
    columns = ColumnTransformer(
        [("place", OneHotEncoder(sparse_output=False), ["place"]), ("size", StandardScaler(), ["size"])]
    )
    plain = make_pipeline(columns, linear()).fit(x, rent)
    framed = make_pipeline(clone(columns), linear()).set_output(transform="pandas").fit(x, rent)
    assert framed[-1].feature_names_in_.tolist() == [
        "place__place_centre",
        "place__place_edge",
        "place__place_hill",
        "size__size",
    ]
    assert np.array_equal(plain.predict(x), framed.predict(x)) and plain.score(x, rent) > 0.97
    logged = TransformedTargetRegressor(linear(), func=np.log, inverse_func=np.exp).fit(x[["size"]], rent)
    assert logged.score(x[["size"]], rent) > 0.5


def test_a_fitted_estimator_survives_pickle(fitted, sorted_fruit, numbers, groups):
    verdict = str(fitted.posterior_.diagnose())
    copied = pickle.loads(pickle.dumps(fitted))
    for a, b in zip(copied.predict(numbers[0], return_std=True), fitted.predict(numbers[0], return_std=True)):
        assert np.array_equal(a, b)
    assert str(copied.posterior_.diagnose()) == verdict and np.array_equal(
        copied.posterior_.idata.posterior["w1"], fitted.posterior_.idata.posterior["w1"]
    )
    file = io.BytesIO()
    joblib.dump(sorted_fruit, file)
    file.seek(0)
    assert np.array_equal(joblib.load(file).predict_proba(groups[0]), sorted_fruit.predict_proba(groups[0]))
    own = bnn.BNNRegressor(slope_program, options=QUICK | {"steps": 20}).fit(*numbers)
    assert np.array_equal(pickle.loads(pickle.dumps(own)).predict(numbers[0]), own.predict(numbers[0]))


def test_a_constant_column_is_warned_of_and_costs_nothing(numbers):
    x, y = numbers[0].copy(), numbers[1]
    x[:, 2] = 1.0
    with pytest.warns(UserWarning, match="column 2: constant in the training rows"):
        made = linear().fit(x, y)
    assert made.score(x, y) > 0.9


def test_a_quiet_fit_says_nothing(numbers, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear().fit(*numbers).predict(numbers[0])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_bar_is_shown_only_when_asked_for(numbers, monkeypatch):
    shown = []

    def spy(*args, progress, **settings):
        shown.append(progress)
        return bnn.fit(*args, progress=False, **settings)

    monkeypatch.setattr("bnn_pyro.estimator_core.fit", spy)
    linear(options={"steps": 3}).fit(*numbers)
    linear(options={"steps": 3, "progress": True}).fit(*numbers)
    assert shown == [False, True]


def test_a_fit_that_did_not_converge_warns_where_it_was_called():
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30.0)
    with pytest.warns(ConvergenceWarning, match=r"^BNNRegressor: 20 steps are too few.*steps=4000\.") as caught:
        bnn.BNNRegressor("linear", options={"steps": 20}).fit(x, y)
    assert [w.filename for w in caught if w.category is ConvergenceWarning] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        bnn.BNNRegressor("linear", options={"steps": 1500}).fit(x, y)


def test_what_a_masked_array_masks_is_missing(fitted, numbers):
    X, y = numbers
    masked = np.ma.masked_array(X, np.arange(X.size).reshape(X.shape) == 5)
    with pytest.raises(ValueError, match="X contains NaN"):
        fitted.predict(masked)
    with pytest.raises(ValueError, match="X contains NaN"):
        linear().fit(masked, y)
    with pytest.raises(ValueError, match="y contains NaN"):
        linear().fit(X, np.ma.masked_array(y, np.arange(len(y)) == 3))
