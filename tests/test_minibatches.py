"""Batches of rows: what they add up to, their order, and programs that cannot take them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import bnn_pyro as bnn
from bnn_pyro.elbo import trace_elbo
from bnn_pyro.guides import autoguide_by_name
from bnn_pyro.isolation import isolated
from bnn_pyro.mean_field import mean_field
from bnn_pyro.minibatches import MiniBatches, check_batches
from problems import PROBLEMS, N, linear_model

F64 = torch.float64


def target_of(name):
    return PROBLEMS[name]().target()


def numbered(n=10):
    """A target whose rows are their own numbers: x (n, 1), y (n,)."""
    rows = torch.arange(n, dtype=F64)
    return bnn.structure.build_target(linear_model, rows[:, None], rows, name="numbered", dtype=F64)


def orders(batches, count):
    """The numbers of the rows of the next ``count`` batches, (count, members, size)."""
    out = []
    for _ in range(count):
        x, y = batches.draw()
        assert torch.equal(x[..., 0], y)
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("guide", ["normal", "multivariate"])
@pytest.mark.parametrize("name", ["linear", "two_observed", "factor", "embedding", "categorical", "plate_of_outputs"])
def test_batches_of_an_epoch_have_the_mean_of_all_rows(name, guide):
    """Several sites, a factor in the plate, inputs in a dict, labels: at one draw of the guide."""
    with isolated(seed=0, dtype=F64):
        target = target_of(name)
        model_guide = autoguide_by_name(guide, bnn.guides.float_observations(target))
        model_guide(target.x, target.y)
        elbo = trace_elbo(target, model_guide, True)
        noise = torch.randn(elbo.noise)
        written = mean_field(elbo)
        batches = MiniBatches(target, 3, seed=1)
        epoch = [batches.rows(*(t[0] for t in batches.draw())) for _ in range(N // 3)]
        for e in (elbo, *([written] if written is not None else [])):
            flat = torch.cat([leaf.detach().reshape(-1) for leaf in e.leaves.values()])
            parts = [p.reshape(s) for p, s in zip(flat.split([s.numel() for s in e.shapes]), e.shapes)]
            whole = e.terms(parts, noise)
            each = [e.terms(parts, noise, rows) for rows in epoch]
            mean = torch.stack([terms.log_likelihood for terms in each]).mean()
            assert float(mean) == pytest.approx(float(whole.log_likelihood), rel=1e-10)
            assert all(float(terms.kl) == pytest.approx(float(whole.kl), rel=1e-12) for terms in each)
            assert torch.stack([terms.log_likelihood for terms in each]).std() > 1e-3


@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_each_row_comes_up_once_an_epoch(size):
    found = orders(MiniBatches(numbered(), size, seed=3), 3 * 10 // size).reshape(3, 10)
    assert torch.equal(found.sort(1).values, torch.arange(10, dtype=F64).expand(3, 10))
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_batches_that_reach_into_the_next_epoch_leave_no_row_out():
    found = orders(MiniBatches(numbered(), 4, seed=3), 15).reshape(-1)
    assert torch.equal(found.reshape(6, 10).sort(1).values, torch.arange(10, dtype=F64).expand(6, 10))


def test_each_row_is_as_likely_in_each_place():
    """Where row 0 stands in 6,000 epochs of 10: a chi-square of the counts, 9 degrees of freedom."""
    found = orders(MiniBatches(numbered(), 10, seed=5), 6000)[:, 0]
    counts = torch.bincount((found == 0).nonzero()[:, 1], minlength=10).double()
    assert float(((counts - 600) ** 2 / 600).sum()) < 33.7  # p = 1e-4


def test_the_order_depends_on_the_seed_alone():
    target = numbered()
    first = orders(MiniBatches(target, 3, seed=1), 20)
    torch.manual_seed(99)
    torch.rand(7)
    before = torch.get_rng_state()
    assert torch.equal(orders(MiniBatches(target, 3, seed=1), 20), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(orders(MiniBatches(target, 3, seed=2), 20), first)


def test_members_have_orders_and_targets_of_their_own():
    target = numbered()
    y = torch.arange(10, dtype=F64) + 100.0 * torch.arange(3)[:, None]
    batches = MiniBatches(target, 5, seed=1, members=3, y=y)
    seen = [[], [], []]
    for _ in range(4):
        x, own = batches.draw()
        assert x.shape == (3, 5, 1) and torch.equal(own, x[..., 0] + 100.0 * torch.arange(3)[:, None])
        for i in range(3):
            seen[i].append(x[i, :, 0])
    orders_ = [torch.cat(s) for s in seen]
    assert not torch.equal(orders_[0], orders_[1]) and not torch.equal(orders_[1], orders_[2])
    assert all(torch.equal(o.reshape(2, 10).sort(1).values[0], torch.arange(10, dtype=F64)) for o in orders_)


def test_rows_of_a_population_come_up_as_often_as_it_has_them():
    population = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5, 6, 7]])
    found = orders(MiniBatches(numbered(), 5, seed=1, population=population), 4).reshape(2, 10)
    assert torch.equal(found.sort(1).values, population.double().expand(2, 10))


def test_inputs_in_a_dict_stay_together():
    target = target_of("embedding")
    batches = MiniBatches(target, 4, seed=2)
    tensors = [t[0] for t in batches.draw()]
    x, y, scale = batches.rows(*tensors)
    assert set(x) == {"unit", "z"} and scale == 3.0 and not x["unit"].is_floating_point()
    for i in range(4):
        row = int((target.y == y[i]).nonzero()[0, 0])
        assert int(x["unit"][i]) == row % 4 and torch.equal(x["z"][i], target.x["z"][row])


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["linear", "two_observed", "factor", "embedding", "categorical", "pyro_module", "hierarchical"]
)
def test_programs_that_take_part_of_their_rows_pass_without_a_word(name, recwarn):
    with isolated(seed=0, dtype=F64):
        check_batches(target_of(name), 5)
    assert not recwarn.list


def test_more_rows_than_there_are_are_refused():
    with (
        isolated(seed=0, dtype=F64),
        pytest.raises(
            bnn.OptionError,
            match=r"problem, batch_size: expected at most the 12 training rows, got 13\. Use a smaller one",
        ),
    ):
        check_batches(target_of("linear"), 13)


def test_one_joint_observation_is_refused():
    with (
        isolated(seed=0, dtype=F64),
        pytest.raises(
            bnn.ModelError,
            match=r"problem, batch_size: expected observations inside pyro.plate.*got one joint observation",
        ),
    ):
        check_batches(target_of("gp"), 5)


def test_latents_of_each_row_are_refused():
    with (
        isolated(seed=0, dtype=F64),
        pytest.raises(
            bnn.ModelError,
            match=r"problem, batch_size: expected latent sites outside the data plate, got \['offset'\] inside",
        ),
    ):
        check_batches(target_of("one_latent_per_row"), 5)


def of_fixed_size(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", 12):
        pyro.sample("y", dist.Normal((x @ w).expand(12), 0.5), obs=y)


def of_fixed_rows(x, y=None):
    """Rows from a closure: a batch's y would be broadcast over all of them."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", 12):
        pyro.sample("y", dist.Normal(PROBLEMS["linear"]().x @ w, 0.5), obs=y)


@pytest.mark.parametrize(("program", "size"), [(of_fixed_size, 5), (of_fixed_rows, 1)], ids=["size", "rows"])
def test_a_program_that_insists_on_its_rows_is_refused(program, size):
    problem = PROBLEMS["linear"]()
    with isolated(seed=0, dtype=F64):
        target = bnn.structure.build_target(program, problem.x, problem.y, name="mine", dtype=F64)
        with pytest.raises(
            bnn.ModelError, match=r"mine, batch_size: expected .* Take the number of rows from x, as in pyro.plate"
        ):
            check_batches(target, size)


def test_a_likelihood_that_is_scaled_already_is_warned_of():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]), poutine.scale(scale=4.0):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    problem = PROBLEMS["linear"]()
    with isolated(seed=0, dtype=F64):
        target = bnn.structure.build_target(program, problem.x, problem.y, name="mine", dtype=F64)
        with pytest.warns(UserWarning, match=r"mine, site 'y': .* scaled by 4 on top of it\. Take poutine.scale out"):
            check_batches(target, 3)


@pytest.mark.parametrize("inference", ["svi", "map"])
def test_fit_refuses_before_any_step(inference):
    problem = PROBLEMS["linear"]()
    with pytest.raises(bnn.OptionError, match="expected at most the 12 training rows, got 50"):
        bnn.fit(linear_model, problem.x, problem.y, inference=inference, batch_size=50, progress=False)


def test_the_check_leaves_generators_and_parameters_alone():
    def program(x, y=None):
        noise = pyro.param("left_behind", lambda: torch.tensor(0.5))
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w, noise.abs()), obs=y)

    problem = PROBLEMS["linear"]()
    before = torch.get_rng_state()
    try:
        bnn.fit(program, problem.x, problem.y, inference="svi", batch_size=4, steps=3, draws=5, progress=False)
        assert "left_behind" not in pyro.get_param_store()
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        pyro.clear_param_store()


# ---- fits --------------------------------------------------------------------------------------------------------


def _linear_rows(n, d=3, seed=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=F64)
    return x, x @ torch.linspace(-1, 1, d, dtype=F64) + 0.5 * torch.randn(n, generator=generator, dtype=F64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64"],
)
def test_a_guide_fitted_by_batches_has_the_spread_of_one_fitted_by_all_rows(dtype):
    """The likelihood scaled wrongly by k would make each sd wrong by the root of k; the mean, if rows were left out.

    Ten draws a step, since by one draw of 50 rows an sd still wanders by a tenth at the end.
    """
    x, y = _linear_rows(1000)
    options = {"inference": "svi", "dtype": dtype, "standardize": False, "progress": False, "seed": 2}
    reached = []
    for settings in ({}, {"batch_size": 50, "particles": 10}):
        posterior = bnn.fit(linear_model, x, y, steps=8000, lr=0.02, lr_decay=1e-3, draws=10, **settings, **options)
        state = {k.split(".")[-2]: v for k, v in posterior.draws.state.items()}
        reached.append((state["locs"], torch.nn.functional.softplus(state["scales"])))
    (mean, sd), (batch_mean, batch_sd) = reached
    precision = (torch.eye(3, dtype=F64) + x.T @ x / 0.25).to(sd.dtype)
    assert torch.allclose(sd, precision.diagonal().rsqrt(), rtol=0.05)
    assert ((batch_sd / sd - 1).abs() < 0.1).all()
    assert ((batch_mean - mean).abs() < 0.5 * sd).all()


@pytest.mark.parametrize("kind", [bnn.SVI, bnn.MAP, bnn.Ensemble, bnn.MCDropout], ids=lambda kind: kind.name)
def test_each_row_is_trained_on_in_the_first_epoch(monkeypatch, kind):
    """The batch that a step is tried on is the first one."""
    method = kind(steps=4, batch_size=5)
    seen, draw = [], MiniBatches.draw

    def watched(batches):
        seen.append(draw(batches))
        return seen[-1]

    monkeypatch.setattr(MiniBatches, "draw", watched)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    bnn.fit(bnn.get_model("mlp_gaussian", hidden=(3,)), x, x[:, 0], inference=method, standardize=False, progress=False)
    for member in torch.cat([y for *_, y in seen], 1):
        assert torch.equal(member.sort().values, x[:, 0].sort().values)
