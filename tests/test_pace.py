"""The number of threads of compiled code: whichever is faster at the time, at most torch's, which is as before."""

import pytest
import torch

from bnn_pyro.pace import SHARE, TRIED, FasterThreads


class Machine:
    """A call that takes ``seconds[threads]`` of a clock of its own, and notes on how many threads it was made."""

    def __init__(self, **seconds):
        self.now, self.seen = 0.0, []
        self.seconds = {int(name.removeprefix("on_")): value for name, value in seconds.items()}

    def __call__(self, value):
        self.seen.append(torch.get_num_threads())
        self.now += self.seconds[self.seen[-1]]
        return value + 1

    def paced(self):
        return FasterThreads(self, clock=lambda: self.now)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("machine", "faster"), [(Machine(on_1=1.0, on_2=0.6), 2), (Machine(on_1=1.0, on_2=1.2), 1)])
def test_a_trial_finds_the_faster_and_it_is_kept(machine, faster):
    call = machine.paced()
    for i in range(2 * TRIED + 20):
        assert call(i) == i + 1 and torch.get_num_threads() == 2
    assert machine.seen == [1] * TRIED + [2] * TRIED + [faster] * 20


def test_one_slow_call_decides_nothing():
    machine = Machine(on_1=1.0, on_2=0.6)
    call = machine.paced()
    for i in range(2 * TRIED):
        machine.seconds[2] = 50.0 if i == TRIED else 0.6  # the first on two threads: the other has to be woken up
        call(i)
    call(0)
    assert machine.seen[-1] == 2


def test_what_becomes_slower_is_found_out():
    machine = Machine(on_1=1.0, on_2=0.5)
    call = machine.paced()
    calls = 0
    while machine.now < SHARE * TRIED * 1.5 / 2:
        call(calls := calls + 1)
    machine.seconds[2] = 2.0
    for _ in range(3 * SHARE * TRIED):
        call(0)
    assert machine.seen[-1] == 1
    slow = sum(threads == 2 for threads in machine.seen[calls:])
    assert slow < SHARE * TRIED * 1.5 / 2 + 3 * TRIED, "until the next trial, then in trials only"
    assert machine.seen.count(1) > 2 * SHARE * TRIED


@pytest.mark.parametrize(("threads", "after"), [(1, [1] * 3 * TRIED), (3, [1] * TRIED + [3] * 2 * TRIED)])
def test_what_torch_is_set_to_later_is_the_most(threads, after):
    """One thread is one, though two are faster; of more there is a trial."""
    machine = Machine(on_1=1.0, on_2=0.8, on_3=0.4)
    call = machine.paced()
    for count in (2, threads):
        torch.set_num_threads(count)
        for _ in range(3 * TRIED):
            call(0)
        assert torch.get_num_threads() == count
    assert machine.seen[3 * TRIED :] == after


def test_an_error_leaves_the_threads_as_they_were():
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        FasterThreads(fails)()
    assert torch.get_num_threads() == 2
