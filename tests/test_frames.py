"""Frames to matrices: values worked out by hand, scikit-learn's encoder as the oracle, and each refusal."""

import json
import tomllib
import warnings
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import tomli_w
from sklearn.preprocessing import OneHotEncoder

from bnn_pyro.errors import DataError, OptionError, ShapeError
from bnn_pyro.frames import Column, Encoding, complete_rows, learn_encoding


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def people(**columns):
    """Six rows with a number, a column of two levels and one of three, and whatever else is asked for."""
    frame = {
        "age": [30, 20, 50, 40, 60, 10],
        "sex": ["male", "female", "male", "male", "female", "female"],
        "colour": ["red", "blue", "red", "green", "blue", "red"],
    }
    return pd.DataFrame(frame | columns)


def through_toml(encoding):
    return Encoding.from_table(tomllib.loads(tomli_w.dumps({"columns": encoding.as_table()}))["columns"])


def test_columns_become_numbers_as_worked_out_by_hand():
    frame = people()
    kept = frame.copy(deep=True)
    encoding = learn_encoding(frame, "fit")
    assert encoding.names == ("age", "sex=male", "colour=blue", "colour=green", "colour=red")
    assert encoding.indicators.tolist() == [False, True, True, True, True]
    x = encoding.apply(frame, "fit")
    assert x.dtype == np.float64
    assert x.tolist() == [
        [30, 1, 0, 0, 1],
        [20, 0, 1, 0, 0],
        [50, 1, 0, 0, 1],
        [40, 1, 0, 1, 0],
        [60, 0, 1, 0, 0],
        [10, 0, 0, 0, 1],
    ]
    pd.testing.assert_frame_equal(frame, kept)


@pytest.mark.parametrize("dtype", [object, "string", "category", None])
def test_text_of_any_dtype_is_encoded_as_scikit_learn_does(dtype):
    rng = np.random.default_rng(0)
    raw = {f"c{k}": rng.choice([f"level {i}" for i in range(k)], size=200) for k in (2, 3, 7)}
    frame = pd.DataFrame(raw) if dtype is None else pd.DataFrame(raw).astype(dtype)
    oracle = OneHotEncoder(drop="if_binary", sparse_output=False).fit(pd.DataFrame(raw).astype(object))
    encoding = learn_encoding(frame[:150], "fit")
    names = [name.replace("_level", "=level") for name in oracle.get_feature_names_out()]
    assert list(encoding.names) == names
    shuffled = frame[150:].sample(frac=1.0, random_state=1)  # an index that does not start at 0
    expected = oracle.transform(pd.DataFrame(raw).astype(object).loc[shuffled.index])
    np.testing.assert_array_equal(through_toml(encoding).apply(shuffled, "predict"), expected)


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [
        ({"a": np.array([1, 2], dtype=np.int32), "b": np.array([3, 4], dtype=np.int8)}, np.int32),
        ({"a": [True, False]}, bool),
        ({"a": [True, False], "b": [1, 2]}, np.int64),
        ({"a": np.array([0.1, 2], dtype=np.float32), "b": [True, False]}, np.float32),
        ({"a": pd.array([1, 2], dtype="Int64"), "b": pd.array([True, False], dtype="boolean")}, np.int64),
        ({"a": pd.array([0.1, 2], dtype="Float64")}, np.float64),
        ({"a": np.array([True, False], dtype=object)}, bool),
        ({"a": np.array([3, 2], dtype=object), "b": np.array([True, 0.5], dtype=object)}, np.float64),
        ({"a": np.array([Decimal("0.5"), Decimal(2)], dtype=object)}, np.float64),
        ({"a": pd.arrays.SparseArray([0, 2])}, np.int64),
    ],
)
def test_numbers_pass_through_in_their_own_type(columns, dtype):
    frame = pd.DataFrame(columns)
    encoding = learn_encoding(frame, "fit")
    x = encoding.apply(frame, "fit")
    assert x.dtype == dtype and encoding.names == tuple(columns) and not encoding.indicators.any()
    np.testing.assert_array_equal(x, np.array([[float(v) for v in frame[c]] for c in columns]).T.astype(dtype))


def test_missing_values_take_the_training_median_or_the_most_frequent_level_and_are_flagged():
    train = people(sex=["female", None, "male", "male", "male", "female"], age=[1.0, np.nan, 2.0, 3.0, 100.0, np.nan])
    encoding = learn_encoding(train, "fit", missing="impute")
    assert encoding.names == (
        *("age", "sex=male", "colour=blue", "colour=green", "colour=red"),
        *("age=missing", "sex=missing"),
    )
    assert encoding.columns[0].fill == 2.5 and encoding.columns[1].fill == "male" and encoding.columns[2].fill is None
    x = encoding.apply(train, "fit")
    assert x[:, 0].tolist() == [1, 2.5, 2, 3, 100, 2.5] and x[:, 5].tolist() == [0, 1, 0, 0, 0, 1]
    assert x[:, 1].tolist() == [0, 1, 1, 1, 1, 0] and x[:, 6].tolist() == [0, 1, 0, 0, 0, 0]
    assert encoding.indicators.tolist() == [False] + 6 * [True]
    new = people(age=6 * [9], sex=6 * [np.nan])  # filled by what the training rows had, whatever these have
    x = through_toml(encoding).apply(new, "predict")
    assert x.dtype == np.float64 and x[:, 1].tolist() == 6 * [1] and x[:, 6].tolist() == 6 * [1]
    assert x[:, 5].tolist() == 6 * [0]
    with pytest.raises(DataError, match=r"^predict, x: expected a value in column 'colour'.* at row 2; 1 of 6"):
        encoding.apply(people(colour=["red", "blue", None, "red", "red", "red"]), "predict")


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("column", ["age", "sex"])
def test_missing_values_are_refused_by_row_and_column(value, column):
    values = people()[column].astype(object).tolist()
    values[3] = values[5] = value
    frame = people(**{column: pd.Series(values, dtype=object)})
    frame.index = list("uvwxyz")
    what = "median" if column == "age" else "most frequent level"
    message = rf"^fit, x: .* column '{column}' at row 3; 2 of 6 .*missing='drop'.*missing='impute' fills in the {what}"
    for mode in ("refuse", "drop"):
        with pytest.raises(DataError, match=message):
            learn_encoding(frame, "fit", missing=mode)
    assert complete_rows(frame, None).tolist() == [True, True, True, False, True, False]
    rest = frame[complete_rows(frame, None)]
    assert learn_encoding(rest, "fit", "drop").apply(rest, "fit")[:, 0].tolist() == [30, 20, 50, 60]
    with pytest.raises(DataError, match=rf"column '{column}', as in all training rows, got none at row 3; 2 of 6"):
        learn_encoding(people(), "fit").apply(frame, "predict")


def test_gaps_in_nullable_columns_are_found():
    floats = pd.DataFrame({"a": pd.array([1.0, 0.0, None], dtype="Float64")})
    floats["b"] = pd.array([1, None, 3], dtype="Int64")
    floats["c"] = pd.array([True, True, None], dtype="boolean")
    assert complete_rows(floats, None).tolist() == [True, False, False]
    unmasked = pd.arrays.FloatingArray(np.array([1.0, np.nan]), np.array([False, False]))  # 0 / 0 may give this
    assert complete_rows(pd.DataFrame({"a": unmasked}), None).tolist() == [True, False]
    x = learn_encoding(floats, "fit", "impute").apply(floats, "fit")
    assert x.tolist() == [[1, 1, 1, 0, 0, 0], [0, 2, 1, 0, 1, 0], [0.5, 3, 1, 1, 0, 1]]


@pytest.mark.parametrize(
    "y",
    [np.array([1.0, np.nan, 2.0]), ["a", None, "b"], ["a", float("nan"), "b"], pd.Series([1, None, 2], dtype="Int64"),
     pd.Series(["a", None, "b"], index=[7, 7, 7]), pd.Categorical(["a", None, "b"]),
     np.array([[1.0, 2.0], [1.0, np.nan], [0.0, 0.0]]), pd.DataFrame({"u": [1, 2, 3], "v": [1.0, None, 3.0]})],
)  # fmt: skip
def test_rows_are_complete_where_frame_and_target_are(y):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["u", "v", None]})
    assert complete_rows(frame, y).tolist() == [True, False, False]
    assert complete_rows(frame[["a"]], y).tolist() == [True, False, True]
    assert complete_rows(np.array([[np.inf], [1.0], [2.0]]), y).tolist() == [True, False, True]
    with pytest.raises(ShapeError, match="got 2 and 3 rows"):
        complete_rows(frame[:2], y)


def test_infinities_are_never_filled_in():
    frame = people(age=[1.0, np.nan, -np.inf, 4.0, 5.0, 6.0])
    message = r"^fit, x: expected finite numbers, got -inf at row 2, column 'age'; 1 of 6"
    with pytest.raises(DataError, match=message):
        learn_encoding(frame, "fit", "impute")
    with pytest.raises(DataError, match=message):
        learn_encoding(people(age=[np.nan, 1, 1, 1, 1, 1]), "fit", "impute").apply(frame, "fit")
    with pytest.raises(DataError, match="got inf at row 1"):
        learn_encoding(pd.DataFrame({"a": np.array([1, 10**400], dtype=object)}), "fit")


def test_a_categorical_keeps_its_order_and_unseen_levels():
    sizes = pd.CategoricalDtype(["small", "big", "huge"], ordered=True)
    frame = pd.DataFrame({"s": pd.Series(["big", "small", "big"], dtype=sizes)})
    encoding = learn_encoding(frame, "fit")
    assert encoding.names == ("s=small", "s=big", "s=huge")
    assert encoding.apply(frame, "fit").tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert encoding.apply(pd.DataFrame({"s": ["huge"]}), "predict").tolist() == [[0, 0, 1]]
    other = pd.DataFrame({"s": pd.Categorical(["huge", "small"], categories=["huge", "small"])})
    assert encoding.apply(other, "predict").tolist() == [[0, 0, 1], [1, 0, 0]]
    grades = pd.DataFrame({"g": pd.Categorical([3, 1, None, 3], categories=[3, 2, 1])})
    encoding = through_toml(learn_encoding(grades, "fit", "impute"))
    assert encoding.columns == (Column("g", "category", (3, 2, 1), 3, True),)
    assert encoding.apply(grades, "fit").tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0]]
    assert encoding.apply(pd.DataFrame({"g": [1, 2]}), "predict").tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    cut = pd.DataFrame({"a": pd.cut([1.0, 2.0, 3.0], [0, 1, 2, 3])})
    assert through_toml(learn_encoding(cut, "fit")).apply(cut, "fit").tolist() == np.eye(3).tolist()


def test_text_that_is_the_same_in_all_rows_is_left_out_with_a_warning():
    frame = people(country=6 * ["NL"])
    with pytest.warns(UserWarning, match="^fit, x: column 'country' is the same in all rows, so it is left out"):
        encoding = learn_encoding(frame, "fit")
    assert encoding.names == learn_encoding(people(), "fit").names
    assert encoding.apply(frame, "fit").shape == (6, 5)
    assert encoding.apply(people(), "predict").shape == (6, 5), "what was left out is not needed"
    with pytest.warns(
        UserWarning, match=r"^predict, x: column 'country' was 'NL' in all training rows, got 'BE' at row 1"
    ):
        encoding.apply(people(country=["NL", *5 * ["BE"]]), "predict")
    answered = pd.DataFrame({"q": ["yes", None, "yes"]})  # here the flag is what tells rows apart
    encoding = learn_encoding(answered, "fit", "impute")
    assert encoding.names == ("q=missing",) and encoding.apply(answered, "fit").tolist() == [[0], [1], [0]]
    with pytest.warns(UserWarning, match="left out"):
        alone = learn_encoding(frame[["country"]], "fit")
    assert alone.names == () and alone.apply(frame[["country"]], "fit").shape == (6, 0)


def test_a_gap_in_new_rows_takes_the_median_of_the_training_rows():
    encoding = learn_encoding(pd.DataFrame({"age": [1.0, np.nan, 2.0, 3.0, 100.0]}), "fit", "impute")
    new = pd.DataFrame({"age": [np.nan, 9.0, 7.0, 8.0]})
    assert encoding.apply(new, "predict").tolist() == [[2.5, 1], [9, 0], [7, 0], [8, 0]]


def test_ties_for_the_most_frequent_level_go_to_the_first_level():
    frame = pd.DataFrame({"c": ["b", "a", None, "b", "a", "c"]})
    assert learn_encoding(frame, "fit", "impute").columns[0].fill == "a"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None] * 6, r"column 'c', got 6 missing ones\. Leave it out"),
        ([np.nan] * 6, r"column 'c', got 6 missing ones"),
        (pd.date_range("2020-01-01", periods=6), r"column 'c', got datetime64.*the year, or days since a date"),
        (pd.date_range("2020-01-01", periods=6, tz="UTC"), r"column 'c', got datetime64.*the year"),
        (pd.timedelta_range("1h", periods=6), r"column 'c', got timedelta64.*the year"),
        (pd.period_range("2020", periods=6, freq="M"), r"column 'c', got period.*the year"),
        ([date(2020, 1, 1)] * 6, r"date\(2020, 1, 1\) at row 0\. .*the year"),
        ([1j] * 6, r"got complex numbers\. Split"),
        ([[1], [2]] * 3, r"got list \[1\] at row 0"),
        ([{"a": 1}] * 6, r"got dict \{'a': 1\} at row 0"),
        (["1", "2.5", "?", "-3", "?", "1e3"], r"read as numbers, got the text '\?' at row 2\. Make numbers"),
        ([1, 2, "?", 3, 4, 5], r"got the text '\?' at row 2"),
        (list("123456"), r"got the text '1' at row 0.*astype\('category'\)"),
        (["a", 1, "b", "a", 1, "b"], r"got 'a' at row 0 and 1 at row 1\. Make all of it text"),
        (["a", True, "b", "a", "a", "b"], r"got 'a' at row 0 and True at row 1"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_name(values, message):
    for mode in ("refuse", "impute"):
        frame = people(c=values if not isinstance(values, list) else pd.Series(values))
        with pytest.raises(DataError, match="^fit, x: expected .*" + message):
            learn_encoding(frame, "fit", mode)


def test_identifiers_and_free_text_are_refused():
    def column(n, k):
        return pd.DataFrame({"who": [f"name {i % k}" for i in range(n)]})

    for n, k in ((1000, 51), (20, 11), (30, 30)):
        message = rf"column 'who', got {k} different values in {n} rows.*\(drop=\['who'\] / --drop who\), or group"
        with pytest.raises(DataError, match=message):
            learn_encoding(column(n, k), "fit")
    for n, k in ((1000, 50), (20, 10), (19, 19)):
        assert len(learn_encoding(column(n, k), "fit").names) == k
    declared = pd.DataFrame({"who": pd.Categorical(20 * ["a"], categories=list("abcdefghijklmn"))})
    assert len(learn_encoding(declared, "fit").names) == 14  # few of them in these rows


def test_new_rows_must_have_the_columns_and_levels_of_the_training_rows():
    encoding = learn_encoding(people(), "fit")
    cases = [
        (people()[["age", "colour"]], ShapeError, r"column 'sex'.* got columns 'age', 'colour'\. Add it"),
        (people(z=1), ShapeError, r"got also 'z'\. Pass x\[\['age', 'sex', 'colour'\]\]\."),
        (
            people()[["age", "colour", "sex"]],
            ShapeError,
            r"'sex' as column 1, got 'colour'\. Pass x\[\['age', 'sex', 'co",
        ),
        (people().to_numpy(), DataError, r"pandas data frame, got ndarray"),
        (
            people(colour=["red", "pink"] * 3),
            DataError,
            r"column 'colour' .*\('blue', 'green', 'red'\), got 'pink' at row 1",
        ),
        (people(age=[1, 2, 3, "four", 5, 6]), DataError, r"numbers in column 'age'.* got 'four' at row 3"),
        (people(age=list("123456")), DataError, r"numbers in column 'age'.* got '1' at row 0"),
        (people(age=pd.date_range("2020", periods=6)), DataError, r"numbers in column 'age'"),
        (people(sex=6 * [1.0]), DataError, r"column 'sex' .* got 1\.0 at row 0"),
    ]
    for frame, error, message in cases:
        with pytest.raises(error, match="^predict, x: expected .*" + message):
            encoding.apply(frame, "predict")
    numbered = pd.DataFrame(np.arange(24).reshape(2, 12))
    encoding = learn_encoding(numbered, "fit")
    assert encoding.names == tuple(str(i) for i in range(12))
    with pytest.raises(ShapeError, match=r"Pass x\[\[0, 1, 2, 3, 4, \.\.\.\]\], the columns"):
        encoding.apply(numbered[list(range(11, -1, -1))], "predict")
    many = learn_encoding(pd.DataFrame({"c": [f"l{i:02}" for i in range(15)]}), "fit")
    with pytest.raises(DataError, match=r"'l09', \.\.\.\), got 'l99' at row 0"):
        many.apply(pd.DataFrame({"c": ["l99"]}), "predict")


def test_names_that_collide_are_refused():
    with pytest.raises(DataError, match=r"got '1' twice\. Rename one"):
        learn_encoding(pd.DataFrame([[1, 2]], columns=[1, "1"]), "fit")
    with pytest.raises(DataError, match=r"different names, got 'colour=red' twice"):
        learn_encoding(people(**{"colour=red": 1.0}), "fit")
    with pytest.raises(DataError, match=r"got 'c=missing' twice"):
        learn_encoding(pd.DataFrame({"c": ["a", "missing", "b", None]}), "fit", "impute")
    with pytest.raises(OptionError, match=r"^fit, missing: expected one of refuse, impute, drop, got 'mean'"):
        learn_encoding(people(), "fit", "mean")
    with pytest.raises(DataError, match=r"at least one row without a missing value, got none"):
        learn_encoding(people()[:0], "fit", "drop")


def test_an_encoding_survives_toml_and_json_and_damage_is_refused():
    frame = people(
        age=[1, None, 2, 3, 4, 5], ok=pd.Categorical([True, False, None, True, True, True]), w=[0.5, 1, 2, 3, 4, 5]
    )
    encoding = learn_encoding(frame, "fit", "impute")
    assert through_toml(encoding) == encoding == Encoding.from_table(json.loads(json.dumps(encoding.as_table())))
    kinds = [type(level) for column in through_toml(encoding).columns for level in column.levels]
    assert kinds == [str] * 5 + [bool] * 2
    np.testing.assert_array_equal(through_toml(encoding).apply(frame, "fit"), encoding.apply(frame, "fit"))
    good = encoding.as_table()[0]
    for bad in ({}, {**good, "kind": "text"}, {**good, "colour": 1}, {**good, "fill": "a"}, {**good, "name": 3}, 7,
                {**good, "kind": "category", "levels": ["a"], "fill": "b"}, {**good, "flagged": "no"}):  # fmt: skip
        with pytest.raises(DataError, match=r"^encoding: expected"):
            Encoding.from_table([bad])


def test_no_columns_give_a_matrix_without_columns():
    frame = pd.DataFrame(index=range(4))
    encoding = learn_encoding(frame, "fit")
    assert encoding.names == () and encoding.indicators.dtype == bool and encoding.as_table() == []
    x = encoding.apply(frame, "fit")
    assert x.shape == (4, 0) and x.dtype == np.float64
    assert complete_rows(frame, None).tolist() == 4 * [True]
    assert learn_encoding(people(), "fit").apply(people()[:0], "predict").shape == (0, 5)


def test_no_rows_tell_numbers_by_their_type_and_no_groups():
    encoding = learn_encoding(people()[["age"]][:0], "fit")
    assert encoding.names == ("age",) and encoding.apply(people()[["age"]][:0], "fit").shape == (0, 1)
    with pytest.raises(
        DataError, match=r"^fit, x: expected rows, to learn the groups of column 'sex' from, got none\.$"
    ):
        learn_encoding(people()[["sex"]][:0], "fit")
