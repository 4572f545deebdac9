"""A row of a source before it is a Record: where it was read and its text fields."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rm_jax.data.schema import RowError, checked_text

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
    if field not in row:
        raise RowError(str(place), field, "missing")
    return checked_text(row[field], str(place), field)
