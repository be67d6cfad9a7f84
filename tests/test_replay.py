"""What a device does as one launch: traced with all that it changes in place."""

import pytest
import torch
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from bnn_pyro.inductor import lift_tensors, trace_in_place
from bnn_pyro.replay import OnItsWay, Replay

CPU = torch.device("cpu")


class Counter:
    """Changes tensors in the ways that samplers do: through views, by masks, at places that it looks up."""

    def __init__(self):
        self.place = torch.zeros(1, dtype=torch.int64)
        self.table = torch.linspace(0, 1, 24, dtype=torch.float64).view(6, 4)
        self.rows = torch.zeros(2, 4, 3)
        self.kept = torch.zeros(12, 3)
        self.count = torch.zeros(4, dtype=torch.int64)
        self.active = torch.tensor([True, True, False, True])

    def tensors(self):
        return [value.clone() for value in vars(self).values()]

    def step(self):
        self.place += 1
        draw = self.table.index_select(0, self.place % 6)[0]
        first, second = self.rows
        first.add_(second, alpha=0.5)
        second.addcmul_(draw[:, None].float(), first, value=-0.25)
        second.add_(1.0)
        torch.where(self.active[:, None], second * 2, first, out=first)
        self.kept.index_copy_(0, self.count % 3 * 4 + torch.arange(4), first)
        self.count += self.active
        self.active ^= draw < 0.5
        self.rows[1].masked_fill_(~self.active[:, None], 0.25)


def pure(graph):
    """As ``compile_in_place`` makes it for inductor: no operation changes a tensor, but for copies at the end."""
    lifted, tensors = lift_tensors(graph)
    made = make_fx(functionalize(lifted, remove="mutations"), tracing_mode="fake")(*tensors)
    changing = [n.target for n in made.graph.nodes if n.op == "call_function" and "_." in f"{n.target}"]
    assert set(changing) == {torch.ops.aten.copy_.default}
    return lambda: made(*tensors)


@pytest.mark.parametrize("form", [lambda graph: graph, pure])
def test_what_was_traced_changes_what_the_function_changes(form):
    one, other = Counter(), Counter()
    code = form(trace_in_place(other.step))  # by a call, which counts
    one.step()
    assert all(map(torch.equal, one.tensors(), other.tensors()))
    for _ in range(40):
        one.step()
        code()
    assert all(map(torch.equal, one.tensors(), other.tensors()))
    assert (one.kept != 0).any() and one.count.max() > 20


def test_it_goes_on_in_tensors_that_were_filled_anew():
    counter, other = Counter(), Counter()
    code = trace_in_place(counter.step)
    for own, begun in zip(vars(counter).values(), other.tensors(), strict=True):
        own.copy_(begun)
    code()
    other.step()
    assert all(map(torch.equal, counter.tensors(), other.tensors()))


@pytest.mark.parametrize("fuses", [False, True])
def test_a_cpu_calls_the_function_as_it_is(fuses):
    calls = []
    replay = Replay(lambda: calls.append(1), CPU, fuses)
    for count in range(1, 5):
        replay()
        assert len(calls) == count


def test_a_copy_on_its_way_is_what_was_there():
    tensor = torch.arange(3.0)
    copy = OnItsWay(tensor)
    assert torch.equal(copy.take(), tensor)
