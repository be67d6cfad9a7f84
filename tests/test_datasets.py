"""Data sets: real, checked by sum, split the same way every time."""

import numpy as np
import pytest

import bnn_pyro as bnn
from bnn_pyro import datasets

SIZES = {"diabetes": (442, 10), "engel": (235, 1), "stackloss": (21, 3)}


def test_all_are_listed():
    assert bnn.list_datasets() == sorted(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_fixed_disjoint_splits(name):
    data, again = bnn.load_dataset(name), bnn.load_dataset(name)
    n, d = SIZES[name]
    assert (len(data.train) + len(data.test), data.train.x.shape[1]) == (n, d) and len(data.test) == n // 5
    assert not set(data.train.x.index) & set(data.test.x.index)
    assert data.train.x.equals(again.train.x) and data.test.y.equals(again.test.y)
    assert data.card.target == data.train.y.name and data.card.task == "regression"


def test_known_values():
    """Figures of the sources: Efron et al. 2004 (mean progression 152.13), Engel's median income 883.99 francs."""
    diabetes, engel = bnn.load_dataset("diabetes"), bnn.load_dataset("engel")
    assert np.concatenate([diabetes.train.y, diabetes.test.y]).mean() == pytest.approx(152.133, abs=1e-3)
    assert np.median(np.concatenate([engel.train.x, engel.test.x])) == pytest.approx(883.985, abs=1e-3)


def test_other_values_are_refused(monkeypatch):
    loader, card = datasets._LOADERS["stackloss"]
    monkeypatch.setitem(datasets._LOADERS, "stackloss", (lambda: (loader()[0] + 1e-9, loader()[1]), card))
    with pytest.raises(bnn.DataError, match=r"data set 'stackloss': expected SHA-256 c871701e1d78"):
        bnn.load_dataset("stackloss")


def test_a_misspelt_name():
    with pytest.raises(bnn.UnknownNameError, match=r"unknown data set 'diabtes': did you mean 'diabetes'\?"):
        bnn.load_dataset("diabtes")
    with pytest.raises(bnn.UnknownNameError, match=r"unknown data set '../diabetes'"):
        bnn.load_dataset("../diabetes")
