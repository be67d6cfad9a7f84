"""``bnn-pyro methods MODEL...``: every method on the same rows by the flag alone, what it costs, and how far it is from NUTS.

Each fit is a ``bnn-pyro fit`` in a process of its own, which alone can say how much memory it took, and a run directory like
any other; the numbers are those of the posterior that is read back from it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_pyro import options, results
from bnn_pyro.errors import BNNError, unknown
from bnn_pyro.inference import METHODS
from bnn_pyro.registry import check_model_name, model_class
from bnn_pyro.runner import Finished, Plan, held_out, plan, read
from bnn_pyro.tables import aligned, plus_minus, title, wrapped

REFERENCE = "nuts"
ORDER = ("prior", "map", "mc_dropout", "ensemble", "svi", "laplace", "hmc", "chees", REFERENCE)
# Small networks on small sets, so that the reference converges.
SMALL = {"mlp_gaussian": ("hidden=5", "activation=tanh"), "mlp_hetero": ("hidden=5", "activation=tanh"),
         "mlp_categorical": ("hidden=5", "activation=tanh")}  # fmt: skip
DATA = {"mlp_categorical": "wine"}
GROUPS = {"posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "prior_predictive",
          "observed_data", "constant_data", "function_space"}  # fmt: skip
COLUMNS = (14, 15, 13, 7, 7, 10, 7, 7)


def carry_out(
    models: Sequence[str],
    inference: Sequence[str] = (),
    sets: Sequence[str] = (),
    out: str = "runs/methods",
    seed: int = 0,
    backend: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Fits each model by each method; an entry for each model and method. Runs that ``out`` has already are not fitted again.

    Args:
        inference: Names of methods; none means all.
        sets: Settings of the models, or of those methods that have them; none means small networks.
    Raises: BNNError for names and settings that are wrong, before the first fit.
    """
    for name in inference:
        if name not in METHODS:
            raise unknown("inference", name, METHODS)
    for name in models:
        check_model_name(name)
    wanted = [name for name in ORDER if not inference or name in inference]
    settings = {"seed": seed, "backend": backend}
    jobs = [_job(m, name, wanted, sets or SMALL.get(m, ()), out, settings) for m in models for name in wanted]
    entries = []
    for i, job in enumerate(jobs, 1):
        model, name = job.plan.model.name, job.plan.method.name
        say(f"[{i}/{len(jobs)}] {model} by {name}")
        try:
            entries.append(_entry(_run(job)))
        except BNNError as error:  # one that fails is a line of the table, and the others go on
            entries.append({"model": model, "inference": name, "error": str(error)})
    for model in models:
        _compare([entry for entry in entries if entry["model"] == model])
    for entry in entries:
        entry.pop("prediction", None)
    return entries


@dataclass(frozen=True)
class _Job:
    """A checked plan, and the ``--set`` pieces that it was made of."""

    plan: Plan
    sets: list[str]


def _job(model: str, method: str, methods: Sequence[str], sets: Sequence[str], out: str, settings: Any) -> _Job:
    own = options.of_method(sets, model_class(model), METHODS[method], [METHODS[name] for name in methods])
    return _Job(plan(model, DATA.get(model), method, own, f"{out}/{model}-{method}", overwrite=True, **settings), own)


def _run(job: _Job) -> Finished:
    """The run as it stands, if it is one of these settings, or a new one. Raises: BNNError."""
    asked = job.plan
    try:
        found = read(str(asked.out))
        if _same(asked, found.content):
            return found
    except BNNError:
        pass
    words = ["fit", asked.model.name, "--data", asked.source["name"], "--inference", asked.method.name]
    for text in job.sets:
        words += ["--set", text]
    for key, value in asked.settings.items():
        words += [f"--{key}", str(value)]
    words += ["--out", str(asked.out), "--overwrite", "--no-progress", "--no-pictures"]
    code = "from bnn_pyro.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: finished, not converged
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BNNError(lines[-1].removeprefix("bnn-pyro: "))
    return read(str(asked.out))


def _same(asked: Plan, content: dict[str, Any]) -> bool:
    given = {key: getattr(asked.model, key) for key in options.field_types(type(asked.model))}
    found = content["model"]["hyperparameters"]
    return bool(
        all(
            options.as_text(found.get(key)) == options.as_text(value)
            for key, value in given.items()
            if key != "classes"
        )
        and content["inference"]["settings"] == {k: v for k, v in asked.method.settings().items() if v is not None}
        and content["fit"]["seed"] == asked.settings["seed"]
        and content.get("process", {}).get("backend") == asked.settings["backend"]
    )


def _entry(run: Finished) -> dict[str, Any]:
    """What the posterior, as read back from its files, says and cost. Raises: BNNError where that is not what was saved."""
    content, info = run.content, run.content["fit"]["info"]
    name, test = content["inference"]["name"], _test_rows(run)
    prediction, scores = held_out(run.posterior, test)
    lacking = sorted(GROUPS - set(results.group_names(run.posterior.idata)))
    if lacking:
        raise BNNError(f"{run.path}: expected all ArviZ groups, got none named {', '.join(lacking)}.")
    for score, saved in content["scores"].items():
        if not np.isclose(scores[score]["value"], saved["value"], rtol=1e-5, atol=1e-9):
            raise BNNError(f"{run.path}, {score}: expected {saved['value']} again, got {scores[score]['value']}.")
    return {
        "model": content["model"]["name"],
        "data": content["dataset"]["name"],
        "latent": run.posterior.draws.z.shape[-1],
        "rows": content["data"]["rows"],
        "held_out": len(test),
        "inference": name,
        "directory": str(run.path),
        "scores": scores,
        "verdict": content["verdict"]["verdict"],
        "reasons": content["verdict"]["reasons"],
        "gradients": info.get("gradient_evaluations", 0),
        "seconds": info["wall_time"],
        "peak_mb": content["process"]["peak_mb"],
        "groups": len(results.group_names(run.posterior.idata)),
        "prediction": prediction,
    }


def _test_rows(run: Finished) -> Any:
    from bnn_pyro.sources import open_data

    return open_data(run.content["dataset"]["name"], run.posterior.model.card.task, run.content["model"]["name"])[
        0
    ].test


def _compare(entries: list[dict[str, Any]]) -> None:
    """Adds how far each function is from the reference's: ``spread``, the median over held-out rows of the ratio of epistemic
    standard deviations, and ``away``, the median distance of their means in standard deviations of the reference."""
    for reference in entries:
        if reference["inference"] == REFERENCE and "prediction" in reference:
            mean, sd = _function(reference["prediction"])
            for entry in entries:
                if "prediction" in entry:
                    other_mean, other_sd = _function(entry["prediction"])
                    entry["spread"] = float(np.median(other_sd / sd))
                    entry["away"] = float(np.median(abs(other_mean - mean) / sd))


def _function(prediction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over draws of the network's values at the held-out rows: y's mean, or each class's probability."""
    drawn = prediction.function_draws
    flat = drawn.reshape(-1, *drawn.shape[2:]).astype(float)
    return flat.mean(0), flat.std(0)


def page(entries: Sequence[dict[str, Any]]) -> str:
    """A table for each model, and what diagnose says of each method's draws there."""
    parts = []
    for model in dict.fromkeys(entry["model"] for entry in entries):
        parts.append(_block(model, [entry for entry in entries if entry["model"] == model]))
    notes = [
        "lpd: log predictive density of held-out rows, nats a row in y's own units, ± one standard error; higher is better. "
        "in 90: share of them inside the 90 % interval. ece: calibration error of the classes, lower is better.",
        "spread: epistemic sd of the network's values at held-out rows, over that of nuts (median). away: its means' distance "
        "from those of nuts in sds of nuts (median). Both are worth what nuts's verdict is.",
        "gradients: of the log density of all rows, or of a batch. s: seconds of the fit, compiling included. MB: the peak "
        "of the process, of which prior's is what any fit needs.",
        "Each run was read back from its files: all ArviZ groups are there, and it predicts what was scored.",
    ]
    return "\n\n".join([*parts, "\n".join(wrapped(note) for note in notes)])


def _block(model: str, entries: Sequence[dict[str, Any]]) -> str:
    good = [entry for entry in entries if "error" not in entry]
    head = model
    if good:
        first = good[0]
        head += (
            f" on {first['data']}: {first['latent']} latent numbers, {first['rows']} rows, {first['held_out']} held out"
        )
    second = "ece" if good and "test_ece" in good[0]["scores"] else "in 90"
    lines = [["by", "lpd", second, "spread", "away", "gradients", "s", "MB"]]
    said = []
    for entry in entries:
        if "error" in entry:
            said.append(wrapped(entry["error"], f"  {entry['inference']:<11} failed: ", " " * 14))
            continue
        scores = entry["scores"]
        density = scores.get("test_lpd") or {k: -v if k == "value" else v for k, v in scores["test_nll"].items()}
        calibration = scores["test_ece" if second == "ece" else "test_coverage_90"]["value"]
        far = [f"{entry[key]:.2f}" if key in entry else "-" for key in ("spread", "away")]
        cost = [str(entry["gradients"]), f"{entry['seconds']:.1f}", f"{entry['peak_mb']:.0f}"]
        lines.append([entry["inference"], plus_minus(density), f"{calibration:.3f}", *far, *cost])
        said.append(
            wrapped(f"{entry['verdict']}: {' '.join(entry['reasons'])}", f"  {entry['inference']:<11} ", " " * 14)
        )
    return "\n".join([title(head), aligned(lines, COLUMNS), "", *said])
