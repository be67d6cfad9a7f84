"""The zoo by name, and models of other packages through the entry-point group."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import bnn_pyro as bnn
from bnn_pyro import registry


def test_names_are_files_and_tasks_filter():
    names = [p.stem for p in (Path(__file__).parents[1] / "models").glob("*.py")]
    assert bnn.list_models() == sorted(names) and {"linear", "logistic"} < set(names)
    numbers, classes = (bnn.list_models(task=task) for task in ("regression", "classification"))
    assert {"linear", "mlp_gaussian"} <= set(numbers) and {"logistic", "mlp_categorical"} <= set(classes)
    assert not set(numbers) & set(classes) and bnn.list_models(task="none") == []


def test_misspelt_names():
    with pytest.raises(
        bnn.UnknownNameError, match=r"unknown model 'mlp_gausian': did you mean 'mlp_gaussian'\? bnn.list"
    ):
        bnn.get_model("mlp_gausian")
    with pytest.raises(
        bnn.UnknownNameError, match=r"unknown hyper-parameter of mlp_gaussian 'hiden': did you mean 'hidden'\?"
    ):
        bnn.get_model("mlp_gaussian", hiden=(3,))
    with pytest.raises(bnn.UnknownNameError, match=r"unknown model '\.\./linear'"):
        bnn.get_model("../linear")


def test_a_model_of_another_package(monkeypatch, tmp_path):
    (tmp_path / "elsewhere.py").write_text(
        "import bnn_pyro as bnn\n"
        "from bnn_pyro.zoo.linear import Linear\n"
        "@bnn.register(bnn.Card(name='outside', task='regression', dataset='diabetes', reference='', inference=('svi',)))\n"
        "class Outside(Linear):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = [EntryPoint("outside", "elsewhere", registry.ENTRY_POINTS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.ENTRY_POINTS else [])
    try:
        assert "outside" in bnn.list_models()
        assert bnn.get_model("outside", prior_sd=2.0).name == "outside"
    finally:
        registry._REGISTERED.pop("outside", None)


def test_public_names_stay_what_they_are_whatever_is_imported_first():
    """A submodule called like a public function would take its place once imported."""
    code = (
        "import bnn_pyro as bnn, pkgutil, importlib\n"
        "for m in pkgutil.iter_modules(bnn.__path__): importlib.import_module('bnn_pyro.' + m.name)\n"
        "import types\n"
        "bad = [n for n in bnn.__all__ if n != 'nn' and isinstance(getattr(bnn, n), types.ModuleType)]\n"
        "assert not bad, bad\n"
        "assert set(bnn.__all__) - {'__version__', 'nn'} == set(bnn._HOME), set(bnn.__all__) ^ set(bnn._HOME)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
