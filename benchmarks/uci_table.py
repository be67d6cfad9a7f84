"""Tables of 80 columns from the rows that ``uci.py`` has written, beside published scores."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
Candidates = dict[str, list[dict[str, float]]]
SCORES = {
    "test_lpd": ("Test log-likelihood per row, nats, original units of y; higher is better", 1),
    "test_rmse": ("Test RMSE, original units of y; lower is better", -1),
}
SOURCES = {
    "svi": "hjljhl/BNN, README: SVI in Pyro, mean field, 400 epochs",
    "ensemble": "Lakshminarayanan et al. 2017, arXiv:1612.01474, table 1: 5 networks, 40 epochs",
    "mc_dropout": "yaringal/DropoutUncertaintyExps, its files by split: rate and noise by grid, 4000 epochs",
}
SOURCES["dropout_30k"] = f"of mc_dropout, {SOURCES['mc_dropout']}"
SOURCES |= dict.fromkeys(("laplace_last", "laplace_kron"), f"of svi, {SOURCES['svi']}")
# Times that a fifth of the training rows is held out to choose among candidates; 0 where there is one only.
FOLDS = {"svi": 1, "ensemble": 5, "mc_dropout": 1, "dropout_30k": 1, "laplace_last": 0, "laplace_kron": 0}
ENOUGH = 2.0  # combined standard errors by which ours may be worse


@dataclass(frozen=True)
class Published:
    """A mean over splits, with the digits that the source prints; ``spread`` is of the ``kind`` that the source gives."""

    mean: str
    spread: str
    kind: str = "standard deviation"
    splits: int = 20

    @property
    def value(self) -> float:
        return float(self.mean)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.spread) / (1.0 if self.kind == "standard error" else math.sqrt(self.splits))

    @property
    def rounding(self) -> float:
        """Standard deviation of what rounding has cut off the mean: half of its last digit at most, evenly spread."""
        return 0.5 * 10.0 ** -len(self.mean.partition(".")[2]) / math.sqrt(3)


# All sources use one layer of 50 ReLU units and 20 splits of 90 to 10. The +- of the first two is the standard deviation over
# splits: svi's source says so; the ensembles' fits no standard error. Dropout's is the error of the mean of its files by split.
PUBLISHED: dict[tuple[str, str, str], Published] = {
    ("concrete", "svi", "test_lpd"): Published("-3.285", "0.184"),
    ("wine", "svi", "test_lpd"): Published("-0.970", "0.061"),
    ("kin8nm", "svi", "test_lpd"): Published("0.965", "0.070"),
    ("concrete", "ensemble", "test_lpd"): Published("-3.06", "0.18"),
    ("wine", "ensemble", "test_lpd"): Published("-0.94", "0.12"),
    ("kin8nm", "ensemble", "test_lpd"): Published("1.20", "0.02"),
    ("concrete", "svi", "test_rmse"): Published("5.811", "0.536"),
    ("wine", "svi", "test_rmse"): Published("0.637", "0.035"),
    ("kin8nm", "svi", "test_rmse"): Published("0.086", "0.003"),
    ("concrete", "ensemble", "test_rmse"): Published("6.03", "0.58"),
    ("wine", "ensemble", "test_rmse"): Published("0.64", "0.04"),
    ("kin8nm", "ensemble", "test_rmse"): Published("0.09", "0.00"),
    ("concrete", "mc_dropout", "test_lpd"): Published("-2.937", "0.025", "standard error"),
    ("wine", "mc_dropout", "test_lpd"): Published("-0.928", "0.013", "standard error"),
    ("kin8nm", "mc_dropout", "test_lpd"): Published("1.136", "0.007", "standard error"),
    ("concrete", "mc_dropout", "test_rmse"): Published("4.826", "0.161", "standard error"),
    ("wine", "mc_dropout", "test_rmse"): Published("0.622", "0.008", "standard error"),
    ("kin8nm", "mc_dropout", "test_rmse"): Published("0.0789", "0.0006", "standard error"),
}
# Nobody has published Laplace on these splits: it stands beside mean-field SVI.
BESIDE = {"dropout_30k": "mc_dropout", "laplace_last": "svi", "laplace_kron": "svi"}
PUBLISHED |= {
    (name, method, score): found
    for method, beside in BESIDE.items()
    for (name, other, score), found in PUBLISHED.items()
    if other == beside
}


def key(row: Row) -> tuple[str, str, int]:
    return row["set"], row["method"], row["split"]


def scored(rows: list[Row], candidates: Candidates) -> list[Row]:
    """Rows with scores that were chosen among these candidates, one (the last) for each set, method and split."""
    good = [
        row
        for row in rows
        if "test_lpd" in row
        and row["candidates"] == candidates.get(row["method"])
        and row["folds"] == FOLDS[row["method"]]
    ]
    return list({key(row): row for row in good}.values())


def render(rows: list[Row], candidates: Candidates) -> str:
    """Both tables, how often each candidate was chosen, and what the columns mean."""
    used = scored(rows, candidates)
    if not used:
        return "No rows. `python benchmarks/uci.py run` makes some."
    groups: dict[tuple[str, str], list[Row]] = {}
    for name, method in dict.fromkeys((name, method) for name, method, _ in PUBLISHED):
        if some := [row for row in used if (row["set"], row["method"]) == (name, method)]:
            groups[name, method] = some
    parts = ["\n".join(score_lines(score, groups)) for score in SCORES]
    parts += ["\n".join(choice_lines(groups, candidates)), notes(rows, groups)]
    return "\n\n".join(parts)


def score_lines(score: str, groups: dict[tuple[str, str], list[Row]]) -> list[str]:
    title, sign = SCORES[score]
    lines = [title, f"{'set':<9}{'method':<13}{'splits':>6}{'ours':>16}{'published':>16}{'gap':>7}  not worse"]
    for (name, method), rows in groups.items():
        values = [row[score] for row in rows]
        published = PUBLISHED[name, method, score]
        mean, error = mean_and_error(values)
        far = gap(mean, error, published, sign)
        places = max(3, len(published.mean.partition(".")[2]))
        ours = f"{mean:.{places}f} ± {'-' if math.isnan(error) else f'{error:.{places}f}'}"
        theirs = f"{published.mean} ± {published.error:.{places}f}"
        answer = "-" if math.isnan(far) else "yes" if far >= -ENOUGH else "NO"
        star = "" if len(rows) == published.splits else "*"
        shown = "-" if math.isnan(far) else f"{far:+.1f}"
        lines.append(f"{name:<9}{method:<13}{len(rows):>6}{ours:>16}{theirs:>16}{shown:>7}  {answer}{star}")
    return lines


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean over splits and its standard error, which one split does not have (nan)."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def gap(mean: float, error: float, published: Published, sign: int) -> float:
    """Ours less the published mean in combined standard errors, above 0 where ours is better; nan without an error."""
    return sign * (mean - published.value) / math.hypot(error, published.error, published.rounding)


def choice_lines(groups: dict[tuple[str, str], list[Row]], candidates: Candidates) -> list[str]:
    """How often each candidate was chosen inside the training part, seconds a split, and how the last fits were judged."""
    lines = [
        "Splits that chose each candidate on held-out training rows, and what was spent",
        f"{'set':<9}{'method':<13}{'1st 2nd 3rd':>13}{'seconds a split':>18}{'last fit not converged':>25}",
    ]
    for (name, method), rows in groups.items():
        chosen = "".join(f"{sum(r['chosen'] == i for r in rows):>4}" for i in range(len(candidates[method])))
        seconds, doubted = np.median([r["seconds"] for r in rows]), sum(r["verdict"] == "not converged" for r in rows)
        lines.append(f"{name:<9}{method:<13}{chosen:<13}{seconds:>18.0f}{f'{doubted} of {len(rows)}':>25}")
    for method in dict.fromkeys(method for _, method in groups):
        shown = "; ".join(", ".join(f"{k} {v:g}" for k, v in c.items()) for c in candidates[method])
        lines += textwrap.wrap(f"{method}: {shown}.", 80, subsequent_indent="   ")
    return lines


def spread_of(method: str) -> str:
    (kind,) = {found.kind for (_, name, _), found in PUBLISHED.items() if name == method}
    return f"{kind}." if kind == "standard error" else f"{kind}, here / sqrt(20)."


def notes(rows: list[Row], groups: dict[tuple[str, str], list[Row]]) -> str:
    """What to know before the tables are believed."""
    used = [row for some in groups.values() for row in some]
    fits = {(row["set"], row["method"], row["split"]) for row in used}
    others = [row for row in rows if "method" in row and key(row) not in fits]
    failed = sum("error" in row for row in others)
    lines = [
        "±: standard error of the mean over splits.",
        "gap: ours less published in combined standard errors (the published mean's rounding is one of them), + where ours is "
        f"better. not worse: whether the gap is above -{ENOUGH:g}.",
        *(f"published, {m}: {SOURCES[m]}; ± there is the {spread_of(m)}" for m in
          dict.fromkeys(method for _, method in groups)),
    ]  # fmt: skip
    if any(len(some) != PUBLISHED[name, method, "test_lpd"].splits for (name, method), some in groups.items()):
        lines.append(
            "*: not all of the 20 splits are there, so both means are of other rows and the answer is provisional."
        )
    if failed:
        lines.append(f"{failed} rows are errors and not counted; `python benchmarks/uci.py run` tries them again.")
    if len(others) > failed:
        lines.append(
            f"{len(others) - failed} rows chose among other candidates, or by other rows, and are not counted."
        )
    versions = sorted({" ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in used})
    lines += [f"fitted by {found}; {', '.join(sorted({row['machine'] for row in used}))}." for found in versions]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="   "))
