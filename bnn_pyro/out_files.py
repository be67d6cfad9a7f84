"""The file that ``--out`` names: refused before any work where it may not be written, and then there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pandas as pd

from bnn_pyro.errors import RunError, printable


def new_file(out: str, overwrite: bool) -> Path:
    """The path that ``--out`` names, if a file may be written there. Raises: RunError, before any work."""
    path = Path(out)
    if not out or any(not c.isprintable() for c in out):
        raise RunError(f"--out: expected the path of a file, got {printable(out)}.")
    if path.is_dir():
        raise RunError(f"--out {path}: expected a file, got a directory. Name a file in it.")
    if path.exists() and not overwrite:
        raise RunError(
            f"--out {path}: expected a new file, got one that exists. Choose another name, or add --overwrite."
        )
    if not path.parent.is_dir():
        raise RunError(f"--out {path}: expected a folder to write to, got none called {path.parent}. Make it first.")
    return path


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The table under a temporary name, then renamed: there whole or not at all. Raises: RunError."""
    try:
        handle, made = tempfile.mkstemp(prefix=f".{path.name[:50]}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
                table.to_csv(stream, index=False)  # floats in as many digits as tell them from all others
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(made, path)
        finally:
            if os.path.exists(made):
                os.unlink(made)
    except OSError as error:
        raise RunError(f"--out {path}: expected to write the predictions, got: {error.strerror or error}.") from error
