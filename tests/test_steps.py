"""A compiled step against Pyro's optimiser, its members against each alone, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim import ClippedAdam

from bnn_pyro import steps
from bnn_pyro.compiled import FEW_CHAINS, members_in_block
from bnn_pyro.isolation import isolated
from bnn_pyro.steps import State, adam_step, by_autograd, compile_step, expect, plain_step
from problems import _rows

F64 = torch.float64
X, Y = _rows()
SHAPES = [torch.Size([3]), torch.Size([]), torch.Size([2, 2])]
SIZES = [shape.numel() for shape in SHAPES]
SIZE = sum(SIZES)


@pytest.fixture(autouse=True)
def inside():
    with isolated(seed=0, dtype=F64):
        yield


def objective(parts, noise, *rows):
    """A curved loss of all parts, of noise and of rows, with gradients from far below a clip of 2 to far above."""
    x, y = rows if rows else (X, Y)
    w, shift, table = parts
    w = w + 0.1 * noise[:3]
    likelihood = -0.5 * ((y - torch.tanh(x @ w) - shift) ** 2).sum()
    kl = 0.5 * (table @ table).square().sum() + 1e-3 * (noise[3] * table).sum() + 1e-2 * shift.cosh()
    return kl - likelihood, torch.stack([likelihood, kl])


def start(members, seed=1):
    position = torch.randn(members, SIZE, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return State(position, SIZES)


def copy(state):
    new = State(state.position.clone(), SIZES)
    new.mean.copy_(state.mean)
    new.square.copy_(state.square)
    return new


def tensors(state):
    return state.position, state.mean, state.square


def noises(*shape, seed=2):
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


def follow(step, state, noise, lr, decay, *rows):
    """``noise`` (steps, members, particles, k) -> the states after each step, and the terms before it."""
    states, terms = [], []
    state = copy(state)
    for count, own in enumerate(noise, 1):
        terms.append(step(state, own, count, lr * decay**count, *rows))
        states.append(copy(state))
    return states, torch.stack(terms)


def eager(clip=2.0, shared=True):
    """``adam_step`` as it is, writing to the state."""
    function = adam_step(objective, SHAPES, clip, shared)

    def call(*args):
        *moved, terms = function(*args)
        for old, new in zip(args[: len(moved)], moved):
            old.copy_(new)
        return terms

    return steps.Step(call, "eager")


def parts_of(position):
    return [p.reshape(s) for p, s in zip(position.split([s.numel() for s in SHAPES]), SHAPES)]


@pytest.mark.parametrize("clip", [2.0, 0.05, 1e6])
def test_fifty_steps_are_those_of_pyros_clipped_adam(clip):
    lr, decay, noise, state = 0.05, 0.97, noises(50, 1, 1), start(1)
    states, terms = follow(eager(clip), state, noise, lr, decay)
    leaves = [p.clone().requires_grad_(True) for p in parts_of(state.position[0])]
    optimiser = ClippedAdam({"lr": lr, "lrd": decay, "clip_norm": clip})
    clipped = 0
    for own, after, term in zip(noise, states, terms):
        for leaf in leaves:
            leaf.grad = None
        loss, expected = objective(leaves, own[0, 0])
        loss.backward()
        clipped += sum(int((leaf.grad.abs() > clip).sum()) for leaf in leaves)
        optimiser(leaves)
        reached = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
        assert torch.allclose(after.position[0], reached, rtol=1e-12, atol=1e-12)
        assert torch.allclose(term[0], expected.detach(), rtol=1e-12, atol=1e-12)
    assert (clipped > 10) == (clip < 1e6)  # the clip has been at work, or has not
    assert (states[-1].position - state.position).abs().max() > 0.1


@pytest.mark.parametrize("shared", [True, False], ids=["the same rows", "rows of their own"])
@pytest.mark.parametrize("particles", [1, 3])
def test_members_at_once_are_members_alone(particles, shared):
    members, noise, state = 4, noises(20, 4, particles), start(4)
    rows = (X, Y) if shared else (torch.stack([X * (1 + i) for i in range(4)]), torch.stack([Y + i for i in range(4)]))
    states, terms = follow(eager(shared=shared), state, noise, 0.05, 1.0, *rows)
    for i in range(members):
        own = State(state.position[i : i + 1].clone(), SIZES)
        mine = rows if shared else [r[i : i + 1] for r in rows]
        alone, alone_terms = follow(eager(shared=shared), own, noise[:, i : i + 1], 0.05, 1.0, *mine)
        for a, b in zip(tensors(states[-1]), tensors(alone[-1])):
            assert torch.allclose(a[i], b[0], rtol=1e-11, atol=1e-11)
        assert torch.allclose(terms[:, i], alone_terms[:, 0], rtol=1e-11, atol=1e-11)
    assert (states[-1].position[0] - states[-1].position[1]).abs().max() > 0.1


def test_particles_are_averaged_before_the_clip():
    state, noise = start(1), noises(1, 5, seed=3) * 5.0
    after = copy(state)
    terms = eager(clip=2.0)(after, noise, 1, 0.1)
    leaves = [p.clone().requires_grad_(True) for p in parts_of(state.position[0])]
    each = [objective(leaves, own) for own in noise[0]]
    grads = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves)]) for loss, _ in each]
    grad = torch.stack(grads).mean(0)
    assert torch.allclose(after.mean[0], 0.1 * grad.clamp(-2.0, 2.0), atol=1e-13)
    assert not torch.allclose(
        grad.clamp(-2.0, 2.0), torch.stack([g.clamp(-2.0, 2.0) for g in grads]).mean(0), atol=1e-3
    )
    assert torch.allclose(terms[0], torch.stack([t for _, t in each]).mean(0).detach(), rtol=1e-13)


# ---- compiled ----------------------------------------------------------------------------------------------------


def compiled(backend, members=1, particles=1, work=1, loss=objective):
    state, noise = start(members), noises(members, particles, seed=9)
    expected = expect(by_autograd(objective, SHAPES), 2.0, state.position, noise)
    return compile_step(adam_step(loss, SHAPES, 2.0, True), expected, state, noise, work, backend)


@pytest.mark.parametrize("backend", ["eager", "pyro"])
def test_a_step_writes_to_the_state_that_it_was_given_and_to_nothing_else(backend):
    state, noise = start(2), noises(2, 1)
    step = compiled(backend, 2) if backend == "eager" else plain_step(by_autograd(objective, SHAPES), 2.0, len(SHAPES))
    expected, before = copy(state), [t.data_ptr() for t in tensors(state)]
    eager()(expected, noise, 1, 0.1)
    kept = noise.clone()
    step(state, noise, 1, 0.1)
    assert [t.data_ptr() for t in tensors(state)] == before and torch.equal(noise, kept)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(tensors(state), tensors(expected)))
    assert (state.position - start(2).position).abs().max() > 0.05


def test_compiling_leaves_the_state_as_new():
    state, new, noise = start(2), start(2), noises(2, 1)
    expected = expect(by_autograd(objective, SHAPES), 2.0, state.position, noise)
    compile_step(adam_step(objective, SHAPES, 2.0, True), expected, state, noise, 1, "eager")
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(new)))


@pytest.mark.slow
@pytest.mark.parametrize(("members", "particles"), [(1, 1), (3, 2)])
def test_compiled_steps_are_the_steps(members, particles):
    noise = noises(50, members, particles)
    expected, terms = follow(eager(), start(members), noise, 0.05, 0.97)
    for backend in ("eager", "inductor"):
        step = compiled(backend, members, particles)
        assert (step.backend, step.reason) == (backend, "")
        states, found = follow(step, start(members), noise, 0.05, 0.97)
        for a, b in zip(tensors(states[-1]), tensors(expected[-1])):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)  # rounding, over fifty steps
        assert torch.allclose(found, terms, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2, 3])
def test_members_in_blocks_are_members_at_once(block):
    """Each with rows of its own, which have to go with it."""
    members, noise = 6, noises(5, 6, 2)
    rows = (torch.stack([X * (1 + i) for i in range(members)]), torch.stack([Y + i for i in range(members)]))
    function, state = adam_step(objective, SHAPES, 2.0, False), start(members)
    expected = expect(by_autograd(objective, SHAPES), 2.0, state.position, noise[0], *rows)
    step = compile_step(function, expected, state, noise[0], 1, "inductor", *rows, block=block)
    assert (step.backend, step.reason) == ("inductor", "")
    states, terms = follow(step, start(members), noise, 0.05, 0.97, *rows)
    wanted, wanted_terms = follow(eager(shared=False), start(members), noise, 0.05, 0.97, *rows)
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-11) for a, b in zip(tensors(states[-1]), tensors(wanted[-1])))
    assert terms.shape == wanted_terms.shape and torch.allclose(terms, wanted_terms, rtol=1e-11, atol=1e-11)


def test_a_block_divides_the_members_and_fits():
    assert members_in_block(50, 800_000) == 5 and members_in_block(50, 1) == 50
    assert members_in_block(47, 800_000) == 1 and members_in_block(12, 10**9) == FEW_CHAINS
    assert members_in_block(1, 10**9) == 1


def test_the_traced_step_is_the_step():
    noise = noises(30, 2, 2)
    expected, terms = follow(eager(), start(2), noise, 0.05, 0.97)
    states, found = follow(compiled("eager", 2, 2), start(2), noise, 0.05, 0.97)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(tensors(states[-1]), tensors(expected[-1])))
    assert torch.allclose(found, terms, rtol=1e-10, atol=1e-10)


def test_what_is_compiled_by_itself_depends_on_the_work(monkeypatch):
    monkeypatch.setattr(steps, "inductor", lambda graph, example: graph)
    assert compiled("auto", work=steps.COMPILE_FROM - 1).backend == "eager"
    assert compiled("auto", work=steps.COMPILE_FROM).backend == "inductor"


# A fault in one entry of what a step writes to its parts or returns.
FAULTS = {
    "position": lambda parts, terms: parts[0][0, :1].add_(1e-6),
    "gradient": lambda parts, terms: parts[4][0, -1:].add_(1e-6),
    "square": lambda parts, terms: parts[8][0, 1:2].add_(1e-6),
    "terms": lambda parts, terms: terms.mul_(1 + 1e-6),
    "nan": lambda parts, terms: parts[5].mul_(torch.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_compiled_step_is_not_used_and_the_reason_is_said(fault, monkeypatch):
    def inductor(graph, example):
        def call(*args):
            (terms,) = graph(*args)
            FAULTS[fault](args[:9], terms)
            return (terms,)

        return call

    monkeypatch.setattr(steps, "inductor", inductor)
    step = compiled("inductor")
    assert step.backend == "eager" and step.reason.startswith(
        "inductor failed: ArithmeticError: a step differs from the program's by"
    )
    noise, found, expected = noises(1, 1), start(1), start(1)
    step(found, noise, 1, 0.1)
    eager()(expected, noise, 1, 0.1)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(tensors(found), tensors(expected)))


def test_a_compiler_that_fails_is_not_used_and_the_reason_is_said(monkeypatch):
    def broken(graph, example):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(steps, "inductor", broken)
    step = compiled("inductor")
    assert (step.backend, step.reason) == ("eager", "inductor failed: RuntimeError: no C++ compiler")


def test_a_right_compiled_step_is_used(monkeypatch):
    monkeypatch.setattr(steps, "inductor", lambda graph, example: graph)
    step = compiled("inductor")
    assert (step.backend, step.reason) == ("inductor", "")


def test_a_step_that_differs_from_its_reference_is_refused():
    """As where an ELBO written out is not what its guide's run gives."""

    def other(parts, noise, *rows):
        loss, terms = objective(parts, noise, *rows)
        return loss + 1e-6 * parts[0].sum(), terms

    with pytest.raises(ArithmeticError, match="differs from the program"):
        compiled("eager", loss=other)


def test_a_step_that_draws_numbers_of_its_own_is_refused():
    def shaking(parts, noise, *rows):
        loss, terms = objective(parts, noise, *rows)
        return loss * (1.0 + pyro.sample("shake", dist.Normal(0.0, 0.1))), terms

    with pytest.raises(ArithmeticError, match="differs from the program"):
        compiled("eager", loss=shaking)
