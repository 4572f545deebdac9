"""Pairs of numbers by key, on disk: memory does not grow with how many there are.

>>> spill = Spill()
>>> for value, key in enumerate([7, 2**63, 7]):
...     spill.add(key, value)
>>> [values.tolist() for _, values in spill.groups()]
[[0, 2, 1]]
"""

import array
import os
import tempfile
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt64

RUN = 1 << 16  # pairs in memory at a time; 16 bytes each


class Spill:
    """(key, value) pairs, sorted by key in runs, in a file that has no name.

    Args:
      folder: of the file; the system's folder of temporary files by default.
      run: pairs in memory at a time.
    """

    def __init__(self, folder: str | os.PathLike | None = None, run: int = RUN):
        self._run, self._length = run, 0
        self._keys, self._values = array.array("Q"), array.array("Q")
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def add(self, key: int, value: int) -> None:
        """Adds a pair; both from 0 to 2^64 - 1."""
        self._keys.append(key)
        self._values.append(value)
        if len(self._keys) == self._run:
            self._write()

    def extend(
        self, keys: UInt64[np.ndarray, "n"], values: Int[np.ndarray, "n"]
    ) -> None:
        """Adds pairs, the first of them first."""
        at = 0
        while at < len(keys):
            part = slice(at, at + self._run - len(self._keys))
            for own, new in ((self._keys, keys), (self._values, values)):
                own.frombytes(np.asarray(new[part], np.uint64).tobytes())
            at = part.stop
            if len(self._keys) == self._run:
                self._write()

    def groups(self) -> Iterator[tuple[UInt64[np.ndarray, "n"], Int[np.ndarray, "n"]]]:
        """(keys, values) in groups of about a run; all pairs of a key are in one.

        A group is sorted by key, pairs of one key are in the order they came. Keys that
        are spread evenly over their 64 bits, as hashes are, make even groups.
        """
        self._write()
        if not self._length:
            return
        runs = list(self._runs())
        bits = (len(runs) - 1).bit_length()
        done = [0] * len(runs)
        for part in range(1, 2**bits + 1):
            last = np.uint64((part << (64 - bits)) - 1)
            ends = [int(np.searchsorted(keys, last, "right")) for keys, _ in runs]
            cut = [slice(*ab) for ab in zip(done, ends, strict=True)]
            keys, values = (
                np.concatenate([run[side][c] for run, c in zip(runs, cut, strict=True)])
                for side in (0, 1)
            )
            done, order = ends, np.argsort(keys, kind="stable")
            yield keys[order], values[order].astype(np.int64)

    def _runs(self) -> Iterator[UInt64[np.ndarray, "2 n"]]:
        flat = np.asarray(np.memmap(self._file, np.uint64, "r"))
        for at in range(0, self._length, self._run):
            yield flat[2 * at : 2 * (at + self._run)].reshape(2, -1)

    def _write(self) -> None:
        order = np.argsort(np.asarray(self._keys), kind="stable")
        for column in (self._keys, self._values):
            self._file.write(np.asarray(column)[order].tobytes())
        self._file.flush()
        self._length += len(order)
        del self._keys[:], self._values[:]


class Flags:
    """A number of 16 bits for each record, in a file that has no name.

    Args:
      folder: as of `Spill`.
      block: numbers in memory at a time.
    """

    def __init__(self, folder: str | os.PathLike | None = None, block: int = 1 << 16):
        self._block, self._length = block, 0
        self._last = array.array("H")
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def append(self, value: int) -> None:
        """Adds the number of the next record."""
        self._last.append(value)
        if len(self._last) == self._block:
            self._write()

    def blocks(self) -> Iterator[np.ndarray]:
        """All numbers, a block at a time: views, to be changed in place."""
        all = self.all()
        for at in range(0, len(all), self._block):
            yield all[at : at + self._block]

    def all(self) -> np.ndarray:
        """All numbers, mapped into memory; changing them changes the file."""
        self._write()
        if not self._length:
            return np.zeros(0, np.uint16)
        return np.asarray(np.memmap(self._file, np.uint16, "r+", shape=self._length))

    def _write(self) -> None:
        self._file.write(self._last.tobytes())
        self._file.flush()
        self._length += len(self._last)
        del self._last[:]
