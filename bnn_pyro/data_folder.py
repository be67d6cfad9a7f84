"""Data sets as files: a folder for each, with data.csv (or data.csv.gz), splits.npz and, for some, gap_splits.npz.

They are looked for below the folder that ``BNN_PYRO_DATA`` names, then in the cache that ``fetch_dataset`` fills. What
is read has to have the SHA-256 written down here; the sums are over the uncompressed table and over the row numbers, so
they do not depend on who packed the files. Nothing here touches the network.

    splits.npz       train (splits, n_train) and test (splits, n_test): row numbers from 0
    gap_splits.npz   test_j: rows whose column j lies in the middle third (Foong et al. 2019); all others train
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from bnn_pyro.embedded import DataCard, Split, Table
from bnn_pyro.errors import DataError, OptionError
from bnn_pyro.folder_cards import FOLDER

VARIABLE, CACHE_VARIABLE = "BNN_PYRO_DATA", "BNN_PYRO_CACHE"


def cache_folder() -> Path:
    """Where fetched data sets are kept: ``BNN_PYRO_CACHE``, or the platform's place for what can be fetched again."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bnn_pyro"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "bnn_pyro"


def find(name: str, file: str = "data.csv") -> Path | None:
    """The folder that holds ``file`` (or file.gz) of a data set, or None."""
    named = os.environ.get(VARIABLE)
    for base in ([Path(named)] if named else []) + [cache_folder()]:
        if any((base / name / candidate).is_file() for candidate in (file, file + ".gz")):
            return base / name
    return None


def read_set(name: str, folder: Path | None = None) -> Table:
    """x (n, d) and y (n,) of a data set, verified; floats, but whole numbers for y if it counts or is a class.

    ``folder`` is the one that holds data.csv; without it, the set is looked for.

    Raises: DataError if it is in no folder, cannot be read, or is not the table that the card describes.
    """
    entry = FOLDER[name]
    folder = folder or _require(name, "data.csv")
    path = folder / "data.csv" if (folder / "data.csv").is_file() else folder / "data.csv.gz"
    try:
        text = path.read_bytes() if path.suffix == ".csv" else gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"data set {name!r}: expected to read {path}, got {error}. {_again(name, path)}") from error
    verify(name, path, hashlib.sha256(text).hexdigest(), entry.card.checksum)
    values = np.loadtxt(text.decode().splitlines()[1:], delimiter=",")
    table = pd.DataFrame(values, columns=entry.header.split(","))
    y = table[entry.card.target]
    if entry.counts or entry.card.task == "classification":
        y = y.astype(int)
    return table.drop(columns=[entry.card.target, *entry.drop]).rename(columns=entry.rename), y


def read_split(name: str, split: int | str, n: int) -> Split:
    """Row numbers of the training and the test part of split ``split`` (0, 1, ...) or "gap0", "gap1", ...

    Raises: OptionError for a split that the set does not have; DataError for files as in ``read_set``.
    """
    entry = FOLDER[name]
    gap = split_number(entry.card, split)
    if gap is None:
        train, test = read_splits(name)
        return train[int(split)], test[int(split)]
    path = _require(name, "gap_splits.npz") / "gap_splits.npz"
    parts = _arrays(name, path, [f"test_{j}" for j in range(entry.card.gap_splits)])
    verify(name, path, sum_of(parts), entry.gap_sum)
    return np.setdiff1d(np.arange(n), parts[gap]), parts[gap]


def read_splits(name: str, folder: Path | None = None) -> Split:
    """All splits of a set: train (splits, n_train), test (splits, n_test)."""
    path = (folder or _require(name, "splits.npz")) / "splits.npz"
    train, test = _arrays(name, path, ["train", "test"])
    verify(name, path, sum_of([train, test]), FOLDER[name].splits_sum)
    return train, test


def split_number(card: DataCard, split: int | str) -> int | None:
    """Checks ``split``; the j of "gapj", or None for a numbered split.

    Raises: OptionError that says how many splits there are.
    """
    if isinstance(split, int | np.integer) and not isinstance(split, bool) and 0 <= split < card.splits:
        return None
    if isinstance(split, str) and split[:3] == "gap" and split[3:].isdecimal() and int(split[3:]) < card.gap_splits:
        return int(split[3:])
    known = "the one split 0" if card.splits == 1 else f"one of {card.splits} splits, 0 to {card.splits - 1}"
    if card.gap_splits:
        known += f" (or 'gap0' to 'gap{card.gap_splits - 1}')"
    raise OptionError(f"data set {card.name!r}, split: expected {known}, got {split!r}. Pass one of these.")


def sum_of(arrays: list[np.ndarray]) -> str:
    """SHA-256 of shapes and row numbers."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


def verify(name: str, path: Path | str, found: str, expected: str) -> None:
    """Raises: DataError if a sum is not the one written down."""
    if found != expected:
        raise DataError(
            f"data set {name!r}: expected {path} with SHA-256 {expected[:12]}... of its content, got {found[:12]}...: "
            f"it holds other values. {_again(name, path)}"
        )


def _again(name: str, path: Path | str) -> str:
    if str(path).endswith("gap_splits.npz"):
        return "Replace it with the original."
    return f"Remove it and fetch it again: bnn.fetch_dataset({name!r})"


def _require(name: str, file: str) -> Path:
    folder = find(name, file)
    if folder is not None:
        return folder
    named = os.environ.get(VARIABLE)
    got = f"{VARIABLE}={named} without it" if named else f"{VARIABLE} not set"
    if file == "gap_splits.npz":  # ties make them no rule of the values, so they are not fetched
        raise DataError(
            f"data set {name!r}: expected {name}/{file}, got {got}. Set {VARIABLE} to a folder that holds it; it cannot "
            "be fetched."
        )
    raise DataError(
        f"data set {name!r}: expected {name}/{file} below the data folder or the cache, got {got}. Set {VARIABLE} to a "
        f"folder that holds it, or fetch it: bnn.fetch_dataset({name!r}) or bnn-pyro datasets --fetch {name}"
    )


def _arrays(name: str, path: Path, keys: list[str]) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [file[key] for key in keys]
        if any(array.dtype.kind not in "iu" for array in found):
            raise ValueError("arrays that are no row numbers")
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"data set {name!r}: expected row numbers {keys[0]}, ... in {path}, got {error}. {_again(name, path)}"
        ) from error
    return [array.astype(np.int64) for array in found]
