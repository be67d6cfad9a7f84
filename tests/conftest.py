"""Fixtures for all tests. Imports no torch, so that tests of the command line's start-up time stay honest."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

# Several test processes share the cores; torch reads this when it is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with outside reference data (posteriordb, UCI splits) that ``BNN_PYRO_DATA`` names."""
    value = os.environ.get("BNN_PYRO_DATA")
    if not value:
        pytest.skip("BNN_PYRO_DATA is not set: it names the folder with outside reference data")
    folder = Path(value)
    assert folder.is_dir(), f"BNN_PYRO_DATA={value} is no folder"
    return folder


@pytest.fixture
def usual_interrupts() -> Iterator[None]:
    """A process that a shell started in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
