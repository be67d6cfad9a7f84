"""``trees.cpp``, or the header that it includes, with a fault planted, to see that a test finds it."""

from __future__ import annotations

import pytest

from bnn_pyro import native
from bnn_pyro.inference import native_trees


def use_broken_trees(right: str, wrong: str, tmp_path, monkeypatch) -> None:
    """Native trees are of a library from now on in which ``right``, found once, is ``wrong``."""
    header = native_trees.SOURCE.with_name("leapfrog.h")
    texts = {
        name: file.read_text(encoding="utf-8")
        for name, file in (("broken.cpp", native_trees.SOURCE), (header.name, header))
    }
    assert sum(text.count(right) for text in texts.values()) == 1
    for name, text in texts.items():
        (tmp_path / name).write_text(text.replace(right, wrong), encoding="utf-8")
    broken = tmp_path / "broken.cpp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", [flag.replace("-O3", "-O1") for flag in native.FLAGS])  # is compiled sooner
    if native.load(native_trees.SOURCE) is None:
        pytest.skip(native.reason(native_trees.SOURCE))
    assert native.load(broken) is not None, native.reason(broken)
    monkeypatch.setattr(native_trees, "SOURCE", broken)
