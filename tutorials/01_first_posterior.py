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
# Variational inference first: quick, and approximate by construction. Then NUTS, which takes longer and says whether it
# has converged. Only the flag differs.

# %%
svi = model.fit(data.train, inference="svi", seed=0, steps=3000)
print(svi.diagnose())

nuts = model.fit(data.train, inference="nuts", seed=0, chains=4, warmup=300, draws=300, backend="inductor")
print(nuts.diagnose())

# %% [markdown]
# ArviZ reads the result as it comes. Weights have many equivalent modes (swap two units, nothing changes), so look at
# what the network *does*: the function at fixed rows, its noise, its log likelihood.

# %%
print(nuts.summary(var_names=["noise_scale", "log_likelihood", "log_prior"]).round(2).to_string())

# %% [markdown]
# The predictive variance has two parts. *Epistemic*: the curves disagree, and more data would make them agree.
# *Aleatoric*: households with the same income eat differently, and no amount of data changes that.

# %%
income = np.linspace(200, 6000, 117)[:, None]
predicted = {"SVI": svi.predict(income), "NUTS": nuts.predict(income)}
seen = data.train.x["income"].to_numpy()
middle, beyond = np.abs(income[:, 0] - np.median(seen)).argmin(), np.abs(income[:, 0] - 5500).argmin()
for name, p in predicted.items():
    epistemic = np.sqrt(p.epistemic)
    print(
        f"{name}: sd of the curve {epistemic[middle]:.0f} francs at the median income, {epistemic[beyond]:.0f} at 5500, "
        f"where no household is; noise sd {np.sqrt(p.aleatoric[middle]):.0f}"
    )
ratio = np.sqrt(predicted["NUTS"].epistemic[beyond] / predicted["NUTS"].epistemic[middle])
print(f"epistemic sd grows {ratio:.1f} times from the median income to 5500 francs")

# %%
figure = Figure(figsize=(9, 4), layout="constrained")
axes = figure.subplots(1, 2, sharey=True)
for axis, (name, p) in zip(axes, predicted.items(), strict=True):
    lower, upper = p.interval(0.9)
    sd = np.sqrt(p.epistemic)
    axis.fill_between(income[:, 0], lower, upper, color="0.88", label="90 % interval of a household")
    axis.fill_between(
        income[:, 0], p.mean - 2 * sd, p.mean + 2 * sd, color="C0", alpha=0.35, label="curve ± 2 sd (epistemic)"
    )
    axis.plot(income[:, 0], p.mean, color="C0", label="mean curve")
    axis.plot(seen, data.train.y, ".", color="0.25", markersize=3, label="household")
    axis.set(title=name, xlabel="income (francs)", xlim=(200, 6000), ylim=(0, 3500))
axes[0].set_ylabel("food expenditure (francs)")
axes[0].legend(loc="upper left", fontsize="small")
figure.suptitle("One network, two ways to its posterior: sure where there are data, unsure beyond")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/01_first_posterior.png")
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=120)
print(f"picture: {picture}")

# %% [markdown]
# Held-out households tell whether the intervals mean what they say.

# %%
for name, posterior in (("SVI", svi), ("NUTS", nuts)):
    scores = posterior.score(data.test)
    print(name, ", ".join(f"{k} {v:.3f} ± {e:.3f}" for k, (v, e) in scores.items()))

# %% [markdown]
# ## What not to trust
#
# * The noise is one number here, and in Engel's data it is not: rich households differ more than poor ones. The 90 %
#   interval is too wide on the left and too narrow on the right, although its average coverage looks right.
# * Beyond the last household the band is the prior's opinion of curves, not knowledge.
# * SVI's band is a mean-field one: it leaves out how weights depend on each other.
