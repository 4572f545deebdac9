"""Laying examples out in chunks: fixed [rows, length] shapes, each prompt stored once.

Packing never changes what is optimised: the examples of a step are chosen first
(loader.py) and only then laid out here. Every segment of an example is in the same
chunk, so a chunk's scores and labels are whole.

A layout is plain Python over lengths; only `fill` touches tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rm_jax.data.cache import TokenSet
from rm_jax.types import Labels, PackedBatch


class PackError(ValueError):
    """An example that no chunk shape can hold."""


class Shape(NamedTuple):
    """Shape of a chunk: rows, tokens a row, scored positions a row."""

    rows: int
    length: int
    slots: int


class Item(NamedTuple):
    """An example as the loader chose it: which one, and its responses' order."""

    example: int
    order: tuple[int, ...]


class Segment(NamedTuple):
    """A prompt cut to `keep` tokens and some responses: columns of Item.order."""

    item: int
    keep: int
    columns: tuple[int, ...]
    length: int


class Chunk(NamedTuple):
    """Segments by row, and the items whose labels belong here."""

    shape: Shape
    rows: tuple[tuple[Segment, ...], ...]
    items: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(s.length for row in self.rows for s in row)


def shapes(
    row_lengths: Sequence[int], chunk_tokens: int, tokens_per_slot: int
) -> tuple[Shape, ...]:
    """One chunk shape a row length, all with the same number of tokens."""
    return tuple(
        Shape(chunk_tokens // n, n, max(1, n // tokens_per_slot)) for n in row_lengths
    )


def segments(
    data: TokenSet, index: int, item: Item, largest: Shape, shared: bool
) -> list[Segment]:
    """The segments of one example.

    Responses with the same truncated prompt share a segment while tokens and slots of
    the longest row allow; the rest go to further segments, the prompt repeated. Which
    share one does not depend on their order: what fits once always fits.

    Args:
      data: the tokens.
      index: position of the item in its step.
      item: the example.
      largest: the shape with the longest row.
      shared: False gives every response a segment of its own (layout "padded").
    """
    keeps = data.per_response("prompt_keep", item.example).tolist()
    lengths = data.lengths(item.example).tolist()
    out: list[Segment] = []
    columns = range(len(item.order))
    for c in sorted(columns, key=lambda c: (-lengths[item.order[c]], item.order[c])):
        keep, n = keeps[item.order[c]], lengths[item.order[c]]
        for i, s in enumerate(out if shared else ()):
            room = s.length + n <= largest.length and len(s.columns) < largest.slots
            if s.keep == keep and room:
                joined = tuple(sorted((*s.columns, c)))
                out[i] = s._replace(columns=joined, length=s.length + n)
                break
        else:
            out.append(Segment(index, keep, (c,), keep + n))
    for s in out:
        if s.length > largest.length:
            raise PackError(
                f"example {data.id(item.example)}: {s.length} tokens do not fit the "
                f"longest row of {largest.length}: raise config.batch.row_lengths or "
                "lower config.contract.max_length"
            )
    return out


def check_fits(data: TokenSet, choices: Sequence[Shape], shared: bool) -> None:
    """Lays out every example alone, so that no step of a long run finds one too large.

    Examples that plainly fit one row (or, not shared, one row a response) are passed
    over together; only the others are laid out.

    Raises:
      PackError: naming the first example that no chunk shape holds.
    """
    largest = choices[-1]
    first = data.arrays["example_branch"]
    count = np.diff(first) - 1
    starts = first[:-1] - np.arange(len(count))  # of the example's responses
    branches = np.diff(data.arrays["branch_start"])
    lengths = np.delete(branches, first[:-1])
    keeps = np.asarray(data.arrays["prompt_keep"], np.int64)
    if shared:
        widest = np.maximum.reduceat(keeps, starts) + np.add.reduceat(lengths, starts)
        same = np.maximum.reduceat(keeps, starts) == np.minimum.reduceat(keeps, starts)
        plain = same & (widest <= largest.length) & (count <= largest.slots)
    else:
        widest = np.maximum.reduceat(keeps + lengths, starts)
        plain = (widest <= largest.length) & (count <= largest.rows)
    for example in np.flatnonzero(~plain):
        item = Item(int(example), tuple(range(count[example])))
        group = segments(data, 0, item, largest, shared)
        try:
            layout([group], choices, alone=not shared)
        except PackError as error:
            raise PackError(f"example {data.id(int(example))}: {error}") from None


class _Row:
    """Free tokens and slots of a row that is being filled."""

    __slots__ = ("free", "slots", "segments")

    def __init__(self, shape: Shape):
        self.free, self.slots, self.segments = shape.length, shape.slots, []


def _place(rows: list[_Row], group: Sequence[Segment], alone: bool) -> bool:
    """Best fit of all segments of one example, or of none."""
    placed: list[tuple[_Row, Segment]] = []
    for s in group:
        best = None
        n = len(s.columns)
        for row in rows:
            fits = row.free >= s.length and row.slots >= n
            if not fits or (alone and row.segments):
                continue
            if best is None or row.free < best.free:
                best = row
        if best is None:
            for row, done in placed:
                row.free += done.length
                row.slots += len(done.columns)
                row.segments.pop()
            return False
        best.free -= s.length
        best.slots -= n
        best.segments.append(s)
        placed.append((best, s))
    return True


def _fill_one(
    groups: Sequence[Sequence[Segment]], shape: Shape, alone: bool
) -> tuple[Chunk, list[int]] | None:
    """Fills one chunk from the front; None when the first group does not fit."""
    rows = [_Row(shape) for _ in range(shape.rows)]
    taken: list[int] = []
    room = shape.rows * shape.length
    for g, group in enumerate(groups):
        need = sum(s.length for s in group)
        if need <= room and _place(rows, group, alone):
            taken.append(g)
            room -= need
        elif g == 0:
            return None
    items = tuple(sorted({s.item for g in taken for s in groups[g]}))
    return Chunk(shape, tuple(tuple(r.segments) for r in rows), items), taken


def layout(
    groups: Sequence[Sequence[Segment]],
    choices: Sequence[Shape],
    alone: bool = False,
) -> list[Chunk]:
    """Chunks that hold every group (the segments of one example).

    Longest first; each new chunk takes the shape that it fills best, so that the only
    chunk with much padding is the last.

    Args:
      groups: segments of each example.
      choices: chunk shapes.
      alone: at most one segment a row (layout "padded").

    Raises:
      PackError: an example fits no shape.
    """
    left = sorted(groups, key=lambda g: (-sum(s.length for s in g), g[0].item))
    chunks: list[Chunk] = []
    while left:
        options = [r for c in choices if (r := _fill_one(left, c, alone)) is not None]
        if not options:
            need = sum(s.length for s in left[0])
            raise PackError(
                f"{need} tokens in {len(left[0])} segments fit no chunk of "
                f"{list(choices)}: raise config.batch.chunk_tokens (all responses of "
                "an example must be in one chunk)"
            )
        chunk, taken = max(options, key=lambda r: (r[0].tokens, -r[0].shape.length))
        chunks.append(chunk)
        gone = set(taken)
        left = [g for i, g in enumerate(left) if i not in gone]
    return chunks


def fill(
    data: TokenSet, items: Sequence[Item], chunk: Chunk, rows: slice = slice(None)
) -> PackedBatch:
    """The arrays of a chunk, or of the rows that this host holds."""
    wanted = chunk.rows[rows]
    shape = (len(wanted), chunk.shape.length)
    tokens, positions, segs, branches = (np.zeros(shape, np.int32) for _ in range(4))
    slots = np.zeros((shape[0], chunk.shape.slots), np.int32)
    slot_ids = np.full((*slots.shape, 3), -1, np.int32)
    local = {item: e for e, item in enumerate(chunk.items)}
    for b, row in enumerate(wanted):
        at = slot = 0
        for number, segment in enumerate(row, start=1):
            item = items[segment.item]
            stop = at + segment.keep
            tokens[b, at:stop] = data.prompt(item.example, segment.keep)
            positions[b, at:stop] = np.arange(segment.keep)
            for branch, column in enumerate(segment.columns, start=1):
                ids = data.branch(item.example, item.order[column] + 1)
                start, stop = stop, stop + len(ids)
                tokens[b, start:stop] = ids
                positions[b, start:stop] = np.arange(
                    segment.keep, segment.keep + len(ids)
                )
                branches[b, start:stop] = branch
                slots[b, slot] = stop - 1
                slot_ids[b, slot] = (local[segment.item], column, 0)
                slot += 1
            segs[b, at:stop] = number
            at = stop
    return PackedBatch(tokens, positions, segs, branches, slots, slot_ids)


def labels(data: TokenSet, items: Sequence[Item], chunk: Chunk, k: int) -> Labels:
    """Labels of a chunk, padded to rows x slots examples and k responses."""
    e = chunk.shape.rows * chunk.shape.slots
    attributes = data.arrays["ratings"].shape[1]
    ranks = np.full((e, k), -1, np.int32)
    present, lengths = np.zeros((e, k), np.int32), np.zeros((e, k), np.int32)
    ratings = np.full((e, k, attributes), np.nan, np.float32)
    soft, strength = (np.full((e,), np.nan, np.float32) for _ in range(2))
    weight, ids = np.zeros((e,), np.float32), np.full((e,), -1, np.int32)
    source = np.zeros((e,), np.int32)
    for row, index in enumerate(chunk.items):
        example, order = items[index]
        n, order = len(order), list(order)
        ranks[row, :n] = data.per_response("ranks", example)[order]
        ratings[row, :n] = data.per_response("ratings", example)[order]
        lengths[row, :n] = data.lengths(example)[order]
        present[row, :n] = 1
        p = data.arrays["soft"][example]
        soft[row] = 1 - p if n == 2 and order[0] == 1 else p
        strength[row] = data.arrays["strength"][example]
        weight[row] = data.arrays["weight"][example]
        ids[row] = example
        source[row] = data.arrays["source"][example]
    steps = np.full((e, k, 0), -1, np.int32)
    reference = np.full((e, k), np.nan, np.float32)
    return Labels(
        ranks, present, soft, strength, weight, ratings, steps, lengths, ids, source,
        reference,
    )  # fmt: skip
