"""Runs ``other_device_cases``, half of them each, in a process of their own: torch has not taken a gradient before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

CASES = Path(__file__).with_name("other_device_cases.py")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["mlp", "not mlp"])
def test_all_of_it_works_on_a_device_that_is_not_the_cpu(which):
    if not cpp_extension.is_ninja_available():
        pytest.skip("ninja, which torch builds extensions with, is not installed")
    command = [sys.executable, "-m", "pytest", str(CASES), "-k", which, "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CASES.parent.parent.parent, timeout=1500)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
