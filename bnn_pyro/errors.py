"""Every error that bnn_pyro raises on purpose: one base class, an exit code for the command line, one sentence.

A message reads *where: expected what, got what. Do this.*
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from typing import Any


class BNNError(Exception):
    """Base class of all errors raised on purpose; ``exit_code`` is what ``bnn-pyro`` exits with."""

    exit_code = 2


class UnknownNameError(BNNError, ValueError):
    """A model, data set, inference method, option or column that does not exist."""


class OptionError(BNNError, ValueError):
    """A known option with a value that it cannot take."""


class DataError(BNNError, ValueError):
    """Data that cannot be used as they are: not finite, empty, of the wrong kind."""


class ShapeError(DataError):
    """Arrays whose shapes do not go together."""


class ModelError(BNNError, ValueError):
    """A Pyro program or guide that does not fit the contract (see ``bnn_pyro.target``)."""


class RunError(BNNError, OSError):
    """A run directory that cannot be written, or is damaged, foreign or already there."""

    exit_code = 74


def unknown(kind: str, name: object, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for a misspelt name: says the nearest right one, or all of them where none is near.

    Args:
        kind: What was looked for, such as ``"model"``.
        name: What was asked for.
        known: The names that exist.
        hint: A sentence that says where to see them all.
    """
    names = sorted(str(k) for k in known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if near:
        text = f"did you mean {near[0]!r}?"
    else:
        text = f"expected one of {', '.join(names)}." if names else "there are none."
    return UnknownNameError(f"unknown {kind} {printable(name)}: {text}{' ' + hint if hint else ''}")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns, pointing at the line outside of this package that called it."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "bnn_pyro":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level + 1)


PLACE = ("row", "line")  # names of the levels of an index that says where in its file each row stands


def place(rows: Any, i: int) -> str:
    """Where row ``i`` (a position) stands: ``row 17``, counted from 0, and of a text file ``row 17 (line 19 of the file)``.

    Args:
        rows: A data frame, a Series, or their index, which for a table read from a file has the levels ``PLACE``; of
            anything else ``i`` is the row.
    """
    index = rows if hasattr(rows, "names") else getattr(rows, "index", None)
    if tuple(getattr(index, "names", ())) != PLACE:
        return f"row {i}"
    row, line = index[i]  # type: ignore[index]
    return f"row {row} (line {line} of the file)"


def printable(name: object) -> str:
    """``name`` quoted for a message, with control characters escaped and at most 80 characters long."""
    text = repr(name if isinstance(name, str) else str(name))
    return text if len(text) <= 80 else text[:77] + "...'"
