# %% [markdown]
# # 6. Priors: what do you believe before any data, and does it matter?
#
# A network's prior is a normal distribution over each weight, of mean 0 and a standard deviation that somebody chose. Nobody
# has an opinion about a weight. But each draw of the weights is a function, so the prior is an opinion about functions, and
# that one can be looked at. Then: what a narrow and a wide prior do to a fit, and how to choose without test data.
#
# Run it whole (`python tutorials/06_priors.py [PICTURE.png]`, under a minute) or cell by cell.

# %%
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

import bnn_pyro as bnn

SEED = 0
torch.set_num_threads(1)  # at these sizes, threads cost more than they give

# %% [markdown]
# A program of our own: all weights and biases are Normal(0, sd), and the weights are divided by the root of the number of
# units that they add up, or not. With `inference="prior"` nothing is learnt. (`bnn-pyro prior mlp_categorical --data anes96`
# draws such a picture for a model of the zoo, on your data.)


# %%
def network(hidden, sd, scaled):
    def program(x, y=None):
        h, sizes = x, (x.shape[1], *hidden, 1)
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False), 1):
            w = pyro.sample(f"w{i}", dist.Normal(0.0, sd).expand([a, b]).to_event(2))
            bias = pyro.sample(f"b{i}", dist.Normal(0.0, sd).expand([b]).to_event(1))
            h = h @ (w / a**0.5 if scaled else w) + bias
            h = torch.tanh(h) if i <= len(hidden) else h
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(h[:, 0], 0.1), obs=y)

    return program


grid = np.linspace(-3, 3, 121)[:, None]


def functions(hidden, sd, scaled, draws=100):
    """Draws of the prior at the grid, (draws, 121)."""
    posterior = bnn.fit(network(hidden, sd, scaled), grid, 0 * grid[:, 0], inference="prior", draws=draws, seed=SEED)
    return posterior.predict(grid).function_draws[0]


shapes = {"5 units": (5,), "50 units": (50,), "500 units": (500,), "3 layers of 50": (50, 50, 50)}
spread = {
    name: {
        f"sd {sd:g}, {'scaled' if scaled else 'unscaled'}": functions(hidden, sd, scaled).std(0).mean()
        for scaled in (True, False)
        for sd in (0.3, 1.0, 3.0)
    }
    for name, hidden in shapes.items()
}
print("sd of the function's value under the prior")
print(pd.DataFrame(spread).astype(float).round(2).to_string())

# %% [markdown]
# Scaled, the width of the network does not matter. Unscaled, a hundred times the units make a function ten times as wild:
# the same "Normal(0, 1) on each weight" is another belief for each network.
#
# For classes a wide prior means something that few would sign. Here is `mlp_categorical`, which scales, on voters of 1996:
# how sure is a function, drawn from the prior, of its favourite class?

# %%
data = bnn.load_dataset("anes96")
print(f"{len(data.train)} voters to learn from, {len(data.test)} held out; {data.card.about}")
sure = {}
for sd in (0.1, 1.0, 10.0):
    voters = bnn.get_model("mlp_categorical", hidden=(10,), activation="tanh", prior_sd=sd)
    p = voters.fit(data.train, inference="prior", draws=200, seed=SEED).predict(data.train.x)
    sure[sd] = p.function_draws.max(-1).ravel()
    print(
        f"prior sd {sd:g}: more than 99 % sure in {100 * (sure[sd] > 0.99).mean():.0f} % of cases; entropy of the average "
        f"{p.entropy.mean():.2f} nats, of a function {p.aleatoric.mean():.2f}"
    )

# %% [markdown]
# All three average to a half. But the wide prior's functions are 0 or 1 in most cases: it believes that votes hardly ever
# hang in the balance, and only asks which way. A wide prior is not a modest one. (The narrow one is not of one mind either:
# in the zoo's networks `prior_sd` is of weights alone, and biases stay Normal(0, 1).)
#
# The best known name of this prior is weight decay: the log density of Normal(0, sd) is -w**2 / (2 sd**2), so `map` is least
# squares with a penalty. With known noise the optimum is ridge regression, in closed form.

# %%
health = bnn.load_dataset("diabetes")
sd, noise = 0.3, 0.7
ridge = bnn.get_model("linear", prior_sd=sd, noise=noise)
point = ridge.fit(health.train, inference="map", dtype="float64", seed=SEED, backend="eager")
z = np.c_[point.units.inputs(point.data.x), np.ones(point.data.n)]
u = point.units.targets(point.data.y)
closed = np.linalg.solve(z.T @ z + noise**2 / sd**2 * np.eye(z.shape[1]), z.T @ u)
mode = np.append(point.idata.posterior["w"].values[0, 0], point.idata.posterior["b"].values[0, 0])
least_squares = np.linalg.lstsq(z, u, rcond=None)[0]
print(
    f"ridge with penalty noise**2 / sd**2 = {noise**2 / sd**2:.2f}: map is off by {np.abs(mode - closed).max():.1e} at most"
)
print(f"    least squares without a penalty is off by {np.abs(least_squares - closed).max():.1e}")

# %% [markdown]
# The same for a network, which has no closed form: at any point the gradient of the negative log joint is that of the squared
# error and the penalty. Torch's optimisers call 1 / sd**2 `weight_decay`.

# %%
program = network((10,), sd, False)
generator = torch.Generator().manual_seed(SEED)
sizes = {"w1": (10, 10), "b1": (10,), "w2": (10, 1), "b2": (1,)}
theta = {k: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for k, s in sizes.items()}
rows, target = torch.tensor(z[:, :-1]), torch.tensor(u)
trace = pyro.poutine.trace(pyro.poutine.condition(program, data=theta)).get_trace(rows, target)
f = (torch.tanh(rows @ theta["w1"] + theta["b1"]) @ theta["w2"] + theta["b2"])[:, 0]
error = (target - f).square().sum() / (2 * 0.1**2)
decay = sum(w.square().sum() for w in theta.values()) / (2 * sd**2)
ours = torch.autograd.grad(-trace.log_prob_sum(), list(theta.values()), retain_graph=True)
theirs = torch.autograd.grad(error + decay, list(theta.values()), retain_graph=True)
bare = torch.autograd.grad(error, list(theta.values()))
largest = max(float(g.abs().max()) for g in ours)
for name, other in (("squared error + weight decay", theirs), ("squared error alone", bare)):
    off = max(float((a - b).abs().max()) for a, b in zip(ours, other, strict=True))
    print(f"gradient of the log joint and of {name}: off by {off:.0e}, the largest entry is {largest:.0e}")

# %% [markdown]
# Does the width matter for the fit? `linear` knows its posterior and its evidence exactly, so we can afford many fits: three
# numbers of rows, thirteen widths, twenty random parts of the training rows. The evidence is the probability of the training
# targets under the model, before any was seen: large where the prior holds them likely, and no test row is needed for it.

# %%
widths = np.geomspace(0.01, 10, 13)
units = point.units
x_all, y_all = torch.tensor(z[:, :-1]), torch.tensor(u)
x_test = np.c_[units.inputs(health.test.x.to_numpy(np.float64)), np.ones(len(health.test))]
y_test = torch.tensor(units.targets(health.test.y.to_numpy(np.float64)))


def exact_scores(width, part):
    """Log evidence of part of the training rows, and log density of a held-out row, which is a Student-t."""
    exact = bnn.get_model("linear", prior_sd=float(width)).exact(x_all[part], y_all[part])
    variance = exact.rate / exact.shape
    # covariance is the posterior's, rate / (shape - 1) * V; a t's squared scale takes rate / shape instead
    spread = np.einsum("ij,jk,ik->i", x_test, exact.covariance.numpy() * (exact.shape - 1) / exact.shape, x_test)
    held_out = dist.StudentT(2 * exact.shape, torch.tensor(x_test) @ exact.mean, torch.tensor(variance + spread).sqrt())
    return exact.log_evidence, float(held_out.log_prob(y_test).mean())


learning = {}
for n in (15, 60, len(x_all)):
    parts = [np.random.default_rng([SEED, i]).permutation(len(x_all))[:n] for i in range(20 if n < len(x_all) else 1)]
    both = np.array([[exact_scores(width, part) for width in widths] for part in parts])  # (parts, widths, 2)
    evidence, lpd = both[..., 0], both[..., 1]
    chosen = evidence.argmax(1)
    learning[n] = lpd.mean(0)
    print(
        f"{n} rows: held-out nats a row at prior sd 0.01 {learning[n][0]:.3f}, at 10 {learning[n][-1]:.3f}, at the best of all "
        f"{learning[n].max():.3f}; chosen by evidence, {np.median(widths[chosen]):.2f}, "
        f"{lpd[np.arange(len(parts)), chosen].mean():.3f}"
    )

# %% [markdown]
# A narrow prior holds the weights down: for inputs in standard units it weighs like 1 / sd**2 rows in favour of no effect,
# 10,000 rows at 0.01, and no table of this size can outvote them. A wide one lets few rows say too much, and with many rows
# it no longer matters. The evidence, which saw no test row, chose widths that cost a few hundredths of a nat at most.
#
# A network's evidence has no closed form; `laplace` approximates it. Same voters, a network of ten units, and `map` beside it.

# %%
sds = (0.1, 0.3, 1.0, 3.0, 10.0)
quick = {"inference": "laplace", "draws": 200, "backend": "eager", "seed": SEED}
sweep = {}
for sd in sds:
    voters = bnn.get_model("mlp_categorical", hidden=(10,), activation="tanh", prior_sd=sd)
    fitted = voters.fit(data.train, **quick)
    single = voters.fit(data.train, inference="map", steps=700, draws=2, backend="eager", seed=SEED)
    (nll, error), (alone, _) = (p.score(data.test)["test_nll"] for p in (fitted, single))
    training = single.score(data.train)["test_nll"][0]
    sweep[sd] = (fitted.draws.info["log_evidence"], -nll, error, -alone, -training)
columns = ["log evidence", "laplace, held out", "± s.e.", "map, held out", "map, training"]
table = pd.DataFrame(sweep, index=columns).T.rename_axis("prior sd")
print("log evidence in nats; log probability of the right class in nats a row")
print(table.round(3).to_string())
best = table["log evidence"].idxmax()
print(f"chosen by evidence: prior sd {best:g}; by held-out voters it would be {table['laplace, held out'].idxmax():g}")

# %% [markdown]
# `tune_prior=True` climbs the evidence by itself, with a width for each site. Here on the smaller `logistic`.

# %%
by_hand = {
    sd: bnn.get_model("logistic", prior_sd=sd).fit(data.train, **quick).draws.info["log_evidence"]
    for sd in (0.3, 1.0, 3.0)
}
tuned = bnn.get_model("logistic").fit(data.train, tune_prior=True, **quick)
info = tuned.draws.info
print("logistic, log evidence by prior sd:", ", ".join(f"{k:g}: {v:.1f}" for k, v in by_hand.items()))
print(
    f"tuned: {info['log_evidence']:.1f}, with sd {info['prior_sd_factor_w']:.2f} of weights and "
    f"{info['prior_sd_factor_b']:.2f} of the intercept"
)

# %%
figure = Figure(figsize=(11, 7.6), layout="constrained")
(first, second), (third, fourth) = figure.subplots(2, 2)
looks = (("C0", "-"), ("C1", "--"), ("C2", ":"))
for sd, (color, style) in zip((0.3, 1.0, 3.0), looks, strict=True):
    for i, f in enumerate(functions((50,), sd, True, draws=6)):
        first.plot(grid, f, color=color, linestyle=style, linewidth=1.2, label=f"prior sd {sd:g}" if i == 0 else None)
first.set(xlabel="x", ylabel="f(x)", title="Functions drawn from the prior: 50 units, scaled")
first.set_ylim(-10, 10)
first.legend(fontsize="small", loc="upper left", ncols=3)
for (sd, values), (color, style) in zip(sure.items(), looks, strict=True):
    counts, edges = np.histogram(values, bins=np.linspace(0.5, 1, 26))
    second.stairs(counts / len(values), edges, color=color, linestyle=style, linewidth=1.6, label=f"prior sd {sd:g}")
second.set(
    xlabel="probability of the likelier class", ylabel="share of draws and voters", title="How sure before any data?"
)
second.legend(fontsize="small", loc="upper center")
for (n, values), (color, style) in zip(learning.items(), looks, strict=True):
    third.semilogx(widths, values, color=color, linestyle=style, linewidth=1.8, label=f"{n} rows")
third.set(xlabel="prior sd of weights (sd of noise)", ylabel="held-out log density\n(nats a row, y in standard units)")
third.set(title="linear on diabetes: more rows forgive a wide prior")
third.legend(fontsize="small", loc="lower left")
fourth.errorbar(
    sds, table["laplace, held out"], table["± s.e."], fmt="o-", color="C0", capsize=3, label="laplace ± 1 s.e."
)
fourth.plot(sds, table["map, held out"], "s--", color="C1", label="map")
fourth.plot(sds, table["map, training"], "v:", color="C2", label="map, training rows")
fourth.plot(sds, table["log evidence"] / len(data.train), "^-.", color="0.25", label="log evidence / rows")
fourth.set(xscale="log", xlabel="prior sd", ylabel="log probability (nats a row)", title="A network on voters")
fourth.legend(fontsize="small", loc="lower center")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/06_priors.png")
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")

# %% [markdown]
# ## What not to trust
#
# * A prior that is called weak because its sd is large. For classes it is a strong one, and in a network it is another one for
#   each width and depth unless weights are scaled.
# * A fit to the training rows. As the prior gets wider `map` gets ever surer of the voters that it has seen, and worse at the
#   others; averaging by `laplace` softens that, and does not undo it.
# * The evidence as a truth about the world. It is a score of model and prior together, and for a network an approximation
#   around one mode of many. Here it agreed with held-out voters on the best of five widths, whose neighbours are
#   within two standard errors of held-out density; that is one data set.
# * `tune_prior=True` as a promise about new rows. It climbs the evidence around one mode, with a width for each site; what is
#   gained there need not be gained on held-out rows. Score both.
# * Numbers of `map` at the widest priors: Adam has not arrived at a mode there after so few steps, and with more it gets worse.
