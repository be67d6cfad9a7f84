"""Run directories: exact round trips, and one sentence for whatever is damaged, foreign or in the way."""

import os
import stat

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro import files, results

FIT = {"inference": "svi", "steps": 60, "draws": 30, "seed": 2}


@pytest.fixture(scope="module")
def posterior():
    data = bnn.load_dataset("stackloss")
    return bnn.get_model("mlp_gaussian", hidden=(3,)).fit(data.train, **FIT)


@pytest.fixture
def run(posterior, tmp_path):
    return posterior.save(tmp_path / "run")


def same(one, other):
    assert results.group_names(one) == results.group_names(other)
    for group in results.group_names(one):
        a, b = results.dataset(one, group), results.dataset(other, group)
        assert a.identical(b), group
    assert dict(one.attrs) == dict(other.attrs)


def test_save_load_save_is_equal(posterior, run, tmp_path):
    loaded = bnn.load(run)
    same(posterior.idata, loaded.idata)
    assert torch.equal(posterior.draws.z, loaded.draws.z) and loaded.draws.z.dtype == posterior.draws.z.dtype
    assert loaded.model == posterior.model and loaded.method == posterior.method and loaded.seed == posterior.seed
    x = bnn.load_dataset("stackloss").test.x
    for attribute in ("mean", "std", "draws", "function_draws"):
        assert np.array_equal(getattr(posterior.predict(x), attribute), getattr(loaded.predict(x), attribute))
    assert str(loaded.diagnose()) == str(posterior.diagnose())
    again = loaded.save(tmp_path / "again")
    assert (run / files.STATE).read_bytes() == (again / files.STATE).read_bytes()
    assert (run / files.NETCDF).read_bytes() == (again / files.NETCDF).read_bytes()


@pytest.mark.parametrize("inference", ["nuts", "map"])
def test_other_methods_round_trip(inference, tmp_path):
    data = bnn.load_dataset("stackloss")
    options = {"nuts": {"chains": 2, "warmup": 20, "draws": 20}, "map": {"steps": 50}}[inference]
    posterior = bnn.get_model("linear", noise=0.5).fit(data.train, inference=inference, dtype="float64", **options)
    loaded = bnn.load(posterior.save(tmp_path / "run"))
    same(posterior.idata, loaded.idata)
    assert loaded.method == posterior.method and str(loaded.diagnose()) == str(posterior.diagnose())
    for name, value in posterior.draws.state.items():
        assert torch.equal(loaded.draws.state[name], value)


LABELS = {
    "text": np.array(["ash", "beech", "\u00fcrs\u00fc", "elm"]),
    "numbers": np.array([3, 1, 2, -5]),
    "booleans": np.array([True, False]),
    "categorical": pd.Categorical(["low", "mid", "high", "mid"], categories=["low", "mid", "high", "unseen"]),
}


@pytest.mark.parametrize("inference", ["svi", "prior"])
@pytest.mark.parametrize("name", LABELS)
def test_classes_round_trip(name, inference, tmp_path):
    """The same classes, and bit-equal probabilities for them."""
    x = np.random.default_rng(0).normal(size=(40, 3)) * 10 + 5
    y = LABELS[name].take(np.arange(40) % len(LABELS[name]))
    options = FIT if inference == "svi" else {"inference": "prior", "draws": 30}
    posterior = bnn.get_model("mlp_categorical", hidden=(3,)).fit(x, y, **options)
    loaded = bnn.load(posterior.save(tmp_path / "run"))
    same(posterior.idata, loaded.idata)
    before, after = posterior.predict(x), loaded.predict(x)
    assert after.classes.dtype == before.classes.dtype and after.classes.tolist() == before.classes.tolist()
    if name == "categorical":
        assert after.classes.tolist() == ["low", "mid", "high", "unseen"]
    else:
        assert after.classes.tolist() == sorted(LABELS[name].tolist())
    for attribute in ("probs", "aleatoric", "epistemic", "codes", "function_draws", "label", "draws"):
        assert np.array_equal(getattr(before, attribute), getattr(after, attribute)), attribute
    assert np.array_equal(before.log_prob(y), after.log_prob(y)) and posterior.score(x, y) == loaded.score(x, y)
    assert loaded.model == posterior.model and loaded.data.checksum() == posterior.data.checksum()
    with pytest.raises(bnn.DataError, match="expected a class known from training"):
        loaded.predict(x).log_prob(["oak"] * 40)
    assert loaded.score(x, y)["test_nll"][0] > 0


@pytest.mark.parametrize("missing", ["impute", "drop"])
def test_an_encoded_frame_round_trips(missing, tmp_path):
    """New rows become the same columns after loading, with the same fill for what is missing."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({
        "age": rng.normal(50, 10, size=30), "town": np.array(["a", "b", "c"])[np.arange(30) % 3],
        "sex": pd.Categorical(np.array(["m", "f"])[np.arange(30) % 2]),
    })  # fmt: skip
    table.loc[3, "age"] = np.nan
    posterior = bnn.get_model("linear").fit(table, rng.normal(size=30), missing=missing, **FIT)
    loaded = bnn.load(posterior.save(tmp_path / "run"))
    same(posterior.idata, loaded.idata)
    assert loaded.data.encoding == posterior.data.encoding and loaded.data.columns == posterior.data.columns
    new = table.iloc[5:9]
    assert np.array_equal(loaded.predict(new).draws, posterior.predict(new).draws)
    with pytest.raises(bnn.DataError, match="'town'"):
        loaded.predict(new.assign(town="elsewhere"))
    if missing == "impute":
        assert np.array_equal(loaded.predict(table).mean, posterior.predict(table).mean)
    else:
        with pytest.raises(bnn.DataError, match="expected a value in column 'age'"):
            loaded.predict(table)


def test_files_are_private_and_hold_no_pickle(run):
    assert sorted(os.listdir(run)) == [files.NETCDF, files.TOML, files.STATE]
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in run.iterdir())
    assert not any(b"\x80\x04\x95" in p.read_bytes()[:16] for p in run.iterdir())
    assert os.environ.get("HOME", "/nonexistent").encode() not in (run / files.TOML).read_bytes()
    assert [p.name for p in run.parent.iterdir()] == ["run"]  # no temporary left


@pytest.mark.parametrize("name", [files.NETCDF, files.STATE, files.TOML])
@pytest.mark.parametrize("where", [0.01, 0.5, 0.99])
def test_one_flipped_bit_is_found(run, name, where):
    raw = bytearray((run / name).read_bytes())
    raw[int(len(raw) * where)] ^= 1
    (run / name).write_bytes(raw)
    with pytest.raises(bnn.RunError, match=rf"{name}: expected .* damaged"):
        bnn.load(run)


def test_a_missing_file_a_foreign_folder_and_no_folder(run, tmp_path):
    (run / files.NETCDF).unlink()
    with pytest.raises(bnn.RunError, match=r"posterior.nc: expected a file, got none: the run is incomplete"):
        bnn.load(run)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(bnn.RunError, match=r"expected a run directory with run.toml, got none"):
        bnn.load(foreign)
    with pytest.raises(bnn.RunError, match=r"expected a directory, got none. bnn-pyro fit makes one"):
        bnn.load(tmp_path / "nowhere")


def test_nothing_is_overwritten_unasked(posterior, run, tmp_path):
    before = (run / files.STATE).read_bytes()
    with pytest.raises(bnn.RunError, match=r"expected a new name, got a run that exists"):
        posterior.save(run)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(bnn.RunError, match=r"got one that holds other files"):
            posterior.save(foreign, overwrite=overwrite)
    with pytest.raises(bnn.RunError, match=r"expected a new directory, got a file"):
        posterior.save(foreign / "notes.txt", overwrite=True)
    assert (foreign / "notes.txt").read_text() == "mine" and (run / files.STATE).read_bytes() == before
    posterior.save(run, overwrite=True)
    assert bnn.load(run).seed == 2


def test_a_failure_while_writing_leaves_the_old_run(posterior, run, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "save", full)
    with pytest.raises(bnn.RunError, match=r"got: No space left on device"):
        posterior.save(run, overwrite=True)
    assert [p.name for p in run.parent.iterdir()] == ["run"]
    assert bnn.load(run).seed == 2


def test_a_users_program_is_passed_when_loading(tmp_path):
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    x = torch.linspace(-1, 1, 20)
    posterior = bnn.fit(program, x, 2 * x, **FIT)
    run = posterior.save(tmp_path / "run")
    loaded = bnn.load(run, model=program)
    assert np.array_equal(loaded.predict(x).mean, posterior.predict(x).mean)
    without = bnn.load(run)
    same(without.idata, posterior.idata)
    with pytest.raises(bnn.ModelError, match=r"program: expected the Pyro program that was fitted. Pass it"):
        without.predict(x)


def test_another_program_than_the_one_that_was_fitted_is_refused(tmp_path):
    def program(order):
        def run(x, y=None):
            values = {name: pyro.sample(name, dist.Normal(0.0, 1.0)) for name in order}
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(values["a"] * x + values["b"], 1.0), obs=y)

        return run

    x = torch.linspace(-1, 1, 20)
    run = bnn.fit(program("ab"), x, 2 * x, **FIT).save(tmp_path / "run")
    with pytest.raises(bnn.RunError, match=r"expected the program that was fitted, with sites \[\('a', \(\)\), \('b'"):
        bnn.load(run, model=program("ba"))


@pytest.mark.parametrize("keep", [("sigma", "w2"), ()])
def test_a_run_that_leaves_sites_out_round_trips(posterior, keep, tmp_path):
    data = bnn.load_dataset("stackloss")
    lean = bnn.get_model("mlp_gaussian", hidden=(3,)).fit(data.train, keep=keep, **FIT)
    run = lean.save(tmp_path / "run")
    loaded = bnn.load(run)
    same(lean.idata, loaded.idata)
    assert loaded.keep == keep and torch.equal(loaded.draws.z, posterior.draws.z)
    in_file = results.load(run / files.NETCDF)
    assert set(results.dataset(in_file, "posterior").data_vars) == set(keep or ["log_likelihood"])
    assert (run / files.NETCDF).stat().st_size < (posterior.save(tmp_path / "all") / files.NETCDF).stat().st_size
    assert np.array_equal(loaded.predict(data.test.x).draws, posterior.predict(data.test.x).draws)
    again = loaded.save(tmp_path / "again")
    for name in (files.STATE, files.NETCDF):
        assert (run / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize("keep", [["b"], []])
def test_another_program_is_refused_where_sites_were_left_out(keep, tmp_path):
    def program(order):
        def run(x, y=None):
            values = {name: pyro.sample(name, dist.Normal(0.0, 1.0)) for name in order}
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(values["a"] * x + values["b"], 1.0), obs=y)

        return run

    x = torch.linspace(-1, 1, 20)
    posterior = bnn.fit(program("ab"), x, 2 * x, keep=keep, **FIT)
    run = posterior.save(tmp_path / "run")
    with pytest.raises(bnn.RunError, match=r"expected the program that was fitted, with sites \[\('a', \(\)\), \('b'"):
        bnn.load(run, model=program("ba"))
    without = bnn.load(run).save(tmp_path / "without")  # written again with no program at hand
    same(bnn.load(without, model=program("ab")).idata, posterior.idata)


def test_a_sealed_run_toml_of_other_content_is_refused(run):
    files._write_toml(run / files.TOML, {"format": files.FORMAT})
    with pytest.raises(bnn.RunError, match=r"files: expected the SHA-256 of posterior.nc and state.safetensors"):
        bnn.load(run)
