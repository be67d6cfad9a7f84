"""Two small tables from the rows that ``mcmc.py`` has written: a line for each problem, a column for each sampler."""

from __future__ import annotations

from collections import Counter
from typing import Any

from posteriors import PROBLEMS
from samplers import SAMPLERS
from table import R_HAT, Row, choose, extrapolate, fixed, settings_of, short

HEADS = {
    "ours_nuts": "NUTS", "ours_chees": "ChEES", "numpyro_nuts": "vec", "numpyro_nuts_seq": "seq", "numpyro_nuts_par": "par",
    "blackjax_nuts": "BlackJAX", "pyro_nuts": "Pyro e",
}  # fmt: skip
WIDTH = 10


def render(rows: list[Row]) -> str:
    parts = [
        table(rows, "run", "min_ess_per_s", 1, "Minimum ESS a second of sampling, warmup included"),
        table(rows, "first400", "total_s", -1, "Seconds to the first 400 kept draws, compiling and warmup included"),
    ]
    notes = [
        "NUTS and ChEES: this library. vec, seq, par: NumPyro's NUTS with all chains in",
        "one kernel, one chain after another, and a device for each. e: extrapolated.",
        f"*: R-hat of {R_HAT} or more at every chain count.",
    ]
    made = [part for part in parts if part]
    return "\n\n".join([*made, "\n".join(notes)]) if made else "No rows. `python benchmarks/mcmc.py run` makes some."


def table(rows: list[Row], mode: str, figure: str, sign: int, title: str) -> str:
    """Medians over seeds, each sampler at the chain count where it is best; ``*`` for an ESS of chains that disagree."""
    some = [row for row in rows if row.get("mode") == mode]
    if not some:
        return ""
    (settings, _), *_ = Counter(map(settings_of, some)).most_common()
    some = [row for row in some if settings_of(row) == settings]
    threads, warmup, kept = settings
    names = [name for name in HEADS if mode == "run" or SAMPLERS[name].mark != "e"]
    lines = [title, f"{threads} threads, {warmup} warmup a chain, {kept} kept in all; medians of seeds"]
    lines.append(f"{'':<{WIDTH}}" + "".join(f"{HEADS[name]:>{WIDTH}}" for name in names).rstrip())
    for problem in PROBLEMS:
        own = [row for row in some if row["problem"] == problem]
        if own:
            best = {name: choose(own, name, by=figure, sign=sign) for name in SAMPLERS}
            if mode == "run":
                extrapolate(best)
            lines.append(f"{problem:<{WIDTH}}" + "".join(f"{cell(best[name], figure):>{WIDTH}}" for name in names))
    return "\n".join(lines)


def cell(row: Row | None, figure: str) -> str:
    if row is None or figure not in row:
        return "-"
    value: Any = row[figure]
    if figure == "total_s":  # of draws too few for an R-hat near 1, whatever their chains do
        return fixed(value, 1)
    return short(value) + ("" if row["converged"] else "*")
