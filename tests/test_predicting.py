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
from bnn_pyro import predicting

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
    assert len(table) == predicting.SHOWN
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

    monkeypatch.setattr(predicting.os, "fsync", full)
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
    assert made.ignored == ["garage"] and "ignored: garage" in predicting.page(made)
    with pytest.raises(bnn.UnknownNameError, match=r"did you mean 'id'"):
        predicting.carry_out(str(home / "reg"), str(tmp_path / "kept.csv"), keep=("idd",))
    new.rename(columns={"age": "AGE"}).to_csv(tmp_path / "case.csv", index=False)
    with pytest.raises(bnn.DataError, match=r"got none called 'age'\. Did you mean 'AGE'\? Rename or add it\."):
        predicting.carry_out(str(home / "reg"), str(tmp_path / "case.csv"))


def test_scores_on_training_rows_are_flagged(home):
    made = predicting.carry_out(str(home / "reg"), str(home / "all.csv"))
    rows = made.run.content["data"]["rows"]
    assert made.seen == rows == 80 and f"warning: {rows} of these rows are training rows" in predicting.page(made)


def test_inputs_that_the_training_rows_do_not_reach_are_named(home, tmp_path):
    new = pd.read_csv(home / "new.csv").head(4)
    inside = predicting.carry_out(str(home / "reg"), str(home / "all.csv")).run.posterior.data.x[:, 0]
    new["age"] = [inside.min(), inside.max(), inside.max() + 1, 5000.0]
    new.to_csv(tmp_path / "far.csv", index=False)
    made = predicting.carry_out(str(home / "reg"), str(tmp_path / "far.csv"))
    expected = f"age 5000 at row 3 (line 5 of the file) ({inside.min():g} to {inside.max():g} there), and 1 more row."
    assert expected in made.outside and expected in " ".join(predicting.page(made).split())
    new.head(2).to_csv(tmp_path / "near.csv", index=False)
    assert predicting.carry_out(str(home / "reg"), str(tmp_path / "near.csv")).outside == ""


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
