"""Builds a C++ file of this package with the machine's own compiler, once for each machine, and loads it.

Libraries stand in the user's cache folder, named by a hash of all that they depend on. Where none can be built, callers
do without, and ``reason`` says why. ``begin`` builds while other work goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

# no -ffast-math, and products and sums are not fused: results must not depend on how a compiler splits a loop
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-std=c++17", "-ffp-contract=off")
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 120.0  # seconds that a compiler may take

_loaded: dict[Path, tuple[ctypes.CDLL | None, str]] = {}
_one_at_a_time = threading.Lock()


def begin(source: Path) -> None:
    """Starts ``load(source)`` in a thread; whoever calls ``load`` before it has ended waits for it."""
    threading.Thread(target=load, args=(source,)).start()


def load(source: Path) -> ctypes.CDLL | None:
    """The library of a C++ file, built if need be; None where that fails, and then ``reason(source)`` says why."""
    if source not in _loaded:  # a look that costs nothing: noise asks at each of a sampler's steps
        with _one_at_a_time:
            if source not in _loaded:
                try:
                    _loaded[source] = _cached(source), ""
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    _loaded[source] = None, f"{source.name} cannot be built: {error}"
    return _loaded[source][0]


def reason(source: Path) -> str:
    """Why ``load(source)`` is None; empty where it isn't."""
    load(source)
    return _loaded[source][1]


def _cached(source: Path) -> ctypes.CDLL:
    compiler = _compiler()
    name = f"{source.stem}-{_key(source, compiler)}.so"
    folder = _folder()
    if folder is not None:
        with contextlib.suppress(OSError):  # a damaged file, which is made anew
            return ctypes.CDLL(str(folder / name))
        with contextlib.suppress(OSError):  # a full disk, a folder from which nothing may be loaded
            return ctypes.CDLL(str(_build(source, compiler, folder / name)))
    with tempfile.TemporaryDirectory(prefix="bnn_pyro_") as temporary:  # what is loaded stays, without its file
        return ctypes.CDLL(str(_build(source, compiler, Path(temporary, name))))


def _folder() -> Path | None:
    """Where libraries are kept; None for a home that is missing or cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bnn_pyro"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder


def _compiler() -> list[str]:
    """The command that the user or the machine calls its C++ compiler."""
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:  # quotes that do not close
        raise RuntimeError(f"CXX={os.environ['CXX']!r} is no command: {error}") from None
    for command in [asked] if asked else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise RuntimeError(f"there is no C++ compiler ({asked[0] if asked else ', '.join(COMPILERS)})")


def _key(source: Path, compiler: list[str]) -> str:
    version = _run([*compiler, "--version"]).stdout.partition("\n")[0]
    parts = (_texts(source), FLAGS, compiler, version, platform.machine(), _processor())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _texts(source: Path) -> list[str]:
    """Of the file and of the headers beside it that it includes."""
    text = source.read_text(encoding="utf-8")
    headers = re.findall(r'^#include "(.+)"', text, re.MULTILINE)
    return [text, *(source.with_name(header).read_text(encoding="utf-8") for header in headers)]


def _processor() -> list[str]:
    """What -march=native looks at, about: another machine with the same home has a library of its own."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return [platform.processor()]
    return [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]


def _build(source: Path, compiler: list[str], path: Path) -> Path:
    """Compiles under a name of its own and renames, so that no other process sees half a library."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as temporary:
        made = Path(temporary, path.name)
        done = _run([*compiler, *FLAGS, str(source), "-o", str(made)])
        if done.returncode:
            # an older clang on arm64 doesn't know -march=native
            plain = [flag for flag in FLAGS if flag != "-march=native"]
            done = _run([*compiler, *plain, str(source), "-o", str(made)])
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))
        made.replace(path)
    return path


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=PATIENCE, env=environment
    )  # fmt: skip
