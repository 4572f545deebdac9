"""A score table as an Arrow table: one row a response, with its text."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rm_jax import schemas
from rm_jax.evals.table import ScoreTable, check, present

# Columns of an example, then columns of a response: field of ScoreTable -> column.
_EXAMPLE = {
    "ids": "id",
    "weight": "weight",
    "soft": "soft",
    "strength": "strength",
    "prompts": "prompt",
    "source": "source",
}
_RESPONSE = {"ranks": "rank", "scores": "score", "lengths": "length", "gold": "gold"}


def to_arrow(
    table: ScoreTable,
    prompt_texts: Sequence[str],
    response_texts: Sequence[Sequence[str]],
) -> pa.Table:
    """One row a response, in order.

    Columns: example (row of the table), id, response (its index), rank (null where
    unranked), score, length, weight, gold (null where unknown), soft, strength (null
    where not given), prompt (hash), source (of a mixture), prompt_text, response_text;
    of a model that scores steps step_scores, a list.

    Args:
      table: e examples.
      prompt_texts: e texts.
      response_texts: e lists; entry j is the text of response j.

    Raises:
      ValueError: a text is missing; or see `check`.
    """
    check(table)
    e = len(table.ids)
    for name, texts in (("prompts", prompt_texts), ("responses", response_texts)):
        if len(texts) != e:
            raise ValueError(f"{len(texts)} texts of {name} for {e} examples")
    rows, columns = np.nonzero(present(table))
    for row, column in zip(rows, columns, strict=True):
        if column >= len(response_texts[row]):
            raise ValueError(
                f"example {str(table.ids[row])!r}: no text for response {column}, "
                f"got {len(response_texts[row])} texts"
            )
    out = {"example": pa.array(rows), "response": pa.array(columns)}
    for field, name in _EXAMPLE.items():
        out[name] = _nullable(getattr(table, field)[rows], field)
    for field, name in _RESPONSE.items():
        out[name] = _nullable(getattr(table, field)[rows, columns], field)
    if table.members is not None:
        out["members"] = _lists(table.members[:, rows, columns].T)
    if table.covariance is not None:
        out["covariance"] = _lists(table.covariance[rows, columns])
    out["prompt_text"] = pa.array([prompt_texts[r] for r in rows], pa.string())
    out["response_text"] = pa.array(
        [response_texts[r][c] for r, c in zip(rows, columns, strict=True)], pa.string()
    )
    if table.steps is not None:
        each = table.steps.scores[rows, columns]
        out["step_scores"] = pa.array([x[np.isfinite(x)].tolist() for x in each])
    version = str(schemas.VERSIONS["predictions"])
    return pa.table(out, metadata={schemas.KEY: version})


def from_arrow(arrow: pa.Table) -> ScoreTable:
    """The score table that `to_arrow` wrote; K is that of the widest example.

    Raises:
      ValueError: a column is missing, or the table has no row.
    """
    wanted = ["example", "response", *_EXAMPLE.values(), *_RESPONSE.values()]
    missing = [name for name in wanted if name not in arrow.column_names]
    if missing:
        raise ValueError(f"columns {missing} are missing; have {arrow.column_names}")
    if arrow.num_rows == 0:
        raise ValueError("the predictions have no row")
    example = arrow["example"].to_numpy()
    columns = arrow["response"].to_numpy()
    _, first, rows = np.unique(example, return_index=True, return_inverse=True)
    shape = (len(first), int(columns.max()) + 1)
    fields = {
        field: _plain(arrow[name], field)[first] for field, name in _EXAMPLE.items()
    }
    for field, name in _RESPONSE.items():
        values = _plain(arrow[name], field)
        blank = {"ranks": -1, "lengths": 0}.get(field, np.nan)
        fields[field] = np.full(shape, blank, values.dtype)
        fields[field][rows, columns] = values
    if "members" in arrow.column_names:
        own = _unlisted(arrow["members"])
        fields["members"] = np.full((own.shape[1], *shape), np.nan, own.dtype)
        fields["members"][:, rows, columns] = own.T
    if "covariance" in arrow.column_names:
        own = _unlisted(arrow["covariance"])
        fields["covariance"] = np.full((*shape, shape[1]), np.nan, own.dtype)
        fields["covariance"][rows, columns] = own
    return ScoreTable(**fields)


def _lists(values: np.ndarray) -> pa.Array:
    """[n m] as n lists; NaN becomes null."""
    flat = values.reshape(-1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat, mask=np.isnan(flat)), values.shape[1]
    )


def _unlisted(column: pa.ChunkedArray) -> np.ndarray:
    whole = column.combine_chunks()
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(len(whole), -1)


def _nullable(values: np.ndarray, field: str) -> pa.Array:
    if field in ("ids", "source"):
        return pa.array([str(v) for v in values], pa.string())
    if field == "ranks":
        return pa.array(values, mask=values < 0)
    if field in ("gold", "soft", "strength"):
        return pa.array(values, mask=np.isnan(values))
    return pa.array(values)


def _plain(column: pa.ChunkedArray, field: str) -> np.ndarray:
    if field in ("ids", "source"):
        return np.array(column.to_pylist())
    if field == "ranks":
        column = column.fill_null(-1)
    return column.to_numpy()  # a null becomes NaN
