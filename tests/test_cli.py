"""The command line: what it prints, what it refuses, its exit codes, and what it leaves on disk."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_report import is_drawn

import bnn_pyro as bnn
from bnn_pyro import catalogue, demo, options
from bnn_pyro.cli import main
from bnn_pyro.errors import OptionError

ROOT = Path(__file__).parents[1]
SVI = ("--inference", "svi", "--set", "steps=200", "--set", "draws=50")
NUTS = ("--inference", "nuts", "--set", "chains=1", "--set", "warmup=20", "--set", "draws=20", "--backend", "eager")
ESCAPE = "\x1b[31mred"


def call(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def python(*words, **settings):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, **settings)


def complaint(result, code=2):
    """The one sentence on stderr of a call that failed."""
    assert result.exit_code == code, (result.exit_code, result.output)
    assert result.stdout == "" and "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("bnn-pyro: ") and line.isprintable()
    return line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run by each method with what ``fit`` printed; the flag is all that differs between the calls."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for name, flags in (("svi", SVI), ("nuts", NUTS)):
        made[name] = folder / name, call("fit", "linear", "--data", "diabetes", *flags, "--out", folder / name)
    return made


@pytest.fixture
def copy(runs, tmp_path):
    return Path(shutil.copytree(runs["svi"][0], tmp_path / "copy"))


def test_the_flag_alone_switches_the_method(runs):
    for name, (path, result) in runs.items():
        assert result.exit_code in (0, 1), result.output
        assert result.stdout.startswith(f"linear on diabetes by {name}\n")
        assert bnn.load(path).method.name == name


def test_several_devices_share_the_chains(tmp_path):
    words = ("fit", "linear", "--data", "stackloss", *NUTS, "--out", tmp_path / "run", "--device")
    assert "nuts, chains: expected at least 2 for 2 devices, got 1." in complaint(call(*words, "cpu,cpu"))
    two = tuple("chains=2" if word == "chains=1" else word for word in words)
    result = call(*two, "cpu,cpu")
    assert result.exit_code in (0, 1) and "on cpu,cpu" in result.stdout
    assert bnn.load(tmp_path / "run").draws.info["parts"] == 2


def test_the_exit_code_says_whether_it_converged(runs):
    path, result = runs["nuts"]  # one chain of 20 draws
    assert result.exit_code == 1 and "Verdict: not converged" in result.stdout
    assert call("summary", path).exit_code == 1
    path, result = runs["svi"]
    assert result.exit_code == {"approximate": 0, "not converged": 1}[bnn.load(path).verdict.verdict]


@pytest.mark.parametrize("name", ["svi", "nuts"])
def test_summary_prints_what_fit_printed(runs, name):
    path, result = runs[name]
    page, _, last = result.stdout.rstrip("\n").rpartition("\n\n")
    assert call("summary", path).stdout == page + "\n"
    assert last == f"See this again:  bnn-pyro summary {path}"


@pytest.mark.parametrize("name", ["svi", "nuts"])
def test_pages_fit_into_80_columns(runs, name):
    for line in runs[name][1].stdout.splitlines():
        assert len(line) <= 80 or str(runs[name][0]) in line, line


def test_the_printed_scores_are_those_of_the_posterior(runs):
    path, result = runs["svi"]
    posterior = bnn.load(path)
    value, error = posterior.score(bnn.load_dataset("diabetes").test)["test_rmse"]
    shown = re.search(r"test RMSE +([\d.]+) ± ([\d.]+)", result.stdout)
    assert abs(float(shown[1]) - value) < 0.01 and abs(float(shown[2]) - error) < 0.01
    assert 45 < value < 65  # diabetes has sd 77; a linear regression leaves about 53


def test_summary_as_json_has_scores_and_tables(runs):
    path = runs["nuts"][0]
    content = json.loads(call("summary", path, "--json").stdout)
    assert content["scores"]["test_lpd"]["stderr"] > 0
    assert content["summary"]["posterior"]["sigma"]["sd"] > 0
    assert content["summary"]["function_space"]["f[0]"]["r_hat"] is None  # one chain has none, and NaN is no JSON
    assert content["pictures"] == ["predictions.png", "ppc.png", "trace.png"]


@pytest.mark.parametrize(("name", "last"), [("svi", "elbo.png"), ("nuts", "trace.png")])
def test_pictures_are_there_and_not_blank(runs, name, last):
    path, result = runs[name]
    assert sorted(p.name for p in path.glob("*.png")) == sorted(["predictions.png", "ppc.png", last])
    assert all(is_drawn(p) for p in path.glob("*.png"))
    assert f"predictions.png, ppc.png, {last}" in result.stdout
    assert not [p for p in (*path.iterdir(), *path.parent.iterdir()) if p.name.startswith(".")]


def test_the_page_of_a_classifier_fits_and_its_scores_are_those_of_the_posterior(tmp_path):
    result = call("fit", "logistic", "--data", "breast_cancer", *SVI, "--out", tmp_path / "run")
    assert result.exit_code in (0, 1), result.output
    assert max(len(line) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= 80
    scores = bnn.load(tmp_path / "run").score(bnn.load_dataset("breast_cancer").test)
    for label, key in (("accuracy", "accuracy"), ("negative log prob.", "nll"), ("Brier score", "brier"),
                       ("calibration error", "ece")):  # fmt: skip
        shown = re.search(rf"^  {label} +([\d.]+) ± ([\d.]+)", result.stdout, re.M)
        assert float(shown[1]) == pytest.approx(scores[f"test_{key}"][0], abs=6e-4)
        assert float(shown[2]) == pytest.approx(scores[f"test_{key}"][1], abs=6e-4)
    assert re.search(r"^  epistemic nats, mean +0\.0", result.stdout, re.M)
    assert "in its own units" not in result.stdout
    assert sorted(p.name for p in (tmp_path / "run").glob("*.png")) == ["calibration.png", "elbo.png", "ppc.png"]
    assert all(is_drawn(p) for p in (tmp_path / "run").glob("*.png"))


def test_a_score_of_a_single_row_has_no_error():
    from bnn_pyro import tables

    assert tables.plus_minus({"value": 2.0, "stderr": float("nan")}) == tables.plus_minus({"value": 2.0}) == "2.000"
    assert tables.plus_minus({"value": 123.44, "stderr": 1.06}) == "123.4 ± 1.1"
    assert "0.000  a single point has none" in tables.score_lines({"test_epistemic_nats": {"value": 1e-15}})


def test_the_remedy_is_a_command_that_asks_for_more(runs):
    page = runs["nuts"][1].stdout.replace("\\\n", " ")
    words = shlex.split(re.search(r"bnn-pyro fit .*", page)[0])
    assert words[:7] == ["bnn-pyro", "fit", "linear", "--data", "diabetes", "--inference", "nuts"]
    assert "chains=4" in words and any(re.fullmatch(r"draws=\d{3,}", word) for word in words)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom bnn_pyro.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print([m for m in ('torch', 'pyro', 'arviz', 'pandas', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"
    began = time.perf_counter()
    assert python("-m", "bnn_pyro.cli", "--version").stdout == f"bnn-pyro {bnn.__version__}\n"
    assert time.perf_counter() - began < 2  # 0.1 s on an idle machine


def modules_after(words, folder):
    """What the command says on stderr, and which of the slow modules it has waited for."""
    code = (
        "import sys\nfrom bnn_pyro.cli import main\n"
        f"try:\n    main({list(map(str, words))!r})\nexcept SystemExit as stop:\n    pass\n"
        "print([m for m in ('torch', 'pyro', 'arviz', 'matplotlib') if m in sys.modules])"
    )
    made = python("-c", code, cwd=folder)
    return made.stderr, made.stdout.splitlines()[-1]


@pytest.mark.parametrize(("words", "sentence"), [
    (("--data", "none.csv", "--target", "y"), "none.csv: expected a file, got none"),
    (("--data", "t.csv", "--target", "z"), "unknown column of t.csv 'z'"),
    (("--data", "t.csv"), "--target: expected the column of t.csv to predict"),
    (("--data", "gap.csv", "--target", "y"), "got one at row 1 (line 3 of the file); 1 of 4 are missing"),
    (("--data", "odd.csv", "--target", "y"), "got '?' at row 1 (line 3 of the file)"),
    (("--data", "diabets"), "unknown data set 'diabets': did you mean 'diabetes'?"),
])  # fmt: skip
def test_a_wrong_table_is_refused_before_torch_is_waited_for(words, sentence, tmp_path):
    rows = ["a,y", "1,2", "2,3", "3,4", "4,6"]
    for name, second in (("t", "2,3"), ("gap", ",3"), ("odd", "?,3")):
        (tmp_path / f"{name}.csv").write_text("\n".join([*rows[:2], second, *rows[3:]]))
    said, loaded = modules_after(("fit", "linear", *words), tmp_path)
    assert sentence in said and loaded == "[]", (said, loaded)


def test_show_does_not_wait_for_arviz(tmp_path):
    assert modules_after(("show", "linear"), tmp_path) == ("", "['torch', 'pyro']")
    said, loaded = modules_after(("show", "liner"), tmp_path)
    assert "did you mean 'linear'?" in said and loaded == "[]"


def test_a_warning_is_shown_once_by_fit_and_kept_for_summary(tmp_path):
    rows = "\n".join(f"{i % 7},5,{i}" for i in range(30))
    (tmp_path / "t.csv").write_text(f"a,same,y\n{rows}\n")
    words = ("--data", tmp_path / "t.csv", "--target", "y", "--held-out", "0", *SVI, "--out", tmp_path / "run")
    made = call("fit", "linear", *words, "--no-pictures")
    said = "linear, x, column same: constant in the training rows"
    assert made.exit_code in (0, 1) and made.stderr.count(said) == 1, made.output
    assert "constant" not in made.stdout
    again = call("summary", tmp_path / "run")
    assert again.stdout.count(said) == 1 and again.stderr == ""


def test_list_names_every_model():
    page = call("list").stdout
    for name in bnn.list_models():
        assert re.search(rf"^{name} ", page, re.M)
    assert max(map(len, page.splitlines())) <= 80
    entries = json.loads(call("list", "--task", "regression", "--json").stdout)
    assert [e["name"] for e in entries] == bnn.list_models("regression")
    assert entries[0].keys() == {"name", "task", "dataset", "inference", "about"}
    assert "did you mean 'regression'" in complaint(call("list", "--task", "regresion"))


def test_datasets_names_every_data_set():
    page = call("datasets").stdout
    assert re.search(r"^diabetes +regression +442 +88 +10 +1 +progression$", page, re.M)
    assert re.search(r"^iris +classification +150 +30 +4 +1 +species$", page, re.M)
    assert max(map(len, page.splitlines())) <= 80
    assert [e["name"] for e in json.loads(call("datasets", "--json").stdout)] == bnn.list_datasets()


def test_datasets_says_which_are_not_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv("BNN_PYRO_DATA", raising=False)
    monkeypatch.setenv("BNN_PYRO_CACHE", str(tmp_path))
    page = call("datasets").stdout
    assert max(map(len, page.splitlines())) <= 80
    assert re.search(r"Not at hand: airfoil, .*uci/wine\.", " ".join(page.split()))
    absent = {e["name"]: e for e in json.loads(call("datasets", "--json").stdout) if not e["available"]}
    assert {"uci/wine", "mcycle"} <= set(absent) and "train_rows" not in absent["mcycle"]


def test_fetch_refuses_what_it_need_not_or_cannot_download(monkeypatch, tmp_path):
    monkeypatch.setenv("BNN_PYRO_CACHE", str(tmp_path))
    assert "did you mean 'diabetes'" in complaint(call("datasets", "--fetch", "diabets"))
    assert "'diabetes', which comes with scikit-learn" in complaint(call("datasets", "--fetch", "diabetes"))
    monkeypatch.setattr(bnn.datasets, "fetch_dataset", lambda name: tmp_path / name)
    assert call("datasets", "--fetch", "uci/wine").stdout == f"uci/wine is in {tmp_path}/uci/wine\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", bnn.list_models())
def test_show_explains_a_model(name):
    result = call("show", name)
    assert result.exit_code == 0, result.output
    model = bnn.get_model(name)
    for setting in options.defaults(type(model)):
        assert re.search(rf"^  {setting}=\S+ +\S", result.stdout, re.M), f"{setting} is not explained in Args"
    assert model.card.reference.split(",")[0] in result.stdout and f"bnn-pyro fit {name} " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(("name", "first", "count"), [
    ("logistic", r"^  w +30 +Normal\(0, 1\) +feature$", 31),
    ("mlp_categorical", r"^  w1 +64x50 +Normal\(0, ", 64 * 50 + 50 + 50 * 10 + 10),
])  # fmt: skip
def test_show_sees_the_classes_of_the_data(name, first, count):
    result = call("show", name)
    assert re.search(first, result.stdout, re.M) and f"{count} latent numbers" in result.stdout and result.stderr == ""


def test_show_has_sites_with_priors_and_sizes():
    page = call("show", "linear").stdout
    assert re.search(r"^  w +10 +Normal\(0, \*\) +feature$", page, re.M)  # its scale is another site
    assert re.search(r"^  sigma +number +InverseGamma\(1, 1\)\^0.5$", page, re.M)
    assert "12 latent numbers" in page


def test_published_numbers_keep_their_digits_and_kind_of_error():
    assert "-0.970 ± 0.061 (sd over splits)" in " ".join(call("show", "mlp_gaussian").stdout.split())


REFUSED = [
    (("mlp_gausian",), "unknown model 'mlp_gausian': did you mean 'mlp_gaussian'?"),
    (("../linear",), "unknown model '../linear'"),
    (("linear\x00",), "unknown model 'linear\\x00'"),
    (("linear\n",), "unknown model 'linear\\n'"),
    ((ESCAPE,), "unknown model '\\x1b[31mred'"),
    (("linear", "--data", "diabets"), "unknown data set 'diabets': did you mean 'diabetes'?"),
    (("linear", "--data", "../../etc/passwd"), "unknown data set"),
    (("linear", "--inference", "nutz"), "unknown inference 'nutz': did you mean 'nuts'?"),
    (("linear", "--dtype", "float23"), "did you mean 'float32'?"),
    (("linear", "--backend", "induktor"), "did you mean 'inductor'?"),
    (("linear", "--device", "gpu0"), "unknown device 'gpu0'"),
    (("linear", "--seed", "-1"), "seed: expected a whole number of at least 0, got -1"),
    (("linear", "--seed", "x"), "'x' is not a valid integer"),
    (("linear", "--set", "prior_ds=2"), "did you mean 'prior_sd'?"),
    (("linear", "--set", "drows=2"), "did you mean 'draws'?"),
    (("linear", "--set", "prior_sd=two"), "--set prior_sd: expected a number, got 'two'"),
    (("linear", "--set", "prior_sd=nan"), "linear, prior_sd: expected a positive number, got nan"),
    (("linear", "--set", "noise="), "--set noise: expected a number or none, got ''"),
    (("linear", "--set", "draws=1.5"), "--set draws: expected a whole number, got '1.5'"),
    (("linear", "--set", "draws=0"), "nuts, draws: expected a whole number of at least 1, got 0"),
    (("linear", "--set", "dense_mass=perhaps"), "--set dense_mass: expected true or false, got 'perhaps'"),
    (("linear", "--set", "draws"), "--set: expected KEY=VALUE, got 'draws'"),
    (("linear", "--set", "draws=1", "--set", "draws=2"), "--set draws: expected one value, got two"),
    (("linear", "--set", "seed=3"), "Write --seed."),
    (("linear", "--inference", "svi", "--set", "guide=norml"), "unknown guide 'norml': did you mean 'normal'?"),
    (("mlp_gaussian", "--set", "hidden=5,x"), "--set hidden: expected whole numbers separated by commas, got '5,x'"),
    (("mlp_gaussian", "--set", "hidden="), "mlp_gaussian, hidden: expected a tuple of whole numbers above 0, got ()"),
    (("linear", "--out", f"a{ESCAPE}"), "--out: expected a path without control characters"),
    (("linear", "--infernce", "svi"), "--inference"),
    ((), "Missing argument 'MODEL'"),
]


@pytest.mark.parametrize(
    ("words", "sentence"), REFUSED, ids=[" ".join(w).encode("unicode_escape").decode() for w, _ in REFUSED]
)
def test_what_cannot_be_fitted_is_refused_in_one_sentence_and_leaves_nothing(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("fit", *words)
    assert sentence in complaint(result, 74 if "--out" in words else 2)
    assert list(tmp_path.iterdir()) == []


def test_names_are_refused_everywhere():
    assert "did you mean 'linear'" in complaint(call("show", "linaer"))
    assert "did you mean 'list'" in complaint(call("lst"))
    assert "\\x1b" in complaint(call(ESCAPE))
    assert "\\x1b" in complaint(call("fit", "linear", f"--{ESCAPE}"))
    assert "expected a directory, got none" in complaint(call("summary", f"nowhere{ESCAPE}"), 74)


def test_a_run_that_exists_is_kept_unless_told(copy):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    assert "overwrite" in complaint(call("fit", "linear", *SVI, "--out", copy), 74)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    result = call("fit", "linear", *SVI, "--out", copy, "--overwrite", "--seed", "5", "--no-pictures")
    assert result.exit_code in (0, 1) and bnn.load(copy).seed == 5
    assert not list(copy.glob("*.png")) and "pictures" not in result.stdout


def test_a_directory_of_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    for flags in ((), ("--overwrite",)):
        assert "other files" in complaint(call("fit", "linear", "--out", tmp_path, *flags), 74)
    assert (tmp_path / "thesis.tex").read_text() == "text"
    assert "not made by bnn_pyro" in complaint(call("summary", tmp_path), 74)


@pytest.mark.parametrize("name", ["posterior.nc", "state.safetensors", "run.toml"])
def test_a_flipped_byte_is_found(copy, name):
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(raw)
    assert name in (said := complaint(call("summary", copy), 74)) and "damaged" in said


def test_a_missing_file_is_named(copy):
    (copy / "state.safetensors").unlink()
    assert "state.safetensors: expected a file, got none" in complaint(call("summary", copy), 74)


def test_the_default_directory_counts_up(tmp_path, monkeypatch):
    from bnn_pyro.runner import default_directory

    monkeypatch.chdir(tmp_path)
    assert default_directory("linear", "uci/wine", "svi") == "runs/linear-uci_wine-svi"
    (tmp_path / "runs" / "linear-diabetes-svi").mkdir(parents=True)
    os.symlink("nowhere", tmp_path / "runs" / "linear-diabetes-svi-2")
    assert default_directory("linear", "diabetes", "svi") == "runs/linear-diabetes-svi-3"
    assert default_directory("linear", "diabetes", "svi", overwrite=True) == "runs/linear-diabetes-svi"


def test_debug_shows_the_traceback():
    for words in (("--debug", "show", "x"), ("show", "x", "--debug")):
        result = call(*words)
        assert result.exit_code == 2 and "Traceback" in result.stderr and "unknown model" in result.stderr


def test_an_unexpected_error_is_one_sentence(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr(catalogue, "model_page", fail)
    assert "unexpected ZeroDivisionError: division by zero." in complaint(call("show", "linear"), 70)


def test_warnings_are_sentences():
    code = (
        "import warnings\nfrom bnn_pyro import catalogue\nfrom bnn_pyro.cli import main\n"
        "def page(name):\n    [warnings.warn('x, column 1:\\n constant') for _ in 'ab']\n    return 'page'\n"
        "catalogue.model_page = page\nmain(['show', 'linear'])"
    )
    made = python("-c", code)
    assert (made.stdout, made.stderr) == ("page\n", "warning: x, column 1: constant\n")


def test_a_run_saved_from_python_has_a_summary_too(tmp_path):
    import pyro
    import pyro.distributions as dist

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)

    data = bnn.load_dataset("stackloss").train
    posterior = bnn.BNN(program).fit(data, inference="map", steps=30, progress=False)
    posterior.save(tmp_path / "run")
    result = call("summary", tmp_path / "run")
    assert result.exit_code in (0, 1), result.output
    assert "program on data by map" in result.stdout and "Held-out" not in result.stdout
    assert "in the program's own units" in result.stdout


def test_values_are_read_by_the_type_of_their_field():
    @dataclass
    class Kind:
        count: int = 1
        rate: float | None = None
        flag: bool = False
        sizes: tuple[int, ...] = (3,)
        word: str = "a"

    types = options.field_types(Kind)
    read = lambda key, text: options.parse_value(key, text, types[key])
    assert read("count", "12") == 12 and read("rate", "1e-3") == 1e-3 and read("rate", "none") is None
    assert read("flag", "True") is True and read("flag", "no") is False
    assert read("sizes", "8,8") == read("sizes", "(8, 8)") == (8, 8) and read("sizes", "8") == read("sizes", "8,") == (
        8,
    )
    assert read("word", "none") == "none"
    for key, text in (("count", "1.0"), ("rate", "x"), ("flag", "2"), ("sizes", "8,,8"), ("word", "")):
        with pytest.raises(OptionError, match=f"--set {key}: expected"):
            read(key, text)


def test_a_key_that_model_and_method_share_is_refused():
    @dataclass
    class Model:
        draws: int = 1

    with pytest.raises(OptionError, match="one that both have"):
        options.parse_sets(["draws=3"], Model, bnn.NUTS, "mine")


@pytest.mark.parametrize("value", [3, 0.02, 1e-7, True, None, "relu", (8, 8), 0.1 + 0.2])
def test_text_of_a_value_reads_back(value):
    kind = tuple[int, ...] if isinstance(value, tuple) else (type(value) if value is not None else int | None)
    assert options.parse_value("x", options.as_text(value), kind) == value


@pytest.mark.slow
def test_the_demo_compares_two_methods(runs, tmp_path, monkeypatch):
    small = {"svi": ("steps=200", "draws=50"), "nuts": ("chains=1", "warmup=20", "draws=20")}
    monkeypatch.setattr(demo, "DEMO", {**demo.DEMO, "model": "linear", "hyperparameters": (), "inference": small})
    for name, (path, _) in runs.items():  # an earlier demo, which this one replaces
        shutil.copytree(path, tmp_path / "demo" / name)
    (tmp_path / "demo" / "svi" / "trace.png").write_text("of an earlier method")
    result = call("demo", "--out", tmp_path / "demo", "--no-progress")
    assert result.exit_code == 0, result.output  # although 20 draws do not converge
    assert not (tmp_path / "demo" / "svi" / "trace.png").exists()
    table = result.stdout[result.stdout.index(" side by side ") :]
    assert re.search(r"^ +svi +nuts$", table, re.M) and re.search(r"^  verdict .*not converged$", table, re.M)
    for label in ("test RMSE", "log predictive density", "inside 90 % interval", "epistemic sd, mean", "seconds"):
        assert re.search(rf"^  {label} +-?\d.* +-?\d", table, re.M), label
    for name in ("svi/predictions.png", "svi/elbo.png", "nuts/trace.png"):
        assert f"{tmp_path}/demo/{name}" in table and is_drawn(tmp_path / "demo" / name)


def test_the_demo_refuses_a_foreign_directory(tmp_path):
    (tmp_path / "nuts").mkdir()
    (tmp_path / "nuts" / "mine").write_text("text")
    assert "other files" in complaint(call("demo", "--out", tmp_path), 74)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine", "nuts"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path, usual_interrupts):
    command = [
        sys.executable,
        "-m",
        "bnn_pyro.cli",
        "fit",
        "linear",
        "--set",
        "warmup=10000000",  # not over when the signal comes, however fast the machine: no draw is kept yet
        "--out",
        str(tmp_path / "run"),
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert running.stderr.readline().startswith("Fitting linear")
    time.sleep(5)
    for _ in range(3):  # one that falls into one of torch's callbacks is lost there, as Python says; press again
        running.send_signal(signal.SIGINT)
        try:
            _, said = running.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            said = "still running"
    running.kill()  # which does nothing to a process that has ended
    # Interrupted inside torch's compiler, Python ends itself by the signal, which a shell calls 130 as well.
    assert running.returncode in (130, -signal.SIGINT) and said.strip() == "bnn-pyro: stopped."
    assert list(tmp_path.iterdir()) == []
