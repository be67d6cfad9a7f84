"""The no-U-turn sampler over many chains: each walks a tree of its own, and none waits for another.

``advance`` takes one leapfrog step in every chain's tree, wherever that chain stands in it: one batched gradient. A chain
whose tree is done begins its next one at the following step.

A tree doubles: 2^j leaves are added at one end, in a direction drawn by a coin. Within them a leaf is chosen by its weight
exp(-H), multinomially, as they come; between the new leaves and the old ones with probability min(1, new / old weight).
The tree ends when its path turns back on itself, in whole or in any aligned half of the new leaves:

    r_a . M^-1 rho <= 0  or  r_b . M^-1 rho <= 0,      rho = r_a/2 + sum of r between a and b + r_b/2

Halves are checked without recursion: at an even leaf n the momentum and the running sum are kept in slot
popcount(n/2), of log2(leaves) slots; at an odd one the halves that end there are those of the last ``trailing ones of n``
slots.

Everything that follows a leaf stands in one tensor, (4, chains, dim), so that moving it is one operation; state changes in
place, since most of it does not change in most steps.

Sources: Hoffman & Gelman 2014, JMLR 15 (the tree); Betancourt 2017, arXiv:1701.02434 (weights, rho); Phan et al. 2019,
arXiv:1912.11554 (the iterative form); Dance et al. 2025, arXiv:2503.17405 (chains as state machines).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bnn_pyro.inference.metric import DIVERGENCE, GradientCall, Metric, log_acceptance
from bnn_pyro.inference.random_tables import Momenta, Uniforms

POSITION, GRAD, MOMENTUM, SUM = range(4)  # SUM: of momenta since the new leaves began, less half of the last


class Info(NamedTuple):
    """Trees that ended, named as in ArviZ's sample_stats; each (rows,)."""

    lp: Tensor
    energy: Tensor
    diverging: Tensor
    tree_depth: Tensor
    n_steps: Tensor
    acceptance_rate: Tensor
    step_size: Tensor


class Trees:
    """The state of all chains: ``position`` (c, dim) is where the last finished tree ended.

    Args:
        gradient: (c, dim) -> (c, dim), (c,): gradient and log density.
        position: Starts, of finite density.
        step_size: (c,) float64; may be changed between trees, as ``metric`` may while all chains rest.
        uniforms, momenta: Where randomness comes from.
        max_depth: Doublings of a tree, at most.
    """

    kind: ClassVar[str] = "torch"

    def __init__(
        self,
        gradient: GradientCall,
        position: Tensor,
        metric: Metric,
        step_size: Tensor,
        uniforms: Uniforms,
        momenta: Momenta,
        max_depth: int,
    ):
        chains, dim = position.shape
        device = position.device
        self.gradient, self.metric, self.step_size = gradient, metric, step_size
        self.uniforms, self.momenta, self.max_depth = uniforms, momenta, max_depth
        self.chains = torch.arange(chains, device=device)
        grad, self.log_density = gradient(position)
        # the point that the tree has chosen so far, and the one within its new leaves: position and gradient
        self.chosen = torch.stack([position, grad])
        self.candidate = self.chosen.clone()
        self.chosen_density, self.candidate_density = self.log_density.clone(), self.log_density.clone()
        # the leaf that was added last, and both ends of the tree: rows [0, c) backward, [c, 2c) forward
        self.leaf = position.new_zeros(4, chains, dim)
        self.ends = position.new_zeros(3, 2 * chains, dim)
        self.sum = torch.zeros_like(position)
        self.slots = max(max_depth, 1)
        self.kept = position.new_zeros(2, chains * self.slots, dim)  # momentum and sum at leaves where halves begin

        def scalars(dtype: torch.dtype) -> Tensor:
            return torch.zeros(chains, dtype=dtype, device=device)

        self.energy, self.accept_sum = scalars(torch.float64), scalars(torch.float64)
        self.log_weight, self.new_log_weight = scalars(torch.float64), scalars(torch.float64)
        self.side, self.depth, self.leaves, self.steps = (scalars(torch.int64) for _ in range(4))
        self.diverging, self.active = scalars(torch.bool), scalars(torch.bool)
        counts = torch.arange(2 ** max(max_depth - 1, 0), device=device)
        self._slot = torch.stack([(counts >> (bit + 1)) & 1 for bit in range(self.slots)]).sum(0)
        self._halves = _trailing_ones(counts)

    @property
    def position(self) -> Tensor:
        return self.chosen[POSITION]

    def begin(self, rows: Tensor, transition: Tensor) -> None:
        """Starts a tree for chains ``rows`` (k,), each at its transition number ``transition`` (k,)."""
        if not len(rows):
            return
        momentum = self.metric.momentum(self.momenta.take(rows, transition))
        start = torch.cat([self.chosen.index_select(1, rows), momentum[None]])
        self.ends.index_copy_(1, rows, start)
        self.ends.index_copy_(1, rows + len(self.chains), start)
        self.sum.index_copy_(0, rows, momentum)
        self.energy[rows] = self.metric.kinetic(momentum) - self.chosen_density[rows]
        for counter in (self.log_weight, self.accept_sum, self.depth, self.steps, self.diverging):
            counter.index_fill_(0, rows, 0)
        self.active.index_fill_(0, rows, 1)
        self._grow(rows, self.uniforms.now()[rows, 2])

    def rest(self, rows: Tensor) -> None:
        """Chains ``rows`` take no more steps until they begin again."""
        self.active.index_fill_(0, rows, 0)
        self.leaves.index_fill_(0, rows, 0)

    def advance(self) -> Tensor:
        """One leapfrog step of every active chain; the chains (k,) whose trees ended with it."""
        draw = self.uniforms.next()
        self._leap()
        log_weight = log_acceptance(self.energy, self.metric.kinetic(self.leaf[MOMENTUM]) - self.log_density)
        self.accept_sum += log_weight.clamp(max=0.0).exp()
        self.steps += self.active

        total = torch.logaddexp(self.new_log_weight, log_weight)
        rows = _where(self.active & (draw[:, 0] < (log_weight - total).exp()))  # false where both are -inf
        if len(rows):
            self.candidate.index_copy_(1, rows, self.leaf[:2].index_select(1, rows))
            self.candidate_density.index_copy_(0, rows, self.log_density[rows])
        self.new_log_weight = total

        diverging = self.active & (log_weight <= -DIVERGENCE)
        self.diverging |= diverging
        ended = diverging | self._turned_within()
        self.leaves += self.active
        self.depth += ended  # a doubling that was begun counts
        whole = _where(self.active & ~ended & (self.leaves == 1 << self.depth))
        if len(whole):
            ended[whole] = self._double(whole, draw[whole])
        return _where(ended)

    def _leap(self) -> None:
        step = torch.where(self.active, self.step_size * (self.side * 2 - 1), 0.0).to(self.leaf.dtype)[:, None]
        position, grad, momentum, running = self.leaf
        running.add_(momentum, alpha=0.5)
        momentum.addcmul_(step, grad, value=0.5)
        position.addcmul_(step, self.metric.velocity(momentum))
        # all chains, resting ones too: a chain's place in the batch may touch its last bit
        new_grad, self.log_density = self.gradient(position)
        grad.copy_(new_grad)
        momentum.addcmul_(step, grad, value=0.5)
        running.add_(momentum, alpha=0.5)

    def info(self, rows: Tensor) -> Info:
        """What happened in the trees of ``rows``, before they begin again."""
        return Info(
            self.chosen_density[rows],
            self.energy[rows],
            self.diverging[rows],
            self.depth[rows],
            self.steps[rows],
            self.accept_sum[rows] / self.steps[rows],
            self.step_size[rows],
        )

    def _grow(self, rows: Tensor, coin: Tensor) -> None:
        """Begins to add leaves at the end that the coin (k,) says."""
        side = (coin < 0.5).long()
        self.side.index_copy_(0, rows, side)
        end = self.ends.index_select(1, side * len(self.chains) + rows)
        self.leaf.index_copy_(1, rows, torch.cat([end, -0.5 * end[MOMENTUM:]]))
        self.leaves.index_fill_(0, rows, 0)
        self.new_log_weight.index_fill_(0, rows, -torch.inf)

    def _turned_within(self) -> Tensor:
        """Whether an aligned part of the new leaves, ending at the last one, turned back on itself (c,)."""
        slot = self.chains * self.slots + self._slot[self.leaves]
        odd = self.leaves & 1
        even = _where(self.active & (odd == 0))
        self.kept.index_copy_(1, slot[even], self.leaf[MOMENTUM:].index_select(1, even))

        turned = torch.zeros_like(self.active)
        halves = torch.where(self.active, self._halves[self.leaves], 0)
        rows = torch.repeat_interleave(self.chains, halves)  # a row for each half that ends here
        if len(rows):
            nth = torch.arange(len(rows), device=rows.device) - (halves.cumsum(0) - halves)[rows]
            first, sum_before = self.kept.index_select(1, slot[rows] - nth)
            last, sum_now = self.leaf[MOMENTUM:].index_select(1, rows)
            turned[rows[self._turns(sum_now - sum_before, first, last)]] = True
        return turned

    def _turns(self, total: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """Signs alone matter, so sums stay in the positions' precision."""
        velocity = self.metric.velocity(total)
        return ((velocity * first).sum(-1) <= 0) | ((velocity * last).sum(-1) <= 0)

    def _double(self, rows: Tensor, draw: Tensor) -> Tensor:
        """Joins complete sets of new leaves to their trees; whether these trees end (k,)."""
        weight, new = self.log_weight[rows], self.new_log_weight[rows]
        taken = rows[draw[:, 1] < (new - weight).exp()]
        if len(taken):
            self.chosen.index_copy_(1, taken, self.candidate.index_select(1, taken))
            self.chosen_density.index_copy_(0, taken, self.candidate_density[taken])
        self.log_weight.index_copy_(0, rows, torch.logaddexp(weight, new))
        leaf = self.leaf.index_select(1, rows)
        self.ends.index_copy_(1, self.side[rows] * len(self.chains) + rows, leaf[:SUM])
        total = self.sum[rows] + leaf[SUM] + 0.5 * leaf[MOMENTUM]
        self.sum.index_copy_(0, rows, total)
        back, front = (self.ends[MOMENTUM].index_select(0, end) for end in (rows, rows + len(self.chains)))
        depth = self.depth[rows] + 1
        self.depth.index_copy_(0, rows, depth)
        ends = self._turns(total - (back + front) / 2, back, front) | (depth >= self.max_depth)
        self._grow(rows[~ends], draw[~ends, 2])
        return ends


def _trailing_ones(counts: Tensor) -> Tensor:
    ones, going = torch.zeros_like(counts), torch.ones_like(counts)
    for bit in range(int(counts[-1]).bit_length()):
        going = going & (counts >> bit)
        ones += going
    return ones


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(-1)
