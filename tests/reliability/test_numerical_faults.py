"""Data and positions at the edge of arithmetic: what comes out is finite and right, or is refused by name."""

import warnings
from math import log

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import grad_and_value

import bnn_pyro as bnn
from bnn_pyro.isolation import isolated

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = X @ [1.0, -1.0, 0.5] + 0.3 * RNG.normal(size=40)
NEW = RNG.normal(size=(5, 3))
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])
SHORT = {"inference": "svi", "steps": 30, "draws": 50, "progress": False, "seed": 1}
SCALES = [1e-12, 1e-6, 1e6, 1e12]
MODELS = {
    "linear": {},
    "logistic": {},
    "mlp_gaussian": {"hidden": (4,)},
    "mlp_hetero": {"hidden": (4,)},
    "mlp_categorical": {"hidden": (4,)},
}
LABELS = pd.Categorical(["no", "yes"] * 20)
WITHIN = 4.26  # standard errors: two-sided probability 2e-5


def made(name):
    return bnn.get_model(name, **MODELS[name])


def targets(name, n=40):
    """y that goes with a model: labels that declare both classes, or numbers."""
    return LABELS[:n] if name in ("logistic", "mlp_categorical") else Y[:n]


def warned(call):
    """What the call returns, and the sentences that it warned with."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = call()
    return value, [str(w.message) for w in caught]


def numbers(prediction):
    """Everything that a prediction says, as one array (..., n)."""
    if hasattr(prediction, "probs"):
        return np.vstack([prediction.probs.T, prediction.entropy, prediction.epistemic, prediction.aleatoric])
    return np.vstack([prediction.mean, prediction.std, *prediction.interval(0.9), *prediction.draws[0]])


def assert_whole(posterior, x):
    """Predictions are finite and so is every quantity of function space, which there has to be."""
    assert np.isfinite(numbers(posterior.predict(x))).all()
    space = posterior.idata["function_space"]
    assert {"log_prior", "log_likelihood"} <= set(space.data_vars)
    for name in space.data_vars:
        assert np.isfinite(space[name].values).all(), name
    assert posterior.diagnose().verdict in ("converged", "approximate", "not converged")


# ---- units -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("method", ["linear svi", "mlp_gaussian svi", "linear nuts"])
def test_predictions_follow_the_units_of_x_and_y(method, which, scale):
    """In standard units all scales are the same rows, so the same seed has to give the same answer."""
    name, inference = method.split()
    how = SHORT if inference == "svi" else {"chains": 1, "warmup": 30, "draws": 30, "progress": False, "seed": 1}
    s_x, s_y = (scale, 1.0) if which == "x" else (1.0, scale)
    # in float32 NUTS's path may turn at a last bit of x; in float64 30 iterations keep together
    dtype = "float64" if inference == "nuts" else "float32"
    fit = lambda x, y: made(name).fit(x, y, **{**how, "inference": inference, "dtype": dtype})
    plain = fit(X, Y).predict(NEW)
    scaled, said = warned(lambda: fit(X * s_x, Y * s_y).predict(NEW * s_x))
    assert said == []
    for of in (lambda p: p.mean, lambda p: p.std, lambda p: p.interval(0.9)[0], lambda p: p.interval(0.9)[1]):
        assert np.allclose(of(scaled), s_y * of(plain), rtol=1e-4, atol=1e-4 * s_y * np.abs(plain.std).min())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["linear", "mlp_gaussian"])
def test_units_that_the_priors_do_not_expect_are_named_where_they_are_kept(name, scale):
    """The second column is scaled; nothing else may be named."""
    x = X * [1.0, scale, 1.0]
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    for rows, column in ((x, "1"), (frame, "b")):
        fitted, said = warned(lambda: made(name).fit(rows, Y, standardize=False, **SHORT))  # noqa: B023
        assert len(said) == 1 and said[0] in fitted.warnings
        start = f"{name}, x, column {column}: the priors expect numbers near 0 of standard deviation near 1, got mean "
        assert said[0].startswith(start), said
        assert f"standard deviation {x[:, 1].std():.3g}. Leave standardize=True, or rescale." in said[0]
        assert not np.isnan(numbers(fitted.predict(rows))).any()
    fitted, said = warned(lambda: made(name).fit(X, Y * scale, standardize=False, **SHORT))
    assert len(said) == 1 and said[0].startswith(f"{name}, y: the priors expect numbers near 0 of standard deviation")
    assert not np.isnan(numbers(fitted.predict(X))).any()


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_numbers_whose_squares_have_no_float_are_standardised_or_refused_by_name(scale):
    plain = made("linear").fit(X, Y, **SHORT).predict(NEW)
    scaled, said = warned(lambda: made("linear").fit(X * scale, Y, **SHORT).predict(NEW * scale))
    assert said == [] and np.allclose(scaled.mean, plain.mean, rtol=1e-4, atol=1e-4)
    with pytest.raises(bnn.DataError, match=r"^linear, y: expected a spread between 1e-30 and 1e\+30, for predictions"):
        made("linear").fit(X, Y * scale, **SHORT)


def test_numbers_that_are_infinite_in_the_dtype_of_the_fit_are_refused():
    x = X * [1.0, 1e40, 1.0]
    with pytest.warns(UserWarning, match="the priors expect"), pytest.raises(bnn.DataError) as caught:
        made("linear").fit(x, Y, standardize=False, **SHORT)
    start = "linear, x: expected numbers that torch.float32 can hold, got"
    assert str(caught.value).startswith(start) and "column 1" in str(caught.value)
    assert str(caught.value).endswith("Pass dtype='float64', or rescale.")


# ---- columns that say nothing ------------------------------------------------------------------------------------

WORTHLESS = {
    "constant": (lambda: X * [1, 0, 1] + [0, 5, 0], "column b: constant in the training rows"),
    "zeros": (lambda: X * [1, 0, 1], "column b: constant in the training rows"),
    "twin": (lambda: X[:, [0, 0, 2]], "column b: equal to column a in each training row"),
}


@pytest.mark.parametrize("kind", WORTHLESS)
@pytest.mark.parametrize("name", MODELS)
def test_a_column_that_says_nothing_gets_one_warning_and_a_finite_fit(name, kind):
    x, start = WORTHLESS[kind]
    frame = pd.DataFrame(x(), columns=["a", "b", "c"])
    fitted, said = warned(lambda: made(name).fit(frame, targets(name), **SHORT))
    assert len(said) == 1 and said[0].startswith(f"{name}, x, {start}"), said
    assert fitted.warnings == said
    assert_whole(fitted, frame)


@pytest.mark.parametrize("kind", ["constant", "zeros"])
def test_the_weight_of_a_column_that_says_nothing_keeps_its_prior(kind):
    x = WORTHLESS[kind][0]()
    model = bnn.get_model("linear", noise=0.5, prior_sd=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = model.fit(
            x, Y, inference="nuts", chains=2, warmup=150, draws=300, seed=3, dtype="float64", progress=False
        )
    standard = torch.as_tensor(posterior.units.inputs(x)), torch.as_tensor(posterior.units.targets(Y))
    exact = model.exact(*standard)
    assert float(exact.mean[1]) == pytest.approx(0.0, abs=1e-12)
    assert float(exact.covariance[1, 1]) == pytest.approx(4.0, rel=1e-12)
    table = bnn_summary(posterior, "w")
    for i in range(3):  # the others have learnt something, as they should
        z_mean = (table["mean"][i] - float(exact.mean[i])) / table["mcse_mean"][i]
        z_sd = (table["sd"][i] - float(exact.covariance[i, i]) ** 0.5) / table["mcse_sd"][i]
        assert abs(z_mean) < WITHIN and abs(z_sd) < WITHIN, (i, z_mean, z_sd)
    assert table["sd"][0] < 0.5 < 1.5 < table["sd"][1]


def bnn_summary(posterior, site):
    """Mean, sd and their Monte Carlo errors by entry of a site, unrounded."""
    import arviz as az

    draws = posterior.idata["posterior"][site].values  # (chain, draw, d)
    out = {"mean": draws.mean((0, 1)), "sd": draws.std((0, 1), ddof=1)}
    for kind in ("mean", "sd"):
        out[f"mcse_{kind}"] = np.array([float(az.mcse(draws[..., i], method=kind)) for i in range(draws.shape[-1])])
    return out


# ---- few rows and few columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_one_or_two_rows_of_any_number_of_columns_fit(name, n, columns):
    fitted, said = warned(lambda: made(name).fit(X[:n, :columns], targets(name, n), **SHORT))
    assert said == []
    assert_whole(fitted, NEW[:, :columns])


@pytest.mark.parametrize("name", MODELS)
def test_without_columns_the_rows_are_all_predicted_alike(name):
    for how in (SHORT, {"inference": "map", "steps": 30, "progress": False}):
        fitted = made(name).fit(X[:, :0], targets(name), **how)
        assert_whole(fitted, NEW[:, :0])
        prediction = fitted.predict(NEW[:, :0])
        center = prediction.probs[:, 0] if hasattr(prediction, "probs") else prediction.mean
        assert len(center) == 5 and np.ptp(center) <= 1e-6 * np.abs(center).max()


def test_a_regression_without_columns_is_its_intercept():
    model = bnn.get_model("linear", noise=0.5, prior_sd=2.0)
    posterior = model.fit(
        X[:, :0], Y, inference="nuts", chains=2, warmup=100, draws=200, dtype="float64", progress=False
    )
    exact = model.exact(torch.zeros(40, 0), torch.as_tensor(posterior.units.targets(Y)))
    draws = posterior.idata["posterior"]["b"].values
    import arviz as az

    assert abs(draws.mean() - float(exact.mean[0])) < WITHIN * float(az.mcse(draws))
    assert float(exact.covariance[0, 0]) == pytest.approx(1 / (1 / 4 + 40 / 0.25), rel=1e-12)


@pytest.mark.parametrize("rows", ["array", "frame"])
@pytest.mark.parametrize("inference", ["nuts", "svi", "map"])
@pytest.mark.parametrize("name", MODELS)
def test_no_rows_give_the_prior_with_a_warning(name, inference, rows):
    settings = {"nuts": {"chains": 2, "warmup": 5, "draws": 100}, "svi": {"draws": 200}, "map": {"draws": 200}}
    x, new = (X, NEW) if rows == "array" else (FRAME, FRAME[:5])
    fit = lambda: made(name).fit(x[:0], targets(name, 0), inference=inference, progress=False, **settings[inference])
    fitted, said = warned(fit)
    assert said == [f"{name}: no rows, so the posterior is the prior; its draws are drawn from there."]
    assert fitted.draws.z.shape[:2].numel() == 200
    assert_whole(fitted, new)
    site = "w" if name in ("linear", "logistic") else "w1"
    w = fitted.idata["posterior"][site].values.reshape(200, -1)
    if name == "linear":  # w ~ Normal(0, sigma), whose sigma has a heavy tail: divide it out
        w = w / fitted.idata["posterior"]["sigma"].values.reshape(200, 1)
    n = w.size
    assert abs(w.mean()) < WITHIN / n**0.5
    assert abs(w.var() - 1) < WITHIN * (2 / n) ** 0.5


# ---- labels ------------------------------------------------------------------------------------------------------

PAIRS = {"one_two": [1, 2], "minus_plus": [-1, 1], "text": ["no", "yes"], "bool": [False, True], "floats": [1.0, 2.0]}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["logistic", "mlp_categorical"])
def test_labels_of_any_kind_are_mapped_and_given_back(name, pair):
    """The same rows with 0 and 1 give the same probabilities, bit for bit."""
    codes = (X[:, 0] > 0).astype(int)
    plain = made(name).fit(X, codes, **SHORT).predict(NEW)
    mapped = made(name).fit(X, np.array(PAIRS[pair])[codes], **SHORT).predict(NEW)
    assert mapped.classes.tolist() == PAIRS[pair]
    assert np.array_equal(mapped.probs, plain.probs)
    assert mapped.label.tolist() == [PAIRS[pair][c] for c in plain.label]
    assert np.abs(mapped.probs.sum(-1) - 1).max() < 1e-6


@pytest.mark.parametrize("name", ["logistic", "mlp_categorical"])
def test_labels_of_one_class_only_are_refused_by_name(name):
    with pytest.raises(bnn.DataError) as caught:
        made(name).fit(X, ["spam"] * 40, **SHORT)
    expected = "2 classes, got 1: 'spam'." if name == "logistic" else "at least two classes, got only 'spam'."
    assert str(caught.value).startswith(f"{name}, y: expected {expected} ")
    assert "pandas Categorical" in str(caught.value)


@pytest.mark.parametrize("name", ["logistic", "mlp_categorical"])
def test_a_class_that_no_row_has_keeps_a_probability(name):
    seen = ["a", "b"] if name == "mlp_categorical" else ["a", "a"]
    levels = ["a", "b", "c"] if name == "mlp_categorical" else ["a", "b"]
    y = pd.Series(pd.Categorical(seen * 20, categories=levels))
    fitted = made(name).fit(X, y, **{**SHORT, "steps": 200})
    prediction = fitted.predict(NEW)
    assert prediction.classes.tolist() == levels and (prediction.probs[:, -1] > 0).all()
    assert (prediction.probs[:, -1] < prediction.probs[:, 0]).all()  # and has learnt that it is rare
    assert np.isfinite(prediction.log_prob([levels[-1]] * 5)).all()
    with pytest.raises(bnn.DataError, match=r"expected a class known from training \('a', 'b'.*got 'z' at row 4"):
        prediction.log_prob(["a"] * 4 + ["z"])


def test_a_thousand_classes_fit():
    x, y = RNG.normal(size=(3000, 2)), np.arange(3000) % 1000
    fitted = made("mlp_categorical").fit(x, y, **{**SHORT, "steps": 5, "draws": 5})
    prediction = fitted.predict(x[:1000])
    assert prediction.probs.shape == (1000, 1000)
    assert np.abs(prediction.probs.sum(-1) - 1).max() < 1e-6
    assert np.isfinite(prediction.log_prob(y[:1000])).all() and (prediction.entropy <= log(1000) + 1e-9).all()
    with pytest.raises(bnn.DataError, match=r"^logistic, y: expected 2 classes, got 1000: 0, 1, .*merge some"):
        made("logistic").fit(x, y, **SHORT)


# ---- extreme positions -------------------------------------------------------------------------------------------


def target_of(model, dtype):
    return model.fit(X, targets(model.name), inference="prior", draws=1, dtype=dtype, progress=False).target


def density(target, z):
    with isolated(dtype=target.dtype):
        grad, value = grad_and_value(target.log_density)(z)
    return value, grad


EXTREME = {
    "logits of size 1e4": bnn.get_model("logistic"),
    "softmax of size 1e4": made("mlp_categorical"),
    "noise of 1e-8": bnn.get_model("linear", noise=1e-8),
    "log-noise at its ends": made("mlp_hetero"),
    "tanh saturated": bnn.get_model("mlp_hetero", hidden=(4,), activation="tanh"),
    "noise of 1e-8 and tanh saturated": bnn.get_model("mlp_gaussian", hidden=(4,), activation="tanh"),
    "noise of 1e-8 and relu": made("mlp_gaussian"),
    "noise learnt": bnn.get_model("linear"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", EXTREME)
def test_the_density_of_an_extreme_position_is_no_nan_and_its_gradient_finite(kind, dtype):
    """Real numbers of size 1e4, learnt standard deviations of 1e-8, and both at once.

    At both, r**2 / sigma**3 of a residual r has no float32, so a gradient may be infinite there, but never NaN.
    """
    target = target_of(EXTREME[kind], dtype)
    generator = torch.Generator().manual_seed(0)
    scales = [site.start for site in target.sites if site.name in ("sigma", "scale")]
    for size, sd in ((1.0, 1e-8), (1e4, 1.0), (1e4, 1e-8)):
        overflows = bool(scales) and dtype == "float32" and size > 1 > sd
        for i in range(15):
            z = size * torch.randn(target.dim, generator=generator, dtype=torch.float64)
            z = (z.sign() if i < 5 else torch.full_like(z, (-1) ** i) if i < 7 else z / size) * size
            z[scales] = log(sd)
            value, grad = density(target, z)
            assert value.isfinite() and not grad.isnan().any(), (size, sd, i, value, grad)
            assert overflows or grad.isfinite().all(), (size, sd, i, grad)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_log_likelihood_of_large_logits_is_what_the_formula_says(dtype):
    """-log(1 + exp(-m)) at a margin of m = -1e4 is -1e4, and at +1e4 it is 0."""
    model = bnn.get_model("logistic")
    x = np.array([[1.0], [-1.0], [1.0]])
    target = model.fit(x, [0, 1, 1], inference="prior", draws=1, standardize=False, dtype=dtype, progress=False).target
    with isolated(dtype=target.dtype):
        terms = target.log_likelihood(torch.tensor([1e4, 0.0], dtype=torch.float64))
    assert terms.tolist() == [-1e4, -1e4, 0.0]


def test_the_noise_of_a_row_stops_at_the_ends_of_its_log_scale():
    target = target_of(made("mlp_hetero"), "float64")
    for size in (1e4, -1e4):
        z = torch.zeros(target.dim, dtype=torch.float64)
        bias = next(s for s in target.sites if s.name == "b2")
        z[bias.stop - 1] = size  # of the log-scale's output
        with isolated(dtype=target.dtype):
            terms = target.log_likelihood(z)
        noise = np.exp(10.0 if size > 0 else -10.0)
        standard = torch.as_tensor((Y - Y.mean()) / Y.std())
        expected = torch.distributions.Normal(0.0, torch.tensor(noise, dtype=torch.float64)).log_prob(standard)
        assert torch.allclose(terms, expected, rtol=1e-9)
