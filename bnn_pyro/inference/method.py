"""What every inference method's settings share: checks that come before any work."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from bnn_pyro.errors import OptionError


@dataclass(frozen=True)
class Method:
    """Settings of an inference method. Subclasses name themselves and say which values their fields can take."""

    name: ClassVar[str] = ""
    exact: ClassVar[bool] = False  # whether its draws converge to the posterior itself
    dtype: ClassVar[str] = "float32"  # where none is asked for

    def settings(self) -> dict[str, Any]:
        """Fields and values, with objects shown by their names."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def _require(self, option: str, ok: bool, expected: str) -> None:
        if not ok:
            raise OptionError(f"{self.name}, {option}: expected {expected}, got {getattr(self, option)!r}.")

    def _require_count(self, option: str, least: int = 1) -> None:
        value = getattr(self, option)
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
        self._require(option, ok, f"a whole number of at least {least}")

    def _require_positive(self, option: str) -> None:
        value = getattr(self, option)
        ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
        self._require(option, ok, "a positive number")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", type(value).__name__)
