"""Pages about finished runs, as text of 80 columns: the summary of one, a comparison of several."""

from __future__ import annotations

import json
import math
import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from bnn_pyro import options
from bnn_pyro.runner import Finished

WIDTH = 80
COLUMNS = (17, 9, 8, 10, 10, 9, 9, 7)
SCORES = {
    "test_rmse": ("test RMSE", "lower is better; ± one standard error"),
    "test_lpd": ("log predictive density", "nats a row; higher is better"),
    "test_coverage_50": ("inside 50 % interval", "share of rows; should be near 0.5"),
    "test_coverage_90": ("inside 90 % interval", "share of rows; should be near 0.9"),
    "test_coverage_95": ("inside 95 % interval", "share of rows; should be near 0.95"),
    "test_epistemic_sd": ("epistemic sd, mean", "of the weights: more data removes it"),
    "test_aleatoric_sd": ("aleatoric sd, mean", "of the noise: more data leaves it"),
    "test_accuracy": ("accuracy", "share of rows; ± one standard error"),
    "test_nll": ("negative log prob.", "nats a row; lower is better"),
    "test_brier": ("Brier score", "0 to 2; lower is better"),
    "test_ece": ("calibration error", "ECE, 15 bins; lower is better"),
    "test_epistemic_nats": ("epistemic nats, mean", "of the weights: more data removes it"),
    "test_aleatoric_nats": ("aleatoric nats, mean", "of the labels: more data leaves it"),
}


def summary_page(run: Finished, warnings: bool = True) -> str:
    """What ``bnn-pyro summary`` prints: what was fitted (with its warnings, or not), function space, scores, verdict, files."""
    parts = [_head(run, warnings), _function_space(run), _scalars(run), _scores(run), _verdict(run), _files(run)]
    return "\n\n".join(part for part in parts if part)


def summary_json(run: Finished) -> dict[str, Any]:
    """``run.toml`` with the ArviZ tables of function space and of the scalar sites, by row."""
    tables = {"function_space": run.posterior.summary(), "posterior": _scalar_table(run)}
    rows = {
        group: {str(name): {k: _finite(v) for k, v in row.items()} for name, row in table.iterrows()}
        for group, table in tables.items()
        if table is not None
    }
    return {**run.content, "directory": str(run.path), "pictures": pictures(run), "summary": rows}


def comparison_page(runs: Sequence[Finished], names: Sequence[str] | None = None) -> str:
    """One column a run (three beside each other, others below): scores, spread, cost, verdict."""
    heads = list(names) if names is not None else [run.content["inference"]["name"] for run in runs]
    blocks = [_side_by_side(runs[i : i + 3], heads[i : i + 3], all_runs=runs) for i in range(0, len(runs), 3)]
    return "\n\n".join(blocks)


def _side_by_side(runs: Sequence[Finished], heads: Sequence[str], all_runs: Sequence[Finished]) -> str:
    width = (WIDTH - 26) // len(runs) if len(runs) > 2 else 20
    table = [["", *(head if len(head) < width else "…" + head[2 - width :] for head in heads)]]
    for key, (label, _) in SCORES.items():
        if any(key in run.content.get("scores", {}) for run in all_runs):
            cells = [run.content.get("scores", {}).get(key) for run in runs]
            table.append([label, *(plus_minus(cell) if cell else "-" for cell in cells)])
    infos = [run.content["fit"]["info"] for run in runs]
    table.append(["gradients", *(str(info.get("gradient_evaluations", "-")) for info in infos)])
    table.append(["seconds", *(f"{info['wall_time']:.1f}" for info in infos)])
    table.append(["verdict", *(run.content["verdict"]["verdict"] for run in runs)])
    return aligned(table, [26, *[width] * len(runs)])


def pictures(run: Finished) -> list[str]:
    """Names of the pictures in a run directory, in the order in which they are worth looking at."""
    names = ("predictions.png", "calibration.png", "ppc.png", "trace.png", "elbo.png")
    return [name for name in names if (run.path / name).is_file()]


def fit_command(content: dict[str, Any], changes: dict[str, Any] | None = None, attrs: dict | None = None) -> str:
    """The command that makes this run again, with other settings where ``changes`` says so."""
    from bnn_pyro.inference import METHODS
    from bnn_pyro.registry import model_class

    name, method, fit = content["model"]["name"], content["inference"]["name"], content["fit"]
    about = content.get("dataset", {})
    words = ["bnn-pyro", "fit", name, "--data", about.get("name", "DATA"), *about.get("arguments", ())]
    words += ["--inference", method]
    sets: dict[str, Any] = {}
    for kind, given in (
        (model_class(name), content["model"]["hyperparameters"]),
        (METHODS[method], content["inference"]["settings"]),
    ):
        usual = options.defaults(kind)
        sets |= {k: v for k, v in given.items() if options.as_text(v) != options.as_text(usual.get(k))}
    if "classes" in sets and sets["classes"] == len(content["data"].get("classes", ())):
        del sets["classes"]  # the labels say so
    for key, value in (sets | (changes or {})).items():
        words += ["--set", f"{key}={options.as_text(value)}"]
    words += ["--seed", str(fit["seed"])] if fit["seed"] else []
    words += ["--dtype", fit["dtype"]] if fit["dtype"] != METHODS[method].dtype else []
    words += ["--no-standardize"] if attrs is not None and not attrs.get("standardize_x", True) else []
    return shlex.join(words)


def command_lines(command: str, indent: int = 2) -> str:
    """A command on lines of at most 80 columns, each but the last ending in a backslash, so that it can be pasted."""
    lines, line = [], ""
    for word in re.split(r" (?=--)", command):
        if line and len(line) + len(word) + 1 + indent > WIDTH - 2:
            lines.append(line + " \\")
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join(" " * indent + one for one in [*lines, line])


def wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    """Text in lines of at most 80 columns, the first after ``first``, the others after ``rest`` or as many blanks."""
    rest = " " * len(first) if rest is None else rest
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _head(run: Finished, warnings: bool) -> str:
    content, draws = run.content, run.posterior.draws
    about, fit = content.get("dataset", {}), content["fit"]
    info, data = fit["info"], content["data"]
    settings = content["inference"]["settings"]
    held_out = f", {about['test_rows']} held out" if "test_rows" in about else ""
    columns = f"; {len(data['columns'])} column{'s' if len(data['columns']) > 1 else ''}" if data["columns"] else ""
    if len(data.get("encoding", ())) not in (0, len(data["columns"])):
        columns += f" made of {len(data['encoding'])}"
    target = f"; target {data['target']}" if data["target"] else ""
    what = [f"{info['gradient_evaluations']} gradients"] if "gradient_evaluations" in info else []
    what += [f"{info['wall_time']:.1f} s", f"{fit['dtype']} on {fit['device']}", f"seed {fit['seed']}"]
    what += [f"backend {info['backend']}"] if "backend" in info else []
    what += [f"guide {info['guide']}"] if "guide" in info else []
    lines = [
        title(f"{content['model']['name']} on {about.get('name', 'data')} by {content['inference']['name']}"),
        wrapped(
            f"{draws.z.shape[-1]} latent numbers; {_assignments(content['model']['hyperparameters'])}", "  model      "
        ),
        wrapped(f"{data['rows']} training rows{held_out}{columns}{target}", "  data       "),
        wrapped(_assignments(settings), "  inference  "),
        wrapped(", ".join(what), "  cost       "),
    ]
    notes = fit["warnings"] if warnings else ()
    return "\n".join(lines + [wrapped(note, "  warning    ") for note in notes])


def _function_space(run: Finished) -> str:
    table = run.posterior.summary()
    at_rows = [name for name in table.index if re.fullmatch(r"f\[.*\]", name)]
    others = [name for name in table.index if name not in at_rows]
    shown, note = [], ""
    if at_rows:
        f = table.loc[at_rows]
        if run.posterior.method.exact and f["r_hat"].notna().any():
            shown = [f["r_hat"].idxmax()]
            note = f"{shown[0]} is {_what_f_is(run)}: of {len(f)} watched, the largest R-hat. "
        else:
            shown = list(dict.fromkeys([f["mean"].idxmin(), f["mean"].idxmax()]))
            note = f"f is {_what_f_is(run)}: of {len(f)} watched, the smallest and the largest. "
    target = run.content["data"]["target"] or "y"
    if "noise_scale" in others:
        note += f"f and noise_scale are in units of {target}; "
    likelihood = "nats" if run.posterior.data.classes is not None else "nats, y in its own units"
    note += f"log_likelihood in {likelihood}; log_prior and norms {_units(run)}."
    columns = aligned(_rows(run, table.loc[[*shown, *others]]), COLUMNS)
    return f"{title('Function space')}\n{columns}\n{wrapped(note, '  ')}"


def _what_f_is(run: Finished) -> str:
    classes = run.posterior.data.classes
    if classes is None:
        return "the network's mean at a training row"
    if len(classes) == 2:
        return f"the probability of {classes[1]} at a training row"
    return "the probability of a class, f[row, class], at a training row"


def _scalars(run: Finished) -> str:
    table = _scalar_table(run)
    if table is None:
        return ""
    return f"{title(f'Scalar sites of the posterior, {_units(run)}')}\n{aligned(_rows(run, table), COLUMNS)}"


def _units(run: Finished) -> str:
    units = run.posterior.units
    return "in standard units" if units.y is not None or units.x else "in the program's own units"


def _scalar_table(run: Finished) -> Any:
    from bnn_pyro import results

    found = results.dataset(run.posterior.idata, "posterior")
    names = [str(name) for name, array in found.data_vars.items() if set(array.dims) == {"chain", "draw"}]
    return run.posterior.summary("posterior", var_names=names) if names else None


def _rows(run: Finished, table: Any) -> list[list[str]]:
    """Mean, sd and ArviZ's interval; ESS and R-hat too where draws come from chains; the mean alone for a point."""
    kept = ["mean"]
    if run.content["inference"]["name"] != "map":
        kept += ["sd", *(c for c in table.columns if c.startswith(("hdi", "eti")))]
    if run.posterior.method.exact:
        kept += ["ess_bulk", "ess_tail", "r_hat"]
    rows = [["", *kept]]
    for name, row in table.iterrows():
        label = str(name) if len(str(name)) <= 15 else str(name)[:14] + "…"
        still = row["sd"] == 0  # ArviZ counts every draw of a constant
        rows.append([label, *("-" if still and c.startswith("ess") else _cell(c, row[c]) for c in kept)])
    return rows


def _cell(column: str, value: float) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    if column.startswith("ess"):
        return f"{value:.0f}"
    return f"{value:.3f}" if column == "r_hat" else number(value)


def _scores(run: Finished) -> str:
    scores = run.content.get("scores", {})
    if not scores or "dataset" not in run.content:  # a run saved from Python may have neither, or scores of its own
        return ""
    target = run.content["data"]["target"] or "y"
    about = run.content["dataset"]
    units = "" if "test_accuracy" in scores else ", in original units"
    head = title(f"Held-out part of {about['name']} ({about['test_rows']} rows; target {target}{units})")
    return f"{head}\n{score_lines(scores)}"


def score_lines(scores: dict[str, Any]) -> str:
    """A line for each score that has a name here, with what it means."""
    lines = []
    for key, (label, hint) in SCORES.items():
        if key in scores:
            absent = key in ("test_epistemic_sd", "test_epistemic_nats") and scores[key]["value"] < 1e-12
            said = "a single point has none" if absent else hint
            value = {"value": 0.0} if absent else scores[key]  # rounding leaves 1e-15
            lines.append(f"  {label:<23}{plus_minus(value):>14}  {said}")
    return "\n".join(lines)


def _verdict(run: Finished) -> str:
    verdict = run.content["verdict"]
    lines = [title(f"Verdict: {verdict['verdict']}")]
    lines += [wrapped(reason, "  - ") for reason in verdict["reasons"]]
    changes: dict[str, Any] = {}
    for remedy in verdict["remedies"]:
        lines.append(wrapped(remedy, "  remedy: "))
        for key, value in re.findall(r"\b([a-z_]+)=(\d[\d.]*\d|\d)", remedy):
            changes[key] = max(changes.get(key, 0), float(value) if "." in value else int(value))
    changes = {key: value for key, value in changes.items() if key in run.content["inference"]["settings"]}
    if changes and run.content["model"]["zoo"] and "dataset" in run.content:
        command = fit_command(run.content, changes, dict(run.posterior.idata.attrs))
        command += f" --out {shlex.quote(str(run.path))} --overwrite"
        lines += ["  as a command:", command_lines(command, indent=4)]
    return "\n".join(lines)


def _files(run: Finished) -> str:
    lines = [title("Files"), f"  run directory  {run.path}"]
    if found := pictures(run):
        lines.append(f"  pictures       {', '.join(found)}")
    return "\n".join(lines)


def title(text: str) -> str:
    return f"{text}\n{'-' * min(len(text), WIDTH)}"


def aligned(table: Iterable[Sequence[str]], widths: Sequence[int]) -> str:
    lines = []
    for first, *others in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:])]
        lines.append(f"  {first:<{widths[0] - 2}}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def _assignments(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={options.as_text(v)}" for k, v in settings.items()) or "no settings"


def plus_minus(score: dict[str, float]) -> str:
    value = number(score["value"])
    if not math.isfinite(score.get("stderr", math.nan)):  # of a single row
        return value
    digits = len(value.partition(".")[2]) if "e" not in value else 3
    return f"{value} ± {score['stderr']:.{digits}f}"


def number(value: float) -> str:
    size = abs(value)
    if size != 0 and (size < 5e-4 or size >= 1e7):
        return f"{value:.1e}"
    return f"{value:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}"


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def as_json(value: Any) -> str:
    """JSON that any parser reads: numbers that are not finite become null."""
    return json.dumps(_strict(value), indent=2, ensure_ascii=True)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return _finite(value)
