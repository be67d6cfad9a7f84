# %% [markdown]
# # 2. SVI or NUTS: what does the faster answer get wrong?
#
# A plant oxidised ammonia for 21 days, and noted air flow, cooling water temperature, acid concentration, and how much
# ammonia was lost (Brownlee 1965). Linear regression with conjugate priors has a posterior in closed form, so here each
# method can be marked against the truth. A network has no such oracle; the errors below are the ones to expect there.
#
# Run it whole (`python tutorials/02_svi_or_nuts.py [PICTURE.png]`, about a minute) or cell by cell.

# %%
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import bnn_pyro as bnn

data = bnn.load_dataset("stackloss")
together = data.train.x["AIRFLOW"].corr(data.train.x["WATERTEMP"])
print(f"{len(data.train)} days; air flow and water temperature go together: correlation {together:.2f}")

# %% [markdown]
# One program, three answers. The first guide treats each weight as independent of the others ("mean field"), the second
# is a normal distribution with all covariances ("full rank"), and NUTS walks through the posterior itself. NUTS needs no
# guide; it needs time. A gradient is the unit in which methods can be compared on any machine.

# %%
model = bnn.get_model("linear")
fits = {
    "mean-field SVI": model.fit(data.train, inference="svi", guide="normal", steps=2000, seed=0),
    "full-rank SVI": model.fit(data.train, inference="svi", guide="multivariate", steps=2000, seed=0),
    "NUTS": model.fit(data.train, inference="nuts", warmup=300, draws=400, dense_mass=True, seed=0),
}
for name, posterior in fits.items():
    print(f"{name}: {posterior.attrs['gradient_evaluations']} gradients, {posterior.attrs['wall_time']:.1f} seconds")
    print(posterior.diagnose())

# %% [markdown]
# Now the truth. The model works in standard units: its weights say by how many standard deviations the loss moves when an
# input moves by one. `exact` takes rows in those units.

# %%
units, rows = fits["NUTS"].units, fits["NUTS"].data
exact = model.exact(torch.tensor(units.inputs(rows.x)), torch.tensor(units.targets(rows.y)))
covariance = exact.covariance.numpy()


def summary(mean, covariance):
    """Means and sds of the weights of air flow and water temperature, and their correlation."""
    sd = np.sqrt(np.diag(covariance))
    correlation = covariance[0, 1] / (sd[0] * sd[1])
    return {"mean air": mean[0], "mean water": mean[1], "sd air": sd[0], "sd water": sd[1], "correlation": correlation}


draws = {name: posterior.idata.posterior["w"].values.reshape(-1, 3) for name, posterior in fits.items()}
table = {"exact": summary(exact.mean.numpy(), covariance)}
table |= {name: summary(w.mean(0), np.cov(w.T)) for name, w in draws.items()}
print(pd.DataFrame(table).T.round(3).to_string())

# %% [markdown]
# The means agree. The mean-field sds do not: a guide that may not tilt fits inside the tilted posterior, so it is as wide
# as the posterior would be if you *knew* the other weights: 1 / sqrt(diagonal of the precision matrix).

# %%
precision = np.linalg.inv(covariance)
narrow = 1 / np.sqrt(np.diag(precision))[0]
print(f"sd of the air flow weight if the others were known: {narrow:.3f}")

# %% [markdown]
# Does it matter? It depends on the question. For a day like the others, hardly. For a day on which air flow is high and the
# water cold, which never occurred, the two weights no longer act together, and the difference between them counts.

# %%
middle = data.train.x.median()
unusual = middle.copy()
unusual["AIRFLOW"] = data.train.x["AIRFLOW"].max()
unusual["WATERTEMP"] = data.train.x["WATERTEMP"].min()
days = pd.DataFrame([middle, unusual])
z = np.c_[units.inputs(days.to_numpy()), np.ones(2)]
truth = np.sqrt(np.einsum("ij,jk,ik->i", z, covariance, z)) * float(np.ravel(units.y_sd)[0])
print(f"epistemic sd of the loss, exact: a usual day {truth[0]:.2f}, an unusual day {truth[1]:.2f}")
for name, posterior in fits.items():
    usual, odd = np.sqrt(posterior.predict(days).epistemic)
    print(f"epistemic sd of the loss, {name}: a usual day {usual:.2f}, an unusual day {odd:.2f}")

# %%
figure = Figure(figsize=(10, 3.9), layout="constrained")
axes = figure.subplots(1, 3, sharex=True, sharey=True)
angle = np.linspace(0, 2 * np.pi, 200)
circle = np.stack([np.cos(angle), np.sin(angle)])
root = np.linalg.cholesky(covariance[:2, :2])
center = exact.mean.numpy()[:2, None]
for axis, (name, w) in zip(axes, draws.items(), strict=True):
    axis.plot(*w[-1000:, :2].T, ".", color="C0", markersize=2.5, alpha=0.5, label="draw")
    for radius, style in ((1, "-"), (2, "--")):
        axis.plot(*(center + radius * root @ circle), style, color="C1", label=f"exact, {radius} sd")
    axis.set(title=name, xlabel="weight of air flow (sd of loss per sd)", xlim=(-0.3, 1.4), ylim=(-0.4, 1.3))
axes[0].set_ylabel("weight of water temperature\n(sd of loss per sd)")
axes[0].legend(loc="upper right", fontsize="small")
figure.suptitle("Two weights that trade off: three answers, and the exact posterior")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/02_svi_or_nuts.png")
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")

# %% [markdown]
# ## What not to trust
#
# * A settled ELBO. Both guides have settled, and one of them has sds that are far too small. A k-hat below 0.7 does not
#   promise right sds either: it says that importance weights could correct the draws, not that they need no correction.
# * A full-rank guide is nearly exact here because this posterior is nearly normal. A network's is not: it has many modes, and
#   a normal guide sees one of them.
# * `converged` is a statement about chains that agree. If all chains missed the same far mode, they would agree as well.
# * The seconds are those of one machine, both by this library's engine. A network of some size costs NUTS
#   many more gradients a draw than these few weights: expect minutes to hours, and fit by SVI first.
