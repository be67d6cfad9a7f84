"""The leapfrog integrator on ten targets, and the metric's four faces against plain linear algebra."""

import pytest
import torch
from batched_targets import F64, TARGETS, correlated, normals
from torch.func import grad, jacfwd, vmap

from bnn_pyro.inference import metric as metric_module
from bnn_pyro.inference.metric import Metric, dot, leapfrog

ALL = pytest.mark.parametrize("name", TARGETS)
MASSES = pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])


def mass(dim, dense, dtype=F64):
    """An inverse mass matrix that is neither one nor symmetric under a swap with its inverse."""
    inverse = correlated(dim, seed=3) if dim > 1 else torch.tensor([[0.6]], dtype=F64)
    return Metric((inverse if dense else inverse.diagonal()).to(dtype))


def start(name, count, dense=False, dtype=F64, seed=1):
    """Positions, momenta and gradients (count, dim), energies (count,), and the metric."""
    target, metric = TARGETS[name], mass(TARGETS[name].dim, dense, dtype)
    position = target.exact(count, seed).to(dtype)
    momentum = metric.momentum(normals(count, target.dim, seed=seed + 100).to(dtype))
    return target, metric, position, momentum


def walk(target, metric, position, momentum, step, steps):
    """The end of ``steps`` leapfrog steps, and the change of energy (c,)."""
    sizes = torch.full((len(position),), step, dtype=F64)
    gradient, log_density = target(position)
    energy = metric.kinetic(momentum) - log_density
    for _ in range(steps):
        position, gradient, momentum, log_density = leapfrog(position, momentum, gradient, sizes, metric, target)
    return position, momentum, metric.kinetic(momentum) - log_density - energy


@ALL
def test_gradients_by_hand_are_derivatives(name):
    target = TARGETS[name]
    z = target.exact(20, seed=4)
    by_autograd = vmap(grad(lambda one: target.log_density(one[None])[0]))(z)
    torch.testing.assert_close(target(z)[0], by_autograd, rtol=1e-11, atol=1e-11)


@ALL
@MASSES
@pytest.mark.parametrize(("dtype", "bound"), [(F64, 1e-10), (torch.float32, 1e-4)], ids=["float64", "float32"])
def test_twenty_steps_out_and_back_end_where_they_began(name, dense, dtype, bound):
    target, metric, position, momentum = start(name, 50, dense, dtype)
    there, pushed, _ = walk(target, metric, position, momentum, 0.1, 20)
    assert (there - position).abs().mean() > 0.1  # it went somewhere
    back, pulled, _ = walk(target, metric, there, pushed, -0.1, 20)
    assert (back - position).abs().max() <= bound and (pulled - momentum).abs().max() <= bound
    flipped, unflipped, _ = walk(target, metric, there, -pushed, 0.1, 20)  # turning round is the same as going back
    assert (flipped - position).abs().max() <= bound and (unflipped + momentum).abs().max() <= bound


@ALL
@MASSES
def test_energy_is_kept_to_second_order(name, dense):
    target, metric, position, momentum = start(name, 400, dense)
    *_, change = walk(target, metric, position, momentum, 1e-3, 100)
    assert change.mean().abs() <= 1e-6
    errors = [walk(target, metric, position, momentum, 0.64 / n, n)[2].square().mean().sqrt() for n in (32, 64)]
    assert 3.8 <= errors[0] / errors[1] <= 4.2


@ALL
@MASSES
def test_a_step_keeps_volume(name, dense):
    target, metric, position, momentum = start(name, 5, dense)
    step, dim = torch.full((1,), 0.3, dtype=F64), target.dim

    def one(state):
        q, p = state[None, :dim], state[None, dim:]
        q, _, p, _ = leapfrog(q, p, target(q)[0], step, metric, target)
        return torch.cat([q[0], p[0]])

    for state in torch.cat([position, momentum], 1):
        assert (torch.linalg.det(jacfwd(one)(state)) - 1).abs() <= 1e-8


def test_each_chain_has_its_own_signed_step():
    target, metric, position, momentum = start("banana", 3)
    steps = torch.tensor([0.2, -0.1, 0.0], dtype=F64)
    together = leapfrog(position, momentum, target(position)[0], steps, metric, target)
    for i, step in enumerate(steps):
        one = slice(i, i + 1)
        q, p, _ = walk(target, metric, position[one], momentum[one], float(step), 1)
        torch.testing.assert_close(together[0][one], q, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(together[2][one], p, rtol=1e-13, atol=1e-13)
    assert torch.equal(together[0][2], position[2]) and torch.equal(together[3], target(together[0])[1])


# ---- the metric --------------------------------------------------------------------------------------------------


@MASSES
def test_the_metric_agrees_with_plain_linear_algebra(dense):
    metric, dim = mass(6, dense), 6
    inverse = metric.inverse_mass_matrix if dense else metric.inverse_mass_matrix.diag()
    assert metric.dense == dense
    r = normals(50, dim, seed=1)
    torch.testing.assert_close(metric.velocity(r), r @ inverse, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(metric.kinetic(r), 0.5 * torch.einsum("ci,ij,cj->c", r, inverse, r))
    # momentum is linear in its normal numbers, so that its covariance is known exactly: the mass matrix
    root = metric.momentum(torch.eye(dim, dtype=F64))
    torch.testing.assert_close(root.T @ root, torch.linalg.inv(inverse), rtol=1e-10, atol=1e-10)
    # whitened, the posterior that the metric stands for has unit covariance; kinetic energy is that of the numbers
    white = metric.whiten(torch.eye(dim, dtype=F64))
    torch.testing.assert_close(white.T @ inverse @ white, torch.eye(dim, dtype=F64), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(metric.kinetic(metric.momentum(r)), 0.5 * (r**2).sum(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        (metric.whiten(r) ** 2).sum(1),
        torch.einsum("ci,ij,cj->c", r, torch.linalg.inv(inverse), r),
        rtol=1e-10,
        atol=1e-10,
    )


@MASSES
def test_momenta_of_random_numbers_have_the_mass_matrix_as_covariance(dense):
    metric, count = mass(4, dense), 200_000
    inverse = metric.inverse_mass_matrix if dense else metric.inverse_mass_matrix.diag()
    r = metric.momentum(normals(count, 4, seed=2))
    products = r[:, :, None] * r[:, None, :]
    z = (products.mean(0) - torch.linalg.inv(inverse)) / (products.std(0) / count**0.5)
    assert z.abs().max() < 4.26


def test_energies_of_float32_are_summed_in_float64():
    r = torch.full((1, 1_000_000), 1.1)
    assert Metric(torch.ones(1_000_000)).kinetic(r).dtype == F64
    expected = 0.5 * (r.double() ** 2).sum(1)
    assert (Metric(torch.ones(1_000_000)).kinetic(r) / expected - 1).abs().item() < 1e-7
    assert dot(r, r).dtype == F64


# ---- planted faults ----------------------------------------------------------------------------------------------


def _first_half_dropped(position, momentum, gradient, step, metric, target):
    position = position + step.to(position.dtype)[:, None] * metric.velocity(momentum)
    gradient, log_density = target(position)
    return position, gradient, momentum + step.to(position.dtype)[:, None] * gradient, log_density


def _stale_gradient(position, momentum, gradient, step, metric, target):
    q, _, p, log_density = metric_module.leapfrog(position, momentum, gradient, step, metric, target)
    return q, gradient, p, log_density


@pytest.mark.parametrize("broken", [_first_half_dropped, _stale_gradient])
def test_a_broken_integrator_is_caught(broken, monkeypatch):
    monkeypatch.setitem(globals(), "leapfrog", broken)
    with pytest.raises(AssertionError):
        test_twenty_steps_out_and_back_end_where_they_began("banana", False, F64, 1e-10)
    with pytest.raises(AssertionError):
        test_energy_is_kept_to_second_order("banana", False)


def test_a_swapped_mass_matrix_is_caught(monkeypatch):
    monkeypatch.setattr(Metric, "momentum", lambda self, normal: normal * self.root)
    with pytest.raises(AssertionError):
        test_the_metric_agrees_with_plain_linear_algebra(False)
    with pytest.raises(AssertionError):
        test_momenta_of_random_numbers_have_the_mass_matrix_as_covariance(False)


def test_an_inner_product_depends_on_neither_threads_nor_other_rows():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(10, 4, 300_000, generator=generator) for _ in range(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [dot(x, y) for x, y in zip(a, b, strict=True)]
        torch.set_num_threads(2)
        for x, y, expected in zip(a, b, alone, strict=True):
            assert torch.equal(dot(x, y), expected)
            assert torch.equal(dot(x[:1], y[:1]), expected[:1]) and torch.equal(dot(x[1:], y[1:]), expected[1:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("narrow", [6e-6, 0.0, 1.0])
def test_a_dense_metric_that_rounding_makes_singular_is_mended(narrow):
    covariance = (torch.full((2, 2), 1e4, dtype=F64) + narrow * torch.eye(2, dtype=F64)).float()
    made = Metric(covariance)
    assert made.root.isfinite().all() and (made.root.diagonal() > 0).all()
    assert torch.allclose(made.inverse_mass_matrix, covariance, rtol=1e-4)
    assert torch.equal(made.inverse_mass_matrix, covariance) == (narrow == 1.0), "as it is where that can be factored"
    again = Metric(made.inverse_mass_matrix.double().float())
    assert torch.equal(again.root, made.root)
    with pytest.raises(torch.linalg.LinAlgError):
        Metric(-covariance)
