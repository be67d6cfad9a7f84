"""Programs, data and options that would give a wrong posterior: one sentence through ``bnn.fit``, before any sampling.

No test here runs an inference method: ``fit._infer`` is made to fail.
"""

import importlib
import sys
from types import FunctionType

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
import problems
from bnn_pyro.rows_to_target import training_rows
from bnn_pyro.structure import build_target

N, D = 8, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)


class Sampled(Exception):
    """A sampler was reached."""


@pytest.fixture(autouse=True)
def nothing_samples(monkeypatch):
    def infer(*args, **kwargs):
        raise Sampled

    monkeypatch.setattr(sys.modules[bnn.fit.__module__], "infer", infer)


def refused(kind, sentence, *args, **kwargs):
    """``bnn.fit(...)`` raises ``kind`` with exactly ``sentence``."""
    with pytest.raises(kind) as caught:
        bnn.fit(*args, **kwargs)
    assert str(caught.value) == sentence
    assert isinstance(caught.value, bnn.BNNError) and caught.value.exit_code == 2


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@pytest.mark.parametrize("inference", ["nuts", "svi", "map"])
def test_good_input_reaches_the_sampler(inference):
    with pytest.raises(Sampled):
        bnn.fit(linear, X, Y, inference=inference)


# ---- shapes -------------------------------------------------------------------------------------------------


def test_a_column_vector_as_y():
    advice = "expected y of shape (8,), got (8, 1). Pass y.reshape(8)."
    refused(bnn.ShapeError, f"linear, site 'y': {advice}", linear, X, Y[:, None])
    refused(bnn.ShapeError, f"mlp_gaussian, site 'y': {advice}", bnn.get_model("mlp_gaussian"), X, Y[:, None])
    refused(bnn.ShapeError, f"linear, site 'y': {advice}", linear, X, pd.DataFrame({"y": Y}))


def test_a_row_vector_as_y():
    refused(
        bnn.ShapeError,
        "linear: expected x and y of equal length, got x with 8 rows and y of shape (1, 8). Pass y.reshape(-1).",
        linear, X, Y[None],
    )  # fmt: skip


def test_several_columns_of_y_for_one_output():
    sentence = "linear, site 'y': expected y of shape (8,), got (8, 2). Pass one target for each row, or a model whose "
    refused(bnn.ShapeError, sentence + "likelihood has that shape.", linear, X, np.stack([Y, Y], 1))


def test_transposed_x():
    refused(
        bnn.ShapeError,
        "linear: expected x and y of equal length, got x with 3 rows and y of shape (8,). x looks transposed: rows are "
        "observations, so pass x.T.",
        linear, X.T, Y,
    )  # fmt: skip


def test_lengths_that_differ_by_one():
    refused(
        bnn.ShapeError,
        "linear: expected x and y of equal length, got x with 8 rows and y of shape (7,). Drop the rows that "
        "lack a partner.",
        linear, X, Y[:-1],
    )  # fmt: skip
    refused(
        bnn.ShapeError,
        "linear, x: expected arrays that share the row axis, got rows {'a': 8, 'b': 7}.",
        linear, {"a": X, "b": X[:-1]}, Y,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "mlp_gaussian"])
def test_one_dimensional_x_for_a_zoo_model(name):
    with pytest.raises(bnn.BNNError, match=rf"^{name}.* x of shape \(8,\)"):
        bnn.fit(bnn.get_model(name), X[:, 0], Y)


def test_single_numbers_and_no_targets():
    refused(
        bnn.ShapeError,
        "linear, x: expected rows on the first axis, got a single number. Pass an array.",
        linear,
        3.0,
        Y,
    )
    none = "linear, y: expected targets, got none. Call fit(x, y), or fit(data.train)."
    refused(bnn.DataError, none, linear, X)
    refused(bnn.DataError, none, linear, pd.DataFrame(X, columns=["x", "y", "z"]))  # its columns x and y are no part


def test_empty_x():
    """No rows are the prior (tests/test_prior.py), but no arrays are a mistake."""
    refused(
        bnn.DataError, "linear, x: expected at least one array, got an empty dict. Pass {name: array}.", linear, {}, Y
    )


# ---- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("inference", ["nuts", "svi", "map"])
def test_values_that_are_not_finite_are_named_by_row_and_column(bad, inference):
    x, y = X.copy(), Y.copy()
    x[5, 2] = bad
    x[6, 0] = bad
    tail = "values are not finite. Drop or impute those rows."
    refused(
        bnn.DataError,
        f"linear, x: expected finite numbers, got {bad} at row 5, column 2; 2 of 24 {tail}",
        linear, x, Y, inference=inference,
    )  # fmt: skip
    framed = f"linear, x: expected finite numbers, got {bad} at row 6, column 'age'; 1 of 8 are infinite. "
    framed += "Mend or drop those rows."
    if np.isnan(bad):  # in a data frame it stands for a missing value, column by column
        framed = (
            "linear, x: expected no missing value, got one in column 'age' at row 6; 1 of 8 are missing there. missing='drop' "
            "leaves such rows out, missing='impute' fills in the median and adds a 0/1 column that says so."
        )
    refused(bnn.DataError, framed, linear, pd.DataFrame(x, columns=["age", "sex", "bmi"]), Y, inference=inference)
    refused(
        bnn.DataError,
        f"linear, x['a']: expected finite numbers, got {bad} at row 5, column 2; 2 of 24 {tail}",
        linear, {"a": x}, Y, inference=inference,
    )  # fmt: skip
    y[3] = bad
    sentence = f"linear, y: expected finite numbers, got {bad} at row 3; 1 of 8 {tail}"
    refused(bnn.DataError, sentence, linear, X, y, inference=inference)
    refused(bnn.DataError, sentence, linear, X, torch.as_tensor(y), inference=inference)


def test_finite_numbers_too_large_for_float32_are_named_as_data():
    """1e39 is finite in float64 and infinite in float32."""
    x = X.copy()
    x[5, 2] = 1e39
    with pytest.raises(bnn.DataError, match=r"row 5, column 2"):
        bnn.fit(linear, x, Y, dtype="float32")
    with pytest.raises(Sampled):
        bnn.fit(linear, x, Y, dtype="float64")


def test_columns_that_are_no_numbers():
    """Text in a data frame is encoded (tests/test_frames.py); in an array it stays a mistake."""
    table = pd.DataFrame(X, columns=["age", "sex", "bmi"]).assign(sex=list("abababab"))
    with pytest.raises(Sampled):
        bnn.fit(linear, table, Y)
    with pytest.raises(
        bnn.DataError, match=r"^linear, y: expected numbers, got text, such as .*'a'.*\. Use a model for class"
    ):
        bnn.fit(linear, X, list("abababab"))
    with pytest.raises(bnn.DataError, match=r"^linear, x: expected numbers, got text, such as 'a'\. Encode"):
        bnn.fit(linear, [[1, "a"], [None, 2]], Y[:2])
    with pytest.raises(bnn.DataError, match=r"^linear, x: expected numbers, got values of type complex128"):
        bnn.fit(linear, X * 1j, Y)


def test_ragged_rows_are_a_data_error():
    with pytest.raises(bnn.DataError, match=r"^linear, x: "):
        bnn.fit(linear, [[1.0, 2.0], [3.0]], [1.0, 2.0])


def test_repeated_column_names_are_named_or_taken():
    with pytest.raises((bnn.DataError, Sampled)):
        bnn.fit(linear, pd.DataFrame(X, columns=["a", "a", "b"]), Y)


def bernoulli(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def poisson(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Poisson((x @ w).exp()), obs=y)


@pytest.mark.parametrize(
    ("program", "y"),
    [
        (bernoulli, [1, 2, 1, 2, 1, 2, 1, 2]),
        (bernoulli, [-1, 1, -1, 1, -1, 1, -1, 1]),
        (bernoulli, [0.5, 1, 0, 1, 0, 1, 0, 1]),
        (poisson, [-1, 1, 2, 3, 4, 5, 6, 7]),
        (problems.categorical_model, [1, 2, 3, 4, 1, 2, 3, 4]),
        (problems.categorical_model, [0.5, 1, 2, 3, 0, 1, 2, 3]),
    ],
    ids=["labels_1_2", "labels_-1_1", "half_a_label", "negative_count", "labels_from_1", "half_a_class"],
)
def test_targets_outside_the_likelihoods_support_are_named(program, y):
    """With Pyro's validation off, most likelihoods score such targets without complaint."""
    with pytest.raises(bnn.DataError, match="site 'y'"):
        bnn.fit(program, X, y)


def test_bool_and_integer_targets_are_taken_for_the_numbers_they_are():
    for y in ([0, 1] * 4, [False, True] * 4, [0.0, 1.0] * 4, np.array([0, 1] * 4, dtype=np.uint8)):
        with pytest.raises(Sampled):
            bnn.fit(bernoulli, X, y)


def test_a_prior_that_is_not_finite_is_refused():

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, torch.nan).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    with pytest.raises(bnn.ModelError, match=r"^program"):
        bnn.fit(program, X, Y)


# ---- programs -----------------------------------------------------------------------------------------------


def test_an_observed_site_outside_the_plate():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    refused(
        bnn.ModelError,
        "program, site 'y': expected an observed site inside pyro.plate('data', 8), got batch_shape (8,) "
        "outside of it. "
        "Put it into `with pyro.plate('data', x.shape[0]):`.",
        program, X, Y,
    )  # fmt: skip


def test_a_plate_of_another_name_is_no_data_plate():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("rows", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    with pytest.raises(bnn.ModelError, match=r"expected an observed site inside pyro\.plate"):
        bnn.fit(program, X, Y)


def test_a_function_of_shape_n_by_1_is_not_broadcast():
    """Pyro takes this and gives a wrong posterior."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    sentence = (
        "program, site 'y': expected batch_shape (8,), got (8, 8): an axis of the likelihood's parameters does "
        "not line up "
        "with the data plate. Squeeze the network's last axis, or add .to_event(1) for several outputs."
    )
    refused(bnn.ShapeError, sentence, program, X, Y)
    refused(bnn.ShapeError, sentence, program, X, Y[:, None])


def test_weights_without_to_event():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 2]))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal((x @ w).sum(-1), 1.0), obs=y)

    sentence = "program, site 'w': expected batch_shape (), got (3, 2). Add .to_event(2)."
    refused(bnn.ModelError, sentence, program, X, Y)


def test_a_discrete_latent():
    def program(x, y=None):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    refused(
        bnn.ModelError,
        "program, site 'k': expected a continuous latent, got a discrete Bernoulli. Sum it out of the likelihood, for "
        "example with dist.MixtureSameFamily.",
        program, X, Y,
    )  # fmt: skip


def test_a_discrete_latent_vector():
    def program(x, y=None):
        k = pyro.sample("k", dist.Bernoulli(0.5).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ k, 1.0), obs=y)

    with pytest.raises(bnn.ModelError, match=r"^program, site 'k': expected a continuous latent"):
        bnn.fit(program, X, Y)


def test_no_latent_and_no_observed_site():
    def constant(x, y=None):
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def forgetful(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        return x @ w

    refused(bnn.ModelError, "constant: expected latent pyro.sample sites, got none. There is nothing to infer.",
            constant, X, Y)  # fmt: skip
    refused(bnn.ModelError,
            "forgetful: expected an observed site, got none. Pass obs=y to the likelihood's pyro.sample.",
            forgetful, X, Y)  # fmt: skip


def test_a_deterministic_site_is_not_taken_for_the_observed_one():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.deterministic("f", x @ w, event_dim=1)

    with pytest.raises(bnn.ModelError, match=r"^program: expected an observed site, got none"):
        bnn.fit(program, X, Y)


def test_forgotten_obs():
    """y is then a latent for each row: its posterior would be the prior."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w, 1.0))

    with pytest.raises(bnn.ModelError, match=r"^program: expected an observed site, got none"):
        bnn.fit(program, X, Y)


def test_a_data_plate_of_the_wrong_size():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 5):
            return pyro.sample("y", dist.Normal((x @ w)[:5], 1.0), obs=None if y is None else y[:5])

    refused(
        bnn.ShapeError,
        "program, site 'y': expected pyro.plate('data', 8), one place for each row, got size 5. Use "
        "pyro.plate('data', x.shape[0]).",
        program, X, Y,
    )  # fmt: skip


def test_a_plate_that_draws_its_own_rows():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0], subsample_size=4) as rows:
            return pyro.sample("y", dist.Normal(x[rows] @ w, 1.0), obs=None if y is None else y[rows])

    refused(
        bnn.ModelError,
        "program, site 'data': expected a plate over all rows, got subsample_size=4 of 8: the plate would draw its own "
        "rows. Use pyro.plate('data', x.shape[0]).",
        program, X, Y,
    )  # fmt: skip


def test_a_program_that_needs_y():
    def program(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w + 0.0 * y, 1.0), obs=y)

    with pytest.raises(
        bnn.ModelError, match=r"^program: the program failed on x of shape \(8, 3\) and y=None, as prediction"
    ):
        bnn.fit(program, X, Y)


def test_a_program_that_raises():
    def program(x, y=None):
        raise ZeroDivisionError("my own mistake")

    sentence = "program: the program failed on x of shape (8, 3) and y of shape (8,): ZeroDivisionError: my own mistake"
    refused(bnn.ModelError, sentence, program, X, Y)


def test_two_sites_of_one_name():
    """Pyro's trace refuses it; a sampler over the flat vector would give both the same value."""

    def latents(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("a", dist.Normal(5.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    def observed(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)
            pyro.sample("y", dist.Normal(-a, 1.0), obs=y)

    def both(x, y=None):
        a = pyro.sample("y", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    for program, name in ((latents, "a"), (observed, "y"), (both, "y")):
        with pytest.raises(bnn.ModelError, match=f"{name}"):
            bnn.fit(program, X, Y)


def test_sites_that_depend_on_values():
    """Which sites there are, or how long they are, must not hang on a draw."""

    def number(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0)) if a > 0 else 0.0
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    def length(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2 if a > 0 else 3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(a + b.sum(), 1.0), obs=y)

    for program in (number, length):
        with pytest.raises(bnn.ModelError):
            bnn.fit(program, X, Y)


def test_dims_that_do_not_fit():
    refused(
        bnn.ModelError,
        "linear, dims: expected names of latent sites, got ['v']. The sites are ['w'].",
        bnn.BNN(linear, dims={"v": ("feature",)}), X, Y,
    )  # fmt: skip
    refused(
        bnn.ModelError,
        "linear, site 'w': expected dims for shape (3,), got ('a', 'b'). Name each axis once.",
        bnn.BNN(linear, dims={"w": ("a", "b")}), X, Y,
    )  # fmt: skip


def test_a_model_that_is_no_program():
    for value in (None, "linear", 3):
        with pytest.raises(bnn.BNNError):
            bnn.fit(value, X, Y)


def test_programs_that_are_right_are_not_refused():
    """Every program of ``problems`` reaches the sampler as a user would pass it."""
    for make in problems.PROBLEMS.values():
        problem = make()
        with pytest.raises(Sampled):
            bnn.fit(problem.program, problem.x, problem.y)


def test_a_guide_that_lacks_a_site(monkeypatch):
    monkeypatch.undo()

    def guide(x, y=None):
        pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    steps = []
    monkeypatch.setattr("bnn_pyro.pyro_svi.PyroSVI.step", lambda *a, **k: steps.append(1) or 0.0)
    refused(
        bnn.ModelError,
        "linear, guide: expected a sample statement for each latent site, got none for ['w']. Add pyro.sample "
        "for each, "
        "with the model's name and shape.",
        linear, X, Y, inference="svi", guide=guide, steps=3, draws=3,
    )  # fmt: skip
    with pytest.raises(bnn.ModelError, match=r"^linear, guide: expected a subclass of AutoGuide, got the class dict"):
        bnn.fit(linear, X, Y, inference="svi", guide=dict, steps=3, draws=3)
    assert not steps


# ---- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"inference": "nut"}, "unknown inference 'nut': did you mean 'nuts'? bnn.list_inference() shows all."),
        ({"warmpu": 3}, "unknown option of nuts 'warmpu': did you mean 'warmup'? help(bnn.NUTS) explains each."),
        ({"stepz": 3, "inference": "svi"}, "unknown option of svi 'stepz': did you mean 'steps'? help(bnn.SVI) "
                                           "explains each."),
        ({"sede": 3}, "unknown option of nuts 'sede': did you mean 'seed'? help(bnn.NUTS) explains each."),
        ({"dtype": "float23"}, "unknown dtype 'float23': did you mean 'float32'?"),
        ({"dtype": torch.float16}, "unknown dtype 'float16': did you mean 'float64'?"),
        ({"engine": "piro"}, "unknown engine 'piro': did you mean 'pyro'?"),
        ({"backend": "inducter"}, "unknown backend 'inducter': did you mean 'inductor'?"),
        ({"device": "gpu"}, "unknown device 'gpu': did you mean 'cpu'?"),
        ({"inference": "svi", "guide": "norml"}, "unknown guide 'norml': did you mean 'normal'?"),
        ({"draws": -1}, "nuts, draws: expected a whole number of at least 1, got -1."),
        ({"draws": 0}, "nuts, draws: expected a whole number of at least 1, got 0."),
        ({"draws": 2.5}, "nuts, draws: expected a whole number of at least 1, got 2.5."),
        ({"draws": True}, "nuts, draws: expected a whole number of at least 1, got True."),
        ({"draws": "5"}, "nuts, draws: expected a whole number of at least 1, got '5'."),
        ({"chains": 0}, "nuts, chains: expected a whole number of at least 1, got 0."),
        ({"warmup": -1}, "nuts, warmup: expected a whole number of at least 0, got -1."),
        ({"max_tree_depth": 0}, "nuts, max_tree_depth: expected a whole number of at least 1, got 0."),
        ({"target_accept": 1.0}, "nuts, target_accept: expected a rate between 0 and 1, got 1.0."),
        ({"target_accept": float("nan")}, "nuts, target_accept: expected a rate between 0 and 1, got nan."),
        ({"target_accept": "0.8"}, "nuts, target_accept: expected a rate between 0 and 1, got '0.8'."),
        ({"dense_mass": 1}, "nuts, dense_mass: expected True or False, got 1."),
        ({"init": "zero"}, "nuts, init: expected 'prior', 'map', 'ensemble' or 'uniform', got 'zero'."),
        ({"inference": "svi", "steps": 0}, "svi, steps: expected a whole number of at least 1, got 0."),
        ({"inference": "svi", "lr": -0.1}, "svi, lr: expected a positive number, got -0.1."),
        ({"inference": "svi", "lr": float("inf")}, "svi, lr: expected a positive number, got inf."),
        ({"inference": "svi", "particles": 0}, "svi, particles: expected a whole number of at least 1, got 0."),
        ({"inference": "map", "lr": 0}, "map, lr: expected a positive number, got 0."),
        ({"inference": "map", "draws": 0}, "map, draws: expected a whole number of at least 1, got 0."),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1. Pass an int, such as 0."),
        ({"seed": 1.5}, "seed: expected a whole number of at least 0, got 1.5. Pass an int, such as 0."),
        (
            {"inference": bnn.NUTS(chains=2), "draws": 5},
            "inference=nuts: expected options inside the value, got draws beside it. Write NUTS(draws=...).",
        ),
    ],
)  # fmt: skip
def test_options(settings, sentence):
    """The model is never touched: x and y are nonsense, and the option is what is complained of."""
    kind = bnn.UnknownNameError if sentence.startswith("unknown") else bnn.OptionError
    refused(kind, sentence, linear, X, Y, **settings)


@pytest.mark.parametrize("device", ["meta", "mps", None, 1.5])
def test_devices_that_cannot_be_used_are_refused_by_name(device):
    with pytest.raises((bnn.OptionError, bnn.UnknownNameError), match="device"):
        bnn.fit(linear, X, Y, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    refused(
        bnn.OptionError,
        f"device: expected 'cpu' or 'auto', got 'cuda': torch {torch.__version__} is {build}, and finds no GPU. Use 'cpu'.",
        linear, X, Y, device="cuda",
    )  # fmt: skip


def test_models_and_hyperparameters():
    for call, sentence in (
        (
            lambda: bnn.get_model("mlp_gausian"),
            "unknown model 'mlp_gausian': did you mean 'mlp_gaussian'? bnn.list_models() shows all.",
        ),
        (
            lambda: bnn.get_model("mlp_gaussian", hiden=(3,)),
            "unknown hyper-parameter of mlp_gaussian 'hiden': did you mean 'hidden'? bnn-pyro show mlp_gaussian "
            "explains each.",
        ),
        (
            lambda: bnn.load_dataset("diabets"),
            "unknown data set 'diabets': did you mean 'diabetes'? bnn.list_datasets() shows all.",
        ),
    ):
        with pytest.raises(bnn.UnknownNameError) as caught:
            call()
        assert str(caught.value) == sentence


def test_fit_is_a_function_whatever_was_imported_first(monkeypatch):
    """Importing a module sets its name on the package, so a module named like a function can hide it."""
    home = bnn.fit.__module__
    monkeypatch.delitem(sys.modules, home)  # as in a process where nothing has asked for bnn.fit yet
    monkeypatch.delattr(bnn, "fit")
    importlib.import_module(home)  # as Model.fit does
    assert isinstance(bnn.fit, FunctionType)


def test_the_observed_site_holds_y_itself():
    def logged(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(w, 1.0), obs=None if y is None else torch.exp(y))

    refused(
        bnn.ModelError,
        "logged, site 'y': expected obs=y, got another value: predictions and scores would not be of the y that was "
        "passed. Transform y before fit, or use dist.TransformedDistribution.",
        logged, X, Y,
    )  # fmt: skip


def test_names_that_no_file_holds_are_refused_before_work():
    def scoped(x, y=None):
        w = pyro.sample("layer/w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    with pytest.raises(bnn.ModelError, match=r"site 'layer/w': expected a name that a results file can hold"):
        bnn.fit(scoped, X, Y)
    with pytest.raises(bnn.DataError, match=r"x: expected names that a results file can hold, got 'row'"):
        bnn.fit(linear, {"row": X, "x": X}, Y)


def test_a_module_that_a_fit_would_train_in_place_is_refused():
    net = torch.nn.Linear(X.shape[1], 1)

    def program(x, y=None):
        pyro.module("net", net)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(w * net(x).squeeze(-1), 1.0), obs=y)

    with pytest.raises(bnn.ModelError, match=r"pyro.module 'net': expected pyro.sample or pyro.param statements"):
        bnn.fit(program, torch.as_tensor(X).float(), torch.as_tensor(Y).float())


def test_names_of_columns_beside_rows_are_text():
    class Rows:
        x, y, columns = X, Y, pd.Index([2020, 2021, "age"])

    assert training_rows(bnn.BNN(linear), Rows(), None).columns == ("2020", "2021", "age")


def test_deterministic_sites_may_be_named_by_what_rows_hold():
    def grouped(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        for group in x[:, 0].unique().tolist():
            pyro.deterministic(f"mean_{group:.0f}", w * group)
        pyro.deterministic("f", x[:, 0] * w, event_dim=1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, 0] * w, 1.0), obs=y)

    x = torch.tensor([[1.0], [1.0], [1.0], [2.0]])  # the last row is a group of its own
    assert build_target(grouped, x, x[:, 0]).over_rows == {"f"}
