"""A function mapped over draws gives the same bits for any block, a lone last draw included."""

import pytest
import torch
from torch.func import grad_and_value

import bnn_pyro as bnn
import problems
from bnn_pyro import batching
from bnn_pyro.batching import block_size, gather_draws, map_draws
from bnn_pyro.isolation import isolated
from problems import PROBLEMS

BLOCKS = (2, 3, 7, 32)
DRAWS = 33  # leaves a lone last draw for blocks of 2 and 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["zoo_mlp_tanh", "categorical", "ordinal", "gp"])
def test_blocks_are_bit_equal(name, dtype):
    target = PROBLEMS[name]().target(dtype)
    z = problems.points(target, DRAWS).to(dtype)
    with isolated(dtype=dtype):
        for function in (target.log_density, grad_and_value(target.log_density)):
            whole = gather_draws(function, z, DRAWS)
            for block in BLOCKS:
                part = gather_draws(function, z, block)
                for one, other in zip(part if isinstance(part, tuple) else [part],
                                      whole if isinstance(whole, tuple) else [whole], strict=True):  # fmt: skip
                    assert torch.equal(one, other), block


@pytest.mark.parametrize("name", PROBLEMS)
def test_blocks_agree_to_rounding(name):
    target = PROBLEMS[name]().target()
    z = problems.points(target, DRAWS)
    with isolated(dtype=torch.float64):
        whole = gather_draws(target.log_density, z, DRAWS)
        alone = torch.stack([target.log_density(one) for one in z])
        for block in (1, *BLOCKS):
            part = gather_draws(target.log_density, z, block)
            assert ((part - whole).abs() <= 1e-13 * whole.abs().clamp(min=1)).all()
    assert ((alone - whole).abs() <= 1e-13 * whole.abs().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lone_draw_is_bit_equal_to_the_same_draw_among_others(dtype):
    """A matrix product of one draw takes another kernel than one of two; here the last bits differ."""
    model = bnn.get_model("mlp_gaussian", hidden=(8,), activation="tanh").model
    target = problems.Problem(model, *problems._rows(50, 3)).target(dtype)
    z = problems.points(target, 9).to(dtype)
    with isolated(dtype=dtype):
        function = lambda one: target.forward(one, target.x).loc
        whole = gather_draws(function, z, 9)
        assert torch.equal(gather_draws(function, z, 8), whole)
        assert torch.equal(gather_draws(function, z[:1]), whole[:1])
        assert gather_draws(function, z[:1]).shape == (1, 50)


def test_a_lone_draw_is_computed_as_one_of_two():
    """Said by what the function is called with, since not every machine's kernels would show it in the result."""
    sizes = []

    def function(one):
        return one.sum()

    def counted(part):
        sizes.append(part.shape[0])
        return part.sum(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "vmap", lambda f: counted)
        out = gather_draws(function, torch.arange(3.0)[:, None], 2)
    assert sizes == [2, 2] and torch.equal(out, torch.arange(3.0))


def test_blocks_come_in_order_with_their_start():
    z = torch.arange(7.0)[:, None]
    seen = list(map_draws(lambda one: {"twice": one * 2}, z, 3))
    assert [start for start, _ in seen] == [0, 3, 6]
    assert [out["twice"].shape[0] for _, out in seen] == [3, 3, 1]
    assert torch.equal(torch.cat([out["twice"] for _, out in seen]), 2 * z)


@pytest.mark.parametrize("block", [2, 3, 5, 100])
def test_functions_that_vmap_refuses_are_called_draw_by_draw(block):
    def branches(one):
        return one.sum() if one[0].item() > 0 else -one.sum()

    z = torch.tensor([[1.0, 2.0], [-1.0, 5.0], [3.0, -4.0], [-2.0, -2.0], [7.0, 0.0]])
    assert torch.equal(gather_draws(branches, z, block), torch.tensor([3.0, -4.0, -1.0, 4.0, 7.0]))


def test_errors_of_the_function_itself_are_raised():
    def fails(one):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        gather_draws(fails, torch.zeros(4, 2), 2)


def test_block_size_follows_the_budget():
    z = torch.zeros(1000, 10, dtype=torch.float64)
    one = lambda draw: draw.expand(1000, 10) * 2.0  # 80,000 bytes, twice if the view counts
    assert 50 - 1 <= block_size(one, z, budget=100 * 80_000) <= 100
    assert block_size(one, z, budget=1) == 2
    assert block_size(one, z, budget=10**12) == 1000
    assert block_size(one, z[:1]) == 2


def test_no_gradients_are_kept():
    z = torch.zeros(3, 2, requires_grad=True)
    assert not gather_draws(lambda one: one * 2, z).requires_grad
    assert batching.MEMORY_BUDGET <= 256 * 2**20
