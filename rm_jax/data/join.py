"""Joins the token sets of a mixture's sources into one, a token cache like any other.

The sources' examples are interleaved evenly, each source in its own order, so that the
first n examples hold every source by its share.
"""

import contextlib
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from jaxtyping import Int, Shaped

from rm_jax.data import cache
from rm_jax.data.arrays import ARRAYS, OFFSETS
from rm_jax.data.cache import CacheError, TokenSet

BLOCK = 65_536  # examples in memory at a time
# A source's values in a block, and how many of them belong to each example.
Piece = tuple[Shaped[np.ndarray, "values *"], Int[np.ndarray, "examples"]]


def join(sets: Mapping[str, TokenSet], directory: str | os.PathLike) -> TokenSet:
    """One token set of several, which appears whole or not at all.

    Args:
      sets: name of the source -> its token set; all of one contract.
      directory: the cache folder of the new one.

    Raises:
      CacheError: the sets are of different contracts, or the folder cannot be written.
    """
    metas = {name: data.meta for name, data in sets.items()}
    first = next(iter(metas.values()))
    for name, meta in metas.items():
        for key in ("truncation", "token_dtype"):
            if meta[key] != first[key]:
                raise CacheError(
                    f"source {name!r} was tokenised with {key} {meta[key]!r}, the "
                    f"others with {first[key]!r}: give all the same contract"
                )
    attributes = sorted({a for meta in metas.values() for a in meta["attributes"]})

    def write(folder: pathlib.Path) -> dict[str, Any]:
        _write(list(sets.values()), attributes, folder)
        total = lambda key: sum(meta[key] for meta in metas.values())
        return {
            "sources": list(sets),
            "examples": total("examples"),
            "tokens": total("tokens"),
            "max_responses": max(meta["max_responses"] for meta in metas.values()),
            "max_steps": max(meta["max_steps"] for meta in metas.values()),
            "attributes": attributes,
            "given": dict(
                sum((Counter(m["given"]) for m in metas.values()), Counter())
            ),
            "token_dtype": first["token_dtype"],
            "truncation": first["truncation"],
            "counts": {},
            "audit": {},
            "source": {
                name: {
                    **data.meta["source"],
                    **{
                        k: data.meta[k]
                        for k in ("audit", "counts", "examples", "given", "tokens")
                    },
                    "cache": data.directory.name,
                }
                for name, data in sets.items()
            },
        }

    return cache.create(directory, write)


def spread(sizes: Sequence[int]) -> Int[np.ndarray, "n"]:
    """Which source each joined example is of: example i of n lies at (i + 1/2) / n."""
    at = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes])
    source = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return source[np.argsort(at, kind="stable")]


def _write(
    sets: Sequence[TokenSet], attributes: Sequence[str], folder: pathlib.Path
) -> None:
    source = spread([len(data) for data in sets])
    names = {name: f"{name}.bin" for name in ("tokens", *ARRAYS)} | {"ids": "ids.txt"}
    ends = dict.fromkeys(OFFSETS, 0)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(open(folder / file, "wb"))
            for name, file in names.items()
        }
        for name in ends:
            files[name].write(np.zeros(1, ARRAYS[name]).tobytes())
        done = np.zeros(len(sets), np.int64)
        for at in range(0, len(source), BLOCK):
            which = source[at : at + BLOCK]
            stop = done + np.bincount(which, minlength=len(sets))
            parts = [
                _part(data, int(a), int(b), attributes)
                for data, a, b in zip(sets, done, stop, strict=True)
            ]
            _block(parts, which, files, ends)
            done = stop


def _part(data: TokenSet, a: int, b: int, attributes: Sequence[str]) -> dict[str, Any]:
    """Examples a ... b - 1 of a source: name -> (values, how many an example)."""
    arrays = data.arrays
    branch = np.asarray(arrays["example_branch"][a : b + 1])
    start = np.asarray(arrays["branch_start"][branch[0] : branch[-1] + 1])
    id_start = np.asarray(arrays["id_start"][a : b + 1])
    responses = slice(int(branch[0]) - a, int(branch[-1]) - b)
    ratings = np.full((responses.stop - responses.start, len(attributes)), np.nan)
    own = [attributes.index(name) for name in data.meta["attributes"]]
    ratings[:, own] = arrays["ratings"][responses]
    one, branches = np.ones(b - a, np.int64), np.diff(branch)
    step_start = np.asarray(arrays["step_start"][responses.start : responses.stop + 1])
    steps = slice(int(step_start[0]), int(step_start[-1]))
    of_example = np.diff(step_start[branch - branch[0] - np.arange(b - a + 1)])
    parts: dict[str, Piece] = {
        "tokens": (
            data.tokens[start[0] : start[-1]],
            np.diff(start[branch - branch[0]]),
        ),
        "ids": (data.id_bytes(a, b), np.diff(id_start)),
        "branch_start": (np.diff(start), branches),
        "example_branch": (branches, one),
        "id_start": (np.diff(id_start), one),
        "ratings": (ratings.astype(np.float32), branches - 1),
        "step_start": (np.diff(step_start), branches - 1),
        "step_end": (np.asarray(arrays["step_end"][steps]), of_example),
        "step_label": (np.asarray(arrays["step_label"][steps]), of_example),
    }
    for name in ("prompt_keep", "ranks", "gold", "reference_logp"):
        parts[name] = np.asarray(arrays[name][responses]), branches - 1
    for name in ("strength", "soft", "weight", "prompt_hash"):
        parts[name] = np.asarray(arrays[name][a:b]), one
    return parts


def _block(
    parts: Sequence[Mapping[str, Piece]],
    which: Int[np.ndarray, "n"],
    files: Mapping[str, IO[bytes]],
    ends: dict[str, int],
) -> None:
    """Adds a block to the files; `ends` are the last offsets written."""
    for name, file in files.items():
        if name == "source":
            file.write(which.tobytes())
            continue
        values = interleave([part[name] for part in parts], which)
        if name in ends:
            values = ends[name] + np.cumsum(values)
            ends[name] = int(values[-1])
            values = values.astype(ARRAYS[name])
        file.write(values.tobytes())


def interleave(
    pieces: Sequence[Piece], which: Int[np.ndarray, "n"]
) -> Shaped[np.ndarray, "values *"]:
    """Values of the examples of several pieces, as `which` names the pieces."""
    counts = np.empty(len(which), np.int64)
    for p, (_, own) in enumerate(pieces):
        counts[which == p] = own
    starts = np.cumsum(counts) - counts
    first = pieces[0][0]
    out = np.empty((int(counts.sum()), *first.shape[1:]), first.dtype)
    for p, (values, own) in enumerate(pieces):
        shift = starts[which == p] - (np.cumsum(own) - own)
        out[np.repeat(shift, own) + np.arange(len(values))] = values
    return out


def sources_of(data: TokenSet) -> Iterator[tuple[str, Int[np.ndarray, "n"]]]:
    """Each source of a joined set and the indices of its examples."""
    source = np.asarray(data.arrays["source"])
    for s, name in enumerate(data.sources):
        yield name, np.flatnonzero(source == s)
