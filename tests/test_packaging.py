"""What is shipped: a wheel, a source archive, an editable install and a bare checkout all offer the same zoo.

Each is looked at from a fresh interpreter that stands outside the checkout and skips `site` at start-up (`-S`), so that
an editable install of this checkout in the environment of the tests cannot stand in for what is tested.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(path.stem for path in (ROOT / "models").glob("*.py"))
# Says which bnn_pyro was imported and from where its zoo comes, and that nothing can be imported as `models`.
LOOK = """
import importlib
import bnn_pyro
import bnn_pyro.zoo
print(bnn_pyro.__file__)
print(importlib.import_module("bnn_pyro.zoo.mlp_gaussian").__file__)
try:
    import models
except ModuleNotFoundError:
    print("no models")
"""


def fresh(*arguments, path, cwd, prelude=""):
    """Runs `python -c CODE` or `python -m MODULE ARGS` where only `path` and the dependencies can be imported."""
    third_party = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    start = f"import sys; sys.path += {list(third_party)!r}\n{prelude}\n"
    if arguments[0] == "-m":
        code = f"{start}import runpy; sys.argv = {[*arguments[1:]]!r}; runpy.run_module(sys.argv[0], None, '__main__')"
    else:
        code = start + arguments[0]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [sys.executable, "-P", "-s", "-S", "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the source archive from the checkout, and the wheel from the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Puts the wheel into a folder of its own, as pip does, without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(built[1])], check=True)
    return folder


def test_wheel_holds_the_package_and_its_models_and_nothing_else(built):
    names = zipfile.ZipFile(built[1]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"bnn_pyro"}
    in_zoo = {Path(name).stem for name in names if name.startswith("bnn_pyro/zoo/")} - {"__init__"}
    assert in_zoo == set(MODELS)
    sources = [path for kind in ("*.py", "*.cpp", "*.h") for path in (ROOT / "bnn_pyro").rglob(kind)]
    package = {path.relative_to(ROOT).as_posix() for path in sources}
    assert package <= set(names)


def test_source_archive_holds_what_a_reader_needs(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = [path for part in ("models", "tests", "tutorials") for path in (ROOT / part).rglob("*.py")]
    wanted = {path.relative_to(ROOT).as_posix() for path in files}
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "hatch_build.py", "pyproject.toml"}
    assert wanted <= names


def test_wheel_works_outside_the_checkout(installed, tmp_path):
    package, model, models = fresh(LOOK, path=installed, cwd=tmp_path).splitlines()
    assert Path(package) == installed / "bnn_pyro" / "__init__.py"
    assert Path(model) == installed / "bnn_pyro" / "zoo" / "mlp_gaussian.py"
    assert models == "no models"


def test_wheel_lists_the_zoo_from_the_command_line(installed, tmp_path):
    printed = fresh("-m", "bnn_pyro.cli", "list", path=installed, cwd=tmp_path)
    assert [name for name in MODELS if name not in printed] == []


def test_editable_install_takes_models_from_the_checkout(tmp_path):
    build = "import hatchling.build, sys; hatchling.build.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    start = f"import site; site.addsitedir({str(site)!r})"
    package, model, models = fresh(LOOK, path=site, cwd=tmp_path, prelude=start).splitlines()
    assert Path(package) == ROOT / "bnn_pyro" / "__init__.py"
    assert Path(model) == ROOT / "models" / "mlp_gaussian.py"
    assert models == "no models"


def test_bare_checkout_takes_models_from_its_own_folder(tmp_path):
    package, model, *_ = fresh(LOOK, path=ROOT, cwd=tmp_path).splitlines()
    assert Path(package) == ROOT / "bnn_pyro" / "__init__.py"
    assert Path(model) == ROOT / "models" / "mlp_gaussian.py"


@pytest.mark.parametrize(("name", "joins"), [("bnn-pyro", True), ("somebody-else", False)])
def test_only_our_own_checkout_lends_its_models(tmp_path, name, joins):
    """A folder `models` and a pyproject.toml that stand beside the package by chance belong to somebody else."""
    zoo = tmp_path / "bnn_pyro" / "zoo"
    zoo.mkdir(parents=True)
    (zoo / "__init__.py").write_text((ROOT / "bnn_pyro" / "zoo" / "__init__.py").read_text())
    (tmp_path / "bnn_pyro" / "__init__.py").write_text("")
    (tmp_path / "models").mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    printed = fresh("import bnn_pyro.zoo; print(*bnn_pyro.zoo.__path__, sep='\\n')", path=tmp_path, cwd=tmp_path)
    assert printed.splitlines() == [str(zoo), str(tmp_path / "models")][: 1 + joins]


def test_help_does_not_import_torch(tmp_path):
    start = "import atexit; atexit.register(lambda: print('torch loaded:', 'torch' in sys.modules))"
    printed = fresh("-m", "bnn_pyro.cli", "--help", path=ROOT, cwd=tmp_path, prelude=start)
    assert "Usage" in printed
    assert printed.rstrip().endswith("torch loaded: False")
