"""Batches of training: the examples in order, the labels as the run sees them.

Several members side by side see the same examples, each with labels of its own, or each
has examples of its own; what is a member's own gets a leading axis m.
"""

import collections
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rm_jax.data.loader import Loader, StepBatch
from rm_jax.data.relabel import Relabel, relabel
from rm_jax.types import FeatureBatch, Labels, PackedBatch, Rows

Chunk = tuple[Rows, Labels]
T = TypeVar("T", PackedBatch, FeatureBatch, Labels)


class Training:
    """The batch of every step.

    Args:
      loaders: one, or one a member where each has an order of its own.
      relabels: one; or one a member.
      members: whether arrays have a leading axis of members.
    """

    def __init__(
        self, loaders: Sequence[Loader], relabels: Sequence[Relabel], members: bool
    ):
        self.loaders, self.relabels, self.members = loaders, relabels, members

    @property
    def epoch(self) -> int:
        """Examples of an epoch."""
        return self.loaders[0].order.epoch

    @property
    def unit(self) -> str:
        """What `StepBatch.tokens` counts."""
        return self.loaders[0].unit

    def batch_at(self, step: int) -> StepBatch:
        """The batch of a step, pure in (seeds, step); `weight` is [m] with members."""
        batches = [loader.batch_at(step) for loader in self.loaders]
        if len(batches) > 1:
            return side_by_side(
                [
                    relabelled(b, how)
                    for b, how in zip(batches, self.relabels, strict=True)
                ]
            )
        (batch,) = batches
        if not self.members:
            return relabelled(batch, self.relabels[0])
        own = [relabelled(batch, how) for how in self.relabels]
        chunks = tuple(
            (rows, _stacked([b.chunks[i][1] for b in own]))
            for i, (rows, _) in enumerate(batch.chunks)
        )
        return batch._replace(chunks=chunks, weight=np.array([b.weight for b in own]))


def side_by_side(batches: Sequence[StepBatch]) -> StepBatch:
    """One batch of several: chunks of one shape together, blank where one has none."""
    queues = [collections.defaultdict(list) for _ in batches]
    for own, batch in zip(queues, batches, strict=True):
        for shape, chunk in zip(batch.shapes, batch.chunks, strict=True):
            own[shape].append(chunk)
    chunks, shapes = [], []
    for shape in sorted(set().union(*queues)):
        some = next(own[shape][0] for own in queues if own[shape])
        for i in range(max(len(own[shape]) for own in queues)):
            row = [
                own[shape][i] if i < len(own[shape]) else blank(some) for own in queues
            ]
            shapes.append(shape)
            rows, labels = zip(*row, strict=True)
            chunks.append((_stacked(rows), _stacked(labels)))
    total = lambda name: sum(getattr(batch, name) for batch in batches)
    m = len(batches)
    return StepBatch(
        chunks=tuple(chunks),
        shapes=tuple(shapes),
        weight=np.array([batch.weight for batch in batches]),
        examples=total("examples"),
        pairs=total("pairs"),
        tokens=total("tokens"),
        size=m * sum(s.rows * s.length for s in shapes),
    )


def blank(chunk: Chunk) -> Chunk:
    """A chunk of the same shapes that holds nothing."""
    batch, labels = (type(part)(*map(np.zeros_like, part)) for part in chunk)
    none = {name: getattr(labels, name) - 1 for name in ("ranks", "ids", "steps")}
    nan = {
        name: np.full_like(getattr(labels, name), np.nan)
        for name in ("soft", "strength", "ratings", "reference_logp")
    }
    return batch._replace(slot_ids=batch.slot_ids - 1), labels._replace(**none, **nan)


def relabelled(batch: StepBatch, how: Relabel) -> StepBatch:
    """A batch with the labels as the run sees them."""
    chunks = tuple((rows, relabel(labels, how)) for rows, labels in batch.chunks)
    weight = float(sum(labels.weight.sum() for _, labels in chunks))
    return batch._replace(chunks=chunks, weight=weight)


def _stacked(parts: Sequence[T]) -> T:
    return type(parts[0])(*map(np.stack, zip(*parts, strict=True)))
