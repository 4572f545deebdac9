"""OpenAssistant conversation trees: a record for each message with ranked replies.

Köpf et al. 2023 (arXiv:2304.07327).
"""

from collections.abc import Mapping

from rm_jax.data.rows import Place, Row, objects_field, text_field
from rm_jax.data.schema import (
    Message,
    Record,
    RowError,
    checked_rank,
    record_from_dict,
    shown,
)

_ROLES = {"prompter": "user", "assistant": "assistant"}
_DEPTH = 1000


def oasst(row: Row, place: Place) -> list[Record]:
    """A conversation tree; a record for each node with two or more ranked replies."""
    root = row.get("prompt", row)
    if not isinstance(root, Mapping) or "replies" not in root:
        raise RowError(str(place), "replies", "wants a whole conversation tree")
    if "message_tree_id" in row:
        tree = text_field(row, "message_tree_id", place)
    else:
        tree = text_field(root, "message_id", place)
    records = []
    stack: list[tuple[Mapping, tuple[Message, ...]]] = [(root, ())]
    while stack:
        node, path = stack.pop()
        path += (_message(node, place),)
        replies = _replies(node, len(path), place)
        answers = [r for r in replies if r.get("role") == "assistant"]
        if sum(a.get("rank") is not None for a in answers) >= 2:
            records.append(_record(node, path, answers, tree, place))
        stack += [(reply, path) for reply in reversed(replies)]
    return records


def _message(node: Mapping, place: Place) -> Message:
    role = text_field(node, "role", place)
    if role not in _ROLES:
        known = sorted(_ROLES)
        raise RowError(str(place), "role", f"{shown(role)} is not one of {known}")
    checked_rank(node.get("rank"), str(place), "rank")
    return Message(_ROLES[role], text_field(node, "text", place))


def _replies(node: Mapping, depth: int, place: Place) -> list[Row]:
    replies = (
        [] if node.get("replies") is None else objects_field(node, "replies", place)
    )
    if depth > _DEPTH:
        why = f"more than {_DEPTH} messages deep: does a tree hold itself?"
        raise RowError(str(place), "replies", why)
    return replies


def _record(node, path, answers, tree: str, place: Place) -> Record:
    meta = {"tree": tree, "lang": [a.get("lang") for a in answers]}
    if any(a.get("deleted") for a in answers):
        meta["deleted"] = [bool(a.get("deleted")) for a in answers]
    row = {
        "id": text_field(node, "message_id", place),
        "source": place.source,
        "prompt": path,
        "responses": [(_message(a, place),) for a in answers],
        "ranks": [a.get("rank") for a in answers],
        "meta": meta,
    }
    return record_from_dict(row, str(place))
