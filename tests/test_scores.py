"""Scores against scikit-learn, naive loops and the spread over many simulated data sets."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

import bnn_pyro as bnn
from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.prediction import Prediction
from bnn_pyro.scores import calibration_error, classification_scores, inside, regression_scores, reliability, score

CLASSES = np.array(["ash", "beech", "cedar"])


def class_prediction(probs, classes=CLASSES):
    probs = np.asarray(probs, dtype=float)
    codes = lambda y: np.searchsorted(classes, np.asarray(y))
    return ClassPrediction(
        classes,
        probs,
        aleatoric=np.zeros(len(probs)),
        codes=np.zeros((1, 1, len(probs)), int),
        log_prob=lambda y: np.log(probs[np.arange(len(probs)), codes(y)]),
        function_draws=lambda: probs[None, None],
    )


def simulated(n, seed, k=3, sharpness=1.0):
    """Probabilities (n, k) and codes drawn from their ``sharpness``-th power: 1 is calibrated, less is overconfident."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(k, 0.7), size=n) * 0.98 + 0.02 / k
    true = probs**sharpness
    true /= true.sum(-1, keepdims=True)
    return probs, (rng.random((n, 1)) > true.cumsum(-1)).sum(-1).clip(max=k - 1)


@pytest.mark.parametrize("classes", [CLASSES, np.array([1, 2]), np.array([False, True])], ids=["text", "int", "bool"])
def test_classification_scores_are_scikit_learns(classes):
    k = len(classes)
    probs, codes = simulated(400, seed=1, k=k)
    y = classes[codes]
    scores = score(class_prediction(probs, classes), y)
    assert list(scores) == ["test_accuracy", "test_nll", "test_brier", "test_ece"]
    assert scores["test_accuracy"][0] == pytest.approx(metrics.accuracy_score(y, classes[probs.argmax(-1)]), rel=1e-12)
    assert scores["test_nll"][0] == pytest.approx(metrics.log_loss(y, probs, labels=classes), rel=1e-12)
    one_against_rest = sum(metrics.brier_score_loss(codes == c, probs[:, c]) for c in range(k))
    assert scores["test_brier"][0] == pytest.approx(one_against_rest, rel=1e-12)
    squares = ((np.eye(k)[codes] - probs) ** 2).sum(-1)
    own = -np.log(probs[np.arange(400), codes])
    for name, values in (("accuracy", probs.argmax(-1) == codes), ("nll", own), ("brier", squares)):
        assert scores[f"test_{name}"][1] == pytest.approx(stats.sem(values.astype(float)), rel=1e-12)


def test_nll_is_of_the_mixture_whatever_the_class_probabilities_say():
    """Of ``log_prob``, which stays finite where a probability rounds to 0."""
    prediction = class_prediction([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    prediction._log_prob = lambda y: np.array([-1e4, 0.0])
    assert classification_scores(prediction, ["cedar", "beech"])["test_nll"][0] == 5000.0


def test_calibration_error_by_hand():
    """Bins of a half: (0, 0.5] holds 0.4 and 0.5 (one right), (0.5, 1] holds 0.9, 0.7 and 1.0 (two right)."""
    confidence, correct = np.array([0.4, 0.5, 0.9, 0.7, 1.0]), np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    rows, means, right = reliability(confidence, correct, bins=2)
    assert rows.tolist() == [2, 3] and means.tolist() == pytest.approx([0.45, 2.6 / 3])
    assert right.tolist() == pytest.approx([0.5, 2 / 3])
    expected = 2 / 5 * 0.05 + 3 / 5 * 0.2
    assert calibration_error(confidence, correct, bins=2) == pytest.approx(expected)
    assert calibration_error(np.ones(4), np.ones(4)) == 0.0 and calibration_error(np.ones(4), np.zeros(4)) == 1.0
    assert calibration_error(np.zeros(4), np.ones(4)) == 1.0, "a confidence of 0 has a bin too"


def test_calibration_error_is_a_loop_over_fifteen_bins():
    probs, codes = simulated(1000, seed=2, sharpness=0.5)
    confidence, correct = probs.max(-1), (probs.argmax(-1) == codes).astype(float)
    expected = 0.0
    for b in range(15):
        here = [i for i in range(1000) if b / 15 < confidence[i] <= (b + 1) / 15]
        if here:
            share = sum(correct[i] for i in here) / len(here)
            mean = sum(confidence[i] for i in here) / len(here)
            expected += len(here) / 1000 * abs(share - mean)
    assert expected > 0.05
    found = classification_scores(class_prediction(probs), CLASSES[codes])["test_ece"][0]
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_score_has_fifteen_bins():
    """An edge, 8/15, lies between 0.53 (right) and 0.54 (wrong), and none between 0.81 (right) and 0.86 (wrong).

    Where a model is overconfident in each bin, as above, the differences add up to the same for any bins.
    """
    confidence = np.array([0.53, 0.54, 0.81, 0.86])
    probs = np.column_stack([confidence, (1 - confidence) / 2, (1 - confidence) / 2])
    found = classification_scores(class_prediction(probs), ["ash", "beech", "ash", "beech"])["test_ece"][0]
    assert found == pytest.approx((0.47 + 0.54 + 2 * (0.835 - 0.5)) / 4)


@pytest.mark.parametrize("sharpness", [0.4, 0.6, 1.0])
def test_standard_errors_are_the_spread_over_data_sets(sharpness):
    """400 data sets of 300 rows: the sd of each score over them, against the mean of the errors that 40 of them state.

    An sd of 400 is off by 1 / sqrt(800) = 3.5 %; 20 % is more than 5 of those. Where the model is calibrated (sharpness 1)
    ECE sums |difference| near 0, and resampling overstates its error: by Normal(0, 1) differences resampled, at most
    sqrt(2) times.
    """
    values, stated = {}, {}
    for seed in range(400):
        probs, codes = simulated(300, seed, sharpness=sharpness)
        prediction, y = class_prediction(probs), CLASSES[codes]
        if seed < 40:
            scores = classification_scores(prediction, y)
        else:  # without the resampling, which takes most of the time
            ece = calibration_error(probs.max(-1), (probs.argmax(-1) == codes).astype(float))
            own = -np.log(probs[np.arange(300), codes])
            squares = ((np.eye(3)[codes] - probs) ** 2).sum(-1)
            scores = {"test_accuracy": ((probs.argmax(-1) == codes).mean(), None), "test_nll": (own.mean(), None),
                      "test_brier": (squares.mean(), None), "test_ece": (ece, None)}  # fmt: skip
        for name, (value, error) in scores.items():
            values.setdefault(name, []).append(value)
            if error is not None:
                stated.setdefault(name, []).append(error)
    for name, found in values.items():
        ratio = np.mean(stated[name]) / np.std(found, ddof=1)
        if sharpness == 1.0 and name == "test_ece":
            assert 1.0 < ratio < 2**0.5
        else:
            assert ratio == pytest.approx(1.0, rel=0.2), name


def test_scores_of_one_row_have_no_standard_error():
    scores = classification_scores(class_prediction([[0.2, 0.5, 0.3]]), ["beech"])
    assert all(np.isnan(error) for _, error in scores.values()) and scores["test_accuracy"][0] == 1.0


def test_labels_that_do_not_fit_are_refused():
    prediction = class_prediction([[0.2, 0.5, 0.3]] * 3)
    with pytest.raises(bnn.DataError, match=r"^score, y: expected a class known from training \('ash', 'beech', 'ced"):
        score(prediction, ["ash", "elm", "ash"])
    with pytest.raises(bnn.ShapeError, match=r"^score: expected y of shape \(3,\), got \(2,\)\. Give each row its y\."):
        score(prediction, ["ash", "ash"])


# ---- numbers -------------------------------------------------------------------------------------------------------


def normal_prediction(mean, sd, draws=4000, seed=0):
    """Of independent rows y ~ Normal(mean, sd), weights known: all noise."""
    mean = np.asarray(mean, dtype=float)
    noise = stats.norm.ppf((np.arange(draws) + 0.5) / draws)
    rng = np.random.default_rng(seed)
    drawn = mean + sd * np.stack([rng.permutation(noise) for _ in mean], -1)
    functions = np.broadcast_to(mean, (1, draws, len(mean)))
    return Prediction(functions, drawn[None], np.full(len(mean), sd**2), stats.norm(mean, sd).logpdf)


def test_regression_scores_by_hand():
    rng = np.random.default_rng(3)
    mean = rng.normal(size=200)
    y = mean + 2.0 * rng.normal(size=200)
    scores = score(normal_prediction(mean, 2.0), y)
    assert list(scores) == ["test_rmse", "test_lpd", "test_coverage_50", "test_coverage_90", "test_coverage_95"]
    assert scores["test_rmse"][0] == pytest.approx(metrics.root_mean_squared_error(y, mean), rel=1e-12)
    density = stats.norm(mean, 2.0).logpdf(y)
    assert scores["test_lpd"] == pytest.approx((density.mean(), stats.sem(density)), rel=1e-12)
    for p in (0.5, 0.9, 0.95):
        covered = np.abs(y - mean) <= 2.0 * stats.norm.ppf((1 + p) / 2)
        assert scores[f"test_coverage_{100 * p:.0f}"] == pytest.approx(
            (covered.mean(), stats.sem(covered * 1.0)), abs=0.006
        )
    assert set(regression_scores(normal_prediction(mean, 2.0), y, pointwise=False)) == set(scores) - {"test_lpd"}


def test_coverage_counts_the_bounds_themselves():
    prediction = normal_prediction(np.zeros(2), 1.0)
    lower, upper = prediction.interval(0.9)
    assert inside(prediction, np.array([lower[0], upper[1]]), 0.9).tolist() == [1.0, 1.0]
    assert inside(prediction, np.array([lower[0] - 1e-9, upper[1] + 1e-9]), 0.9).tolist() == [0.0, 0.0]


def test_standard_errors_of_numbers_are_the_spread_over_data_sets():
    """1000 data sets of 100 rows; 20 % are nine times the error of an sd of 1000."""
    prediction = normal_prediction(np.linspace(-1, 1, 100), 1.5, draws=1000)
    values, stated = {}, {}
    rng = np.random.default_rng(4)
    bounds = {p: prediction.interval(p) for p in (0.5, 0.9, 0.95)}
    prediction.interval = bounds.__getitem__  # the quantiles are the same each time
    for _ in range(1000):
        for name, (value, error) in regression_scores(prediction, prediction.mean + 1.5 * rng.normal(size=100)).items():
            values.setdefault(name, []).append(value)
            stated.setdefault(name, []).append(error)
    for name, found in values.items():
        assert np.mean(stated[name]) == pytest.approx(np.std(found, ddof=1), rel=0.2), name
    for p in (0.5, 0.9, 0.95):
        found = values[f"test_coverage_{100 * p:.0f}"]
        assert abs(np.mean(found) - p) < 5 * np.std(found) / np.sqrt(1000) + 2 / 1000  # and the error of 1000 quantiles


def test_a_perfect_mean_has_an_rmse_of_zero_without_error():
    assert regression_scores(normal_prediction(np.arange(3.0), 1.0), np.arange(3.0))["test_rmse"] == (0.0, 0.0)


@pytest.mark.parametrize("y", [np.zeros(3), np.zeros((4, 1)), 0.0])
def test_numbers_that_do_not_fit_are_refused(y):
    with pytest.raises(bnn.ShapeError, match=r"^score: expected y of shape \(4,\), got"):
        score(normal_prediction(np.zeros(4), 1.0), y)


def test_scores_of_a_posterior_are_those_of_its_prediction():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 2))
    y = np.where(x[:, 0] + rng.normal(size=60) > 0, "up", "down")
    posterior = bnn.get_model("logistic").fit(x, y, inference="prior", draws=100)
    prediction, scores = posterior.predict(x), posterior.score(x, y)
    code = (y == "up").astype(int)
    assert scores["test_nll"][0] == pytest.approx(-np.log(prediction.probs[np.arange(60), code]).mean(), rel=1e-5)
    assert scores["test_brier"][0] == pytest.approx(2 * ((prediction.probs[:, 1] - code) ** 2).mean(), rel=1e-12)
    assert scores == score(prediction, list(y))


def test_outputs_of_a_row_are_not_independent():
    """The same output three times over has the standard errors of one, as it has no more rows."""
    rng = np.random.default_rng(6)
    mean = rng.normal(size=80)
    y = mean + 2.0 * rng.normal(size=80)
    one = normal_prediction(mean, 2.0)
    thrice = Prediction(
        *(np.repeat(a[..., None], 3, -1) for a in (one.function_draws, one.draws, one.aleatoric)),
        lambda y: 3 * stats.norm(mean, 2.0).logpdf(y[:, 0]),
    )
    expected, found = score(one, y), score(thrice, np.repeat(y[:, None], 3, 1))
    for name in set(expected) - {"test_lpd"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-12), name
    assert found["test_lpd"] == pytest.approx(tuple(3 * v for v in expected["test_lpd"]), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, np.ma.masked])
@pytest.mark.parametrize("pointwise", [True, False])
def test_numbers_that_are_not_finite_are_refused(bad, pointwise):
    y = np.ma.masked_array(np.zeros(4)) if bad is np.ma.masked else np.zeros(4)
    y[2] = bad
    with pytest.raises(
        bnn.DataError, match=r"^score, y: expected finite numbers, got (nan|inf) at row 2; 1 of 4 .* Leave"
    ):
        score(normal_prediction(np.zeros(4), 1.0), y, pointwise)
