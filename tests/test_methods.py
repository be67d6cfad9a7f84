"""``bnn-pyro methods``: every method has its note, and the table says what the runs hold."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_cli import call, complaint

import bnn_pyro as bnn
from bnn_pyro import method_notes, method_table
from bnn_pyro.inference import METHODS, list_inference

QUICK = ("--set", "chains=2", "--set", "warmup=30", "--set", "draws=40", "--set", "steps=50", "--backend", "eager")


def test_every_method_has_a_note_and_a_place_in_the_table():
    assert sorted(method_notes.NOTES) == sorted(method_table.ORDER) == list_inference()
    result = call("methods")
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    for name, note in method_notes.NOTES.items():
        assert name in result.stdout.splitlines()
        for text in (note.what, note.when, note.costs, note.wrong):
            assert " ".join(text.split()[:4]) in result.stdout and text[-1] in ".?"
    assert json.loads(call("methods", "--json").stdout) == method_notes.entries()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("linaer",), "did you mean 'linear'?"),
        (("linear", "--inference", "nutz"), "did you mean 'nuts'?"),
        (("linear", "--set", "drows=3"), "did you mean 'draws'?"),
        (("linear", "--seed", "-1"), "seed: expected"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_fit(words, said, monkeypatch, tmp_path):
    monkeypatch.setattr(method_table, "_run", lambda job: pytest.fail("a fit began"))
    assert said in complaint(call("methods", *words, "--out", tmp_path / "runs"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("methods")
    words = ("methods", "linear", "--inference", "nuts", "--inference", "map", *QUICK, "--out", out, "--seed", "2")
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["[1/2] linear by map", "[2/2] linear by nuts"]
    return out, words, json.loads(result.stdout)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_runs(fitted):
    out, _, entries = fitted
    runs = {name: bnn.load(out / f"linear-{name}") for name in ("map", "nuts")}
    test = bnn.load_dataset("diabetes").test
    drawn = {name: run.predict(test.x).function_draws.reshape(-1, len(test)) for name, run in runs.items()}
    mean, sd = drawn["nuts"].mean(0), drawn["nuts"].std(0)
    for entry in entries:
        run = runs[entry["inference"]]
        for name, (value, error) in run.score(test).items():
            assert entry["scores"][name] == pytest.approx({"value": value, "stderr": error}, rel=1e-6)
        own = drawn[entry["inference"]]
        assert entry["spread"] == pytest.approx(np.median(own.std(0) / sd), rel=1e-5, abs=1e-4)  # own is float32
        assert entry["away"] == pytest.approx(np.median(abs(own.mean(0) - mean) / sd), rel=1e-4, abs=1e-4)
        assert entry["gradients"] == run.attrs["gradient_evaluations"]
        assert entry["seconds"] == pytest.approx(run.attrs["wall_time"]) and 100 < entry["peak_mb"] < 10_000
        assert (entry["verdict"], entry["reasons"]) == (run.diagnose().verdict, run.diagnose().reasons)
        assert run.seed == 2 and (run.method.steps == 50 if entry["inference"] == "map" else run.method.chains == 2)
    assert entries[0]["spread"] == 0.0 and entries[1]["spread"] == 1.0 and entries[1]["away"] == 0.0


def test_memory_is_the_childs_own_and_not_that_of_who_started_it():
    held = np.ones(60_000_000)  # 480 MB, which ru_maxrss of a child would count
    code = "from bnn_pyro.runner import _peak_mb; print(_peak_mb()); held = bytearray(10**8); print(_peak_mb())"
    printed = method_table.subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    before, after = map(float, printed.split())
    assert held.sum() > 0 and 5 < before < 200 and 95 < after - before < 110


@pytest.mark.slow
def test_a_run_that_is_there_is_not_fitted_again_unless_settings_changed(fitted, monkeypatch):
    _, words, entries = fitted
    began = []
    run = method_table.subprocess.run

    def watched(command, **settings):
        began.append(command)
        return run(command, **settings)

    monkeypatch.setattr(method_table.subprocess, "run", watched)
    assert json.loads(call(*words, "--json").stdout) == entries and not began
    changed = [w if w != "steps=50" else "steps=60" for w in words]
    made = json.loads(call(*changed, "--json").stdout)
    assert [c[c.index("--inference") + 1] for c in began] == ["map"] and made[0]["gradients"] == 60
    call(*words)


@pytest.mark.slow
def test_a_run_by_another_backend_is_fitted_again(fitted, monkeypatch):
    _, words, _ = fitted
    began = []

    def refused(command, **settings):
        began.append(command)
        return subprocess.CompletedProcess(command, 2, "", "bnn-pyro: not now.\n")

    monkeypatch.setattr(method_table.subprocess, "run", refused)
    call(*words)
    assert not began
    printed = call(*(w if w != "eager" else "auto" for w in words)).stdout
    assert [c[c.index("--backend") + 1] for c in began] == ["auto", "auto"] and printed.count("failed: not now.") == 2


@pytest.mark.slow
def test_a_fit_that_fails_is_a_line_and_the_others_go_on(fitted, monkeypatch):
    _, words, _ = fitted
    made = method_table._run

    def run(job):
        if job.plan.method.name == "map":
            raise bnn.BNNError("linear: it broke.")
        return made(job)

    monkeypatch.setattr(method_table, "_run", run)
    result = call(*words)
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    assert "  map         failed: linear: it broke." in result.stdout
    assert sum(line.startswith("  nuts ") for line in result.stdout.splitlines()) == 2


@pytest.mark.slow
def test_a_run_that_does_not_come_back_as_it_was_is_said_to(fitted, monkeypatch):
    out, _, _ = fitted
    finished = method_table.read(str(out / "linear-map"))
    finished.content["scores"]["test_rmse"]["value"] *= 1.001
    with pytest.raises(bnn.BNNError, match="test_rmse: expected"):
        method_table._entry(finished)
    monkeypatch.setattr(method_table, "GROUPS", {"posterior", "sampel_stats"})
    with pytest.raises(bnn.BNNError, match="sampel_stats"):
        method_table._entry(finished)


QUICKEST = {  # as many steps as a verdict wants to see
    "nuts": {"chains": 2, "warmup": 20, "draws": 20, "max_tree_depth": 4}, "svi": {"steps": 200, "draws": 20},
    "hmc": {"chains": 2, "warmup": 20, "draws": 20, "max_steps": 16}, "chees": {"chains": 4, "warmup": 20, "draws": 10},
    "map": {"steps": 200, "draws": 2}, "ensemble": {"steps": 200, "members": 2, "draws": 5},
    "mc_dropout": {"steps": 200, "draws": 20}, "laplace": {"draws": 20, "tolerance": 1.0}, "prior": {"draws": 20},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model", ["linear", "mlp_gaussian", "mlp_hetero", "mlp_categorical"])
def test_the_flag_alone_switches_the_method_of_any_model(model, tmp_path):
    """Counted: each method's posterior has all groups, predicts, and comes back from its files with the same predictions."""
    settings = {} if model == "linear" else {"hidden": (3,), "activation": "tanh"}
    made = bnn.get_model(model, **settings)
    data = bnn.load_dataset(method_table.DATA.get(model, made.card.dataset))
    said = {}
    for name in METHODS:
        posterior = made.fit(data.train, inference=name, backend="eager", progress=False, **QUICKEST[name])
        loaded = bnn.load(posterior.save(tmp_path / name))
        assert set(method_table.results.group_names(loaded.idata)) >= method_table.GROUPS, name
        before, after = posterior.predict(data.test.x), loaded.predict(data.test.x)
        assert np.array_equal(before.function_draws, after.function_draws), name
        assert before.function_draws.shape[2] == len(data.test) and np.isfinite(before.function_draws).all()
        said[name] = " ".join(posterior.diagnose().reasons)
    assert len(set(said.values())) == len(METHODS), said
