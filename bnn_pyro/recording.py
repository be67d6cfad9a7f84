"""Keeps draws as they come, chain by chain, in memory or, where they are many, in a file that vanishes with them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

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
        self._file = tempfile.TemporaryFile() if on_disk else None  # noqa: SIM115 - lives as long as the array
        self._array = None if on_disk else np.zeros(shape, dtype)
        if self._file is not None:
            self._file.truncate(self._row * shape[0] * shape[1])

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
