"""Tutorials run whole, as a reader runs them, and print the numbers that their text speaks of."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def run(name, folder):
    command = [sys.executable, str(TUTORIALS / f"{name}.py"), "picture.png"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_01_first_posterior(tmp_path):
    printed = run("01_first_posterior", tmp_path)
    assert "verdict: approximate" in printed and "verdict: converged" in printed
    ratio = float(re.search(r"epistemic sd grows (\S+) times", printed).group(1))
    assert 3 < ratio < 30  # the text: unsure beyond the data
    scores = re.findall(r"(SVI|NUTS) test_rmse (\S+) ± \S+ test_lpd (\S+) ±", printed.replace(",", ""))
    lpd = {name: float(value) for name, _, value in scores}
    assert lpd["NUTS"] == pytest.approx(-5.86, abs=0.1) and lpd["SVI"] == pytest.approx(-5.86, abs=0.1)
    assert matplotlib.image.imread(tmp_path / "picture.png").std() > 0.1
