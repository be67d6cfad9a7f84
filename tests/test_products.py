"""Weights are seen wherever a program uses them."""

import pytest
import torch

from bnn_pyro.layer_noise import RowNoise


@pytest.mark.parametrize(
    "use", [lambda w, v: torch.cat([w, v]), lambda w, v: torch.stack([v, w]), lambda w, v: torch.cat(tensors=(w, v))],
    ids=["cat", "stack", "keyword"],
)  # fmt: skip
def test_a_weight_in_a_list_of_arguments_is_used(use):
    x, w, v = torch.ones(5, 3), torch.ones(3, 2), torch.ones(3, 2)
    watch = RowNoise("local")
    watch.follow("w", w, linear=w, size=w.abs())
    with watch:
        x @ w
        watch.check()
        use(w, v)
    with pytest.raises(NotImplementedError, match=r"site 'w' is used in a product with rows and in torch\.(cat|stack)"):
        watch.check()
