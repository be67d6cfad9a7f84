"""Data sets of the data folder: the right columns and rows, verified, and every refusal before any value is used."""

import gzip
import hashlib
import shutil
import sys

import numpy as np
import pytest

import bnn_pyro as bnn
from bnn_pyro import data_folder, embedded
from bnn_pyro.datasets import available, load_dataset
from bnn_pyro.download import splits_by_rule
from bnn_pyro.folder_cards import FOLDER, FolderSet

SHAPES = {  # rows, columns, and two figures of the target
    "airfoil": (1503, 5, 103.38, 140.987),
    "bikesharing": (17379, 12, 1, 977),
    "german_credit": (1000, 24, 0, 1),
    "ionosphere": (351, 33, 0, 1),
    "mcycle": (133, 1, -134, 75),
    "uci/boston": (506, 13, 5, 50),
    "uci/concrete": (1030, 8, 2.33, 82.6),
    "uci/kin8nm": (8192, 8, None, None),
    "uci/naval": (11934, 16, 0.95, 1),
    "uci/protein": (45730, 9, 0, 20.999),
    "uci/wine": (1599, 11, 3, 8),
}
TABLE = b"a,b,target,spare\n1,2.5,3,9\n4,5.5,6,9\n7,8.5,9,9\n10,11.5,12,9\n"
TRAIN, TEST = np.array([[2, 0, 3], [1, 0, 2]], np.uint16), np.array([[1], [3]], np.uint16)


@pytest.fixture
def folder(data_folder, monkeypatch):
    monkeypatch.setenv("BNN_PYRO_DATA", str(data_folder))
    return data_folder


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A made-up set called ``group/tiny`` in a data folder of its own; returns that set's folder."""
    card = embedded.DataCard(
        "group/tiny", "regression", "target", "Made up.", "here", hashlib.sha256(TABLE).hexdigest(),
        where="folder", splits=2, gap_splits=1,
    )  # fmt: skip
    sums = data_folder.sum_of([TRAIN, TEST]), data_folder.sum_of([np.array([1, 3])])
    entry = FolderSet(card, "a,b,target,spare", *sums, drop=("spare",), rename={"a": "first"})
    monkeypatch.setitem(FOLDER, "group/tiny", entry)
    monkeypatch.setenv("BNN_PYRO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BNN_PYRO_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "data" / "group" / "tiny"
    home.mkdir(parents=True)
    (home / "data.csv").write_bytes(TABLE)
    np.savez(home / "splits.npz", train=TRAIN, test=TEST)
    np.savez(home / "gap_splits.npz", test_0=np.array([1, 3], np.uint16))
    return home


def refusal(split=0):
    with pytest.raises(bnn.DataError) as caught:
        load_dataset("group/tiny", split)
    text = str(caught.value)
    assert text.startswith("data set 'group/tiny': expected ") and "\n" not in text and "got" in text
    return text


def test_columns_rows_and_splits(tiny):
    data = load_dataset("group/tiny", 1)
    assert list(data.train.x.columns) == ["first", "b"] and data.train.y.tolist() == [6, 3, 9]
    assert data.train.x.to_numpy().tolist() == [[4, 5.5], [1, 2.5], [7, 8.5]] and data.test.y.tolist() == [12]
    assert data.train.x.dtypes.eq(float).all() and data.train.y.dtype == float
    gap = load_dataset("group/tiny", "gap0")
    assert gap.train.y.tolist() == [3, 9] and gap.test.y.tolist() == [6, 12]


def test_a_gzipped_table_has_the_same_sum(tiny):
    (tiny / "data.csv").unlink()
    (tiny / "data.csv.gz").write_bytes(gzip.compress(TABLE, mtime=1))
    assert available("group/tiny") and load_dataset("group/tiny").train.y.tolist() == [9, 3, 12]
    (tiny / "data.csv.gz").write_bytes(gzip.compress(TABLE)[:-9])
    assert "data.csv.gz" in refusal()
    (tiny / "data.csv.gz").write_bytes(TABLE)
    assert "Not a gzipped file" in refusal()


def test_the_cache_is_looked_at_after_the_folder(tiny, tmp_path, monkeypatch):
    cached = tmp_path / "cache" / "group" / "tiny"
    cached.parent.mkdir(parents=True)
    shutil.move(tiny, cached)
    assert load_dataset("group/tiny").test.y.tolist() == [6]
    monkeypatch.delenv("BNN_PYRO_DATA")
    assert available("group/tiny") and load_dataset("group/tiny").test.y.tolist() == [6]
    (cached / "splits.npz").unlink()
    assert not available("group/tiny")
    assert "group/tiny/splits.npz" in refusal()


def test_nothing_there_says_both_ways_to_get_it(tiny, monkeypatch):
    (tiny / "data.csv").unlink()
    ways = "or fetch it: bnn.fetch_dataset('group/tiny') or bnn-pyro datasets --fetch group/tiny"
    assert not available("group/tiny")
    text = refusal()
    assert f"got BNN_PYRO_DATA={tiny.parent.parent} without it. Set BNN_PYRO_DATA to a folder that holds it" in text
    assert text.endswith(ways)
    monkeypatch.delenv("BNN_PYRO_DATA")
    assert "got BNN_PYRO_DATA not set" in refusal() and refusal().endswith(ways)


def test_changed_files_are_refused_by_name(tiny):
    (tiny / "data.csv").write_bytes(TABLE.replace(b"5.5", b"5.4"))
    text = refusal()
    assert f"expected {tiny / 'data.csv'} with SHA-256 {FOLDER['group/tiny'].card.checksum[:12]}" in text
    assert text.endswith("Remove it and fetch it again: bnn.fetch_dataset('group/tiny')")
    (tiny / "data.csv").write_bytes(TABLE)
    np.savez(tiny / "splits.npz", train=TRAIN[::-1], test=TEST)
    assert str(tiny / "splits.npz") in refusal()
    np.savez(tiny / "gap_splits.npz", test_0=np.array([0, 3]))
    assert refusal("gap0").endswith("Replace it with the original.")


@pytest.mark.parametrize("kind", ["pickle", "torn", "text", "key", "floats", "empty"])
def test_damaged_splits(tiny, kind):
    path = tiny / "splits.npz"
    good = path.read_bytes()
    if kind == "pickle":
        np.savez(path, train=np.array([print, 1], dtype=object), test=TEST)
    elif kind == "key":
        np.savez(path, train=TRAIN)
    elif kind == "floats":
        np.savez(path, train=TRAIN.astype(float), test=TEST)
    else:
        path.write_bytes({"torn": good[: len(good) // 2], "text": b"train: 1 2 3", "empty": b""}[kind])
    text = refusal()
    assert str(path) in text and "row numbers" in text


def test_gap_splits_cannot_be_fetched(tiny):
    (tiny / "gap_splits.npz").unlink()
    assert refusal("gap0").endswith("Set BNN_PYRO_DATA to a folder that holds it; it cannot be fetched.")


def test_a_split_that_is_not_there_is_refused_before_reading(tiny):
    (tiny / "data.csv").unlink()
    for split in (2, -1, True, 0.0, "0", "gap1", "gap", "gap-1", "gap²"):
        with pytest.raises(
            bnn.OptionError, match=r"split: expected one of 2 splits, 0 to 1 \(or 'gap0' to 'gap0'\), got"
        ):
            load_dataset("group/tiny", split)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("BNN_PYRO_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    assert data_folder.cache_folder() == tmp_path / ".cache" / "bnn_pyro"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(data_folder.cache_folder()) == "/x/bnn_pyro"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert data_folder.cache_folder() == tmp_path / "Library" / "Caches" / "bnn_pyro"
    monkeypatch.setenv("BNN_PYRO_CACHE", "/y")
    assert str(data_folder.cache_folder()) == "/y"


# ---- the real folder


def test_the_table_lists_every_set_of_the_folder():
    assert set(FOLDER) == set(SHAPES)
    assert all(entry.card.name == name and entry.card.where == "folder" for name, entry in FOLDER.items())


@pytest.mark.parametrize("name", SHAPES)
def test_real_sets(folder, name):
    n, d, low, high = SHAPES[name]
    data = load_dataset(name)
    y = np.concatenate([data.train.y, data.test.y])
    assert (len(y), data.train.x.shape[1]) == (n, d) and len(data.train) == round(0.9 * n)
    assert data.train.y.name == data.card.target and not set(data.train.x.index) & set(data.test.x.index)
    if low is not None:
        assert (y.min(), y.max()) == (low, high)
    for k in range(data.card.gap_splits):
        column = k  # held out: the middle third of column k
        gap = load_dataset(name, f"gap{k}")
        values = gap.test.x.iloc[:, column]
        outside = gap.train.x.iloc[:, column]
        assert len(gap.train) + len(gap.test) == n
        assert (((outside <= values.min()) | (outside >= values.max())).all()) and len(values) == pytest.approx(
            n / 3, abs=2
        )
    with pytest.raises(bnn.OptionError, match=f"expected one of {data.card.splits} splits"):
        load_dataset(name, data.card.splits)


def test_traps_of_the_real_sets(folder):
    naval = load_dataset("uci/naval").train.x
    assert "turbine_decay" not in naval and naval["T1"].nunique() == naval["P1"].nunique() == 1
    assert "racial" in load_dataset("uci/boston").card.about
    bikes = load_dataset("bikesharing")
    assert "season" not in bikes.train.x and (bikes.train.x["instant"] == bikes.train.x.index + 1).all()
    assert bikes.train.y.dtype.kind == "i"
    assert FOLDER["uci/protein"].card.splits == 5
    bad = load_dataset("german_credit")
    assert bad.train.y.sum() + bad.test.y.sum() == 300


@pytest.mark.parametrize("name", [*SHAPES, "randhie"])
def test_splits_follow_their_rule(folder, name):
    with np.load(folder / name / "splits.npz", allow_pickle=False) as file:
        train, test = file["train"], file["test"]
    if name == "randhie":
        for k in range(20):
            data = load_dataset(name, k)
            assert (data.train.x.index == train[k]).all() and (data.test.x.index == test[k]).all()
    else:
        made = splits_by_rule(name, SHAPES[name][0])
        assert np.array_equal(made[0], train) and np.array_equal(made[1], test)
