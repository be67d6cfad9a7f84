"""Fixtures for all tests. Imports no torch, so that tests of the command line's start-up time stay honest."""

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with outside reference data (posteriordb, UCI splits) that ``BNN_PYRO_DATA`` names."""
    value = os.environ.get("BNN_PYRO_DATA")
    if not value:
        pytest.skip("BNN_PYRO_DATA is not set: it names the folder with outside reference data")
    folder = Path(value)
    assert folder.is_dir(), f"BNN_PYRO_DATA={value} is no folder"
    return folder
