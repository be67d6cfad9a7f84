"""Real data sets that come with scikit-learn and statsmodels: no download, fixed splits, and a checksum of the values.

split 0:            a permutation of seed 0 sets aside every fifth row, classes or not (it is not stratified)
split k of randhie: a permutation of seed (0, k) sets aside the last tenth
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

Table = tuple[pd.DataFrame, pd.Series]
Split = tuple[np.ndarray, np.ndarray]  # row numbers of the training and the test part
SPLIT_SEED = 0  # of the permutations; part of each data set's definition


@dataclass(frozen=True)
class DataCard:
    """What a data set is.

    ``checksum`` is a SHA-256: of names, kinds and values for an embedded set (see ``checksum``), of the uncompressed
    CSV file for one of the data folder. ``where`` is "embedded" or "folder"; ``splits`` counts the fixed splits and
    ``gap_splits`` the ones that hold out the middle third of a column.
    """

    name: str
    task: str
    target: str
    about: str
    source: str
    checksum: str
    licence: str = ""
    where: str = "embedded"
    splits: int = 1
    gap_splits: int = 0


def checksum(x: pd.DataFrame, y: pd.Series) -> str:
    """SHA-256 of column names, kinds and values of x (n, d) and y (n,), text included.

    Numbers count as little-endian float64 or int64 and text as UTF-8, so the sum is the same for any generation of
    pandas and on any machine. Of a nullable column with gaps, where those are counts as well.
    """
    digest = hashlib.sha256()
    for name, column in [*x.items(), ("target " + str(y.name), y)]:
        kind = getattr(column.dtype, "kind", "O")
        digest.update(f"{name}\0{len(column)}\0{kind if kind in 'fib' else 'text'}\0".encode())
        if kind in "fib" and pd.api.types.is_extension_array_dtype(column.dtype) and column.isna().any():
            digest.update(column.isna().to_numpy(dtype=bool).tobytes())
            column = column.fillna(False if kind == "b" else 0)
        if kind == "f":
            digest.update(column.to_numpy(dtype="<f8").tobytes())
        elif kind in "ib":
            digest.update(column.to_numpy(dtype="<i8").tobytes())
        else:
            for value in column:
                text = str(value).encode()
                digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def fifth(n: int, k: int) -> Split:
    """Every fifth of n rows for the test part, in the order of the table."""
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    return np.sort(order[n // 5 :]), np.sort(order[: n // 5])


def tenth(n: int, k: int) -> Split:
    """The k-th split of n rows into nine tenths and one, both in the order of their permutation."""
    order = np.random.default_rng([SPLIT_SEED, k]).permutation(n)
    end = round(0.9 * n)
    return order[:end], order[end:]


@dataclass(frozen=True)
class Embedded:
    """A card, the function that reads the table from its package, and the rule of its splits."""

    card: DataCard
    read: Callable[[], Table]
    split: Callable[[int, int], Split] = fifth


def _from_sklearn(name: str, target: str) -> Callable[[], Table]:
    """A classification set of scikit-learn; y holds the names of the classes (whole numbers for digits)."""

    def read() -> Table:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")(as_frame=True)
        labels = [bunch.target_names[code] for code in bunch.target]
        labels = [int(label) if bunch.target_names.dtype.kind in "iu" else str(label) for label in labels]
        return bunch.data, pd.Series(labels, index=bunch.data.index, name=target)

    return read


def _from_statsmodels(name: str, target: str, columns: tuple[str, ...] = ()) -> Callable[[], Table]:
    """A regression set of statsmodels, as floats where it holds numbers; without ``columns`` all but the target."""

    def read() -> Table:
        import importlib

        table = importlib.import_module(f"statsmodels.datasets.{name}").load_pandas().data
        x = table[list(columns)] if columns else table.drop(columns=target)
        numbers = [column for column in x.columns if x[column].dtype.kind in "fiu"]
        return x.astype(dict.fromkeys(numbers, float)), table[target].astype(float)

    return read


def _diabetes() -> Table:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(as_frame=True, scaled=False)
    return bunch.data, bunch.target.rename("progression")


def _anes96() -> Table:
    x, vote = _from_statsmodels("anes96", "vote")()
    return x.drop(columns="popul"), vote.map({0.0: "Clinton", 1.0: "Dole"}).rename("vote")


def _randhie() -> Table:
    x, visits = _from_statsmodels("randhie", "mdvis")()
    return x, visits.astype(int)


_UCI = "CC BY 4.0 (UCI, for all of its sets)"
_PUBLIC = "public domain"


def _regression(
    name: str, read: Callable[[], Table], target: str, about: str, source: str, sum_: str, licence: str
) -> Embedded:
    return Embedded(DataCard(name, "regression", target, about, source, sum_, licence), read)


def _classes(
    name: str, read: Callable[[], Table], target: str, about: str, source: str, sum_: str, licence: str
) -> Embedded:
    return Embedded(DataCard(name, "classification", target, about, source, sum_, licence), read)


_ALL = (
    _regression(
        "diabetes",
        _diabetes,
        "progression",
        "Disease progression a year after baseline, from age, sex, bmi, blood pressure and six serum measurements.",
        "Efron et al. 2004; scikit-learn",
        "d72e25b1edd8403843ab5a8f86216c3e9a9460a2df02da135b88c67c64d7dfea",
        "",
    ),
    _regression(
        "engel",
        _from_statsmodels("engel", "foodexp"),
        "foodexp",
        "Food expenditure of Belgian working-class households by income, in francs; its spread grows with income.",
        "Engel 1857; statsmodels",
        "f0cf6cd38592587264fc8fe9c6a3408a1fcff3d6f20d912012ebcfedac1364af",
        _PUBLIC,
    ),
    _regression(
        "stackloss",
        _from_statsmodels("stackloss", "STACKLOSS"),
        "STACKLOSS",
        "Ammonia lost by a plant on 21 days, from air flow, water temperature and acid concentration; a few outliers.",
        "Brownlee 1965; statsmodels",
        "64b76d06421cc18f2b4515b215db44345c67f73aff1f927c8d33115da245a7bf",
        _PUBLIC,
    ),
    _regression(
        "grunfeld",
        _from_statsmodels("grunfeld", "invest"),
        "invest",
        "Gross investment of 11 firms over 20 years, from market value, capital, year and the firm's name (text).",
        "Grunfeld 1958; statsmodels",
        "746484aab3b2b7eb8ee23dc5dc302f357ea207d197decb93145c1962f1390463",
        _PUBLIC,
    ),
    _regression(
        "longley",
        _from_statsmodels("longley", "TOTEMP"),
        "TOTEMP",
        "US employment in 16 years from six economic series that are almost collinear: weights uncertain, sum is not.",
        "Longley 1967; statsmodels",
        "b839d7d956b2bd051ceb861b8d87ebc28ae157ff5c9299ee7aa03657b00c79ac",
        _PUBLIC,
    ),
    _regression(
        "nile",
        _from_statsmodels("nile", "volume"),
        "volume",
        "Yearly flow of the Nile at Aswan 1871-1970, in 1e8 cubic metres; it drops about 1899.",
        "Cobb 1978; statsmodels",
        "4c9bddda9e7f3eb0d3d6deafd52857216d811b5b2864d2e32505f1662ef33897",
        _PUBLIC,
    ),
    _regression(
        "statecrime",
        _from_statsmodels("statecrime", "murder", ("urban", "poverty", "hs_grad", "single")),
        "murder",
        "Murders per 100,000 people in the US states and DC in 2009, from urban, poverty, schooling, one-parent rates.",
        "American Statistical Abstracts; statsmodels",
        "7a8c416fdf3847f913447b84876d85292784ebd11ba381844da16ab4f2338fb2",
        _PUBLIC,
    ),
    Embedded(
        DataCard(
            "randhie",
            "regression",
            "mdvis",
            "Counts of visits to a doctor in the RAND health insurance experiment; over-dispersed, 31 % zeros.",
            "Cameron & Trivedi 2005; statsmodels",
            "93a35f75e4b8df9a2d6fa4d6fbbb771c28592a597ded3dbf1cd227b6d51e47b3",
            _PUBLIC,
            splits=20,
        ),
        _randhie,
        tenth,
    ),
    _classes(
        "anes96",
        _anes96,
        "vote",
        "Clinton or Dole: expected vote of 944 US citizens in 1996, from party, views, age, education and income.",
        "American National Election Studies 1996; statsmodels",
        "b2f0bce058bda9f3809d776fb9cf58fa8d29eb0558fb6d18b66857070055e5f6",
        _PUBLIC,
    ),
    _classes(
        "breast_cancer",
        _from_sklearn("breast_cancer", "diagnosis"),
        "diagnosis",
        "Malignant or benign tumours, from 30 measurements of cell nuclei in images.",
        "Wolberg, Street & Mangasarian 1995; scikit-learn",
        "47287d630d8335926bb4fdc9779dab29043f06e03d5556ad9ebb3f15ae793e35",
        _UCI,
    ),
    _classes(
        "digits",
        _from_sklearn("digits", "digit"),
        "digit",
        "Handwritten digits 0-9 as 8 x 8 pixels of grey value 0-16; columns pixel_row_column.",
        "Alpaydin & Kaynak 1998; scikit-learn",
        "f4048a747ed348825b6c18244920e4786438aa9282464ea7ac4a1bc48e2b591a",
        _UCI,
    ),
    _classes(
        "iris",
        _from_sklearn("iris", "species"),
        "species",
        "Three species of iris from the lengths and widths of sepal and petal, in centimetres.",
        "Fisher 1936; scikit-learn",
        "8dc6a3f0e5c90f6a151ad80b6f092f26f2b0ef03f18494b82332fed76e6a4bd8",
        _UCI,
    ),
    _classes(
        "wine",
        _from_sklearn("wine", "cultivar"),
        "cultivar",
        "Three cultivars of Italian wine from 13 chemical measurements (uci/wine is another set: quality of red wine).",
        "Aeberhard & Forina 1991; scikit-learn",
        "2a50c451ff9f2ee66ca137aad033a3319e682423ea1354098e130c8ae99880ea",
        _UCI,
    ),
)
EMBEDDED = {entry.card.name: entry for entry in _ALL}
