"""Labels to codes and back: what is accepted, in which order, and each refusal."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch

from bnn_pyro.errors import DataError, ShapeError
from bnn_pyro.labels import as_list, encode, from_list, learn_classes

KINDS = {
    "text": (["b", "a", "b", "c"], ["a", "b", "c"]),
    "array of text": (np.array(["b", "a", "b", "c"]), ["a", "b", "c"]),
    "series of text": (pd.Series(["b", "a", "b", "c"], index=[9, 8, 9, 8]), ["a", "b", "c"]),
    "string dtype": (pd.Series(["b", "a", "b", "c"], dtype="string"), ["a", "b", "c"]),
    "whole numbers": (np.array([2, 1, 2, 10]), [1, 2, 10]),
    "text of numbers": (["2", "10", "2", "9"], ["10", "2", "9"]),
    "signs": (torch.tensor([1, -1, 1, 3]), [-1, 1, 3]),
    "whole floats": (np.array([2.0, -1.0, 2.0, 3.0], dtype=np.float32), [-1, 2, 3]),
    "tensor of floats": (torch.tensor([2.0, -1.0, 2.0, 3.0], dtype=torch.bfloat16), [-1, 2, 3]),
    "nullable": (pd.Series([2, -1, 2, 3], dtype="Int64"), [-1, 2, 3]),
    "nullable floats": (pd.Series([2.0, -1.0, 2.0, 3.0], dtype="Float64"), [-1, 2, 3]),
    "objects": (np.array([2, -1.0, Decimal(2), np.int8(3)], dtype=object), [-1, 2, 3]),
    "a large float": ([2.0**60, 1.0, 2.0**60, 2.0**61], [1, 2**60, 2**61]),
    "categorical": (pd.Categorical(["low", "none", "low", "mid"], ["none", "low", "mid"]), ["none", "low", "mid"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_codes_are_positions_among_the_classes_in_order(name):
    y, expected = KINDS[name]
    codes, classes = learn_classes(y, "m, y")
    assert codes.dtype == np.int64 and classes.tolist() == expected
    assert [type(c) for c in classes.tolist()] == [type(c) for c in expected]
    assert [expected[c] for c in codes] == list(y)
    np.testing.assert_array_equal(encode(y, classes, "m, y"), codes)
    back = from_list(json.loads(json.dumps(as_list(classes))))
    assert back.dtype == classes.dtype and back.tolist() == classes.tolist()


@pytest.mark.parametrize(
    "y", [np.array([True, False, True]), [True, False, True], pd.Series([1, 0, 1], dtype="boolean")]
)
def test_booleans_stay_booleans_and_accept_zeros_and_ones(y):
    codes, classes = learn_classes(y, "m, y", count=2)
    assert classes.dtype == bool and classes.tolist() == [False, True] and codes.tolist() == [1, 0, 1]
    assert from_list(as_list(classes)).dtype == bool
    assert encode(np.array([1, 0, 1]), classes, "m, y").tolist() == [1, 0, 1]
    assert encode(torch.tensor([1.0, 0.0]), classes, "m, y").tolist() == [1, 0]


def test_a_categorical_keeps_its_order_and_the_classes_that_no_row_has():
    y = pd.Series(pd.Categorical(["b", "c"], categories=["c", "z", "b"]))
    codes, classes = learn_classes(y, "m, y", count=3)
    assert classes.tolist() == ["c", "z", "b"] and codes.tolist() == [2, 0]
    other = pd.Series(pd.Categorical(["z", "b"], categories=["b", "z"]))  # its own codes are [1, 0]
    assert encode(other, classes, "m, y").tolist() == [1, 2]
    codes, classes = learn_classes(pd.Categorical([1.0, 0.5], categories=[1.0, 0.5]), "m, y")
    assert classes.tolist() == [1.0, 0.5] and classes.dtype == np.float64 and codes.tolist() == [0, 1]


def test_numbers_match_across_types_and_text_is_never_cut():
    classes = np.array([1, 2])
    for y in (
        [np.int8(1), 2],
        np.array([1, 2], dtype=np.uint8),
        torch.tensor([1.0, 2.0]),
        pd.Series([1, 2], dtype="Int8"),
    ):
        assert encode(y, classes, "m, y").tolist() == [0, 1]
    for y in (["1"], [1.5], np.array([1.5]), [np.inf], [True], [3]):
        with pytest.raises(DataError, match="known from training"):
            encode(y, classes, "m, y")
    assert encode([np.str_("ab")], np.array(["a", "ab"]), "m, y").tolist() == [1]
    with pytest.raises(
        DataError, match=r"^p, y: expected a class known from training \('a', 'b'\), got 'ab' at row 1\."
    ):
        encode(["a", "ab"], np.array(["a", "b"]), "p, y")
    with pytest.raises(DataError, match=r"\(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\), got 12 at row 0"):
        encode([12], np.arange(12), "m, y")


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (np.zeros((3, 1)), ShapeError, r"shape \(n,\), got \(3, 1\)\. Pass y\.reshape\(-1\)"),
        (np.eye(3), ShapeError, r"got \(3, 3\)\. Pass y\.argmax\(1\)"),
        (pd.DataFrame({"y": [1, 2]}), ShapeError, r"got \(2, 1\)\. Pass y\.iloc"),
        ("yes", ShapeError, r"got \(\)"),
        (["a", None, "b"], DataError, r"none at row 1; 1 of 3 are missing"),
        (["a", float("nan"), "b"], DataError, r"none at row 1; 1 of 3"),
        (np.array([1.0, 2.0, np.nan]), DataError, r"none at row 2"),
        (pd.Series([1, None, 2], dtype="Int64"), DataError, r"none at row 1"),
        (pd.Categorical(["a", None, "b"]), DataError, r"none at row 1"),
        (np.ma.MaskedArray([1, 2, 1], [False, True, False]), DataError, r"none at row 1"),
        ([1.0, 2.0, 2.5], DataError, r"got 2\.5 at row 2\. A regression model takes numbers"),
        (np.array([1.0, 2.0, 2.5]), DataError, r"got 2\.5 at row 2\. A regression model takes numbers"),
        (torch.tensor([1.0, torch.inf]), DataError, r"got inf at row 1"),
        ([1.0, np.inf], DataError, r"got inf at row 1"),
        ([1, "1"], DataError, r"got 1 at row 0 and '1' at row 1"),
        ([0, True], DataError, r"got 0 at row 0 and True at row 1"),
        ([2**70, 1], DataError, r"64 bits, got 1180591620717411303424"),
        (np.array([2**63, 1], dtype=np.uint64), DataError, r"64 bits"),
        ([b"a", b"b"], DataError, r"got b'a' at row 0"),
        (pd.to_datetime(pd.Series(["2020-01-01", "2021-01-01"])), DataError, r"got datetime64"),
        (pd.cut(pd.Series([1.0, 2.0]), 2), DataError, r"category 0\. Pass y\.cat\.rename_categories\(str\)"),
        (["a", "a"], DataError, r"at least two classes, got only 'a'\. .*Categorical declares classes"),
        ([], DataError, r"at least one label"),
        (np.arange(21), DataError, r"21 different numbers in 21 rows.*regression model"),
    ],
)
def test_refusals_say_where_and_what(y, error, message):
    with pytest.raises(error, match="^logistic, y: expected .*" + message):
        learn_classes(y, "logistic, y")


def test_many_whole_numbers_are_classes_where_they_repeat_or_are_few():
    assert len(learn_classes(np.arange(20), "m, y")[1]) == 20
    assert len(learn_classes(np.arange(3000) % 1000, "m, y")[1]) == 1000
    assert len(learn_classes(np.arange(60) % 30, "m, y")[1]) == 30  # half, not more than half
    with pytest.raises(DataError, match="30 different numbers in 59 rows"):
        learn_classes(np.arange(59) % 30, "m, y")
    assert len(learn_classes(np.arange(59) % 30, "m, y", count=30)[1]) == 30
    with pytest.raises(DataError, match="regression"):
        learn_classes(np.arange(59) % 30, "m, y", count=2)


def test_a_count_of_classes_is_met_or_refused():
    codes, classes = learn_classes([4, 0, 2], "m, y", count=5)
    assert classes.tolist() == [0, 1, 2, 3, 4] and codes.tolist() == [4, 0, 2]
    codes, classes = learn_classes([1.0, 1.0], "m, y", count=2)
    assert classes.tolist() == [0, 1] and codes.tolist() == [1, 1]
    codes, classes = learn_classes([7, 3, 7], "m, y", count=2)
    assert classes.tolist() == [3, 7] and codes.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"^logistic, y: expected 2 classes, got 3: 'a', 'b', 'c'\."):
        learn_classes(["a", "b", "c"], "logistic, y", count=2)
    with pytest.raises(DataError, match=r"got 12: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\. "):
        learn_classes(np.arange(12), "m, y", count=2)
    for y in ([1, 3], ["0", "1"], [-1, 0], [False, True], pd.Categorical([0, 1, 0], categories=[1, 0])):
        with pytest.raises(DataError, match=r"^m, y: expected 3 classes, got 2: .* Declare all 3 .* from 0 to 2"):
            learn_classes(y, "m, y", count=3)


def test_damaged_lists_of_classes_are_refused():
    for values in ([], [1, "a"], [True, 1], [None, None], "ab", [[1], [2]]):
        with pytest.raises(DataError, match=r"^classes: expected"):
            from_list(values)


def test_the_callers_labels_are_not_changed():
    y = np.array([2.0, 1.0, 2.0])
    codes, _ = learn_classes(y, "m, y")
    codes[:] = 7
    assert y.tolist() == [2.0, 1.0, 2.0]


@pytest.mark.parametrize("values", [["c", "a", "b"], [3, 1, 2], [1.0, 0.5], [True, False]])
def test_classes_that_are_read_keep_their_order(values):
    assert from_list(values).tolist() == values
