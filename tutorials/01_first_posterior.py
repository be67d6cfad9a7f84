# %% [markdown]
# # 1. A first posterior: where is a network unsure?
#
# In 1857 Ernst Engel wrote down what 235 Belgian working-class households earned and what they spent on food. A small
# network fits that curve. A *Bayesian* one also says how far it could be wrong, and where: it is not one curve but many,
# each as plausible as the data and the prior make it.
#
# Run it whole (`python tutorials/01_first_posterior.py [PICTURE.png]`, under a minute) or cell by cell.

# %%
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import bnn_pyro as bnn

data = bnn.load_dataset("engel")
print(f"{len(data.train)} households to learn from, {len(data.test)} held out; {data.card.about}")

# %% [markdown]
# A model of the zoo is a Pyro program with priors and a likelihood written out; `bnn-pyro show mlp_gaussian` prints them.
# Three hidden units are plenty for one curve.

# %%
model = bnn.get_model("mlp_gaussian", hidden=(3,), activation="tanh")

# %% [markdown]
# Three answers from the same program; only the flag differs. `map` is one best curve. `svi` fits a guide, a simple
# distribution over the weights: the model's own guide treats every weight as independent ("mean field"), the `multivariate`
# one lets them depend on each other.

# %%
fits = {
    "one best curve (map)": model.fit(data.train, inference="map", seed=0),
    "mean-field guide (svi)": model.fit(data.train, inference="svi", seed=0),
    "full-rank guide (svi)": model.fit(data.train, inference="svi", guide="multivariate", seed=0),
}
for name, posterior in fits.items():
    print(f"{name}: {posterior.diagnose()}")

# %% [markdown]
# ArviZ reads each result as it comes. Weights have many equivalent modes (swap two units, nothing changes), so look at
# what the network *does*: the function at fixed rows, its noise, its log likelihood.

# %%
table = fits["full-rank guide (svi)"].summary(var_names=["noise_scale", "log_likelihood", "log_prior"])
print(table[["mean", "sd"]].round(2).to_string())

# %% [markdown]
# The predictive variance has two parts. *Epistemic*: the curves disagree, and more data would make them agree.
# *Aleatoric*: households with the same income eat differently, and no amount of data changes that.

# %%
income = np.linspace(200, 6000, 117)[:, None]
predicted = {name: posterior.predict(income) for name, posterior in fits.items()}
seen = data.train.x["income"].to_numpy()
middle, beyond = np.abs(income[:, 0] - np.median(seen)).argmin(), np.abs(income[:, 0] - 5500).argmin()
for name, p in predicted.items():
    sd = np.sqrt(p.epistemic)
    print(
        f"{name}: sd of the curve {sd[middle]:.0f} francs at the median income, {sd[beyond]:.0f} at 5500, beyond all "
        f"households; sd of the noise {np.sqrt(p.aleatoric[middle]):.0f}"
    )
full = predicted["full-rank guide (svi)"]
growth = np.sqrt(full.epistemic[beyond] / full.epistemic[middle])
print(f"under the full-rank guide the epistemic sd grows {growth:.1f} times from the median income to 5500 francs")

# %%
figure = Figure(figsize=(10, 3.8), layout="constrained")
axes = figure.subplots(1, 3, sharey=True)
for axis, (name, p) in zip(axes, predicted.items(), strict=True):
    lower, upper = p.interval(0.9)
    sd = np.sqrt(p.epistemic)
    axis.fill_between(income[:, 0], lower, upper, color="0.88", label="90 % interval of a household")
    axis.fill_between(
        income[:, 0], p.mean - 2 * sd, p.mean + 2 * sd, color="C0", alpha=0.35, label="mean curve ± 2 epistemic sd"
    )
    axis.plot(income[:, 0], p.mean, color="C0", label="mean curve")
    axis.plot(seen, data.train.y, ".", color="0.25", markersize=3, label="household")
    axis.set(title=name, xlabel="income (francs)", xlim=(200, 6000), ylim=(0, 3200))
axes[0].set_ylabel("food expenditure (francs)")
axes[0].legend(loc="upper left", fontsize="small")
figure.suptitle("One network, three answers: how far could the curve be wrong where no household is?")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/01_first_posterior.png")
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")

# %% [markdown]
# Held-out households tell whether the intervals mean what they say.

# %%
for name, posterior in fits.items():
    scores = posterior.score(data.test)
    print(f"{name}:", ", ".join(f"{k} {v:.3f} ± {e:.3f}" for k, (v, e) in scores.items()))

# %% [markdown]
# ## What not to trust
#
# * Held-out scores hardly tell the three apart: no held-out household stands beyond the data. The picture does.
# * The mean-field band is too sure of itself beyond the data; the full-rank one is wider, and still a guide, not the
#   posterior: k-hat says how far it is off. `inference="nuts"` samples the posterior itself, in minutes, and says
#   whether it has converged; `bnn-pyro demo` does both on another data set.
# * The noise is one number here, and in Engel's data it is not: rich households differ more than poor ones. The 90 %
#   interval is too wide on the left and too narrow on the right, although its average coverage looks right.
