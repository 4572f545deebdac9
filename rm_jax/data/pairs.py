"""Chosen and rejected texts, with or without a prompt of their own, as one Record.

>>> pair = {"chosen": "Q: 2 + 2? A: 4", "rejected": "Q: 2 + 2? A: 5"}
>>> record = pair_record(pair, {}, Place("demo", 1))
>>> record.prompt[0].content, [r[0].content for r in record.responses], record.ranks
('Q: 2 + 2? A: ', ['4', '5'], (0, 1))
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rm_jax.data.rows import Place
from rm_jax.data.schema import Record, RowError, record_from_dict


def pair_record(
    pair: Mapping[str, Any], extra: Mapping[str, Any], place: Place
) -> Record:
    """The record of a chosen and a rejected response, ranks (0, 1).

    Where `prompt` is missing it is what both sides have in common: whole messages of
    conversations, and of plain texts the longest common prefix, backed up to a
    whitespace so that no word is cut. Where both sides repeat the given prompt as their
    first messages, the repetition is removed. Sides that still hold a user's message
    answer different conversations: `meta["audit"]` says so.

    Args:
      pair: `chosen`, `rejected` and perhaps `prompt`, texts or lists of messages.
      extra: more fields of the record, None where not given.
      place: where the row was read.

    Raises:
      RowError: a field is missing or wrong, or nothing can be the prompt.
    """
    for field in ("chosen", "rejected"):
        if pair.get(field) is None:
            raise RowError(str(place), field, "missing")
    sides = [pair["chosen"], pair["rejected"]]
    split = _split_texts if isinstance(sides[0], str) else _split_messages
    prompt, sides = split(pair.get("prompt"), sides, place)
    row = {
        "id": place.id,
        "source": place.source,
        "prompt": prompt,
        "responses": sides,
        "ranks": [0, 1],
        **{key: value for key, value in extra.items() if value is not None},
    }
    record = record_from_dict(row, str(place))
    if any(m.role == "user" for r in record.responses for m in r):
        row["meta"] = {"audit": "diverging_prompts"}
        record = record_from_dict(row, str(place))
    return record


def _split_texts(prompt: Any, sides: list[Any], place: Place) -> tuple[Any, list[Any]]:
    if not isinstance(sides[1], str):
        raise RowError(str(place), "rejected", f"want text, got {sides[1]!r:.80}")
    if prompt is not None:
        return prompt, sides
    n = _common(*sides)
    while n and not sides[0][n - 1].isspace():
        n -= 1
    if not sides[0][:n].strip():
        raise RowError(str(place), "prompt", "missing; the sides begin differently")
    return sides[0][:n], [side[n:] for side in sides]


def _split_messages(
    prompt: Any, sides: list[Any], place: Place
) -> tuple[Any, list[Any]]:
    for field, side in zip(("chosen", "rejected"), sides, strict=True):
        if not isinstance(side, list | tuple):
            raise RowError(str(place), field, f"want messages, got {side!r:.80}")
    keys = [[_key(message) for message in side] for side in sides]
    if prompt is None:
        n = _common(*keys)
        if n == 0:
            raise RowError(str(place), "prompt", "missing; the sides begin differently")
        return sides[0][:n], [side[n:] for side in sides]
    first = [("user", prompt)]
    if not isinstance(prompt, str):
        given = {"prompt": prompt, "responses": sides}
        first = [_key(m) for m in record_from_dict(given, str(place)).prompt]
    if all(len(k) > len(first) and k[: len(first)] == first for k in keys):
        sides = [side[len(first) :] for side in sides]
    return prompt, sides


def _key(message: Any) -> Any:
    """What makes two messages the same, whatever else their objects hold."""
    if isinstance(message, Mapping):
        return message.get("role"), message.get("content")
    return message  # a Message is this pair already


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common prefix that leaves something of both."""
    n = 0
    while n < min(len(a), len(b)) - 1 and a[n] == b[n]:
        n += 1
    return n
