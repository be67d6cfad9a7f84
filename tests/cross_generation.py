"""A file written under one ArviZ generation reads the same under the other.

python tests/cross_generation.py write FILE
python tests/cross_generation.py read FILE
python tests/cross_generation.py calls POSTERIOR.NC     the calls that users type, on a run written by bnn_pyro
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import arviz as az
import matplotlib
import xarray as xr

from bnn_pyro import results


def example(chains=2, draws=100, seed=0, same=False):
    """A small regression network as ``results.build`` takes it: (groups, dims, coords, attrs).

    The numbers are bit-equal everywhere: nothing but uniforms and exactly rounded arithmetic. With ``same``, one draw
    is repeated, as MAP does.
    """
    rng = np.random.default_rng(seed)
    n = 12

    def normal(*shape):
        total = rng.random(shape)
        for _ in range(11):
            total = total + rng.random(shape)
        return total - 6.0

    def sampled(*shape):
        if same:
            return np.tile(normal(1, 1, *shape), (chains, draws, *(1 for _ in shape)))
        return normal(chains, draws, *shape)

    x, y = normal(n, 3), normal(n)
    residual = y - 0.3 * sampled(1)
    log_likelihood = -0.9 - 0.5 * residual * residual
    weights = {"w1": ("feature", "hidden_1"), "b1": ("hidden_1",), "w2": ("hidden_1", "output")}
    groups = {
        "posterior": {
            "w1": sampled(3, 4).astype("f4"),
            "b1": sampled(4).astype("f4"),
            "w2": sampled(4, 1),
            "sigma": 7.0 + sampled(),
        },
        "sample_stats": {
            "lp": sampled(),
            "energy": sampled(),
            "diverging": sampled() > 2.0,
            "tree_depth": np.full((chains, draws), 3, dtype=np.int64),
            "n_steps": np.full((chains, draws), 7, dtype=np.int32),
            "acceptance_rate": (6.0 + sampled()) / 12.0,
            "step_size": np.full((chains, draws), 0.1),
        },
        "log_likelihood": {"y": log_likelihood},
        "posterior_predictive": {"y": normal(chains, draws, n)},
        "prior": {
            "w1": normal(1, 50, 3, 4),
            "b1": normal(1, 50, 4),
            "w2": normal(1, 50, 4, 1),
            "sigma": 7.0 + normal(1, 50),
        },
        "prior_predictive": {"y": normal(1, 50, n)},
        "observed_data": {"y": y},
        "constant_data": {"x": x, "row": np.array([f"row {i}" for i in range(n)])},
        "function_space": {
            "f": sampled(5),
            "log_likelihood": sampled(),
            "log_prior": sampled(),
            "noise_scale": 7.0 + sampled(),
        },
    }
    observed = {"y": ("obs",)}
    dims = {
        "posterior": weights,
        "prior": weights,
        "log_likelihood": observed,
        "posterior_predictive": observed,
        "prior_predictive": observed,
        "observed_data": observed,
        "constant_data": {"x": ("obs", "feature"), "row": ("obs",)},
        "function_space": {"f": ("probe",)},
    }
    coords = {"feature": ["age", "größe", ""], "probe": np.array([3, 1, 4, 15, 9]), "absent": [1, 2]}
    attrs = {
        "model": "mlp_gaussian",
        "note": "",
        "seed": 2**64 - 1,
        "wall_time": 0.1,
        "converged": True,
        "resumed": False,
        "settings": {"hidden": (50, 50), "scale": None},
    }
    return groups, dims, coords, attrs


def assert_equal(one, other):
    """Compares every group, variable, coord and attribute to the bit; returns how many variables there are."""
    assert set(results.group_names(one)) == set(results.group_names(other))
    assert_same_attrs(one.attrs, other.attrs)
    count = 0
    for group in results.group_names(one):
        a, b = results.dataset(one, group), results.dataset(other, group)
        assert_same_attrs(a.attrs, b.attrs)
        assert list(a.data_vars) == list(b.data_vars), group
        assert set(a.coords) == set(b.coords), group
        for name in a.variables:
            assert a[name].dims == b[name].dims, (group, name)
            assert a[name].dtype == b[name].dtype, (group, name, a[name].dtype, b[name].dtype)
            if a[name].dtype.kind == "U":
                assert a[name].values.tolist() == b[name].values.tolist(), (group, name)
            else:
                assert a[name].values.tobytes() == b[name].values.tobytes(), (
                    group,
                    name,
                )  # NaN equals NaN, -0.0 is not 0.0
            count += 1
    return count


def assert_same_attrs(one, other):
    assert one == other
    assert {name: type(value) for name, value in one.items()} == {name: type(value) for name, value in other.items()}


def main(action, file):
    expected = results.build(*example())
    if action == "write":
        expected.attrs["written_by"] = az.__version__
        results.save(expected, file)
        print(f"wrote {file} under arviz {az.__version__}")
        return
    found = results.load(file)
    writer = found.attrs["written_by"]
    expected.attrs["written_by"] = writer
    count = assert_equal(expected, found)
    plain = az.from_netcdf(file)  # ArviZ itself, without our load
    for group in results.group_names(expected):
        xr.testing.assert_equal(results.dataset(expected, group), results.dataset(plain, group).load())
    plain.close()
    print(f"read {file} written by arviz {writer} under arviz {az.__version__}: {count} variables equal")


def calls(file):
    """What users type on a run's posterior.nc, opened by ArviZ itself; each answer is checked against the file's numbers."""
    matplotlib.use("Agg")
    idata = az.from_netcdf(file)
    watched = results.dataset(idata, "function_space")
    table = az.summary(idata, group="function_space", round_to="none")
    assert np.isclose(float(table.loc["f[0]", "mean"]), float(watched["f"].values[..., 0].mean()))
    loo = az.loo(idata)
    elpd = loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd
    in_sample = results.dataset(idata, "log_likelihood")["y"].values
    assert elpd < np.log(np.exp(in_sample).mean((0, 1))).sum() + 1e-6  # leaving a row out cannot help to predict it
    assert set(az.compare({"one": idata, "other": idata}).index) == {"one", "other"}
    if az.__version__.startswith("0."):
        az.plot_trace(idata.function_space, var_names=["log_likelihood", "log_prior"])
        az.plot_ppc(idata, num_pp_samples=5)
    else:
        az.plot_trace(idata, group="function_space", var_names=["log_likelihood", "log_prior"])
        az.plot_ppc_dist(idata, num_samples=5)
    inference = idata.attrs["inference"]
    print(f"arviz {az.__version__}, {inference}: summary, loo ({elpd:.1f}), compare, plot_trace and ppc plot ran")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "read", "calls"):
        sys.exit(__doc__)
    if sys.argv[1] == "calls":
        calls(sys.argv[2])
    else:
        main(*sys.argv[1:])
