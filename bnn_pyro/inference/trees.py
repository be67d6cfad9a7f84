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

Everything that follows a leaf stands in one tensor, (4, chains, dim), so that moving it is one operation. State changes in
place, and where a mask over chains says so, never in a number of rows that the host would have to know: on a device a step
goes out as one CUDA graph, and the host does not wait for it. On a CPU, where asking costs nothing, what no chain needs is
left out.

Sources: Hoffman & Gelman 2014, JMLR 15 (the tree); Betancourt 2017, arXiv:1701.02434 (weights, rho); Phan et al. 2019,
arXiv:1912.11554 (the iterative form); Dance et al. 2025, arXiv:2503.17405 (chains as state machines).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bnn_pyro import replay
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
        step_size: (c,) float64; may be changed between trees, in place.
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
        grad, log_density = gradient(position)
        self.log_density = log_density.clone()
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
        self._nth = torch.arange(self.slots, device=device)

    @property
    def position(self) -> Tensor:
        return self.chosen[POSITION]

    def use(self, metric: Metric, step_size: Tensor) -> None:
        """Takes on another metric and step sizes (c,), while all chains rest."""
        self.metric.become(metric)
        self.step_size.copy_(step_size)

    def begin(self, rows: Tensor, transition: Tensor) -> None:
        """Starts a tree for chains ``rows`` (k,), each at its transition number ``transition`` (k,)."""
        if not len(rows):
            return
        numbers = torch.zeros_like(self.sum).index_copy_(0, rows, self.momenta.take(rows, transition))
        self.begin_where(self._mask(rows), self.metric.momentum(numbers))

    def begin_where(self, mask: Tensor, momentum: Tensor) -> None:
        """Starts a tree for chains where ``mask`` (c,), each with its row of ``momentum`` (c, dim)."""
        start = torch.cat([self.chosen, momentum[None]])
        for end in self.ends.split(len(self.chains), 1):
            put(end, start, mask)
        put(self.sum, momentum, mask)
        put(self.energy, self.metric.kinetic(momentum) - self.chosen_density, mask)
        for counter in (self.log_weight, self.accept_sum, self.depth, self.steps, self.diverging):
            counter.masked_fill_(mask, 0)
        self.active |= mask
        self._grow(mask, self.uniforms.now()[:, 2])

    def rest(self, rows: Tensor) -> None:
        """Chains ``rows`` take no more steps until they begin again."""
        self.rest_where(self._mask(rows))

    def rest_where(self, mask: Tensor) -> None:
        self.active &= ~mask
        self.leaves.masked_fill_(mask, 0)

    def advance(self) -> Tensor:
        """One leapfrog step of every active chain; the chains (k,) whose trees ended with it."""
        self.uniforms.ready(1)
        return self.advance_all().nonzero().squeeze(-1)

    def advance_all(self) -> Tensor:
        """``advance``, but for a mask (c,) of those chains."""
        draw = self.uniforms.next()
        self._leap()
        log_weight = log_acceptance(self.energy, self.metric.kinetic(self.leaf[MOMENTUM]) - self.log_density)
        self.accept_sum += log_weight.clamp(max=0.0).exp()
        self.steps += self.active

        total = torch.logaddexp(self.new_log_weight, log_weight)
        taken = self.active & (draw[:, 0] < (log_weight - total).exp())  # false where both are -inf
        if self.some(taken):
            put(self.candidate, self.leaf[:2], taken)
            put(self.candidate_density, self.log_density, taken)
        self.new_log_weight.copy_(total)

        diverging = self.active & (log_weight <= -DIVERGENCE)
        self.diverging |= diverging
        ended = diverging | self._turned_within()
        self.leaves += self.active
        self.depth += ended  # a doubling that was begun counts
        whole = self.active & ~ended & (self.leaves == 1 << self.depth)
        return ended | self._double(whole, draw) if self.some(whole) else ended

    def some(self, mask: Tensor) -> bool:
        """Whether any chain is meant; on a device, where asking would make the host wait, as if some were."""
        return not replay.waits(mask.device) or bool(mask.any())

    def _mask(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(self.active).index_fill_(0, rows, True)

    def _leap(self) -> None:
        step = torch.where(self.active, self.step_size * (self.side * 2 - 1), 0.0).to(self.leaf.dtype)[:, None]
        position, grad, momentum, running = self.leaf
        running.add_(momentum, alpha=0.5)
        momentum.addcmul_(step, grad, value=0.5)
        position.addcmul_(step, self.metric.velocity(momentum))
        # all chains, resting ones too: a chain's place in the batch may touch its last bit
        new_grad, log_density = self.gradient(position)
        self.log_density.copy_(log_density)
        grad.copy_(new_grad)
        momentum.addcmul_(step, grad, value=0.5)
        running.add_(momentum, alpha=0.5)

    def info(self, rows: Tensor) -> Info:
        """What happened in the trees of ``rows``, before they begin again."""
        return Info(*(column[rows] for column in self.info_all()))

    def info_all(self) -> Info:
        """``info`` of every chain, (c,); what it has of chains whose trees have not ended means nothing."""
        return Info(
            self.chosen_density,
            self.energy,
            self.diverging,
            self.depth,
            self.steps,
            self.accept_sum / self.steps,
            self.step_size,
        )

    def _grow(self, mask: Tensor, coin: Tensor) -> None:
        """Begins to add leaves at the end that the coin (c,) says, where ``mask`` (c,)."""
        put(self.side, (coin < 0.5).long(), mask)
        end = self.ends.index_select(1, self._end())
        put(self.leaf, torch.cat([end, -0.5 * end[MOMENTUM:]]), mask)
        self.leaves.masked_fill_(mask, 0)
        self.new_log_weight.masked_fill_(mask, -torch.inf)

    def _end(self) -> Tensor:
        """Rows (c,) of ``ends``: the end that each chain grows at."""
        return self.side * len(self.chains) + self.chains

    def _turned_within(self) -> Tensor:
        """Whether an aligned part of the new leaves, ending at the last one, turned back on itself (c,)."""
        slot = self.chains * self.slots + self._slot[self.leaves]
        even = self.active & (self.leaves & 1 == 0)
        if self.some(even):
            kept = self.kept.index_select(1, slot)
            self.kept.index_copy_(1, slot, torch.where(even[:, None], self.leaf[MOMENTUM:], kept))

        halves = torch.where(self.active, self._halves[self.leaves], 0)
        most = (
            int(halves.max()) if replay.waits(halves.device) else self.slots
        )  # that end at the last leaf of some chain
        if not most:
            return torch.zeros_like(self.active)
        row = (slot[:, None] - self._nth[:most]).clamp(min=0)  # a chain's n-th; beyond its own, what means nothing
        first, sum_before = self.kept.index_select(1, row.flatten()).unflatten(1, row.shape)
        last, sum_now = self.leaf[MOMENTUM:, :, None]
        return ((halves[:, None] > self._nth[:most]) & self._turns(sum_now - sum_before, first, last)).any(1)

    def _turns(self, total: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """For momenta (..., dim). Signs alone matter, so sums stay in the positions' precision."""
        velocity = self.metric.velocity(total)
        return ((velocity * first).sum(-1) <= 0) | ((velocity * last).sum(-1) <= 0)

    def _double(self, mask: Tensor, draw: Tensor) -> Tensor:
        """Joins complete sets of new leaves to the trees of chains where ``mask`` (c,); which of these trees end (c,)."""
        taken = mask & (draw[:, 1] < (self.new_log_weight - self.log_weight).exp())
        put(self.chosen, self.candidate, taken)
        put(self.chosen_density, self.candidate_density, taken)
        put(self.log_weight, torch.logaddexp(self.log_weight, self.new_log_weight), mask)
        end = self._end()
        self.ends.index_copy_(1, end, torch.where(mask[:, None], self.leaf[:SUM], self.ends.index_select(1, end)))
        total = self.sum + self.leaf[SUM] + 0.5 * self.leaf[MOMENTUM]
        put(self.sum, total, mask)
        self.depth += mask
        back, front = self.ends[MOMENTUM].split(len(self.chains))
        ends = mask & (self._turns(total - (back + front) / 2, back, front) | (self.depth >= self.max_depth))
        self._grow(mask & ~ends, draw[:, 2])
        return ends


def put(tensor: Tensor, values: Tensor, mask: Tensor) -> None:
    """``values`` into ``tensor`` for chains where ``mask`` (c,); their axis is the last, or the last but one of numbers."""
    torch.where(mask if tensor.dim() == 1 else mask[:, None], values, tensor, out=tensor)


def _trailing_ones(counts: Tensor) -> Tensor:
    ones, going = torch.zeros_like(counts), torch.ones_like(counts)
    for bit in range(int(counts[-1]).bit_length()):
        going = going & (counts >> bit)
        ones += going
    return ones
