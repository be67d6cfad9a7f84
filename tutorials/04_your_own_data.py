# %% [markdown]
# # 4. Your own data: what happens to text, gaps and new categories?
#
# Real tables are untidy. This one says what 11 US firms invested in each of 20 years (Grunfeld 1958), in millions of dollars,
# from their market value and the worth of their plant. Firms are text; here one market value was never written down, and one
# column is the same in all rows. What becomes of each, and what does the fitted model say of new rows?
#
# Run it whole (`python tutorials/04_your_own_data.py [PICTURE.png]`, under a minute) or cell by cell.

# %%
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import bnn_pyro as bnn

# %% [markdown]
# First the file. The table is real; the gap and the constant column are made, as they are in most people's tables.

# %%
known = bnn.load_dataset("grunfeld")
table = pd.concat([pd.concat([part.x, part.y], axis=1) for part in (known.train, known.test)]).sort_index()
table["currency"] = "USD"
table.loc[table.index[7], "value"] = np.nan
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "firms.csv"
table.to_csv(path, index=False)
print("\n".join(path.read_text().splitlines()[:4]))

# %% [markdown]
# `load_table` reads it and sets a fifth of the rows aside. Nothing is filled in or dropped without being asked for.

# %%
try:
    data = bnn.load_table(path, target="invest")
except bnn.DataError as error:
    print(f"refused: {error}")
data = bnn.load_table(path, target="invest", missing="impute")
print(f"{len(data.train)} rows to learn from, {len(data.test)} held out")

# %% [markdown]
# The model is `mlp_hetero` without a hidden layer: one line for the mean, another for the log of the noise, since large firms'
# investments vary by more. `hidden=(16,)` would make it a network; on so few rows its ELBO needs more steps to settle than
# this page has minutes, and `diagnose` says so.
#
# With `missing="impute"` a gap becomes the median, and a column of 0 and 1 says where that happened, so that the model can
# treat such rows differently. A category becomes one such column for each of its values. The constant column is named and
# left out.

# %%
model = bnn.get_model("mlp_hetero", hidden=())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    posterior = model.fit(data.train, inference="svi", steps=3000, lr=0.03, missing="impute", seed=0)
for warning in caught:
    print(f"warning: {warning.message}")
print("columns the model sees:", ", ".join(posterior.data.columns))
print(posterior.diagnose())

# %% [markdown]
# Are its intervals worth anything on held-out rows? Compare with one line and one noise for all firms. `test_lpd` (log
# predictive density, nats a row, higher is better) judges mean and spread together, `test_rmse` the mean alone.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the constant column again
    line = bnn.get_model("linear").fit(data.train, inference="svi", missing="impute", steps=1000, seed=0)
for name, fitted in (("noise by row", posterior), ("one noise", line)):
    scores = fitted.score(data.test)
    print(f"{name}:", ", ".join(f"{k} {v:.3f} ± {e:.3f}" for k, (v, e) in scores.items()))

# %% [markdown]
# New rows come as a table with the same columns, without the target; a gap is filled in as in training, in a column that had
# one. (On the command line: `bnn-pyro predict RUN --data new.csv --out pred.csv`.)

# %%
new = pd.DataFrame(
    {
        "value": [4000.0, np.nan, 4000.0],
        "capital": [400.0, 400.0, 3000.0],
        "firm": "General Motors",
        "year": [1945.0, 1945.0, 1945.0],
        "currency": "USD",
    }
)[list(data.train.x.columns)]
prediction = posterior.predict(new)
lower, upper = prediction.interval(0.9)
cases = ("value known", "value missing", "capital far from all rows")
for i, case in enumerate(cases):
    print(
        f"{case}: invests {prediction.mean[i]:.0f}, 90 % from {lower[i]:.0f} to {upper[i]:.0f}; epistemic sd "
        f"{np.sqrt(prediction.epistemic[i]):.0f}, aleatoric sd {np.sqrt(prediction.aleatoric[i]):.0f} million dollars"
    )

# %% [markdown]
# A firm that was never seen has no column. That is refused rather than guessed: the model knows eleven firms, and nothing of
# firms in general. So is a gap in a column that had none to learn from.

# %%
for column, value in (("firm", "Ford"), ("capital", np.nan)):
    try:
        posterior.predict(new.assign(**{column: value}))
    except bnn.DataError as error:
        print(f"refused: {error}")

# %% [markdown]
# In scikit-learn the same fit is an estimator. Text columns and scaling are handled inside, so a pipeline needs neither an
# encoder nor a scaler; a step that makes a column goes in front. The row with the gap stays out here: where it falls into the
# held-out fold, no training row had a gap, and the estimator refuses to predict it.

# %%
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer


def add_root(frame):
    return frame.drop(columns="currency").assign(root_of_capital=frame["capital"] ** 0.5)


complete = data.train.x["value"].notna()
regressor = bnn.BNNRegressor("linear", options={"steps": 600}, random_state=0)
pipeline = make_pipeline(FunctionTransformer(add_root), regressor)
r2 = cross_val_score(
    pipeline, data.train.x[complete], data.train.y[complete], cv=KFold(3, shuffle=True, random_state=0)
)
print("R2 of a line with a root of capital, three folds:", ", ".join(f"{v:.2f}" for v in r2))

# %%
figure = Figure(figsize=(10, 4.2), layout="constrained")
firms = (("General Motors", 2500, "upper left"), ("Union Oil", 500, "lower right"))
for axis, (firm, end, place) in zip(figure.subplots(1, 2), firms, strict=True):
    own = data.train.x["firm"] == firm
    capital = np.linspace(0, end, 101)
    value = data.train.x["value"][own].median()
    p = posterior.predict(new.iloc[[0] * len(capital)].assign(firm=firm, capital=capital, value=value))
    lower, upper = p.interval(0.9)
    sd = np.sqrt(p.epistemic)
    axis.fill_between(capital, lower, upper, color="0.88", label="90 % interval of a year's investment")
    axis.fill_between(
        capital, p.mean - 2 * sd, p.mean + 2 * sd, color="C0", alpha=0.35, label="mean line ± 2 epistemic sd"
    )
    axis.plot(capital, p.mean, color="C0", label=f"mean line in 1945, market value {value:.0f}")
    axis.plot(data.train.x["capital"][own], data.train.y[own], ".", color="0.25", label="a year, at its market value")
    axis.set(title=firm, xlabel="worth of the plant (million dollars)", xlim=(0, end))
    axis.set_ylabel("investment (million dollars a year)")
    axis.legend(loc=place, fontsize="small")
figure.suptitle("Two firms, one model: how much a year can differ from the line, and how far the line could be wrong")
picture = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/04_your_own_data.png")
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=110)
print(f"picture: {picture}")
folder.cleanup()

# %% [markdown]
# ## What not to trust
#
# * Rows held out at random. Years of one firm look alike, so the model is asked about years that lie between years it has
#   seen. For next year, or another firm, hold those out before you believe the scores.
# * A filled-in median. It is one value, not a distribution: no spread is added for not knowing it. General Motors without its
#   market value is given that of a middling firm, and that firm's small noise: less was known, and the interval is narrower.
# * Intervals far from all rows: the line of the log noise goes on for ever, and the noise with it grows beyond all sense. The
#   epistemic part hardly grows, though nobody has been there; the guide is a mean-field one, and k-hat says how far off it is.
# * The better log density as a better mean: with noise by row, rows of large firms count for less, and their errors are what
#   the RMSE consists of.
