"""The token cache: a data set tokenised once, memory-mapped by every run and host.

A cache is a folder named by sha256(source, audit policy, contract) that holds flat
binary arrays and meta.json, which is written last: a folder without it is unfinished
and is built again. Nothing in it changes after that.
"""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rm_jax import store
from rm_jax.data.arrays import ARRAYS, ArrayWriter, CacheError, checksum
from rm_jax.data.contract import Encoder, prompt_tokens
from rm_jax.data.schema import Record
from rm_jax.data.scratch import scratch_folder

VERSION = 4
META = {
    "attributes", "audit", "bytes", "counts", "crc32", "examples", "given",
    "max_responses", "max_steps", "schema_version", "source", "sources", "token_dtype",
    "tokens", "truncation",
}  # fmt: skip
# What only a write can meet.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Responses(NamedTuple):
    """Where the responses of some examples are.

    Attributes:
      count: how many each example has.
      branch: of each response, an index into branch_start.
      response: of each response, an index into arrays like ranks.
    """

    count: Int[np.ndarray, "n"]
    branch: Int[np.ndarray, "r"]
    response: Int[np.ndarray, "r"]


@dataclasses.dataclass(frozen=True)
class TokenSet:
    """A tokenised data set; every array is memory-mapped. Shapes as in ARRAYS."""

    directory: pathlib.Path
    meta: Mapping[str, Any]
    tokens: Int[np.ndarray, "tokens"]
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["weight"])

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources of a mixture; empty where there is only one."""
        return tuple(self.meta["sources"])

    @property
    def max_responses(self) -> int:
        """K of the example with the most responses."""
        return self.meta["max_responses"]

    def count(self, i: int) -> int:
        """Responses of example i."""
        first, last = self.arrays["example_branch"][i : i + 2]
        return int(last - first) - 1

    def responses(self, examples: Int[np.ndarray, "n"]) -> "Responses":
        """The responses of some examples, one after the other."""
        first, count = self.arrays["example_branch"][examples], self.counts(examples)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        branch = np.repeat(first + 1, count) + within
        return Responses(count, branch, branch - np.repeat(examples + 1, count))

    def counts(self, examples: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Responses of each of these examples."""
        first = self.arrays["example_branch"]
        return first[examples + 1] - first[examples] - 1

    def steps(self, responses: Int[np.ndarray, "r"]) -> Int[np.ndarray, "r"]:
        """Steps of each of these responses (indices into arrays like ranks)."""
        start = self.arrays["step_start"]
        return start[responses + 1] - start[responses]

    def branch(self, i: int, j: int) -> Int[np.ndarray, "t"]:
        """Tokens of branch j of example i: 0 is the whole prompt, k the response k."""
        b = int(self.arrays["example_branch"][i]) + j
        start, stop = self.arrays["branch_start"][b : b + 2]
        return self.tokens[start:stop]

    def lengths(self, i: int) -> Int[np.ndarray, "k"]:
        """Tokens of each response of example i."""
        first, last = self.arrays["example_branch"][i : i + 2]
        return np.diff(self.arrays["branch_start"][first + 1 : last + 1])

    def per_response(self, name: str, i: int) -> np.ndarray:
        """Row of a per-response array that belongs to example i."""
        first = int(self.arrays["example_branch"][i]) - i
        return self.arrays[name][first : first + self.count(i)]

    def prompt(self, i: int, keep: int) -> Int[np.ndarray, "t"]:
        """Prompt of example i cut to `keep` tokens by the contract's rule."""
        meta = self.meta["truncation"]
        return prompt_tokens(self.branch(i, 0), keep, meta["side"], meta["bos_id"])

    def ids(self, n: int) -> list[str]:
        """Identifiers of the first n examples."""
        starts = self.arrays["id_start"][: n + 1]
        with open(self.directory / "ids.txt", "rb") as f:
            text = f.read(int(starts[-1]))
        return [text[a:b].decode() for a, b in zip(starts, starts[1:], strict=False)]

    def ids_at(self, index: Int[np.ndarray, "n"]) -> list[str]:
        """Identifiers of these examples."""
        starts = self.arrays["id_start"]
        with open(self.directory / "ids.txt", "rb") as f:
            out = []
            for start, stop in zip(starts[index], starts[index + 1], strict=True):
                f.seek(start)
                out.append(f.read(stop - start).decode())
        return out

    def id_bytes(self, first: int, stop: int) -> Int[np.ndarray, "bytes"]:
        """Identifiers of examples first ... stop - 1, one after the other, as bytes."""
        begin, end = self.arrays["id_start"][[first, stop]]
        with open(self.directory / "ids.txt", "rb") as f:
            f.seek(begin)
            return np.frombuffer(f.read(int(end - begin)), np.uint8)

    def id(self, i: int) -> str:
        """Identifier of example i in its source."""
        start, stop = self.arrays["id_start"][i : i + 2]
        with open(self.directory / "ids.txt", "rb") as f:
            f.seek(start)
            return f.read(stop - start).decode()


def key(fingerprint: str, policy: Mapping[str, str], contract_sha: str) -> str:
    """Name of the cache folder of a source under an audit policy and a contract."""
    text = json.dumps(
        [VERSION, fingerprint, dict(policy), contract_sha], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def joined_key(sets: Mapping[str, TokenSet]) -> str:
    """Name of the cache folder of a mixture of these sources."""
    text = json.dumps([VERSION, [[n, s.directory.name] for n, s in sets.items()]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def build(
    records: Iterable[Record],
    encoder: Encoder,
    directory: str | os.PathLike,
    audit: Mapping[str, Any],
    source: Mapping[str, Any],
) -> TokenSet:
    """Tokenises `records` into `directory`, which appears whole or not at all.

    Args:
      records: what to tokenise.
      encoder: a fresh one; its counts are kept in meta.json.
      directory: the cache folder.
      audit: findings, kept in meta.json.
      source: what was read, kept in meta.json; read after the last record.

    Raises:
      CacheError: no record was left to write, or the folder cannot be written.
    """

    return create(
        directory, lambda folder: tokenised(records, encoder, folder, audit, source)
    )


def create(
    directory: str | os.PathLike, write: Callable[[pathlib.Path], Mapping[str, Any]]
) -> TokenSet:
    """A new cache of what `write` puts in a folder; it returns its meta but for sizes.

    Raises:
      CacheError: the folder cannot be written; or of `write`.
    """
    final = pathlib.Path(directory)
    try:
        return _create(final, write)
    except OSError as error:
        first = error.__cause__ if isinstance(error.__cause__, OSError) else error
        if first.filename is None and first.errno == errno.EIO:
            raise CacheError(
                f"token cache {final}: cannot be built: {first.strerror}: its disk "
                "fails, or that of the source"
            ) from error
        if not _is_writing(first, final):
            raise
        raise CacheError(
            f"token cache {final}: cannot be written: {first.strerror}: set "
            "config.data.cache_dir to a folder that can, with room"
        ) from error


def _is_writing(error: OSError, folder: pathlib.Path) -> bool:
    """Whether it came from writing the cache, not from reading the source."""
    if error.filename is None:
        return error.errno in _UNWRITABLE
    path = pathlib.Path(error.filename)
    inside = f"{path}/".startswith((f"{folder}/", f"{folder}."))  # or in its scratch
    return inside or path in folder.parents


def _create(final: pathlib.Path, write: Callable) -> TokenSet:
    with scratch_folder(final) as scratch:
        meta = {"schema_version": VERSION, **write(scratch)}
        files = sorted(scratch.glob("*.*"))
        meta["bytes"] = {path.name: path.stat().st_size for path in files}
        meta["crc32"] = {path.name: checksum(path) for path in files}
        store.sync(scratch)  # what meta.json says is there must not be lost before it
        store.write_sealed(scratch / "meta.json", meta)
        if final.exists() and not (final / "meta.json").exists():
            shutil.rmtree(final)
        try:
            os.rename(scratch, final)
        except OSError:  # another process finished the same cache first
            if not (final / "meta.json").exists():
                raise
    return open_cache(final)


def tokenised(
    records: Iterable[Record],
    encoder: Encoder,
    folder: pathlib.Path,
    audit: Mapping[str, Any],
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the files of a cache but meta.json, whose content it returns.

    Args: as of `build`.

    Raises:
      CacheError: no record was left to write.
    """
    dtype = np.uint16 if encoder.vocab_size <= 2**16 else np.int32
    with ArrayWriter(folder, dtype) as arrays:
        for record, encoded in encoder.encode_many(records):
            if encoded is not None:
                arrays.add(record, encoded)
    if not arrays.examples:
        raise CacheError(f"no usable record was left; dropped: {dict(encoder.counts)}")
    return {
        "audit": dict(audit),
        "source": dict(source),
        "sources": [],
        "examples": arrays.examples,
        "max_responses": arrays.max_responses,
        "max_steps": arrays.max_steps,
        "token_dtype": np.dtype(dtype).name,
        "tokens": arrays.ends["branch_start"],
        "attributes": arrays.attributes or [],
        "counts": dict(encoder.counts),
        "given": dict(sorted(arrays.given.items())),
        "truncation": {
            "side": encoder.contract.truncation_side,
            "bos_id": encoder.bos_id,
        },
    }


def open_cache(directory: str | os.PathLike) -> TokenSet:
    """Memory-maps a finished cache, after every file of it was read and compared.

    Raises:
      CacheError: a file is missing, is not what was written, in size or in any bit, or
        does not fit the others; delete the folder to rebuild.
    """
    folder = pathlib.Path(directory)
    try:
        return _open(folder)
    except PermissionError:
        raise
    except (OSError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = str(error)
        if str(folder) not in why:  # of Python or numpy: a value of a wrong kind
            why = f"{folder}: damaged: {type(error).__name__}: {why}"
        raise CacheError(
            f"token cache {why}: delete {folder} and it is built again"
        ) from None


def _open(folder: pathlib.Path) -> TokenSet:
    path = folder / "meta.json"
    meta = store.read_json(path)
    if not isinstance(meta, dict) or meta.get("schema_version") != VERSION:
        found = meta.get("schema_version") if isinstance(meta, dict) else None
        raise ValueError(
            f"{folder} has schema_version {found}, this code reads {VERSION}"
        )
    if missing := sorted(META - set(meta)):
        raise ValueError(f"{path}: misses {missing}")
    for name, size in meta["bytes"].items():
        found = (folder / name).stat().st_size if (folder / name).exists() else -1
        if found != size:
            raise ValueError(f"{folder / name}: {found} bytes, want {size}")
    for name in meta["bytes"]:
        found, want = checksum(folder / name), meta["crc32"].get(name)
        if found != want:
            raise ValueError(
                f"{folder / name}: damaged: its crc32 is {found}, want {want}"
            )
    arrays = {name: _map(folder / f"{name}.bin", t) for name, t in ARRAYS.items()}
    attributes = len(meta["attributes"])
    arrays["ratings"] = arrays["ratings"].reshape(len(arrays["ranks"]), attributes)
    tokens = _map(folder / "tokens.bin", np.dtype(meta["token_dtype"]))
    _check_offsets(folder, meta, tokens, arrays)
    return TokenSet(folder, meta, tokens, arrays)


def _check_offsets(folder: pathlib.Path, meta, tokens, arrays) -> None:
    """Whether arrays are as long as meta.json and the offsets into them say."""
    n, branches = meta["examples"], len(arrays["branch_start"]) - 1
    ends = {
        "branch_start": (branches + 1, len(tokens)),
        "example_branch": (n + 1, branches),
        "step_start": (branches - n + 1, len(arrays["step_end"])),
        "id_start": (n + 1, (folder / "ids.txt").stat().st_size),
    }
    for name, (length, end) in ends.items():
        found = arrays[name]
        if len(found) != length or found[0] != 0 or found[-1] != end:
            raise ValueError(
                f"{folder / name}.bin: {len(found)} offsets, first {found[:1]}, last "
                f"{found[-1:]}: want {length} from 0 to {end}"
            )
    lengths = {"tokens": (len(tokens), meta["tokens"])}
    lengths["step_label"] = len(arrays["step_label"]), len(arrays["step_end"])
    for name in ("prompt_keep", "ranks", "gold", "reference_logp"):
        lengths[name] = len(arrays[name]), branches - n
    for name in ("strength", "soft", "weight", "prompt_hash", "source"):
        lengths[name] = len(arrays[name]), n
    for name, (found, length) in lengths.items():
        if found != length:
            raise ValueError(f"{folder / name}.bin: {found} values, want {length}")


def _map(path: pathlib.Path, dtype) -> Float[np.ndarray, "n"] | Int[np.ndarray, "n"]:
    if path.stat().st_size == 0:
        return np.zeros((0,), dtype)
    # As a plain array: a memmap's own indexing is several times slower.
    return np.asarray(np.memmap(path, dtype, mode="r"))
