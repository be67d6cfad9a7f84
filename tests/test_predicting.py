"""``bnn-pyro predict``: its numbers are those of posterior.predict, and what cannot be predicted is refused."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from test_cli import call, complaint, modules_after
from test_own_table import table

import bnn_pyro as bnn
from bnn_pyro import out_files, predicted_page, predicting
from bnn_pyro.frames import learn_encoding
from bnn_pyro.own_table import load_table

FEW = ("--inference", "svi", "--set", "steps=60", "--set", "draws=40", "--no-pictures")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs of numbers and of classes, and files of new rows."""
    folder = tmp_path_factory.mktemp("predict")
    whole = table().drop(columns="number")
    names = np.random.default_rng(5).choice(["setosa of the north", "versicolor", "virginica", "x", "y"], 100)
    whole.assign(kind=names).to_csv(folder / "all.csv", index=False)
    gaps = whole.assign(age=whole["age"].where(whole.index % 9 != 0)).drop(columns="sold").astype(object)
    gaps.where(gaps.notna(), "?").to_csv(folder / "marks.csv", index=False)
    made = {
        "reg": ("linear", "all.csv", "--target", "price", "--drop", "sold", "--drop", "kind"),
        "cls": ("logistic", "all.csv", "--target", "sold", "--drop", "price", "--drop", "kind"),
        "many": ("mlp_categorical", "all.csv", "--target", "kind", "--drop", "price", "--drop", "sold"),
        "gaps": ("linear", "marks.csv", "--target", "price", "--na", "?", "--missing", "impute"),
    }
    for name, (model, file, *words) in made.items():
        result = call("fit", model, "--data", folder / file, *words, *FEW, "--out", folder / name)
        assert result.exit_code in (0, 1), result.output
    whole[["age", "town"]].head(15).to_csv(folder / "new.csv", index=False)
    return folder


@pytest.mark.parametrize("interval", [0.5, 0.9, 0.975])
def test_numbers_in_the_file_are_those_of_the_posterior(home, tmp_path, interval):
    out = tmp_path / "pred.csv"
    assert (
        call("predict", home / "reg", "--data", home / "new.csv", "--out", out, "--interval", interval).exit_code == 0
    )
    found = pd.read_csv(out)
    expected = bnn.load(home / "reg").predict(pd.read_csv(home / "new.csv"))
    lower, upper = expected.interval(interval)
    columns = {
        "row": np.arange(15), "mean": expected.mean, "sd": expected.std,
        "epistemic_sd": expected.epistemic**0.5, "aleatoric_sd": expected.aleatoric**0.5,
        f"lower_{100 * interval:g}": lower, f"upper_{100 * interval:g}": upper,
    }  # fmt: skip
    assert list(found.columns) == list(columns)
    for name, values in columns.items():
        np.testing.assert_allclose(found[name], values, rtol=5e-9, err_msg=name)
    np.testing.assert_allclose(found["sd"] ** 2, found["epistemic_sd"] ** 2 + found["aleatoric_sd"] ** 2, rtol=1e-7)
    assert (found["epistemic_sd"] > 0).all() and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["cls", "many"])
def test_probabilities_in_the_file_are_those_of_the_posterior(home, tmp_path, name):
    out = tmp_path / "pred.csv"
    assert call("predict", home / name, "--data", home / "new.csv", "--out", out).exit_code == 0
    found = pd.read_csv(out)
    expected = bnn.load(home / name).predict(pd.read_csv(home / "new.csv"))
    probabilities = [f"p({c})" for c in expected.classes]
    assert list(found.columns) == ["row", "label", *probabilities, "entropy", "epistemic", "aleatoric"]
    np.testing.assert_allclose(found[probabilities], expected.probs, rtol=5e-9)
    assert found["label"].tolist() == expected.label.tolist()
    for column in ("entropy", "epistemic", "aleatoric"):
        np.testing.assert_allclose(found[column], getattr(expected, column), rtol=5e-9, atol=1e-15)
    np.testing.assert_allclose(found[probabilities].sum(axis=1), 1.0, atol=1e-8)


def test_columns_are_found_by_name_and_others_are_ignored(home, tmp_path):
    new = pd.read_csv(home / "new.csv")
    new.assign(extra="z", more=1).iloc[:, ::-1].to_csv(tmp_path / "extra.csv", index=False)
    plain, extra = (
        json.loads(call("predict", home / "reg", "--data", file, "--json").stdout)
        for file in (home / "new.csv", tmp_path / "extra.csv")
    )
    assert plain["rows"] == extra["rows"] and len(plain["rows"]) == 15 and plain["scores"] == {}


def test_json_has_every_digit(home):
    made = json.loads(call("predict", home / "cls", "--data", home / "new.csv", "--json").stdout)
    expected = bnn.load(home / "cls").predict(pd.read_csv(home / "new.csv"))
    assert [row["p(yes)"] for row in made["rows"]] == expected.probs[:, 1].tolist()
    assert [row["label"] for row in made["rows"]] == expected.label.tolist()
    assert made["verdict"] in ("approximate", "not converged") and made["data"] == str(home / "new.csv")


@pytest.mark.parametrize("name", ["reg", "cls"])
def test_scores_are_those_of_the_rows_that_hold_the_target(home, tmp_path, name):
    whole = pd.read_csv(home / "all.csv").tail(40)
    target = {"reg": "price", "cls": "sold"}[name]
    whole[target] = whole[target].where(whole.index % 4 != 0)
    whole.to_csv(tmp_path / "new.csv", index=False)
    made = json.loads(call("predict", home / name, "--data", tmp_path / "new.csv", "--json").stdout)
    known = whole.dropna(subset=[target])
    scores = bnn.load(home / name).score(known[["age", "town"]], known[target])
    assert made["scored_rows"] == len(known) == 30 and len(made["rows"]) == 40
    for key, (value, error) in scores.items():
        assert made["scores"][key]["value"] == pytest.approx(value, rel=1e-12)
        assert made["scores"][key]["stderr"] == pytest.approx(error, rel=1e-12)
    page = call("predict", home / name, "--data", tmp_path / "new.csv").stdout
    assert f"Scores: the file holds {target} in 30 of 40 rows" in page
    assert f"{next(iter(scores.values()))[0]:.4g}"[:4] in page


def test_a_data_set_predicts_its_held_out_rows(tmp_path):
    call("fit", "linear", "--data", "stackloss", *FEW, "--out", tmp_path / "run")
    made = json.loads(call("predict", tmp_path / "run", "--data", "stackloss", "--json").stdout)
    content = json.loads(call("summary", tmp_path / "run", "--json").stdout)
    assert made["scores"] == content["scores"] and len(made["rows"]) == content["dataset"]["test_rows"]


def test_a_gap_is_filled_in_as_in_training_with_the_marks_of_the_fit(home, tmp_path):
    (tmp_path / "new.csv").write_text("age,town\n?,Ghent\n40,Liege\n")
    made = json.loads(call("predict", home / "gaps", "--data", tmp_path / "new.csv", "--json").stdout)
    frame = pd.DataFrame({"age": [np.nan, 40.0], "town": ["Ghent", "Liege"]})
    assert [row["mean"] for row in made["rows"]] == bnn.load(home / "gaps").predict(frame).mean.tolist()
    (tmp_path / "new.csv").write_text("age,town\n!,Ghent\n40,Liege\n45,Liege\n")
    assert call("predict", home / "gaps", "--data", tmp_path / "new.csv", "--na", "!").exit_code == 0


@pytest.mark.parametrize("name", ["reg", "cls", "many", "gaps"])
def test_the_page_fits_into_80_columns(home, name, monkeypatch):
    monkeypatch.chdir(home)
    page = call("predict", name, "--data", "new.csv").stdout
    assert max(map(len, page.splitlines())) <= 80
    assert page.startswith("15 rows of ") and "... and 5 more rows" in page and "--out FILE.csv" in page
    table = [line for line in page.splitlines() if line.lstrip()[:1].isdigit()][1:]
    assert len(table) == predicted_page.SHOWN
    if name == "many":
        assert "classes are not shown" in page


def file(home, name):
    """A file of new rows, each wrong in its own way."""
    new = pd.read_csv(home / "new.csv")
    wrong = {
        "unseen": new.assign(town=["Namur", *new["town"][1:]]),
        "lack": new.drop(columns="age"),
        "gap": new.assign(age=new["age"].where(new.index != 2)),
        "text": new.assign(age=["old"] * 15),
        "dear": new.assign(price=["dear"] * 15),
        "maybe": new.assign(sold=["yes"] * 14 + ["maybe"]),
        "empty": new.head(0),
    }
    return wrong[name]


@pytest.mark.parametrize(("run", "name", "sentence"), [
    ("reg", "unseen", "a level of column 'town' known from training ('Bruges', 'Ghent', 'Liege'), got 'Namur' at row 0"),
    ("reg", "lack", "expected the columns that the run was fitted to, got none called 'age'. The file has 'town'."),
    ("reg", "gap", "as in all training rows, got none at row 2 (line 4 of the file); 1 of 15 are missing"),
    ("reg", "text", "expected numbers in column 'age', as in the training rows, got 'old' at row 0"),
    ("reg", "dear", "column 'price': expected numbers, as in the training rows, got text, such as 'dear'"),
    ("cls", "maybe", "column 'sold': expected a class known from training ('no', 'yes'), got 'maybe' at row 14"),
    ("reg", "empty", "expected rows below the header, got none"),
])  # fmt: skip
def test_rows_that_do_not_go_with_the_run_are_refused(home, tmp_path, run, name, sentence):
    file(home, name).to_csv(tmp_path / "new.csv", index=False)
    result = call("predict", home / run, "--data", tmp_path / "new.csv", "--out", tmp_path / "pred.csv")
    assert sentence in complaint(result)
    assert [p.name for p in tmp_path.iterdir()] == ["new.csv"]


@pytest.mark.parametrize(("run", "name"), [("reg", "gap"), ("reg", "lack"), ("reg", "unseen"), ("cls", "maybe")])
def test_wrong_rows_are_refused_before_torch_is_waited_for(home, tmp_path, run, name):
    file(home, name).to_csv(tmp_path / "new.csv", index=False)
    said, loaded = modules_after(("predict", home / run, "--data", "new.csv"), tmp_path)
    assert said.startswith("bnn-pyro: ") and "expected" in said and loaded == "[]", (said, loaded)
    said, loaded = modules_after(("predict", home / run, "--data", "none.csv"), tmp_path)
    assert "none.csv: expected a file" in said and loaded == "[]"


@pytest.mark.parametrize("value", ["0", "1", "2", "-0.5", "nan"])
def test_an_interval_is_a_probability(home, value):
    result = call("predict", home / "reg", "--data", home / "new.csv", "--interval", value)
    assert f"--interval: expected a probability between 0 and 1, got {float(value):g}" in complaint(result)


def test_a_file_that_exists_is_kept_unless_told(home, tmp_path):
    out = tmp_path / "pred.csv"
    out.write_text("mine")
    words = ("predict", home / "reg", "--data", home / "new.csv", "--out", out)
    assert "expected a new file, got one that exists" in complaint(call(*words), 74)
    assert out.read_text() == "mine"
    assert call(*words, "--overwrite").exit_code == 0 and len(pd.read_csv(out)) == 15


def test_the_rows_are_never_replaced_by_their_predictions(home, tmp_path):
    data = shutil.copy(home / "new.csv", tmp_path / "new.csv")
    before = data.read_bytes()
    result = call("predict", home / "reg", "--data", data, "--out", data, "--overwrite")
    assert "expected another file than --data" in complaint(result, 74) and data.read_bytes() == before


@pytest.mark.parametrize(("out", "sentence"), [
    ("", "--out: expected the path of a file"),
    ("a\tb", "--out: expected the path of a file"),
    (".", "expected a file, got a directory"),
    ("none/pred.csv", "expected a folder to write to, got none"),
])  # fmt: skip
def test_a_path_that_cannot_be_written_is_refused_before_the_run_is_read(out, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in complaint(call("predict", "no run", "--data", "new.csv", "--out", out), 74)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(home, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(out_files.os, "fsync", full)
    result = call("predict", home / "reg", "--data", home / "new.csv", "--out", tmp_path / "pred.csv")
    assert "No space left on device" in complaint(result, 74) and list(tmp_path.iterdir()) == []


def test_runs_that_are_missing_or_damaged_are_refused(home, tmp_path):
    new = home / "new.csv"
    assert "expected a directory, got none" in complaint(call("predict", tmp_path / "none", "--data", new), 74)
    copy = shutil.copytree(home / "reg", tmp_path / "copy")
    raw = bytearray((copy / "state.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / "state.safetensors").write_bytes(raw)
    assert "damaged" in complaint(call("predict", copy, "--data", new), 74)
    assert "--data" in complaint(call("predict", home / "reg"))


def test_a_run_fitted_to_an_array_says_so(tmp_path):
    x = np.linspace(0.0, 1.0, 20)[:, None]
    posterior = bnn.get_model("linear").fit(x, x[:, 0], inference="map", steps=20, progress=False)
    posterior.save(tmp_path / "run")
    (tmp_path / "new.csv").write_text("a\n1\n")
    assert "fitted to an array" in complaint(call("predict", tmp_path / "run", "--data", tmp_path / "new.csv"))


def test_columns_are_kept_ignored_and_suggested(home, tmp_path):
    """``--keep`` copies a column; others that the run does not know are named; a near name is offered for one that lacks."""
    new = pd.read_csv(home / "new.csv").head(4).assign(id=list("wxyz"), garage=1)
    new.to_csv(tmp_path / "kept.csv", index=False)
    made = predicting.carry_out(str(home / "reg"), str(tmp_path / "kept.csv"), keep=("id",))
    assert list(made.table.columns[:3]) == ["row", "id", "mean"] and list(made.table["id"]) == list("wxyz")
    assert made.ignored == ["garage"] and "ignored: garage" in predicted_page.page(made)
    with pytest.raises(bnn.UnknownNameError, match=r"did you mean 'id'"):
        predicting.carry_out(str(home / "reg"), str(tmp_path / "kept.csv"), keep=("idd",))
    new.rename(columns={"age": "AGE"}).to_csv(tmp_path / "case.csv", index=False)
    with pytest.raises(bnn.DataError, match=r"got none called 'age'\. Did you mean 'AGE'\? Rename or add it\."):
        predicting.carry_out(str(home / "reg"), str(tmp_path / "case.csv"))


@pytest.mark.parametrize(("run", "name"), [
    *(("reg", name) for name in ("row", "mean", "sd", "epistemic_sd", "aleatoric_sd", "lower_50", "upper_50")),
    *(("cls", name) for name in ("row", "label", "p(no)", "p(yes)", "entropy", "epistemic", "aleatoric")),
])  # fmt: skip
def test_a_kept_column_is_not_called_like_one_of_the_predictions(home, tmp_path, run, name):
    """A file would have two columns of one name, and JSON would hold the file's value in place of the prediction."""
    new = pd.read_csv(home / "new.csv").assign(**{name: 7.0})
    new.to_csv(tmp_path / "new.csv", index=False)
    for words in (("--out", tmp_path / "p.csv"), ("--json",)):
        result = call("predict", home / run, "--data", tmp_path / "new.csv", "--interval", 0.5, "--keep", name, *words)
        said = complaint(result)
        assert said.startswith(f"bnn-pyro: --keep '{name}': expected another name than those of the predictions' own")
        assert f"Rename the column in {tmp_path / 'new.csv'}." in said
    assert [p.name for p in tmp_path.iterdir()] == ["new.csv"]
    made = json.loads(call("predict", home / run, "--data", tmp_path / "new.csv", "--interval", 0.5, "--json").stdout)
    assert name in made["rows"][0] and made["rows"][0][name] != 7.0  # as a column that is not kept it does no harm


@pytest.mark.parametrize(("run", "name"), [("reg", "label"), ("reg", "lower_50"), ("reg", "entropy"), ("cls", "mean")])
def test_names_that_only_other_predictions_have_can_be_kept(home, tmp_path, run, name):
    pd.read_csv(home / "new.csv").assign(**{name: 7.0}).to_csv(tmp_path / "new.csv", index=False)
    made = json.loads(call("predict", home / run, "--data", tmp_path / "new.csv", "--keep", name, "--json").stdout)
    assert [row[name] for row in made["rows"]] == [7.0] * 15


def test_names_are_refused_before_torch_is_waited_for(home, tmp_path):
    pd.read_csv(home / "new.csv").assign(mean=1.0).to_csv(tmp_path / "new.csv", index=False)
    said, loaded = modules_after(("predict", home / "reg", "--data", "new.csv", "--keep", "mean"), tmp_path)
    assert said.startswith("bnn-pyro: --keep 'mean': expected another name") and loaded == "[]"


def test_scores_on_training_rows_are_flagged(home):
    made = predicting.carry_out(str(home / "reg"), str(home / "all.csv"))
    rows = made.run.content["data"]["rows"]
    assert made.seen == rows == 80 and f"warning: {rows} of these rows are training rows" in predicted_page.page(made)


def test_inputs_that_the_training_rows_do_not_reach_are_named(home, tmp_path):
    new = pd.read_csv(home / "new.csv").head(4)
    inside = predicting.carry_out(str(home / "reg"), str(home / "all.csv")).run.posterior.data.x[:, 0]
    new["age"] = [inside.min(), inside.max(), inside.max() + 1, 5000.0]
    new.to_csv(tmp_path / "far.csv", index=False)
    made = predicting.carry_out(str(home / "reg"), str(tmp_path / "far.csv"))
    expected = f"age 5000 at row 3 (line 5 of the file) ({inside.min():g} to {inside.max():g} there), and 1 more row."
    assert expected in made.outside and expected in " ".join(predicted_page.page(made).split())
    new.head(2).to_csv(tmp_path / "near.csv", index=False)
    assert predicting.carry_out(str(home / "reg"), str(tmp_path / "near.csv")).outside == ""


def test_scores_of_some_of_the_rows_do_not_warn_of_them_again(home, tmp_path):
    new = pd.read_csv(home / "all.csv").head(4)
    new.loc[1, "age"], new.loc[2, "age"], new.loc[1, "price"] = 9000.0, 5000.0, np.nan
    new.to_csv(tmp_path / "far.csv", index=False)
    (said,) = call("predict", home / "reg", "--data", tmp_path / "far.csv").stderr.splitlines()
    assert "within 50 standard deviations, got 9000 at row 1 (line 3 of the file)" in said


def test_rows_of_an_unknown_value_are_left_empty_when_asked(home, tmp_path):
    new = pd.read_csv(home / "new.csv").head(4)
    new.loc[2, "town"] = "Atlantis"
    new.to_csv(tmp_path / "news.csv", index=False)
    with pytest.raises(bnn.DataError, match="got 'Atlantis' at row 2"):
        predicting.carry_out(str(home / "reg"), str(tmp_path / "news.csv"))
    made = predicting.carry_out(str(home / "reg"), str(tmp_path / "news.csv"), skip_unknown=True)
    whole = bnn.load(home / "reg").predict(new.drop(index=2))
    assert list(made.table["row"]) == [0, 1, 2, 3] and made.table["mean"].isna().tolist() == [False, False, True, False]
    np.testing.assert_allclose(made.table["mean"].dropna(), whole.mean)
    assert "NaN" not in json.dumps(json.loads(call("predict", home / "reg", "--data", tmp_path / "news.csv",
                                                   "--skip-unknown", "--json").stdout))  # fmt: skip
    page = call(
        "predict", home / "many", "--data", tmp_path / "news.csv", "--skip-unknown", "--out", tmp_path / "p.csv"
    )
    assert re.search(r"^  2 +- +-", page.stdout, re.M) and pd.read_csv(tmp_path / "p.csv")["label"].isna().sum() == 1
    new["town"] = "Atlantis"
    new.to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(bnn.DataError, match="expected a row whose values the training rows know, got none"):
        predicting.carry_out(str(home / "reg"), str(tmp_path / "none.csv"), skip_unknown=True)


def test_several_kept_columns_stand_in_the_order_asked_for_beside_their_rows(home, tmp_path):
    """Also where a row is left empty, whose own values are still copied; a column named twice is copied once."""
    new = pd.read_csv(home / "new.csv").head(4).assign(id=list("wxyz"), lot=[4, 3, 2, 1])
    new.loc[1, "town"] = "Atlantis"
    new.to_csv(tmp_path / "kept.csv", index=False)
    words = ("--keep", "lot", "--keep", "id", "--keep", "lot", "--skip-unknown", "--out", tmp_path / "p.csv")
    assert call("predict", home / "reg", "--data", tmp_path / "kept.csv", *words).exit_code == 0
    with open(tmp_path / "p.csv") as file:  # as pandas would rename a second 'lot'
        assert next(file).startswith("row,lot,id,mean,")
    found = pd.read_csv(tmp_path / "p.csv")
    assert found["id"].tolist() == list("wxyz") and found["lot"].tolist() == [4, 3, 2, 1]
    assert found["mean"].isna().tolist() == [False, True, False, False]


def test_a_row_is_unknown_by_any_text_column_but_not_by_a_gap_or_a_column_left_out():
    train = pd.DataFrame({"town": ["a", "b", None, "a"], "kind": list("xyxy"), "same": "s"})
    with pytest.warns(UserWarning, match="'same' is the same in all rows"):
        encoding = learn_encoding(train, "fit", "impute")
    new = pd.DataFrame({"town": ["c", None, "a", "a"], "kind": ["x", "x", "z", "y"]})
    assert predicting._unknown(encoding, new).tolist() == [True, False, True, False]


def test_labels_scores_and_notes_are_those_of_the_rows_that_are_not_skipped(tmp_path):
    """Labels that are whole numbers stay so beside empty rows, and a row's number is its place in the file."""
    whole = table()[["age", "town"]].assign(grade=np.arange(100) % 2 + 3)
    whole.to_csv(tmp_path / "grades.csv", index=False)
    made = call(
        "fit", "logistic", "--data", tmp_path / "grades.csv", "--target", "grade", *FEW, "--out", tmp_path / "run"
    )
    assert made.exit_code in (0, 1), made.output
    new = whole.tail(12).reset_index(drop=True)
    new.loc[[0, 5], "town"] = "Atlantis"
    new.loc[7, "age"] = 5000.0
    new.to_csv(tmp_path / "new.csv", index=False)
    words = ("predict", tmp_path / "run", "--data", tmp_path / "new.csv", "--skip-unknown")
    found = json.loads(call(*words, "--out", tmp_path / "p.csv", "--json").stdout)
    known = new.drop(index=[0, 5])
    scores = bnn.load(tmp_path / "run").score(known[["age", "town"]], known["grade"])
    assert found["scored_rows"] == 10 and {k: found["scores"][k]["value"] for k in scores} == pytest.approx(
        {k: value for k, (value, _) in scores.items()}, rel=1e-12
    )
    train = load_table(tmp_path / "grades.csv", "grade", task="classification").train.x
    assert found["training_rows"] == len(known.merge(train)) > 0
    assert found["outside"].startswith("outside of the training rows: age 5000 at row 7 (")
    assert set(pd.read_csv(tmp_path / "p.csv", dtype=str)["label"].dropna()) <= {"3", "4"}
    assert {type(row["label"]) for row in found["rows"]} == {int, type(None)}
    new.assign(**{"p(3)": 0.5}).to_csv(tmp_path / "named.csv", index=False)
    result = call("predict", tmp_path / "run", "--data", tmp_path / "named.csv", "--skip-unknown", "--keep", "p(3)")
    assert "--keep 'p(3)': expected another name" in complaint(result)


def test_the_value_furthest_outside_is_named_in_widths_of_its_range():
    """a is 2 widths beyond, b 1.01 of a hundred each; c was constant, and counts in its own units."""
    training = np.array([[0.0, 100.0, 5.0], [1.0, 200.0, 5.0]])
    file = pd.DataFrame(index=range(13))

    def said(*given):
        return predicting._outside(training, np.array(given), ("a", "b", "c"), file, np.array([7, 9, 12])[: len(given)])

    inside, low, wide = [0.5, 200.0, 5.0], [-2.0, 150.0, 5.0], [0.5, 301.0, 5.0]
    start = "outside of the training rows: "
    assert said(inside) == ""
    assert said(wide, inside).startswith(f"{start}b 301 at row 7 (100 to 200 there). ")
    assert said(inside, low, wide).startswith(f"{start}a -2 at row 9 (0 to 1 there), and 1 more row. ")
    assert said(wide, low, wide).startswith(f"{start}a -2 at row 9 (0 to 1 there), and 2 more rows. ")
    assert said([0.5, 150.0, 7.5], low).startswith(f"{start}c 7.5 at row 7 (5 to 5 there), and 1 more row. ")


def test_training_rows_are_equal_in_every_input_and_flagged_only_beside_scores(home, tmp_path):
    training = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert predicting._seen(training, np.array([[1.0, 2.0], [1.0, 4.0], [3.0, 4.0], [3.0, 4.0]])) == 3
    unscored = predicting.carry_out(str(home / "reg"), str(home / "new.csv"))
    assert unscored.seen > 0 and not unscored.scores and "training rows" not in predicted_page.page(unscored)
    whole = pd.read_csv(home / "all.csv")
    whole.assign(age=whole["age"] + 1e-6).to_csv(tmp_path / "moved.csv", index=False)
    moved = predicting.carry_out(str(home / "reg"), str(tmp_path / "moved.csv"))
    assert moved.seen == 0 and moved.scores and "of these rows are training" not in predicted_page.page(moved)


def test_a_column_that_was_left_out_is_not_asked_for(home, tmp_path):
    """Text that is the same in all rows: fit says that it is left out, and new rows may lack it or have it."""
    pd.read_csv(home / "all.csv")[["age", "price"]].assign(country="NL").to_csv(tmp_path / "all.csv", index=False)
    made = call("fit", "linear", "--data", tmp_path / "all.csv", "--target", "price", *FEW, "--out", tmp_path / "run")
    assert "column 'country' is the same in all rows, so it is left out." in made.stderr
    new = pd.read_csv(home / "new.csv")[["age"]]
    new.to_csv(tmp_path / "without.csv", index=False)
    new.assign(country="NL").to_csv(tmp_path / "with.csv", index=False)
    without, given = (
        predicting.carry_out(str(tmp_path / "run"), str(tmp_path / f)) for f in ("without.csv", "with.csv")
    )
    assert without.table["mean"].tolist() == given.table["mean"].tolist() and len(without.table) == 15
    assert call("predict", tmp_path / "run", "--data", tmp_path / "with.csv").stderr == ""


def test_another_value_in_a_column_that_was_left_out_is_warned_of_once(home, tmp_path):
    """Of the rows that are predicted, and once, also where the file holds the target, so that rows are scored too."""
    whole = pd.read_csv(home / "all.csv")[["age", "town", "price"]]
    whole.insert(1, "country", "NL")
    whole.to_csv(tmp_path / "all.csv", index=False)
    made = call("fit", "linear", "--data", tmp_path / "all.csv", "--target", "price", *FEW, "--out", tmp_path / "run")
    assert made.exit_code in (0, 1), made.output
    new = whole.head(6).assign(country=["NL", "BE", None, "BE", "FR", "NL"])
    new.loc[1, "town"], new.loc[3, "price"] = "Atlantis", np.nan
    new.iloc[:, ::-1].to_csv(tmp_path / "new.csv", index=False)
    words = ("predict", tmp_path / "run", "--data", tmp_path / "new.csv", "--json", "--skip-unknown")
    result = call(*words, "--out", tmp_path / "p.csv")
    (said,) = result.stderr.splitlines()
    start = "warning: linear, predict, x: column 'country' was 'NL' in all training rows, got 'BE' at "
    assert said.startswith(f"{start}row 3 (line 5 of the file): what that changes is not known")
    found = json.loads(result.stdout)
    expected = bnn.load(tmp_path / "run").predict(new.drop(index=1)[["age", "town"]])
    assert [row["mean"] for row in found["rows"] if row["mean"] is not None] == expected.mean.tolist()
    assert found["scored_rows"] == 4 and found["ignored"] == ["country"]


def test_kept_columns_and_predictions_lose_no_digit(home, tmp_path):
    """A CSV file's cells are copied as they stand; predictions are those of --json to the last bit."""
    rows = pd.read_csv(home / "new.csv", dtype=str).head(4)
    rows = rows.assign(id=["12345678901", "", "12345678903", "4"], code=["007", "010", "1e3", "2"], yes=["TRUE", "false"] * 2,
                       mass=["0.1000", "1.00000000000000005", "", "3"])  # fmt: skip
    rows.to_csv(tmp_path / "new.csv", index=False)
    kept = ("id", "code", "yes", "mass", "age", "town")
    words = [w for name in kept for w in ("--keep", name)]
    made = call("predict", home / "reg", "--data", tmp_path / "new.csv", *words, "--out", tmp_path / "p.csv", "--json")
    found = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
    for name in kept:
        assert found[name].tolist() == rows[name].tolist(), name
    exact = json.loads(made.stdout)["rows"]
    for name in ("mean", "sd", "epistemic_sd", "aleatoric_sd", "lower_90", "upper_90"):
        assert [float(v) for v in found[name]] == [row[name] for row in exact], name
    assert exact[0]["code"] == 7 and exact[0]["id"] == 12345678901


def test_kept_numbers_are_exact_and_whole_ones_have_no_point():
    kept = {"id": [12345678901.0, np.nan], "v": [0.1 + 0.2, 1e300], "big": [1e300, 2.0], "n": [2**60 + 1, 1]}
    written = pd.DataFrame({name: predicting._exact(pd.Series(values)) for name, values in kept.items()})
    assert written.to_csv(index=False).splitlines() == [
        "id,v,big,n",
        "12345678901,0.30000000000000004,1e+300,1152921504606846977",
        ",1e+300,2.0,1",
    ]


def fitted(folder, table, model, target, *words):
    table.to_csv(folder / "all.csv", index=False)
    made = call("fit", model, "--data", folder / "all.csv", "--target", target, *words, *FEW, "--out", folder / "run")
    assert made.exit_code in (0, 1), made.output
    return folder / "run"


def test_one_blank_target_does_not_make_text_of_true_and_false(tmp_path):
    whole = table()[["age", "town"]].assign(sold=np.arange(100) % 3 == 0)
    run = fitted(tmp_path, whole, "logistic", "sold")
    new = whole.head(10).astype({"sold": object})
    new.loc[4, "sold"] = None
    new.to_csv(tmp_path / "new.csv", index=False)
    made = predicting.carry_out(str(run), str(tmp_path / "new.csv"))
    assert made.scored == 9 and len(made.table) == 10


def test_true_and_false_with_gaps_are_predicted_without_gaps(tmp_path):
    whole = table()[["age", "price"]].assign(garden=np.arange(100) % 3 == 0)
    gaps = whole.astype({"garden": object})
    gaps.loc[::7, "garden"] = None
    run = fitted(tmp_path, gaps, "linear", "price", "--missing", "impute")
    for new in (whole.head(10), gaps.head(10), whole[whole["garden"]].head(3)):
        new.to_csv(tmp_path / "new.csv", index=False)
        assert len(predicting.carry_out(str(run), str(tmp_path / "new.csv")).table) == len(new)


@pytest.mark.parametrize("level", ["1", "A"])
def test_text_that_reads_as_numbers_in_a_new_file_is_text(tmp_path, level):
    """Levels and classes of the run are text, so those of a new file are, even if none of its rows shows it."""
    whole = table()[["age", "price"]].assign(
        flat=np.resize(["A", "B", "1"], 100), kind=np.resize(["1", "2", "x", "y"], 100)
    )
    run = fitted(tmp_path, whole, "mlp_categorical", "kind", "--drop", "price")
    new = whole[(whole["flat"] == level) & whole["kind"].isin(["1", "2"])].head(5)
    new.to_csv(tmp_path / "new.csv", index=False)
    for skip in (False, True):
        out = {"out": str(tmp_path / "p.csv"), "keep": ("age",), "overwrite": True}
        made = predicting.carry_out(str(run), str(tmp_path / "new.csv"), skip_unknown=skip, **out)
        assert made.scored == 5 and made.table["label"].notna().all()


def test_an_infinite_target_is_refused_with_its_line(home, tmp_path):
    pd.read_csv(home / "all.csv").head(4).assign(price=[1.0, 2.0, np.inf, np.nan]).to_csv(
        tmp_path / "new.csv", index=False
    )
    said = complaint(call("predict", home / "reg", "--data", tmp_path / "new.csv"))
    assert "expected finite numbers, got inf at row 2 (line 4 of the file), column 'price'" in said
