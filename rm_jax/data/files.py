"""Rows of local files: .jsonl, .json, both also .gz, and .parquet.

>>> import pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp(), "a.jsonl")
>>> _ = path.write_text('{"a": 1}\\n\\n{"a": 2}\\n')
>>> list(read_rows(str(path)))
[(1, {'a': 1}), (3, {'a': 2})]
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from rm_jax import store
from rm_jax.data.schema import RowError, shown

# (number, row), or the error where the row itself cannot be read.
Rows = Iterator[tuple[int, Any]]


def is_data_file(path: str) -> bool:
    """Whether the name ends like a file of rows."""
    return _suffix(path) in _READERS


def read_rows(path: str) -> Rows:
    """Rows of a file with their numbers, from 1: the line, or the position in a list.

    Blank lines of .jsonl are no rows. A .json file is a list of objects, or an object
    that holds exactly one list.

    Args:
      path: a file.

    Yields:
      (number, row), or (number, RowError) for a line that is not JSON.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown kind of file, or the whole file cannot be read.
    """
    if not store.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    if not is_data_file(path):
        raise ValueError(f"{path}: unknown kind of file; known: {sorted(_READERS)}")
    try:
        yield from _READERS[_suffix(path)](path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or cut off .gz file: {error}") from error


def _suffix(path: str) -> str:
    stem = path.removesuffix(".gz")
    return "." + stem.rpartition(".")[2] + path[len(stem) :]


def _open(path: str) -> IO[bytes]:
    file = store.open_file(path)
    return gzip.open(file) if path.endswith(".gz") else file


def _loads(text: bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _jsonl(path: str) -> Rows:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, _loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                yield number, RowError(f"{path}:{number}", "line", f"not JSON: {error}")


def _json(path: str) -> Rows:
    with _open(path) as file:
        try:
            value = _loads(file.read())
        except ValueError as error:
            raise ValueError(
                f"{path}: not JSON: {error}; one object a line is called .jsonl"
            ) from error
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        if len(lists) != 1:
            raise ValueError(
                f"{path}: want a list, or an object with one list; its keys are "
                f"{sorted(value)}"
            )
        value = lists[0]
    if not isinstance(value, list):
        raise ValueError(f"{path}: want a list of objects, got {shown(value)}")
    yield from enumerate(value, start=1)


def _parquet(path: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with _open(path) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: damaged or no parquet file: {why}") from error


_READERS: dict[str, Callable[[str], Rows]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
}
