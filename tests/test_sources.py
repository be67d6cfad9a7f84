"""What --data and its options name, and that a printed command names the same rows again."""

import os
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import call, complaint
from test_own_table import table

import bnn_pyro as bnn
from bnn_pyro import cli, runner, sources, tables
from bnn_pyro.errors import OptionError

MAP = ("--inference", "map", "--set", "steps=30", "--no-progress", "--no-pictures")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a table, one with gaps and question marks, and one that names each row."""
    monkeypatch.chdir(tmp_path)
    whole = table().drop(columns=["number", "sold"])
    whole.to_csv("mine.csv", index=False)
    gaps = whole.astype(object)
    gaps.loc[[3, 50, 90], "age"] = "?"
    gaps.to_csv("marks.csv", index=False)
    whole.assign(age=whole["age"].where(whole.index != 42)).to_csv("gap.csv", index=False)
    whole.assign(name=[f"h{i}" for i in range(100)]).to_csv("named.csv", index=False)
    pd.DataFrame({"a": np.arange(300.0), "y": np.arange(300) % 200}).to_csv("many.csv", index=False)
    return tmp_path


def test_a_file_is_a_table_and_a_name_is_a_data_set(folder):
    for name in ("mine.csv", "nowhere.csv", "nowhere.parquet", "x/Y.CSV.GZ"):
        assert sources.is_table(name)
    Path("odd").write_text("a,b\n1,2\n")
    Path("iris").write_text("a,b\n1,2\n")
    assert sources.is_table("odd") and not sources.is_table("iris") and not sources.is_table("diabets")
    assert not sources.is_table("")


REFUSED = [
    ("linear --data nowhere.csv --target price", "nowhere.csv: expected a file, got none"),
    ("linear --data mime.csv --target price", "Did you mean 'mine.csv'?"),
    ("linear --data mine --target price", "--data: expected a data set or a file, got 'mine'. Did you mean 'mine.csv'?"),
    ("linear --data mine.csv", "--target: expected the column of mine.csv to predict, got none. Its columns are age"),
    ("linear --data mine.csv --target prise", "unknown column of mine.csv 'prise': did you mean 'price'?"),
    ("linear --data mine.csv --target town", "expected numbers for a regression, got text"),
    ("logistic --data mine.csv --target town", "logistic, y: expected 2 classes, got 3"),
    ("logistic --data many.csv --target y", "got 200 different numbers in 300 rows"),
    ("linear --data gap.csv --target price", "gap.csv, column 'age': expected no missing value, got one at row 42 (line "
     "44 of the file); 1 of 100 "
     "are missing. missing='drop' / --missing drop leaves such rows out, missing='impute' / --missing impute fills in the "),
    ("linear --data gap.csv --target age", "(line 44 of the file); 1 of 100 are missing. missing='drop' / --missing drop"),
    ("linear --data gap.csv --target age --missing impute", "Leave such rows out: missing='drop' / --missing drop."),
    ("linear --data gap.csv --target price --missing imput", "unknown value of missing 'imput': did you mean 'impute'?"),
    ("linear --data marks.csv --target price", "row 3 (line 5 of the file). Mark it as missing: na=('?',) / --na '?'"),
    ("linear --data named.csv --target price", "looks like an identifier or free text. Leave it out (drop=['name'] / --drop "
     "name)"),
    ("linear --data mine.csv --target price --drop pric", "unknown column of mine.csv 'pric'"),
    ("linear --data mine.csv --target price --drop price", "expected to keep the target 'price'"),
    ("linear --data mine.csv --target price --held-out 1", "expected a share of the rows from 0 to below 1, got 1.0"),
    ("linear --data mine.csv --target price --split 0", "--split: expected a data set with fixed splits, got 'mine.csv'"),
    ("linear --data diabetes --target price", "--target: expected a table of your own"),
    ("linear --data diabetes --drop age", "--drop: expected a table of your own"),
    ("linear --data diabetes --held-out 0", "--held-out: expected a table of your own"),
    ("linear --data diabetes --na x", "--na: expected a table of your own"),
    ("linear --data diabetes --missing imput", "unknown value of missing 'imput'"),
    ("linear --data diabetes --split 99", "split: expected the one split 0, got 99"),
    ("linear --data diabetes --split first", "split: expected the one split 0, got 'first'"),
    ("linear --data uci/wine", "BNN_PYRO_DATA not set. Set BNN_PYRO_DATA to a folder that holds it, or fetch it"),
    ("linear --data uci/wine --split 20", "expected one of 20 splits, 0 to 19"),
    ("linear --data breast_cancer", "linear: expected data for regression, got 'breast_cancer'"),
    ("logistic --data diabetes", "logistic: expected data for classification, got 'diabetes'"),
    ("linear --data .", "expected a file, got a directory"),
    ("linear --data ''", "unknown data set ''"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[words for words, _ in REFUSED])
def test_wrong_rows_are_refused_before_any_fit(words, sentence, folder, monkeypatch):
    monkeypatch.delenv("BNN_PYRO_DATA", raising=False)
    monkeypatch.setenv("BNN_PYRO_CACHE", str(folder / "none"))
    monkeypatch.setattr(runner, "carry_out", lambda *_: pytest.fail("a fit began"))
    before = sorted(os.listdir())
    assert sentence in complaint(call("fit", *shlex.split(words)))
    assert sorted(os.listdir()) == before


def parsed(command):
    """The plan of a printed ``bnn-pyro fit`` command."""
    words = shlex.split(command)
    assert words[:2] == ["bnn-pyro", "fit"]
    asked = cli.fit.make_context("fit", words[2:]).params
    for flag in ("no_pictures", "no_progress", "as_json"):
        asked.pop(flag)
    return runner.plan(asked.pop("model"), table=cli._table(asked), progress=False, **asked)


TABLES = [
    "--data mine.csv --target price",
    "--data mine.csv --target price --held-out 0.35 --drop town --drop age",
    "--data marks.csv --target price --na ? --na x --missing impute",
    "--data marks.csv --target price --na ? --missing drop --held-out 0.1",
]


@pytest.mark.parametrize("words", TABLES)
def test_the_remedy_names_the_same_rows_again(words, folder):
    if "--drop age" in words:
        pd.read_csv("mine.csv").assign(area=np.arange(100.0)).to_csv("mine.csv", index=False)
    first = call("fit", "linear", *shlex.split(words), *MAP, "--seed", "4", "--set", "prior_sd=2", "--out", "run")
    assert first.exit_code in (0, 1), first.output
    posterior, content = bnn.load("run"), runner.read("run").content
    plan = parsed(tables.fit_command(content))
    assert plan.method == posterior.method and plan.model.prior_sd == 2 and plan.settings["seed"] == 4
    assert plan.source == content["dataset"]
    again = plan.model.fit(plan.data.train, inference=plan.method, **plan.settings)
    assert again.data.checksum() == content["data"]["checksum"]
    np.testing.assert_array_equal(again.draws.z, posterior.draws.z)
    assert len(plan.data.test) == content["dataset"]["test_rows"]
    page = first.stdout.replace("\\\n", " ")
    assert parsed(page[page.index("bnn-pyro fit") :].splitlines()[0]).source == plan.source


def test_the_one_split_is_named_again():
    rows, source = sources.open_data("diabetes", "regression", "linear", split="0")
    assert source["arguments"] == ["--split", "0"] and len(rows.test) == 88


def test_a_split_is_named_again(folder, data_folder):
    _, source = sources.open_data("uci/wine", "regression", "linear", split="7")
    assert source["arguments"] == ["--split", "7"]
    found, _ = sources.open_data("uci/wine", "regression", "linear", split="gap1")
    pd.testing.assert_frame_equal(found.test.x, bnn.load_dataset("uci/wine", split="gap1").test.x)


def test_a_run_says_nothing_of_where_its_table_was(folder):
    (folder / "secret").mkdir()
    (folder / "mine.csv").rename(folder / "secret" / "mine.csv")
    made = call("fit", "linear", "--data", folder / "secret" / "mine.csv", "--target", "price", *MAP, "--out", "run")
    assert made.exit_code in (0, 1), made.output
    text = Path("run/run.toml").read_text()
    assert 'name = "mine.csv"' in text
    for word in ("secret", str(folder), str(Path.home()) + "/", "/tmp"):
        assert word not in text


def test_held_out_rows_that_cannot_be_scored_are_refused_before_the_fit():
    data = bnn.load_dataset("stackloss")
    data.test.x.iloc[0, 0] = np.nan
    with pytest.raises(bnn.errors.DataError, match=r"held-out rows.*set aside to score the fit"):
        sources.check_rows(bnn.get_model("linear"), data, "refuse")


def test_options_that_do_not_go_together_name_the_right_one():
    with pytest.raises(OptionError, match="--held-out sets a share aside"):
        sources.open_data("a.csv", "regression", "linear", split="1")
