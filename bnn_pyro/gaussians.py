"""Normal densities over the flat vector whose precision is made of blocks: dense, diagonal, or a Kronecker product.

Each block stands on some entries of the vector, which no other block has; entries of no block stay at the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor


class Block(Protocol):
    """``index``: the block's entries of the flat vector. Displacements are (draws, entries), in the order of ``index``."""

    @property
    def index(self) -> Tensor: ...
    @property
    def log_det(self) -> Tensor:
        """Of the precision, ()."""
        ...

    def displace(self, noise: Tensor) -> Tensor:
        """Displacements from the mean, of standard normal numbers of the same shape."""
        ...

    def turn(self, gradient: Tensor) -> Tensor:
        """The transpose of ``displace``: gradients with respect to those numbers, of gradients (draws, entries)."""
        ...

    def square(self, away: Tensor) -> Tensor:
        """Displacement^T precision displacement, (draws,)."""
        ...

    def variances(self) -> Tensor:
        """(entries,)"""
        ...


@dataclass(frozen=True)
class Dense:
    """``factor`` (b, b): lower L with precision L L^T."""

    index: Tensor
    factor: Tensor

    @classmethod
    def of(cls, index: Tensor, precision: Tensor) -> Dense:
        """Raises: torch.linalg.LinAlgError for a precision that is not positive definite."""
        return cls(index, torch.linalg.cholesky(precision))

    @property
    def log_det(self) -> Tensor:
        return 2.0 * self.factor.diagonal().log().sum()

    def displace(self, noise: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor.mT, noise.mT, upper=True).mT

    def turn(self, gradient: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, gradient.mT, upper=False).mT

    def square(self, away: Tensor) -> Tensor:
        return (away @ self.factor).square().sum(1)

    def variances(self) -> Tensor:
        return torch.cholesky_inverse(self.factor).diagonal()


@dataclass(frozen=True)
class Diagonal:
    """``precision`` (b,)."""

    index: Tensor
    precision: Tensor

    @property
    def log_det(self) -> Tensor:
        return self.precision.log().sum()

    def displace(self, noise: Tensor) -> Tensor:
        return noise * self.precision.rsqrt()

    def turn(self, gradient: Tensor) -> Tensor:
        return self.displace(gradient)

    def square(self, away: Tensor) -> Tensor:
        return away.square() @ self.precision

    def variances(self) -> Tensor:
        return self.precision.reciprocal()


@dataclass(frozen=True)
class Kronecker:
    """Precision A x G + D_a x D_g of a matrix of entries (a, g), by eigenvalues in coordinates where D is the identity.

    Attributes:
        index: (a g,), row by row of the matrix.
        left, right: (a, a), (g, g): D_a^1/2 Q_a and D_g^1/2 Q_g, with Q of D^-1/2 A D^-1/2 = Q diag(l) Q^T.
        left_inverse, right_inverse: D_a^-1/2 Q_a, D_g^-1/2 Q_g, their inverses transposed.
        values: (a, g), 1 + l_a l_g.
        log_det_prior: () of D_a x D_g.
    """

    index: Tensor
    left: Tensor
    right: Tensor
    left_inverse: Tensor
    right_inverse: Tensor
    values: Tensor
    log_det_prior: Tensor

    @classmethod
    def of(cls, index: Tensor, a: Tensor, g: Tensor, prior_a: Tensor, prior_g: Tensor) -> Kronecker:
        """``index`` (a, g); ``prior_a`` (a,) and ``prior_g`` (g,) positive."""
        sides = []
        for matrix, prior in ((a, prior_a), (g, prior_g)):
            shrink = prior.rsqrt()
            values, vectors = torch.linalg.eigh(shrink[:, None] * matrix * shrink)
            sides.append((values.clamp(min=0.0), prior.sqrt()[:, None] * vectors, shrink[:, None] * vectors))
        (l_a, left, left_inverse), (l_g, right, right_inverse) = sides
        log_det = len(prior_g) * prior_a.log().sum() + len(prior_a) * prior_g.log().sum()
        values = 1.0 + torch.outer(l_a, l_g)
        return cls(index.reshape(-1), left, right, left_inverse, right_inverse, values, log_det)

    @property
    def log_det(self) -> Tensor:
        return self.values.log().sum() + self.log_det_prior

    def displace(self, noise: Tensor) -> Tensor:
        scaled = noise.reshape(-1, *self.values.shape) * self.values.rsqrt()
        return (self.left_inverse @ scaled @ self.right_inverse.mT).reshape(noise.shape)

    def turn(self, gradient: Tensor) -> Tensor:
        matrix = gradient.reshape(-1, *self.values.shape)
        return ((self.left_inverse.mT @ matrix @ self.right_inverse) * self.values.rsqrt()).reshape(gradient.shape)

    def square(self, away: Tensor) -> Tensor:
        turned = self.left.mT @ away.reshape(-1, *self.values.shape) @ self.right
        return (turned.square() * self.values).sum((1, 2))

    def variances(self) -> Tensor:
        return (self.left_inverse.square() @ self.values.reciprocal() @ self.right_inverse.square().mT).reshape(-1)


KINDS: dict[str, type] = {"dense": Dense, "diagonal": Diagonal, "kronecker": Kronecker}


@dataclass(frozen=True)
class Gaussian:
    """Normal(mean, precision^-1) on the entries of ``blocks``, and a point at ``mean`` (dim,) on all others."""

    mean: Tensor
    blocks: Sequence[Block]

    @property
    def dim(self) -> int:
        """Entries that are not a point."""
        return sum(len(block.index) for block in self.blocks)

    @property
    def log_det(self) -> Tensor:
        """Log determinant of the precision, ()."""
        return torch.stack([block.log_det for block in self.blocks]).sum()

    def sample(self, draws: int, generator: torch.Generator | None = None) -> Tensor:
        """(draws, dim)"""
        z = self.mean.repeat(draws, 1)
        noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
        for block in self.blocks:
            z[:, block.index] += block.displace(noise[:, block.index])
        return z

    def square(self, away: Tensor) -> Tensor:
        """Squared distance in standard deviations, (draws,), of displacements (draws, dim) from the mean."""
        return torch.stack([block.square(away[:, block.index]) for block in self.blocks]).sum(0)

    def log_density(self, z: Tensor) -> Tensor:
        """(draws,) at z (draws, dim), of the entries that are not a point."""
        constant = 0.5 * (self.log_det - self.dim * math.log(2 * math.pi))
        return constant - 0.5 * self.square(z - self.mean)

    def solve(self, gradient: Tensor) -> Tensor:
        """precision^-1 gradient, (dim,); 0 on entries that are a point."""
        return self.displace(self.turn(gradient))

    def displace(self, noise: Tensor) -> Tensor:
        """A displacement from the mean, (dim,), of standard normal numbers (dim,); 0 on entries that are a point."""
        out = torch.zeros_like(noise)
        for block in self.blocks:
            out[block.index] = block.displace(noise[block.index][None])[0]
        return out

    def turn(self, gradient: Tensor) -> Tensor:
        """The transpose of ``displace``."""
        out = torch.zeros_like(gradient)
        for block in self.blocks:
            out[block.index] = block.turn(gradient[block.index][None])[0]
        return out

    def variances(self) -> Tensor:
        """The diagonal of ``covariance``, (dim,)."""
        out = torch.zeros_like(self.mean)
        for block in self.blocks:
            out[block.index] = block.variances()
        return out

    def covariance(self) -> Tensor:
        """(dim, dim): 0 in rows and columns of entries that are a point. For vectors of some thousands at most."""
        out = self.mean.new_zeros(len(self.mean), len(self.mean))
        for block in self.blocks:
            root = block.displace(torch.eye(len(block.index), dtype=out.dtype, device=out.device))
            out[block.index[:, None], block.index] = root.mT @ root
        return out

    def tensors(self) -> dict[str, Tensor]:
        """What ``from_tensors`` makes the same density of."""
        named = {"mean": self.mean}
        for i, block in enumerate(self.blocks):
            kind = next(name for name, made in KINDS.items() if isinstance(block, made))
            named |= {f"{i}/{kind}/{f.name}": getattr(block, f.name) for f in fields(block)}  # type: ignore[arg-type]
        return named

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> Gaussian:
        found: dict[tuple[int, str], dict[str, Tensor]] = {}
        for name, tensor in named.items():
            number, _, rest = name.partition("/")
            kind, _, field = rest.partition("/")
            if kind in KINDS:
                found.setdefault((int(number), kind), {})[field] = tensor
        return cls(named["mean"], [KINDS[kind](**given) for (_, kind), given in sorted(found.items())])
