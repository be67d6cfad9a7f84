"""ArviZ objects from plain arrays, and ArviZ's own diagnostics: the one file that knows ArviZ.

There are two ArviZ generations, 0.x (``InferenceData``) and 1.x (``xarray.DataTree``). Here every group is first an
``xarray.Dataset``, the same for both, and wrapped at the end; files go through ``xarray.DataTree`` under either. Above
this file nobody asks which generation is installed. Groups whose names end in ``_data`` hold one array a variable; all
others are *sampled*: their arrays begin with the axes (chain, draw).
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bnn_pyro.errors import DataError, OptionError, ShapeError, UnknownNameError, printable, unknown

with warnings.catch_warnings():  # once a day ArviZ 0.23 announces 1.x when it is imported
    warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
    import arviz as az

ByVariable = dict[str, NDArray[np.float64]]

_INFERENCE_DATA = az.__version__.startswith("0.")  # not hasattr: 1.x answers to az.InferenceData too, with a DataTree
_FEWEST_WEIGHTS = 25  # PSIS fits the largest fifth, and needs five
_EQUAL_WEIGHTS = 0.01  # see pareto_k


def build(
    groups: Mapping[str, Mapping[str, ArrayLike]],
    dims: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    coords: Mapping[str, ArrayLike] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Makes the ArviZ object.

    Args:
        groups: Arrays by group and variable; (chain, draw, *shape) in sampled groups, (*shape) in groups named
            ``*_data``. Bool, integer, float or string. The numbers of chains and draws may differ between groups.
            A group without variables is left out.
        dims: Dim names by group and variable, one for each axis of *shape*; an axis nobody names is
            ``<variable>_dim_<i>``. Entries for variables that are not there are ignored.
        coords: Labels by dim, each label once, for every group with that dim. Those of a dim that occurs nowhere are
            dropped; a dim without any counts from 0, as chain and draw do. All but numbers and bools become strings.
        attrs: Put on the object and on its posterior. Str, int, float and bool stay; others become JSON strings.
    Returns: ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x. The arrays are not copied.
    Raises: ShapeError where arrays, dims and coords do not fit each other; DataError for what a file could not hold
        (objects, complex numbers, a "/" in a name) and for labels that occur twice, which ArviZ 1.x cannot plot.
    """
    labels = {dim: _labels(dim, values) for dim, values in (coords or {}).items()}
    named = dims or {}
    built = {group: _dataset(group, arrays, named.get(group, {}), labels) for group, arrays in groups.items() if arrays}
    plain = {name: _plain(value) for name, value in (attrs or {}).items()}
    if "posterior" in built:
        built["posterior"].attrs = dict(plain)
    return _wrap(built, plain)


def save(idata: Any, path: str | os.PathLike[str]) -> None:
    """Writes every group to one netCDF 4 file, which ``load`` and ``arviz.from_netcdf`` of both generations open.

    Equal objects give equal bytes. An existing file is overwritten in place: a caller who must not lose it writes
    elsewhere and renames. netCDF has no bool attributes, so they are 8-bit integers in the file.
    Raises: OSError if the file cannot be written.
    """
    datasets = {name: _to_disk(dataset(idata, name)) for name in group_names(idata)}
    tree = xr.DataTree.from_dict({"/": _to_disk(xr.Dataset(attrs=idata.attrs)), **datasets})
    tree.to_netcdf(os.fspath(path), engine="h5netcdf")


def load(path: str | os.PathLike[str]) -> Any:
    """Reads a file of ``save`` into memory and closes it: values, dtypes, dims, coords and attrs as they were saved.

    Returns: ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x.
    Raises: OSError if there is no such file, or it is not netCDF 4.
    """
    with xr.open_datatree(os.fspath(path), engine="h5netcdf") as tree:
        datasets = {name: _from_disk(node.to_dataset(inherit=False).load()) for name, node in tree.children.items()}
        attrs = _from_disk(xr.Dataset(attrs=tree.attrs)).attrs
    return _wrap(datasets, attrs)


def group_names(idata: Any) -> tuple[str, ...]:
    """The groups of an ArviZ object, in its own order."""
    return tuple(idata.children) if isinstance(idata, xr.DataTree) else tuple(idata.groups())


def dataset(idata: Any, group: str) -> xr.Dataset:
    """One group of an ArviZ object. Raises: UnknownNameError, naming the groups there are."""
    if group not in group_names(idata):
        known = ", ".join(group_names(idata)) or "none"
        raise UnknownNameError(
            f"unknown group {printable(group)}: expected one of {known}. Was it left out of the fit?"
        )
    found = idata[group]
    return found.to_dataset(inherit=False) if isinstance(found, xr.DataTree) else found


def untie(log_likelihood: ArrayLike) -> NDArray[np.float64]:
    """Makes the log likelihood of observations that have the same one in every draw fit for ``arviz.loo``.

    Such an observation (all of them for MAP; one whose class is certain) has equal importance weights, the best there
    are, but no tail to fit: ArviZ 1.x raises an error for the whole of LOO, 0.x gives k-hat = inf. Here its draws are
    spread over 1e-12 of max(1, |value|).

    Args:
        log_likelihood: Shape (chain, draw, *observations), in nats.
    Returns: The same in float64, the other observations exactly.
    """
    values = np.array(log_likelihood, dtype=np.float64)
    chains, draws, *rest = values.shape
    ramp = np.linspace(0.0, 1e-12, chains * draws).reshape(chains, draws, *(1 for _ in rest))
    with np.errstate(invalid="ignore"):  # an infinite value stays as it is
        tied = np.ptp(values, axis=(0, 1), keepdims=True) == 0.0
        return np.where(tied, values + ramp * np.maximum(1.0, np.abs(values)), values)


def r_hat(ds: xr.Dataset) -> ByVariable:
    """Rank-normalised split R-hat, the larger of bulk and folded (Vehtari et al. 2021), as ``arviz.rhat`` computes it.

    Args:
        ds: A sampled group; each variable has dims chain and draw, and any others.
    Returns: By variable, an array of its shape without chain and draw. NaN for one chain, fewer than 4 draws, a NaN
        among the draws, or draws that are all the same. Large or inf where each chain stands still, somewhere else.
    """
    return _by_variable(ds, az.rhat)


def ess(ds: xr.Dataset, method: str = "bulk") -> ByVariable:
    """Effective sample size over all chains, rank-normalised, as ``arviz.ess`` computes it; shapes as in ``r_hat``.

    Args:
        method: "bulk", or "tail" for the smaller one of two quantiles. ArviZ 0.x takes the 5% and 95% ones, 1.x the
            ends of its ``stats.ci_prob`` (5.5% and 94.5%): tail numbers of the two generations are not comparable.
    Returns: NaN for fewer than 4 draws or a NaN among them. Draws that are all the same count in full, as in ArviZ.
    """
    if method not in ("bulk", "tail"):
        raise OptionError(f"ess, method: expected 'bulk' or 'tail', got {method!r}. Use one of these.")
    return _by_variable(ds, lambda one: az.ess(one, method=method))


def mcse(ds: xr.Dataset, method: str = "mean") -> ByVariable:
    """Monte Carlo standard error of the mean or sd, in the variable's units, by ``arviz.mcse``; else as ``ess``."""
    if method not in ("mean", "sd"):
        raise OptionError(f"mcse, method: expected 'mean' or 'sd', got {method!r}. Use one of these.")
    return _by_variable(ds, lambda one: az.mcse(one, method=method))


def e_bfmi(energy: ArrayLike) -> NDArray[np.float64]:
    """Energy fraction of missing information, by chain; below 0.3 momentum resampling explores energies too slowly.

    Args:
        energy: Potential plus kinetic energy after each transition, shape (chain, draw), in nats.
    Returns: Shape (chain,); NaN for one draw, or a chain whose energy never changes.
    Raises: ShapeError if energy is not (chain, draw).
    """
    energy = np.asarray(energy, dtype=np.float64)
    if energy.ndim != 2:
        raise ShapeError(f"e_bfmi: expected energy of shape (chain, draw), got {energy.shape}. Keep both axes.")
    with _quiet():
        return np.asarray(az.bfmi(energy), dtype=np.float64)


def pareto_k(log_weights: ArrayLike) -> float:
    """The shape k-hat of the generalised Pareto law fitted to the largest importance weights; reliable below 0.7.

    The sign is pinned here: a large log weight is a large weight, under either ArviZ (1.x expects the negative).

    Args:
        log_weights: log p - log q of each draw from q, shape (draws,), in nats, up to a constant; -inf is weight zero.
    Returns: k-hat. 0.0 if the log weights lie within 0.01 of one another (an exact guide), where ties may leave ArviZ
        no tail to fit: float32 log densities in the thousands carry that much rounding, and weights that equal change
        no mean by more than 0.005 sd. inf if there is no tail to fit: fewer than 25 draws, a NaN or +inf, ties only.
    Raises: ShapeError if log_weights is not (draws,).
    Source: Vehtari et al. 2024, JMLR 25(72); Yao et al. 2018, arXiv:1802.02538.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 1:
        raise ShapeError(f"pareto_k: expected log weights of shape (draws,), got {log_weights.shape}. Use .ravel().")
    if log_weights.size < _FEWEST_WEIGHTS or not np.isfinite(log_weights.max()):  # the maximum of a NaN is NaN
        return float("inf")
    if np.ptp(log_weights) <= _EQUAL_WEIGHTS:
        return 0.0
    with _quiet():
        try:
            if _INFERENCE_DATA:
                k = float(az.psislw(log_weights)[1])
            else:
                k = float(xr.DataArray(-log_weights, dims="sample").azstats.psislw(dim="sample")[1])
        except ValueError:  # 1.x: "All tail values are the same"
            return float("inf")
    return float("inf") if np.isnan(k) else k


def summary(idata: Any, group: str = "posterior", var_names: Sequence[str] | None = None) -> pd.DataFrame:
    """``arviz.summary`` of one group, not rounded: a row for each scalar, such as ``w1[age, 0]``.

    Returns: Float columns ``mean sd mcse_mean mcse_sd ess_bulk ess_tail r_hat`` and the ends of an interval. Which one
        (0.x: 94% highest density, 1.x: 89% equal tails), its names and the order are ArviZ's. NaN as in ``r_hat``.
    Raises: UnknownNameError for a group or variable that is not there.
    """
    ds = _without_bools(dataset(idata, group))
    for name in var_names or ():
        if name not in ds.data_vars:
            raise unknown(f"variable in {group}", name, map(str, ds.data_vars))
    with _quiet():
        table = az.summary(ds if var_names is None else ds[list(var_names)], round_to="none")
    return pd.DataFrame(table).astype(np.float64)


def compare(runs: Mapping[str, Any]) -> pd.DataFrame:
    """``arviz.compare`` by PSIS-LOO of two or more posteriors of the same rows, the best first, a row for each name.

    Returns: Columns ``rank``; ``elpd_loo``, ``se``, ``p_loo`` (nats, summed over rows; higher elpd is better); ``elpd_diff``
        to the best, from 0 on, and its error ``dse``; stacking ``weight``; ``high_k``, the share of rows whose Pareto k is
        above 0.7 or unknown, where PSIS cannot be relied on.
    Raises: DataError for a posterior without a pointwise log likelihood, or with another number of rows.
    """
    for name, idata in runs.items():
        if "log_likelihood" not in group_names(idata):
            raise DataError(
                f"compare, {printable(name)}: expected a pointwise log likelihood, got none. LOO needs observations inside "
                "pyro.plate('data', ...)."
            )
    with _quiet():
        loos = {name: az.loo(idata, pointwise=True) for name, idata in runs.items()}
    sizes = {name: loo.n_data_points for name, loo in loos.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"compare: expected posteriors of the same rows, got {sizes} rows. Fit them to one data set.")
    with _quiet():
        exact: Any = {} if _INFERENCE_DATA else {"round_to": "none"}  # 1.x rounds
        table = az.compare(loos, **exact)
    table = table.rename(columns={"elpd": "elpd_loo", "p": "p_loo"})  # as 1.x calls them
    table["high_k"] = [float((~(np.asarray(loos[str(name)].pareto_k) <= 0.7)).mean()) for name in table.index]
    table["elpd_diff"] = np.abs(table["elpd_diff"])  # 1.x counts it negative
    kept = ["rank", "elpd_loo", "se", "p_loo", "elpd_diff", "dse", "weight", "high_k"]
    return pd.DataFrame(table[kept]).astype({name: np.float64 for name in kept[1:]})


def _dataset(
    group: str,
    variables: Mapping[str, ArrayLike],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, NDArray[Any]],
) -> xr.Dataset:
    leading = () if group.endswith("_data") else ("chain", "draw")
    sizes: dict[str, tuple[int, str]] = {}  # dim -> its size, and the variable that said so first
    arrays: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    for name, values in variables.items():
        where, array = f"{group}, {name!r}", np.asarray(values)
        if array.dtype.kind not in "biufU":
            raise DataError(f"{where}: expected bools, numbers or strings, got dtype {array.dtype}. Convert it first.")
        if array.ndim < len(leading):
            raise ShapeError(f"{where}: expected shape (chain, draw, ...), got {array.shape}. Add the missing axis.")
        rest = array.shape[len(leading) :]
        own = tuple(dims.get(name, [f"{name}_dim_{i}" for i in range(len(rest))]))
        if len(own) != len(rest) or len({*leading, *own}) != array.ndim:
            raise ShapeError(f"{where}: expected one dim for each axis of {rest}, got {own}. Give each its own name.")
        for dim, size in zip((*leading, *own), array.shape, strict=True):
            before, by = sizes.setdefault(dim, (size, name))
            if size != before:
                raise ShapeError(f"{where}: expected {before} along {dim!r} as in {by!r}, got {size}. Rename this dim.")
        arrays[name] = (*leading, *own), array
    for name in (*arrays, *sizes):
        if "/" in name:
            raise DataError(f"{group}, {name!r}: expected a name without '/', which files keep for groups. Rename it.")
        if name in arrays and name in sizes:
            raise ShapeError(f"{group}, {name!r}: expected a variable or a dim of this name, got both. Rename one.")
    index = {dim: (dim, coords.get(dim, np.arange(size))) for dim, (size, _) in sizes.items()}
    for dim, (_, labels) in index.items():
        size = sizes[dim][0]
        if labels.shape != (size,):
            raise ShapeError(f"{group}, coord {dim!r}: expected {size} labels, got shape {labels.shape}. Label each.")
    return xr.Dataset(arrays, coords=index)


def _wrap(datasets: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> Any:
    if _INFERENCE_DATA:
        inference_data: Any = az.InferenceData
        return inference_data(attrs=dict(attrs), **datasets)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=dict(attrs)), **datasets})


def _by_variable(ds: xr.Dataset, statistic: Callable[[xr.Dataset], xr.Dataset]) -> ByVariable:
    result = {}
    for key, array in _without_bools(ds).data_vars.items():
        name = str(key)
        if not {"chain", "draw"} <= set(array.dims):
            raise ShapeError(f"{name!r}: expected dims chain and draw, got {array.dims}. Pass a sampled group.")
        array = array.transpose("chain", "draw", ...)
        if array.size:
            with _quiet():
                result[name] = np.asarray(statistic(array.to_dataset(name=name))[name], dtype=np.float64)
        else:
            result[name] = np.full(array.shape[2:], np.nan)
    return result


def _without_bools(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign({name: one.astype(np.float64) for name, one in ds.items() if one.dtype == bool})  # 1.x subtracts


@contextmanager
def _quiet() -> Iterator[None]:
    """ArviZ warns and logs about few or constant draws; here a NaN or inf says so, and callers find words."""
    log: logging.Logger = getattr(az, "_log", logging.getLogger("arviz"))
    disabled = log.disabled  # not the level, which 0.x's logger, outside logging's registry, has already cached
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = disabled


def _labels(dim: str, values: ArrayLike) -> NDArray[Any]:
    labels = np.asarray(values)
    if labels.dtype.kind not in "biuf":
        labels = np.array([str(label) for label in labels.ravel()], dtype=np.str_).reshape(labels.shape)
    different, counts = np.unique(labels, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"coord {dim!r}: expected different labels, got {different[counts > 1][0]} twice. Rename one.")
    return labels


def _plain(value: Any) -> str | int | float | bool:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str | float | bool) or (isinstance(value, int) and -(2**63) <= value < 2**64):
        return value
    return json.dumps(value, default=lambda other: other.tolist() if hasattr(other, "tolist") else str(other))


def _to_disk(ds: xr.Dataset) -> xr.Dataset:
    ds = ds.drop_encoding()  # what an earlier file used must not change this one
    plain = {str(name): _plain(value) for name, value in ds.attrs.items()}
    ds.attrs = {name: np.int8(value) if isinstance(value, bool) else value for name, value in plain.items()}
    return ds


def _from_disk(ds: xr.Dataset) -> xr.Dataset:
    ds = ds.drop_encoding()
    ds.attrs = {name: bool(one) if isinstance(one, np.int8) else _plain(one) for name, one in ds.attrs.items()}
    strings = {name: one for name, one in ds.variables.items() if one.dtype.kind in "OT"}  # by an older xarray
    return ds.assign({name: (one.dims, one.values.astype(np.str_)) for name, one in strings.items()})
