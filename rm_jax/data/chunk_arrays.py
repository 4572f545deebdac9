"""The arrays of a chunk: what a layout says, filled with tokens and labels.

Every chunk is one gather: its pieces (prompts and responses) in the order of its rows
become flat indices, from where in the token file to where in the chunk.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rm_jax.data.cache import TokenSet
from rm_jax.data.pack import Chunk, Item, Segment
from rm_jax.types import Labels, PackedBatch


def fill(
    data: TokenSet, items: Sequence[Item], chunk: Chunk, rows: slice = slice(None)
) -> PackedBatch:
    """The arrays of a chunk, or of the rows that this host holds."""
    wanted = chunk.rows[rows]
    shape = (len(wanted), chunk.shape.length)
    out = PackedBatch(
        *(np.zeros(shape, np.int32) for _ in range(4)),
        slots=np.zeros((len(wanted), chunk.shape.slots), np.int32),
        slot_ids=np.full((len(wanted), chunk.shape.slots, 3), -1, np.int32),
    )
    placed = [s for row in wanted for s in row]
    if placed:
        pieces = _Pieces(data, items, placed, [len(row) for row in wanted])
        pieces.put_tokens(data, out)
        pieces.put_slots(chunk, placed, out)
    return out


class _Pieces:
    """Prompts and responses of some rows, in their order: a prompt, its responses, ...

    Attributes, each one a piece:
      row: where it is.
      column: first of its tokens there.
      length: tokens.
      number: of its segment in the row, from 1.
      branch: 0 for a prompt, else of the response in the segment, from 1.
      position: of its first token: 0, or the length of the prompt before it.
      source: where its tokens begin in the token file.
      head: where the whole prompt begins, if its first token stays when it is cut.
    """

    def __init__(
        self,
        data: TokenSet,
        items: Sequence[Item],
        placed: Sequence[Segment],
        in_row: Sequence[int],
    ):
        pieces = np.array([1 + len(s.columns) for s in placed])
        prompt = np.cumsum(pieces) - pieces  # which pieces are prompts
        keep = np.array([s.keep for s in placed])
        self.branch = _within(pieces)
        self.position = np.where(self.branch > 0, np.repeat(keep, pieces), 0)
        in_row = np.array(in_row)
        self.row = np.repeat(np.repeat(np.arange(len(in_row)), in_row), pieces)
        self.number = np.repeat(1 + _within(in_row), pieces)
        self._find(data, items, placed, pieces, prompt, keep)
        end = np.cumsum(self.length)
        self._begin = end - self.length  # in all the rows, without padding
        first = np.searchsorted(self.row, np.arange(len(in_row)))
        self._first = np.minimum(first, len(self.row) - 1)  # an empty row has none
        self.column = self._begin - self._begin[self._first][self.row]

    def _find(self, data, items, placed, pieces, prompt, keep) -> None:
        """Where the pieces are in the token file; cuts as `contract.prompt_tokens`."""
        example = np.array([items[s.item].example for s in placed])
        branch = np.repeat(data.arrays["example_branch"][example], pieces)
        branch[self.branch > 0] += [
            items[s.item].order[c] + 1 for s in placed for c in s.columns
        ]
        starts = data.arrays["branch_start"]
        self.source = starts[branch]
        self.length = starts[branch + 1] - self.source
        self.head = self.source[prompt]
        rule = data.meta["truncation"]
        if rule["side"] == "left":
            self.source[prompt] += self.length[prompt] - keep
        if rule["bos_id"] is None:
            self.head = self.source[prompt]
        self.length[prompt] = keep

    def put_tokens(self, data: TokenSet, out: PackedBatch) -> None:
        """Fills tokens, positions, segments and branches."""
        each = np.arange(self.length.sum())
        spread = lambda values: np.repeat(values, self.length)
        width = out.tokens.shape[1]
        to = each + spread(self.row * width + self.column - self._begin)
        tokens = data.tokens
        out.tokens.ravel()[to] = tokens[each + spread(self.source - self._begin)]
        prompt = self.branch == 0
        out.tokens[self.row[prompt], self.column[prompt]] = tokens[self.head]
        out.positions.ravel()[to] = each + spread(self.position - self._begin)
        out.segments.ravel()[to] = spread(self.number)
        out.branches.ravel()[to] = spread(self.branch)

    def put_slots(
        self, chunk: Chunk, placed: Sequence[Segment], out: PackedBatch
    ) -> None:
        """Fills the scored positions: the last token of each response."""
        response = np.flatnonzero(self.branch)
        row = self.row[response]
        slot = np.arange(len(row)) - np.searchsorted(row, row)
        out.slots[row, slot] = (self.column + self.length - 1)[response]
        item = [s.item for s in placed for _ in s.columns]
        out.slot_ids[row, slot, 0] = np.searchsorted(chunk.items, item)
        out.slot_ids[row, slot, 1] = [c for s in placed for c in s.columns]
        out.slot_ids[row, slot, 2] = 0


def labels(data: TokenSet, items: Sequence[Item], chunk: Chunk, k: int) -> Labels:
    """Labels of a chunk, padded to rows x slots examples and k responses."""
    e, n = chunk.shape.rows * chunk.shape.slots, len(chunk.items)
    example = np.array([items[i].example for i in chunk.items])
    order = np.array([j for i in chunk.items for j in items[i].order])
    count, branch, response = data.responses(example)
    row, column = np.repeat(np.arange(n), count), _within(count)
    shift = order - column  # to the response that comes in this place
    branch, response = branch + shift, response + shift
    starts = data.arrays["branch_start"]

    def placed(values: np.ndarray, empty: float, dtype: type) -> np.ndarray:
        out = np.full((e, k, *values.shape[1:]), empty, dtype)
        out[row, column] = values
        return out

    def one_each(values: np.ndarray, empty: float, dtype: type) -> np.ndarray:
        out = np.full((e,), empty, dtype)
        out[:n] = values
        return out

    soft = data.arrays["soft"][example]
    turned = (count == 2) & (order[np.cumsum(count) - count] == 1)
    return Labels(
        ranks=placed(data.arrays["ranks"][response], -1, np.int32),
        present=placed(np.ones(len(row)), 0, np.int32),
        soft=one_each(np.where(turned, 1 - soft, soft), np.nan, np.float32),
        strength=one_each(data.arrays["strength"][example], np.nan, np.float32),
        weight=one_each(data.arrays["weight"][example], 0, np.float32),
        ratings=placed(data.arrays["ratings"][response], np.nan, np.float32),
        steps=np.full((e, k, 0), -1, np.int32),
        lengths=placed(starts[branch + 1] - starts[branch], 0, np.int32),
        ids=one_each(example, -1, np.int32),
        source=one_each(data.arrays["source"][example], 0, np.int32),
        reference_logp=np.full((e, k), np.nan, np.float32),
    )


def _within(counts: Int[np.ndarray, "n"]) -> Int[np.ndarray, "total"]:
    """0 ... count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
