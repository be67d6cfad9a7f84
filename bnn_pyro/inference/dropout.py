"""Monte Carlo dropout: settings.

    W = M diag(s / (1 - r)),  s_j ~ Bernoulli(1 - r)   for each input j of a layer: the variational family
    maximise  E_s[log p(y | W, ...) + log p(W)]        over M and all other latent sites, which are points

The entropy of this family does not depend on M, so that this is the ELBO up to a constant. For weights with prior
Normal(0, 1 / l) the prior's part is -l^2 M^2 / (2 (1 - r)), a weight decay. In Gal & Ghahramani's terms (length-scale l,
precision tau of y, a squared error averaged over N rows, weights M / (1 - r)) its factor is lambda = (1 - r) l^2 / (2 N tau).
Source: Gal & Ghahramani 2016, arXiv:1506.02142, and its appendix, arXiv:1506.02157, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_pyro.errors import unknown
from bnn_pyro.inference.method import Method

MASKS = ("rows", "step")


@dataclass(frozen=True)
class MCDropout(Method):
    """Networks with units left out at random: trained so, and predicting so. A draw of the posterior is one network.

    Layers are found in the program as it is (``bnn_pyro.layers``): a unit that is left out is a row of zeros in the weight that
    it goes into. The rate is a setting and not learnt, so that the spread need not shrink as rows come in.

    Args:
        rate: Probability that a unit is left out, between 0 and 1.
        input_rate: The same of the network's inputs; None for ``rate``.
        masks: ``"rows"``: each row of a step has units of its own left out; ``"step"``: all rows the same, one draw of the
            family, whose gradient has the same mean and more noise.
        steps: Gradient steps.
        lr: Learning rate of Adam at the first step; it falls exponentially to ``lr * lr_decay`` at the last.
        lr_decay: Learning rate at the last step, relative to the first.
        clip_norm: Bound of each entry of the gradient; for mini-batches so many times it as their log likelihood is scaled up.
        batch_size: Rows a step, drawn anew for each epoch, whose log likelihood is scaled up to that of all; None for all.
        draws: Networks drawn, each with units of its own left out.
    """

    name: ClassVar[str] = "mc_dropout"

    rate: float = 0.1
    input_rate: float | None = None
    masks: str = "rows"
    steps: int = 4000
    lr: float = 0.02
    lr_decay: float = 0.05
    clip_norm: float = 10.0
    batch_size: int | None = None
    draws: int = 1000

    def __post_init__(self) -> None:
        for option in ("rate", "input_rate"):
            value = getattr(self, option)
            if value is None and option == "input_rate":
                continue
            ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
            self._require(option, ok, "a probability of at least 0 and below 1")
        if self.masks not in MASKS:
            raise unknown("masks", self.masks, MASKS)
        for option in ("steps", "draws", *(["batch_size"] if self.batch_size is not None else [])):
            self._require_count(option)
        for option in ("lr", "lr_decay", "clip_norm"):
            self._require_positive(option)
