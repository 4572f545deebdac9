"""A row of a source before it is a Record: where it was read, and its fields checked.

>>> ranks_by([4.0, None, 4.5, 4.0])
[1, None, 0, 1]
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax.data.schema import RowError, checked_text, shown

Row = Mapping[str, Any]


class Place(NamedTuple):
    """Where a row was read; as text, what messages call it.

    Attributes:
      source: name of the source, the default of a Record's `source` and in its id.
      row: line of a text file, else number of the row; from 1.
      path: file or hub id; the source's name where empty.
    """

    source: str
    row: int
    path: str = ""

    def __str__(self) -> str:
        return f"{self.path or self.source}:{self.row}"

    @property
    def id(self) -> str:
        """Id of a record whose row has none: unique in its source, no folders in it."""
        return f"{self.source}:{self.row}"


def text_field(row: Row, field: str, place: Place) -> str:
    """The text in that field of a row.

    Raises:
      RowError: it is missing or not Unicode text.
    """
    return checked_text(_field(row, field, place), str(place), field)


def number_field(
    row: Row, field: str, bounds: tuple[float, float], place: Place
) -> float:
    """The number in that field of a row.

    Args:
      row: the row.
      field: its name.
      bounds: least and greatest value allowed.
      place: where the row was read.

    Raises:
      RowError: it is missing, no number, or out of bounds.
    """
    value = _field(row, field, place)
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    if not ok or not bounds[0] <= value <= bounds[1]:
        why = f"want a number from {bounds[0]} to {bounds[1]}, got {shown(value)}"
        raise RowError(str(place), field, why)
    return value


def int_field(row: Row, field: str, bounds: tuple[int, int], place: Place) -> int:
    """As `number_field`, a whole number; 3.0 is one, as parquet files hold it."""
    value = number_field(row, field, bounds, place)
    if value != int(value):
        raise RowError(str(place), field, f"want a whole number, got {shown(value)}")
    return int(value)


def object_field(row: Row, field: str, place: Place) -> Row:
    """The object in that field of a row.

    Raises:
      RowError: it is missing or no object.
    """
    value = _field(row, field, place)
    if not isinstance(value, Mapping):
        raise RowError(str(place), field, f"want an object, got {shown(value)}")
    return value


def objects_field(row: Row, field: str, place: Place) -> list[Row]:
    """The list of objects in that field of a row.

    Raises:
      RowError: it is missing or holds something else.
    """
    value = _field(row, field, place)
    others = [value]
    if isinstance(value, list):
        others = [x for x in value if not isinstance(x, Mapping)]
    for other in others:
        raise RowError(str(place), field, f"want a list of objects, got {shown(other)}")
    return value


def ranks_by(scores: Sequence[float | None]) -> list[int | None]:
    """Ranks of responses by their scores: the highest is 0, equal scores tie.

    A rank is the number of different higher scores; a response without one has none.
    """
    order = sorted({s for s in scores if s is not None}, reverse=True)
    return [None if s is None else order.index(s) for s in scores]


def _field(row: Row, field: str, place: Place) -> Any:
    if field not in row:
        raise RowError(str(place), field, "missing")
    return row[field]
