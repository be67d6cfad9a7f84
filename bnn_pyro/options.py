"""``--set KEY=VALUE``: strings of a command line as values of a model's hyper-parameters and a method's options."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

from bnn_pyro.errors import OptionError, printable, unknown

OWN_FLAGS = ("seed", "data", "inference", "out", "dtype", "device", "engine", "backend", "standardize", "progress")
_WORDS = {True: ("true", "yes", "on"), False: ("false", "no", "off")}


def parse_sets(
    given: Iterable[str], model: type, method: type, model_name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyper-parameters and options of the method that ``given`` (``"hidden=8,8"``, ...) names, each by name.

    Raises: UnknownNameError for a key that neither has, with the nearest right one of both; OptionError for a value of
        the wrong type, a key given twice, or one that both have.
    """
    hyperparameters, options = field_types(model), field_types(method)
    method_name = getattr(method, "name", method.__name__)
    out: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise OptionError(f"--set: expected KEY=VALUE, got {printable(text)}. Write --set hidden=8,8.")
        if key in hyperparameters and key in options:
            raise OptionError(
                f"--set {key}: expected a name that {model_name} or {method_name} has, got one that both have. "
                "Fit it from Python, where the two are given apart."
            )
        if key in hyperparameters:
            into, kind = out[0], hyperparameters[key]
        elif key in options:
            into, kind = out[1], options[key]
        elif key in OWN_FLAGS:
            raise OptionError(f"--set {key}: expected a setting of the model or the method, got a flag. Write --{key}.")
        else:
            both, hint = f"setting of {model_name} or {method_name}", f"bnn-pyro show {model_name} explains each."
            raise unknown(both, key, [*hyperparameters, *options], hint)
        if key in into:
            raise OptionError(f"--set {key}: expected one value, got two. Give it once.")
        into[key] = parse_value(key, value, kind)
    return out


def of_method(given: Iterable[str], model: type, method: type, methods: Iterable[type]) -> list[str]:
    """Of the ``--set`` pieces for several methods, those of this one or the model; what nobody has stays, to be refused."""
    names = {kind: {*field_types(model), *field_types(kind)} for kind in methods}

    def key(text: str) -> str:
        return text.partition("=")[0].strip()

    return [
        text for text in given if key(text) in names[method] or not any(key(text) in known for known in names.values())
    ]


def field_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def parse_value(key: str, text: str, kind: Any) -> Any:
    """``text`` as a value of type ``kind``: int, float, bool, str, None, a tuple of these, or a union of them."""
    text = text.strip()
    choices = typing.get_args(kind) if _is_union(kind) else (kind,)
    for choice in choices:
        try:
            return _parse(text, choice)
        except (ValueError, TypeError):
            continue
    raise OptionError(
        f"--set {key}: expected {' or '.join(_words(c) for c in choices if _words(c))}, got {printable(text)}."
    )


def defaults(kind: type) -> dict[str, Any]:
    """Default values of a dataclass by field; fields without one are left out."""
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}


def explanations(kind: type) -> dict[str, str]:
    """What the ``Args:`` part of a class's docstring says of each field; names that share a line share its text."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    _, _, after = doc.partition("Args:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in after.splitlines():
        if line and not line.startswith(" "):
            break
        start = re.match(r" {4}([A-Za-z_][\w, ]*): (.*)", line)
        if start:
            names = [name.strip() for name in start[1].split(",")]
            found |= dict.fromkeys(names, start[2].strip())
        elif line.strip() and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.replace("``", "") for name, text in found.items()}


def as_text(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, tuple | list):
        return ",".join(as_text(v) for v in value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _parse(text: str, kind: Any) -> Any:
    if kind is type(None):
        if text.lower() != "none":
            raise ValueError(text)
        return None
    if kind is bool:
        for value, words in _WORDS.items():
            if text.lower() in words:
                return value
        raise ValueError(text)
    if kind in (int, float, str):
        if kind is str and not text:
            raise ValueError(text)
        return kind(text)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        stripped = text.strip("()[] ")
        return tuple(_parse(part.strip(), inner) for part in stripped.rstrip(",").split(",")) if stripped else ()
    raise TypeError(kind)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _words(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "none"}
    if kind in plain:
        return plain[kind]
    if typing.get_origin(kind) is tuple:
        each = {int: "whole numbers", float: "numbers"}.get(typing.get_args(kind)[0], "words")
        return f"{each} separated by commas"
    return ""  # such as a callable, which no command line can give
