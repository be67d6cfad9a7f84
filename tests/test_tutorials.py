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
    assert printed.count("verdict: approximate") == 3
    sds = [
        tuple(map(float, m)) for m in re.findall(r"sd of the curve (\d+) francs at the median income, (\d+)", printed)
    ]
    (point, point_beyond), (_, mean_field_beyond), (middle, beyond) = sds
    assert point == point_beyond == 0  # a point has no epistemic uncertainty
    assert beyond > 1.5 * mean_field_beyond > 0  # the text: mean field is too sure of itself beyond the data
    growth = float(re.search(r"the epistemic sd grows (\S+) times", printed).group(1))
    assert 2.5 < growth < 12 and growth == pytest.approx(beyond / middle, rel=0.1)
    lpd = [float(v) for v in re.findall(r"test_lpd (\S+) ±", printed)]
    assert lpd == pytest.approx([-5.86] * 3, abs=0.08)  # the text: held-out scores hardly tell the three apart
    assert matplotlib.image.imread(tmp_path / "picture.png").std() > 0.1
