"""Peak memory of SVI: on a large network, in multiples of its guide's parameters, and on many rows that stay in a file.

    python benchmarks/memory.py                       # 1e7 weights; 1e5 and 1e6 rows
    python benchmarks/memory.py --weights 3e7 --rows 1e7 --steps 50

A network of one hidden layer with 2,000 inputs and a mean-field normal guide, float32, mini-batches of 32 rows, one draw of
the guide. Two parameters go to a weight; Adam's moments are two more for each of these. Then a small network, mini-batches
of 128 rows of 50 columns from a file written for the purpose, memory-mapped.

The peak is that of the process's own memory (of a mapped file the system keeps what it has room for, and drops it when
others need it) during `bnn.fit`, looked at every 10 ms, above what it was before, when another fit had been made, so that
libraries and compiler are loaded. The draws that a fit keeps come on top: `draws` times the weights.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import threading
import time
import warnings
from typing import Any

INPUTS, ROWS, BATCH = 2000, 200, 32


class Peak:
    """Megabytes: ``before`` and, while entered, the highest."""

    def __enter__(self) -> Peak:
        gc.collect()
        self.before = self.highest = own()
        self._watching = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._watching = False
        self._thread.join()

    def _watch(self) -> None:
        while self._watching:
            self.highest = max(self.highest, own())
            time.sleep(0.01)


def own() -> float:
    """Megabytes of this process in memory, without files (Linux)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024 / 1e6


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


def write_rows(folder: str, rows: int) -> tuple[Any, Any]:
    """Inputs (rows, 50) and targets (rows,) in files, memory-mapped."""
    import numpy as np

    generator = np.random.default_rng(0)
    x = np.lib.format.open_memmap(f"{folder}/x.npy", "w+", "float32", (rows, 50))
    y = np.lib.format.open_memmap(f"{folder}/y.npy", "w+", "float32", (rows,))
    for start in range(0, rows, 10_000):
        part = slice(start, min(start + 10_000, rows))
        x[part] = generator.normal(size=(part.stop - part.start, 50))
        y[part] = np.tanh(x[part, 0]) + 0.1 * generator.normal(size=part.stop - part.start)
    x.flush()
    y.flush()
    return np.load(f"{folder}/x.npy", mmap_mode="r"), np.load(f"{folder}/y.npy", mmap_mode="r")


def fit_rows(x: Any, y: Any, steps: int) -> Any:
    import bnn_pyro as bnn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that scores are of a sample
        return bnn.fit(bnn.get_model("mlp_gaussian"), x, y, inference="svi", steps=steps, batch_size=128, draws=100,
                       progress=False)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=1e7, help="about so many; 0 for none")
    parser.add_argument("--rows", type=float, nargs="*", default=[1e5, 1e6], help="rows in a file")
    parser.add_argument("--steps", type=int, default=20, help="of Adam; a thousand times as many for rows")
    args = parser.parse_args()
    if args.weights:
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
        del posterior
    for i, rows in enumerate([2e4, *args.rows] if args.rows else []):
        with tempfile.TemporaryDirectory() as folder:
            x, y = write_rows(folder, int(rows))
            with Peak() as peak:
                info = fit_rows(x, y, 1000 * args.steps if i else 1000).draws.info
            if not i:
                print(f"\n{'rows':>12}{'file, MB':>12}{'peak, MB':>12}{'steps':>10}{'seconds':>10}")
                continue
            print(
                f"{int(rows):>12,}{(x.nbytes + y.nbytes) / 1e6:>12,.0f}{peak.highest - peak.before:>12,.0f}"
                f"{info['steps_taken']:>10,}{info['sampling_time']:>10.1f}"
            )


if __name__ == "__main__":
    main()
