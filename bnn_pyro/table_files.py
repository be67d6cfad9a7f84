"""Tables of users: CSV (also .tsv, .csv.gz) and Parquet files, read into a data frame or refused with one sentence.

Nothing is guessed that could change a value without a word: a column is numbers only if every value that is not
missing is one, and a column that is almost numbers is an error that names the line. Text is kept as it stands, so a
cell that begins with = is text.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import importlib
import io
import re
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnn_pyro.errors import PLACE, DataError, place, printable, warn

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
TEXT_SUFFIXES, PARQUET_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"), (".parquet", ".pq")
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
LONGEST_LINE = 1_000_000  # characters; a longer one is no table of rows
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?[iI]nf(inity)?")
_WITH_COMMA = re.compile(r"[+-]?[0-9]+(,[0-9]+)+(\.[0-9]*)?|[+-]?[0-9]+(\.[0-9]{3})*,[0-9]+")
_BOOLEAN = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


def read_table(path: str | Path, *, na: tuple[str, ...] = (), text: Collection[str] = ()) -> pd.DataFrame:
    """The table in a file: columns of int64, float64, bool (of objects, None where missing) or text, n rows, named.

    Rows of a text file are indexed by row (from 0) and line, which ``errors.place`` says: blank lines are no rows.

    Args:
        path: A CSV file with a header (delimiter , ; tab or | as the header has it, UTF-8, possibly gzipped), or a
            Parquet file, for which pyarrow has to be installed.
        na: Values that mean missing, beside an empty cell and the usual NA, N/A, NaN, null. Missing numbers are NaN.
        text: Columns that are text, whatever their cells look like; a Parquet file's own numbers stay numbers.
    Raises: DataError that names the file, and the line where there is one, for anything that is not such a table.
    Warns: if a first column without a name only numbers the rows, or a Parquet file holds an index without one: dropped.
    """
    path = Path(path)
    if isinstance(na, str):
        raise DataError(f"table {path}, na: expected a tuple of texts, got {na!r}. Pass na=({na!r},).")
    _require_file(path)
    name = path.name.lower()
    if name.endswith(PARQUET_SUFFIXES):
        return _read_parquet(path, na, text)
    if name.endswith(TEXT_SUFFIXES):
        return _read_text(path, na, text)
    raise DataError(
        f"table {path}: expected a file that ends in {', '.join(TEXT_SUFFIXES[:3])} (or with .gz) or .parquet, got "
        f"{printable(path.suffix)}. Save it as CSV."
    )


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"table {path}: expected a file, got a directory. Name the file in it.")
    if path.exists():
        raise DataError(f"table {path}: expected a regular file, got something else. Save the table to a file first.")
    if not path.parent.is_dir():
        raise DataError(f"table {path}: expected a file, got no folder {path.parent}. Check the path.")
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.5)
    advice = f"Did you mean {near[0]!r}?" if near else "Check the path."
    raise DataError(f"table {path}: expected a file, got none of that name. {advice}")


# ---- CSV


def _read_text(path: Path, na: Sequence[str], text: Collection[str]) -> pd.DataFrame:
    content = _decode(path)
    delimiter = _delimiter(next((line for line in content.split("\n") if line.strip()), ""))
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if not cells:
                continue  # a blank line
            if not header:
                header = [cell.strip() for cell in cells]
                _refuse_numbers_as_names(path, header)
                _refuse_doubles(path, header)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"table {path}, line {reader.line_num}: expected {len(header)} values between "
                    f"{DELIMITERS[delimiter]}s, as in the header, got {len(cells)}. Mend that line."
                )
            rows.append(cells)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"table {path}, line {reader.line_num}: expected CSV with each quote closed before a delimiter, got {error}. "
            "Mend that line."
        ) from error
    if not rows:
        raise DataError(f"table {path}: expected rows below the header, got none. Export it again.")
    columns = list(zip(*rows))
    index = header[0] in ("", "Unnamed: 0") and _numbers_rows(columns[0])
    if index:
        _warn_of_index(path)
    _refuse_nameless(path, header[1:] if index else header)
    kept = range(int(index), len(header))
    rows_of_file = pd.MultiIndex.from_arrays([range(len(lines)), lines], names=PLACE)
    return pd.DataFrame({header[i]: _column(path, header[i], columns[i], rows_of_file, na, text) for i in kept})


def _delimiter(header: str) -> str:
    """The delimiter that stands most often outside quotes; the comma where none does."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=bare.count)


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"table {path}: expected a file that can be read, got {error}. Save it again.") from error
    if not content.strip():
        raise DataError(f"table {path}: expected a header and rows, got an empty file. Export it again.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"table {path}: expected UTF-8, got UTF-16. Save it as UTF-8.")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataError(f"table {path}, line {line}: expected text, got a NUL byte. Save it as a CSV file in UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"table {path}, line {line}: expected UTF-8, got the byte {content[error.start]:#04x}, which is none. Save "
            "it as UTF-8."
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    longest = max(text.split("\n"), key=len)
    if len(longest) > LONGEST_LINE:
        raise DataError(
            f"table {path}: expected lines of at most {LONGEST_LINE} characters, got one of {len(longest)}. Write a line "
            "for each row."
        )
    return text


def _refuse_doubles(path: Path, names: Sequence[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
    if twice is not None:
        raise DataError(
            f"table {path}: expected a name for each column, got {printable(twice)} twice. Rename one of them."
        )


def _refuse_numbers_as_names(path: Path, names: Sequence[str]) -> None:
    """Refuses a first line of measurements; whole numbers may be names (years, or pandas' own 0, 1, 2)."""
    if all(_NUMBER.fullmatch(name) for name in names) and not all(_WHOLE.fullmatch(name) for name in names):
        raise DataError(
            f"table {path}: expected the names of the columns in the first line, got numbers ({printable(names[0])}, "
            "...). Add a header."
        )


def _refuse_nameless(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        raise DataError(
            f"table {path}: expected a name for each column, got none for one"
            + (f" after {printable(names[names.index('') - 1])}." if names.index("") else " at the start.")
            + " Name it or remove it."
        )


def _numbers_rows(values: Sequence[Any]) -> bool:
    """Whether a column counts the rows, from 0 or from 1."""
    found = [str(value).strip() for value in values]
    return any(found == [str(i) for i in range(start, start + len(found))] for start in (0, 1))


def _warn_of_index(path: Path, what: str = "first column") -> None:
    warn(f"table {path}: the {what} has no name and only numbers the rows; dropped.")


def _column(
    path: Path, name: str, cells: Sequence[str], index: pd.Index, na: Sequence[str], text: Collection[str]
) -> pd.Series:
    """Numbers if all values are, else text; refuses a column in between. ``index`` says where each cell stands."""
    values = [cell.strip() for cell in cells]
    missing = [value in MISSING or value in na for value in values]
    if name in text:
        return _as_it_stands(cells, missing, index)
    given = [value for value, is_missing in zip(values, missing) if not is_missing]
    if all(_NUMBER.fullmatch(value) for value in given):
        if given and not any(missing) and all(_WHOLE.fullmatch(v) and len(v) <= 18 for v in given):
            return pd.Series(np.array([int(value) for value in values], dtype=np.int64), index)
        return pd.Series(
            np.array([np.nan if is_missing else float(v) for v, is_missing in zip(values, missing)], dtype=float), index
        )
    if all(value in _BOOLEAN for value in given):
        truths = [None if is_missing else _BOOLEAN[value] for value, is_missing in zip(values, missing)]
        return pd.Series(truths, index, dtype=object if any(missing) else bool)
    _refuse_almost_numbers(path, name, values, missing, index)
    return _as_it_stands(cells, missing, index)


def _as_it_stands(cells: Sequence[str], missing: Sequence[bool], index: pd.Index) -> pd.Series:
    """A column of text, spaces included."""
    return pd.Series([None if is_missing else cell for cell, is_missing in zip(cells, missing)], index)


def _refuse_almost_numbers(
    path: Path, name: str, values: Sequence[str], missing: Sequence[bool], index: pd.Index
) -> None:
    total = len(values) - sum(missing)
    numbers = sum(not is_missing and bool(_NUMBER.fullmatch(v)) for v, is_missing in zip(values, missing))
    commas = sum(not is_missing and bool(_WITH_COMMA.fullmatch(v)) for v, is_missing in zip(values, missing))
    if 2 * (numbers + commas) <= total:
        return
    odd = [i for i in range(len(values)) if not missing[i] and not _NUMBER.fullmatch(values[i])]
    # with commas about, a comma is the first thing to mend; other texts show afterwards
    first = next((i for i in odd if _WITH_COMMA.fullmatch(values[i])), odd[0])
    bad = values[first]
    if _WITH_COMMA.fullmatch(bad):
        advice = "Write a point for the decimal comma, and nothing between thousands."
    else:
        advice = f"Mark it as missing: na=({bad!r},) / --na {bad!r}"
    raise DataError(
        f"table {path}, column {printable(name)}: expected numbers, as {numbers} of {total} values are, got "
        f"{printable(bad)} at {place(index, first)}. {advice}"
    )


# ---- Parquet


def _read_parquet(path: Path, na: Sequence[str], text: Collection[str]) -> pd.DataFrame:
    try:
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"table {path}: expected pyarrow, which reads Parquet, got no such package. Run: pip install pyarrow"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            _refuse_doubles(path, names)
            table = file.read().to_pandas(ignore_metadata=True)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"table {path}: expected a Parquet file, got: {reason}. Save it again.") from error
    # pandas writes an index along, under a name of its own; an input it is never, as it tells the rows' order at most
    levels = [name for name in names if name.startswith("__index_level_")]
    if levels:
        _warn_of_index(path, "index")
        table = table.drop(columns=levels)
    if table.shape[1] == 0 or len(table) == 0:
        raise DataError(f"table {path}: expected columns and rows, got shape {table.shape}. Export it again.")
    if names[0] in ("", "Unnamed: 0") and _numbers_rows(table[names[0]]):
        _warn_of_index(path)
        table = table.drop(columns=names[0])
    _refuse_nameless(path, list(table.columns))
    return pd.DataFrame({name: _parquet_column(path, name, table[name], na, text) for name in table.columns})


def _parquet_column(path: Path, name: str, column: pd.Series, na: Sequence[str], text: Collection[str]) -> pd.Series:
    """A column of text read as in a CSV file; one of numbers, truth values or dates as it is."""
    if getattr(column.dtype, "kind", "O") in "fiubM":
        return column
    empty = column.isna()
    odd = next((value for value, is_empty in zip(column, empty) if not is_empty and not isinstance(value, str)), None)
    if isinstance(odd, bool):
        return column  # truth values with gaps
    if odd is not None:
        raise DataError(
            f"table {path}, column {printable(name)}: expected numbers or text, got {type(odd).__name__}. Convert it to "
            "one of these."
        )
    cells = ["" if is_empty else value for value, is_empty in zip(column, empty)]
    return _column(path, name, cells, column.index, na, text)
