"""Data sets by name: real, checked by sum, split the same way every time; no network unless it is asked for."""

import hashlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import bnn_pyro as bnn
from bnn_pyro import datasets, embedded

SIZES = {
    "anes96": (944, 9),
    "breast_cancer": (569, 30),
    "diabetes": (442, 10),
    "digits": (1797, 64),
    "engel": (235, 1),
    "grunfeld": (220, 4),
    "iris": (150, 4),
    "longley": (16, 6),
    "nile": (100, 1),
    "randhie": (20190, 9),
    "stackloss": (21, 3),
    "statecrime": (51, 4),
    "wine": (178, 13),
}
CLASSES = {  # counts as the sets' own documentation has them
    "anes96": {"Clinton": 551, "Dole": 393},
    "breast_cancer": {"benign": 357, "malignant": 212},
    "digits": {0: 178, 1: 182, 2: 177, 3: 183, 4: 181, 5: 182, 6: 181, 7: 179, 8: 174, 9: 180},
    "iris": {"setosa": 50, "versicolor": 50, "virginica": 50},
    "wine": {"class_0": 59, "class_1": 71, "class_2": 48},
}


def whole(data):
    """Both parts in the order of the table."""
    return pd.concat([data.train.x, data.test.x]).sort_index(), pd.concat([data.train.y, data.test.y]).sort_index()


def test_all_are_listed_and_say_where_they_are(monkeypatch, tmp_path):
    monkeypatch.delenv("BNN_PYRO_DATA", raising=False)
    monkeypatch.setenv("BNN_PYRO_CACHE", str(tmp_path))
    names = datasets.list_datasets()
    assert names == sorted(names) and {n for n in names if datasets.dataset_card(n).where == "embedded"} == set(SIZES)
    assert {n for n in names if datasets.available(n)} == set(SIZES)
    assert {"uci/wine", "mcycle", "bikesharing"} <= set(names)
    for name in names:
        card = datasets.dataset_card(name)
        assert card.name == name and card.task in ("regression", "classification") and len(card.checksum) == 64
        assert card.about.endswith(".") and card.source


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_fixed_disjoint_splits(name):
    data, again = datasets.load_dataset(name), datasets.load_dataset(name)
    n, d = SIZES[name]
    assert (len(data.train) + len(data.test), data.train.x.shape[1]) == (n, d)
    assert len(data.test) == (round(0.1 * n) if name == "randhie" else n // 5)
    assert not set(data.train.x.index) & set(data.test.x.index)
    assert data.train.x.equals(again.train.x) and data.test.y.equals(again.test.y)
    assert data.train.x.index.equals(data.train.y.index)
    assert data.card.target == data.train.y.name and data.card.target not in data.train.x.columns
    assert not data.train.x.isna().any(axis=None)


def test_known_values():
    """Figures of the sources: Efron et al. 2004 (mean progression 152.13), Engel's median income 883.99 francs."""
    diabetes, engel = bnn.load_dataset("diabetes"), bnn.load_dataset("engel")
    assert np.concatenate([diabetes.train.y, diabetes.test.y]).mean() == pytest.approx(152.133, abs=1e-3)
    assert np.median(np.concatenate([engel.train.x, engel.test.x])) == pytest.approx(883.985, abs=1e-3)
    visits = whole(bnn.load_dataset("randhie"))[1]
    assert visits.dtype.kind == "i" and (visits == 0).mean() == pytest.approx(0.312, abs=5e-4)
    assert visits.var() == pytest.approx(20.29, abs=5e-3)
    crime, murder = whole(bnn.load_dataset("statecrime"))
    assert murder["Alabama"] == 7.1 and crime.loc["Alabama", "urban"] == 48.65  # rows keep the state they belong to


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_their_names_in_the_right_place(name):
    data = bnn.load_dataset(name)
    x, y = whole(data)
    assert data.card.task == "classification" and y.value_counts().to_dict() == CLASSES[name]
    if name == "breast_cancer":  # malignant nuclei are the larger ones
        assert x["mean area"][y == "malignant"].mean() > 1.5 * x["mean area"][y == "benign"].mean()
    if name == "anes96":  # party identification runs from strong Democrat (0) to strong Republican (6)
        assert x["PID"][y == "Dole"].mean() > 4 > 2 > x["PID"][y == "Clinton"].mean()
        assert "popul" not in x and "logpopul" in x
    if name == "iris":
        assert x["petal length (cm)"].groupby(y).mean().sort_values().index.tolist() == list(CLASSES["iris"])
    if name == "digits":
        assert x.columns[9] == "pixel_1_1" and x.max(axis=None) == 16
        zeros, ones = (
            x.loc[y == k, ["pixel_3_3", "pixel_3_4", "pixel_4_3", "pixel_4_4"]].mean(axis=None) for k in (0, 1)
        )
        assert ones > 3 * zeros  # a nought is empty in the middle


def test_text_stays_text():
    x = bnn.load_dataset("grunfeld").train.x
    assert x["firm"].dtype.kind not in "fiub" and "General Motors" in set(x["firm"])
    assert x["value"].dtype == float


@pytest.mark.parametrize(
    ("name", "sum_"),
    [
        ("diabetes", "c68c8df622e053da571c2a03605f66a188f1d9e8971ba3b808cbac9df9666600"),
        ("engel", "66c6ea5276f891d07faa1c6c9fb0e102ee29e577c93cdc0ea9bf4a1d7eef55d7"),
        ("stackloss", "c871701e1d784efb2795cfc56c04683aeeef8c9824ec80f55a26b9eac789a10f"),
    ],
)
def test_the_first_three_sets_hold_the_bytes_they_always_held(name, sum_):
    """Sums of version 0.1, over dtype, shape and bytes of x and y in the table's order, and its split."""
    x, y = whole(bnn.load_dataset(name))
    digest = hashlib.sha256()
    for part, array in (("x", x.to_numpy()), ("y", y.to_numpy())):
        digest.update(f"{part} {array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == sum_
    order = np.random.default_rng(0).permutation(len(x))
    assert (bnn.load_dataset(name).test.x.index == np.sort(order[: len(x) // 5])).all()


def test_other_values_are_refused(monkeypatch):
    entry = embedded.EMBEDDED["stackloss"]
    other = embedded.Embedded(entry.card, lambda: (entry.read()[0] + 1e-9, entry.read()[1]), entry.split)
    monkeypatch.setitem(embedded.EMBEDDED, "stackloss", other)
    with pytest.raises(bnn.DataError, match=rf"data set 'stackloss': expected SHA-256 {entry.card.checksum[:12]}"):
        bnn.load_dataset("stackloss")


def test_the_checksum_sees_names_kinds_values_and_text():
    x = pd.DataFrame({"a": [1.0, 2.0], "t": ["ab", "c"]})
    y = pd.Series([1, 0], name="y")
    others = [
        (x.rename(columns={"a": "b"}), y),
        (x.assign(a=[1.0, np.nextafter(2.0, 3.0)]), y),
        (x.assign(a=[1, 2]), y),
        (x.assign(t=["a", "bc"]), y),  # the same letters, cut elsewhere
        (x[["t", "a"]], y),
        (x, y.rename("z")),
        (x, y.astype(float)),
        (x, y.astype(bool)),
        (x, y[::-1]),
    ]
    sums = [embedded.checksum(*pair) for pair in [(x, y), *others]]
    assert len(set(sums)) == len(sums)
    as_object = x.assign(t=x["t"].astype(object))
    assert embedded.checksum(as_object, y.astype("int32")) == sums[0]  # how text and integers are held does not matter


def test_a_misspelt_name():
    with pytest.raises(bnn.UnknownNameError, match=r"unknown data set 'diabtes': did you mean 'diabetes'\?"):
        bnn.load_dataset("diabtes")
    for name in ("../diabetes", "uci/../mcycle", "uci"):
        with pytest.raises(bnn.UnknownNameError, match="unknown data set"):
            bnn.load_dataset(name)
        with pytest.raises(bnn.UnknownNameError, match="unknown data set"):
            datasets.fetch_dataset(name)


@pytest.mark.parametrize("split", [1, -1, True, 0.0, "0", "gap0", None])
def test_a_split_that_is_not_there(split):
    with pytest.raises(bnn.OptionError, match=r"data set 'iris', split: expected the one split 0, got"):
        datasets.load_dataset("iris", split=split)


def test_randhie_has_twenty_splits_that_differ():
    first, other = (set(datasets.load_dataset("randhie", split=k).test.x.index) for k in (0, 19))
    assert 100 < len(first & other) < 320  # about a tenth of 2019
    with pytest.raises(bnn.OptionError, match=r"expected one of 20 splits, 0 to 19, got 20"):
        datasets.load_dataset("randhie", split=20)


def test_fetching_what_needs_no_download():
    with pytest.raises(bnn.DataError, match=r"'iris', which comes with scikit-learn. bnn.load_dataset\('iris'\) reads"):
        datasets.fetch_dataset("iris")


def test_listing_and_loading_open_no_connection(tmp_path):
    """In a process of its own, since an audit hook stays for good."""
    code = """
import sys
seen = []
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo", "urllib.Request") and seen.append(event))
from bnn_pyro import datasets
for name in datasets.list_datasets():
    try:
        datasets.available(name), datasets.load_dataset(name)
    except datasets.DataError as error:
        assert "fetch" in str(error)
assert not seen and "bnn_pyro.download" not in sys.modules, seen
try:
    datasets.fetch_dataset("mcycle")
except OSError:
    pass
assert seen, "the hook sees nothing"
"""
    environment = {"BNN_PYRO_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
