"""Trees of many chains against a recursive sampler of one chain that keeps every leaf in a list."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from batched_targets import F64, TARGETS, BatchedTarget, Kept, correlated, normal, normals, padded
from broken_trees import use_broken_trees

from bnn_pyro import native
from bnn_pyro.inference import native_trees, random_tables
from bnn_pyro.inference import trees as trees_module
from bnn_pyro.inference.metric import Metric
from bnn_pyro.inference.native_trees import NativeTrees
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.trees import Trees
from bnn_pyro.noise import Noise

CHAINS, DEPTH, SEED = 50, 5, 8
EVERYONE = torch.arange(CHAINS)
CASES = ["correlated", "correlated, dense", "banana", "funnel", "double_well"]
COUNTS, REALS = ("tree_depth", "n_steps", "diverging"), ("lp", "energy", "acceptance_rate")


def case(name: str) -> tuple[BatchedTarget, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target, starts, inverse mass matrix and step sizes (chains,), from tiny ones to some that diverge."""
    target = TARGETS[name.split(",")[0]]
    mass = correlated(target.dim, seed=5 if "dense" in name else 6)
    largest = {"correlated": 1.0, "correlated, dense": 1.9, "double_well": 5.0}.get(name, 2.5)
    steps = largest * torch.logspace(-1.4, 0, CHAINS, dtype=F64)
    return target, target.exact(CHAINS, seed=2), mass if "dense" in name else mass.diagonal(), steps


@pytest.fixture(params=[Trees, NativeTrees], ids=lambda kind: kind.kind)
def kind(request):
    if request.param is NativeTrees and native.load(native_trees.SOURCE) is None:
        pytest.skip(native.reason(native_trees.SOURCE))
    return request.param


@pytest.fixture(autouse=True)
def _short_tables(monkeypatch):
    monkeypatch.setattr(random_tables, "_STEPS", 128)


def batched(kind: type[Trees], name: str, transitions: int = 20, chains: int = CHAINS) -> Kept:
    """``transitions`` trees of every chain, each begun as soon as the last has ended."""
    target, start, mass, steps = case(name)
    everyone = torch.arange(chains)
    uniforms = Uniforms(Noise(SEED, "nuts"), everyone)
    momenta = Momenta(Noise(SEED, "momentum"), everyone, target.dim, F64)
    trees = kind(padded(target), start[:chains], Metric(mass), steps[:chains], uniforms, momenta, DEPTH)
    kept, transition = Kept(chains, transitions, target.dim), torch.zeros_like(everyone)
    trees.begin(everyone, transition)
    while trees.active.any():
        rows = trees.advance()
        kept.record(rows, transition[rows], trees.position[rows], trees.info(rows))
        transition[rows] += 1
        done = transition[rows] == transitions
        trees.rest(rows[done])
        trees.begin(rows[~done], transition[rows[~done]])
    return kept


# ---- the reference -----------------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    position: np.ndarray
    momentum: np.ndarray
    grad: np.ndarray
    log_density: float


class Chain:
    """One chain; ``uniforms`` (steps, 3): for the leaf, for the doubling, and the coin for the next direction."""

    def __init__(self, target, mass, step, uniforms):
        self.target, self.mass, self.step, self.uniforms = target, mass, step, uniforms
        self.root = np.linalg.cholesky(mass)
        self.leaves = 0

    def leaf(self, position, momentum):
        grad, log_density = self.target(torch.from_numpy(position)[None])
        return Leaf(position, momentum, grad[0].numpy(), float(log_density))

    def energy(self, leaf):
        return 0.5 * leaf.momentum @ self.mass @ leaf.momentum - leaf.log_density

    def leap(self, leaf, direction):
        half = leaf.momentum + 0.5 * direction * self.step * leaf.grad
        new = self.leaf(leaf.position + direction * self.step * self.mass @ half, half)
        return new._replace(momentum=half + 0.5 * direction * self.step * new.grad)

    def turned(self, leaves):
        momenta = np.array([leaf.momentum for leaf in leaves])
        velocity = self.mass @ (momenta.sum(0) - (momenta[0] + momenta[-1]) / 2)
        return velocity @ momenta[0] <= 0 or velocity @ momenta[-1] <= 0

    def subtree(self, edge, direction, depth):
        """New leaves beyond ``edge``, in the order in which they come, and whether the tree goes on."""
        if depth == 0:
            leaf = self.leap(edge, direction)
            self.leaves += 1
            self.now = self.uniforms[self.leaves]
            log_weight = self.start_energy - self.energy(leaf)
            if not np.isfinite(log_weight):
                log_weight = -np.inf
            self.rates.append(min(1.0, np.exp(min(log_weight, 0.0))))
            self.new_weight = np.logaddexp(self.new_weight, log_weight)
            if log_weight > -np.inf and self.now[0] < np.exp(log_weight - self.new_weight):
                self.candidate = leaf
            self.diverging = log_weight <= -1000
            return [leaf], not self.diverging
        first, goes_on = self.subtree(edge, direction, depth - 1)
        if not goes_on:
            return first, False
        second, goes_on = self.subtree(first[-1], direction, depth - 1)
        return first + second, goes_on and not self.turned(first + second)

    def transition(self, position, numbers):
        """One tree from ``position`` with a momentum made of standard normal ``numbers``."""
        path = [self.leaf(position, np.linalg.solve(self.root.T, numbers))]
        chosen, log_weight, coin = path[0], 0.0, self.uniforms[self.leaves, 2]
        self.start_energy, self.rates, depth = self.energy(path[0]), [], 0
        while depth < DEPTH:
            self.new_weight, self.candidate = -np.inf, None
            forward = coin < 0.5
            new, goes_on = self.subtree(path[-1] if forward else path[0], 1 if forward else -1, depth)
            depth += 1
            if not goes_on:
                break
            if self.now[1] < np.exp(min(self.new_weight - log_weight, 0.0)):
                chosen = self.candidate
            log_weight = np.logaddexp(log_weight, self.new_weight)
            path = path + new if forward else new[::-1] + path
            if self.turned(path):
                break
            coin = self.now[2]
        return chosen, {
            "tree_depth": depth,
            "n_steps": len(self.rates),
            "diverging": self.diverging,
            "lp": chosen.log_density,
            "energy": self.start_energy,
            "acceptance_rate": np.mean(self.rates),
        }


def agreement(kept: Kept, name: str) -> torch.Tensor:
    """Whether each transition (chains, transitions) is what the reference makes of the same start and numbers."""
    target, start, mass, steps = case(name)
    mass = (mass if mass.ndim == 2 else mass.diag()).numpy()
    transitions = kept.draws.shape[1]
    same = torch.zeros(CHAINS, transitions, dtype=torch.bool)
    for c in range(CHAINS):
        ends = [0, *kept.stats["n_steps"][c].cumsum(0).tolist()]
        uniforms = Noise(SEED, "nuts").uniforms(torch.tensor(c), torch.arange(ends[-1] + 2**DEPTH), 4)
        numbers = Noise(SEED, "momentum").normals(torch.tensor(c), torch.arange(transitions), target.dim).numpy()
        chain, position = Chain(target, mass, float(steps[c]), uniforms.numpy()), start[c].numpy()
        for t in range(transitions):
            chain.leaves = ends[t]
            chosen, expected = chain.transition(position, numbers[t])
            position = kept.draws[c, t].numpy()
            got = {key: value[c, t].item() for key, value in kept.stats.items()}
            same[c, t] = all(got[key] == expected[key] for key in COUNTS) and bool(
                abs(chosen.position - position).max() <= 1e-9
                and all(got[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-9) for key in REALS)
            )
    return same


@pytest.mark.parametrize("name", CASES)
def test_a_thousand_trees_equal_the_recursive_reference(kind, name):
    kept = batched(kind, name)
    assert set(kept.stats["tree_depth"].flatten().tolist()) == set(range(1, DEPTH + 1))
    if name in ("funnel", "double_well"):
        assert 20 < kept.stats["diverging"].sum() < 800
    cut_short = kept.stats["n_steps"] != 2 ** kept.stats["tree_depth"] - 1
    if "dense" not in name:  # where halves turn back now and then; in a round normal they hardly do
        assert (cut_short & ~kept.stats["diverging"]).sum() > 20
    assert kept.stats["n_steps"].sum(1).max() > 256  # beyond two blocks of uniforms
    same = agreement(kept, name)
    assert int(same.sum()) == 1000
    assert torch.equal(kept.stats["step_size"], case(name)[3][:, None].expand(CHAINS, 20))


@pytest.mark.parametrize("dim", [5, 8, 19])  # sums go by eights
@pytest.mark.parametrize("dense", [False, True])
def test_both_kinds_make_the_same_trees_of_the_same_numbers(dim, dense):
    """A random density of many scales that is far from normal; unstable steps, which blow rounding up, are left out."""
    if native.load(native_trees.SOURCE) is None:
        pytest.skip(native.reason(native_trees.SOURCE))
    a, spread = normals(2 * dim, dim, seed=dim) / dim**0.5, torch.logspace(-0.5, 0.5, dim, dtype=F64)

    def gradient(z):
        u = (z / spread) @ a.T
        return -(torch.tanh(u) @ a + u**3 @ a / 10 + z / spread) / spread, -(
            torch.log(torch.cosh(u)).sum(-1) + (u**4).sum(-1) / 40 + ((z / spread) ** 2).sum(-1) / 2
        )

    def run(kind):
        uniforms = Uniforms(Noise(3, "nuts"), EVERYONE)
        momenta = Momenta(Noise(3, "momentum"), EVERYONE, dim, F64)
        mass = correlated(dim, seed=1) if dense else spread**2
        steps = (0.5 if dense else 1.0) * torch.logspace(-1.3, 0.0, CHAINS, dtype=F64)
        start = normals(CHAINS, dim, seed=2) * spread
        trees, at = kind(gradient, start, Metric(mass), steps, uniforms, momenta, 7), torch.zeros_like(EVERYONE)
        trees.begin(EVERYONE, at)
        steps = []
        for _ in range(120):  # few enough for rounding to stay small
            rows = trees.advance()
            inside = {name: getattr(trees, name).clone() for name in ("side", "leaves", "depth", "candidate_density")}
            steps.append((rows, trees.info(rows), trees.chosen.clone(), trees.candidate.clone(), inside))
            at[rows] += 1
            trees.begin(rows, at[rows])
        return steps

    ended = 0
    for (rows, info, chosen, candidate, inside), (rows_, info_, chosen_, candidate_, inside_) in zip(
        run(Trees), run(NativeTrees), strict=True
    ):
        assert torch.equal(rows, rows_)
        assert all(torch.equal(getattr(info, name), getattr(info_, name)) for name in COUNTS)
        assert all(torch.allclose(getattr(info, name), getattr(info_, name), 1e-8, 1e-8) for name in REALS)
        assert torch.equal(info.step_size, info_.step_size)
        assert torch.allclose(chosen, chosen_, 1e-7, 1e-7) and torch.allclose(candidate, candidate_, 1e-7, 1e-7)
        assert all(torch.allclose(inside[name], inside_[name], 1e-8, 1e-8) for name in inside)
        ended += len(rows)
    assert ended > 100  # trees


@pytest.mark.parametrize("name", ["correlated, dense", "banana"])
@pytest.mark.parametrize("chains", [1, 2, 4, 16])
def test_native_trees_are_bit_equal_among_any_number_of_chains(name, chains, monkeypatch):
    """With a dense metric too, where those by torch are the same to rounding only."""
    if native.load(native_trees.SOURCE) is None:
        pytest.skip(native.reason(native_trees.SOURCE))
    monkeypatch.setitem(
        TARGETS, "correlated", normal(torch.linspace(0.5, 2, 10, dtype=F64))
    )  # coordinate by coordinate
    among, alone = batched(NativeTrees, name), batched(NativeTrees, name, chains=chains)
    assert torch.equal(among.draws[:chains], alone.draws)
    assert all(torch.equal(among.stats[key][:chains], value) for key, value in alone.stats.items())


# ---- planted faults ----------------------------------------------------------------------------------------------


class AlwaysTakesTheNewLeaves(Trees):
    def _double(self, rows, draw):
        return super()._double(rows, torch.cat([draw[:, :1], 0 * draw[:, 1:2], draw[:, 2:]], 1))


class NeverLooksAtHalves(Trees):
    def _turned_within(self):
        return torch.zeros_like(self.active)


class CountsEndsInFull(Trees):
    def _turns(self, total, first, last):
        return super()._turns(total + (first + last) / 2, first, last)


class LooksAtOneEnd(Trees):
    def _turns(self, total, first, last):
        return super()._turns(total, first, first)


class GrowsForward(Trees):
    def _grow(self, rows, coin):
        super()._grow(rows, 0 * coin)


class KeepsTheFirstLeaf(Trees):
    def advance(self):
        uniforms = self.uniforms.next
        self.uniforms.next = lambda: torch.where(
            (torch.arange(4) == 0) & (self.leaves > 0)[:, None], torch.ones((), dtype=F64), uniforms()
        )
        ended = super().advance()
        self.uniforms.next = uniforms
        return ended


class ForgetsTheDoubledWeight(Trees):
    def _double(self, rows, draw):
        before = self.log_weight.clone()
        ends = super()._double(rows, draw)
        self.log_weight = before
        return ends


MUTANTS = [AlwaysTakesTheNewLeaves, NeverLooksAtHalves, CountsEndsInFull, LooksAtOneEnd, GrowsForward]
MUTANTS += [KeepsTheFirstLeaf, ForgetsTheDoubledWeight]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_broken_trees_differ_from_the_reference(mutant):
    assert not agreement(batched(mutant, "banana", 6), "banana").all()


def test_equal_weights_differ_from_the_reference(monkeypatch):
    right = trees_module.log_acceptance
    monkeypatch.setattr(
        trees_module, "log_acceptance", lambda a, b: torch.where(right(a, b) > -1000, 0 * a, right(a, b))
    )
    assert not agreement(batched(Trees, "banana", 6), "banana").all()


def test_another_bound_of_divergence_differs_from_the_reference(monkeypatch):
    monkeypatch.setattr(trees_module, "DIVERGENCE", 10.0)
    assert not agreement(batched(Trees, "funnel", 6), "funnel").all()


# what is in trees.cpp, and what is put in its place
FAULTS = {
    "another side": ("const int64_t side = coin < 0.5;", "const int64_t side = coin >= 0.5;"),
    "forward only": ("const int64_t side = coin < 0.5;", "const int64_t side = 1;"),
    "steps to one side": ("s.side[c] ? s.step_size[c] : -s.step_size[c]", "s.step_size[c]"),
    "no first half step": ("add(momentum, T(0.5) * step(), leaf(GRAD), s.dim);", ""),
    "no second half step": ("add(momentum, T(0.5) * step(), grad, s.dim);", ""),
    "the gradient of before": ("copy(leaf(GRAD), grad);", ""),
    "acceptance above one": ("std::exp(std::fmin(log_weight, 0.0))", "std::exp(log_weight)"),
    "always the new leaves": ("draw[1] < std::exp(s.new_log_weight[c] - s.log_weight[c])", "true"),
    "by another number": ("draw[0] < std::exp(log_weight - all)", "draw[1] < std::exp(log_weight - all)"),
    "leaves of equal weight": ("std::exp(log_weight - all)", "1.0 / (s.leaves[c] + 1)"),
    "weight of the first leaves": ("s.log_weight[c] = log_add_exp(s.log_weight[c], s.new_log_weight[c]);", ""),
    "weight of the last leaf": ("s.new_log_weight[c] = all;", "s.new_log_weight[c] = log_weight;"),
    "sum without its first half": ("add(leaf(SUM), T(-0.5), leaf(MOMENTUM), s.dim);", ""),
    "sum without its last half": ("add(leaf(SUM), T(0.5), momentum, s.dim);\n\n", ""),
    "ends in full": ("add(total, T(-0.5), end(MOMENTUM, 1), s.dim);", ""),
    "tree's sum not kept": ("add(sum, T(1), leaf(SUM), s.dim);", "copy(sum, leaf(SUM));"),
    "halves unseen": ("const bool ends = diverges || turned_within();", "const bool ends = diverges;"),
    "the smallest halves only": ("part < trailing_ones(n)", "part < 1"),
    "a wrong slot": ("slot = ones(n >> 1)", "slot = trailing_ones(n >> 1)"),
    "one end": ("|| dot(v, last, s.dim) <= 0", ""),
    "half a dot product": ("for (int k = 0; i < dim; ++i, ++k)", "for (int k = 0; i < dim - 1; ++i, ++k)"),
    "depth off by one": ("int64_t(1) << s.depth[c]", "int64_t(2) << s.depth[c]"),
    "depth of a tree cut short": ("s.depth[c] += 1;  // a", "// a"),
    "another bound": ("DIVERGENCE = 1000.0", "DIVERGENCE = 10.0"),
    "energy of another sign": ("s.energy[c] - energy", "energy - s.energy[c]"),
    "density of before": ("s.chosen_density[c] = s.candidate_density[c];", ""),
    "gradient of before": ("copy(row(s.chosen, GRAD, s.chains, c), row(s.candidate, GRAD, s.chains, c));", ""),
    "end not moved": ("copy(end(POSITION, s.side[c]), leaf(POSITION));", ""),
    "steps of the tree before": ("s.depth[c] = s.steps[c] = 0;", "s.depth[c] = 0;"),
    "diverging for good": ("s.diverging[c] = 0;", ""),
}


@pytest.mark.slow  # all together
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_native_trees_differ_from_the_reference(fault, tmp_path, monkeypatch):
    use_broken_trees(*FAULTS[fault], tmp_path, monkeypatch)
    assert not all(agreement(batched(NativeTrees, name, 6), name).all() for name in ("banana", "funnel"))


# ---- numbers made ahead ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chains", "dim"), [(3, 2), (8, 500)])
def test_numbers_made_ahead_depend_on_chain_and_transition_only(chains, dim):
    noise, everyone = Noise(4, "momentum"), torch.arange(chains)
    momenta = Momenta(noise, everyone, dim, F64)
    at, order = torch.zeros_like(everyone), normals(300, chains, seed=1) > 0
    for moving in order:
        rows = everyone[moving]
        assert torch.equal(momenta.take(rows, at[rows]), noise.normals(rows, at[rows], dim))
        at[rows] += 1
    assert at.min() > momenta.ahead  # every chain went beyond its first block
    uniforms = Uniforms(Noise(4, "nuts"), everyone)
    for step in range(600):
        assert torch.equal(uniforms.now(), Noise(4, "nuts").uniforms(everyone, torch.tensor(step), 4))
        uniforms.next()


def test_a_chain_may_rest_after_a_tree_of_the_greatest_depth(kind):
    target, everyone = normal(torch.ones(2, dtype=F64)), torch.arange(2)
    uniforms, momenta = Uniforms(Noise(1, "nuts"), everyone), Momenta(Noise(1, "momentum"), everyone, 2, F64)
    steps = torch.tensor([1e-3, 1e-3], dtype=F64)
    trees = kind(target, target.exact(2, 1), Metric(torch.ones(2, dtype=F64)), steps, uniforms, momenta, 3)
    trees.begin(everyone, torch.zeros_like(everyone))
    assert [len(trees.advance()) for _ in range(7)] == [0] * 6 + [2]  # 1 + 2 + 4 leaves
    trees.rest(everyone[:1])
    trees.begin(everyone[1:], torch.ones_like(everyone[1:]))
    assert [trees.advance().tolist() for _ in range(7)] == [[]] * 6 + [[1]]


def test_chains_that_rest_keep_their_place(kind):
    target = normal(torch.ones(2, dtype=F64))
    everyone = torch.arange(3)
    uniforms, momenta = Uniforms(Noise(1, "nuts"), everyone), Momenta(Noise(1, "momentum"), everyone, 2, F64)
    trees = kind(
        target,
        target.exact(3, 1),
        Metric(torch.ones(2, dtype=F64)),
        torch.full((3,), 0.3, dtype=F64),
        uniforms,
        momenta,
        5,
    )
    trees.begin(everyone, torch.zeros_like(everyone))
    trees.rest(everyone[1:2])
    before = trees.position[1].clone()
    ended = torch.cat([trees.advance() for _ in range(8)])
    assert torch.equal(trees.position[1], before) and trees.steps[1] == 0 and 1 not in ended
