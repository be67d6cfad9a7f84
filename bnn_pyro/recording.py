"""Keeps draws as they come, chain by chain, in memory or, where they are many, in a file that vanishes with them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bnn_pyro.errors import RunError
from bnn_pyro.inference import MCMC
from bnn_pyro.interrupts import Interrupts

IN_MEMORY = 2**28  # bytes of draws from which on they go to a file
_LOOK = 64  # transitions between two looks at the bar


class Table:
    """An array (chains, draws, ...) that is written row by row: in memory, or in an unnamed temporary file.

    A file is written, not mapped, so that what has been written does not stay in memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, on_disk: bool):
        self.shape, self.dtype = shape, dtype
        self._row = int(np.prod(shape[2:], dtype=int)) * dtype.itemsize
        self._file = _temporary_file(self._row * shape[0] * shape[1]) if on_disk else None
        self._array = None if on_disk else np.zeros(shape, dtype)

    def put(self, chains: np.ndarray, draws: np.ndarray, values: np.ndarray) -> None:
        if self._array is not None:
            self._array[chains, draws] = values
            return
        assert self._file is not None
        for chain, draw, value in zip(chains, draws, np.ascontiguousarray(values, self.dtype), strict=True):
            self._file.seek((int(chain) * self.shape[1] + int(draw)) * self._row)
            self._file.write(value.tobytes())

    def read(self, draws: int) -> np.ndarray:
        """The first ``draws`` of each chain."""
        if self._array is not None:
            return self._array[:, :draws]
        assert self._file is not None
        self._file.flush()
        return np.memmap(self._file, self.dtype, "r+", shape=self.shape)[:, :draws]


def _temporary_file(size: int) -> IO[bytes]:
    """An unnamed file with room for ``size`` bytes. Raises: RunError if there is none: now, not after hours of sampling."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the table
    try:
        file.truncate(size)
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot set space aside
            return file
        file.close()
        raise RunError(
            f"draws: expected {size / 2**30:.3g} GiB of room in {tempfile.gettempdir()}, got: {error.strerror}. Set the "
            "environment variable TMPDIR to a folder on a larger disk, or keep fewer draws: thin=10 keeps every tenth."
        ) from None
    return file


class Energies:
    """E-BFMI of each chain, from energies as they come: those of thinned-out transitions are not kept, but count.

    Every tenth energy looks freshly drawn however slowly energies move, so that kept ones alone would say nothing.
    Source: Betancourt 2016, arXiv:1604.00695.
    """

    def __init__(self, chains: int):
        self._first, self._last = np.full(chains, np.nan), np.full(chains, np.nan)
        self._count = np.zeros(chains, dtype=np.int64)
        self._sum, self._square, self._jumps = np.zeros((3, chains))

    def add(self, chains: np.ndarray, energy: np.ndarray) -> None:
        """Of transitions (k,), those of one chain in order of time."""
        order = chains.argsort(kind="stable")
        chains, energy = chains[order], energy[order]
        begins = np.diff(chains, prepend=-1) != 0
        ends = np.diff(chains, append=-1) != 0
        before = np.where(begins, self._last[chains], np.roll(energy, 1))
        self._first = np.where(self._count == 0, self._at(chains[begins], energy[begins]), self._first)
        away = energy - self._first[chains]  # small numbers, so that their squares lose nothing
        for total, values in (
            (self._jumps, np.nan_to_num((energy - before) ** 2)),  # a chain's first has none before it
            (self._sum, away),
            (self._square, away**2),
        ):
            total += np.bincount(chains, values, len(total))
        self._count += np.bincount(chains, minlength=len(self._count))
        self._last[chains[ends]] = energy[ends]

    def _at(self, chains: np.ndarray, values: np.ndarray) -> np.ndarray:
        full = np.full(len(self._count), np.nan)
        full[chains] = values
        return full

    def e_bfmi(self) -> np.ndarray:
        """(chains,): mean square of an energy's change over the variance of energies; NaN as in ``results.e_bfmi``."""
        with np.errstate(all="ignore"):
            variance = (self._square - self._sum**2 / self._count) / (self._count - 1)
            return self._jumps / (self._count - 1) / variance


class Recording:
    """The ``Recorder`` of a run: kept draws with their statistics, a bar, and whether to stop.

    Args:
        method: Says how many chains, warmup transitions and draws, and how they are thinned.
        dim, dtype: Of the draws.
        interrupts: Looked at by ``should_stop``.
        bar: Moves on by a transition of each chain.
        watch: What else the bar shows: called with the number of draws that all chains have, and a way to get them.
    """

    def __init__(
        self,
        method: MCMC,
        dim: int,
        dtype: torch.dtype,
        interrupts: Interrupts,
        bar: tqdm,
        watch: Callable[[int, Callable[[], Tensor]], dict[str, str]] | None = None,
    ):
        self.chains, self.warmup, self.draws, self.thin = method.chains, method.warmup, method.draws, method.thin
        self.interrupts, self.bar, self.watch = interrupts, bar, watch
        kind = np.dtype(str(dtype).removeprefix("torch."))
        self._on_disk = self.chains * self.draws * dim * kind.itemsize > IN_MEMORY
        self._z = Table((self.chains, self.draws, dim), kind, self._on_disk)
        self._stats: dict[str, Table] = {}
        self._done = np.zeros(self.chains, dtype=np.int64)
        self.gradients, self.divergences, self._unseen = 0, 0, 0
        self._accepted, self._transitions = 0.0, 0
        self._energies = Energies(self.chains) if self.thin > 1 else None

    def record(self, rows: Tensor, transition: Tensor, position: Tensor, info: NamedTuple) -> None:
        columns: dict[str, np.ndarray] = {k: v.cpu().numpy() for k, v in info._asdict().items()}
        self.gradients += int(columns["n_steps"].sum())
        after = transition.cpu().numpy() - self.warmup
        kept = (after >= 0) & ((after + 1) % self.thin == 0)
        if kept.any():
            chains, draws = rows.cpu().numpy()[kept], after[kept] // self.thin
            self._z.put(chains, draws, position[torch.as_tensor(kept)].cpu().numpy())
            for name, column in columns.items():
                if name not in self._stats:
                    self._stats[name] = Table((self.chains, self.draws), column.dtype, self._on_disk)
                self._stats[name].put(chains, draws, column[kept])
            self._done[chains] = draws + 1
        if self._energies is not None:
            self._energies.add(rows.cpu().numpy()[after >= 0], columns["energy"][after >= 0])
        self._show(after, columns)

    def should_stop(self) -> bool:
        return self.interrupts.pressed

    @property
    def complete(self) -> bool:
        return bool((self._done == self.draws).all())

    @property
    def kept(self) -> int:
        """Draws that every chain has."""
        return int(self._done.min())

    def positions(self) -> Tensor:
        """(chains, kept, dim)"""
        return torch.from_numpy(self._z.read(self.kept))

    def stats(self) -> dict[str, np.ndarray]:
        return {name: table.read(self.kept) for name, table in self._stats.items()}

    def facts(self) -> dict[str, float]:
        """Of all transitions after warmup, where ``stats`` lacks some: what the verdict must not miss."""
        if self._energies is None:
            return {}
        return {"divergences": self.divergences, "e_bfmi": float(self._energies.e_bfmi().min())}

    def _show(self, after: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        self._unseen += len(after)
        self._transitions += len(after)
        self.divergences += int(columns["diverging"][after >= 0].sum())
        self._accepted += float(columns["acceptance_rate"].sum())
        if self._unseen < _LOOK:
            return
        if not self.bar.disable:
            self.bar.set_description("warmup" if after.max() < 0 else "draws", refresh=False)
            shown = {
                "steps": f"{self.gradients / self._transitions:.0f}",
                "accept": f"{self._accepted / self._transitions:.2f}",
                "divergences": str(self.divergences),
            }
            if self.watch is not None:
                shown |= self.watch(self.kept, self.positions)
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(self._unseen)
        self._unseen = 0

    def close(self) -> None:
        self.bar.update(self._unseen)
        self._unseen = 0
