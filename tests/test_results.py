"""ArviZ objects: the same groups, numbers and files under both ArviZ generations. Needs no torch and no Pyro."""

import os
import subprocess
import sys
import warnings

import matplotlib

matplotlib.use("Agg")

import arviz as az
import cross_generation
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from cross_generation import assert_equal, example

from bnn_pyro import results
from bnn_pyro.errors import DataError, OptionError, ShapeError, UnknownNameError

OLD = az.__version__.startswith("0.")
COLUMNS = {"mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"}


@pytest.fixture
def figures():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcParams.update(before)


@pytest.fixture
def idata():
    return results.build(*example())


def point_estimate(draws=100):
    """What MAP gives: one chain of identical draws, its log likelihood untied."""
    groups, *rest = example(chains=1, draws=draws, same=True)
    groups["log_likelihood"]["y"] = results.untie(groups["log_likelihood"]["y"])
    return results.build(groups, *rest)


def conjugate(chains=4, draws=1000, n=12, seed=1):
    """y_i ~ N(mu, 1) with a flat prior on mu: posterior draws, and the exact elpd of each y_i given the others."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    mu = rng.normal(y.mean(), n**-0.5, size=(chains, draws))
    log_likelihood = -0.5 * np.log(2 * np.pi) - 0.5 * (y - mu[..., None]) ** 2
    others, variance = (y.sum() - y) / (n - 1), 1 + 1 / (n - 1)
    exact = -0.5 * np.log(2 * np.pi * variance) - 0.5 * (y - others) ** 2 / variance
    groups = {"posterior": {"mu": mu}, "log_likelihood": {"y": log_likelihood}, "observed_data": {"y": y}}
    return results.build(groups), exact


def elpd(found):
    return float(found.elpd_loo if OLD else found.elpd)


def compare(models):
    return az.compare(models) if OLD else az.compare(models, round_to="none")


def lines():
    return [line for number in plt.get_fignums() for axes in plt.figure(number).axes for line in axes.lines]


# ---------------------------------------------------------------------------------------------------------------- build


def test_groups_hold_the_arrays_with_named_dims(idata):
    groups, dims, coords, _ = example()
    assert isinstance(idata, az.InferenceData if OLD else xr.DataTree)
    assert set(results.group_names(idata)) == set(groups)
    for group, variables in groups.items():
        ds = results.dataset(idata, group)
        assert list(ds.data_vars) == list(variables)
        for name, array in variables.items():
            leading = () if group.endswith("_data") else ("chain", "draw")
            assert ds[name].dims == (*leading, *dims.get(group, {}).get(name, ()))
            assert ds[name].dtype == array.dtype
            np.testing.assert_array_equal(ds[name].values, array)
    posterior = results.dataset(idata, "posterior")
    assert posterior["feature"].values.tolist() == coords["feature"]
    assert posterior["feature"].dtype == "<U5"
    assert posterior["hidden_1"].values.tolist() == [0, 1, 2, 3]
    assert posterior["chain"].values.tolist() == [0, 1]
    assert posterior["draw"].values.tolist() == list(range(100))
    assert results.dataset(idata, "prior").sizes["draw"] == 50
    assert results.dataset(idata, "function_space")["probe"].values.tolist() == [3, 1, 4, 15, 9]
    assert "absent" not in {name for group in groups for name in results.dataset(idata, group).coords}
    np.testing.assert_array_equal(posterior["w1"].sel(feature="größe"), groups["posterior"]["w1"][:, :, 1])


def test_axes_nobody_names_get_the_name_of_the_variable():
    built = results.build({"posterior": {"a": np.zeros((1, 2, 3, 4))}, "observed_data": {"a": np.zeros((3, 4))}})
    assert results.dataset(built, "posterior")["a"].dims == ("chain", "draw", "a_dim_0", "a_dim_1")
    assert results.dataset(built, "observed_data")["a"].dims == ("a_dim_0", "a_dim_1")
    assert results.dataset(built, "posterior")["a_dim_1"].values.tolist() == [0, 1, 2, 3]


def test_arrays_are_not_copied():
    array = np.zeros((1, 2, 3))
    built = results.build({"posterior": {"a": array}})
    assert np.shares_memory(results.dataset(built, "posterior")["a"].values, array)


def test_attrs_are_plain_values(idata):
    expected = {
        "model": "mlp_gaussian",
        "note": "",
        "seed": 2**64 - 1,
        "wall_time": 0.1,
        "converged": True,
        "resumed": False,
        "settings": '{"hidden": [50, 50], "scale": null}',
    }
    for found in (idata.attrs, results.dataset(idata, "posterior").attrs):
        cross_generation.assert_same_attrs(found, expected)
    assert results.dataset(idata, "function_space").attrs == {}
    odd = results.build({}, attrs={"a": np.float32(0.5), "b": np.bool_(True), "c": 2**70, "d": None, "e": np.arange(2)})
    cross_generation.assert_same_attrs(odd.attrs, {"a": 0.5, "b": True, "c": str(2**70), "d": "null", "e": "[0, 1]"})


def test_labels_become_strings_unless_they_are_numbers():
    def labels(values):
        built = results.build({"observed_data": {"a": np.zeros(2)}}, {"observed_data": {"a": ("d",)}}, {"d": values})
        return results.dataset(built, "observed_data")["d"].values

    assert labels(np.array(["a", "bc"], dtype=object)).dtype == "<U2"
    assert labels(np.array(["a", 3], dtype=object)).tolist() == ["a", "3"]
    assert labels(np.array(["2020-01-01", "2020-01-02"], dtype="M8[D]")).tolist() == ["2020-01-01", "2020-01-02"]
    assert labels([0.5, 1.5]).dtype == np.float64
    assert labels([True, False]).dtype == bool


def test_a_group_without_variables_is_left_out():
    built = results.build({"posterior": {}, "observed_data": {"y": np.zeros(2)}}, attrs={"model": "m"})
    assert results.group_names(built) == ("observed_data",)
    assert built.attrs == {"model": "m"}


@pytest.mark.parametrize(
    ("groups", "dims", "coords", "error", "message"),
    [
        (
            {"posterior": {"w": np.zeros(3)}},
            {},
            {},
            ShapeError,
            r"posterior, 'w': expected shape \(chain, draw, \.\.\.\)",
        ),
        (
            {"posterior": {"w": np.zeros((1, 2, 3))}},
            {"w": ()},
            {},
            ShapeError,
            r"one dim for each axis of \(3,\), got \(\)",
        ),
        ({"posterior": {"w": np.zeros((1, 2, 3))}}, {"w": ("a", "b")}, {}, ShapeError, r"got \('a', 'b'\)"),
        ({"posterior": {"w": np.zeros((1, 2, 3, 3))}}, {"w": ("a", "a")}, {}, ShapeError, "Give each its own name"),
        ({"posterior": {"w": np.zeros((1, 2, 3))}}, {"w": ("draw",)}, {}, ShapeError, "Give each its own name"),
        (
            {"posterior": {"w": np.zeros((1, 2, 3)), "b": np.zeros((1, 2, 4))}},
            {"w": ("h",), "b": ("h",)},
            {},
            ShapeError,
            "posterior, 'b': expected 3 along 'h' as in 'w', got 4",
        ),
        ({"posterior": {"w": np.zeros((1, 2)), "b": np.zeros((1, 3))}}, {}, {}, ShapeError, "expected 2 along 'draw'"),
        ({"posterior": {"w": np.zeros((1, 2, 3))}}, {"w": ("w",)}, {}, ShapeError, "a variable or a dim of this name"),
        ({"posterior": {"chain": np.zeros((1, 2))}}, {}, {}, ShapeError, "a variable or a dim of this name"),
        (
            {"posterior": {"w": np.zeros((1, 2, 3))}},
            {"w": ("h",)},
            {"h": [1, 2]},
            ShapeError,
            "coord 'h': expected 3 labels",
        ),
        (
            {"posterior": {"w": np.zeros((1, 2, 2))}},
            {"w": ("h",)},
            {"h": [[1, 2]]},
            ShapeError,
            "coord 'h': expected 2 labels",
        ),
        ({"posterior": {"w": np.zeros((1, 2, 2))}}, {"w": ("h",)}, {"h": ["a", "a"]}, DataError, "got a twice"),
        ({"posterior": {"layer/w": np.zeros((1, 2))}}, {}, {}, DataError, "expected a name without '/'"),
        ({"posterior": {"w": np.full((1, 2), None)}}, {}, {}, DataError, "got dtype object"),
        ({"posterior": {"w": np.zeros((1, 2), dtype=complex)}}, {}, {}, DataError, "got dtype complex128"),
    ],
)
def test_what_does_not_fit_is_refused(groups, dims, coords, error, message):
    with pytest.raises(error, match=message) as caught:
        results.build(groups, {"posterior": dims}, coords)
    assert isinstance(caught.value, ValueError)


def test_an_unknown_group_or_variable_names_those_there_are(idata):
    with pytest.raises(UnknownNameError, match=r"unknown group 'posteriour': expected one of .*function_space"):
        results.dataset(idata, "posteriour")
    with pytest.raises(UnknownNameError, match=r"did you mean 'sigma'\?"):
        results.summary(idata, var_names=["sigm"])


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_file_returns_what_was_saved(idata, tmp_path):
    results.save(idata, tmp_path / "a.nc")
    loaded = results.load(tmp_path / "a.nc")
    assert type(loaded) is type(idata)
    assert results.group_names(loaded) == results.group_names(idata)
    assert assert_equal(idata, loaded) == 52
    results.save(loaded, tmp_path / "b.nc")
    assert_equal(idata, results.load(str(tmp_path / "b.nc")))
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_a_loaded_file_is_closed_and_in_memory(idata, tmp_path):
    path = tmp_path / "a.nc"
    results.save(idata, path)
    loaded = results.load(path)
    with h5py.File(path, "r+") as file:  # refused while somebody has it open
        del file["posterior"]
    assert_equal(idata, loaded)
    results.save(loaded, path)
    assert_equal(idata, results.load(path))


def test_arviz_itself_reads_the_file(idata, tmp_path):
    results.save(idata, tmp_path / "a.nc")
    plain = az.from_netcdf(str(tmp_path / "a.nc"))
    assert set(results.group_names(plain)) == set(results.group_names(idata))
    for group in results.group_names(idata):
        xr.testing.assert_equal(results.dataset(idata, group), results.dataset(plain, group).load())
    plain.close()


def test_our_load_reads_what_arviz_wrote(idata, tmp_path):
    path = tmp_path / "a.nc"
    del idata.attrs["converged"], idata.attrs["resumed"]
    for name in ("converged", "resumed"):
        del idata["posterior"].attrs[name]
    if OLD:
        idata.to_netcdf(str(path))
    else:
        idata.to_netcdf(path, engine="h5netcdf")
    assert_equal(idata, results.load(path))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "bool", "U3"])
def test_every_dtype_survives(dtype, tmp_path):
    array = np.array([[0, 1, 2, 3]]).astype(dtype)
    if array.dtype.kind == "f":
        array[0, :3] = [np.nan, -np.inf, -0.0]
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        array[0, 3] = np.iinfo(array.dtype).max
    if array.dtype.kind == "U":
        array = np.array([["", "ß", "a b", " x "]])[:, :4]
    built = results.build({"posterior": {"a": array, "empty": np.zeros((1, 4, 0))}})
    results.save(built, tmp_path / "a.nc")
    assert assert_equal(built, results.load(tmp_path / "a.nc")) == 5


def test_files_hold_no_objects(idata, tmp_path):
    results.save(idata, tmp_path / "a.nc")
    kinds = set()
    with h5py.File(tmp_path / "a.nc") as file:
        file.visititems(
            lambda _, item: kinds.add(item.id.get_type().get_class()) if isinstance(item, h5py.Dataset) else None
        )
    assert kinds <= {h5py.h5t.FLOAT, h5py.h5t.INTEGER, h5py.h5t.STRING, h5py.h5t.ENUM}


def test_a_missing_or_foreign_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"a\.nc"):
        results.load(tmp_path / "a.nc")
    (tmp_path / "b.nc").write_text("no netCDF")
    with pytest.raises(OSError, match="signature"):
        results.load(tmp_path / "b.nc")


def test_the_cross_generation_script_finds_a_changed_number(idata, tmp_path, capsys):
    cross_generation.main("write", str(tmp_path / "a.nc"))
    cross_generation.main("read", str(tmp_path / "a.nc"))
    assert capsys.readouterr().out.endswith(
        f"by arviz {az.__version__} under arviz {az.__version__}: 52 variables equal\n"
    )
    with h5py.File(tmp_path / "a.nc", "r+") as file:
        file["function_space/f"][1, 99, 4] += 1e-9
    with pytest.raises(AssertionError, match="function_space"):
        cross_generation.main("read", str(tmp_path / "a.nc"))


# ------------------------------------------------------------------------------------------------ ArviZ works on it all


@pytest.mark.parametrize("make", [example, point_estimate])
def test_arviz_summarises_function_space(make):
    built = results.build(*make()) if make is example else make()
    ds = results.dataset(built, "function_space")
    for table in (az.summary(built, group="function_space"), results.summary(built, "function_space")):
        assert set(table.columns) >= COLUMNS
        assert list(table.index) == [
            *(f"f[{i}]" for i in (3, 1, 4, 15, 9)),
            "log_likelihood",
            "log_prior",
            "noise_scale",
        ]
    table = results.summary(built, "function_space")
    assert (table.dtypes == np.float64).all()
    flat = np.concatenate([ds["f"].values.reshape(-1, 5), *(ds[v].values.reshape(-1, 1) for v in list(ds)[1:])], axis=1)
    np.testing.assert_allclose(table["mean"], flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(table["sd"], flat.std(0, ddof=1), rtol=1e-12, atol=1e-12)
    for column, found in {
        "r_hat": results.r_hat(ds),
        "ess_bulk": results.ess(ds),
        "ess_tail": results.ess(ds, method="tail"),
        "mcse_mean": results.mcse(ds),
        "mcse_sd": results.mcse(ds, method="sd"),
    }.items():
        np.testing.assert_allclose(table[column], np.concatenate([one.ravel() for one in found.values()]), rtol=1e-10)


def test_summary_has_a_row_for_each_labelled_weight(idata):
    table = results.summary(idata, var_names=["w1", "sigma"])
    assert list(table.index) == [f"w1[{f}, {h}]" for f in ("age", "größe", "") for h in range(4)] + ["sigma"]
    assert table.loc["w1[größe, 2]", "mean"] == pytest.approx(
        example()[0]["posterior"]["w1"][:, :, 1, 2].mean(), rel=1e-5
    )


def test_loo_equals_the_exact_conjugate_answer():
    built, exact = conjugate()
    found = az.loo(built, pointwise=True)
    assert elpd(found) == pytest.approx(exact.sum(), abs=0.02)
    np.testing.assert_allclose(found.loo_i if OLD else found.elpd_i, exact, atol=0.01)
    assert np.max(found.pareto_k) < 0.5


def test_compare_ranks_two_models_by_their_loo():
    good, exact = conjugate()
    groups = {
        group: {name: one.values for name, one in results.dataset(good, group).items()} for group in ("posterior",)
    }
    worse = results.dataset(good, "log_likelihood")["y"].values - np.linspace(0.1, 0.3, 12)
    bad = results.build({**groups, "log_likelihood": {"y": worse}})
    table = compare({"bad": bad, "good": good})
    assert list(table.index) == ["good", "bad"]
    column = "elpd_loo" if OLD else "elpd"
    assert float(table.loc["good", column]) == pytest.approx(exact.sum(), abs=0.02)
    assert abs(float(table.loc["bad", "elpd_diff"])) == pytest.approx(12 * 0.2, abs=0.01)
    assert float(table.loc["good", "weight"]) > 0.99


def two_models():
    """The conjugate model, and one whose log likelihood is lower by 0.1 to 0.3 in each row."""
    good, exact = conjugate()
    posterior = {"mu": results.dataset(good, "posterior")["mu"].values}
    worse = results.dataset(good, "log_likelihood")["y"].values - np.linspace(0.1, 0.3, 12)
    return good, results.build({"posterior": posterior, "log_likelihood": {"y": worse}}), exact


def test_our_compare_is_that_of_arviz_under_both_generations():
    good, bad, exact = two_models()
    table = results.compare({"bad": bad, "good": good})
    expected = compare({"bad": bad, "good": good})
    assert list(table.index) == list(expected.index) == ["good", "bad"]
    assert list(table.columns) == ["rank", "elpd_loo", "se", "p_loo", "elpd_diff", "dse", "weight", "high_k"]
    theirs = {"elpd_loo": "elpd_loo" if OLD else "elpd", "p_loo": "p_loo" if OLD else "p"}
    for column in table.columns[1:-1]:
        other = expected[theirs.get(column, column)].astype(float)
        other = other.abs() if column == "elpd_diff" else other  # 1.x counts it negative
        np.testing.assert_allclose(table[column], other, rtol=1e-9, err_msg=column)
    assert table["elpd_loo"]["good"] == pytest.approx(exact.sum(), abs=0.02)
    assert abs(table["elpd_diff"]["bad"]) == pytest.approx(2.4, abs=0.01) and table["elpd_diff"]["good"] == 0
    differences = np.linspace(0.1, 0.3, 12)
    assert table["dse"]["bad"] == pytest.approx(np.sqrt(12 * differences.var(ddof=0 if OLD else 1)), rel=0.05)
    assert table["weight"].sum() == pytest.approx(1.0) and table["weight"]["good"] > 0.99
    assert (table["high_k"] == 0).all() and list(table["rank"]) == [0, 1]


def test_our_compare_counts_the_difference_from_the_best_up_whatever_the_sign_of_arviz(monkeypatch):
    good, bad, _ = two_models()
    theirs = compare({"bad": bad, "good": good})
    for sign in (1.0, -1.0):
        turned = theirs.assign(elpd_diff=sign * theirs["elpd_diff"].astype(float).abs())
        monkeypatch.setattr(results.az, "compare", lambda *_, made=turned, **__: made)
        found = results.compare({"bad": bad, "good": good})["elpd_diff"]
        assert found["good"] == 0 and found["bad"] == pytest.approx(2.4, abs=0.01)


def test_our_compare_counts_rows_of_high_k():
    good, _, _ = two_models()
    rng = np.random.default_rng(2)
    values = results.dataset(good, "log_likelihood")["y"].values.copy()
    values[:, :, :3] = -5.0 * np.abs(rng.normal(size=(4, 1000, 3)))  # weights without a mean
    posterior = {"mu": results.dataset(good, "posterior")["mu"].values}
    wild = results.build({"posterior": posterior, "log_likelihood": {"y": values}})
    table = results.compare({"good": good, "wild": wild})
    assert table["high_k"]["wild"] == 3 / 12 and table["high_k"]["good"] == 0


def test_our_compare_is_quiet_and_leaves_its_input_alone(capfd):
    good, bad, _ = two_models()
    before = results.dataset(bad, "log_likelihood")["y"].values.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.compare({"a": good, "b": bad, "c": point_estimate()})
    np.testing.assert_array_equal(results.dataset(bad, "log_likelihood")["y"].values, before)
    assert capfd.readouterr() == ("", "")


def test_our_compare_refuses_other_rows_and_posteriors_without_a_likelihood():
    good, _ = conjugate()
    fewer, _ = conjugate(n=11)
    with pytest.raises(DataError, match="expected posteriors of the same rows, got"):
        results.compare({"good": good, "fewer": fewer})
    none = results.build({"posterior": {"mu": np.zeros((2, 50))}})
    with pytest.raises(DataError, match="compare, 'none': expected a pointwise log likelihood, got none"):
        results.compare({"good": good, "none": none})


def test_arviz_needs_the_posterior_group_for_loo():
    """A fit that leaves its weights out must keep some variable of ``posterior``, or pass ``reff``."""
    groups, *rest = example()
    del groups["posterior"]
    built = results.build(groups, *rest)
    with pytest.raises(TypeError, match="posterior"):
        az.loo(built)
    assert np.isfinite(elpd(az.loo(built, reff=1.0)))


def trace(built):
    if OLD:
        az.plot_trace(results.dataset(built, "function_space"))
    else:
        az.plot_trace(built, group="function_space")


def predictive(built, samples):
    if OLD:
        az.plot_ppc(built, num_pp_samples=samples, random_seed=0)
    else:
        az.plot_ppc_dist(built, num_samples=samples)


@pytest.mark.parametrize("make", [example, point_estimate])
def test_trace_plots_show_every_draw_of_every_chain(make, figures):
    built = results.build(*make()) if make is example else make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace(built)
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in lines()]
    ds = results.dataset(built, "function_space")
    curves = [
        *ds["f"].values.transpose(0, 2, 1).reshape(-1, 100),
        *ds["log_likelihood"].values,
        *ds["noise_scale"].values,
    ]
    for curve in curves:
        assert any(np.array_equal(curve, one) for one in drawn)


@pytest.mark.parametrize("make", [example, point_estimate])
def test_predictive_plots_show_the_draws_and_the_data(make, figures):
    built = results.build(*make()) if make is example else make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictive(built, 20)
    curves = [np.asarray(line.get_xdata(), dtype=float) for line in lines() if len(line.get_xdata()) > 2]
    assert len(curves) >= 21  # 20 draws and the data
    y = results.dataset(built, "observed_data")["y"].values
    ends = [(curve.min(), curve.max()) for curve in curves]
    assert any(abs(low - y.min()) < 0.05 and abs(high - y.max()) < 0.05 for low, high in ends)


def test_loo_of_a_point_estimate_is_its_log_likelihood():
    built = point_estimate()
    total = example(chains=1, same=True)[0]["log_likelihood"]["y"][0, 0].sum()
    found = az.loo(built, pointwise=True)
    assert elpd(found) == pytest.approx(total, abs=1e-9)
    assert np.max(found.pareto_k) < 0.5
    table = compare({"a": built, "b": point_estimate(draws=200)})
    assert float(table.loc["a", "elpd_loo" if OLD else "elpd"]) == pytest.approx(total, abs=1e-9)


def test_untie_is_needed_and_changes_tied_observations_only():
    groups, *rest = example(chains=2, draws=100)
    tied = groups["log_likelihood"]["y"]
    tied[:, :, 3] = 0.0  # a class predicted with certainty
    tied[:, :, 5] = -1000.0
    before = tied.copy()
    if OLD:
        with pytest.warns(UserWarning, match="Pareto"):
            k = az.loo(results.build(groups, *rest), pointwise=True).pareto_k.values
        assert np.isinf(k[[3, 5]]).all()
    else:
        with pytest.raises(ValueError, match="All tail values are the same"):
            az.loo(results.build(groups, *rest))
    untied = results.untie(tied)
    np.testing.assert_array_equal(tied, before)
    others = [i for i in range(12) if i not in (3, 5)]
    np.testing.assert_array_equal(untied[:, :, others], before[:, :, others])
    assert 0 < np.abs(untied[:, :, 3]).max() <= 1e-12
    assert 0 < np.abs(untied[:, :, 5] + 1000.0).max() <= 1.1e-9
    groups["log_likelihood"]["y"] = untied
    found = az.loo(results.build(groups, *rest), pointwise=True)
    assert np.isfinite(found.pareto_k).all()
    np.testing.assert_allclose((found.loo_i if OLD else found.elpd_i)[[3, 5]], [0.0, -1000.0], atol=1e-8)
    float32 = results.untie(np.zeros((1, 30, 2), dtype="f4"))
    assert float32.dtype == np.float64
    assert len(np.unique(float32[0, :, 0])) == 30


@pytest.mark.parametrize(("chains", "draws"), [(1, 1), (5, 1), (1, 3)])
def test_few_draws_give_nan_not_an_error(chains, draws, figures):
    built = results.build(*example(chains=chains, draws=draws))
    ds = results.dataset(built, "function_space")
    for found in (
        results.r_hat(ds),
        results.ess(ds),
        results.ess(ds, "tail"),
        results.mcse(ds),
        results.mcse(ds, "sd"),
    ):
        assert found["f"].shape == (5,)
        assert all(np.isnan(one).all() for one in found.values())
    table = results.summary(built, "function_space")
    assert table["mean"].to_numpy()[-1] == pytest.approx(ds["noise_scale"].values.mean())
    assert np.isnan(table["r_hat"]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace(built)
        predictive(built, chains * draws)
    assert lines()


# ---------------------------------------------------------------------------------------------------------- diagnostics


def many_shapes():
    """20 variables: iid, correlated, unmixed, constant, per-chain constant, NaN, inf, ties, integers, float32."""
    rng = np.random.default_rng(7)
    for i, (chains, draws, shape) in enumerate(
        [
            (4, 100, ()),
            (2, 50, (3,)),
            (1, 100, (2,)),
            (4, 4, ()),
            (3, 5, (2, 2)),
            (8, 37, (1,)),
            (2, 1000, ()),
            (4, 3, (2,)),
        ]
    ):
        yield f"iid {i}", rng.normal(size=(chains, draws, *shape))
    base = rng.normal(size=(4, 200, 2))
    yield "walk", base.cumsum(1)
    yield "unmixed", base + 3 * np.arange(4)[:, None, None]
    yield "scales", base * np.array([1, 1, 1, 10])[:, None, None]
    yield "constant", np.full((4, 100, 2), 1.7)
    yield "chain constant", np.tile(np.arange(4.0)[:, None], (1, 100))
    some = base.copy()
    some[2, :, 0] = 5.0
    yield "one constant chain", some
    some = base.copy()
    some[0, 10, 0] = np.nan
    yield "a nan", some
    some = base.copy()
    some[1] = np.nan
    yield "a nan chain", some
    some = base.copy()
    some[3, 5, 1] = np.inf
    yield "an inf", some
    yield "ties", np.round(base)
    yield "integers", rng.integers(0, 10, size=(4, 100))
    yield "float32", base.astype("f4") + 1000


SHAPES = dict(many_shapes())


@pytest.mark.parametrize("name", SHAPES)
def test_diagnostics_equal_arviz_and_are_quiet(name, capfd):
    assert len(SHAPES) == 20
    ds = results.dataset(results.build({"function_space": {"f": SHAPES[name]}}), "function_space")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = {
            "r_hat": results.r_hat(ds),
            "bulk": results.ess(ds),
            "tail": results.ess(ds, method="tail"),
            "mean": results.mcse(ds),
            "sd": results.mcse(ds, method="sd"),
        }
    assert capfd.readouterr() == ("", "")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        theirs = {
            "r_hat": az.rhat(ds, method="rank"),
            "bulk": az.ess(ds, method="bulk"),
            "tail": az.ess(ds, method="tail"),
            "mean": az.mcse(ds, method="mean"),
            "sd": az.mcse(ds, method="sd"),
        }
    for key, found in ours.items():
        assert found["f"].dtype == np.float64
        assert found["f"].shape == SHAPES[name].shape[2:]
        np.testing.assert_allclose(found["f"], theirs[key]["f"].values, rtol=0, atol=1e-8, err_msg=key)


def test_r_hat_sees_shifted_and_rescaled_chains():
    found = {
        name: results.r_hat(xr.Dataset({"f": (("chain", "draw"), SHAPES[name][..., 0])}))["f"]
        for name in ("unmixed", "scales")
    }
    assert found["unmixed"] > 1.5
    assert found["scales"] > 1.2  # means agree: only the folded half sees it
    iid = np.random.default_rng(3).normal(size=(4, 1000, 50))
    mixed = results.r_hat(xr.Dataset({"f": (("chain", "draw", "i"), iid)}))["f"]
    assert mixed.max() < 1.02


def test_ess_and_mcse_of_an_autoregression():
    rho, rng = 0.6, np.random.default_rng(4)
    chain = np.zeros((4, 20000))
    noise = rng.normal(size=chain.shape)
    for t in range(1, chain.shape[1]):
        chain[:, t] = rho * chain[:, t - 1] + noise[:, t]
    ds = xr.Dataset({"f": (("chain", "draw"), chain)})
    exact = chain.size * (1 - rho) / (1 + rho)
    assert results.ess(ds)["f"] == pytest.approx(exact, rel=0.05)
    assert results.mcse(ds)["f"] == pytest.approx(((1 - rho**2) * exact) ** -0.5, rel=0.05)  # sd is (1 - rho^2)^-0.5
    assert results.ess(ds, "tail")["f"] > exact  # tails forget faster


def test_dims_may_stand_in_any_order():
    draws = np.random.default_rng(5).normal(size=(4, 100, 3))
    straight = xr.Dataset({"f": (("chain", "draw", "i"), draws)})
    turned = straight.transpose("i", "draw", "chain")
    np.testing.assert_array_equal(results.r_hat(straight)["f"], results.r_hat(turned)["f"])


def test_bool_and_empty_variables(idata):
    diverging = example()[0]["sample_stats"]["diverging"]
    assert 0 < diverging.sum() < diverging.size
    stats = results.dataset(idata, "sample_stats")
    numbers = xr.Dataset({"d": (("chain", "draw"), diverging.astype(float))})
    for statistic in (results.r_hat, results.ess, lambda ds: results.ess(ds, "tail"), results.mcse):
        assert statistic(stats)["diverging"] == pytest.approx(statistic(numbers)["d"], rel=1e-12)
    table = results.summary(idata, "sample_stats")
    assert table.loc["diverging", "mean"] == diverging.mean()
    empty = results.build({"posterior": {"a": np.zeros((2, 10, 0, 3))}})
    assert results.r_hat(results.dataset(empty, "posterior"))["a"].shape == (0, 3)


def test_wrong_methods_and_groups_are_refused(idata):
    ds = results.dataset(idata, "function_space")
    with pytest.raises(OptionError, match="expected 'bulk' or 'tail', got 'mean'"):
        results.ess(ds, method="mean")
    with pytest.raises(OptionError, match="expected 'mean' or 'sd', got 'bulk'"):
        results.mcse(ds, method="bulk")
    with pytest.raises(ShapeError, match="'y': expected dims chain and draw"):
        results.r_hat(results.dataset(idata, "observed_data"))


def test_e_bfmi_is_the_ratio_of_variances():
    energy = np.random.default_rng(6).normal(size=(3, 500)).cumsum(1)
    expected = (np.diff(energy, axis=1) ** 2).mean(1) / energy.var(1, ddof=1)
    np.testing.assert_allclose(results.e_bfmi(energy), expected, rtol=1e-12)
    assert (expected < 0.3).all()
    assert np.isnan(results.e_bfmi(np.ones((2, 1)))).tolist() == [True, True]
    assert np.isnan(results.e_bfmi(np.ones((1, 100)))).tolist() == [True]
    with pytest.raises(ShapeError, match=r"got \(500,\)"):
        results.e_bfmi(energy[0])


# ----------------------------------------------------------------------------------------------------------------- PSIS


def gaussian_weights(sd, seed, dim=10, draws=2000):
    """log p - log q of draws from q = N(0, sd^2)^dim where p = N(0, 1)^dim."""
    z = np.random.default_rng(seed).normal(size=(draws, dim)) * sd
    return (-0.5 * z**2 + 0.5 * (z / sd) ** 2 + np.log(sd)).sum(1)


@pytest.mark.parametrize("seed", range(20))
def test_a_guide_that_is_too_narrow_cannot_be_repaired(seed):
    assert results.pareto_k(gaussian_weights(0.5, seed)) > 0.7
    assert results.pareto_k(gaussian_weights(1.1, seed)) < 0.5
    assert results.pareto_k(gaussian_weights(1.0, seed)) == 0.0


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_shape_of_pareto_weights_is_recovered(k):
    """exp(k * Exponential(1)) has P(w > t) = t^(-1/k). The 600 largest of 40000 give k to (1 + k) / sqrt(600)."""
    found = [results.pareto_k(k * np.random.default_rng(seed).exponential(size=40000)) for seed in range(10)]
    assert np.mean(found) == pytest.approx(k, abs=0.06)  # three standard errors
    assert np.std(found) < 0.12
    wrong = [results.pareto_k(-k * np.random.default_rng(seed).exponential(size=40000)) for seed in range(3)]
    assert np.max(wrong) < -0.5  # the sign that must not be used: bounded weights


def test_pareto_k_does_not_depend_on_a_constant_and_leaves_its_input_alone():
    weights = gaussian_weights(0.5, 0)
    copy = weights.copy()
    assert results.pareto_k(weights + 1e4) == pytest.approx(results.pareto_k(weights), abs=1e-6)
    np.testing.assert_array_equal(weights, copy)


def test_equal_weights_have_k_zero_and_unequal_ones_do_not():
    rng = np.random.default_rng(8)
    assert results.pareto_k(np.full(100, -1234.5)) == 0.0
    rounded = rng.choice([0.0, 2.0**-11], 1000) - 1e4  # one unit of float32 rounding at 5000
    assert results.pareto_k(rounded) == 0.0
    assert results.pareto_k(0.02 * rng.exponential(size=1000)) != 0.0


def test_weights_without_a_tail_have_k_infinite(capfd):
    rng = np.random.default_rng(9)
    weights = rng.normal(size=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert results.pareto_k(np.append(weights, -np.inf)) < 0.5  # weight zero is no trouble
        for bad in (np.nan, np.inf):
            assert results.pareto_k(np.append(weights, bad)) == np.inf
        assert results.pareto_k(np.full(100, -np.inf)) == np.inf
        assert results.pareto_k(weights[:24]) == np.inf
        assert results.pareto_k(weights[:0]) == np.inf
        assert results.pareto_k(np.repeat([0.0, 1.0], 50)) == np.inf
        assert results.pareto_k(rng.normal(size=30)) < 1.5
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ShapeError, match=r"got \(10, 10\)"):
        results.pareto_k(weights.reshape(10, 10))


# --------------------------------------------------------------------------------------------------------------- import


def test_importing_is_quiet_light_and_leaves_the_filters_alone(tmp_path):
    code = """
import sys, warnings
warnings.simplefilter("error", FutureWarning)
import numpy, pandas, xarray, matplotlib.pyplot
before = list(warnings.filters)
import bnn_pyro.results
assert list(warnings.filters) == before, "the filters changed"
print(sorted({"torch", "pyro"} & set(sys.modules)))
"""
    # ArviZ warns once a day and notes that in its cache folder: give it an empty one
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
