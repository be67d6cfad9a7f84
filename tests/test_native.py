"""Libraries built by the machine's compiler: once, in the user's cache, and whatever goes wrong is said and done without."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro import native, recorded
from bnn_pyro.inference import native_leapfrogs, native_trees, native_walk
from bnn_pyro.inference.metric import Metric
from bnn_pyro.inference.native_trees import make_trees, tree_kind
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.noise import Noise

COMPILER = next((name for name in native.COMPILERS if shutil.which(name)), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
LOAD = "import sys, pathlib; from bnn_pyro import native; sys.exit(native.load(pathlib.Path(sys.argv[1])).answer())"
ANSWER = 'extern "C" int answer() {{ return {0}; }}'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder that libraries go to; nothing is loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native, "_loaded", {})
    return tmp_path / "cache" / "bnn_pyro"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "answer.cpp"
    file.write_text(ANSWER.format(42))
    return file


def forget():
    native._loaded.clear()


def trees():
    everyone = torch.arange(3)
    return make_trees(
        lambda z: (-z, -0.5 * (z * z).sum(-1)),
        torch.ones(3, 2, dtype=torch.float64),
        Metric(torch.ones(2, dtype=torch.float64)),
        torch.full((3,), 0.3, dtype=torch.float64),
        Uniforms(Noise(1, "nuts"), everyone),
        Momenta(Noise(1, "momentum"), everyone, 2, torch.float64),
        4,
    )


@needs_compiler
def test_a_library_is_built_once_and_again_for_another_source(source, cache, monkeypatch):
    assert native.load(source).answer() == 42 and native.reason(source) == ""
    (built,) = cache.iterdir()  # nothing else is left behind
    assert built.suffix == ".so"
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(native, "_build", lambda *args: pytest.fail("it was there"))
        assert native.load(source).answer() == 42
    source.write_text(ANSWER.format(43))
    forget()
    assert native.load(source).answer() == 43
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DOTHER"))
    forget()
    assert native.load(source).answer() == 43
    monkeypatch.setattr(native, "_processor", lambda: ["another"])
    forget()
    assert native.load(source).answer() == 43
    assert len(list(cache.iterdir())) == 4


@needs_compiler
def test_a_damaged_library_in_the_cache_is_not_the_end(source, cache):
    elsewhere = subprocess.run([sys.executable, "-c", LOAD, str(source)])  # here, it would be loaded already
    assert elsewhere.returncode == 42
    (built,) = cache.iterdir()
    built.write_bytes(b"half of a library")
    assert native.load(source).answer() == 42 and native.reason(source) == ""
    (again,) = cache.iterdir()
    assert again == built and again.stat().st_size > 1000  # the next process finds it whole


@needs_compiler
@pytest.mark.parametrize("home", ["a file", "read only", "unknown"])
def test_a_cache_that_cannot_be_written_is_done_without(home, source, tmp_path, monkeypatch):
    place = tmp_path / "elsewhere"
    if home == "unknown":
        monkeypatch.setattr(native.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    elif home == "a file":
        place.write_text("")
    else:
        place.mkdir(mode=0o500)
        if os.access(place, os.W_OK):
            pytest.skip("this user may write anywhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "" if home == "unknown" else str(place))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert native.load(source).answer() == 42
    assert not list(temporary.iterdir())


@needs_compiler
def test_many_at_once_build_one_library(source, cache):
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", LOAD, str(source)]), range(3)))
    assert [run.returncode for run in runs] == [42] * 3
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_what_was_begun_in_a_thread_is_waited_for_and_built_once(source, monkeypatch):
    build, built = native._build, []

    def slow(*args):
        time.sleep(0.3)
        built.append(threading.current_thread() is threading.main_thread())
        return build(*args)

    monkeypatch.setattr(native, "_build", slow)
    native.begin(source)
    assert not built and native.load(source).answer() == 42 and built == [False]


@needs_compiler
def test_a_broken_source_is_refused_with_the_compilers_reason(source, monkeypatch):
    source.write_text("int answer( { return 42; }")
    build, tries = native._build, []
    monkeypatch.setattr(native, "_build", lambda *args: tries.append(args) or build(*args))
    assert native.load(source) is None and len(tries) == 1
    assert native.reason(source).startswith("answer.cpp cannot be built: ") and "error" in native.reason(source)


def test_without_a_compiler_trees_are_torchs_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    made = trees()
    assert made.kind == "torch"
    kind, why = tree_kind(torch.device("cpu"), torch.float32)
    assert kind == "torch" and why == "trees.cpp cannot be built: there is no C++ compiler (no-such-compiler)"
    made.begin(torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert not len(made.advance()) or made.steps.max() == 1


def test_a_compiler_that_is_asked_for_and_fails_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler --with option")
    assert native.load(source) is None and "no-such-compiler" in native.reason(source)
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 3\n")
    failing.chmod(0o700)
    monkeypatch.setenv("CXX", str(failing))
    forget()
    assert native.load(source) is None
    assert native.reason(source) == "answer.cpp cannot be built: error: out of order"


@needs_compiler
def test_a_compiler_that_does_not_know_this_machine_builds_without(source, tmp_path, monkeypatch):
    old = tmp_path / "old"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *march=native*) echo "error: unknown" >&2; exit 1;; esac\nexec {COMPILER} "$@"\n'
    )
    old.chmod(0o700)
    monkeypatch.setenv("CXX", str(old))
    assert native.load(source).answer() == 42


@needs_compiler
@pytest.mark.parametrize(("method", "own"), [("nuts", native_trees.SOURCE), ("hmc", native_leapfrogs.SOURCE)])
def test_a_sampler_begins_to_build_what_it_will_use(method, own, monkeypatch):
    begun = []
    monkeypatch.setattr(native, "begin", begun.append)
    x = torch.linspace(-1, 1, 8)[:, None]
    options = {"backend": "eager", "warmup": 0, "draws": 2, "progress": False}
    if method == "hmc":
        options["trajectory_length"] = 0.5
    bnn.fit(bnn.get_model("linear"), x, x[:, 0], inference=method, **options)
    assert begun == [recorded.SOURCE, own]


@needs_compiler
@pytest.mark.parametrize(("method", "own"), [("nuts", "trees"), ("hmc", "trajectories")])
def test_a_samplers_source_that_alone_cannot_be_built_is_warned_of(method, own, tmp_path, monkeypatch):
    picky = tmp_path / "picky"
    picky.write_text(
        f'#!/bin/sh\ncase "$*" in *{own}.cpp*) echo "error: no" >&2; exit 1;; esac\nexec {COMPILER} "$@"\n'
    )
    picky.chmod(0o700)
    monkeypatch.setenv("CXX", str(picky))
    x = torch.linspace(-1, 1, 40)[:, None]
    options = {"inference": method, "backend": "inductor", "warmup": 0, "draws": 2, "progress": False}
    with pytest.warns(UserWarning, match=rf"mlp_gaussian: {own}\.cpp cannot be built: error: no\. .* by torch"):
        bnn.fit(bnn.get_model("mlp_gaussian", hidden=(4,)), x, x[:, 0], **options)


@needs_compiler
def test_a_header_that_changed_is_built_anew(source):
    source.write_text('#include "number.h"\n' + ANSWER.format("NUMBER"))
    for number in (1, 2):
        source.with_name("number.h").write_text(f"#define NUMBER {number}")
        forget()
        assert native.load(source).answer() == number


def test_trees_are_native_on_a_cpu_in_either_precision_and_torchs_elsewhere():
    began = time.perf_counter()
    assert trees().kind == "native"
    assert time.perf_counter() - began < 20  # about one second
    for dtype in (torch.float32, torch.float64):
        assert tree_kind(torch.device("cpu"), dtype) == ("native", "")
    assert tree_kind(torch.device("cpu"), torch.float16)[0] == "torch"
    kind, why = tree_kind(torch.device("cuda"), torch.float32)
    assert kind == "torch" and "cuda" in why


@pytest.mark.parametrize(("struct", "ours"), [("State", native_trees.State), ("Walk", native_walk.WalkState)])
def test_the_state_is_as_large_as_the_library_takes_it_for(struct, ours):
    """Every field of it is of eight bytes, named in the same order as in the source."""
    text = native_trees.SOURCE.read_text(encoding="utf-8")
    fields = text.split(f"struct {struct} {{")[1].split("};")[0]
    declared = [line.split("//")[0] for line in fields.splitlines()]
    names = [word.strip(" *;,") for line in declared for word in line.replace("*", " ").split()]
    types = {"int64_t", "void", "double", "uint8_t", "const"}
    assert [name for name in names if name not in types] == [name for name, _ in ours._fields_]
    assert ctypes.sizeof(ours) == 8 * len(ours._fields_)


def test_a_compiler_that_is_no_command_is_a_reason(source, monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'open")
    assert native.load(source) is None
    assert 'CXX="g++ \'open" is no command: No closing quotation' in native.reason(source)
