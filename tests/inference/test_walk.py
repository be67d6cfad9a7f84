"""Both walks make the transitions of a plain one on the same trees, and their step sizes are dual averaging's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from batched_targets import F64, TARGETS, correlated, padded
from broken_trees import use_broken_trees
from plain_walk import PlainWalk
from torch.utils._python_dispatch import TorchDispatchMode
from traced import Traced, made

from bnn_pyro import native, replay
from bnn_pyro.inference import native_trees, native_walk, random_tables
from bnn_pyro.inference import walk as walk_module
from bnn_pyro.inference.adaptation import Moments
from bnn_pyro.inference.metric import Metric
from bnn_pyro.inference.native_trees import NativeTrees
from bnn_pyro.inference.native_walk import NativeWalk, make_walk
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.step_sizes import DualAveraging
from bnn_pyro.inference.trees import Info, Trees
from bnn_pyro.inference.walk import Walk
from bnn_pyro.noise import Noise

CHAINS, WARMUP, PAUSES, SEED, TARGET = 6, 12, (5, 12, 30), 8, 0.8
EVERYONE = torch.arange(CHAINS)
NAMES = ["correlated", "correlated, dense", "banana"]


@pytest.fixture(autouse=True)
def _needs_the_library():
    if native.load(native_trees.SOURCE) is None:
        pytest.skip(native.reason(native_trees.SOURCE))


def walked(kind, name, warmup=WARMUP, dtype=F64, stop=lambda: False, chains=CHAINS, trees=NativeTrees):
    """All that a walk yields, by chain and transition: positions (c, t, dim), statistics (c, t), and the walk."""
    target, everyone = TARGETS[name.split(",")[0]], torch.arange(chains)
    mass = correlated(target.dim, seed=5)
    metric = Metric((mass if "dense" in name else mass.diagonal()).to(dtype))
    uniforms = Uniforms(Noise(SEED, "nuts"), everyone)
    momenta = Momenta(Noise(SEED, "momentum"), everyone, target.dim, dtype)
    averaging = DualAveraging(torch.linspace(0.2, 0.5, CHAINS, dtype=F64)[:chains], TARGET)
    start = target.exact(CHAINS, seed=2)[:chains].to(dtype)
    trees = trees(padded(target), start, metric, averaging.step_size, uniforms, momenta, 6)
    walk = kind(trees, averaging, warmup)
    position = torch.full((chains, PAUSES[-1], target.dim), torch.nan, dtype=dtype)
    stats = {name: torch.full((chains, PAUSES[-1]), torch.nan, dtype=F64) for name in Info._fields}
    for pause in PAUSES:
        for ended in walk.to(pause, stop):
            at = (ended.rows, ended.transition)
            assert position[at].isnan().all()  # each once
            position[at] = ended.position
            for key, value in ended.info._asdict().items():
                stats[key][at] = value.double()
        if stop():
            break
        if pause == PAUSES[0]:
            averaging.restart(averaging.average * 1.1)
            trees.use(metric, averaging.step_size)
    return position, stats, walk


def assert_alike(one, other, tolerance=0.0):
    for a, b in ((one[0], other[0]), *((one[1][key], other[1][key]) for key in one[1])):
        assert torch.allclose(a.double(), b.double(), tolerance, tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_it_makes_the_same_transitions(name, dtype):
    one, other = walked(PlainWalk, name, warmup=0, dtype=dtype), walked(NativeWalk, name, warmup=0, dtype=dtype)
    assert one[0].isfinite().all() and (one[1]["n_steps"] > 3).any()
    assert_alike(one, other)
    assert not other[2].trees.active.any() and (other[2].transition == PAUSES[-1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_warmup_is_the_same_too_to_rounding(name):
    """Over so few transitions: rounding of a step size grows with each."""
    one, other = walked(PlainWalk, name), walked(NativeWalk, name)
    early = lambda found: (found[0][:, :8], {key: value[:, :8] for key, value in found[1].items()})
    assert_alike(early(one), early(other), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_step_sizes_are_those_of_dual_averaging(name):
    _, stats, walk = walked(NativeWalk, name)
    oracle = DualAveraging(stats["step_size"][:, 0], TARGET)
    assert torch.allclose(stats["step_size"][:, 0], torch.linspace(0.2, 0.5, CHAINS, dtype=F64))
    for now in range(WARMUP):
        assert torch.allclose(stats["step_size"][:, now], oracle.step_size, rtol=1e-12)
        oracle.update(stats["acceptance_rate"][:, now])
        if now + 1 == PAUSES[0]:
            oracle.restart(oracle.average * 1.1)
    kept = stats["step_size"][:, WARMUP:]
    assert (kept == kept[:, :1]).all() and torch.allclose(kept[:, 0], oracle.average, rtol=1e-12)
    assert torch.allclose(walk.averaging.state, oracle.state, rtol=1e-10)


class NoAnswers(TorchDispatchMode):
    """Refuses what would make the host wait for a device, or need a size that depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        refused = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "repeat_interleave", "equal")
        assert function.overloadpacket.__name__ not in refused, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("look", [1, 5, 32])
@pytest.mark.parametrize("device", [False, True])
def test_torchs_walk_makes_those_of_a_plain_one(name, warmup, look, device, monkeypatch):
    """As on a CPU, and as on a device, where the host looks in every so many iterations, and an iteration asks nothing."""
    monkeypatch.setattr(random_tables, "_STEPS", 96)
    one = walked(PlainWalk, name, warmup=warmup, trees=Trees)
    monkeypatch.setattr(walk_module, "_LOOK", look)
    if device:
        monkeypatch.setattr(replay, "waits", lambda _: False)
        iterate = walk_module._Place.iterate

        def asks_nothing(self):
            with NoAnswers():
                iterate(self)

        monkeypatch.setattr(walk_module._Place, "iterate", asks_nothing)
    other = walked(Walk, name, warmup=warmup, trees=Trees)
    assert one[0].isfinite().all() and (one[1]["n_steps"] > 3).any()
    assert_alike(one, other)
    assert not other[2].trees.active.any() and (other[2].transition == PAUSES[-1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_iteration_that_was_traced_makes_them_too(name, monkeypatch):
    """Once, though metric and step sizes are replaced on the way: no number on the host has got into it."""
    monkeypatch.setattr(random_tables, "_STEPS", 96)
    one = walked(PlainWalk, name, trees=Trees)
    monkeypatch.setattr(replay, "waits", lambda _: False)
    monkeypatch.setattr(walk_module, "Replay", Traced)
    made.clear()
    other = walked(Walk, name, trees=Trees)
    assert len(made) == 1 and made[0].graph is not None
    assert_alike(one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("room", "patience", "ahead"), [(1, 1e9, 128), (1024, -1.0, 128), (1024, 1e9, 128), (7, 0.0, 1), (1024, 0.0, 3)]
)
def test_neither_memory_nor_the_clock_touches_a_draw(name, room, patience, ahead, monkeypatch):
    usual = walked(NativeWalk, name)
    monkeypatch.setattr(native_walk, "_ROOM", room)
    monkeypatch.setattr(native_walk, "_PATIENCE", patience)
    monkeypatch.setattr(random_tables, "_STEPS", ahead)
    assert_alike(usual, walked(NativeWalk, name))


@pytest.mark.parametrize("chains", [1, 2, 4])
def test_a_chain_is_the_same_among_any_number(chains):
    position, stats, _ = walked(NativeWalk, "banana")
    few = walked(NativeWalk, "banana", chains=chains)
    assert_alike((position[:chains], {key: value[:chains] for key, value in stats.items()}), few)


def test_it_stops_when_asked_with_what_has_ended():
    calls = iter(range(1000))
    position, _, walk = walked(NativeWalk, "banana", stop=lambda: next(calls) >= 40)
    made = position.isfinite().all(-1)
    assert 0 < made.sum() < made.numel() and made.sum(1).tolist() == walk.transition.tolist()
    whole = walked(NativeWalk, "banana")[0]
    assert torch.equal(position[made], whole[made])


def test_trees_by_torch_are_walked_by_torch():
    target = TARGETS["banana"]
    uniforms, momenta = Uniforms(Noise(1, "nuts"), EVERYONE), Momenta(Noise(1, "momentum"), EVERYONE, target.dim, F64)
    metric, averaging = Metric(torch.ones(target.dim, dtype=F64)), DualAveraging(torch.ones(CHAINS, dtype=F64), TARGET)
    for kind, walk in ((Trees, Walk), (NativeTrees, NativeWalk)):
        trees = kind(padded(target), target.exact(CHAINS, seed=2), metric, averaging.step_size, uniforms, momenta, 5)
        assert type(make_walk(trees, averaging, 3)) is walk


@pytest.mark.parametrize("dense", [False, True])
def test_moments_take_a_chains_positions_in_order_of_time(dense):
    generator = np.random.default_rng(0)
    rows = torch.from_numpy(generator.integers(0, 4, 50))
    position = torch.from_numpy(generator.normal(size=(50, 3)))
    together, apart = (Moments(4, 3, dense, torch.device("cpu")) for _ in range(2))
    together.update(rows, position)
    for row, at in zip(rows.split(1), position.split(1), strict=True):
        apart.update(row, at)
    assert torch.equal(together.inverse_mass_matrix(), apart.inverse_mass_matrix())
    own = position[rows == 2]
    assert torch.allclose(together._mean[2], own.mean(0)) and together._count[2] == len(own)


FAULTS = {
    "a rate of steps": (
        "const double rate = s->accept_sum[c] / double(s->steps[c]);",
        "const double rate = s->accept_sum[c];",
    ),
    "figures of a chain": ("w->figures[k * room + at]", "w->figures[k * room + c]"),
    "the candidate's position": ("static_cast<T *>(s->chosen) + c", "static_cast<T *>(s->candidate) + c"),
    "transitions not numbered": ("w->number[at] = w->transition[c];", "w->number[at] = w->transition[c] + 1;"),
    "one more of warmup": ("if (now <= w->warmup)", "if (now <= w->warmup + 1)"),
    "one less of warmup": ("if (now <= w->warmup)", "if (now < w->warmup)"),
    "the last step, not the average": ("std::exp(last ? *log_average : *log_step)", "std::exp(*log_step)"),
    "the average at once": ("std::exp(last ? *log_average : *log_step)", "std::exp(*log_average)"),
    "a count too few": ("*count += 1.0;", ""),
    "an error of another sign": ("w.target - rate", "rate - w.target"),
    "a weight of another power": ("std::pow(*count, -w.kappa)", "std::pow(*count, w.kappa)"),
    "another root": ("std::sqrt(*count) / w.gamma", "*count / w.gamma"),
    "no centre": ("w.centre[c] - std", "*log_step - std"),
    "a transition too many": ("if (now >= w->until)", "if (now > w->until)"),
    "resting chains that step": ("            s->active[c] = 0;\n", ""),
    "momenta of before": ("const int64_t row = now - w->first[c];", "const int64_t row = now - 1 - w->first[c];"),
    "momenta past the table": ("row >= w->ahead", "row > w->ahead"),
    "momenta of another chain": ("(c * w->ahead + row) * s->dim", "(row) * s->dim"),
    "momenta of the inverse mass": ("normal[j] / root[j]", "normal[j] * root[j]"),
    "another coin": ("draws[4 * c + 2]);\n        }", "draws[4 * c + 1]);\n        }"),
}


@pytest.mark.slow  # all together
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_walk_is_seen(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(random_tables, "_STEPS", 4)
    right = walked(PlainWalk, "banana", warmup=0)
    use_broken_trees(*FAULTS[fault], tmp_path, monkeypatch)
    calls = itertools.count()
    endless = lambda: next(calls) > 20_000
    for see in (
        lambda: assert_alike(right, walked(NativeWalk, "banana", warmup=0, stop=endless)),
        lambda: test_step_sizes_are_those_of_dual_averaging("banana"),
    ):
        try:
            see()
        except (AssertionError, IndexError):
            return
    pytest.fail("no test saw it")
