"""The UCI benchmark: nothing is chosen by test rows, runs go on where they stopped, tables say what the rows say."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # at the end: names of the tests' own files go first

import uci
import uci_table
from uci_table import PUBLISHED, Published

import bnn_pyro as bnn
from bnn_pyro.datasets import DataSet, Part


def row(name="wine", method="svi", split=0, lpd=-0.97, rmse=0.637, **more):
    figures = {
        "set": name, "method": method, "split": split, "candidates": uci.CANDIDATES[method], "chosen": 1,
        "folds": uci.FOLDS[method],
        "held_out_lpd": [-1.0, -0.9, -1.1], "test_lpd": lpd, "test_rmse": rmse, "verdict": "approximate", "seconds": 60.0,
        "versions": {"bnn-pyro": "0.1", "torch": "2.0"}, "machine": "Linux x86_64, 2 cores",
    }  # fmt: skip
    return figures | more


def line_of(text, start):
    """The first line that begins so, in words after that."""
    return next(line for line in text.splitlines() if line.startswith(start)).removeprefix(start).split()


def test_held_out_rows_are_a_fifth_the_same_on_every_call_and_each_splits_own():
    kept, held = uci.held_out(927, split=3)
    assert len(held) == 185 and sorted([*kept, *held]) == list(range(927))
    assert all(np.array_equal(a, b) for a, b in zip(uci.held_out(927, split=3), (kept, held), strict=True))
    assert not np.array_equal(uci.held_out(927, split=4)[1], held)


def test_five_folds_hold_out_each_row_once():
    folds = [uci.held_out(927, split=3, fold=i) for i in range(5)]
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(927))
    assert all(sorted([*kept, *held]) == list(range(927)) and abs(len(held) - 185) < 5 for kept, held in folds)


def test_the_last_fit_takes_as_many_epochs_as_the_candidate():
    assert uci.steps_of({"steps": 5000}, n=800, fitted=800, batch=128) == 5000
    assert uci.steps_of({"steps": 5000}, n=1000, fitted=800, batch=128) == 6250
    assert uci.steps_of({"epochs": 40}, n=800, fitted=800, batch=100) == 320
    assert uci.steps_of({"epochs": 40}, n=1000, fitted=800, batch=100) == 400


def test_the_best_candidate_is_finite():
    assert uci.best([-1.2, math.nan, -1.1]) == 2
    assert uci.best([math.inf, -1.2, -1.3]) == 1
    with pytest.raises(ArithmeticError, match="held-out"):
        uci.best([math.nan, -math.inf])


class Told:
    """A posterior that has each row's density as it is told, and notes which rows it has been shown."""

    def __init__(self, lpd, shown, steps):
        self.lpd, self.shown, self.attrs = lpd, shown, {"versions": "{}"}
        self.draws = type("Draws", (), {"info": {"steps_taken": steps, "compile_time": 1.0, "sampling_time": 2.0}})

    def log_predictive_density(self, x, y):
        self.shown.append(set(x.index))
        return np.full(len(y), self.lpd)

    def score(self, part):
        self.shown.append(set(part.x.index))
        return {"test_lpd": (-0.5, 0.1), "test_rmse": (0.2, 0.1), "test_coverage_90": (0.9, 0.1)}

    def diagnose(self):
        return type("Verdict", (), {"verdict": "approximate", "reasons": []})


def test_test_rows_are_seen_once_by_the_candidate_that_held_out_rows_chose(monkeypatch):
    frame = pd.DataFrame({"x": np.arange(50.0)})
    train, test = (Part(frame.iloc[a:b], frame.x.iloc[a:b].rename("y")) for a, b in ((0, 40), (40, 50)))
    data = DataSet(train, test, None)
    fits, shown = [], []

    def fit(method, candidate, x, y, fitted, seed):
        fits.append((candidate, set(x.index), fitted, seed))
        return Told({1.0: -2.0, 0.3: -3.0}[candidate["prior_sd"]] + candidate["epochs"] / 1000, shown, 7), ["a warning"]

    monkeypatch.setattr(bnn, "load_dataset", lambda name, split: data, raising=False)
    monkeypatch.setattr(uci, "fit", fit)
    found = uci.measure("wine", "ensemble", 5)
    candidates, rows = uci.CANDIDATES["ensemble"], set(range(40))
    assert [f[0] for f in fits] == [c for c in candidates for _ in range(5)] + [candidates[1]] and found["chosen"] == 1
    assert all((f[2], f[3]) == (32, 5) for f in fits)
    held = [rows - f[1] for f in fits[:5]]
    assert set.union(*held) == rows and [len(h) for h in held] == [8] * 5 and fits[-1][1] == rows
    assert [f[1] for f in fits[:-1]] == [rows - h for h in held] * 3
    assert shown == [*held * 3, set(range(40, 50))]
    assert found["test_lpd"] == -0.5 and found["held_out_lpd"] == pytest.approx([-1.96, -1.6, -2.6])


@pytest.mark.parametrize("method", uci.CANDIDATES)
def test_a_fit_is_the_network_that_is_said_in_the_units_of_its_rows(method, monkeypatch):
    monkeypatch.setattr(uci, "BATCH", dict.fromkeys(uci.BATCH, 4))  # so few that nothing is compiled
    x = pd.DataFrame({"a": np.arange(10.0)})
    y = (100 + 10 * x.a).rename("y")
    candidate = {
        "svi": {"steps": 4, "lr": 0.02}, "ensemble": {"epochs": 2, "prior_sd": 0.5}, "mc_dropout": {"steps": 4, "rate": 0.3},
        "dropout_30k": {"steps": 4, "rate": 0.3},
        "laplace_last": {"tolerance": 3.0}, "laplace_kron": {"tolerance": 3.0},
    }[method]  # fmt: skip
    posterior, _ = uci.fit(method, candidate, x, y, fitted=5, seed=3)
    assert posterior.model.hidden == (50,) and posterior.model.activation == "relu" and posterior.seed == 3
    steps = {"svi": 8, "ensemble": 5, "mc_dropout": 8, "dropout_30k": 8}
    assert posterior.draws.info.get("steps_taken") == steps.get(method)
    assert posterior.draws.z.shape[:2] == ((5, 100) if method == "ensemble" else (1, 500))
    assert float(posterior.units.y_mean) == y.mean()
    (name, value), *_ = reversed(candidate.items())
    assert getattr(posterior.model if method == "ensemble" else posterior.method, name) == value
    structure = {"laplace_last": "last_layer", "laplace_kron": "kronecker"}.get(method)
    assert posterior.draws.info.get("structure") == structure
    assert type(posterior.model).__name__ == ("MLPHetero" if method == "ensemble" else "MLPGaussian")


def test_one_candidate_is_fitted_to_the_whole_training_part_at_once(monkeypatch):
    frame = pd.DataFrame({"x": np.arange(50.0)})
    train, test = (Part(frame.iloc[a:b], frame.x.iloc[a:b].rename("y")) for a, b in ((0, 40), (40, 50)))
    fits, shown = [], []

    def fit(method, candidate, x, y, fitted, seed):
        fits.append((set(x.index), fitted))
        return Told(-1.0, shown, 7), []

    monkeypatch.setattr(bnn, "load_dataset", lambda name, split: DataSet(train, test, None), raising=False)
    monkeypatch.setattr(uci, "fit", fit)
    found = uci.measure("wine", "laplace_kron", 5)
    assert fits == [(set(range(40)), 40)] and shown == [set(range(40, 50))]
    assert found["chosen"] == 0 and found["folds"] == 0 and found["held_out_lpd"] == []


def test_an_interrupt_ends_the_run_instead_of_becoming_a_score(monkeypatch, tmp_path):
    def measure(*job):
        raise KeyboardInterrupt

    monkeypatch.setattr(uci, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        uci.perform([("wine", "svi", 0)], tmp_path / "uci.jsonl")
    assert not (tmp_path / "uci.jsonl").exists()


def test_a_run_is_resumed_and_failures_and_rows_of_other_candidates_are_tried_again(tmp_path, monkeypatch):
    out, tried = tmp_path / "deep" / "uci.jsonl", []
    broken = [1]

    def measure(name, method, split):
        tried.append(split)
        if split in broken:
            raise ValueError("too bad")
        return {k: v for k, v in row(split=split).items() if k not in ("set", "method", "split", "candidates")}

    monkeypatch.setattr(uci, "measure", measure)
    words = ["run", "--sets", "wine", "--methods", "svi", "--splits", "0", "1", "2", "--out", str(out)]
    assert uci.main(words) == 1 and tried == [0, 1, 2]
    with out.open("a") as file:
        file.write(json.dumps(row("kin8nm", candidates=[{"steps": 1}])) + '\n{"set": "wine", "cut sho')
    broken.clear()
    assert uci.main(words) == 0 and tried == [0, 1, 2, 1]
    assert uci.main([*words[:2], "kin8nm", *words[3:6], "0", *words[-2:]]) == 0 and tried == [0, 1, 2, 1, 0]
    rows = uci.read(out)
    assert rows[1]["error"] == "ValueError: too bad"
    assert [uci_table.key(r) for r in uci_table.scored(rows, uci.CANDIDATES)] == [
        ("wine", "svi", 0), ("wine", "svi", 2), ("wine", "svi", 1), ("kin8nm", "svi", 0),
    ]  # fmt: skip


def test_gap_is_in_combined_standard_errors_and_positive_where_ours_is_better():
    published = Published("-1.00", "0.40", splits=16)
    assert published.error == pytest.approx(0.1)
    assert Published("-1.00", "0.40", "standard error", splits=16).error == 0.4
    spread = stats.uniform(-0.005, 0.01).std()
    assert published.rounding == pytest.approx(spread)
    expected = 0.3 / math.sqrt(0.1**2 + 0.2**2 + spread**2)
    assert uci_table.gap(-0.7, 0.2, published, sign=1) == pytest.approx(expected)
    assert uci_table.gap(-0.7, 0.2, published, sign=-1) == pytest.approx(-expected)


def test_tables_have_means_errors_gaps_and_answers():
    wobble = np.tile([-1.0, 1.0], 10)  # over 20 splits: sd 1.026, standard error 0.2294
    rows = [
        *(row(split=i, lpd=-0.95 + 0.1 * w, rmse=0.7 + 0.01 * w, seconds=60.0 + i) for i, w in enumerate(wobble)),
        row("concrete", "ensemble", 0, lpd=-3.1, rmse=5.9),
        row("concrete", "ensemble", 1, lpd=-3.3, rmse=6.1, chosen=2, verdict="not converged"),
        row("kin8nm", "svi", 0, lpd=0.9, rmse=0.1),
        row("kin8nm", "ensemble", 3, candidates=[{"epochs": 1}]),
        {"set": "kin8nm", "method": "svi", "split": 9, "candidates": uci.CANDIDATES["svi"], "error": "stopped"},
    ]
    text = uci_table.render(rows, uci.CANDIDATES)
    assert max(map(len, text.splitlines())) <= 80
    likelihood, rmse, choices, notes = text.split("\n\n")
    error = 0.1 * wobble.std(ddof=1) / math.sqrt(20)
    far = 0.02 / math.hypot(error, 0.061 / math.sqrt(20), 0.0005 / math.sqrt(3))
    assert line_of(likelihood, "wine     svi") == f"20 -0.950 ± {error:.3f} -0.970 ± 0.014 {far:+.1f} yes".split()
    assert line_of(rmse, "wine     svi")[-1] == "NO" and line_of(rmse, "wine     svi")[-2].startswith("-")
    assert line_of(likelihood, "concrete ensemble")[:4] == ["2", "-3.200", "±", "0.100"]
    assert line_of(likelihood, "concrete ensemble")[-1] == "yes*"
    assert line_of(likelihood, "kin8nm   svi")[-2:] == ["-", "-*"]  # one split has no standard error
    assert "kin8nm   ensemble" not in text
    assert line_of(choices, "concrete ensemble") == ["0", "1", "1", "60", "1", "of", "2"]
    assert line_of(choices, "wine     svi") == ["0", "20", "0", "70", "0", "of", "20"]
    assert "1 rows are errors" in notes and "1 rows chose among other" in notes and "torch 2.0" in notes


def test_published_scores_are_the_cards():
    """Those that the cards of the zoo have, too, are the same."""
    card = bnn.get_model("mlp_gaussian").card
    found = {(p.dataset.removeprefix("uci/"), p.inference, p.metric): (p.value, p.stdev) for p in card.published}
    assert len(found) == 2
    assert all((PUBLISHED[k].value, float(PUBLISHED[k].spread)) == v for k, v in found.items())
    assert {k[0] for k in PUBLISHED} == set(uci.SETS) and {k[1] for k in PUBLISHED} == set(uci.CANDIDATES)


def test_no_rows_say_how_to_make_some(capsys, tmp_path):
    assert uci.main(["table", "--out", str(tmp_path / "none.jsonl")]) == 0
    assert "uci.py run" in capsys.readouterr().out
