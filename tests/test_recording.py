"""Draws as they come: in the right places, in bounded memory, and what the bar says."""

import errno
import os
import tempfile

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

import bnn_pyro as bnn
from bnn_pyro import recording, results, watching
from bnn_pyro.inference import random_tables
from bnn_pyro.inference.hmc_run import Info, run_hmc
from bnn_pyro.inference.mcmc import Adaptation
from bnn_pyro.interrupts import Interrupts
from bnn_pyro.recording import Recording
from bnn_pyro.watching import Watch


def info(rows, **more):
    ones = torch.ones(len(rows), dtype=torch.float64)
    fields = dict.fromkeys(Info._fields, ones) | {"diverging": ones < 0, "n_steps": ones.long()} | more
    return Info(**fields)


@pytest.mark.parametrize("in_memory", [10**9, 0], ids=["memory", "file"])
def test_draws_stand_where_they_belong_whatever_order_they_come_in(monkeypatch, in_memory):
    monkeypatch.setattr(recording, "IN_MEMORY", in_memory)
    kept = Recording(bnn.NUTS(chains=3, warmup=2, draws=4, thin=2), 2, torch.float32, Interrupts(), tqdm(disable=True))
    order = np.random.default_rng(0).permutation([c for c in range(3) for _ in range(10)])
    at = [0, 0, 0]
    for chain in order:
        rows, step = torch.tensor([chain]), torch.tensor([at[chain]])
        value = 100.0 * chain + at[chain]
        kept.record(rows, step, torch.tensor([[value, -value]]), info(rows, lp=torch.tensor([value]).double()))
        at[chain] += 1
    assert kept.complete and kept.kept == 4 and kept.gradients == 30
    expected = 100.0 * torch.arange(3)[:, None] + torch.tensor([3.0, 5.0, 7.0, 9.0])  # every second after two of warmup
    assert torch.equal(kept.positions(), torch.stack([expected, -expected], -1))
    assert np.array_equal(kept.stats()["lp"], expected.numpy())


def test_divergences_and_energies_between_kept_draws_count():
    """E-BFMI is ArviZ's of all transitions after warmup, in whatever batches they come."""
    chains, warmup, thin, draws = 3, 4, 5, 40
    rng = np.random.default_rng(1)
    energy = 1e5 + rng.normal(size=(chains, warmup + thin * draws)).cumsum(
        1
    )  # slow: that of every fifth would look well
    diverging = rng.random(energy.shape) < 0.1
    kept = Recording(
        bnn.NUTS(chains=chains, warmup=warmup, draws=draws, thin=thin),
        1,
        torch.float64,
        Interrupts(),
        tqdm(disable=True),
    )
    at = np.zeros(chains, dtype=int)
    order = rng.permutation(np.repeat(np.arange(chains), energy.shape[1]))
    while len(order):
        batch, order = order[:7], order[7:]
        numbers = []
        for chain in batch:
            numbers.append(at[chain])
            at[chain] += 1
        columns = {"energy": energy[batch, numbers], "diverging": diverging[batch, numbers]}
        rows = torch.from_numpy(batch)
        kept.record(rows, torch.tensor(numbers), torch.zeros(len(batch), 1), info(rows, **{
            k: torch.from_numpy(v) for k, v in columns.items()}))  # fmt: skip
    facts = kept.facts()
    assert facts["divergences"] == diverging[:, warmup:].sum() > kept.stats()["diverging"].sum()
    expected = results.e_bfmi(energy[:, warmup:]).min()
    assert facts["e_bfmi"] == pytest.approx(expected, rel=1e-6) and expected < 0.1
    assert results.e_bfmi(kept.stats()["energy"]).min() > 3 * expected
    unthinned = Recording(bnn.NUTS(chains=1, warmup=0, draws=1), 1, torch.float64, Interrupts(), tqdm(disable=True))
    assert unthinned.facts() == {}


def test_only_what_every_chain_has_is_kept():
    kept = Recording(bnn.NUTS(chains=2, warmup=0, draws=5), 1, torch.float32, Interrupts(), tqdm(disable=True))
    for chain, steps in ((0, 5), (1, 2)):
        for step in range(steps):
            rows = torch.tensor([chain])
            kept.record(rows, torch.tensor([step]), torch.ones(1, 1), info(rows))
    assert not kept.complete and kept.kept == 2 and kept.positions().shape == (2, 2, 1)


def test_the_bar_shows_what_the_watch_says():
    seen = []

    def watch(count, positions):
        seen.append((count, tuple(positions().shape)))
        return {"r_hat": "1.01"}

    with tqdm(total=200, file=open(os.devnull, "w")) as bar:
        kept = Recording(bnn.NUTS(chains=1, warmup=10, draws=190), 1, torch.float32, Interrupts(), bar, watch)
        for step in range(200):
            rows = torch.tensor([0])
            kept.record(rows, torch.tensor([step]), torch.ones(1, 1), info(rows))
        kept.close()
        assert bar.n == 200 and "r_hat=1.01" in bar.postfix and "draws" in bar.desc
    assert seen and all(shape == (1, count, 1) for count, shape in seen)


def test_a_watch_looks_when_it_is_due_and_sees_chains_that_disagree(monkeypatch):
    posterior = bnn.get_model("linear").fit(bnn.load_dataset("stackloss").train, inference="prior", draws=400)
    z = posterior.draws.z.reshape(4, 100, -1)
    apart = z.clone()
    apart[0] += 3.0
    monkeypatch.setattr(watching, "FIRST", 0.0)
    monkeypatch.setattr(watching, "SHARE", 1e9)
    watch = Watch(posterior.target)
    assert watch(watching.FEWEST - 1, lambda: z) == {}
    healthy, sick = watch(100, lambda: z), watch(100, lambda: apart)
    assert float(healthy["r_hat"]) < 1.05 and float(sick["r_hat"]) > 1.2
    assert float(healthy["ess"]) > 100 > float(sick["ess"])
    monkeypatch.setattr(watching, "FIRST", 1e9)
    later = Watch(posterior.target)
    assert later(100, lambda: z) == {}  # not due yet
    watch(100, lambda: z)  # the last look for a long time
    assert watch(100, lambda: apart) == watch(100, lambda: z) != sick


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory in use is read from /proc")
def test_a_million_draws_take_no_more_memory_than_a_few(monkeypatch):
    """At most a byte a draw, where a draw is 160 bytes with its statistics on top.

    Tables of random numbers are kept small, as they come and go by megabytes.
    """
    monkeypatch.setattr(recording, "IN_MEMORY", 0)
    monkeypatch.setattr(random_tables, "_NUMBERS", 1)
    monkeypatch.setattr(random_tables, "_STEPS", 8)
    chains, draws, dim = 500, 2000, 20
    method = bnn.HMC(chains=chains, warmup=0, draws=draws, trajectory_length=0.5, max_steps=1, adaptation=Adaptation(
        torch.tensor([0.5], dtype=torch.float64), torch.ones(dim, dtype=torch.float64), torch.tensor(0.5)))  # fmt: skip
    kept = Recording(method, dim, torch.float64, Interrupts(), tqdm(disable=True))
    used = []

    class Watched:
        def record(self, *args):
            kept.record(*args)
            used.append(resident())

        def should_stop(self):
            return False

    run_hmc(lambda z: (-z, -0.5 * (z * z).sum(-1)), torch.zeros(chains, dim, dtype=torch.float64), method, 1, Watched())
    later = np.array(used[draws // 5 :], dtype=float)
    slope = np.polyfit(np.arange(len(later)) * chains, later, 1)[0]
    print(f"\nmemory in use grows by {slope:.3f} bytes a draw; {(later.max() - later.min()) / 2**20:.1f} MB in all")
    assert slope <= 1.0
    z = kept.positions()
    assert z.shape == (chains, draws, dim) and abs(float(z[:, 200:].var()) - 1) < 0.02


def test_draws_without_room_are_refused_before_there_are_any(monkeypatch, tmp_path):
    monkeypatch.setattr(recording, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    method = bnn.NUTS(chains=4, warmup=1, draws=1000)

    def fails(number):
        def posix_fallocate(*_):
            raise OSError(number, os.strerror(number))

        return posix_fallocate

    monkeypatch.setattr(os, "posix_fallocate", fails(errno.ENOSPC), raising=False)
    with pytest.raises(bnn.RunError, match=f"0.0149 GiB of room in {tmp_path}, got: No space .*TMPDIR"):
        Recording(method, 1000, torch.float32, Interrupts(), tqdm(disable=True))
    monkeypatch.setattr(os, "posix_fallocate", fails(errno.EOPNOTSUPP), raising=False)
    kept = Recording(method, 1000, torch.float32, Interrupts(), tqdm(disable=True))
    kept.record(torch.tensor([0]), torch.tensor([1]), torch.ones(1, 1000), info([0]))
