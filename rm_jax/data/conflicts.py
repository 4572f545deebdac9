"""Which records prefer one of two texts, and which prefer the other.

Only texts that several records have are compared: work and disk grow with the
responses, not with their pairs.

>>> conflicts = Conflicts()
>>> conflicts.add(0, [(7, 0), (8, 1)])
>>> conflicts.add(1, [(9, 0), (8, 1)])
>>> conflicts.add(2, [(8, 0), (7, 1)])
>>> sorted(int(i) for records in conflicts.found() for i in records)
[0, 2]
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt64

from rm_jax.data.spill import Spill

_RANK = 24  # bits of a rank, below those of its record or text
_SPREAD = 0x9E3779B97F4A7C15  # odd, so multiplying by it loses nothing modulo 2^64
_BACK = pow(_SPREAD, -1, 2**64)


class Conflicts:
    """Texts with their ranks, of one record after the other.

    On disk are 16 bytes for each text of a record, 16 more where another record has it,
    too, and 16 for every pair of such texts in a record.

    Args:
      folder: of temporary files, as of `Spill`.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self._folder = folder
        self._texts = Spill(folder)

    def add(self, record: int, said: Iterable[tuple[int, int]]) -> None:
        """Adds a record.

        Args:
          record: its number, larger than those before, below 2^40.
          said: (hash of prompt and text, rank below 2^24) of its responses.
        """
        for text, rank in dict.fromkeys(said):
            self._texts.add(text, record << _RANK | rank)

    def found(self) -> Iterator[Int[np.ndarray, "n"]]:
        """Records of a pair of texts that is preferred in both directions.

        A record that contradicts itself is one. Some come more than once.
        """
        shared, pairs = Spill(self._folder), Spill(self._folder)
        texts = 0  # shared so far
        for keys, values in self._texts.groups():
            records, ranks = _split(values)
            again = (keys[1:] == keys[:-1]) & (records[1:] == records[:-1])
            yield records[1:][again]  # one text with two ranks
            _, first, text, n = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            several = records[first] != records[first + n - 1]
            number = (texts + np.cumsum(several))[text]
            texts += int(several.sum())
            spread = records.astype(np.uint64) * np.uint64(_SPREAD)
            many = several[text]
            shared.extend(spread[many], (number << _RANK | ranks)[many])
        for spread, values in shared.groups():
            for apart in range(1, len(spread)):
                same = spread[apart:] == spread[:-apart]
                if not same.any():  # no record has more of them
                    break
                records = spread[apart:][same] * np.uint64(_BACK)
                keys, differ = _pairs(values[:-apart][same], values[apart:][same])
                pairs.extend(keys[differ], records[differ])
        for keys, records in pairs.groups():
            seen = np.unique(keys) >> np.uint64(1)  # both directions are neighbours
            both = seen[1:][seen[1:] == seen[:-1]]
            yield records[np.isin(keys >> np.uint64(1), both)]


def _split(
    values: Int[np.ndarray, "n"],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """(record or text, rank)."""
    return values >> _RANK, values & (1 << _RANK) - 1


def _pairs(
    a: Int[np.ndarray, "n"], b: Int[np.ndarray, "n"]
) -> tuple[UInt64[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """A key for each two (text, rank), and whether one text is preferred to another.

    The keys of the two directions differ in their last bit; with up to 2^31 shared
    texts no other pair has them.
    """
    (text, rank), (other, than) = _split(a), _split(b)
    low, high = np.minimum(text, other), np.maximum(text, other)
    pair = (low << 32 | high << 1).astype(np.uint64) * np.uint64(_SPREAD)
    forward = (text < other) == (rank < than)
    return pair | forward.astype(np.uint64), (text != other) & (rank != than)
