"""``bnn-pyro coverage``: the shares are those of scores, for each data set and method, and nothing wrong begins a fit."""

import json

import numpy as np
import pytest
from test_cli import call, complaint

import bnn_pyro as bnn
from bnn_pyro import coverage
from bnn_pyro.model import Model

WORDS = ("--data", "stackloss", "--data", "engel", "--inference", "map", "--inference", "svi",
         "--set", "steps=100", "--set", "draws=50", "--set", "prior_sd=2", "--seed", "3")  # fmt: skip


@pytest.fixture(scope="module")
def entries():
    result = call("coverage", "linear", *WORDS, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        f"Fitting linear to {data} by {name}" for data in ("stackloss", "engel") for name in ("map", "svi")
    ]
    return json.loads(result.stdout)


def test_the_shares_are_those_of_a_fit_from_python(entries):
    assert [(e["data"], e["inference"]) for e in entries] == [
        ("stackloss", "map"), ("stackloss", "svi"), ("engel", "map"), ("engel", "svi")
    ]  # fmt: skip
    for entry in entries[1::2]:
        data = bnn.load_dataset(entry["data"])
        model = bnn.get_model("linear", prior_sd=2.0)
        posterior = model.fit(data.train, inference="svi", steps=100, draws=50, seed=3, progress=False)
        assert (entry["train_rows"], entry["test_rows"]) == (len(data.train), len(data.test))
        for key, (value, error) in posterior.score(data.test).items():
            assert entry["scores"][key]["value"] == pytest.approx(value, rel=1e-12), key
            assert entry["scores"][key]["stderr"] == pytest.approx(error, rel=1e-12), key
        prediction = posterior.predict(data.test.x)
        for p in (0.5, 0.9, 0.95):
            lower, upper = prediction.interval(p)
            y = np.asarray(data.test.y)
            counted = np.mean((lower <= y) & (y <= upper))
            assert entry["scores"][f"test_coverage_{100 * p:.0f}"]["value"] == counted
        assert entry["verdict"] == posterior.verdict.verdict and entry["seconds"] > 0


def test_the_page_has_a_line_for_each_fit(entries):
    page = coverage.page("linear", entries)
    lines = [line for line in page.splitlines() if line.startswith(("  stackloss", "  engel"))]
    assert len(lines) == 4 and max(map(len, page.splitlines())) <= 80
    for line, entry in zip(lines, entries, strict=True):
        words = line.split()
        assert words[:3] == [entry["data"], entry["inference"], str(entry["test_rows"])]
        assert float(words[3]) == pytest.approx(entry["scores"]["test_coverage_50"]["value"], abs=6e-4)
        assert float(words[9]) == pytest.approx(entry["scores"]["test_coverage_95"]["value"], abs=6e-4)
        assert line.endswith(entry["verdict"])
    for entry in entries:
        entry = {**entry, "data": "uci/concrete", "inference": "nuts", "verdict": "not converged", "test_rows": 4573}
        assert max(map(len, coverage.page("linear", [entry]).splitlines())) <= 80


@pytest.mark.parametrize(("words", "sentence"), [
    (("logistic",), "expected a model for regression, got logistic"),
    (("linaer",), "did you mean 'linear'"),
    (("linear", "--data", "diabets"), "did you mean 'diabetes'"),
    (("linear", "--data", "engel", "--data", "breast_cancer"), "expected data for regression, got 'breast_cancer'"),
    (("linear", "--data", "mine.csv"), "expected the name of a data set, got mine.csv, a table"),
    (("linear", "--inference", "sv"), "unknown inference 'sv'"),
    (("linear", "--set", "stepz=3"), "did you mean 'steps'"),
    (("linear", "--inference", "map", "--set", "warmup=3"), "unknown setting of linear or map 'warmup'"),
    (("linear", "--set", "steps=0"), "steps: expected a whole number of at least 1"),
    (("linear", "--split", "9"), "split: expected the one split 0, got 9"),
    (("linear", "--seed", "-1"), "seed: expected a whole number of at least 0"),
])  # fmt: skip
def test_what_cannot_be_counted_is_refused_before_a_fit(words, sentence, monkeypatch):
    monkeypatch.setattr(Model, "fit", lambda *_, **__: pytest.fail("a fit began"))
    assert sentence in complaint(call("coverage", *words))
