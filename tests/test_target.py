"""The target equals Pyro: log density, gradient, pointwise terms, mini-batches, forward."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import grad, grad_and_value

import bnn_pyro as bnn
import problems
from bnn_pyro.batching import gather_draws
from bnn_pyro.isolation import isolated
from problems import BATCHED, BY_ROW, JOINT, POINTWISE, PROBLEMS, SEVERAL, SINGLE


@pytest.fixture(autouse=True)
def float64():
    with isolated(seed=0, dtype=torch.float64):
        yield


def relative(a, b):
    """Largest difference, relative to the size of b but no less than 1."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("name", PROBLEMS)
def test_log_density_equals_pyros_trace_plus_log_jacobian(name):
    problem = PROBLEMS[name]()
    target = problem.target()
    z = problems.points(target, 100)
    values = gather_draws(lambda one: target.evaluate(one).values, z)
    joint = torch.stack([problems.pyro_log_joint(problem, {k: v[i] for k, v in values.items()}) for i in range(100)])
    expected = joint + problems.log_jacobians(target, z)
    assert torch.isfinite(expected).all()
    exact = gather_draws(target.log_density, z)
    assert ((exact - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-10
    assert torch.stack([target.log_density(one) for one in z[:5]]) == pytest.approx(expected[:5], rel=1e-10)
    if name == "ordinal":
        return  # Pyro's OrderedLogistic subtracts sigmoids, which loses all digits in float32
    single = problem.target(torch.float32)
    with isolated(dtype=torch.float32):
        rounded = gather_draws(single.log_density, z)
    assert rounded.dtype == torch.float64
    assert ((rounded - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-5


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_equals_autograd_of_pyro_and_central_differences(name):
    problem = PROBLEMS[name]()
    target = problem.target()
    h = 1e-5
    for z in problems.points(target, 2, seed=1):
        gradient, value = grad_and_value(target.log_density)(z)
        by_pyro = torch.autograd.functional.jacobian(lambda one: problems.pyro_log_density(problem, target, one), z)
        steps = h * torch.eye(target.dim)
        ends = gather_draws(target.log_density, torch.cat([z + steps, z - steps]))
        by_differences = (ends[: target.dim] - ends[target.dim :]) / (2 * h)
        assert relative(value, target.log_density(z)) < 1e-14
        assert relative(gradient, by_pyro) < 1e-8
        assert relative(gradient, by_differences) < 1e-5


@pytest.mark.parametrize("name", PROBLEMS)
def test_constrain_and_unconstrain_are_inverse(name):
    target = PROBLEMS[name]().target()
    for z in problems.points(target, 3, seed=2):
        result = target.evaluate(z)
        back, log_jacobian = target.unconstrain(result.values)
        assert relative(back, z) < 1e-9
        assert relative(log_jacobian, problems.log_jacobian(target, z)) < 1e-9
        again = target.constrain(back)
        assert all(relative(again[s.name], result.values[s.name]) < 1e-9 for s in target.sites)


@pytest.mark.parametrize("name", PROBLEMS)
def test_log_prior_and_pointwise_log_likelihood_add_up(name):
    target = PROBLEMS[name]().target()
    z = problems.points(target, 1, seed=3)[0]
    if name in JOINT:
        with pytest.raises(bnn.ModelError, match=r"expected observations inside pyro\.plate"):
            target.log_likelihood(z)
        likelihood = sum(t.sum() for t in target.evaluate(z).log_likelihood.values())
    else:
        pointwise = target.log_likelihood(z)
        assert pointwise.shape == (problems.N,)
        likelihood = pointwise.sum()
    assert relative(target.log_prior(z) + likelihood, target.log_density(z)) < 1e-13


def test_log_prior_holds_no_data_and_pointwise_terms_are_the_rows_own():
    problem = PROBLEMS["hierarchical"]()
    z = torch.linspace(-1, 1, 8)
    target = problem.target()
    w, sigma = target.evaluate(z).values["w"], target.evaluate(z).values["sigma"]
    by_hand = dist.Normal(problem.x @ w, sigma).log_prob(problem.y)
    assert relative(target.log_likelihood(z), by_hand) < 1e-13
    fewer = problems.Problem(problem.program, problem.x[:2], problem.y[:2] + 100).target()
    assert target.log_prior(z) == fewer.log_prior(z)


@pytest.mark.parametrize("name", BATCHED)
def test_mini_batches_select_rows_and_are_unbiased(name):
    """The mean over an epoch's batches of N/B times a batch's sum is the full sum."""
    target = PROBLEMS[name]().target()
    z = problems.points(target, 1, seed=4)[0]
    full = target.log_likelihood(z)
    order, size = torch.randperm(target.n), 4
    estimates = []
    for rows in order.split(size):
        part = target.log_likelihood(z, rows=rows)
        assert relative(part, full[rows]) < 1e-13
        estimates.append(target.n / size * part.sum() + target.log_prior(z))
    assert relative(torch.stack(estimates).mean(), target.log_density(z)) < 1e-10


@pytest.mark.parametrize("name", SINGLE)
def test_forward_gives_the_distribution_of_y_and_draws_nothing(name):
    target = PROBLEMS[name]().target()
    z = problems.points(target, 1, seed=5)[0]
    before = torch.get_rng_state()
    fn = target.forward(z, target.x)
    assert torch.equal(torch.get_rng_state(), before)
    y = target.y.double()
    likelihood = target.evaluate(z).log_likelihood["y"]
    log_prob = fn.log_prob(y)
    if name == "scaled_and_masked":
        log_prob = torch.where(target.x[:, 0] > 0, 2.0 * log_prob, 0.0)
    if name not in JOINT:
        log_prob = log_prob.reshape(target.n, -1).sum(-1)
    assert relative(log_prob, likelihood) < 1e-12


def test_forward_at_new_rows_has_the_right_parameters():
    target = PROBLEMS["zoo_mlp_tanh"]().target()
    z = problems.points(target, 1, seed=6)[0]
    v = target.constrain(z)
    x = torch.randn(5, problems.D)
    h = torch.tanh(v["scale"] * x @ v["w1"] / 3**0.5 + v["b1"])
    h = torch.tanh(v["scale"] * h @ v["w2"] / 3**0.5 + v["b2"])
    fn = target.forward(z, x)
    assert relative(fn.loc, (v["scale"] * h @ v["w3"] / 2**0.5 + v["b3"])[:, 0]) < 1e-13
    assert relative(fn.scale.expand(5), v["sigma"].expand(5)) < 1e-13


@pytest.mark.parametrize("name", SEVERAL)
def test_all_terms_of_a_row_are_kept_and_forward_refuses_to_choose(name):
    target = PROBLEMS[name]().target()
    z = problems.points(target, 1)[0]
    assert len(target.evaluate(z).log_likelihood) == 2
    if name == "two_observed":
        with pytest.raises(bnn.ModelError, match="expected one observed site, got 'first', 'second'"):
            target.forward(z, target.x)


def test_a_factor_beside_the_observed_site_does_not_forbid_prediction():
    """A factor inside the data plate is a term of the likelihood, and y is still the only thing to predict."""
    target = PROBLEMS["factor"]().target()
    z = problems.points(target, 1)[0]
    assert relative(target.forward(z, target.x).loc, target.x @ z) < 1e-13


def test_a_factor_counts_as_prior_outside_the_plate_and_as_likelihood_inside():
    target = PROBLEMS["factor"]().target()
    z = problems.points(target, 1)[0]
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum() - (z.sum() - 1) ** 2
    assert relative(target.log_prior(z), prior) < 1e-13
    f = target.x @ z
    assert relative(target.log_likelihood(z), dist.Normal(f, 1.0).log_prob(target.y) - 0.1 * f**4) < 1e-13


def test_scale_and_mask_are_kept_in_each_term():
    target = PROBLEMS["scaled_and_masked"]().target()
    z = problems.points(target, 1)[0]
    rows = 2.0 * dist.Normal(target.x @ z, 0.5).log_prob(target.y)
    assert relative(target.log_likelihood(z), torch.where(target.x[:, 0] > 0, rows, 0.0)) < 1e-13
    assert relative(target.log_prior(z), 0.5 * dist.Normal(0.0, 1.0).log_prob(z).sum()) < 1e-13


def test_an_extra_plate_is_summed_over_but_not_over_rows():
    target = PROBLEMS["plate_of_outputs"]().target()
    z = problems.points(target, 1)[0]
    v = target.constrain(z)
    terms = dist.Normal(target.x @ v["w"].T, v["sigma"]).log_prob(target.y)
    assert terms.shape == (problems.N, 2)
    assert relative(target.log_likelihood(z), terms.sum(1)) < 1e-13


def test_sites_stand_in_program_order_with_shapes_and_dims():
    target = PROBLEMS["correlated"]().target()
    assert [(s.name, s.start, s.stop, s.shape) for s in target.sites] == [
        ("tril", 0, 3, (3, 3)),
        ("scale", 3, 6, (3,)),
        ("w", 6, 9, (3,)),
    ]
    assert target.dim == 9
    plated = PROBLEMS["plate_of_outputs"]().target().sites
    assert [(s.name, s.dims, s.by_row) for s in plated] == [
        ("w", ("outputs", "w_dim_1"), False),
        ("sigma", ("outputs",), False),
    ]
    local = PROBLEMS["one_latent_per_row"]().target()
    assert [(s.name, s.dims, s.by_row) for s in local.sites] == [
        ("w", ("w_dim_0",), False),
        ("offset", ("data",), True),
    ]
    zoo = bnn.get_model("mlp_gaussian", hidden=(3, 2))
    from bnn_pyro.structure import build_target

    named = build_target(zoo.model, *problems._rows(), dims=zoo.dims(), dtype=torch.float64)
    assert {s.name: s.dims for s in named.sites} == {
        "scale": (),
        "w1": ("feature", "hidden_1"),
        "b1": ("hidden_1",),
        "w2": ("hidden_1", "hidden_2"),
        "b2": ("hidden_2",),
        "w3": ("hidden_2", "output"),
        "b3": ("output",),
        "sigma": (),
    }
    assert {o.name: (o.dim, o.shape) for o in named.observed} == {"y": (-1, (problems.N,))}


def test_deterministic_sites_are_recorded_not_counted():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
        pyro.deterministic("length", w.norm())
        f = pyro.deterministic("f", x @ w, event_dim=1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(f, 0.5), obs=y)

    x, y = problems._rows()
    target, plain = problems.Problem(program, x, y).target(), PROBLEMS["linear"]().target()
    z = problems.points(target, 1)[0]
    assert target.log_density(z) == plain.log_density(z)
    assert [s.name for s in target.sites] == ["w"] and [o.name for o in target.observed] == ["y"]
    assert relative(target.constrain(z)["length"], z.norm()) < 1e-14
    assert "f" not in target.constrain(z), "a value for each training row is no parameter"


def test_a_deterministic_site_as_long_as_the_data_is_kept():
    """Hidden units may be as many as rows; only what the data plate holds stands over rows."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([problems.N]).to_event(1))
        pyro.deterministic("size", w**2, event_dim=1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(w.sum(), 0.5), obs=y)

    target = problems.Problem(program, *problems._rows()).target()
    assert "size" in target.constrain(problems.points(target, 1)[0])


def test_priors_made_in_float32_are_followed_into_float64():
    """A PyroModule holds its priors from its construction on, in the default dtype of that time."""
    prior = dist.Normal(torch.zeros(3, dtype=torch.float32), torch.ones(3, dtype=torch.float32)).to_event(1)

    def program(x, y=None):
        w = pyro.sample("w", prior)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    target = problems.Problem(program, *problems._rows()).target()
    z = torch.linspace(-1, 1, 3)
    assert relative(target.log_density(z), PROBLEMS["linear"]().target().log_density(z)) < 1e-6


def test_pyro_params_take_the_values_they_are_given():
    def program(x, y=None):
        sigma = pyro.param("sigma", torch.tensor(1.0), constraint=dist.constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    from bnn_pyro.structure import build_target

    x, y = problems._rows()
    z = torch.linspace(-1, 1, 3)
    target = build_target(program, x, y, dtype=torch.float64, params={"sigma": torch.tensor(0.5)})
    assert relative(target.log_density(z), PROBLEMS["linear"]().target().log_density(z)) < 1e-13
    assert float(target.forward(z, x).scale[0]) == 0.5


def mlp(activation="tanh", order=slice(None)):
    x, y = problems._rows()
    model = bnn.get_model("mlp_gaussian", hidden=(4, 3), activation=activation).model
    return problems.Problem(model, x[order], y[order]).target()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_permuting_units_leaves_the_log_density(activation):
    target = mlp(activation)
    z = problems.points(target, 1, seed=7)[0]
    v = dict(target.evaluate(z).values)
    p = torch.tensor([2, 0, 3, 1])
    v |= {"w1": v["w1"][:, p], "b1": v["b1"][p], "w2": v["w2"][p]}
    permuted, _ = target.unconstrain(v)
    assert not torch.equal(permuted, z)
    assert relative(target.log_density(permuted), target.log_density(z)) < 1e-12


def test_flipping_a_tanh_units_sign_leaves_the_log_density():
    target = mlp()
    z = problems.points(target, 1, seed=8)[0]
    v = dict(target.evaluate(z).values)
    s = torch.tensor([1.0, -1.0, -1.0, 1.0])
    v |= {"w1": v["w1"] * s, "b1": v["b1"] * s, "w2": v["w2"] * s[:, None]}
    flipped, _ = target.unconstrain(v)
    assert relative(target.log_density(flipped), target.log_density(z)) < 1e-12
    half = dict(target.evaluate(z).values) | {"w1": v["w1"]}
    assert relative(target.log_density(target.unconstrain(half)[0]), target.log_density(z)) > 1e-3


def test_shuffling_rows_leaves_the_log_density_and_a_row_twice_counts_twice():
    target, z = mlp(), problems.points(mlp(), 1, seed=9)[0]
    order = torch.randperm(problems.N)
    assert relative(mlp(order=order).log_density(z), target.log_density(z)) < 1e-12
    twice = mlp(order=torch.cat([torch.arange(problems.N), torch.tensor([3])]))
    assert relative(twice.log_density(z), target.log_density(z) + target.log_likelihood(z)[3]) < 1e-12


def test_rows_are_summed_in_float64_even_where_terms_are_float32():
    """A float32 sum of 200,000 terms is off by more than a nat."""
    n = 200_000
    x, y = torch.zeros(n, 1), torch.full((n,), 0.1)
    target = problems.Problem(problems.intercept_model, x, y).target(torch.float32)
    with isolated(dtype=torch.float32):
        z = torch.tensor([0.3, 0.1], dtype=torch.float64)
        term = float(target.log_likelihood(z)[0])
        total = float(target.log_density(z) - target.log_prior(z))
    assert abs(total / n - term) < 1e-9 * abs(term)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_extreme_logits_never_give_nan(name, logit):
    problem = PROBLEMS[name]()
    target = problems.Problem(problem.program, problem.x.sign() * abs(logit), problem.y).target()
    z = torch.ones(target.dim) * logit / abs(logit)
    if name == "categorical":
        z = z * torch.linspace(-1, 1, target.dim)
    gradient, value = grad_and_value(target.log_density)(z)
    assert not torch.isnan(value) and torch.isfinite(gradient).all()


def test_saturated_units_and_tiny_noise_never_give_nan():
    """Noise of 1e-8 and tanh far in its tails."""
    target = mlp()
    z = problems.points(target, 1, seed=10)[0] * 1e3
    z[[0, -1]] = torch.tensor([0.0, np.log(1e-8)])
    gradient, value = grad_and_value(target.log_density)(z)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", POINTWISE)
def test_the_target_can_be_transformed_and_leaves_no_trace(name):
    """Pure: no random numbers, no parameters, the same answer twice."""
    target = PROBLEMS[name]().target()
    z = problems.points(target, 1, seed=11)[0]
    before = torch.get_rng_state()
    first = target.log_density(z)
    gradient = grad(target.log_density)(z)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, target.log_density(z)) and torch.isfinite(gradient).all()
    assert not list(pyro.get_param_store().keys()) or name == "pyro_module"


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool])
def test_integer_targets_score_as_the_floats_they_are(kind):
    x, y = problems._rows()[0], torch.arange(problems.N) % 2
    whole, exact = (
        problems.Problem(problems.intercept_model, x, y.to(kind)),
        problems.Problem(problems.intercept_model, x, y),
    )
    z = torch.tensor([0.3, -0.2])
    expected = dist.Normal(0.3, np.exp(-0.2)).log_prob(y.double())
    assert relative(whole.target().log_likelihood(z), expected) < 1e-13
    assert whole.target().log_density(z) == exact.target().log_density(z)


def test_by_row_latents_are_marked():
    assert [n for n in PROBLEMS if any(s.by_row for s in PROBLEMS[n]().target().sites)] == list(BY_ROW)


def test_sequential_plates_are_taken():
    def program(x, y=None):
        w = [pyro.sample(f"w{i}", dist.Normal(0.0, 1.0)) for i in pyro.plate("units", 2)]
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(w[0] + w[1] * x[:, 0], 0.5), obs=y)

    problem = problems.Problem(program, *problems._rows())
    target = problem.target()
    z = problems.points(target, 1)[0]
    assert [s.dims for s in target.sites] == [(), ()]
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    f = z[0] + z[1] * target.x[:, 0]
    assert relative(target.log_density(z), prior + torch.distributions.Normal(f, 0.5).log_prob(target.y).sum()) < 1e-12
