"""Tables of 80 columns from the rows that ``mcmc.py`` has written: for each problem, each sampler at its best chain count."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

from posteriors import PROBLEMS
from samplers import SAMPLERS

R_HAT = 1.01
FIGURES = (
    "min_ess_per_s", "median_ess_per_s", "min_ess_per_gradient", "gradients_per_s", "gradients", "max_r_hat", "test_lpd",
    "setup_s", "sampling_s", "total_s", "import_s", "divergences",
)  # fmt: skip
PEERS = ("numpyro_nuts", "numpyro_nuts_seq")  # what everything is compared with
Row = dict[str, Any]
SPEED = {
    "sampler": 16, "chains": 6, "min": 8, "median": 8, "grad/s": 8, "R-hat": 8, "lpd": 6, "setup": 7, "x vec": 7, "x seq": 6,
}  # fmt: skip
FIRST = {
    "sampler": 17, "chains": 6, "setup": 9, "sampling": 10, "total": 9, "import": 8, "R-hat": 8, "x vec": 6, "x seq": 6,
}  # fmt: skip


def render(rows: list[Row]) -> str:
    """All tables of the rows, settings apart."""
    parts, used = [], set()
    for mode in ("run", "first400"):
        for problem in PROBLEMS:
            some = [row for row in rows if row.get("mode") == mode and row["problem"] == problem]
            for settings in sorted({settings_of(row) for row in some}):
                same = [row for row in some if settings_of(row) == settings]
                parts.append("\n".join(speeds(problem, same) if mode == "run" else firsts(problem, same, rows)))
                used |= {row["sampler"] for row in same}
    if not parts:
        return "No rows. `python benchmarks/mcmc.py run` makes some."
    return "\n\n".join([*parts, footnotes(used)])


def settings_of(row: Row) -> tuple[int, int, int]:
    return row["threads"], row["warmup"], row["kept"]


def speeds(problem: str, rows: list[Row]) -> list[str]:
    """ESS a second of sampling, warmup included and compiling not."""
    threads, warmup, kept = settings_of(rows[0])
    best = {name: choose(rows, name) for name in SAMPLERS}
    extrapolate(best)
    seeds = len({row["seed"] for row in rows})
    lines = [
        str(PROBLEMS[problem]),
        f"{threads} threads, {warmup} warmup a chain, {kept} kept in all; "
        + (f"medians of {seeds} seeds" if seeds > 1 else "one seed"),
        " " * 23 + f"{'ESS a second':>16}",
        cells(SPEED, SPEED),
    ]
    for name, row in best.items():
        if row is None:
            lines += absent(rows, name)
            continue
        numbers = (short(row["min_ess_per_s"]), short(row["median_ess_per_s"]), short(row["gradients_per_s"]), r_hat(row),
                   fixed(row["test_lpd"], 2), fixed(row["setup_s"], 1))  # fmt: skip
        times = [ratio(row, best[peer], "min_ess_per_s") + doubt(row, best[peer]) for peer in PEERS]
        lines.append(cells(SPEED, (label(name), row["chains"], *numbers, *times)))
    return lines


def firsts(problem: str, rows: list[Row], all_rows: list[Row]) -> list[str]:
    """Seconds from the data to the first kept draws, compiling and warmup included; Pyro's from what ``run`` has timed."""
    threads, warmup, kept = settings_of(rows[0])
    best = {name: choose(rows, name, by="total_s", sign=-1) for name in SAMPLERS}
    needed = best["numpyro_nuts_seq"] or best["numpyro_nuts"]
    pyro = choose([r for r in all_rows if (r.get("problem"), r.get("threads")) == (problem, threads)], "pyro_nuts")
    if pyro and needed:
        sampling = needed["gradients"] / pyro["gradients_per_s"]
        same = {k: needed[k] for k in ("chains", "max_r_hat", "converged")}
        best["pyro_nuts"] = {**pyro, **same, "sampling_s": sampling, "total_s": pyro["setup_s"] + sampling}
    lines = [
        str(PROBLEMS[problem]),
        f"Seconds to the first {kept} kept draws; {threads} threads, {warmup} warmup a chain",
        cells(FIRST, FIRST),
    ]
    for name, row in best.items():
        if row is None:
            lines += absent(rows, name)
            continue
        numbers = [fixed(row[figure], 1) for figure in ("setup_s", "sampling_s", "total_s", "import_s")]
        times = [ratio(best[peer], row, "total_s") for peer in PEERS]
        lines.append(cells(FIRST, (label(name), row["chains"], *numbers, r_hat(row), *times)))
    return lines


def cells(widths: dict[str, int], values: Iterable[Any]) -> str:
    """The first value to the left of its column, the others to the right."""
    first, *others = (f"{value:>{width}}" for value, width in zip(values, widths.values()))
    return (first.strip().ljust(widths["sampler"]) + "".join(others)).rstrip()


def label(sampler: str) -> str:
    return f"{SAMPLERS[sampler].title} {SAMPLERS[sampler].mark}"


def choose(rows: list[Row], sampler: str, by: str = "min_ess_per_s", sign: int = 1) -> Row | None:
    """Medians over seeds at the chain count whose ``by`` is best: of those with R-hat below 1.01, else of all.

    Only those with the most seeds count. ``converged`` says whether R-hat is. None if the sampler has no figures.
    """
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row["sampler"] == sampler and "gradients" in row:
            groups[row["chains"]].append(row)
    medians = []
    most = max(map(len, groups.values()), default=0)
    for chains, group in groups.items():
        if len(group) < most:
            continue
        values = {name: middle([row.get(name) for row in group]) for name in FIGURES}
        medians.append({**values, "chains": chains, "converged": values["max_r_hat"] < R_HAT})
    good = [m for m in medians if m["converged"]] or medians
    return max(good, key=lambda m: -math.inf if math.isnan(m[by]) else sign * m[by], default=None)


def is_behind(rows: list[Row], chains: int, near: float) -> bool:
    """Whether ``chains`` has less than ``near`` of the best minimum ESS a second, or no figures, among rows of one sampler."""
    speeds = {row["chains"]: row["min_ess_per_s"] for row in rows if "min_ess_per_s" in row}
    good = [row["min_ess_per_s"] for row in rows if row.get("max_r_hat", math.inf) < R_HAT] or list(speeds.values())
    return bool(good) and speeds.get(chains, 0.0) < near * max(good)


def best_chains(rows: list[Row], problem: str, sampler: str, threads: int) -> int | None:
    """The chain count that ``run`` found best for a sampler; None without such rows."""
    some = [r for r in rows if (r.get("mode"), r.get("problem"), r.get("threads")) == ("run", problem, threads)]
    found = choose(some, sampler)
    return None if found is None else found["chains"]


def extrapolate(best: dict[str, Row | None]) -> None:
    """Gives Pyro's row the ESS per gradient of NumPyro's NUTS (the better of its two), at Pyro's gradients a second."""
    pyro = best["pyro_nuts"]
    peers = [row for name in PEERS if (row := best[name]) is not None]
    if pyro is None or not peers:
        return
    peer = max(peers, key=lambda row: (row["converged"], row["min_ess_per_gradient"]))
    per_second = peer["min_ess_per_gradient"] * pyro["gradients_per_s"]
    spread = peer["median_ess_per_s"] / peer["min_ess_per_s"]
    pyro |= {"min_ess_per_s": per_second, "median_ess_per_s": per_second * spread, "max_r_hat": peer["max_r_hat"],
             "converged": peer["converged"], "test_lpd": peer["test_lpd"]}  # fmt: skip


def absent(rows: list[Row], sampler: str) -> list[str]:
    """A line that says why a sampler has no figures; none if it wasn't asked for."""
    reasons = [row.get("missing") or row.get("error") for row in rows if row["sampler"] == sampler]
    return [f"{SAMPLERS[sampler].title:<17}  {reasons[-1]}"[:80]] if reasons else []


def footnotes(used: set[str]) -> str:
    lines = [f"*: R-hat of {R_HAT} or more at every chain count, so ESS and ratios are not to be relied on."]
    for name, sampler in SAMPLERS.items():
        if name in used and sampler.note:
            lines.append(f"{sampler.mark}{': ' if sampler.mark else ''}{sampler.title}: {sampler.note}.")
    lines.append("x vec, x seq: times the speed of NumPyro's NUTS, vectorised and one chain after another.")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="   "))


def middle(values: list[Any]) -> float:
    known = [float(v) for v in values if v is not None and not math.isnan(float(v))]
    return median(known) if known else math.nan


def ratio(upper: Row | None, lower: Row | None, name: str) -> str:
    if upper is None or lower is None or not lower[name]:
        return "-"
    value = upper[name] / lower[name]
    return short(value, least=2 if value >= 0.1 else 3)


def doubt(*rows: Row | None) -> str:
    """A star where one of the rows to compare has not converged; a blank, for straight columns, where one is missing."""
    return "*" if all(rows) and not all(row["converged"] for row in rows if row) else " "


def r_hat(row: Row) -> str:
    return "-" if math.isnan(row["max_r_hat"]) else f"{row['max_r_hat']:.3f}" + doubt(row)


def short(value: float, least: int = 3) -> str:
    """Three digits or more, without an exponent; at most ``least`` decimals."""
    places = next((places for places, size in enumerate((100, 10, 1)) if value >= size), least)
    return fixed(value, places)


def fixed(value: float, places: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"
