"""The flat files of a token cache: which there are, and how they are written.

Values are written as they come, a block at a time, so that a data set of any size takes
the same memory.
"""

import array
import hashlib
import itertools
import json
import os
import pathlib
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Self

import numpy as np

from rm_jax.data.contract import Encoded
from rm_jax.data.schema import Record

BLOCK = 4096  # examples in memory before they are written
# name -> dtype of the array; "tokens" takes two bytes where the vocabulary allows.
ARRAYS = {
    "branch_start": np.int64,  # [branches + 1] offsets into tokens
    "example_branch": np.int64,  # [examples + 1]; branch 0 of an example is its prompt
    "prompt_keep": np.int32,  # [responses] prompt tokens that fit before this response
    "ranks": np.int32,  # [responses], -1 unranked
    "gold": np.float32,  # [responses] known utility (the world's), NaN elsewhere
    "ratings": np.float32,  # [responses x attributes], NaN where not given
    "reference_logp": np.float32,  # [responses], NaN where not given
    "step_start": np.int64,  # [responses + 1] offsets into the two below
    "step_end": np.int32,  # [steps] its last token, counted from the response's first
    "step_label": np.float32,  # [steps], NaN where not given
    "strength": np.float32,  # [examples], NaN where not given
    "soft": np.float32,
    "weight": np.float32,
    "prompt_hash": np.int64,  # [examples] cluster of the example
    "source": np.int32,  # [examples] index into meta's sources; 0 without a mixture
    "id_start": np.int64,  # [examples + 1] offsets into ids.txt
}
OFFSETS = ("branch_start", "example_branch", "step_start", "id_start")
_TYPECODES = {np.int64: "q", np.int32: "i", np.float32: "f"}
_CHUNK = 1 << 20  # bytes read at a time


class CacheError(ValueError):
    """A cache that cannot be made or used: names the folder and what is wrong."""


class ArrayWriter:
    """Writes tokens, identifiers and every array of a cache, record by record.

    Attributes:
      examples: records so far.
      max_responses: of the record with most.
      max_steps: of the response with most.
      attributes: names of the ratings, None before the first record.
      ends: name -> last offset, of the arrays of offsets.
      given: label -> records that have it; "pairs": two ranks, or a soft label.
    """

    def __init__(self, folder: pathlib.Path, token_dtype: type):
        self.examples = self.max_responses = self.max_steps = 0
        self.attributes: list[str] | None = None
        self.ends = dict.fromkeys(OFFSETS, 0)
        self.given: Counter[str] = Counter()
        self._folder, self._dtype = folder, token_dtype
        self._values = {name: array.array(_TYPECODES[t]) for name, t in ARRAYS.items()}
        for name in self.ends:
            self._values[name].append(0)

    def __enter__(self) -> Self:
        self._tokens = open(self._folder / "tokens.bin", "wb")  # noqa: SIM115
        self._ids = open(self._folder / "ids.txt", "wb")  # noqa: SIM115
        return self

    def __exit__(self, kind, *_) -> None:
        with self._tokens, self._ids:  # closed even if the rest cannot be written
            if kind is None:
                self._write()

    def add(self, record: Record, encoded: Encoded) -> None:
        """Adds a record and its tokens.

        Raises:
          CacheError: its gold or its ratings are not like those of the others.
        """
        self._check(record, len(encoded.responses))
        for branch in (encoded.prompt, *encoded.responses):
            self._tokens.write(branch.astype(self._dtype).tobytes())
            self._move("branch_start", len(branch))
        self._move("example_branch", 1 + len(encoded.responses))
        self._move("id_start", self._ids.write(record.id.encode()))
        self._add_labels(record, encoded)
        self._add_steps(record, encoded)
        self.given.update(_given(record, encoded))
        self.examples += 1
        self.max_responses = max(self.max_responses, len(encoded.responses))
        if self.examples % BLOCK == 0:
            self._write()

    def _check(self, record: Record, k: int) -> None:
        gold = record.meta.get("gold", [np.nan] * k)
        ok = isinstance(gold, list) and all(isinstance(g, int | float) for g in gold)
        if not ok or len(gold) != k:
            raise CacheError(
                f"record {record.id}: meta.gold is {gold!r:.60}: want {k} numbers, one "
                "a response"
            )
        if self.attributes is None:
            self.attributes = sorted(record.ratings)
        if sorted(record.ratings) != self.attributes:
            raise CacheError(
                f"record {record.id}: ratings {sorted(record.ratings)}, but the "
                f"records before it have {self.attributes}: give every record the same "
                "attributes"
            )

    def _add_labels(self, record: Record, encoded: Encoded) -> None:
        values, k = self._values, len(encoded.responses)
        number = lambda value: np.nan if value is None else value
        values["prompt_keep"].extend(encoded.prompt_keep.tolist())
        values["ranks"].extend(-1 if r is None else r for r in record.ranks)
        values["gold"].extend(record.meta.get("gold", [np.nan] * k))
        columns = [record.ratings[name] for name in self.attributes]
        values["ratings"].extend(number(c[j]) for j in range(k) for c in columns)
        logp = record.reference_logp or (None,) * k
        values["reference_logp"].extend(map(number, logp))
        values["strength"].append(number(record.strength))
        values["soft"].append(number(record.soft))
        values["weight"].append(record.weight)
        values["source"].append(0)
        text = json.dumps([list(m) for m in record.prompt])
        digest = hashlib.sha256(text.encode()).digest()[:8]
        values["prompt_hash"].append(int.from_bytes(digest, "little", signed=True))

    def _add_steps(self, record: Record, encoded: Encoded) -> None:
        """The steps that were not cut off: always the first of a response."""
        none = np.zeros(0, np.int32)
        for k in range(len(encoded.responses)):
            ends = encoded.steps[k] if encoded.steps else none
            steps = record.steps[k][: len(ends)] if len(ends) else ()
            self._values["step_end"].extend(ends.tolist())
            self._values["step_label"].extend(
                np.nan if step.label is None else step.label for step in steps
            )
            self._move("step_start", len(ends))
            self.max_steps = max(self.max_steps, len(ends))

    def _move(self, name: str, by: int) -> None:
        """Adds the offset that lies `by` after the last one."""
        self.ends[name] += by
        self._values[name].append(self.ends[name])

    def _write(self) -> None:
        """Writes what has gathered."""
        for name, values in self._values.items():
            with open(self._folder / f"{name}.bin", "ab") as f:
                f.write(values)
            del values[:]


def _given(record: Record, encoded: Encoded) -> Iterator[str]:
    """The labels that a record has."""
    ranked = sum(rank is not None for rank in record.ranks)
    labels = (
        step.label
        for own, ends in zip(record.steps, encoded.steps, strict=False)
        for step in own[: len(ends)]
    )
    ratings = itertools.chain.from_iterable(record.ratings.values())
    found = {
        "ranks": ranked > 0,
        "pairs": ranked > 1 or record.soft is not None,
        "soft": record.soft is not None,
        "strength": record.strength is not None,
        "ratings": any(rating is not None for rating in ratings),
        "steps": any(label is not None for label in labels),
        "reference_logp": any(logp is not None for logp in record.reference_logp),
        "gold": not np.isnan(record.meta.get("gold", [np.nan])).all(),
    }
    return (name for name, there in found.items() if there)


def checksum(path: str | os.PathLike) -> int:
    """Crc32 of a file: about 0.3 s a GB that is in memory."""
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(_CHUNK):
            crc = zlib.crc32(block, crc)
    return crc
