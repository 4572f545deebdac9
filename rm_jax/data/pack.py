"""Laying examples out in chunks: fixed [rows, length] shapes, each prompt stored once.

Packing never changes what is optimised: the examples of a step are chosen first
(loader.py) and only then laid out here. Every segment of an example is in the same
chunk, so a chunk's scores and labels are whole.

A layout is made of lengths alone; `chunk_arrays` puts tokens and labels into it.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from rm_jax.data.cache import TokenSet

BLOCK = 8192  # examples checked at a time


class PackError(ValueError):
    """An example that no chunk shape can hold."""


class RowsError(PackError):
    """An example that needs more rows than any chunk shape has."""


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
    """A prompt cut to `keep` tokens and some responses: columns of Item.order.

    Each response is scored at its end; `steps` of them are scored steps before it.
    """

    item: int
    keep: int
    columns: tuple[int, ...]
    length: int
    steps: int = 0

    @property
    def slots(self) -> int:
        """Scored positions."""
        return len(self.columns) + self.steps


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
    data: TokenSet,
    items: Sequence[Item],
    largest: Shape,
    shared: bool,
    steps: bool = False,
) -> list[list[Segment]]:
    """The segments of each example of a step.

    Responses with the same truncated prompt share a segment while tokens and slots of
    the longest row allow; the rest go to further segments, the prompt repeated. Which
    share one does not depend on their order: what fits once always fits.

    Args:
      data: the tokens.
      items: the examples of the step, in its order.
      largest: the shape with the longest row.
      shared: False gives every response a segment of its own (layout "padded").
      steps: whether the end of each step of a response is scored, too.

    Raises:
      PackError: a response that no row can hold.
    """
    found = _Lengths(data, np.array([item.example for item in items]), steps)
    whole = found.share_one_row(largest) if shared else np.zeros(len(items), bool)
    columns = [tuple(range(k + 1)) for k in range(found.count.max())]
    first = found.keep[found.start]
    plain = zip(*(x.tolist() for x in (whole, found.count, first, found.total,
                                       found.all_steps)), strict=True)  # fmt: skip
    return [
        [Segment(i, keep, columns[k - 1], keep + n, m)]
        if fits
        else _split(data, i, items[i], found.of(i), largest, shared)
        for i, (fits, k, keep, n, m) in enumerate(plain)
    ]


class _Lengths:
    """Tokens of the responses of some examples, and of the prompts before them.

    Attributes:
      count: responses of each example.
      start: where its responses begin in `length` and `keep`.
      total: tokens of its responses.
      length: tokens of each response.
      keep: prompt tokens that fit before each response.
      steps: of each response that are scored.
      all_steps: of each example.
    """

    def __init__(self, data: TokenSet, examples: Int[np.ndarray, "n"], steps: bool):
        self.count, branch, response = data.responses(examples)
        self.start = np.cumsum(self.count) - self.count
        starts = data.arrays["branch_start"]
        self.length = starts[branch + 1] - starts[branch]
        self.keep = data.arrays["prompt_keep"][response].astype(np.int64)
        self.total = np.add.reduceat(self.length, self.start)
        self.steps = data.steps(response) if steps else np.zeros_like(self.length)
        self.all_steps = np.add.reduceat(self.steps, self.start)

    def share_one_row(self, largest: Shape) -> Bool[np.ndarray, "n"]:
        """Which examples are one segment: one truncated prompt, tokens and slots."""
        first = self.keep[self.start]
        same = np.repeat(first, self.count) == self.keep
        room = first + self.total <= largest.length
        whole = np.logical_and.reduceat(same, self.start)
        return whole & room & (self.count + self.all_steps <= largest.slots)

    def of(self, i: int) -> list[tuple[int, int, int]]:
        """(length, keep, steps) of each response of example i, in its own order."""
        at = slice(self.start[i], self.start[i] + self.count[i])
        columns = self.length[at], self.keep[at], self.steps[at]
        return list(zip(*(x.tolist() for x in columns), strict=True))


def _split(
    data: TokenSet,
    index: int,
    item: Item,
    responses: Sequence[tuple[int, int, int]],
    largest: Shape,
    shared: bool,
) -> list[Segment]:
    """The segments of one example, longest response first."""
    own = [responses[j] for j in item.order]
    out: list[Segment] = []
    for c in sorted(range(len(own)), key=lambda c: (-own[c][0], item.order[c])):
        n, keep, steps = own[c]
        for i, s in enumerate(out if shared else ()):
            room = s.length + n <= largest.length
            if s.keep == keep and room and s.slots + 1 + steps <= largest.slots:
                joined = tuple(sorted((*s.columns, c)))
                out[i] = Segment(index, keep, joined, s.length + n, s.steps + steps)
                break
        else:
            out.append(Segment(index, keep, (c,), keep + n, steps))
    for s in out:
        if s.length > largest.length:
            raise PackError(
                f"example {data.id(item.example)}: {s.length} tokens do not fit the "
                f"longest row of {largest.length}: raise config.batch.row_lengths or "
                "lower config.contract.max_length"
            )
        if s.slots > largest.slots:
            raise PackError(
                f"example {data.id(item.example)}: a response of {s.steps} steps needs "
                f"{s.slots} scored positions, the longest row of {largest.length} "
                f"tokens has {largest.slots}: lower config.batch.tokens_per_slot to "
                f"{largest.length // s.slots}"
            )
    return out


def check_fits(
    data: TokenSet, choices: Sequence[Shape], shared: bool, steps: bool = False
) -> None:
    """Lays out every example alone, so that no step of a long run finds one too large.

    Examples that plainly fit one row (or, not shared, one row a response) are passed
    over together, a block at a time; only the others are laid out.

    Raises:
      PackError: naming the first example that no chunk shape holds.
    """
    largest = choices[-1]
    for begin in range(0, len(data), BLOCK):
        examples = np.arange(begin, min(begin + BLOCK, len(data)))
        found = _Lengths(data, examples, steps)
        if (found.keep < 1).any():
            i = int(np.searchsorted(found.start, np.argmin(found.keep), "right")) - 1
            raise PackError(
                f"example {data.id(begin + i)}: a response without a prompt: lower "
                "config.contract.max_response"
            )
        if shared:
            plain = found.share_one_row(largest)
        else:
            widest = np.maximum.reduceat(found.keep + found.length, found.start)
            most = 1 + np.maximum.reduceat(found.steps, found.start)
            plain = (widest <= largest.length) & (most <= largest.slots)
            plain &= found.count <= largest.rows
        for i in np.flatnonzero(~plain).tolist():
            item = Item(begin + i, tuple(range(found.count[i])))
            group = _split(data, 0, item, found.of(i), largest, shared)
            try:
                layout([group], choices, alone=not shared)
            except RowsError as error:
                raise RowsError(f"example {data.id(begin + i)}: {error}") from None


def roomy(
    data: TokenSet,
    choices: Sequence[Shape],
    shared: bool,
    steps: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Shape]:
    """The shapes with 2, 4, 8, ... times their rows: as few as every example fits.

    For evaluation, where a set may have hundreds of responses to a prompt; in training
    config.batch.chunk_tokens is the memory that a step may take; `say` is told what
    goes beyond it.

    Raises:
      PackError: naming an example that no number of rows would hold.
    """
    found, times = list(choices), 1
    while True:
        try:
            check_fits(data, found, shared, steps)
            break
        except RowsError:
            times *= 2
            found = [shape._replace(rows=times * shape.rows) for shape in choices]
    if times > 1:
        tokens = found[-1].rows * found[-1].length
        say(
            f"its largest example needs chunks of {tokens} tokens, {times} times "
            "config.batch.chunk_tokens: its evaluation takes more memory"
        )
    return found


class _Rows:
    """Free tokens and slots of the rows of a chunk that is being filled.

    `free` holds a number for each row that can take more, ascending: free tokens times
    rows plus the row. So the first one at or above (tokens, row 0) is the best fit.
    """

    def __init__(self, shape: Shape, alone: bool):
        n, self._n, self._alone = shape.rows, shape.rows, alone
        self.free = list(range(shape.length * n, shape.length * n + n))
        self._slots = [shape.slots] * n

    def largest(self) -> int:
        """Free tokens of the row with most."""
        return self.free[-1] // self._n if self.free else 0

    def place(self, group: Sequence[Segment]) -> list[int] | None:
        """Best fit of all segments of an example: their rows; or None, of none."""
        n, free, slots = self._n, self.free, self._slots
        placed: list[int] = []  # as numbers before the segment was placed
        for s in group:
            need = s.slots
            at = bisect_left(free, s.length * n)
            while at < len(free) and slots[free[at] % n] < need:
                at += 1
            if at == len(free):
                if placed:
                    self._take_back(placed, group)
                return None
            best = free.pop(at)
            slots[best % n] -= need
            if not self._alone:
                insort(free, best - s.length * n)
            placed.append(best)
        return [number % n for number in placed]

    def _take_back(self, placed: Sequence[int], group: Sequence[Segment]) -> None:
        for number, s in reversed(list(zip(placed, group, strict=False))):
            self._slots[number % self._n] += s.slots
            if not self._alone:
                self.free.remove(number - s.length * self._n)
            insort(self.free, number)


class _Filled(NamedTuple):
    """A chunk that is only thought of: which groups are in it, in which rows."""

    shape: Shape
    taken: list[int]
    rows: list[list[int]]
    tokens: int


def _fill_one(
    groups: Sequence[Sequence[Segment]],
    needs: Sequence[int],
    widest: int,
    shape: Shape,
    alone: bool,
) -> _Filled | None:
    """Fills one chunk from the front; None when the first group does not fit.

    Args:
      groups: segments of each example.
      needs: minus their tokens, ascending.
      widest: segments of the example with most.
      shape: of the chunk.
      alone: at most one segment a row.
    """
    if -needs[0] > shape.length * min(widest, shape.rows):
        return None
    rows, taken, at = _Rows(shape, alone), [], []
    n, g, tokens = len(groups), 0, 0
    while g < n:
        found = rows.place(groups[g])
        if found is not None:
            taken.append(g)
            at.append(found)
            tokens -= needs[g]
        elif g == 0:
            return None
        # No segment of a group is larger than the freest row, or it cannot be placed.
        g = bisect_left(needs, -rows.largest() * widest, g + 1)
    return _Filled(shape, taken, at, tokens)


def layout(
    groups: Sequence[Sequence[Segment]],
    choices: Sequence[Shape],
    alone: bool = False,
) -> list[Chunk]:
    """Chunks that hold every group (the segments of one example).

    Longest first, each segment where the least is left over; each new chunk takes the
    shape that it fills best, so that the only chunk with much padding is the last.

    Args:
      groups: segments of each example.
      choices: chunk shapes.
      alone: at most one segment a row (layout "padded").

    Raises:
      PackError: an example fits no shape.
    """
    sized = sorted((-sum(s.length for s in g), g[0].item, g) for g in groups)
    left, needs = [g for _, _, g in sized], [n for n, _, _ in sized]
    widest = max(map(len, groups), default=0)
    chunks: list[Chunk] = []
    while left:
        options = [_fill_one(left, needs, widest, c, alone) for c in choices]
        if not any(options):
            raise RowsError(
                f"{-needs[0]} tokens in {len(left[0])} segments fit no chunk of "
                f"{list(choices)}: raise config.batch.chunk_tokens (all responses of "
                "an example must be in one chunk)"
            )
        best = max(filter(None, options), key=lambda o: (o.tokens, -o.shape.length))
        chunks.append(_chunk(best, left))
        for g in reversed(best.taken):
            del left[g], needs[g]
    return chunks


def _chunk(filled: _Filled, groups: Sequence[Sequence[Segment]]) -> Chunk:
    rows: list[list[Segment]] = [[] for _ in range(filled.shape.rows)]
    for g, at in zip(filled.taken, filled.rows, strict=True):
        for row, segment in zip(at, groups[g], strict=True):
            rows[row].append(segment)
    items = sorted(groups[g][0].item for g in filled.taken)
    return Chunk(filled.shape, tuple(map(tuple, rows)), tuple(items))
