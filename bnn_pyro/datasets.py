"""Real data sets that come with scikit-learn and statsmodels, each with a fixed split and a checksum; no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bnn_pyro.data import collect
from bnn_pyro.errors import DataError, unknown

SPLIT_SEED = 0  # of the permutation that sets aside every fifth row; part of each data set's definition


@dataclass(frozen=True)
class DataCard:
    """What a data set is. ``checksum`` is the SHA-256 of x and y as ``Data.checksum`` computes it."""

    name: str
    task: str
    target: str
    about: str
    source: str
    checksum: str


@dataclass(frozen=True)
class Part:
    """Rows of a data set: a data frame x (n, d) and a series y (n,), in original units."""

    x: pd.DataFrame
    y: pd.Series

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class DataSet:
    """``train`` and ``test`` are disjoint and the same on every call; ``card`` says what the columns are."""

    train: Part
    test: Part
    card: DataCard


def _diabetes() -> tuple[pd.DataFrame, pd.Series]:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(as_frame=True, scaled=False)
    return bunch.data, bunch.target.rename("progression")


def _engel() -> tuple[pd.DataFrame, pd.Series]:
    from statsmodels.datasets import engel

    table = engel.load_pandas().data
    return table[["income"]], table["foodexp"]


def _stackloss() -> tuple[pd.DataFrame, pd.Series]:
    from statsmodels.datasets import stackloss

    table = stackloss.load_pandas().data
    return table.drop(columns="STACKLOSS").astype(float), table["STACKLOSS"].astype(float)


_LOADERS: dict[str, tuple[Callable[[], tuple[pd.DataFrame, pd.Series]], DataCard]] = {}


def _add(loader: Callable[[], tuple[pd.DataFrame, pd.Series]], **card: str) -> None:
    _LOADERS[card["name"]] = (loader, DataCard(**card))


_add(
    _diabetes,
    name="diabetes",
    task="regression",
    target="progression",
    about="Disease progression a year after baseline, from age, sex, bmi, blood pressure and six serum measurements.",
    source="Efron et al. 2004; scikit-learn",
    checksum="c68c8df622e053da571c2a03605f66a188f1d9e8971ba3b808cbac9df9666600",
)
_add(
    _engel,
    name="engel",
    task="regression",
    target="foodexp",
    about="Food expenditure of Belgian working-class households by income, in francs; its spread grows with income.",
    source="Engel 1857; statsmodels",
    checksum="66c6ea5276f891d07faa1c6c9fb0e102ee29e577c93cdc0ea9bf4a1d7eef55d7",
)
_add(
    _stackloss,
    name="stackloss",
    task="regression",
    target="STACKLOSS",
    about="Ammonia lost by a plant on 21 days, from air flow, water temperature and acid concentration; a few outliers.",
    source="Brownlee 1965; statsmodels",
    checksum="c871701e1d784efb2795cfc56c04683aeeef8c9824ec80f55a26b9eac789a10f",
)


def list_datasets() -> list[str]:
    """Names that ``load_dataset`` takes."""
    return sorted(_LOADERS)


def dataset_card(name: str) -> DataCard:
    """The card of a data set, without loading it. Raises: UnknownNameError with the nearest right name."""
    if name not in _LOADERS:
        raise unknown("data set", name, _LOADERS, "bnn.list_datasets() shows all.")
    return _LOADERS[name][1]


def load_dataset(name: str) -> DataSet:
    """A real data set with a fixed split: four rows in five for training.

    Raises: UnknownNameError for a misspelt name; DataError if the installed copy is not the one that the card describes.
    """
    card = dataset_card(name)
    x, y = _LOADERS[name][0]()
    found = collect(x, y).checksum()
    if found != card.checksum:
        raise DataError(
            f"data set {name!r}: expected SHA-256 {card.checksum[:12]}..., got {found[:12]}...: the installed package "
            "ships other values. Report it, with the package's version."
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(x))
    test = np.sort(order[: len(x) // 5])
    train = np.sort(order[len(x) // 5 :])
    return DataSet(Part(x.iloc[train], y.iloc[train]), Part(x.iloc[test], y.iloc[test]), card)
