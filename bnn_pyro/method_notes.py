"""``bnn-pyro methods``: which method when, what each costs, and what each gets wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bnn_pyro.tables import wrapped


@dataclass(frozen=True)
class Note:
    """``what`` it computes, ``when`` to choose it, what it ``costs``, and what it gets ``wrong``; a sentence or two each."""

    what: str
    when: str
    costs: str
    wrong: str


NOTES = {
    "map": Note(
        "The point of highest log joint density: training with weight decay, if the priors are normal.",
        "A baseline, and a start for others. When only a mean is wanted.",
        "A gradient a step, of mini-batches if asked; the memory of a few copies of the weights.",
        "No epistemic uncertainty at all: as sure far from the rows as among them. Where a network can go through "
        "every row, the noise of the highest joint density is too small.",
    ),
    "svi": Note(
        "The member of a family of densities (the guide) that is nearest to the posterior by KL(guide, posterior): normal with "
        "independent weights by default, and any autoguide by name.",
        "Many rows or weights, a first look before nuts, or a program with latent numbers for each row.",
        "A gradient of a draw of the weights a step, of mini-batches if asked; a few copies of the guide's parameters.",
        "One mode. Independent weights are too narrow where weights trade off, most of all between clusters of rows and beyond "
        "them; units that carry little are switched off. guide='multivariate' or 'lowrank' keeps correlations.",
    ),
    "laplace": Note(
        "A normal density at a mode, as wide as the curvature there; predictions of the network made linear in its weights.",
        "Good uncertainty about one mode for little more than its optimum, in particular beyond the rows; a log evidence to "
        "compare models or to tune priors (tune_prior=True).",
        "A few to thousands of gradients of all rows in float64, and the curvature: dim^2 numbers (full), two matrices a layer "
        "(kronecker), the last layer's (last_layer), dim (diagonal).",
        "One mode, made symmetric: skewed posteriors are shifted, flat ones as wide as at their top. ReLU networks have kinks "
        "where their mode is.",
    ),
    "ensemble": Note(
        "Several networks, each trained from a start of its own to the highest log joint density.",
        "Large data, and several modes at once.",
        "The gradients of its members, taken together; the memory of all of them.",
        "Spread within a mode. Where the rows determine the network the members agree, and nothing holds their spread up "
        "elsewhere; anchored=True draws from the posterior where the model is linear.",
    ),
    "mc_dropout": Note(
        "A network trained with units left out at random, and predicting so (Gal & Ghahramani 2016).",
        "To compare with published dropout, or where dropout is what a network is trained with anyway.",
        "As map; a draw costs a mask.",
        "The rate is a setting, so that the spread is not the posterior's, and need not shrink as rows come in.",
    ),
    "nuts": Note(
        "Draws of the posterior by Hamiltonian dynamics that turns back by itself; exact as it runs on.",
        "The reference for others, and small networks (to some thousands of weights and rows) whose uncertainty matters.",
        "Tens to hundreds of gradients of all rows a draw, several chains.",
        "Nothing in the long run. In a finite one, chains may each stay in a mode of their own; diagnose judges the network's "
        "values, which can agree where weights do not.",
    ),
    "chees": Note(
        "Draws of the posterior by Hamiltonian dynamics, many chains in step, their length learnt from all of them.",
        "As nuts, with many chains at once; it wastes less where the machine does many chains as fast as one.",
        "Gradients of all chains at once; a common length, so that easy chains wait for hard ones.",
        "As nuts; a length that suits the bulk may be wrong in a narrow part of the posterior.",
    ),
    "hmc": Note(
        "Draws of the posterior by Hamiltonian dynamics of a fixed length.",
        "To compare, or where the right length is known.",
        "A fixed number of gradients of all rows a draw.",
        "As nuts; a length that fits badly comes back near where it started, and few draws are worth something.",
    ),
    "prior": Note(
        "Draws of the prior; y is not looked at.",
        "Before anything else: what does the model expect?",
        "No gradients.",
        "Everything that y has to say.",
    ),
}  # fmt: skip


def entries() -> list[dict[str, Any]]:
    """The notes by method, for ``methods --json``."""
    return [{"name": name, **asdict(note)} for name, note in NOTES.items()]


def page(notes: list[dict[str, Any]]) -> str:
    """What ``bnn-pyro methods`` prints."""
    parts = []
    for note in notes:
        lines = [f"{note['name']}", wrapped(note["what"], "    ")]
        lines += [wrapped(note[part], f"    {part:<6} ") for part in ("when", "costs", "wrong")]
        parts.append("\n".join(lines))
    last = wrapped("bnn-pyro methods MODEL... fits each of them to the models' own data and prints what that came to.")
    return "\n".join([*parts, "", last])
