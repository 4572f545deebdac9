"""The arrays of a chunk: what a layout says, filled with tokens and labels.

Every chunk is one gather: its pieces (prompts and responses) in the order of its rows
become flat indices, from where in the token file to where in the chunk.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from rm_jax.data.cache import TokenSet
from rm_jax.data.pack import Chunk, Item, Segment
from rm_jax.types import Labels, PackedBatch


def fill(
    data: TokenSet,
    items: Sequence[Item],
    chunk: Chunk,
    rows: slice = slice(None),
    steps: bool = False,
) -> PackedBatch:
    """The arrays of a chunk, or of the rows that this host holds.

    Args:
      data: the tokens.
      items: the examples of the step.
      chunk: what is where.
      rows: wanted.
      steps: whether the ends of steps are scored, too, as when the chunk was laid out.
    """
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
        pieces.put_slots(data, chunk, placed, out, steps)
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
      response: of each response, an index into arrays like ranks.
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
        # Up to the responses of example i there are i + 1 branches that are prompts.
        prompts = np.repeat(example, [len(s.columns) for s in placed]) + 1
        self.response = branch[self.branch > 0] - prompts
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
        self,
        data: TokenSet,
        chunk: Chunk,
        placed: Sequence[Segment],
        out: PackedBatch,
        steps: bool,
    ) -> None:
        """Fills the scored positions: last tokens of steps, then of their response."""
        response = np.flatnonzero(self.branch)
        here = data.steps(self.response) if steps else np.zeros_like(response)
        count = here + 1  # the slots of a response
        step = 1 + _within(count)
        is_end = step == np.repeat(count, count)
        last = np.repeat((self.length - 1)[response], count)
        at = np.repeat(data.arrays["step_start"][self.response], count)[~is_end]
        last[~is_end] = data.arrays["step_end"][at + step[~is_end] - 1]
        row = np.repeat(self.row[response], count)
        slot = np.arange(len(row)) - np.searchsorted(row, row)
        out.slots[row, slot] = np.repeat(self.column[response], count) + last
        item = np.searchsorted(chunk.items, [s.item for s in placed for _ in s.columns])
        column = np.array([c for s in placed for c in s.columns])
        out.slot_ids[row, slot, 0] = np.repeat(item, count)
        out.slot_ids[row, slot, 1] = np.repeat(column, count)
        out.slot_ids[row, slot, 2] = np.where(is_end, 0, step)


def labels(
    data: TokenSet,
    items: Sequence[Item],
    chunk: Chunk,
    e: int,
    k: int,
    steps: bool = False,
) -> Labels:
    """Labels of a chunk, padded to e examples and k responses.

    With `steps` there are as many steps a response as slots a row, else none.
    """
    p, n = chunk.shape.slots if steps else 0, len(chunk.items)
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
        steps=placed(_step_labels(data, response, p), -1, np.float32),
        lengths=placed(starts[branch + 1] - starts[branch], 0, np.int32),
        ids=one_each(example, -1, np.int32),
        source=one_each(data.arrays["source"][example], 0, np.int32),
        reference_logp=placed(
            data.arrays["reference_logp"][response], np.nan, np.float32
        ),
    )


def _step_labels(
    data: TokenSet, response: Int[np.ndarray, "r"], p: int
) -> Float[np.ndarray, "r p"]:
    """Labels of the steps of each response; -1 where not given."""
    out = np.full((len(response), p), -1, np.float32)
    if p:
        count = data.steps(response)
        row, step = np.repeat(np.arange(len(response)), count), _within(count)
        at = np.repeat(data.arrays["step_start"][response], count) + step
        label = data.arrays["step_label"][at]
        out[row, step] = np.where(np.isnan(label), -1, label)
    return out


def _within(counts: Int[np.ndarray, "n"]) -> Int[np.ndarray, "total"]:
    """0 ... count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
