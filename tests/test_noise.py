"""The counter-based generator: known answers, statistics, and independence of how many numbers are asked for at once."""

import numpy as np
import pytest
import torch
from scipy import stats

from bnn_pyro import noise
from bnn_pyro.noise import Noise, philox

KNOWN = [  # counter, key, words: the known-answer vectors that Random123 publishes for philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
CHAINS, STEPS = torch.arange(64)[:, None], torch.arange(50)[None]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    made = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in made) == words


@pytest.mark.skipif(not noise.native.load(noise.SOURCE), reason=noise.native.reason(noise.SOURCE))
@pytest.mark.parametrize("count", [1, 4, 5, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("kind", ["words", "uniforms", "normals"])
def test_the_native_numbers_are_torchs_bit_for_bit(monkeypatch, kind, count):
    """Chains and steps to the ends of their ranges, in tensors that do not lie row by row."""
    chains = torch.tensor([0, 1, 7, 2**32 - 1])[:, None]
    steps = torch.tensor([[0, 1, 2, 3, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1]])[:, ::2]
    make = getattr(Noise(3, "test"), kind)
    made = make(chains, steps, count)
    calls = []
    monkeypatch.setattr(noise.native, "load", lambda source: calls.append(source))
    plain = make(chains, steps, count)
    assert calls and made.dtype == plain.dtype and made.shape == (4, 4, count)
    assert torch.equal(made, plain)


@pytest.mark.parametrize("kind", ["words", "uniforms", "normals"])
def test_numbers_depend_on_chain_and_step_only(kind):
    make = getattr(Noise(3, "test"), kind)
    together = make(CHAINS, STEPS, 37)
    assert together.shape == (64, 50, 37)
    for chain in (0, 1, 17, 63):
        assert torch.equal(make(torch.tensor(chain), torch.arange(50), 37), together[chain])
        assert torch.equal(make(torch.tensor([chain]), torch.tensor([49]), 5)[0], together[chain, 49, :5])


def test_seeds_purposes_chains_and_steps_give_unrelated_numbers():
    kinds = [Noise(3, "a"), Noise(3, "b"), Noise(4, "a")]
    made = torch.cat([kind.normals(CHAINS[:8], STEPS[:, :8], 2000).reshape(64, -1) for kind in kinds])
    correlation = np.corrcoef(made.numpy())
    off = correlation[~np.eye(len(made), dtype=bool)]
    assert abs(off).max() < 5.6 / 2000**0.5  # 18,336 pairs, family rate below 1e-3
    assert torch.equal(Noise(3, "a").words(CHAINS, STEPS, 4), Noise(3, "a").words(CHAINS, STEPS, 4))


def test_steps_beyond_32_bits_do_not_repeat():
    noise, chain = Noise(0, "long"), torch.tensor(0)
    assert not torch.equal(noise.words(chain, torch.tensor(5), 4), noise.words(chain, torch.tensor(5 + 2**32), 4))


def test_uniforms_and_normals_have_their_distributions():
    noise = Noise(11, "distribution")
    uniforms = noise.uniforms(CHAINS, STEPS, 100).flatten()
    normals = noise.normals(CHAINS, STEPS, 100).flatten()
    assert uniforms.min() > 0 and uniforms.max() < 1
    assert stats.kstest(uniforms.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(normals.numpy(), "norm").pvalue > 1e-4
    z = (normals**4).mean().sub(3) / (96 / len(normals)) ** 0.5
    assert abs(z) < 4.26
