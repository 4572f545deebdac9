"""The .jsonl files of a run: read, repaired after a kill, or read from a place on."""

import contextlib
import json
import math
from typing import Any, NamedTuple

from rm_jax import store


class Cut(NamedTuple):
    """A line that was cut off a file.

    Attributes:
      end: bytes up to its end, in the file as it was.
      step: of the line.
      names: of its values.
    """

    end: int
    step: int
    names: set[str]


def read_lines(path: str) -> list[dict[str, Any]]:
    """The lines of a file that RunWriter keeps, none where there is no file."""
    if not store.exists(path):
        return []
    return [json.loads(line) for line in store.read_text(path).splitlines()]


def repair(
    path: str, step: float = math.inf, evaluated: bool = True
) -> tuple[int, list[Cut]]:
    """Cuts the file after the lines of steps up to `step`; a torn last one goes too.

    Where the evaluation of `step` is still to come, a line of it goes as well.

    Returns:
      bytes that are left; the whole lines that were cut.
    """
    if not store.exists(path):
        return 0, []
    text = store.read_text(path)
    end = 0
    for line in text[: text.rfind("\n") + 1].splitlines(keepends=True):
        at = _step(path, line)
        if at > step or (at == step and not evaluated and '"eval/' in line):
            break
        end += len(line)
    size = len(text[:end].encode())
    if end < len(text):
        store.truncate(path, size)
    cut, at = [], size
    for line in text[end : text.rfind("\n") + 1].splitlines(keepends=True):
        at += len(line.encode())
        with contextlib.suppress(ValueError):
            cut.append(Cut(at, _step(path, line), set(json.loads(line))))
    return size, cut


def _step(path: str, line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path}: this line is not an object with a step: {line!r:.80}; move the "
            "file away to start a new one"
        ) from None


def step_before(path: str, size: int, cut: list[Cut]) -> int:
    """Step of the last line in so many bytes of a file; -1 of none.

    Args:
      path: the file, repaired.
      size: bytes, of the file as it was before.
      cut: what was cut off.
    """
    if gone := [line.step for line in cut if line.end <= size]:
        return gone[-1]
    kept = _bytes(path)[:size].splitlines()
    return json.loads(kept[-1])["step"] if kept else -1


def lines_after(path: str, size: int) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of the lines after so many bytes of a file."""
    return list(map(_split, _bytes(path)[size:].splitlines()))


def lines_between(
    path: str, after: int, last: int
) -> list[tuple[int, dict[str, float]]]:
    """(step, values) of the lines of a file after a step, up to another.

    Of steps that were done again after a restart the first lines.
    """
    found: list[tuple[int, dict[str, float]]] = []
    for step, values in map(_split, _bytes(path).splitlines()):
        if after < step <= last and (not found or step >= found[-1][0]):
            found.append((step, values))
    return found


def _split(line: bytes) -> tuple[int, dict[str, float]]:
    values = json.loads(line)
    return values.pop("step"), {name: float(v) for name, v in values.items()}


def _bytes(path: str) -> bytes:
    return store.read_bytes(path) if store.exists(path) else b""
