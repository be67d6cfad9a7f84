"""``bnn-pyro demo``: one small network, two ways to its posterior, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEMO: dict[str, Any] = {
    "model": "mlp_gaussian",
    "data": "diabetes",
    "hyperparameters": ("hidden=5", "activation=tanh"),
    "inference": {"svi": (), "nuts": ("chains=4", "warmup=500", "draws=1000", "target_accept=0.95")},
    "seed": 0,
}

INTRODUCTION = (
    "A neural network of five hidden units predicts the progression of diabetes from ten measurements. Its posterior "
    "is approximated by variational inference (svi), then sampled by the no-U-turn sampler (nuts); the flag "
    "--inference is all that differs. On two cores this takes a few minutes."
)
READING = (
    "How to read this: the two should predict about equally well. Their epistemic sd differs where svi misjudges what "
    "is not known about the weights; the draws of nuts are the reference, if its verdict is 'converged'."
)


def plans(out: str, **settings: Any) -> list[Any]:
    """A checked plan for each method; runs of an earlier demo in the same place are replaced."""
    from bnn_pyro.runner import plan

    return [
        plan(DEMO["model"], DEMO["data"], method, (*DEMO["hyperparameters"], *sets), str(Path(out) / method), True,
             seed=DEMO["seed"], **settings)
        for method, sets in DEMO["inference"].items()
    ]  # fmt: skip
