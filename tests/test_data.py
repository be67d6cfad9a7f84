"""Rows as users hand them in: one copy, checked."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

from bnn_pyro.data import Data, collect, inputs_to_tensors, to_tensor
from bnn_pyro.errors import DataError, ShapeError
from bnn_pyro.units import learn_units

RNG = np.random.default_rng(0)
X, Y = RNG.normal(2.0, 3.0, size=(20, 3)), RNG.normal(-1.0, 5.0, size=20)


def strided(a):
    big = np.zeros((a.shape[0] * 2, *a.shape[1:]), a.dtype)
    big[::2] = a
    return big[::2]


@pytest.mark.parametrize(
    "as_given",
    [
        lambda a: a,
        lambda a: a.tolist(),
        lambda a: torch.as_tensor(a),
        lambda a: torch.as_tensor(a).requires_grad_(True),
        lambda a: torch.as_tensor(a.T.copy()).movedim(0, -1),
        np.asfortranarray,
        strided,
        lambda a: a.astype(">f8"),
        lambda a: pd.DataFrame(a) if a.ndim == 2 else pd.Series(a),
    ],
    ids=["array", "list", "tensor", "requires_grad", "transposed", "fortran", "strided", "big_endian", "frame"],
)  # fmt: skip
def test_every_container_gives_the_same_rows(as_given):
    data = collect(as_given(X), as_given(Y))
    assert np.array_equal(data.x, X) and np.array_equal(data.y, Y) and data.n == 20


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64", "int8", "int64", "uint8", "bool"])
def test_every_number_type_becomes_the_one_dtype_of_the_fit(kind):
    given = torch.as_tensor(np.abs(X) * 4).to(getattr(torch, kind))
    data = collect(given, given[:, 0])
    for dtype in (torch.float32, torch.float64):
        made = inputs_to_tensors(data.x, dtype, "cpu", True)
        assert made.dtype == dtype
        assert torch.equal(made, given.to(torch.float64).to(dtype))
        program = to_tensor(data.x, dtype, "cpu")  # a user's program gets integers as integers
        expected = dtype if given.is_floating_point() else torch.bool if kind == "bool" else torch.int64
        assert program.dtype == expected


def test_the_callers_arrays_are_neither_changed_nor_shared():
    x, y = X.copy(), Y.copy()
    table = pd.DataFrame(x.copy())
    before = [hashlib.sha256(a.tobytes()).hexdigest() for a in (x, y, table.to_numpy())]
    data, framed, tensors = collect(x, y), collect(table, y), collect(torch.as_tensor(x), torch.as_tensor(y))
    learn_units(data, x=True, y=True, where="fit").inputs(data.x)
    for made in (data, framed, tensors):
        made.x[:] = 7.0
        made.y[:] = 7.0
    assert [hashlib.sha256(a.tobytes()).hexdigest() for a in (x, y, table.to_numpy())] == before


def test_frames_give_columns_and_target_names():
    table = pd.DataFrame(X, columns=["age", "sex", "bmi"])
    data = collect(table, pd.Series(Y, name="progression"))
    assert data.columns == ("age", "sex", "bmi") and data.target == "progression"
    mixed = collect(table.assign(sex=np.arange(20) % 2), Y)
    assert mixed.x.dtype == np.float64 and np.array_equal(mixed.x[:, 1], np.arange(20) % 2)
    assert collect(X, Y).columns is None and collect(X, Y).target is None


def test_dicts_keep_each_arrays_own_kind():
    data = collect({"unit": np.arange(20) % 4, "z": X}, Y)
    assert data.n == 20 and data.x["unit"].dtype.kind == "i"
    made = inputs_to_tensors(data.x, torch.float32, "cpu", False)
    assert made["unit"].dtype == torch.int64 and made["z"].dtype == torch.float32


@pytest.mark.parametrize("change", ["x", "y", "shape", "dtype", "name", "swap"])
def test_the_checksum_sees_every_change(change):
    one = Data({"a": X, "b": X + 1}, Y)
    x, y = {"a": X.copy(), "b": X + 1}, Y.copy()
    if change == "x":
        x["a"][3, 1] = np.nextafter(x["a"][3, 1], 9)
    elif change == "y":
        y[0] += 1e-9
    elif change == "shape":
        y = y[:, None]
    elif change == "dtype":
        y = y.astype(np.float32)
    elif change == "name":
        x = {"a": x["a"], "c": x["b"]}
    else:
        x = {"a": x["b"], "b": x["a"]}
    assert Data(dict(reversed(one.x.items())), Y).checksum() == one.checksum()
    assert Data(x, y).checksum() != one.checksum()


def test_complaints_name_the_function_and_the_place():
    with pytest.raises(ShapeError, match=r"^predict, x\['a'\]: expected rows on the first axis"):
        collect({"a": 3.0}, where="predict")
    x = X.copy()
    x[4, 1] = np.nan
    with pytest.raises(DataError, match=r"^predict, x: expected finite numbers, got nan at row 4, column 1; 1 of 60"):
        collect(x, where="predict")


@pytest.mark.parametrize("kind", [float, np.float32, int, bool])
def test_what_a_masked_array_masks_is_missing(kind):
    """In x, in an array of a dict, in y and in new rows; without a mask the numbers keep their kind."""
    masked = np.ma.masked_array(np.arange(20).reshape(10, 2).astype(kind), np.arange(20).reshape(10, 2) == 7)
    column = masked[:, 1]
    for x, y, where in (
        (masked, np.arange(10), "x: expected finite numbers, got nan at row 3, column 1"),
        ({"a": masked}, np.arange(10), r"x\['a'\]: expected finite numbers, got nan at row 3, column 1"),
        (np.arange(10), column, "y: expected finite numbers, got nan at row 3"),
    ):
        with pytest.raises(DataError, match=where):
            collect(x, y)
    with pytest.raises(DataError, match="x: expected finite numbers, got nan at row 3, column 1"):
        collect(masked, like=collect(np.zeros((3, 2)), np.zeros(3)))
    for data in (collect(masked, np.arange(10), missing="drop"), collect(masked.data, column, missing="drop")):
        kept = np.arange(10) != 3
        assert np.array_equal(data.x, masked.data[kept]) and len(data.y) == 9
    whole = collect(np.ma.masked_array(masked.data), np.ma.masked_array(column.data))
    assert np.array_equal(whole.x, masked.data) and whole.x.dtype == masked.dtype == whole.y.dtype
    assert not isinstance(whole.x, np.ma.MaskedArray)


def test_a_frame_after_a_fit_to_an_array_holds_numbers():
    """Which of two levels is 1 would be decided by the new rows: those of the training rows are not known."""
    like = collect(X[:, :2], Y)
    for column, value in ((["no", "yes"], "'no'"), (pd.Categorical(["no", "yes"]), "'no'"), (["yes", None], "'yes'")):
        with pytest.raises(
            DataError, match=rf"predict, x: expected (numbers in|a value in) column 'b'.*({value}|none)"
        ):
            collect(pd.DataFrame({"a": [1.0, 2.0], "b": column}), where="predict", like=like)
    data = collect(pd.DataFrame({"a": [1, 2], "b": [True, False]}), where="predict", like=like)
    assert data.x.tolist() == [[1.0, 1.0], [2.0, 0.0]]
