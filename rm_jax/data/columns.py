"""Column maps: ordinary chosen/rejected or ranked data without code.

>>> parse = column_parser({"prompt": "q", "chosen": "best.text", "rejected": "worst"})
>>> row = {"q": "2 + 2?", "best": {"text": "4"}, "worst": "5"}
>>> [record] = parse(row, Place("demo", 1))
>>> record.id, record.ranks
('demo:1', (0, 1))
"""

from collections.abc import Callable, Mapping
from typing import Any

from rm_jax.data.pairs import pair_record
from rm_jax.data.rows import Place, Row
from rm_jax.data.schema import Record, RowError, record_from_dict, shown

PAIR = ("prompt", "chosen", "rejected")
RANKED = ("prompt", "responses", "ranks")
EXTRA = (
    "id", "strength", "soft", "weight", "ratings", "steps", "reference_logp",
)  # fmt: skip


def column_parser(
    columns: Mapping[str, str],
) -> Callable[[Row, Place], list[Record]]:
    """The format that takes each field of a record from a column of the row.

    Args:
      columns: field -> column. Fields: `chosen` and `rejected` with or without
        `prompt`, or `prompt`, `responses` and perhaps `ranks`; and `id`, `strength`,
        `soft`, `weight`, `ratings`, `steps`, `reference_logp`, each as in a record,
        what has a value a response in the order of the responses (the chosen one
        first). A column is a name or a dotted path (`answers.0.text`).

    Raises:
      ValueError: unknown field, a column that is no name, or fields that do not make a
        record.
    """
    is_pair = "chosen" in columns or "rejected" in columns
    wanted, optional = (PAIR, "prompt") if is_pair else (RANKED, "ranks")
    unknown = [f for f in columns if f not in (*wanted, *EXTRA)]
    missing = [f for f in wanted if f not in columns and f != optional]
    if unknown or missing:
        raise ValueError(
            f"columns {dict(columns)}: unknown fields {unknown}, missing fields "
            f"{missing}; give {PAIR} (prompt may be left out) or {RANKED} (ranks may "
            f"be left out), and any of {EXTRA}"
        )
    for field, column in columns.items():
        if not isinstance(column, str) or not column:
            raise ValueError(
                f"columns: {field!r}: {shown(column)}: want the name of a column, or a "
                "dotted path"
            )

    def parse(row: Row, place: Place) -> list[Record]:
        found = {f: _column(row, path, f, place) for f, path in columns.items()}
        fields = {f: value for f, value in found.items() if value is not None}
        if is_pair:
            pair = {f: fields.pop(f) for f in PAIR if f in fields}
            return [pair_record(pair, fields, place)]
        named = {"id": place.id, "source": place.source, **fields}
        return [record_from_dict(named, str(place))]

    return parse


def _column(row: Row, path: str, field: str, place: Place) -> Any:
    if path in row:  # a name may itself hold a dot
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif _is_index(value, part):
            value = value[int(part)]
        else:
            raise RowError(
                str(place), field, f"no column {path!r}; the row has {sorted(row)}"
            )
    return value


def _is_index(value: Any, part: str) -> bool:
    return isinstance(value, list) and part.isdecimal() and int(part) < len(value)
