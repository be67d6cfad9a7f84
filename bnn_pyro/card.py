"""A model's card: what it is, what it runs on, what others have published, as data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """A published figure, with all that is needed to stand a figure of ours beside it.

    ``stdev`` is a standard deviation over splits, ``stderr`` a standard error; a source states one of the two.
    """

    inference: str
    dataset: str
    metric: str
    value: float
    splits: str
    source: str
    stdev: float | None = None
    stderr: float | None = None


@dataclass(frozen=True)
class Card:
    """Facts about a model; ``name`` equals its file name."""

    name: str
    task: str
    dataset: str
    reference: str
    inference: tuple[str, ...]
    tags: tuple[str, ...] = ()
    published: list[Published] = field(default_factory=list)
