"""What every reader gives: a `Source`, in the words of Hugging Face.

>>> Tensor((2,), "F32", lambda: finite(np.ones(2), "w", "x.bin")).read()
array([1., 1.])
"""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rm_jax import store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class WeightsError(ValueError):
    """Files that cannot be read as weights: names the file, why, and what would do."""


class Tensor(NamedTuple):
    """One tensor of a file.

    Attributes:
      shape: as `read` gives it.
      dtype: as the file has it: "F32", "F16", "BF16", "Q4_1", ...
      read: opens the file, reads the tensor and keeps nothing; float32, float16 or
        bfloat16, every value finite.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Source(NamedTuple):
    """A model in files. No tensor is read before its `read` is called.

    Attributes:
      where: the spec, for messages; of a hub id with its commit.
      config: config.json of Hugging Face, or the same words made from another format.
      tensors: by their names in Hugging Face; matrices are [out, in].
      tokenizer: reads the tokenizer with its chat template; None when there is none.
      files: local paths of what the tensors are read from.
    """

    where: str
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Callable[[], "PreTrainedTokenizerFast"] | None
    files: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Of the content of its files, in the order of their names."""
        digest = hashlib.sha256()
        for path in sorted(self.files, key=os.path.basename):
            stat = os.stat(path)
            one = _sha256(path, stat.st_size, stat.st_mtime_ns)
            digest.update(f"{os.path.basename(path)} {one}\n".encode())
        return digest.hexdigest()


@functools.cache
def _sha256(path: str, size: int, changed: int) -> str:
    """Of a file of this size and date: once a process, large models take minutes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(array: np.ndarray, name: str, path: str) -> np.ndarray:
    """The array.

    Raises:
      WeightsError: values that are NaN or infinite; it says how many.
    """
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise WeightsError(
            f"{path}: tensor {name}: {bad} of {array.size} values are NaN or infinite: "
            "fetch or convert the file again"
        )
    return array


def read_span(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from byte `offset` on.

    Raises:
      WeightsError: the file ends before.
    """
    with store.open_file(path) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise WeightsError(
            f"{path}: wanted {size} bytes at {offset}, there are {len(data)}: the file "
            "has changed since it was opened"
        )
    return data


def from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Q or K matrix (or bias) for interleaved rotary pairs -> for halves.

    In each head of size d, rows (2i, 2i + 1), which llama2.c and llama.cpp turn
    together, become rows (i, i + d/2), which Hugging Face does.
    """
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
