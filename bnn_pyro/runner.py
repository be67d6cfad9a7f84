"""One fit from the command line: names checked, then fitted, scored, saved, and pictured."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnn_pyro.errors import RunError, printable, unknown


@dataclass(frozen=True)
class Plan:
    """What a ``fit`` command asks for, checked; the data have been read, nothing has been computed or written."""

    model: Any
    method: Any
    data: Any  # a DataSet
    source: dict[str, Any]  # where the data came from, for run.toml
    out: Path
    overwrite: bool
    settings: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A run directory as it stands on disk, and the posterior it was written from (or read back into)."""

    path: Path
    posterior: Any
    content: dict[str, Any]


def plan(
    model: str,
    data: str | None = None,
    inference: str = "nuts",
    sets: Iterable[str] = (),
    out: str | None = None,
    overwrite: bool = False,
    table: dict[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """Checks everything that a name, a number, a path or the data can be wrong about.

    Args:
        sets: Pieces of ``--set``, such as ``"hidden=8,8"``.
        out: The run directory; None chooses ``runs/<model>-<data>-<inference>``, with a number if that is taken.
        table: How the data are read: see ``sources.named``.
        settings: Of ``bnn_pyro.fit``.
    Raises: BNNError, before anything is computed or written.
    """
    from bnn_pyro.files import check_new_run
    from bnn_pyro.inference import METHODS, make_method
    from bnn_pyro.options import parse_sets
    from bnn_pyro.registry import check_model_name, get_model, model_class
    from bnn_pyro.sources import check_rows, named

    check_model_name(model)
    if inference not in METHODS:
        raise unknown("inference", inference, METHODS, f"bnn-pyro show {model} lists them.")
    asked = None if data is None else named(data, **(table or {}))  # first, as a model waits seconds for torch
    kind = model_class(model)
    card = kind.card
    hyperparameters, options = parse_sets(sets, kind, METHODS[inference], model)
    made = get_model(model, **hyperparameters)
    method = make_method(inference, options)
    _check_settings(method, **settings)
    asked = asked or named(card.dataset, **(table or {}))
    rows, source = asked.rows(card.task, model)
    check_rows(made, rows, settings.get("missing", "refuse"))
    directory = default_directory(model, source["name"], inference, overwrite) if out is None else out
    if any(not c.isprintable() for c in str(directory)):
        raise RunError(f"--out: expected a path without control characters, got {printable(str(directory))}.")
    return Plan(made, method, rows, source, check_new_run(directory, overwrite), overwrite, settings)


def default_directory(model: str, data: str, inference: str, overwrite: bool = False) -> str:
    """``runs/<model>-<data>-<inference>``, or that with -2, -3, ... where it is taken."""
    name = f"runs/{model}-{data.replace('/', '_').partition('.')[0]}-{inference}"
    if overwrite or not os.path.lexists(name):
        return name
    number = 2
    while os.path.lexists(f"{name}-{number}"):
        number += 1
    return f"{name}-{number}"


def carry_out(plan: Plan, pictures: bool = True, warn: Callable[[str], None] = print) -> Finished:
    """Fits, scores the held-out rows, writes the run directory, and draws its pictures."""
    from bnn_pyro.files import read_toml

    posterior = plan.model.fit(plan.data.train, inference=plan.method, **plan.settings)
    prediction, scores = held_out(posterior, plan.data.test)
    process = {"peak_mb": _peak_mb(), "backend": plan.settings.get("backend", "auto")}  # what was asked for
    extra = {"scores": scores, "dataset": plan.source, "process": process}
    path = posterior.save(plan.out, overwrite=plan.overwrite, extra=extra)
    if pictures:
        from bnn_pyro import report

        try:
            report.draw(path, posterior, plan.data, prediction)
        except OSError as error:
            warn(f"{path}: the run is saved, but a picture could not be written: {error.strerror or error}.")
    return Finished(path, posterior, read_toml(path))


def _peak_mb() -> float:
    """Memory that this process has held at most, in MB; nan where the system does not say."""
    try:  # Linux counts what a process was started from into ru_maxrss
        status = Path("/proc/self/status").read_text()
        return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        pass
    if sys.platform == "win32":
        return math.nan
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def held_out(posterior: Any, test: Any) -> tuple[Any, dict[str, Any]]:
    """The prediction of the test rows, and its scores as run.toml keeps them; None and none without such rows."""
    from bnn_pyro.class_prediction import ClassPrediction
    from bnn_pyro.scores import score

    if not len(test):
        return None, {}
    prediction = posterior.predict(test.x)
    scores: dict[str, Any] = {k: {"value": v, "stderr": e} for k, (v, e) in score(prediction, test.y).items()}
    for kind in ("epistemic", "aleatoric"):
        values = getattr(prediction, kind)
        if isinstance(prediction, ClassPrediction):
            scores[f"test_{kind}_nats"] = {"value": float(values.mean())}
        else:
            scores[f"test_{kind}_sd"] = {"value": float((values**0.5).mean())}
    return prediction, scores


def read(directory: str) -> Finished:
    """A finished run, read back and checked. Raises: RunError for one that is missing, foreign or damaged."""
    from bnn_pyro.files import load, read_toml

    posterior = load(directory)
    return Finished(Path(directory), posterior, read_toml(directory))


def _check_settings(
    method: Any,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "cpu",
    engine: str = "auto",
    backend: str = "auto",
    **_: Any,
) -> None:
    """The checks of ``fit`` that need no data, so that they come before a directory is made."""
    from bnn_pyro.arguments import DTYPES, ENGINES, choose_engine, find_devices
    from bnn_pyro.compiled import BACKENDS
    from bnn_pyro.isolation import check_seed

    for kind, value, known in (
        ("dtype", dtype or method.dtype, DTYPES),
        ("engine", engine, ENGINES),
        ("backend", backend, BACKENDS),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    choose_engine(method, engine, backend)
    find_devices(device, method, method.name)
    check_seed(seed)
