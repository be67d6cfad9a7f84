"""torch's number of threads is lowered for whoever asks, and for nobody else."""

import threading

import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro import threads
from bnn_pyro.inference.groups import Worker
from bnn_pyro.isolation import isolated
from bnn_pyro.threads import own_threads


@pytest.fixture(autouse=True)
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_new_thread(call=torch.get_num_threads):
    """What a thread finds that torch has not met before."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_begun_meanwhile_have_the_usual_number():
    with own_threads(1):
        assert torch.get_num_threads() == 1 and in_new_thread() == 3
        with own_threads(None), own_threads(5):
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3 and in_new_thread() == 3


def test_whatever_happens_inside_the_number_is_as_before():
    def fail(most):
        with own_threads(most):
            torch.set_num_threads(2)
            raise ArithmeticError

    for most in (1, None):
        with pytest.raises(ArithmeticError):
            fail(most)
        assert torch.get_num_threads() == 3 and in_new_thread() == 3


def test_a_thread_with_a_number_of_its_own_keeps_it_to_itself():
    """As a thread has that first used torch when another one had lowered it for all."""

    def fit():
        torch.get_num_threads()  # torch sets a thread that has not asked to the usual number later on
        torch.set_num_threads(2)
        threads._elsewhere(lambda: torch.set_num_threads(3))
        with isolated(threads=1):
            inside = torch.get_num_threads(), in_new_thread()
        with isolated(threads=2):
            pass
        return inside, torch.get_num_threads()

    assert in_new_thread(fit) == ((1, 3), 2)
    assert torch.get_num_threads() == 3 and in_new_thread() == 3


def test_workers_work_alone_and_others_as_usual():
    seen = []
    worker = Worker()
    worker.begin(lambda: seen.append(torch.get_num_threads()))
    worker.wait()
    assert seen == [1] and in_new_thread() == 3
    worker.close()


@pytest.mark.parametrize("inference", ["nuts", "chees", "svi"])
def test_a_thread_begun_during_a_fit_has_the_usual_number(inference, monkeypatch):
    seen = []
    going, over = threading.Event(), threading.Event()

    def look():
        going.wait()
        while not over.is_set():
            seen.append(in_new_thread())

    looking = threading.Thread(target=look)
    looking.start()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator)
    options = {"steps": 300, "draws": 5} if inference == "svi" else {"warmup": 200, "draws": 5, "backend": "inductor"}
    model = bnn.get_model("mlp_gaussian", hidden=(4,))
    bnn.fit(model, x, x[:, 0], inference=inference, progress=False, **options)  # has compiled
    going.set()
    bnn.fit(model, x, x[:, 0], inference=inference, progress=False, **options)
    over.set()
    looking.join()
    assert seen.count(3) > 0.9 * len(seen) > 0  # not while it is set back
    assert torch.get_num_threads() == 3 and in_new_thread() == 3
