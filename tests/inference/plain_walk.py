"""Chains of NUTS tree by tree, as plainly as it can be said: what the package's walks are compared with."""

from __future__ import annotations

import torch

from bnn_pyro.inference.walk import Ended, Walk


class PlainWalk(Walk):
    """Looks after each leapfrog step, and takes the chains whose trees have ended one by one."""

    def to(self, pause, should_stop):
        trees, averaging = self.trees, self.averaging
        trees.begin(trees.chains, torch.tensor(self.transition))
        while trees.active.any() and not should_stop():
            for row in trees.advance()[:, None]:
                info, step_size = trees.info(row), trees.step_size.clone()
                number = torch.tensor(self.transition[row])[None]
                self.transition[row] += 1
                yield Ended(row, number, trees.position[row], info)
                now = int(number) + 1
                if now <= self.warmup:
                    averaging.update(info.acceptance_rate.expand(len(step_size)), trees.chains == row)
                    step_size[row] = (averaging.average if now == self.warmup else averaging.step_size)[row]
                    trees.step_size = step_size
                if now < pause:
                    trees.begin(row, number + 1)
                else:
                    trees.rest(row)
