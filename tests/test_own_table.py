"""A user's table as a data set: which rows are set aside, what is refused, and what the card says."""

import numpy as np
import pandas as pd
import pytest

import bnn_pyro as bnn
from bnn_pyro.errors import DataError, OptionError, UnknownNameError
from bnn_pyro.own_table import load_table


def table(n=100, seed=0):
    """Rows whose first column counts them, so that they can be told apart in a part."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "number": np.arange(n, dtype=float),
            "age": rng.normal(40.0, 9.0, n),
            "town": rng.choice(["Ghent", "Bruges", "Liege"], n),
            "price": rng.normal(200.0, 30.0, n),
            "sold": rng.choice(["yes", "no"], n),
        }
    )


def rows(part):
    return part.x["number"].astype(int).tolist()


@pytest.mark.parametrize(("share", "held_out"), [(0.0, 0), (0.2, 20), (0.255, 25), (0.5, 50)])
def test_the_parts_are_disjoint_fixed_and_of_the_share(share, held_out):
    made, again = (load_table(table(), "price", held_out=share) for _ in "ab")
    train, test = rows(made.train), rows(made.test)
    assert sorted(train + test) == list(range(100)) and len(test) == held_out
    assert train == sorted(train) and test == sorted(test)
    assert (train, test) == (rows(again.train), rows(again.test))
    if held_out:
        assert test != list(range(held_out)) and test != list(range(100 - held_out, 100))


def test_x_and_y_stay_together_and_keep_their_values():
    whole = table()
    made = load_table(whole, "price", drop=("sold",))
    for part in (made.train, made.test):
        at = rows(part)
        pd.testing.assert_frame_equal(
            part.x.reset_index(drop=True), whole.drop(columns=["price", "sold"]).iloc[at].reset_index(drop=True)
        )
        np.testing.assert_array_equal(part.y, whole["price"].iloc[at])


def test_what_is_rare_stays_in_training():
    whole = table()
    whole["town"] = whole["town"].where(whole.index != 7, "Namur")
    whole["sold"] = whole["sold"].where(~whole.index.isin([3, 60]), "perhaps")
    for k in range(5):  # which rows are rare is of no account
        shifted = whole.assign(town=np.roll(whole["town"], 17 * k), sold=np.roll(whole["sold"], 17 * k))
        made = load_table(shifted, "sold", held_out=0.9)
        assert set(made.train.x["town"]) == {"Ghent", "Bruges", "Liege", "Namur"}
        assert set(made.train.y) == {"yes", "no", "perhaps"}
        assert len(made.test) > 80


def test_the_only_gaps_stay_in_training():
    whole = table()
    whole.loc[[11, 80], "age"] = np.nan
    whole.loc[5, "town"] = None
    made = load_table(whole, "price", held_out=0.9, missing="impute")
    assert made.train.x["age"].isna().any() and 5 in rows(made.train)


def test_drop_leaves_out_exactly_the_rows_with_gaps():
    whole = table()
    whole.loc[[11, 80], "age"] = np.nan
    whole.loc[5, "town"] = None
    whole.loc[9, "price"] = np.nan
    made = load_table(whole, "price", missing="drop")
    assert sorted(rows(made.train) + rows(made.test)) == [i for i in range(100) if i not in (5, 9, 11, 80)]
    kept = load_table(whole.drop(index=9).reset_index(drop=True), "price", missing="impute")
    assert len(kept.train) + len(kept.test) == 99


def test_a_gap_in_a_column_that_is_dropped_costs_no_row():
    whole = table()
    whole.loc[3, "age"] = np.nan
    made = load_table(whole, "price", drop=["age"], missing="drop")
    assert len(made.train) + len(made.test) == 100 and "age" not in made.train.x


@pytest.mark.parametrize(("target", "task"), [("price", "regression"), ("sold", "classification")])
def test_the_card_says_what_it_is(target, task, tmp_path):
    table().to_csv(tmp_path / "houses.csv", index=False)
    card = load_table(tmp_path / "houses.csv", target).card
    assert (card.name, card.task, card.target, card.where) == ("houses.csv", task, target, "table")
    assert "100 rows" in card.about and str(tmp_path) not in repr(card)
    other = table()
    other.loc[0, "age"] += 1e-9
    frames = {load_table(t, target).card.checksum for t in (table(), other)}
    assert len(frames) == 2 and load_table(table(), target).card.name == "table"
    assert load_table(table(), target, name="mine").card.name == "mine"


def test_booleans_are_classes_and_whole_numbers_are_what_the_task_says():
    whole = table().assign(flag=np.arange(100) % 2 == 0, grade=np.arange(100) % 3)
    assert load_table(whole, "flag").card.task == "classification"
    assert load_table(whole, "grade").card.task == "regression"
    assert load_table(whole, "grade", task="classification").card.task == "classification"


def test_a_fit_and_its_score_take_the_parts():
    x = np.linspace(-1.0, 1.0, 50)
    made = load_table(pd.DataFrame({"x": x, "y": 3.0 * x}), "y")
    posterior = bnn.get_model("linear").fit(made.train, inference="map", steps=300, lr=0.05, progress=False)
    assert posterior.score(made.test)["test_rmse"][0] < 0.1  # y has sd 1.7


def test_fit_does_with_gaps_what_the_table_was_told_unless_it_is_told_itself():
    whole = table().drop(columns="sold")
    whole.loc[[11, 30, 52, 80], "age"] = np.nan
    made = load_table(whole, "price", missing="impute")
    assert made.train.missing == made.test.missing == "impute"
    model, how = bnn.get_model("linear"), {"inference": "map", "steps": 5, "progress": False}
    assert "age=missing" in model.fit(made.train, **how).data.columns
    assert model.fit(made.train, missing="drop", **how).data.n == made.train.x["age"].notna().sum() < len(made.train)
    with pytest.raises(DataError, match="expected no missing value, got one in column 'age'"):
        model.fit(made.train, missing="refuse", **how)
    with pytest.raises(DataError, match="expected no missing value, got one in column 'age'"):
        model.fit(made.train.x, made.train.y, **how)  # rows that say nothing


def test_a_column_called_missing_is_a_column():
    frame = pd.DataFrame({"missing": np.linspace(0.0, 1.0, 9), "x": np.arange(9.0) ** 2})
    posterior = bnn.get_model("linear").fit(frame, frame["x"], inference="map", steps=5, progress=False)
    assert posterior.data.columns == ("missing", "x")


GAPS = table()
GAPS.loc[[4, 6], "price"] = np.nan
REFUSED = [
    ((table(), "prise"), {}, UnknownNameError, "column of table 'prise': did you mean 'price'"),
    ((table(), "price"), {"drop": ["agee"]}, UnknownNameError, "did you mean 'age'"),
    ((table(), "price"), {"drop": ["price"]}, OptionError, "expected to keep the target 'price'"),
    ((table(), "price"), {"missing": "imput"}, UnknownNameError, "did you mean 'impute'"),
    ((table(), "price"), {"held_out": 1}, OptionError, "from 0 to below 1, got 1"),
    ((table(), "price"), {"held_out": -0.1}, OptionError, "got -0.1"),
    ((table(), "price"), {"held_out": float("nan")}, OptionError, "got nan"),
    ((table(), "price"), {"held_out": True}, OptionError, "got True"),
    ((GAPS, "price"), {}, DataError, "got one at row 4; 2 of 100 are missing"),
    ((GAPS, "price"), {"missing": "impute"}, DataError, "--missing drop"),
    ((table(), "town"), {"task": "regression"}, DataError, "expected numbers for a regression, got text"),
    ((table().assign(f=True), "f"), {"task": "regression"}, DataError, "got true and false"),
    ((table(), "price"), {"task": "classification"}, DataError, "column 'price': expected"),
    ((table().assign(sold="yes"), "sold"), {}, DataError, "expected at least two classes, got only 'yes'"),
    ((table().head(0), "price"), {}, DataError, "expected rows, got none"),
    ((table().assign(age=np.nan), "price"), {"missing": "drop"}, DataError, "got none without a missing value"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "options", "error", "sentence"), REFUSED)
def test_what_cannot_be_used_is_refused(words, options, error, sentence):
    with pytest.raises(error) as caught:
        load_table(*words, **options)
    assert sentence in str(caught.value) and str(caught.value).rstrip("'").endswith((".", "?"))


def test_rows_of_a_file_are_named_as_in_the_file(tmp_path):
    file = tmp_path / "t.csv"
    whole = table(30).astype({"age": object})
    whole.loc[[2, 5], "age"] = ""  # both leave before the rows below are looked at
    whole.loc[9, "price"] = np.inf
    whole.to_csv(file, index=False)
    with pytest.raises(
        DataError, match=r"^t.csv: .* got inf at row 9 \(line 11 of the file\), column 'price'; 1 of 28"
    ):
        load_table(file, "price", missing="drop")
    whole.assign(price=[1.0, 2.0] * 10 + [1.5] * 10).to_csv(file, index=False)
    with pytest.raises(DataError, match=r"got 1\.5 at row 20 \(line 22 of the file\)\. A regression model"):
        load_table(file, "price", task="classification", missing="drop")
    with pytest.raises(DataError, match=r"got one at row 2 \(line 4 of the file\); 2 of 30"):
        load_table(file, "price")
    made = load_table(file, "number", missing="drop")
    assert made.train.x.index.equals(pd.RangeIndex(len(made.train)))  # what a user sees has a plain index


@pytest.mark.parametrize(("dtype", "values"), [("Int64", [1, 2, 3, None]), ("boolean", [True, False, True, None]),
                                               ("Float64", [0.5, 1.5, 2.5, None])])  # fmt: skip
def test_nullable_columns_may_have_gaps(dtype, values):
    """The checksum tells a gap from what it is filled with, and is that of the plain column where there is none."""
    whole = pd.DataFrame({"a": pd.array(values * 10, dtype=dtype), "y": np.arange(40) / 7})

    def checksum(table, **how):
        return load_table(table, "y", **how).card.checksum

    gaps = checksum(whole, missing="impute")
    filled = whole.assign(a=whole["a"].fillna(False if dtype == "boolean" else 0))
    moved = whole.assign(a=np.roll(whole["a"].to_numpy(dtype=object), 1)).astype({"a": dtype})
    assert len({gaps, checksum(filled), checksum(moved, missing="impute")}) == 3
    plain = filled.astype({"a": {"Int64": "int64", "boolean": "bool", "Float64": "float64"}[dtype]})
    assert checksum(plain) == checksum(filled) and gaps == checksum(whole.copy(), missing="impute")
    made = load_table(whole, "y", missing="impute")
    assert made.train.x["a"].isna().any() and len(load_table(whole, "y", missing="drop").train) == 24


def test_columns_of_one_name_are_refused():
    for names, twice in ((["a", "a", "y"], "a"), (["a", "y", "y"], "y"), ([1, "1", "y"], "1")):
        table = pd.DataFrame(np.arange(30.0).reshape(10, 3), columns=names)
        for missing in ("refuse", "drop", "impute"):
            with pytest.raises(
                DataError, match=f"^table: expected a name for each column, got '{twice}' twice. Rename one.$"
            ):
                load_table(table, "y", missing=missing)


def test_truth_values_stay_so_where_rows_with_gaps_are_left_out(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "1,True\n2,\n3,False\n4,True\n5,False\n" * 4)
    made = load_table(tmp_path / "t.csv", "b", missing="drop")
    assert made.card.task == "classification" and set(made.train.y) == {True, False}
    with pytest.raises(DataError, match="got true and false, such as True"):
        load_table(tmp_path / "t.csv", "b", missing="drop", task="regression")
