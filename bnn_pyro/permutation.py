"""A random order of n rows as a function of the place in it, which takes no memory however many rows there are."""

from __future__ import annotations

import numpy as np

ROUNDS = 6
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: multiplying by it spreads neighbours apart


def permute(places: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The rows (k,) in 0 to n - 1 at ``places`` (k,) in 0 to n - 1 of an order that ``seed`` gives.

    A Feistel network permutes 0 to 4**h - 1, the least such range that holds n; numbers beyond n go through it again until
    they are below. Source: Black & Rogaway 2002, Ciphers with arbitrary finite domains, CT-RSA.
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    keys = np.random.default_rng(seed).integers(0, 2**63, size=ROUNDS, dtype=np.uint64)
    found = places.astype(np.uint64)
    beyond = np.ones(len(found), dtype=bool)
    while beyond.any():
        found[beyond] = _feistel(found[beyond], half, keys)
        beyond = found >= np.uint64(n)
    return found.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        mixed = (right + key) * _ODD  # modulo 2**64
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _ODD
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << half) | right
