"""The library's own NUTS and ChEES-HMC say of new rows what Pyro's NUTS says, which ``pyro_draws.py`` has stored.

Compared are mean and sd of the function and, where y is a number, the sd of y, at each of 200 rows: differences in units
of both samplers' Monte Carlo errors, and of means in units of the posterior's sd, which no short run can hide behind.
"""

import json
from functools import cache

import numpy as np
import pyro_draws
import pytest
from pyro_draws import MODELS, POINTS

WITHIN = 4.56  # combined Monte Carlo errors: two-sided probability 5e-6
SHARE = 0.1  # of the posterior sd
OURS = {
    "nuts": {"inference": "nuts", "chains": 8, "warmup": 400, "draws": 1000},
    "chees": {"inference": "chees", "chains": 16, "warmup": 500, "draws": 1000},
}


@cache
def ours(name, sampler, fault=""):
    posterior = pyro_draws.fit(name, fault, seed=7, **OURS[sampler])
    return pyro_draws.summaries(posterior, pyro_draws.rows(name).new)


def differences(have, want):
    """By quantity, the largest difference in Monte Carlo errors; and the largest of the means in posterior sds."""
    errors = {
        key: np.abs((have[key] - want[key]) / np.hypot(have[f"{key}_mcse"], want[f"{key}_mcse"])).max()
        for key in ("mean", "sd", "total_sd")
        if key in want
    }
    return errors, (np.abs(have["mean"] - want["mean"]) / want["sd"]).max()


@pytest.mark.parametrize("name", MODELS)
def test_what_is_stored_can_be_compared_with(name):
    """Errors are well below the bound on means, chains agreed, and the settings are those of the script."""
    content = pyro_draws.stored(name)
    values, settings = content["values"], content["settings"]
    assert settings | pyro_draws.SETTINGS == settings and content["hyperparameters"] == json.loads(
        json.dumps(MODELS[name])
    )
    assert values["mean"].shape[0] == POINTS and ("total_sd" in values) == ("logistic" != name != "mlp_categorical")
    assert content["least_ess"] == pytest.approx(values["ess"].min(), abs=1) and content["least_ess"] >= 1000
    assert (values["mean_mcse"] <= SHARE / 3 * values["sd"]).all() and content["largest_r_hat"] < 1.01


@pytest.mark.slow
@pytest.mark.parametrize("sampler", OURS)
@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_those_of_pyros_sampler(name, sampler):
    have, want = ours(name, sampler), pyro_draws.stored(name)["values"]
    assert have["r_hat"].max() < 1.01 and have["ess"].min() >= 1000
    errors, share = differences(have, want)
    assert max(errors.values()) < WITHIN, errors
    assert share <= SHARE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [("linear", "row left out"), ("logistic", "wider prior"), ("mlp_categorical", "wider prior")],
)
def test_a_posterior_that_is_a_little_wrong_is_seen(name, fault):
    errors, share = differences(ours(name, "nuts", fault), pyro_draws.stored(name)["values"])
    assert max(errors.values()) >= WITHIN or share > SHARE, (errors, share)
