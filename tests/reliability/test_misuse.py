"""Calls that cannot mean what was meant: each is refused in one sentence, before any sampling, or does what is documented."""

import re
import time
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro import fitting
from bnn_pyro.cli import main

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = X @ [1.0, -1.0, 0.5] + 0.3 * RNG.normal(size=40)
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])
SHORT = {"inference": "svi", "steps": 20, "draws": 20, "progress": False, "seed": 1}
LINEAR = bnn.get_model("linear")
REGRESSIONS = ("linear", "mlp_gaussian", "mlp_hetero")
CLASSIFIERS = ("logistic", "mlp_categorical")


def counts(x, y=None):
    """A user's own program: Poisson counts."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)


class Sampled(Exception):
    """Raised where sampling would begin."""


@pytest.fixture
def no_sampling(monkeypatch):
    def refuse(*_, **__):
        raise Sampled

    monkeypatch.setattr(fitting, "infer", refuse)


@pytest.fixture(scope="module", autouse=True)
def first_use():
    """torch and Pyro load parts of themselves when a program first runs, which no timing here is about."""
    quietly(lambda: bnn.fit(counts, X, np.arange(40), **SHORT))


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def message(call, kind=bnn.BNNError):
    """The sentence that ``call`` is refused with."""
    with pytest.raises(kind) as caught:
        quietly(call)
    assert isinstance(caught.value, bnn.BNNError) and caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    return text


# ---- shapes ------------------------------------------------------------------------------------------------------

SHAPES = {
    "a column as y": (X, Y[:, None], r"\(40,\).*\(40, 1\).*reshape|\(n,\).*\(40, 1\).*reshape"),
    "a row as y": (X, Y[None], r"x with 40 rows and y of shape \(1, 40\)\. Pass y\.reshape\(-1\)\."),
    "two targets a row": (X, np.c_[Y, Y], r"\(40,\), got \(40, 2\)\. Pass one target|\(n,\), got \(40, 2\)\."),
    "x without columns' axis": (
        X[:, 0],
        Y,
        r"x of shape \(40,\) and y of shape \(40,\).*Rows of one column are x\.reshape",
    ),
    "x transposed": (X.T, Y, r"x with 3 rows and y of shape \(40,\)\. x looks transposed.*pass x\.T\."),
    "y one short": (X, Y[:-1], r"x with 40 rows and y of shape \(39,\)\. Drop the rows"),
    "y one long": (X, np.r_[Y, 0.0], r"x with 40 rows and y of shape \(41,\)\. Drop the rows"),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", [*REGRESSIONS, *CLASSIFIERS, "counts"])
def test_shapes_that_do_not_go_together_are_refused_by_both_at_once(name, kind, no_sampling):
    x, y, sentence = SHAPES[kind]
    y = y if name in REGRESSIONS else (y > 0).astype(int)
    model = counts if name == "counts" else bnn.get_model(name)
    began = time.process_time()  # of this process, as a busy machine is no fault of ours
    text = message(lambda: bnn.fit(model, x, y), bnn.ShapeError)
    assert time.process_time() - began < 1.0
    assert text.startswith(name) and re.search(sentence, text), text


def test_several_targets_go_to_a_site_whose_event_has_that_shape(no_sampling):
    def pairs(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)

    with pytest.raises(Sampled):
        bnn.fit(pairs, X, np.c_[Y, Y])
    assert "expected y of shape (40, 2), got (40, 3)" in message(
        lambda: bnn.fit(pairs, X, np.c_[Y, Y, Y]), bnn.ShapeError
    )


# ---- kinds of y --------------------------------------------------------------------------------------------------

BIG = 2**24 + 1  # the first whole number that float32 lacks


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_whole_numbers_are_exact_or_refused(kind):
    y = (BIG + 2 * np.arange(40)).astype(kind)
    fit = lambda model, **how: bnn.fit(model, X, y, **{**SHORT, **how})
    refused = "y: expected whole numbers that torch.float32 can hold, got 16777217 at row 0. Pass dtype='float64', or"
    assert message(lambda: fit(LINEAR, standardize=False)).startswith(f"linear, {refused}")
    assert message(lambda: fit(counts)).startswith(f"counts, {refused}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in (LINEAR, counts):
            exact = fit(model, standardize=False, dtype="float64")
            assert np.array_equal(exact.target.y.double().numpy(), y)
    standardised = fit(LINEAR)
    assert np.allclose(standardised.target.y.numpy(), (y.astype(float) - y.mean()) / y.std(), atol=1e-6)
    assert np.array_equal(standardised.data.y, y)


def test_whole_numbers_beyond_64_bits_are_refused_rather_than_wrapped():
    text = message(lambda: bnn.fit(counts, X, np.full(40, 2**63 + 1, dtype=np.uint64)))
    assert text.startswith(
        "counts, y: expected whole numbers below 2**63, which torch can hold, got 9223372036854775809"
    )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_whole_floats_are_labels_and_fractions_are_not(name):
    model = bnn.get_model(name)
    fitted = model.fit(X, np.where(Y > 0, 2.0, 1.0), **SHORT)
    assert fitted.predict(X).classes.tolist() == [1, 2]
    text = message(lambda: model.fit(X, np.where(Y > 0, 0.5, 1.0), **SHORT), bnn.DataError)
    row = int(np.argmax(Y > 0))
    assert text.startswith(f"{name}, y: expected text, whole numbers or booleans, got 0.5 at row {row}. A regression")
    assert "looks like a number to predict" in message(lambda: bnn.get_model("mlp_categorical").fit(X, np.arange(40)))


@pytest.mark.parametrize("name", REGRESSIONS)
def test_a_regression_counts_booleans_as_zero_and_one_and_refuses_text(name):
    model = bnn.get_model(name)
    y = Y > 0
    as_bool, as_float = model.fit(X, y, **SHORT), model.fit(X, y.astype(float), **SHORT)
    assert torch.equal(as_bool.target.y, as_float.target.y) and torch.equal(as_bool.draws.z, as_float.draws.z)
    for text in (["a"] * 40, pd.Series(["a"] * 40), np.array(["a"] * 40, dtype=object)):
        said = message(lambda: model.fit(X, text, **SHORT), bnn.DataError)  # noqa: B023
        assert (
            said == f"{name}, y: expected numbers, got text, such as 'a'. Use a model for classification, or numbers."
        )
    said = message(lambda: model.fit(X, pd.Series(Y, dtype=object), **SHORT), bnn.DataError)
    assert said == f"{name}, y: expected numbers, got numbers kept as objects. Pass y.astype(float)."


@pytest.mark.parametrize(("y", "got"), [(np.arange(40) - 3, "-3 at row 0"), (np.arange(40) + 0.5, "0.5 at row 0")])
def test_counts_that_are_none_are_refused(y, got, no_sampling):
    text = message(lambda: bnn.fit(counts, X, y), bnn.DataError)
    assert text.startswith(
        f"counts, site 'y': expected y in the support of Poisson (integers from 0), got {got}. Recode y"
    )
    with pytest.raises(Sampled):
        bnn.fit(counts, X, np.arange(40))


# ---- a posterior used again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["svi", "nuts", "map"])
def test_fitting_twice_gives_the_same_bits_and_leaves_the_arrays_alone(method):
    how = {
        "svi": {"steps": 20, "draws": 20},
        "nuts": {"chains": 2, "warmup": 10, "draws": 10, "max_tree_depth": 3},
        "map": {"steps": 20},
    }
    x, y = X.copy(), Y.copy()
    x.flags.writeable = y.flags.writeable = False
    model = bnn.get_model("mlp_gaussian", hidden=(4,))
    first, second = (model.fit(x, y, inference=method, seed=4, progress=False, **how[method]) for _ in range(2))
    other = model.fit(x, y, inference=method, seed=5, progress=False, **how[method])
    assert torch.equal(first.draws.z, second.draws.z) and not torch.equal(first.draws.z, other.draws.z)
    assert np.array_equal(first.predict(x).draws, second.predict(x).draws)
    assert np.array_equal(x, X) and np.array_equal(y, Y)


@pytest.fixture(scope="module", params=["fitted", "loaded"])
def on_frame(request, tmp_path_factory):
    posterior = LINEAR.fit(FRAME, Y, **SHORT)
    return posterior if request.param == "fitted" else bnn.load(posterior.save(tmp_path_factory.mktemp("run") / "run"))


WRONG_ROWS = {
    "a column fewer": (X[:, :2], "expected x of shape (n, 3), as in fit, got (40, 2)."),
    "a column more": (np.c_[X, Y], "expected x of shape (n, 3), as in fit, got (40, 4)."),
    "transposed": (X.T, "expected x of shape (n, 3), as in fit, got (3, 40)."),
    "one row without its axis": (X[0], "expected x of shape (n, 3), as in fit, got (3,)."),
    "a dict": ({"a": X}, "expected x as an array, as in fit, got a dict."),
    "no rows": (X[:0], "x: expected at least one row, got none."),
    "text": (FRAME.astype(str), "x: expected numbers in column 'a', as in the training rows, got "),
    "nothing": (None, "x: expected numbers, got values of type object, such as None."),
    "a column missing": (
        FRAME[["a", "c"]],
        "x: expected column 'b', as in the training rows, got columns 'a', 'c'. Add",
    ),
    "another column": (
        FRAME.assign(d=1.0),
        "x: expected the columns of the training rows, got also 'd'. Pass x[['a', ",
    ),
    "another name": (FRAME.rename(columns={"b": "z"}), "x: expected column 'b', as in the training rows, got columns "),
    "another order": (
        FRAME[["b", "a", "c"]],
        "x: expected the order of the training rows, 'a' as column 0, got 'b'. Pass",
    ),
    "another device": (torch.zeros(2, 3, device="meta"), "x: expected a dense tensor, got one without values. Pass"),
    "sparse": (
        torch.eye(3).to_sparse(),
        "x: expected a dense tensor, got one of layout torch.sparse_coo. Pass x.to_dense",
    ),
}


@pytest.mark.parametrize("kind", WRONG_ROWS)
def test_rows_that_do_not_go_with_the_training_rows_are_refused(kind, on_frame):
    rows, sentence = WRONG_ROWS[kind]
    text = message(lambda: on_frame.predict(rows), bnn.DataError)
    assert text.startswith("linear, predict") and sentence in text, text


WHOLE = np.round(10 * X)  # whole numbers, which each of these types holds exactly
TYPES = {
    "float32": WHOLE.astype(np.float32),
    "float16": WHOLE.astype(np.float16),
    "int64": WHOLE.astype(np.int64),
    "int8": WHOLE.astype(np.int8),
    "frame": pd.DataFrame(WHOLE, columns=["a", "b", "c"]),
    "integer frame": pd.DataFrame(WHOLE.astype(int), columns=["a", "b", "c"]),
    "nullable frame": pd.DataFrame(WHOLE.astype(int), columns=["a", "b", "c"]).astype("Int64"),
    "float32 frame": pd.DataFrame(WHOLE.astype(np.float32), columns=["a", "b", "c"]),
    "tensor": torch.as_tensor(WHOLE, dtype=torch.float32),
    "bfloat16 tensor": torch.as_tensor(WHOLE, dtype=torch.bfloat16),
    "tensor with a gradient": torch.tensor(WHOLE, requires_grad=True),
    "list": WHOLE.tolist(),
}


@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_another_type_give_the_same_bits(kind):
    """In fit and in predict, whatever the type of the other."""
    plain = LINEAR.fit(WHOLE, Y, **SHORT)
    other = LINEAR.fit(TYPES[kind], Y, **SHORT)
    assert torch.equal(other.draws.z, plain.draws.z) and other.target.x.dtype == torch.float32
    expected = plain.predict(WHOLE[:7])
    for posterior, rows in ((plain, TYPES[kind][:7]), (other, WHOLE[:7]), (other, TYPES[kind][:7])):
        assert np.array_equal(posterior.predict(rows).draws, expected.draws)


def test_truth_values_are_zero_and_one():
    x = X > 0
    plain = LINEAR.fit(x.astype(float), Y, **SHORT)
    for rows in (x, FRAME > 0, torch.as_tensor(x)):
        assert torch.equal(LINEAR.fit(rows, Y, **SHORT).draws.z, plain.draws.z)
        assert np.array_equal(plain.predict(rows).mean, plain.predict(x.astype(float)).mean)


# ---- settings ----------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
NOT_COUNTS = (-1, 0, 1.5, NAN, "4", None, True, [4])
NOT_POSITIVE = (-1.0, 0, NAN, INF, "one", True, [1.0], 10**400)
METHOD_VALUES = {
    "nuts": {
        "chains": NOT_COUNTS,
        "draws": NOT_COUNTS,
        "warmup": (-1, 1.5, NAN, "4", None, True, [4]),
        "max_tree_depth": (*NOT_COUNTS, 21),
        "target_accept": (-0.1, 0, 1, 1.5, NAN, "high", None, True, [0.8]),
        "dense_mass": (1, "yes", None),
        "init": ("priors", None, 3, ["prior"]),
    },
    "svi": {
        "steps": NOT_COUNTS,
        "draws": NOT_COUNTS,
        "particles": NOT_COUNTS,
        "lr": NOT_POSITIVE[:-1],
        "lr_decay": (*NOT_POSITIVE[:-1], None),
        "clip_norm": (*NOT_POSITIVE[:-1], None),
        "guide": ("norml", 5, ["normal"]),
    },
    "map": {"steps": NOT_COUNTS, "draws": NOT_COUNTS, "lr": (*NOT_POSITIVE[:-1], None), "clip_norm": (-1, NAN, "x")},
    "prior": {"draws": NOT_COUNTS},
}
LAYERS = {
    "hidden": (-8, "8", (0,), (-3,), (1.5,), (True,), ("8",), None, NAN),
    "activation": ("rleu", None, ["relu"], 3),
}
MODEL_VALUES = {
    "linear": {"prior_sd": NOT_POSITIVE, "noise": NOT_POSITIVE, "shape": NOT_POSITIVE, "rate": NOT_POSITIVE},
    "logistic": {"prior_sd": (*NOT_POSITIVE, None)},
    "mlp_gaussian": {**LAYERS, "hidden": (*LAYERS["hidden"], ())},
    "mlp_hetero": {**LAYERS, "prior_sd": (*NOT_POSITIVE, None)},
    "mlp_categorical": {**LAYERS, "prior_sd": (*NOT_POSITIVE, None), "classes": (1, 0, -2, 2.0, "3", NAN, True)},
}
FIT_VALUES = {
    "seed": (-1, 1.5, NAN, "1", None, True),
    "standardize": ("no", 2, NAN, []),
    "progress": ("no", None, 2),
    "dtype": ("float23", "int32", float, 32, torch.float16),
    "device": ("cuda:77", "gpu", None, 5),
    "engine": ("pyr0", None, 3),
    "backend": ("inductr", None, 3),
    "missing": ("dropp", ["drop"]),
    "inference": ("nutz", "", None, 5, bnn.NUTS, ["svi"], NAN),
}
TYPOS = [  # misspelt names, and what was meant
    ("nuts", "chans", "chains"), ("nuts", "drows", "draws"), ("nuts", "warm_up", "warmup"), ("nuts", "sed", "seed"),
    ("svi", "step", "steps"), ("svi", "guid", "guide"), ("svi", "particle", "particles"), ("svi", "dtyp", "dtype"),
    ("map", "stepz", "steps"), ("map", "lr_decy", "lr_decay"), ("map", "standardise", "standardize"),
    ("prior", "drawz", "draws"), ("prior", "progres", "progress"), ("prior", "mising", "missing"),
    ("linear", "prior_ds", "prior_sd"), ("linear", "noize", "noise"), ("logistic", "priorsd", "prior_sd"),
    ("mlp_gaussian", "hiden", "hidden"), ("mlp_hetero", "activaton", "activation"), ("mlp_categorical", "clases", "classes"),
]  # fmt: skip


class Untouched:
    """Rows that fail a test when anybody looks at them."""

    def __getattr__(self, name):
        raise AssertionError(f"the data were read ({name})")


def python_cases():
    """(words for a failure, call, what the sentence has to contain), each wrong in one way only."""
    rows = Untouched()
    for name, options in MODEL_VALUES.items():
        for option, values in options.items():
            for v in values:
                yield f"{name} {option}={v!r}", lambda n=name, o=option, v=v: bnn.get_model(n, **{o: v}), (name, option)
    for method, options in METHOD_VALUES.items():
        for option, values in options.items():
            for v in values:
                call = lambda m=method, o=option, v=v: LINEAR.fit(rows, rows, inference=m, **{o: v})
                yield f"{method} {option}={v!r}", call, (option,)
    for option, values in FIT_VALUES.items():
        for v in values:
            yield f"fit {option}={v!r}", lambda o=option, v=v: LINEAR.fit(X, Y, **{o: v}), (option,)
    for name, typo, meant in TYPOS:
        if name in METHOD_VALUES:
            call = lambda n=name, t=typo: LINEAR.fit(rows, rows, inference=n, **{t: 4})
        else:
            call = lambda n=name, t=typo: bnn.get_model(n, **{t: 4})
        yield f"{name} {typo}", call, (typo, f"did you mean {meant!r}?")
    for wrong in (None, "linear", 5, type(LINEAR)):
        yield (
            f"fit model={wrong!r}",
            lambda w=wrong: bnn.fit(w, rows, rows),
            ("fit, model: expected a model of the zoo",),
        )


def test_settings_that_cannot_be_are_refused_from_python(no_sampling):
    """Counted: every case, by a sentence of ours that names the setting and what it may be, before data are read."""
    cases, wrong = list(python_cases()), []
    for words, call, parts in cases:
        try:
            call()
        except bnn.BNNError as error:
            text = str(error)
            tells = "expected" in text or "did you mean" in text
            if "\n" in text or not tells or not all(part in text for part in parts) or error.exit_code != 2:
                wrong.append(f"{words}: {text}")
        except (Exception, Sampled) as error:
            wrong.append(f"{words}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{words}: accepted")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)}:", *wrong])
    assert len(cases) >= 200


COUNTS = ("chains", "draws", "max_tree_depth")
CALLS = [
    *[("nuts", f"{option}={value}") for option in COUNTS for value in (-1, 0, 1.5, "nan", "x", "")],
    *[("nuts", f"warmup={value}") for value in (-1, 1.5, "nan", "none")],
    *[("nuts", f"target_accept={value}") for value in (-1, 0, 1, "nan", "x")],
    *[("svi", f"{option}={value}") for option in ("lr", "lr_decay", "clip_norm") for value in (-1, 0, "nan", "inf", "x", "")],
    *[("svi", f"{option}={value}") for option in ("steps", "particles", "draws") for value in (-1, 0, 1.5, "x")],
    *[("map", f"{option}={value}") for option in ("steps", "lr") for value in (-1, 0, "nan")],
    *[("prior", f"draws={value}") for value in (-1, 0, 1.5)],
    *[("svi", f"{option}={value}") for option in ("prior_sd", "noise", "shape", "rate") for value in (-1, 0, "nan", "x")],
    ("nuts", "init=priors"), ("nuts", "dense_mass=maybe"), ("svi", "guide=norml"), ("svi", "guide="), ("nuts", "draws"),
    ("nuts", "=3"), ("nuts", "chans=2"), ("svi", "step=2"), ("map", "prior_ds=1"), ("prior", "drawz=1"), ("nuts", "seed=2"),
]  # fmt: skip
FLAGS = [
    ("--seed", "-1"), ("--seed", "x"), ("--seed", "1.5"), ("--dtype", "float23"), ("--device", "cuda:77"), ("--device", "gpu"),
    ("--backend", "inductr"), ("--inference", "nutz"), ("--inference", ""), ("--infernce", "svi"), ("--sed", "1"),
    ("--missing", "dropp"), ("--data", "diabets"),
]  # fmt: skip


def test_settings_that_cannot_be_are_refused_on_the_command_line(monkeypatch, capsys, tmp_path):
    """Exit code 2 and one sentence each, before data are read and before anything is written."""
    from bnn_pyro import sources

    monkeypatch.chdir(tmp_path)
    named = sources.named
    needs_data = ("dropp", "diabets")  # names that only reading the data can tell
    asked = [["fit", "linear", "--inference", method, "--set", piece] for method, piece in CALLS]
    asked += [["fit", "linear", *flag] for flag in FLAGS]
    asked += [["prior", "linear", "--draws", n] for n in ("-1", "0", "x", "1.5")]
    asked += [["fit", "linaer"], ["fitt", "linear"], ["fit"], ["coverage", "linear", "--inference", "nutz"]]
    wrong = []
    for words in asked:
        if words[-1] not in needs_data:
            monkeypatch.setattr(sources, "named", lambda *_, **__: pytest.fail("data were read"))
        else:
            monkeypatch.setattr(sources, "named", named)
        with pytest.raises(SystemExit) as stopped:
            main(words)
        out, err = capsys.readouterr()
        lines = err.strip().splitlines()
        if stopped.value.code != 2 or out or not lines or "Traceback" in err or "unexpected" in err:
            wrong.append(f"{' '.join(words)}: {stopped.value.code} {err}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(asked)}:", *wrong])
    assert len(asked) >= 100 and list(tmp_path.iterdir()) == []
