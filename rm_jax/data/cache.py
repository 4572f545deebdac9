"""The token cache: a data set tokenised once, memory-mapped by every run and host.

A cache is a folder named by sha256(source, audit policy, contract) that holds flat
binary arrays and meta.json, which is written last: a folder without it is unfinished
and is built again. Nothing in it changes after that.
"""

import array
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rm_jax import store
from rm_jax.data.contract import Encoded, Encoder, prompt_tokens
from rm_jax.data.schema import Record

VERSION = 2
# name -> dtype of the array; "tokens" takes two bytes where the vocabulary allows.
ARRAYS = {
    "branch_start": np.int64,  # [branches + 1] offsets into tokens
    "example_branch": np.int64,  # [examples + 1]; branch 0 of an example is its prompt
    "prompt_keep": np.int32,  # [responses] prompt tokens that fit before this response
    "ranks": np.int32,  # [responses], -1 unranked
    "gold": np.float32,  # [responses] known utility (the world's), NaN elsewhere
    "ratings": np.float32,  # [responses x attributes], NaN where not given
    "strength": np.float32,  # [examples], NaN where not given
    "soft": np.float32,
    "weight": np.float32,
    "prompt_hash": np.int64,  # [examples] cluster of the example
    "source": np.int32,  # [examples] index into meta's sources; 0 without a mixture
    "id_start": np.int64,  # [examples + 1] offsets into ids.txt
}
META = {
    "attributes", "audit", "bytes", "counts", "examples", "fields", "max_responses",
    "source", "sources", "token_dtype", "tokens", "truncation", "version",
}  # fmt: skip
# What only a write can meet.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
TYPECODES = {np.int64: "q", np.int32: "i", np.float32: "f"}


class CacheError(ValueError):
    """A cache that cannot be used: names the folder and what is wrong."""


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

    def write(folder: pathlib.Path) -> dict[str, Any]:
        meta = _write(records, encoder, folder)
        if not meta["examples"]:
            raise CacheError(f"no usable record was left; dropped: {meta['counts']}")
        return meta | {"audit": dict(audit), "source": dict(source)}

    return create(directory, write)


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
    scratch = final.with_name(f"{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    scratch.mkdir(parents=True)
    try:
        meta = {"version": VERSION, **write(scratch)}
        meta["bytes"] = {p.name: p.stat().st_size for p in sorted(scratch.glob("*.*"))}
        store.sync(scratch)  # what meta.json says is there must not be lost before it
        store.write_json(scratch / "meta.json", meta)
        if final.exists() and not (final / "meta.json").exists():
            shutil.rmtree(final)
        try:
            os.rename(scratch, final)
        except OSError:  # another process finished the same cache first
            if not (final / "meta.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return open_cache(final)


def _write(records, encoder: Encoder, folder: pathlib.Path) -> dict[str, Any]:
    dtype = np.uint16 if encoder.vocab_size <= 2**16 else np.int32
    names: list[str] | None = None
    columns = {name: array.array(TYPECODES[t]) for name, t in ARRAYS.items()}
    for name in ("branch_start", "example_branch", "id_start"):
        columns[name].append(0)
    examples = max_responses = 0
    with open(folder / "tokens.bin", "wb") as f, open(folder / "ids.txt", "wb") as g:
        for record, encoded in encoder.encode_many(records):
            if encoded is None:
                continue
            if names is None:
                names = sorted(record.ratings)
            _append(columns, record, encoded, names)
            for branch in (encoded.prompt, *encoded.responses):
                f.write(branch.astype(dtype).tobytes())
            g.write(record.id.encode())
            columns["id_start"].append(g.tell())
            examples += 1
            max_responses = max(max_responses, len(encoded.responses))
    for name, t in ARRAYS.items():
        (folder / f"{name}.bin").write_bytes(memoryview(np.asarray(columns[name], t)))
    return {
        "sources": [],
        "examples": examples,
        "max_responses": max_responses,
        "token_dtype": np.dtype(dtype).name,
        "tokens": columns["branch_start"][-1],
        "attributes": names or [],
        "counts": dict(encoder.counts),
        "fields": _fields(columns),
        "truncation": {
            "side": encoder.contract.truncation_side,
            "bos_id": encoder.bos_id,
        },
    }


def _append(columns, record: Record, encoded: Encoded, names: list[str]) -> None:
    k = len(encoded.responses)
    for branch in (encoded.prompt, *encoded.responses):
        columns["branch_start"].append(columns["branch_start"][-1] + len(branch))
    columns["example_branch"].append(columns["example_branch"][-1] + k + 1)
    columns["prompt_keep"].extend(int(n) for n in encoded.prompt_keep)
    columns["ranks"].extend(-1 if r is None else r for r in record.ranks)
    gold = record.meta.get("gold", [np.nan] * k)
    ok = isinstance(gold, list) and all(isinstance(g, int | float) for g in gold)
    if not ok or len(gold) != k:
        raise CacheError(
            f"record {record.id}: meta.gold is {gold!r:.60}: want {k} numbers, one a "
            "response"
        )
    columns["gold"].extend(gold)
    if sorted(record.ratings) != names:
        raise CacheError(
            f"record {record.id}: ratings {sorted(record.ratings)}, but the records "
            f"before it have {names}: give every record the same attributes"
        )
    for j in range(k):
        for name in names:
            value = record.ratings[name][j]
            columns["ratings"].append(np.nan if value is None else value)
    for name in ("strength", "soft"):
        value = getattr(record, name)
        columns[name].append(np.nan if value is None else value)
    columns["weight"].append(record.weight)
    columns["source"].append(0)
    text = json.dumps([list(m) for m in record.prompt])
    digest = hashlib.sha256(text.encode()).digest()[:8]
    columns["prompt_hash"].append(int.from_bytes(digest, "little", signed=True))


def _fields(columns) -> list[str]:
    """Optional label fields that at least one record has."""
    found = [n for n in ("strength", "soft", "gold") if not np.isnan(columns[n]).all()]
    if (np.asarray(columns["ranks"]) >= 0).any():
        found.append("ranks")
    if len(columns["ratings"]):
        found.append("ratings")
    return sorted(found)


def open_cache(directory: str | os.PathLike) -> TokenSet:
    """Memory-maps a finished cache.

    Raises:
      CacheError: a file is missing, has the wrong size or does not fit the others;
        delete the folder to rebuild.
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
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        found = meta.get("version") if isinstance(meta, dict) else None
        raise ValueError(f"{folder} has version {found}, this code reads {VERSION}")
    if missing := sorted(META - set(meta)):
        raise ValueError(f"{path}: misses {missing}")
    for name, size in meta["bytes"].items():
        found = (folder / name).stat().st_size if (folder / name).exists() else -1
        if found != size:
            raise ValueError(f"{folder / name}: {found} bytes, want {size}")
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
    for name in ("prompt_keep", "ranks", "gold"):
        lengths[name] = len(arrays[name]), branches - n
    for name in ("strength", "soft", "weight", "prompt_hash", "source"):
        lengths[name] = len(arrays[name]), n
    for name, (found, length) in lengths.items():
        if found != length:
            raise ValueError(f"{folder / name}.bin: {found} values, want {length}")


def _map(path: pathlib.Path, dtype) -> Float[np.ndarray, "n"] | Int[np.ndarray, "n"]:
    if path.stat().st_size == 0:
        return np.zeros((0,), dtype)
    return np.memmap(path, dtype, mode="r")
