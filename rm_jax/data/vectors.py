"""Features of a token set on disk: a record an example, and chunks made of them.

A folder holds vectors.array_record and meta.json, which is written last. The record of
an example has a vector a scored position, response after response: the ends of its
steps where they are scored, then its own end; behind each, where the head reads it,
that of the prompt. They are float32, or bfloat16 where the trunk computes in it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from rm_jax import store
from rm_jax.data import pack
from rm_jax.data.cache import TokenSet
from rm_jax.data.loader import Loader
from rm_jax.data.order import Order, of_one
from rm_jax.data.scratch import scratch_folder
from rm_jax.types import FeatureBatch

VERSION = 1  # to be raised when the forward pass of trunks changes its numbers
FILE = "vectors.array_record"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# What decides a trunk's vectors of a token set.
CONTENT = ("branch_start", "example_branch", "prompt_keep", "step_start", "step_end")


class FeatureError(ValueError):
    """Features that cannot be written or read: names the folder, and what would do."""


class Positions:
    """The scored positions of a token set, numbered response after response.

    Args:
      data: the tokens.
      steps: whether the ends of steps are scored, too.

    Attributes:
      first: number of the first position of each response, [responses + 1].
      example: the same of each example, [examples + 1].
    """

    def __init__(self, data: TokenSet, steps: bool):
        n = len(data.arrays["ranks"])
        count = np.ones(n, np.int64)
        if steps:
            count += data.steps(np.arange(n))
        self.first = np.concatenate([[0], np.cumsum(count)])
        self._responses = data.arrays["example_branch"] - np.arange(len(data) + 1)
        self.example = self.first[self._responses]

    @property
    def most(self) -> int:
        """Positions of the example with most."""
        return int(np.diff(self.example).max())

    def at(
        self, example: Int[np.ndarray, "n"], k: np.ndarray, step: np.ndarray
    ) -> Int[np.ndarray, "n"]:
        """Numbers of positions that slot_ids name; step 0 is a response's end."""
        response = self._responses[example] + k
        end = self.first[response + 1] - 1
        return np.where(step > 0, self.first[response] + step - 1, end)

    def of(self, example: int) -> list[Int[np.ndarray, "n"]]:
        """Of each response of an example, its positions counted from the example's."""
        responses = self._responses[example : example + 2]
        ends = self.first[responses[0] : responses[1] + 1] - self.example[example]
        return [np.arange(a, b) for a, b in zip(ends, ends[1:], strict=False)]


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Vectors of every example of a token set, read as they are asked for."""

    folder: pathlib.Path
    meta: Mapping[str, Any]
    reader: Any
    positions: Int[np.ndarray, "examples"]  # scored ones

    def read(
        self, examples: Int[np.ndarray, "n"]
    ) -> list[Float[np.ndarray, "positions width"]]:
        """The vectors of these examples.

        Raises:
          FeatureError: the file is damaged.
        """
        examples = np.asarray(examples).tolist()
        with damaged(self.folder):
            records = self.reader.read(examples)
            dtype, width = DTYPES[self.meta["dtype"]], self.meta["width"]
            found = [np.frombuffer(r, dtype).reshape(-1, width) for r in records]
            for i, vectors in zip(examples, found, strict=True):
                if len(vectors) != self.positions[i]:
                    raise ValueError(
                        f"example {i} has {len(vectors)} vectors of {width} "
                        f"{dtype.name}, and {self.positions[i]} scored positions"
                    )
        return found


def key(data: TokenSet, trunk: Mapping[str, Any]) -> str:
    """Name of the folder of a set's features.

    Args:
      data: the tokens; labels and identifiers do not count.
      trunk: everything else that decides the vectors, as JSON.
    """
    digest = hashlib.sha256(json.dumps([VERSION, data.meta["truncation"]]).encode())
    digest.update(json.dumps(trunk, sort_keys=True).encode())
    for array in (data.tokens, *(data.arrays[name] for name in CONTENT)):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def writer(
    folder: pathlib.Path, meta: Mapping[str, Any]
) -> Iterator[Callable[[Float[np.ndarray, "positions width"]], None]]:
    """Writes a new folder, which appears whole or not at all.

    Yields:
      what takes the vectors of one example after the other.

    Raises:
      FeatureError: the folder cannot be written.
    """
    array_record, count = _array_record(), 0
    dtype = DTYPES[meta["dtype"]]
    _check_free(folder)  # now, not after hours
    try:
        with scratch_folder(folder) as scratch:
            # One record a group: an example is read alone.
            with _full():
                path = str(scratch / FILE)
                out = array_record.ArrayRecordWriter(path, "group_size:1")
            try:

                def write(vectors: Float[np.ndarray, "positions width"]) -> None:
                    nonlocal count
                    with _full():
                        out.write(vectors.astype(dtype).tobytes())
                    count += 1

                yield write
            finally:
                with _full():
                    out.close()
            store.sync(scratch)
            size = (scratch / FILE).stat().st_size
            whole = {"schema_version": VERSION, **meta, "examples": count}
            store.write_sealed(scratch / "meta.json", whole | {"bytes": size})
            try:
                os.rename(scratch, folder)
            except OSError:
                if not (folder / "meta.json").exists():
                    raise  # else another process was first
    except OSError as error:
        raise FeatureError(
            f"features {folder}: cannot be written: {error.strerror or error}: set "
            "config.data.cache_dir to a folder that can, with room"
        ) from error


def _check_free(folder: pathlib.Path) -> None:
    """Refuses a name that something else has than finished features."""
    if os.path.lexists(folder) and not (folder / "meta.json").exists():
        raise FeatureError(
            f"features {folder}: is in the way, and no finished one: delete it"
        )


@contextlib.contextmanager
def _full() -> Iterator[None]:
    """Re-raises what array_record says of a full disk as the OSError that it is."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())) from error


def open_features(folder: pathlib.Path, data: TokenSet) -> FeatureSet:
    """Opens what `writer` wrote for a token set.

    Raises:
      FeatureError: it is damaged or of another version; delete it to compute it again.
    """
    with damaged(folder):
        meta = store.read_json(os.fspath(folder / "meta.json"))
        if meta["schema_version"] != VERSION:
            raise ValueError(f"schema_version is not {VERSION}")
        if (folder / FILE).stat().st_size != meta["bytes"]:
            raise ValueError(f"{FILE} has not the {meta['bytes']} bytes written")
        reader = _array_record().ArrayRecordReader(str(folder / FILE))
        if not reader.num_records() == meta["examples"] == len(data):
            raise ValueError(f"{reader.num_records()} records for {len(data)} examples")
        positions = np.diff(Positions(data, meta["steps"]).example)
    return FeatureSet(folder, meta, reader, positions)


@contextlib.contextmanager
def damaged(folder: pathlib.Path) -> Iterator[None]:
    """Re-raises whatever damaged files raise, with the folder's name."""
    try:
        yield
    except (ImportError, PermissionError):
        raise
    except Exception as error:  # the C++ library has no kinds of its own
        raise FeatureError(
            f"features {folder}: damaged: {' '.join(str(error).split()):.200}: delete "
            "the folder and they are computed again"
        ) from error


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError(
            "config.model.features needs array_record: pip install 'rm_jax[data]'"
        ) from error
    return array_record_module


class FeatureLoader(Loader):
    """Chunks of features in place of tokens: one example a row.

    A step is one chunk: as many rows as it has examples, as many slots as the example
    with the most scored positions.

    Args:
      data: the tokens, whose labels are given.
      features: token set -> its features.
      examples: prompts a step.
      order: as of Loader.
      multiple: of the rows of a chunk: devices that they divide over.
      steps: as of Loader.
    """

    unit = "vectors"

    def __init__(
        self,
        data: TokenSet,
        features: Callable[[TokenSet], FeatureSet],
        examples: int,
        order: Order | None = None,
        multiple: int = 1,
        steps: bool = False,
    ):
        self.data, self.features, self.examples = data, features, examples
        self.order = order or of_one(len(data), seed=0)
        self.multiple, self.steps = multiple, steps
        self._positions = Positions(data, steps)
        rows, most = -(-examples // multiple) * multiple, self._positions.most
        self.shapes = (pack.Shape(rows, most, most),)

    @functools.cached_property
    def found(self) -> FeatureSet:
        """The features, which are computed when they are first asked for."""
        return self.features(self.data)

    def compute(self) -> None:
        """Computes the features now, if they are not on the disk."""
        _ = self.found

    def of(self, data: TokenSet) -> "FeatureLoader":
        """Lays out another set as this one; its features are computed."""
        return FeatureLoader(
            data, self.features, self.examples, None, self.multiple, self.steps
        )

    def layout(self, items: Sequence[pack.Item]) -> list[pack.Chunk]:
        """A row an example, in their order."""
        (shape,), counts = self.shapes, np.diff(self._positions.example)
        chunks = []
        for first in range(0, len(items), shape.rows):
            own = range(first, min(first + shape.rows, len(items)))
            rows = []
            for i in own:
                n, k = int(counts[items[i].example]), len(items[i].order)
                rows.append((pack.Segment(i, 0, tuple(range(k)), n, n - k),))
            rows += [()] * (shape.rows - len(own))
            chunks.append(pack.Chunk(shape, tuple(rows), tuple(own)))
        return chunks

    def fill(self, items: Sequence[pack.Item], chunk: pack.Chunk) -> FeatureBatch:
        """The vectors of a chunk, a response's in the place that its item gives it."""
        rows, slots = chunk.shape.rows, chunk.shape.slots
        own = [items[i] for i in chunk.items]
        found = self.found.read(np.array([item.example for item in own]))
        width = self.found.meta["width"]
        vectors = np.zeros((rows, slots, width), np.float32)
        lengths = np.zeros((rows, slots), np.float32)
        slot_ids = np.full((rows, slots, 3), -1, np.int32)
        for row, (item, vector) in enumerate(zip(own, found, strict=True)):
            at = self._positions.of(item.example)
            tokens, used = self.data.lengths(item.example), 0
            for column, j in enumerate(item.order):
                n = len(at[j])
                here = slice(used, used + n)
                vectors[row, here] = vector[at[j]]
                lengths[row, here] = tokens[j]
                slot_ids[row, here, :2] = row, column
                slot_ids[row, here, 2] = np.arange(1, n + 1) % n  # 0, the end, is last
                used += n
        d = self.found.meta["d_model"]
        return FeatureBatch(vectors[..., :d], vectors[..., d:], lengths, slot_ids)
