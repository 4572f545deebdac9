"""Units that need another unit's run: the text that stands for what it leaves.

>>> text = after({"members.count": 4}, "predictions/train.parquet")
>>> replaced({"model.init": [text]}, lambda changes, path: f"{changes} {path}")
{'model.init': ["{'members.count': 4} predictions/train.parquet"]}
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rm_jax.hyper import Unit

_MARK = "${after "


def after(changes: Mapping[str, Any], path: str = "") -> str:
    """Text for a file that another unit of the experiment leaves, or for its run.

        first = {"members.count": 10}
        second = {"model.init": after(first)}

    It stands for ROOT/units/NAME/path, NAME being the unit of exactly these changes:
    one of sweep(), or of null() where a unit of null() needs it. It may be a value or
    a part of one: of a longer text, a list, a mapping. A unit starts when those that
    it needs are finished.

    Tables have such a value as "after KEY=VALUE ...: path", with what the other unit
    changes and this one does not; seeds are left out.

    Args:
      changes: of the other unit.
      path: in its run directory; "" is the directory.

    Raises:
      ValueError: changes that are no dict, or a path that leaves the directory.
      TypeError: a value that JSON does not have.
    """
    if not isinstance(changes, Mapping):
        raise ValueError(f"after({changes!r:.200}): want the changes of a unit, a dict")
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"after(..., {path!r}): want a path in the run directory")
    return f"{_MARK}{_json([changes, path])}}}"


def replaced(value: Any, text: Callable[[Unit, str], str]) -> Any:
    """`value` with every `after(changes, path)` in it as text(changes, path).

    Raises:
      ValueError: a text that looks like one of `after` and is none.
    """
    return mapped(value, lambda own: _replaced(own, text))


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every text in it changed, in lists and mappings, too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, change) for part in value)
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: mapped(part, change) for key, part in value.items()}
    return value


def condition(changes: Mapping[str, Any], seeds: Sequence[str]) -> Unit:
    """Changes that are no repetition: without seeds, those of needed units included."""
    rest = {key: value for key, value in changes.items() if key not in seeds}
    return replaced(rest, lambda other, path: after(condition(other, seeds), path))


def shown(changes: Mapping[str, Any], seeds: Sequence[str]) -> Unit:
    """Changes as tables have them, equal for repetitions but in the seeds."""
    own = {key: _json(value) for key, value in condition(changes, seeds).items()}

    def text(other: Unit, path: str) -> str:
        values, seen = condition(other, seeds), shown(other, seeds)
        parts = [f"{k}={seen[k]}" for k, v in values.items() if own.get(k) != _json(v)]
        return said(" ".join(parts) or "the base", path)

    return replaced(changes, text)


def said(what: str, path: str) -> str:
    """What a reader sees of `after`."""
    return f"after {what}: {path}" if path else f"after {what}"


def _replaced(own: str, text: Callable[[Unit, str], str]) -> str:
    head, mark, rest = own.partition(_MARK)
    if not mark:
        return own
    try:
        (changes, path), end = json.JSONDecoder().raw_decode(rest)
        if rest[end] != "}":
            raise ValueError
    except (ValueError, TypeError, IndexError):
        why = f"{own!r:.200}: {_MARK!r} in it is of rm_jax.experiment.after: use that"
        raise ValueError(why) from None
    return head + text(changes, path) + _replaced(rest[end + 1 :], text)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=lambda part: part.to_dict())
