"""Real data sets by name, with fixed splits: some come with scikit-learn and statsmodels, some lie in a data folder.

data = bnn.load_dataset("diabetes")               # data.train, data.test, data.card
data = bnn.load_dataset("uci/wine", split=3)      # the fourth of its 20 splits
bnn.fetch_dataset("uci/wine")                     # the only call here that uses the network
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bnn_pyro.data_folder import find, read_set, read_split, split_number
from bnn_pyro.embedded import EMBEDDED, SPLIT_SEED, DataCard, checksum
from bnn_pyro.errors import DataError, unknown
from bnn_pyro.folder_cards import FOLDER

__all__ = [
    "SPLIT_SEED",
    "DataCard",
    "DataSet",
    "Part",
    "available",
    "dataset_card",
    "fetch_dataset",
    "list_datasets",
    "load_dataset",
]


@dataclass(frozen=True)
class Part:
    """Rows of a data set: a data frame x (n, d) and a series y (n,), in original units or class labels.

    ``missing`` says what ``fit`` does with missing values, where it is not told.
    """

    x: pd.DataFrame
    y: pd.Series
    missing: str = "refuse"

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Part({len(self)} rows: {self.x.shape[1]} columns in .x, {self.y.name} in .y)"


@dataclass(frozen=True)
class DataSet:
    """``train`` and ``test`` are disjoint and the same on every call; ``card`` says what the columns are."""

    train: Part
    test: Part
    card: DataCard

    def __repr__(self) -> str:
        rows = f"{len(self.train)} rows in .train, {len(self.test)} in .test"
        return f"DataSet({self.card.name}, {self.card.task} of {self.card.target}: {rows})"


def list_datasets() -> list[str]:
    """Names that ``load_dataset`` takes, whether or not the files of a set are at hand (see ``available``)."""
    return sorted([*EMBEDDED, *FOLDER])


def dataset_card(name: str) -> DataCard:
    """The card of a data set, without loading it. Raises: UnknownNameError with the nearest right name."""
    cards = {card.name: card for card in [*(e.card for e in EMBEDDED.values()), *(e.card for e in FOLDER.values())]}
    if name not in cards:
        raise unknown("data set", name, cards, "bnn.list_datasets() shows all.")
    return cards[name]


def available(name: str) -> bool:
    """Whether ``load_dataset(name)`` finds the values: always for an embedded set, else if its files are there.

    Raises: UnknownNameError for a misspelt name.
    """
    if dataset_card(name).where == "embedded":
        return True
    return find(name, "data.csv") is not None and find(name, "splits.npz") is not None


def load_dataset(name: str, split: int | str = 0) -> DataSet:
    """A real data set with a fixed split: ``card.splits`` counts them, from 0.

    An embedded set trains on four rows in five (see ``bnn_pyro.embedded``); a set of the data folder on nine in ten, or
    with ``split="gap0"``, "gap1", ... on all rows but those in the middle third of that column. Rows keep the order of
    the split.

    Raises: UnknownNameError for a misspelt name; OptionError for a split that the set does not have; DataError if its
        files are not there, or the values are not the ones that the card describes.
    """
    card = dataset_card(name)
    split_number(card, split)
    if card.where == "embedded":
        entry = EMBEDDED[name]
        x, y = entry.read()
        found = checksum(x, y)
        if found != card.checksum:
            raise DataError(
                f"data set {name!r}: expected SHA-256 {card.checksum[:12]}..., got {found[:12]}...: the installed "
                "package ships other values. Report it, with the package's version."
            )
        train, test = entry.split(len(x), int(split))
    else:
        x, y = read_set(name)
        train, test = read_split(name, split, len(x))
    return DataSet(Part(x.iloc[train], y.iloc[train]), Part(x.iloc[test], y.iloc[test]), card)


def fetch_dataset(name: str) -> Path:
    """Downloads a set of the data folder into the cache, where ``load_dataset`` finds it; returns its folder there.

    A set that is in the cache already is not fetched again. What arrives is kept only if its values and splits have
    the checksums of the card.

    Raises: UnknownNameError for a misspelt name; DataError for an embedded set, which needs no download, and for other
        values than the card's; RunError for what the network or the disk refuses.
    """
    card = dataset_card(name)
    if card.where == "embedded":
        raise DataError(
            f"fetch_dataset: expected a data set that is a file, got {name!r}, which comes with {_package(card)}. "
            f"bnn.load_dataset({name!r}) reads it."
        )
    from bnn_pyro.download import fetch

    return fetch(name)


def _package(card: DataCard) -> str:
    return card.source.rpartition("; ")[2]
