"""Native splits of a source, and those that are carved out of its `train` by prompt.

>>> prompt = (Message("user", "2 + 2?"),)
>>> part_of(prompt, valid_fraction=0.5, test_fraction=0.5)
'valid'
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rm_jax.data.files import Rows
from rm_jax.data.schema import Message


class Table(NamedTuple):
    """Rows that can be read again and again, by native split.

    Attributes:
      name: short name of the source.
      path: file, folder or hub id, for messages.
      digest: sha256 of the content, or hub id and sha.
      revision: sha of the hub revision, else empty.
      splits: native name -> reader; a file is one split, `train`.
    """

    name: str
    path: str
    digest: str
    revision: str
    splits: Mapping[str, Callable[[], Rows]]


class Plan(NamedTuple):
    """Which records a split is: those of a native split whose part is kept.

    Attributes:
      native: name of the native split to read.
      keep: parts (see `part_of`) to keep; None is all of them.
    """

    native: str
    keep: tuple[str, ...] | None


def part_of(
    prompt: tuple[Message, ...], valid_fraction: float, test_fraction: float
) -> str:
    """`train`, `valid` or `test`, by the prompt's text alone.

    u = first 64 bits of sha256(JSON of [[role, stripped content], ...]) / 2^64;
    test where u < test_fraction, valid where u < test_fraction + valid_fraction.

    Args:
      prompt: the conversation.
      valid_fraction: expected share of prompts in `valid`.
      test_fraction: expected share of prompts in `test`.
    """
    text = json.dumps([[m.role, m.content.strip()] for m in prompt])
    u = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if u < test_fraction:
        return "test"
    return "valid" if u < test_fraction + valid_fraction else "train"


def plan(table: Table, split: str) -> Plan:
    """How to read a split that the source has, or that can be carved from its `train`.

    `#train` leaves out every part carved from it: those the source does not have
    natively. No split at all ("") is every row of the native `train`, or of the only
    split there is. A native `validation` answers to `valid`.

    Raises:
      ValueError: unknown split; the message lists the known ones.
    """
    native = set(table.splits)
    if split == "valid" and "valid" not in native and "validation" in native:
        split = "validation"
    has_valid = bool(native & {"valid", "validation"})
    carved = [] if has_valid else ["valid"]
    carved += [] if "test" in native else ["test"]
    if not split and ("train" in native or len(native) == 1):
        return Plan("train" if "train" in native else next(iter(native)), None)
    if split in native and (split != "train" or not carved):
        return Plan(split, None)
    if "train" in native and split in ("train", *carved):
        keep = (split,) if split != "train" else _others(carved)
        return Plan("train", keep)
    known = sorted(native | set(carved if "train" in native else ()))
    said = f"unknown split {split!r}" if split else "no split named"
    raise ValueError(f"{table.path}: {said}; known: {known}")


def _others(carved: list[str]) -> tuple[str, ...]:
    return tuple(p for p in ("train", "valid", "test") if p not in carved)
