"""NUTS through `bnn.fit` against the reference draws of posteriordb, four programs as a user would write them.

Needs the folder `posteriordb` below BNN_PYRO_DATA (Magnusson et al., posteriordb, BSD-3).
"""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch.distributions import constraints

import bnn_pyro as bnn
from bnn_pyro import results

pytestmark = pytest.mark.slow
Z = 4.56


def blr(x, y=None):
    """sblrc-blr: linear regression without intercept; x (n, 5)."""
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def eight_schools(x, y=None):
    """Non-centred; x holds each school's index and its known standard error."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    theta = pyro.deterministic("theta", mu + tau * z, event_dim=1)
    with pyro.plate("data", len(x["school"])):
        pyro.sample("y", dist.Normal(theta[x["school"]], x["sigma"]), obs=y)


def nes(x, y=None):
    """Linear regression with flat priors; x (n, 9), the first column ones."""
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real, (), (9,)).to_event(0))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def gp_regr(x, y=None):
    """Gaussian process: one joint observation, no data plate; sigma is the noise variance."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    k = alpha**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * rho**2)) + sigma * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), k), obs=y)


def columns_of_nes(d):
    age = np.array(d["age_discrete"])
    names = ("real_ideo", "race_adj")
    parts = [np.ones(d["N"]), *(np.array(d[k], float) for k in names), *((age == a).astype(float) for a in (2, 3, 4))]
    return np.column_stack([*parts, *(np.array(d[k], float) for k in ("educ1", "gender", "income"))])


CASES = {
    "sblrc-blr": (blr, lambda d: (np.array(d["X"]), np.array(d["y"]))),
    "eight_schools-eight_schools_noncentered": (
        eight_schools,
        lambda d: ({"school": np.arange(8), "sigma": np.array(d["sigma"], float)}, np.array(d["y"], float)),
    ),
    "nes1980-nes": (nes, lambda d: (columns_of_nes(d), np.array(d["partyid7"], float))),
    "gp_pois_regr-gp_regr": (gp_regr, lambda d: (np.array(d["x"], float), np.array(d["y"], float))),
}


@pytest.mark.filterwarnings("ignore:.*a prior is improper")
@pytest.mark.parametrize("name", CASES)
def test_means_and_sds_equal_the_reference(name, data_folder):
    folder = data_folder / "posteriordb" / name
    program, arrays = CASES[name]
    x, y = arrays(json.loads((folder / "data.json").read_text()))
    reference = json.loads((folder / "reference.json").read_text())["summary"]
    posterior = bnn.fit(
        program, x, y, chains=4, warmup=1000, draws=1000, target_accept=0.95, dense_mass=True, dtype="float64", seed=21
    )
    for parameter, expected in reference.items():
        site, _, index = parameter.removesuffix("]").partition("[")
        draws = results.dataset(posterior.idata, "posterior")[site].values
        series = draws[..., int(index) - 1] if index else draws
        table = xr.Dataset({"q": (("chain", "draw"), series)})
        error = np.hypot(expected["mcse_mean"], results.mcse(table, method="mean")["q"])
        assert abs(series.mean() - expected["mean"]) < Z * error, parameter
        # the error of a standard deviation depends on the fourth moment: sd sqrt((kurtosis - 1) / (4 ESS))
        centred = series - series.mean()
        kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
        from_reference = expected["sd"] * np.sqrt((kurtosis - 1) / (4 * expected["ess_bulk"]))
        error = np.hypot(from_reference, results.mcse(table, method="sd")["q"])
        assert abs(series.std() - expected["sd"]) < Z * error, parameter
    verdict = posterior.diagnose()
    assert verdict.verdict == "converged", str(verdict)
