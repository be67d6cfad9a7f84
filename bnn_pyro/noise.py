"""Random numbers that are a function of where they are used: (seed, purpose, chain, step), never of what ran before.

Philox4x32-10 turns a 128-bit counter and a 64-bit key into four 32-bit words. A chain's numbers are therefore the same
among any number of chains, in any order, on any device; a run goes on where it stopped by knowing its step.

Words stand in int64 and are masked to 32 bits, so nothing overflows. Words and uniforms are bit-equal everywhere; on a CPU
``noise.cpp`` makes the same ones in a tenth of the time, where the machine has a compiler. Normals
go through ``special.ndtri``, which works number by number, so they don't depend on a number's place in the tensor, as
logarithms and cosines do; they are bit-equal on one kind of device and agree to 1e-5 between kinds.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bnn_pyro import native

SOURCE = Path(__file__).with_name("noise.cpp")

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four words, int64 in [0, 2**32), of the shape that the counter's words broadcast to."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 by 32 bit product, by halves of a: no partial product reaches 2**49."""
    low = (a & 0xFFFF) * m
    high = (a >> 16) * m + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


@dataclass(frozen=True)
class Noise:
    """One purpose's stream of random numbers.

    Args:
        seed: The run's seed.
        purpose: Such as ``"momentum"``; other purposes give unrelated numbers.
        device: Where the numbers are made.
    """

    seed: int
    purpose: str
    device: torch.device | str = "cpu"

    def words(self, chains: Tensor, steps: Tensor, count: int) -> Tensor:
        """Words (*shape, count) for chain and step numbers (int64, below 2**32 and 2**63) that broadcast to ``shape``."""
        chains, steps = torch.broadcast_tensors(chains.to(self.device), steps.to(self.device))
        made = self._native("philox_words", chains, steps, count, torch.int64)
        if made is not None:
            return made
        blocks = torch.arange(-(-count // 4), device=self.device)
        counter = (blocks, (steps & _MASK)[..., None], (steps >> 32 & _MASK)[..., None], chains[..., None])
        words = torch.stack(philox(counter, self._key()), -1)
        return words.flatten(-2)[..., :count]

    def uniforms(self, chains: Tensor, steps: Tensor, count: int) -> Tensor:
        """Numbers in (0, 1), float64: (word + 1/2) / 2**32."""
        chains, steps = torch.broadcast_tensors(chains.to(self.device), steps.to(self.device))
        made = self._native("philox_uniforms", chains, steps, count, torch.float64)
        if made is not None:
            return made
        return (self.words(chains, steps, count).double() + 0.5) * 2.0**-32

    def normals(self, chains: Tensor, steps: Tensor, count: int) -> Tensor:
        """Standard normal numbers, float64, at most 6.3 in size (the ends of 32 bits)."""
        return torch.special.ndtri(self.uniforms(chains, steps, count))

    def _native(self, name: str, chains: Tensor, steps: Tensor, count: int, dtype: torch.dtype) -> Tensor | None:
        """What the function ``name`` of ``noise.cpp`` makes; None on other devices and where it cannot be built."""
        library = native.load(SOURCE) if chains.device.type == "cpu" else None
        if library is None:
            return None
        made = torch.empty(*chains.shape, count, dtype=dtype)
        chains, steps = chains.contiguous(), steps.contiguous()
        sizes, key = (ctypes.c_int64(chains.numel()), ctypes.c_int64(count)), map(ctypes.c_uint32, self._key())
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (chains, steps, made)]
        getattr(library, name)(*sizes, *pointers[:2], *key, pointers[2])
        return made

    def _key(self) -> tuple[int, int]:
        digest = hashlib.sha256(repr((self.seed, self.purpose)).encode()).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
