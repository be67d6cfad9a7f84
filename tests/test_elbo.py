"""The ELBO's terms and gradients against Pyro's own, with the same noise; the mean-field one against the guide's run."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform
from pyro.infer import Trace_ELBO, autoguide
from torch.distributions import constraints, kl_divergence
from torch.func import grad_and_value, vmap

import bnn_pyro as bnn
from bnn_pyro.elbo import Rows, trace_elbo
from bnn_pyro.guides import PATH_GRADIENT_GUIDES, autoguide_by_name, float_observations, latents_only
from bnn_pyro.inference.svi import GUIDES
from bnn_pyro.isolation import isolated
from bnn_pyro.mean_field import mean_field
from bnn_pyro.pyro_svi import TwoTermELBO
from bnn_pyro.structure import build_target
from bnn_pyro.substitution import Substituted
from problems import PROBLEMS, _rows

F32, F64 = torch.float32, torch.float64
# Of the larger of 1 and the quantity's own size (of all of a gradient, its largest).
TOLERANCE = {F64: 1e-10, F32: 1e-6}
X, Y = _rows()


def real_sites(x, y=None):
    """A vector below a scale, and a positive site: what every autoguide takes."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    w = pyro.sample("w", dist.Normal(0.0, scale).expand([x.shape[-1]]).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, noise), obs=y)


def learnt(x, y=None):
    """Parameters of the program's own, one constrained and one in a prior."""
    shift = pyro.param("shift", lambda: torch.tensor(0.3))
    noise = pyro.param("spread", lambda: torch.tensor(0.7), constraint=constraints.positive)
    top = pyro.param("top", lambda: torch.tensor([0.1, 0.2, 0.3]))
    w = pyro.sample("w", dist.Normal(top, 1.5).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w + shift, noise), obs=y)


def scaled(x, y=None):
    with poutine.scale(scale=0.5):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]), poutine.mask(mask=x[:, 0] > 0), poutine.scale(scale=2.0):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def told(x, y=None):
    """Deterministic sites, of the rows and of a latent."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    pyro.deterministic("double", 2.0 * w, event_dim=1)
    f = pyro.deterministic("f", x @ w, event_dim=1)
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def linear(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def by_auxiliary(x, y=None):
    """Written by hand: one joint auxiliary draw, of which latents are parts, with its Jacobian; constrained parameters."""
    loc = pyro.param("loc", lambda: torch.linspace(-0.4, 0.4, 5))
    tril = pyro.param("tril", lambda: 0.5 * torch.eye(5), constraint=constraints.lower_cholesky)
    joint = pyro.sample("joint", dist.MultivariateNormal(loc, scale_tril=tril), infer={"is_auxiliary": True})
    pyro.sample("scale", dist.Delta(joint[0].exp(), log_density=-joint[0]))
    pyro.sample("w", dist.Delta(joint[1:4], event_dim=1))
    pyro.sample("noise", dist.Delta(joint[4].exp(), log_density=-joint[4]))


def by_hand(x, y=None):
    """Written by hand: several laws of noise, and a latent whose spread another latent has a part in."""
    rate = pyro.param("rate", lambda: torch.tensor(0.4), constraint=constraints.interval(0.1, 2.0))
    mean = pyro.param("mean", lambda: torch.linspace(-0.2, 0.2, 3))
    sd = pyro.param("sd", lambda: torch.full((3,), 0.3), constraint=dist.constraints.softplus_positive)
    scale = pyro.sample("scale", dist.LogNormal(rate, 0.3))
    pyro.sample("w", dist.Laplace(mean, sd * scale).to_event(1))
    pyro.sample("noise", dist.TransformedDistribution(dist.Exponential(1.0 / rate), [AffineTransform(0.2, 1.0)]))


def in_a_list(program):
    guide = autoguide.AutoGuideList(program)
    guide.append(autoguide.AutoMultivariateNormal(poutine.block(program, expose=["w"]), init_scale=0.1))
    guide.append(autoguide.AutoDiagonalNormal(poutine.block(program, expose=["scale", "noise"]), init_scale=0.1))
    return guide


def found(program, x, y, make, dtype, seed=1):
    """Target, ``Elbo``, parameters away from their start, and noise. Inside ``isolated``."""
    x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in x.items()} if isinstance(x, dict) else x.to(dtype)
    target = build_target(program, x, y.to(dtype) if y.is_floating_point() else y, name="program", dtype=dtype)
    guide = make(float_observations(target))
    guide(target.x, target.y)
    elbo = trace_elbo(target, guide, isinstance(guide, PATH_GRADIENT_GUIDES))
    generator = torch.Generator().manual_seed(seed)
    for leaf in elbo.leaves.values():
        leaf.data += 0.1 * torch.randn(leaf.shape, generator=generator, dtype=F64).to(dtype)
    return elbo, torch.randn(elbo.noise, generator=generator, dtype=F64).to(dtype)


def by_pyro(elbo, noise, loss=None):
    """Log likelihood, KL and gradients of the loss by Pyro's own ELBO, with autograd's own gradients."""
    target = elbo.target
    loss = loss or TwoTermELBO(1, elbo.path_gradient)
    with Substituted(noise=noise) as mode:
        value = loss.differentiable_loss(float_observations(target), latents_only(elbo.guide), target.x, target.y)
    assert mode.used == elbo.noise
    leaves = list(elbo.leaves.values())
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    grads = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves)]
    likelihood = getattr(loss, "log_likelihood", None)
    return value.detach(), likelihood, torch.cat([g.reshape(-1) for g in grads])


def by_elbo(elbo, noise, parts=None):
    """The same by ``terms``, with its parameters as arguments."""

    def loss(parts):
        terms = elbo.terms(parts, noise)
        return terms.kl - terms.log_likelihood, terms

    parts = tuple(leaf.detach().clone() for leaf in elbo.leaves.values()) if parts is None else parts
    grads, (value, terms) = grad_and_value(loss, has_aux=True)(parts)
    return value, terms, torch.cat([g.reshape(-1) for g in grads])


def close(one, other, dtype, tolerance=None):
    one, other = (torch.as_tensor(t, dtype=F64) for t in (one, other))
    size = max(1.0, float(other.abs().max()))
    return bool(((one - other).abs() <= (tolerance or TOLERANCE[dtype]) * size).all())


def equals_pyros(program, x, y, make, dtype=F64):
    with isolated(seed=0, dtype=dtype):
        elbo, noise = found(program, x, y, make, dtype)
        value, terms, grads = by_elbo(elbo, noise)
        expected, likelihood, expected_grads = by_pyro(elbo, noise)
        assert terms.log_likelihood.dtype == terms.kl.dtype == F64 and terms.kl.shape == ()
        assert close(terms.log_likelihood, likelihood, dtype) and close(terms.kl, likelihood + expected, dtype)
        assert close(value, expected, dtype) and close(grads, expected_grads, dtype)
        assert grads.abs().max() > 1e-3
        if not elbo.path_gradient:
            value, _, grads = by_pyro(elbo, noise, Trace_ELBO())
            assert close(value, expected, dtype) and close(grads, expected_grads, dtype)


# ---- against Pyro's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("guide", GUIDES)
def test_every_autoguide_has_pyros_loss_and_gradient(guide, dtype):
    equals_pyros(real_sites, X, Y, lambda program: autoguide_by_name(guide, program), dtype)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("guide", [by_auxiliary, by_hand], ids=["auxiliary", "constrained"])
def test_a_guide_written_by_hand_has_pyros_loss_and_gradient(guide, dtype):
    equals_pyros(real_sites, X, Y, lambda program: guide, dtype)


def test_a_list_of_guides_has_pyros_loss_and_gradient():
    equals_pyros(real_sites, X, Y, in_a_list)


@pytest.mark.parametrize("guide", ["normal", "multivariate", "lowrank", "delta"])
@pytest.mark.parametrize("program", [learnt, scaled, told], ids=lambda p: p.__name__)
def test_programs_with_parameters_scales_and_deterministic_sites_have_pyros(program, guide):
    equals_pyros(program, X, Y, lambda own: autoguide_by_name(guide, own))


@pytest.mark.parametrize("guide", ["normal", "multivariate"])
@pytest.mark.parametrize(
    "name",
    ["two_observed", "factor", "plate_of_outputs", "embedding", "bernoulli", "simplex", "one_latent_per_row", "gp"],
)
def test_programs_of_several_kinds_have_pyros(name, guide):
    """Several observed sites, factors in and outside of the plate, plates, inputs in a dict, labels, one joint term."""
    problem = PROBLEMS[name]()
    equals_pyros(problem.program, problem.x, problem.y, lambda own: autoguide_by_name(guide, own))


def test_the_programs_own_parameters_are_found_beside_the_guides():
    with isolated(seed=0, dtype=F64):
        elbo, _ = found(learnt, X, Y, lambda own: autoguide_by_name("diagonal", own), F64)
        assert {"shift", "spread", "top"} < set(elbo.leaves) and len(elbo.leaves) == 5 and elbo.noise == 3
        assert elbo.leaves["spread"] is pyro.get_param_store()._params["spread"]  # not its constrained value


def test_a_draw_has_the_guides_density():
    with isolated(seed=0, dtype=F64):
        elbo, noise = found(real_sites, X, Y, lambda program: by_auxiliary, F64)
        parts = [leaf.detach() for leaf in elbo.leaves.values()]
        values, log_q = elbo.draw(parts, noise)
        loc = pyro.get_param_store()["loc"].detach()
        tril = pyro.get_param_store()["tril"].detach()
        z = loc + tril @ noise
        assert set(values) == {"scale", "w", "noise"}
        got = torch.cat([values["scale"].log().reshape(1), values["w"], values["noise"].log().reshape(1)])
        assert torch.allclose(got, z, atol=1e-12)
        expected = dist.MultivariateNormal(loc, scale_tril=tril).log_prob(z) - z[0] - z[4]
        assert float(log_q) == pytest.approx(float(expected), abs=1e-12)


def test_members_at_once_have_the_terms_of_each_alone():
    with isolated(seed=0, dtype=F64):
        elbo, _ = found(real_sites, X, Y, lambda own: autoguide_by_name("multivariate", own), F64)
        parts = [torch.stack([leaf.detach() + 0.1 * i for i in range(3)]) for leaf in elbo.leaves.values()]
        noise = torch.randn(3, elbo.noise)
        together = vmap(lambda own, n: tuple(elbo.terms(own, n)))(tuple(parts), noise)
        for i in range(3):
            alone = elbo.terms([p[i] for p in parts], noise[i])
            assert all(close(a[i], b, F64, 1e-13) for a, b in zip(together, alone))


def test_rows_of_a_batch_are_scaled_and_the_kl_is_not():
    with isolated(seed=0, dtype=F64):
        elbo, noise = found(real_sites, X, Y, lambda own: autoguide_by_name("normal", own), F64)
        parts = [leaf.detach() for leaf in elbo.leaves.values()]
        values, _ = elbo.draw(parts, noise)
        pointwise = dist.Normal(X @ values["w"], values["noise"]).log_prob(Y)
        for e, p in (
            (elbo, parts),
            (mean_field(elbo), [torch.cat([t.reshape(-1) for t in half]) for half in split(elbo)]),
        ):
            whole, part = e.terms(p, noise), e.terms(p, noise, Rows(X[2:5], Y[2:5], 4.0))
            assert float(whole.log_likelihood) == pytest.approx(float(pointwise.sum()), rel=1e-12)
            assert float(part.log_likelihood) == pytest.approx(4.0 * float(pointwise[2:5].sum()), rel=1e-12)
            assert float(part.kl) == pytest.approx(float(whole.kl), rel=1e-13)


def split(elbo):
    """Means and scales of a mean-field guide in the order of ``MeanFieldElbo``, for a program without parameters."""
    leaves = [leaf.detach() for leaf in mean_field(elbo).leaves.values()]
    return leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]


@pytest.mark.parametrize(
    "law", [lambda m: dist.Poisson(m.exp()), lambda m: dist.Gamma(m.exp(), 1.0)], ids=["poisson", "gamma"]
)
def test_draws_that_normal_noise_cannot_make_are_refused(law):
    def guide(x, y=None):
        pyro.sample("w", law(pyro.param("m", torch.zeros(3))).to_event(1))

    with isolated(seed=0, dtype=F64):
        target = build_target(linear, X, Y, dtype=F64)
        with pytest.raises(NotImplementedError, match="do not come from normal ones"):
            trace_elbo(target, guide, False)


def test_draws_that_cannot_be_differentiated_are_refused():
    class Rounded(dist.Normal):
        has_rsample = False

    def guide(x, y=None):
        pyro.sample("w", Rounded(pyro.param("m", torch.zeros(3)), 1.0).to_event(1))

    with isolated(seed=0, dtype=F64):
        target = build_target(linear, X, Y, name="mine", dtype=F64)
        with pytest.raises(bnn.ModelError, match=r"mine, guide, site 'w': expected .* Use engine='pyro'"):
            trace_elbo(target, guide, False)


# ---- mean field, written out -------------------------------------------------------------------------------------


def of_signs(x, y=None):
    """Transforms of several kinds: positive, an interval, the reals."""
    a = pyro.sample("a", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
    u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
    w = pyro.sample("w", dist.Normal(torch.linspace(-1, 1, x.shape[-1]), 2.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w * u + a.sum(), noise), obs=y)


MEAN_FIELD_PROGRAMS = {
    "signs": of_signs, "scales": real_sites, "parameters": learnt, "scaled": scaled, "told": told,
    **{name: PROBLEMS[name]().program for name in ("simplex", "factor", "hierarchical", "student")},
}  # fmt: skip


@pytest.mark.parametrize("guide", ["normal", "diagonal"])
@pytest.mark.parametrize("name", MEAN_FIELD_PROGRAMS)
@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
def test_mean_field_written_out_is_the_guides_run(name, guide, dtype):
    with isolated(seed=0, dtype=dtype):
        elbo, noise = found(MEAN_FIELD_PROGRAMS[name], X, Y, lambda own: autoguide_by_name(guide, own), dtype)
        written = mean_field(elbo)
        assert written is not None and written.path_gradient
        run = written.as_run()
        assert list(run.leaves) == list(written.leaves)
        flat = torch.cat([leaf.detach().reshape(-1) for leaf in written.leaves.values()])
        parts = tuple(p.reshape(s) for p, s in zip(flat.split([s.numel() for s in written.shapes]), written.shapes))
        value, terms, grads = by_elbo(written, noise, parts)
        expected, by_run, expected_grads = by_elbo(run, noise)
        assert close(value, expected, dtype) and close(grads, expected_grads, dtype)
        assert close(terms.log_likelihood, by_run.log_likelihood, dtype) and close(terms.kl, by_run.kl, dtype)
        assert close(by_pyro(run, noise)[2], grads, dtype)


def test_another_guide_is_not_mean_field():
    class Mine(autoguide.AutoNormal):
        pass

    with isolated(seed=0, dtype=F64):
        for make in (lambda p: autoguide_by_name("lowrank", p), Mine, lambda p: by_hand, in_a_list):
            assert mean_field(found(real_sites, X, Y, make, F64)[0]) is None


@pytest.mark.parametrize("guide", ["normal", "diagonal"])
def test_the_closed_form_is_the_kl_of_normal_priors(guide):
    """All latents Normal: KL(q || p) exactly, whatever the noise, and its gradient."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.linspace(-1, 1, x.shape[-1]), 2.0).to_event(1))
        with pyro.plate("units", 2):
            v = pyro.sample("v", dist.Normal(0.5, torch.tensor([0.3, 0.7])))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w + v.sum(), 0.5), obs=y)

    with isolated(seed=0, dtype=F64):
        elbo, noise = found(program, X, Y, lambda own: autoguide_by_name(guide, own), F64)
        written = mean_field(elbo, closed_form=True)
        mean, rho = (torch.cat([t.reshape(-1) for t in half]) for half in split(elbo))
        prior = dist.Normal(
            torch.cat([torch.linspace(-1, 1, 3), torch.full((2,), 0.5)]), torch.tensor([2.0, 2.0, 2.0, 0.3, 0.7])
        )

        def exact(mean, rho):
            return kl_divergence(dist.Normal(mean, torch.nn.functional.softplus(rho)), prior).sum()

        for own in (noise, -noise, 3 * noise):
            assert float(written.terms((mean, rho), own).kl) == pytest.approx(float(exact(mean, rho)), rel=1e-12)
        grads = torch.func.grad(lambda *parts: written.terms(parts, noise).kl, argnums=(0, 1))(mean, rho)
        expected = torch.func.grad(exact, argnums=(0, 1))(mean, rho)
        assert all(close(g, e, F64, 1e-12) for g, e in zip(grads, expected))


def test_the_closed_form_has_the_mean_of_the_estimate_and_less_spread():
    """Some priors are Normal and some are not; loss and gradient over many noises."""
    with isolated(seed=0, dtype=F64):
        elbo, _ = found(of_signs, X, Y, lambda own: autoguide_by_name("normal", own), F64)
        estimated, closed = mean_field(elbo), mean_field(elbo, closed_form=True)
        assert closed.priors.sites == {"w"}
        mean, rho = (torch.cat([t.reshape(-1) for t in half]) for half in split(elbo))
        rho = rho + 2.0  # wide enough for noise in the KL to be seen
        noise = torch.randn(20_000, elbo.noise)

        def measure(e):
            def loss(parts, own):
                terms = e.terms(parts, own)
                return terms.kl, torch.stack(terms)

            grads, (_, terms) = vmap(grad_and_value(loss, has_aux=True), in_dims=(None, 0))((mean, rho), noise)
            return torch.cat([terms, *grads], 1)

        one, other = measure(estimated), measure(closed)
        assert torch.allclose(one[:, 0], other[:, 0], rtol=1e-12, atol=1e-12)  # the likelihood is the same draw's
        gap = (one - other)[:, 1:]
        error = (gap.var(0) / len(noise)).sqrt()
        assert (gap.mean(0).abs() < 4 * error + 1e-12).all() and float(error[0]) > 1e-4
        assert other[:, 1].var() < 0.9 * one[:, 1].var()
