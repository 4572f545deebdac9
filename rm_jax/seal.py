"""A seal on JSON objects: a digest of all the rest, so that a damaged file is noticed.

>>> opened(sealed({"step": 8}))
{'step': 8}
>>> opened(sealed({"step": 8}) | {"step": 9})
Traceback (most recent call last):
    ...
ValueError: its content does not match its seal: ...
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "seal"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object as JSON gives it back, with a key more: the SHA-256 of the rest.

    Raises:
      ValueError, TypeError: it is not JSON.
    """
    value = json.loads(json.dumps(value, allow_nan=False))
    return {**value, KEY: _digest(value)}


def opened(value: Any) -> Any:
    """The value without its seal; one that has none is given back as it is.

    A bit flipped in the word "seal" takes the seal off, and changes nothing else.

    Raises:
      ValueError: the seal is not that of the rest.
    """
    if not isinstance(value, dict) or KEY not in value:
        return value
    rest = {k: v for k, v in value.items() if k != KEY}
    if value[KEY] != _digest(rest):
        raise ValueError(
            "its content does not match its seal: bring back a copy, or, if it was "
            f"edited by hand, take out the key {KEY!r}"
        )
    return rest


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
