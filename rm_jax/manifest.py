"""What a checkpoint says of itself: step, settings, metrics, a digest of each array.

It is a JSON object that ends with the SHA-256 of the rest of it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from rm_jax import schemas, store
from rm_jax.digest import digests

PyTree = Any


class CheckpointMismatch(ValueError):
    """The checkpoint is sound, but holds other arrays than were asked for."""


class DamagedCheckpoint(ValueError):
    """A file of the checkpoint is missing or is not what was written."""


class Manifest(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
      step: the number of the step.
      meta: a JSON object, the caller's own.
      metrics: name -> value; None where it was NaN or infinite.
      arrays: path in the state, e.g. `params/head/kernel`, -> its shape, dtype, digest.
    """

    step: int
    meta: dict[str, Any]
    metrics: dict[str, float | None]
    arrays: dict[str, dict[str, Any]]


def make_manifest(
    step: int,
    arrays: Mapping[str, jax.Array],
    meta: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """The JSON object of a state, sealed; computes the digests on the devices.

    Raises:
      TypeError: a leaf is not a jax array.
      ValueError: `meta` does not come back from JSON as it is.
    """
    for name, x in arrays.items():
        if not isinstance(x, jax.Array):
            raise TypeError(f"{name} is {type(x).__name__}; want a jax array")
    found = digests(arrays)
    body = {
        schemas.KEY: schemas.VERSIONS["checkpoint"],
        "step": int(step),
        "meta": _json("meta", dict(meta)),
        "metrics": {
            k: float(v) if math.isfinite(v) else None for k, v in metrics.items()
        },
        "arrays": {
            k: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": found[k]}
            for k, x in arrays.items()
        },
    }
    return body | {"sha256": _sha256(body)}


def read_manifest(path: str, step: int) -> Manifest:
    """Reads and verifies the manifest of a step.

    Raises:
      DamagedCheckpoint: it is missing, or not what was written.
      SchemaError: it is sound, and of a newer rm_jax: no older step takes its place.
    """
    try:
        value = store.read_json(path)
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(str(error)) from error
    if not isinstance(value, dict) or value.pop("sha256", None) != _sha256(value):
        raise DamagedCheckpoint(f"{path}: its content does not match its sha256")
    schemas.checked("checkpoint", value, path)
    del value[schemas.KEY]
    if value["step"] != step:
        raise DamagedCheckpoint(f"{path}: is of step {value['step']}, not {step}")
    return Manifest(**value)


def check_match(
    where: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Compares saved arrays with wanted ones.

    Args:
      where: the checkpoint, for the message.
      saved: `arrays` of a manifest.
      wanted: path -> something with a shape and a dtype.

    Raises:
      CheckpointMismatch: naming the first paths that differ, saved and wanted.
    """
    want = {k: (list(x.shape), str(x.dtype)) for k, x in wanted.items()}
    have = {k: (v["shape"], v["dtype"]) for k, v in saved.items()}
    wrong = [k for k in sorted(want.keys() | have.keys()) if want.get(k) != have.get(k)]
    if not wrong:
        return
    say = lambda x: "nothing" if x is None else f"{x[1]}{x[0]}"
    lines = [f"{k}: saved {say(have.get(k))}, wanted {say(want.get(k))}" for k in wrong]
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise CheckpointMismatch(
        f"{where} does not fit the model: {'; '.join(lines[:3])}{more}"
    )


def check_digests(
    where: str, saved: Mapping[str, Any], arrays: Mapping[str, jax.Array]
) -> None:
    """Compares the bits of arrays with those that were saved.

    Raises:
      DamagedCheckpoint: naming the first array that differs.
    """
    wrong = [k for k, d in digests(arrays).items() if d != saved[k]["digest"]]
    if wrong:
        raise DamagedCheckpoint(
            f"{where}: {wrong[0]} does not have the bits that were saved "
            f"({len(wrong)} of {len(arrays)} arrays)"
        )


def named(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Leaves by their path, e.g. `params/head/kernel`, and the structure of the tree.

    Raises:
      ValueError: two leaves have the same path, because a key contains `/`.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    out: dict[str, Any] = {}
    for keys, leaf in leaves:
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if name in out:
            raise ValueError(f"two arrays of the state have the path {name!r}")
        out[name] = leaf
    return out, treedef


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Plain nested dicts, so that the files do not depend on any class of ours."""
    out: dict[str, Any] = {}
    for name, leaf in arrays.items():
        *above, last = name.split("/")
        node = out
        for key in above:
            node = node.setdefault(key, {})
        node[last] = leaf
    return out


def best(manifests: list[Manifest], metric: str, mode: str) -> list[int]:
    """Steps that have the metric, best first, the earlier of equals first.

    Raises:
      ValueError: `mode` is not `max` or `min`.
    """
    if mode not in ("max", "min"):
        raise ValueError(f"best_mode is {mode!r}; want 'max' or 'min'")
    sign = -1 if mode == "max" else 1
    have = [(m.metrics.get(metric), m.step) for m in manifests]
    return [s for _, s in sorted((sign * v, s) for v, s in have if v is not None)]


def _json(what: str, value: Any) -> Any:
    try:
        if json.loads(json.dumps(value, allow_nan=False)) == value:
            return value
        why = "it comes back different (tuples, or keys that are not text?)"
    except (TypeError, ValueError) as error:
        why = str(error)
    raise ValueError(f"{what} is not JSON: {why}")


def _sha256(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
