# %% [markdown]
# # 8. Epistemic and aleatoric: which part of the doubt would more data remove?
#
# A prediction can be unsure for two reasons. The network may not know the curve, for want of data (*epistemic*), or the
# world may be noisy (*aleatoric*). The law of total variance adds them up: the variance of y is the variance of the curves'
# values, over draws of the posterior, plus the mean of their noise variances. Here the truth is a formula, so we can vary
# the number of rows, the noise and the place of the rows, and see whether each part does what its name says.
#
# Run it whole (`python tutorials/08_epistemic_and_aleatoric.py [PICTURE.png]`, under a minute) or cell by cell.

# %%
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import bnn_pyro as bnn

SEED = 0
torch.set_num_threads(1)  # at these sizes, threads cost more than they give


def noise_sd(x, level=0.2):
    return level * np.exp(x / 2)


def rows(n, level=0.2, gap=0.0, seed=SEED):
    """n rows: x uniform on [-2, 2] but for |x| < gap, y = sin(2 x) + noise whose sd grows with x."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1, 1], n) * rng.uniform(gap, 2, n)
    return x[:, None], np.sin(2 * x) + noise_sd(x, level) * rng.normal(size=n)


# %% [markdown]
# `mlp_hetero` is a network of two outputs: the mean at x, and the log of the noise sd there. Laplace's method fits it in a
# second or two. More rows first: each number is a mean over x from -2 to 2.

# %%
model = bnn.get_model("mlp_hetero", hidden=(8,), activation="tanh", prior_sd=2.0)
quick = {"inference": "laplace", "draws": 300, "backend": "eager", "seed": SEED}
inside = np.linspace(-2, 2, 81)[:, None]
true_variance = (noise_sd(inside) ** 2).mean()
sizes = (20, 60, 200, 600, 2000)
grown = {n: model.fit(*rows(n), **quick).predict(inside) for n in sizes}
table = pd.DataFrame(
    {
        "epistemic": {n: p.epistemic.mean() for n, p in grown.items()},
        "rows x epistemic": {n: n * p.epistemic.mean() for n, p in grown.items()},
        "aleatoric": {n: p.aleatoric.mean() for n, p in grown.items()},
    }
).rename_axis("rows")
print(table.round(5).to_string())
print(f"true noise variance, mean over x: {true_variance:.4f}")
slope = np.polyfit(np.log(sizes[1:]), np.log(table["epistemic"].iloc[1:]), 1)[0]
print(f"from 60 rows on, epistemic variance goes as rows to the power {slope:.2f}")

# %% [markdown]
# Epistemic variance falls about as one over the number of rows. Aleatoric variance settles at the truth and stays. Now
# twice the noise, at 2000 rows.

# %%
louder = model.fit(*rows(2000, level=0.4), **quick).predict(inside)
for part in ("aleatoric", "epistemic"):
    ratio = getattr(louder, part).mean() / getattr(grown[2000], part).mean()
    print(f"twice the noise sd: {part} variance times {ratio:.1f}")
for x in (-1.5, 0.0, 1.5):
    i = np.abs(inside[:, 0] - x).argmin()
    print(
        f"noise sd at x = {x:g}: true {noise_sd(x):.2f}, learnt {np.sqrt(grown[2000].aleatoric[i]):.2f}; twice the noise: "
        f"true {noise_sd(x, 0.4):.2f}, learnt {np.sqrt(louder.aleatoric[i]):.2f}"
    )

# %% [markdown]
# Four times the aleatoric variance, as it must be. But epistemic variance grows as well: noisier rows teach less. The two
# parts are different questions, not independent numbers.
#
# Third, where the rows are. 60 rows, none between -0.7 and 0.7 and none beyond 2. The same program, six methods. The
# reference is a sampler, ChEES-HMC, for as long as a tutorial can wait: too short for its verdict to be `converged`, long
# enough for the sd of a curve.

# %%
x, y = rows(60, gap=0.7)
methods = {
    "ChEES": {"inference": "chees", "warmup": 60, "draws": 40, "backend": "inductor"},
    "Laplace": {"inference": "laplace", "draws": 300, "backend": "eager"},
    "mean-field SVI": {"inference": "svi", "steps": 3000, "draws": 300, "backend": "eager"},
    "ensemble, anchored": {"inference": "ensemble", "members": 10, "steps": 1000, "anchored": True, "backend": "eager"},
    "ensemble": {"inference": "ensemble", "members": 40, "steps": 1000, "backend": "eager"},
    "MAP": {"inference": "map", "steps": 1000, "backend": "eager"},
}
wide = np.linspace(-4, 4, 161)[:, None]
distance = np.abs(wide[:, 0])
places = {
    "at rows": (distance > 0.7) & (distance < 2),
    "gap": distance < 0.3,
    "x = ±3": np.abs(distance - 3) < 0.1,
    "x = ±4": distance > 3.9,
}
curves, found = {}, {}
for name, settings in methods.items():
    posterior = model.fit(x, y, seed=SEED, **settings)
    p = curves[name] = posterior.predict(wide)
    sd = np.sqrt(p.epistemic)
    found[name] = {place: sd[where].mean() for place, where in places.items()}
    found[name]["gap / rows"] = found[name]["gap"] / found[name]["at rows"] if sd.any() else np.nan
    found[name]["noise at rows"] = np.sqrt(p.aleatoric[places["at rows"]]).mean()
    print(f"{name}: verdict {posterior.diagnose().verdict}, {posterior.attrs['wall_time']:.1f} seconds")
print("epistemic sd by place, and the noise sd")
print(pd.DataFrame(found).T.round(3).to_string())
print(f"true noise sd at rows: {noise_sd(wide[places['at rows'], 0]).mean():.3f}")

# %% [markdown]
# Against the sampler: Laplace's method is within 40 % of it at each of the four places. Mean-field SVI sees the gap, but is
# less sure than the sampler where the rows are, and surer beyond all rows than among them. Members of a plain ensemble agree
# too much everywhere, with less than half the sampler's sd, though they do disagree more away from the rows; `anchored=True`
# pulls each to a draw of the prior and is much nearer, still too sure beyond. MAP is one curve: no epistemic part anywhere.
#
# Classes have no variance worth the name, but the same split in nats: the entropy of the predicted probabilities is the
# mutual information of label and weights (epistemic) plus the expected entropy of the label given the weights (aleatoric).
# A coin that is known to be fair has log 2 = 0.693 nats of the second kind and none of the first.


# %%
def labelled(n, seed=SEED):
    """n rows: x uniform on [-2, 2], class 1 with log odds 4 sin(2 x)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, n)
    return x[:, None], (rng.uniform(size=n) < 1 / (1 + np.exp(-4 * np.sin(2 * x)))).astype(int)


def true_entropy(x):
    p = 1 / (1 + np.exp(-4 * np.sin(2 * x)))
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


classifier = bnn.get_model("mlp_categorical", hidden=(10,), activation="tanh", prior_sd=2.0)
entropies = {n: classifier.fit(*labelled(n), **quick).predict(wide) for n in (60, 2000)}
for n, p in entropies.items():
    for x0, said in ((0.0, "a fair coin"), (0.8, "nearly sure"), (4.0, "beyond all rows")):
        i = np.abs(wide[:, 0] - x0).argmin()
        print(
            f"{n} rows, x = {x0:g}, {said}: entropy {p.entropy[i]:.3f} = epistemic {p.epistemic[i]:.3f} + aleatoric "
            f"{p.aleatoric[i]:.3f}; true entropy {true_entropy(x0):.3f}"
        )

# %% [markdown]
# With more rows the fair coin's entropy is aleatoric alone. Elsewhere it tells another story: with 60 rows the network is a
# smooth curve that fits steep probabilities badly, and what it calls aleatoric is far above the truth.

# %%
figure = Figure(figsize=(11, 7.4), layout="constrained")
(left, right), (below, last) = figure.subplots(2, 2)
left.loglog(table.index, table["aleatoric"], "s-", color="C1", label="aleatoric")
left.loglog(table.index, table["epistemic"], "o-", color="C0", label="epistemic")
left.axhline(true_variance, color="0.3", linestyle="--", linewidth=1, label="true noise variance")
left.loglog(sizes, table["epistemic"][200] * 200 / np.array(sizes), ":", color="0.3", label="1 / rows")
left.set(xlabel="rows", ylabel="variance (squared units of y)", title="More rows: one part falls, one stays")
left.legend(fontsize="small")
for p, level, color in ((grown[2000], 0.2, "C1"), (louder, 0.4, "C3")):
    right.plot(inside, np.sqrt(p.aleatoric), color=color, label=f"aleatoric sd, {level:g} exp(x / 2)")
    right.plot(inside, noise_sd(inside, level), color="0.3", linestyle="--", linewidth=1)
right.plot([], [], color="0.3", linestyle="--", linewidth=1, label="true noise sd")
right.set(xlabel="x", ylabel="noise sd (units of y)", title="2000 rows: the noise is learnt by place")
right.legend(fontsize="small")
looks = (("C0", "-"), ("C1", "--"), ("C2", "-."), ("C3", ":"), ("0.45", "-"), ("0.1", "--"))
for (name, p), (color, style) in zip(curves.items(), looks, strict=True):
    below.plot(wide, np.sqrt(p.epistemic), color=color, linestyle=style, linewidth=1.8, label=name)
below.plot(x, np.full(len(x), -0.03), "|", color="0.25", markersize=7, label="row")
below.set(xlabel="x", ylabel="epistemic sd (units of y)", title="60 rows with a gap: who notices?", ylim=(-0.07, 0.95))
below.legend(fontsize="small", ncols=2, loc="upper center")
for (n, p), style in zip(entropies.items(), ("-", "--"), strict=True):
    last.plot(wide, p.aleatoric, color="C1", linestyle=style, label=f"aleatoric, {n} rows")
    last.plot(wide, p.epistemic, color="C0", linestyle=style, label=f"epistemic, {n} rows")
last.axvspan(-2, 2, color="0.93", zorder=0, label="where the rows are")
last.axhline(np.log(2), color="0.3", linestyle=":", linewidth=1, label="log 2")
last.set(xlabel="x", ylabel="entropy (nats)", title="Two classes", ylim=(-0.02, 1.08))
last.legend(fontsize="small", ncols=2, loc="upper center")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/08_epistemic_and_aleatoric.png")
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")

# %% [markdown]
# ## What not to trust
#
# * The split as a fact about the world. Both parts are the model's: what a network cannot fit, or a guide cannot follow, it
#   calls noise. Mean-field SVI's noise is above the sampler's, and the aleatoric entropy of the 60 labelled rows is too large.
# * Epistemic parts beyond all rows. They are mostly prior: a tanh network levels off, and so does its doubt, however far one
#   goes. The classifier of 2000 rows is sure of x = 4, where no row is.
# * One over the number of rows at small sizes. With 20 rows the prior holds the curve as much as the rows do; and with more
#   rows the network uses more of its freedom, so that epistemic variance falls a little slower than that.
# * A ranking of methods from 60 rows of one problem. Try your own with a formula that looks like your data.
