# %% [markdown]
# # 5. Your own program: when did the Nile change?
#
# The flow of the Nile at Aswan fell about 1900. A network with a single hidden unit can draw such a step, and here its
# weights mean something: two levels, the year between them, and how sharp the step is. No such model is in the zoo, so we
# write it, ask what it believes before it sees the flows, fit it in three ways, and compare it with a straight line.
#
# Run it whole (`python tutorials/05_your_own_program.py [PICTURE.png]`, about a minute) or cell by cell.

# %%
import sys
from pathlib import Path

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import bnn_pyro as bnn
from bnn_pyro import results

data = bnn.load_dataset("nile")
print(f"{len(data.train)} years to learn from, {len(data.test)} held out; {data.card.about}")

# %% [markdown]
# Plain Pyro, and one rule: what is observed stands in a plate called `data`, so that each year has its own likelihood. The
# program scales by itself (30 years, 300 units of flow), so that all its unknowns are of size one, which each method likes.
# A `deterministic` site is no unknown; it is recorded for reading.


# %%
def step(x, y=None):
    level = pyro.sample("level", dist.Normal(0.0, 1.0).expand([2]).to_event(1))  # before, after
    when = pyro.sample("when", dist.Normal(0.0, 1.0))
    width = pyro.sample("width", dist.LogNormal(-1.5, 0.3))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    pyro.deterministic("year", 1920 + 30 * when)
    pyro.deterministic("change", 300 * (level[1] - level[0]))
    unit = torch.sigmoid(((x[:, 0] - 1920) / 30 - when) / width)  # (n,), from 0 before to 1 after
    f = 900 + 300 * (level[0] + (level[1] - level[0]) * unit)
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(f, 300 * sigma), obs=y)


# %% [markdown]
# Mistakes are answered before any work. Pyro's own NUTS takes a column of targets, (n, 1), without a word, compares each
# target with each prediction, and samples something else.

# %%
x = data.train.x.to_numpy()
y = data.train.y.to_numpy()
try:
    bnn.fit(step, x, y[:, None], inference="nuts")
except bnn.BNNError as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# `BNN` wraps the program for reuse and names the axis of `level`. Its prior comes first: with `inference="prior"` nothing is
# learnt, and predictions are what the program holds possible.

# %%
model = bnn.BNN(step, dims={"level": ("period",)}, name="step")
prior = model.fit(data.train, inference="prior", draws=2000, seed=0)
low, high = np.quantile(prior.predict(x).draws, [0.05, 0.95])
year, change = (prior.idata.posterior[name].values.ravel() for name in ("year", "change"))
print(f"prior: flows from {low:.0f} to {high:.0f} (90 %); observed from {y.min():.0f} to {y.max():.0f}")
print(f"prior: the flow falls with probability {(change < 0).mean():.2f}; 90 % of steps lie between the years")
print(f"    {np.quantile(year, 0.05):.0f} and {np.quantile(year, 0.95):.0f}")

# %% [markdown]
# Wide, but not absurd, and undecided between a rise and a fall: good enough. Three fits: NUTS, an autoguide by name, and a
# guide of our own, which is a Pyro program with the model's signature that samples each unknown.


# %%
def own_guide(x, y=None):
    """Independent normals for level, when and the logs of width and sigma."""
    positive = torch.distributions.constraints.positive
    for name, size, start in (("level", (2,), 0.0), ("when", (), 0.0), ("width", (), -1.5), ("sigma", (), -0.5)):
        loc = pyro.param(f"{name}_loc", torch.full(size, start))
        sd = pyro.param(f"{name}_sd", torch.full(size, 0.1), constraint=positive)
        family = dist.LogNormal if name in ("width", "sigma") else dist.Normal
        pyro.sample(name, family(loc, sd).to_event(len(size)))


fits = {
    "NUTS": model.fit(data.train, inference="nuts", warmup=300, draws=500, dense_mass=True, seed=0),
    "SVI, guide='multivariate'": model.fit(data.train, inference="svi", guide="multivariate", steps=1500, seed=0),
    "SVI, own guide": model.fit(data.train, inference=bnn.SVI(guide=own_guide, steps=1500), seed=0),
}
for name, posterior in fits.items():
    print(f"{name}: {posterior.attrs['wall_time']:.1f} seconds, {posterior.diagnose()}")

# %% [markdown]
# ArviZ reads each of them.

# %%
print(az.summary(fits["NUTS"].idata, var_names=["year", "change", "level", "width", "sigma"], kind="stats").to_string())
for name, posterior in fits.items():
    year, change = (posterior.idata.posterior[site].values.ravel() for site in ("year", "change"))
    print(f"{name}: year {year.mean():.1f} ± {year.std():.1f}, change of flow {change.mean():.0f} ± {change.std():.0f}")

# %% [markdown]
# Is a step better than a straight line? Leave-one-out predictive density (elpd, in nats, higher is better) answers for the
# years that were seen; `dse` is the standard error of the difference, `high_k` the share of years where it cannot be relied
# on. Held-out years give a second opinion.

# %%
line = bnn.get_model("linear").fit(data.train, inference="svi", steps=1000, seed=0)
table = results.compare({"step": fits["NUTS"].idata, "line": line.idata})
print(table[["elpd_loo", "p_loo", "elpd_diff", "dse", "high_k"]].round(2).to_string())
for name, posterior in (("step", fits["NUTS"]), ("line", line)):
    value, error = posterior.score(data.test)["test_lpd"]
    print(f"{name}: held-out log density {value:.2f} ± {error:.2f} nats a year")

# %%
years = np.arange(1871, 1971)[:, None]
figure = Figure(figsize=(10, 4.0), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(1.6, 1.0))
p = fits["NUTS"].predict(years)
lower, upper = p.interval(0.9)
left.fill_between(years[:, 0], lower, upper, color="0.88", label="90 % interval of a year's flow")
sd = np.sqrt(p.epistemic)
left.fill_between(
    years[:, 0], p.mean - 2 * sd, p.mean + 2 * sd, color="C0", alpha=0.35, label="mean curve ± 2 epistemic sd"
)
left.plot(years[:, 0], p.mean, color="C0", label="mean curve, step")
left.plot(years[:, 0], line.predict(years).mean, color="C1", linestyle="--", label="mean curve, line")
left.plot(x[:, 0], y, ".", color="0.25", label="year to learn from")
left.plot(data.test.x.to_numpy()[:, 0], data.test.y, "x", color="0.25", markersize=5, label="year held out")
left.set(xlabel="year", ylabel="flow at Aswan (1e8 cubic metres a year)", ylim=(350, 1700), title="Step and line")
left.legend(loc="upper right", fontsize="small", ncols=2)
for (name, posterior), style in zip(fits.items(), ("-", "--", ":"), strict=True):
    counts, edges = np.histogram(posterior.idata.posterior["year"].values, bins=np.arange(1880, 1916), density=True)
    right.stairs(counts, edges, color={"-": "C0", "--": "C1", ":": "0.25"}[style], linestyle=style, label=name)
right.set(xlabel="year of the step", ylabel="posterior density (per year)", title="When?", ylim=(0, 0.22))
right.legend(loc="upper left", fontsize="small")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/05_your_own_program.png")
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")

# %% [markdown]
# ## What not to trust
#
# * The program holds that there is one step. It cannot find two, nor none: a change near zero is its only way to say so. The
#   comparison leans to a step over a line, by few standard errors; it does not show that a step is what happened.
# * Years are treated as independent given the step. Flows of neighbouring years need not be, and then both the leave-one-out
#   errors and the sds here are too small.
# * A guide is a first look. Both are surer of the year than NUTS is, and the one with independent unknowns is the surest.
# * Priors were chosen with an eye on the range of the flows. That is common, and it is not the same as not having looked.
