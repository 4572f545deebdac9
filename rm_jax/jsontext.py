"""JSON as people write it: what the standard reader lets pass in silence is an error.

>>> read('{"a": {"b": 1}}')
{'a': {'b': 1}}
>>> read('{"a": 1, "a": 2}')
Traceback (most recent call last):
ValueError: the key 'a' twice in one object: keep one of them
"""

import json
from typing import Any


def read(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: not JSON, with the place; a key twice in one object; a key with a dot,
        which would be a path; NaN or an infinity; nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        near = text[error.pos : error.pos + 20]
        raise ValueError(f"not JSON: {error}, at {near!r}") from None
    except RecursionError as error:
        raise ValueError(f"RecursionError: {error}: it is nested too deep") from None


def read_object(what: str, text: str) -> dict[str, Any]:
    """The JSON object of a flag.

    Args:
      what: the flag, for errors.
      text: its value.

    Raises:
      ValueError: as `read`, or no object; names the flag and the value.
    """
    try:
        found = read(text)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise ValueError(
            f'{what} = {text!r:.80}: {error}; want {{"name": ...}}'
        ) from error
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice in one object: keep one of them")
        if "." in key:
            raise ValueError(f"the key {key!r} has a dot: want an object for each part")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON: want a finite number")
