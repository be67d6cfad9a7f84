"""Peak memory of SVI on a large network, in multiples of its guide's parameters.

    python benchmarks/memory.py                       # 1e7 weights
    python benchmarks/memory.py --weights 3e7 --steps 50

A network of one hidden layer with 2,000 inputs and a mean-field normal guide, float32, mini-batches of 32 rows, one draw of
the guide. Two parameters go to a weight; Adam's moments are two more for each of these. The peak is that of the process's
resident memory during `bnn.fit`, looked at every 10 ms, above what it was before, when a small network had been fitted, so
that libraries and compiler are loaded. The draws that a fit keeps come on top: `draws` times the weights.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
import warnings
from typing import Any

INPUTS, ROWS, BATCH = 2000, 200, 32


class Peak:
    """Megabytes resident: ``before`` and, while entered, the highest."""

    def __enter__(self) -> Peak:
        gc.collect()
        self.before = self.highest = resident()
        self._watching = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._watching = False
        self._thread.join()

    def _watch(self) -> None:
        while self._watching:
            self.highest = max(self.highest, resident())
            time.sleep(0.01)


def resident() -> float:
    """Megabytes of this process in memory (Linux)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024 / 1e6


def fit(hidden: int, steps: int) -> Any:
    import numpy as np
    import pyro
    import pyro.distributions as dist
    import torch

    import bnn_pyro as bnn

    def network(x: Any, y: Any = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, INPUTS**-0.5).expand([INPUTS, hidden]).to_event(2))
        v = pyro.sample("v", dist.Normal(0.0, hidden**-0.5).expand([hidden]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x @ w) @ v, 1.0), obs=y)

    x = np.random.default_rng(0).normal(size=(ROWS, INPUTS)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more inputs than rows
        return bnn.fit(network, x, x[:, 0].copy(), inference="svi", guide="normal", steps=steps, batch_size=BATCH, draws=1,
                       keep=(), standardize=False, progress=False)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=1e7, help="about so many")
    parser.add_argument("--steps", type=int, default=20, help="of Adam")
    args = parser.parse_args()
    hidden = max(1, round(args.weights / (INPUTS + 1)))
    fit(100, 10)
    with Peak() as peak:
        posterior = fit(hidden, args.steps)
    parameters = 2 * 4 * hidden * (INPUTS + 1) / 1e6
    rise, info = peak.highest - peak.before, posterior.draws.info
    print(f"weights               {hidden * (INPUTS + 1):>12,}")
    print(f"guide's parameters    {parameters:>12,.0f} MB")
    print(f"a batch               {BATCH * INPUTS * 4 / 1e6:>12,.2f} MB")
    print(f"peak above a small fit{rise:>12,.0f} MB, {rise / parameters:.2f} times the guide's parameters")
    print(f"steps                 {args.steps:>12}, {info['sampling_time']:.1f} s, by {info['backend']}")


if __name__ == "__main__":
    main()
