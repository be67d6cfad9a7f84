"""Run directories: ``run.toml`` (what was asked), ``posterior.nc`` (ArviZ groups), ``state.safetensors`` (draws, guide).

A directory is written under a temporary name, synced, and renamed, so that it is there whole or not at all. Nothing in it
is pickled, and each file is checked against its SHA-256 before it is read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnn_pyro import labels
from bnn_pyro.errors import BNNError, ModelError, RunError, printable

if TYPE_CHECKING:
    from bnn_pyro.posterior import Posterior

FORMAT = "bnn_pyro run 1"
TOML, NETCDF, STATE = "run.toml", "posterior.nc", "state.safetensors"
_SEAL = b"# sha256 of the lines above: "


def check_new_run(directory: str | Path, overwrite: bool = False) -> Path:
    """The directory as a path, if a run may be written there. Raises: RunError, before any work is done."""
    path = Path(directory)
    where = f"run directory {printable(str(path))}"
    if "\x00" in str(path):
        raise RunError(f"{where}: expected a path without NUL characters.")
    try:
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise RunError(f"{where}: expected a new directory, got a file. Choose another name.")
            if any(path.iterdir()):
                if not (path / TOML).is_file():
                    raise RunError(
                        f"{where}: expected a new directory, got one that holds other files. Choose another name."
                    )
                if not overwrite:
                    raise RunError(
                        f"{where}: expected a new name, got a run that exists. Choose another, or replace it "
                        "(--overwrite, overwrite=True)."
                    )
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bnn-pyro-", dir=path.parent):
            pass
    except RunError:
        raise
    except OSError as error:
        raise RunError(
            f"{where}: expected a place that can be written, got: {error.strerror}. Choose another."
        ) from error
    return path


def save_run(posterior: Posterior, directory: str | Path, *, overwrite: bool, extra: dict[str, Any]) -> Path:
    """Writes a run directory; see ``Posterior.save``. An existing run is replaced only once the new one is whole."""
    from safetensors.torch import save_file

    from bnn_pyro import results

    path = check_new_run(directory, overwrite)
    with _new_directory(path) as made:
        results.save(posterior.idata, made / NETCDF)
        save_file(_tensors(posterior), made / STATE)
        content = _description(posterior) | extra
        content["files"] = {name: _sha256(made / name) for name in (NETCDF, STATE)}
        _write_toml(made / TOML, content)
    return path


def load(directory: str | Path, model: Any = None) -> Posterior:
    """The posterior that a run directory holds.

    Args:
        model: The Pyro program or ``BNN`` that was fitted, for a run of a user's own program; the zoo's are found by name.
            Without it, such a posterior has ``idata`` but cannot predict.
    Raises: RunError for a directory that is missing, foreign or damaged, naming the file.
    """
    path = Path(directory)
    content = read_toml(path)
    sums = content.get("files")
    if not isinstance(sums, dict) or set(sums) != {NETCDF, STATE}:
        raise RunError(f"{path / TOML}, files: expected the SHA-256 of {NETCDF} and {STATE}, got others. Fit again.")
    for name, expected in sums.items():
        file = path / name
        if not file.is_file():
            raise RunError(f"{file}: expected a file, got none: the run is incomplete. Restore it, or fit again.")
        if _sha256(file) != expected:
            raise RunError(
                f"{file}: expected the SHA-256 that {TOML} states, got another: damaged. Restore it, or fit again."
            )
    from bnn_pyro.restore import restore

    try:
        return restore(path, content, model)
    except BNNError:
        raise
    except (
        Exception
    ) as error:  # whole files by their sums, but not what this version writes: each parser has its errors
        raise RunError(
            f"{path}: expected a run as this version writes it, got {type(error).__name__}: {error}. Fit again."
        ) from error


def read_toml(directory: str | Path) -> dict[str, Any]:
    """``run.toml`` of a run directory, checked. Raises: RunError."""
    path = Path(directory)
    file = path / TOML
    if not path.is_dir():
        near = Path("runs") / path.name
        hint = f"Did you mean {near}?" if near.is_dir() else "bnn-pyro fit makes one."
        raise RunError(f"run directory {printable(str(path))}: expected a directory, got none. {hint}")
    if not file.is_file():
        raise RunError(f"{path}: expected a run directory with {TOML}, got none: not made by bnn_pyro, or incomplete.")
    raw = file.read_bytes()
    body, seal, digest = raw.rpartition(_SEAL)
    if not seal or hashlib.sha256(body).hexdigest().encode() != digest.strip():
        raise RunError(f"{file}: expected its own SHA-256 on the last line, got another: damaged or edited. Fit again.")
    content = tomllib.loads(body.decode())
    if content.get("format") != FORMAT:
        raise RunError(
            f"{file}: expected format {FORMAT!r}, got {content.get('format')!r}. Use the version that wrote it."
        )
    return content


def _description(posterior: Posterior) -> dict[str, Any]:
    import json

    attrs = posterior.attrs
    verdict = posterior.verdict
    data = posterior.data
    return {
        "format": FORMAT,
        "model": {
            "name": posterior.model.name,
            "zoo": posterior.model.card is not None,
            "hyperparameters": _without_none(json.loads(attrs["hyperparameters"])),
        },
        "inference": {"name": posterior.method.name, "settings": _without_none(posterior.method.settings())},
        "fit": {
            "seed": posterior.seed,
            "dtype": attrs["dtype"],
            "device": attrs["device"],
            "complete": posterior.draws.complete,
            "info": posterior.draws.info,
            "warnings": posterior.warnings,
            **_kept(posterior),
        },
        "data": {
            "rows": data.n,
            "checksum": attrs["data_checksum"],
            "x_is_dict": isinstance(data.x, dict),
            "columns": list(data.columns or ()),
            "target": data.target or "",
            **({"encoding": data.encoding.as_table()} if data.encoding is not None else {}),
            **({"classes": labels.as_list(data.classes)} if data.classes is not None else {}),
        },
        "versions": json.loads(attrs["versions"]),
        "verdict": {"verdict": verdict.verdict, "reasons": verdict.reasons, "remedies": verdict.remedies,
                    "numbers": verdict.numbers},
    }  # fmt: skip


def _kept(posterior: Posterior) -> dict[str, Any]:
    """Which sites posterior.nc holds, if not all, and the shapes of all, which it then cannot tell."""
    if posterior.keep is None:
        return {}
    return {"keep": posterior.keep, "sites": [[s.name, s.shape] for s in posterior.target.sites]}


def _tensors(posterior: Posterior) -> dict[str, Any]:
    import torch

    draws, units = posterior.draws, posterior.units
    out = {"draws": draws.z}
    out |= {f"state/{k}": v for k, v in draws.state.items()}
    out |= {f"params/{k}": v for k, v in draws.params.items()}
    out |= {f"history/{k}": torch.as_tensor(v) for k, v in draws.history.items()}
    pairs = {f"x/{k}": v for k, v in units.x.items()} | ({"y": units.y} if units.y is not None else {})
    for name, (mean, sd) in pairs.items():
        out[f"units/{name}/mean"], out[f"units/{name}/sd"] = torch.as_tensor(mean), torch.as_tensor(sd)
    return {k: v.detach().cpu().contiguous().clone() for k, v in out.items()}


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if v is not None}


def method_from(content: dict[str, Any]) -> Any:
    """The method's settings that run.toml states; a guide that was no name is left to the model."""
    from bnn_pyro.inference import METHODS

    kind = METHODS[content["inference"]["name"]]
    known = {f.name for f in fields(kind)}
    settings = {k: v for k, v in content["inference"]["settings"].items() if k in known}
    try:
        return kind(**settings)
    except ValueError:
        return kind(**{k: v for k, v in settings.items() if k != "guide"})


def model_from(content: dict[str, Any], given: Any) -> Any:
    """The model that was fitted: from the zoo by name, or the one given."""
    from bnn_pyro.model import BNN, Model
    from bnn_pyro.registry import get_model

    name = content["model"]["name"]
    if content["model"]["zoo"]:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in content["model"]["hyperparameters"].items()}
        return get_model(name, **options)
    if given is None:
        return BNN(_absent_program(name), name=name)
    return given if isinstance(given, Model) else BNN(given, name=name)


def _absent_program(name: str) -> Any:
    def program(x: Any, y: Any = None) -> Any:
        raise ModelError(
            f"{name}: expected the Pyro program that was fitted. Pass it: bnn.load(directory, model=program)."
        )

    return program


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_toml(file: Path, content: dict[str, Any]) -> None:
    import tomli_w

    body = tomli_w.dumps(_plain(content)).encode()
    file.write_bytes(body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b"\n")


def _plain(value: Any) -> Any:
    """Numbers and containers as TOML knows them."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value


@contextmanager
def _new_directory(path: Path) -> Iterator[Path]:
    """A private directory that takes the place of ``path`` when the body has written and everything is synced."""
    made = Path(tempfile.mkdtemp(prefix=f".{path.name[:50]}-", dir=path.parent))
    try:
        yield made
        for file in made.iterdir():
            file.chmod(0o600)
            _sync(file)
        _sync(made)
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name[:50]}-old-", dir=path.parent))
            os.replace(path, old / "run")
        try:
            os.rename(made, path)
        except OSError:
            if old is not None:
                os.replace(old / "run", path)
                old.rmdir()
            raise
        _sync(path.parent)
        if old is not None:
            shutil.rmtree(old)
    except OSError as error:
        raise RunError(
            f"{path}: expected to write the run, got: {error.strerror or error}. Free space, or choose another."
        ) from error
    finally:
        if made.exists():
            shutil.rmtree(made, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
