"""Whether to believe a posterior: a verdict, its reasons, and what to do about them.

MCMC is judged in function space (``function_space.py``), where a network can be seen to converge:
rank-normalised R-hat < 1.01, bulk and tail ESS > 400, E-BFMI > 0.3, no divergences, at most 1 % of trajectories at their limit.
Source: Vehtari et al. 2021, arXiv:1903.08008; Betancourt 2016, arXiv:1604.00695; k-hat: Yao et al. 2018, arXiv:1802.02538.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bnn_pyro import results
from bnn_pyro.inference import MAP, MCMC, NUTS, Ensemble, Laplace, MCDropout, Prior

if TYPE_CHECKING:
    from bnn_pyro.posterior import Posterior

R_HAT, ESS, E_BFMI, AT_LIMIT = 1.01, 400.0, 0.3, 0.01
MEAN_FIELD = ("AutoDiagonalNormal", "AutoNormal", "AutoNormalMessenger")  # guides of independent latent numbers
FEWEST_STEPS = 200  # of an optimiser, below which its objective says nothing
HESSIAN = {"fisher": "Gauss-Newton", "observed": "Gauss-Newton", "exact": "the Hessian"}
KINK = 0.05  # nats for each latent number that the gradient on one side of a kink may promise
MOVING_NATS_PER_ROW = 0.02  # a rise of the ELBO over the second half of the steps that is worth more steps


@dataclass(frozen=True)
class Verdict:
    """``verdict`` is ``"converged"``, ``"approximate"`` or ``"not converged"``; numbers are what it was read from."""

    verdict: str
    reasons: list[str]
    remedies: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"verdict: {self.verdict}"]
        lines += [f"  - {reason}" for reason in self.reasons]
        lines += [f"  remedy: {remedy}" for remedy in self.remedies]
        return "\n".join(lines)


def diagnose(posterior: Posterior) -> Verdict:
    """The verdict on a posterior; see ``Verdict``."""
    finite = bool(np.isfinite(posterior.draws.z.numpy()).all())
    if not finite:
        return Verdict("not converged", ["some draws are not finite."], ["Standardise the data or lower lr."])
    if isinstance(posterior.method, Prior):
        return Verdict("converged", ["independent draws of the prior: nothing was learnt from y."])
    if isinstance(posterior.method, MCMC):
        return _sampled(posterior, posterior.method)
    if isinstance(posterior.method, Laplace):
        return _around_a_mode(posterior, posterior.method)
    return _approximated(posterior)


def _sampled(posterior: Posterior, method: MCMC) -> Verdict:
    stats, info = posterior.draws.stats, posterior.draws.info
    watched = results.dataset(posterior.idata, "function_space")
    r_hat = _worst(results.r_hat(watched), watched, np.nanmax)
    bulk = _worst(results.ess(watched, "bulk"), watched, np.nanmin)
    tail = _worst(results.ess(watched, "tail"), watched, np.nanmin)
    divergences = int(info.get("divergences", stats["diverging"].sum()))  # those between kept draws count
    option = "max_tree_depth" if isinstance(method, NUTS) else "max_steps"
    most = getattr(method, option)
    limit = float((stats["tree_depth" if isinstance(method, NUTS) else "n_steps"] >= most).mean())
    bfmi = float(info["e_bfmi"]) if "e_bfmi" in info else float(np.min(results.e_bfmi(stats["energy"])))
    numbers = {"r_hat": r_hat[1], "ess_bulk": bulk[1], "ess_tail": tail[1], "e_bfmi": bfmi,
               "divergences": divergences, "at_limit": limit}  # fmt: skip
    shown = (
        f"in function space: R-hat at most {r_hat[1]:.4f}, ESS at least {bulk[1]:.0f} (bulk) and {tail[1]:.0f} (tail); "
        f"E-BFMI {bfmi:.2f}; {divergences} divergences; {limit:.1%} of trajectories at their limit."
    )
    faults: list[str] = []
    remedies: list[str] = []
    wanted_draws = 0
    if not posterior.draws.complete:
        faults.append(f"interrupted: {posterior.draws.z.shape[1]} of {method.draws} draws of each chain.")
        remedies.append("let it run to its end")
    if method.chains < 4:
        faults.append(f"{method.chains} chain(s): R-hat needs at least 4 to say something.")
        remedies.append("chains=4")
    if not r_hat[1] < R_HAT:
        faults.append(f"R-hat of {r_hat[0]} is {r_hat[1]:.3f}, expected below {R_HAT}: chains disagree.")
        remedies.append(f"warmup={max(2 * method.warmup, 100)}")
        wanted_draws = 2 * method.draws
    if not (bulk[1] > ESS and tail[1] > ESS):
        name, value = min(bulk, tail, key=lambda pair: pair[1])
        enough = int(np.ceil(method.draws * min(10.0, 1.3 * ESS / max(value, 1.0)) / 100) * 100)
        wanted_draws = max(wanted_draws, enough, method.draws + 100)
        faults.append(f"ESS of {name} is {value:.0f}, expected above {ESS:.0f}.")
    if wanted_draws:
        remedies.append(f"draws={wanted_draws}")
    if divergences:
        of = f"{stats['diverging'].size * method.thin} {'draws' if method.thin == 1 else 'transitions'}"
        faults.append(f"{divergences} of {of} diverged; means may be biased.")
        higher = (1 + method.target_accept) / 2
        remedies.append(f"smaller steps: target_accept={higher:.3g}; or non-centre the scale sites")
    if limit > AT_LIMIT:
        faults.append(f"{limit:.1%} of trajectories stopped at {option}={most}, expected at most 1 %.")
        remedies.append(f"{option}={most + 2 if isinstance(method, NUTS) else 4 * most}, or more warmup")
    if not bfmi > E_BFMI:
        faults.append(f"E-BFMI is {bfmi:.2f}, expected above {E_BFMI}: the energy is explored slowly.")
        remedies.append("reparameterise heavy-tailed sites")
    if faults:
        return Verdict("not converged", [*faults, shown], list(dict.fromkeys(remedies)), numbers)
    return Verdict("converged", [shown], [], numbers)


def _worst(by_name: dict[str, np.ndarray], watched: Any, pick: Any) -> tuple[str, float]:
    """The worst entry and its name; quantities that never change (a fixed noise scale) say nothing and are passed over."""
    candidates = []
    for name, value in by_name.items():
        array = watched[name].values
        moves = np.ptp(array.reshape(-1, *array.shape[2:]), axis=0) > 0
        entries = np.where(moves, value, np.nan)
        if np.any(moves):
            unusable = np.isnan(np.asarray(value)) & moves
            candidates.append((name, float("nan") if np.any(unusable) else float(pick(entries))))
    if not candidates:
        return "every quantity", float("nan")
    if any(np.isnan(v) for _, v in candidates):
        return next(c for c in candidates if np.isnan(c[1]))
    extreme = max if pick is np.nanmax else min
    return extreme(candidates, key=lambda c: c[1])


def _around_a_mode(posterior: Posterior, method: Laplace) -> Verdict:
    info, stats = posterior.draws.info, posterior.draws.stats
    k = results.pareto_k((stats["log_p"] - stats["log_q"]).reshape(-1))
    rise = info["rise"]
    numbers = {"rise": rise, "log_evidence": info["log_evidence"], "pareto_k": k}
    kink = info["stalled"] and rise <= KINK * posterior.draws.z.shape[-1]
    if not (rise <= method.tolerance or kink):
        said = f"no mode was reached: the density would still rise by {rise:.1g} nats, {method.tolerance:g} is allowed."
        return Verdict("not converged", [said], [f"rounds={4 * method.rounds}"], numbers)
    where = "where the density stops rising, on a kink, as ReLU networks have" if kink else "at a mode"
    reasons = [
        f"{where} (by the gradient it would rise by {rise:.0e} nats); curvature {info['structure']}, "
        f"{HESSIAN[info['curvature']]}; log evidence {info['log_evidence']:.1f} nats around it.",
        "other modes are not seen, and a skewed or flat posterior is made symmetric and as wide as it is at its top.",
    ]
    if scales := info.get("scales"):
        reasons.append(f"in no layer, and so at the top of their own density, weights integrated out: {scales}.")
    if info["points"]:
        reasons.append(f"{info['points']} weights stay at the mode, without uncertainty.")
    if info["predictive"] == "linearized":
        reasons.append("predictions are of the network made linear in its weights; k-hat is of the weights themselves.")
    reasons.append(f"k-hat {k:.2f}: {_k_hat_words(k, bool(getattr(posterior.model, 'hidden', ())), False)}")
    return Verdict("approximate", reasons, [], numbers)


def _approximated(posterior: Posterior) -> Verdict:
    elbo = posterior.draws.history["elbo"]
    gain, noise = elbo_gain(elbo)
    what = "log joint density" if isinstance(posterior.method, MAP | Ensemble) else "ELBO"
    numbers = {"elbo": float(elbo[-max(1, len(elbo) // 10) :].mean()), "elbo_gain": gain}
    if not posterior.draws.complete:
        return Verdict(
            "not converged", [f"interrupted after {len(elbo)} steps."], ["run it again, to its end"], numbers
        )
    if not np.isfinite(noise) or len(elbo) < FEWEST_STEPS:
        return Verdict(
            "not converged", [f"{len(elbo)} steps are too few to see the {what} settle."], ["steps=4000"], numbers
        )
    allowed = max(3 * noise, MOVING_NATS_PER_ROW * posterior.n)
    moved = f"it {_rose(gain)} in the second half of the steps; a rise of {allowed:.1f} is allowed"
    if gain > allowed:
        return Verdict(
            "not converged",
            [f"the {what} still rose by {gain:.1f} nats in the second half of the steps (noise {noise:.1f})."],
            [f"steps={2 * len(elbo)}"],
            numbers,
        )
    if isinstance(posterior.method, MAP):
        return Verdict(
            "approximate",
            [f"the {what} has settled ({moved}); a single point, so epistemic uncertainty is absent by construction."],
            ["inference='svi' or 'nuts' for uncertainty about the weights"],
            numbers,
        )
    if isinstance(posterior.method, Ensemble):
        return Verdict("approximate", [f"the {what} has settled ({moved}).", _ensemble_words(posterior)], [], numbers)
    if isinstance(posterior.method, MCDropout):
        words = (
            f"units are left out at a rate of {posterior.method.rate:g}, which is a setting: their spread is not the "
            "posterior's, and more rows need not make it smaller."
        )
        return Verdict("approximate", [f"the {what} has settled ({moved}).", words], [], numbers)
    reasons = [f"the {what} has settled at {numbers['elbo']:.1f} nats ({moved})."]
    stats = posterior.draws.stats
    if "log_p" in stats and "log_q" in stats:
        k = results.pareto_k((stats["log_p"] - stats["log_q"]).reshape(-1))
        numbers["pareto_k"] = k
        network = bool(getattr(posterior.model, "hidden", ()))  # of a user's program this is not known
        mean_field = posterior.draws.info.get("guide") in MEAN_FIELD
        reasons.append(f"k-hat {k:.2f}: {_k_hat_words(k, network, mean_field)}")
    return Verdict("approximate", reasons, [], numbers)


def elbo_gain(elbo: np.ndarray) -> tuple[float, float]:
    """Rise of the mean ELBO from the sixth tenth to the last tenth of the steps, and its standard error (nats).

    The whole second half, because a falling learning rate makes the last tenth look settled whatever came before. The
    error comes from differences of neighbouring steps, which a trend leaves alone. Under 20 steps a tenth is too short to
    tell: the error is infinite.
    """
    size = len(elbo) // 10
    if size < 2:
        return 0.0, float("inf")
    last, before = elbo[-size:], elbo[5 * size : 6 * size]
    spread = np.diff(elbo[-5 * size :]).std() / np.sqrt(2)  # of one step's estimate
    return float(last.mean() - before.mean()), float(spread * np.sqrt(2 / size))


def _ensemble_words(posterior: Posterior) -> str:
    """What the spread of an ensemble's members is, and is not."""
    method, lacks = posterior.method, posterior.draws.info.get("without_anchor")
    assert isinstance(method, Ensemble)
    if method.members == 1:
        return "one member: epistemic uncertainty is absent by construction."
    if method.anchored and lacks:
        return f"{method.members} anchored members, without an anchor or noise for {lacks}: their spread lacks what these add."
    if method.anchored:
        return (
            f"{method.members} anchored members: draws of the posterior where the model is linear and the noise known."
        )
    return f"{method.members} members: their spread is not the posterior's, and away from the rows nothing holds it up."


def _rose(nats: float) -> str:
    """A change in words, without a minus sign or a change of 0.0."""
    if abs(nats) < 0.05:
        return "moved by less than 0.1 nats"
    return f"{'rose' if nats > 0 else 'fell'} by {abs(nats):.1f} nats"


def _k_hat_words(k: float, network: bool, mean_field: bool) -> str:
    if k < 0.5:
        return "good; importance weights could correct what is left."
    if k < 0.7:
        return "weak; the guide differs from the posterior."
    cannot = "above 0.7: importance weights cannot repair the guide"
    if network:
        return f"{cannot}, as is usual for a network."
    if mean_field:
        return f"{cannot}, which knows no correlations; guide='multivariate' does."
    return f"{cannot}."
