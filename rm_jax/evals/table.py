"""Scores of a data set beside its labels, and the pairs of responses they make.

A `ScoreTable` is all an evaluation needs: no model, no tokens. `pairs` lists every
ordered pair of responses so that each example counts once, whatever its K.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from rm_jax.evals.steps import StepTable


class ScoreTable(NamedTuple):
    """One row an example, one column a response.

    Attributes:
      ids: id of each example, text.
      scores: one reward a response; NaN where there is no response.
      ranks: 0 is best, equal is a tie, -1 is unranked or no such response.
      lengths: tokens of each response, template included; 0 where there is none. This
        is what says which responses exist.
      weight: weight of the example, >= 0; examples of weight 0 count in nothing.
      soft: probability that response 0 beats response 1; NaN where not given.
      strength: strength of the preference; NaN where not given.
      prompts: hash of the prompt: the cluster of the example in intervals.
      gold: true utility of each response; NaN where not known.
      source: name of the example's source in a mixture; "" without one.
      members: score of each member, of which `scores` are the reduction; None for a
        single model.
      covariance: of the scores of an example's responses, where a posterior says how
        sure they are; None where none does.
      steps: of a model that scores them, on a set that names them; else None.
    """

    ids: Shaped[np.ndarray, "e"]
    scores: Float[np.ndarray, "e k"]
    ranks: Int[np.ndarray, "e k"]
    lengths: Int[np.ndarray, "e k"]
    weight: Float[np.ndarray, "e"]
    soft: Float[np.ndarray, "e"]
    strength: Float[np.ndarray, "e"]
    prompts: Int[np.ndarray, "e"]
    gold: Float[np.ndarray, "e k"]
    source: Shaped[np.ndarray, "e"]
    members: Float[np.ndarray, "m e k"] | None = None
    covariance: Float[np.ndarray, "e k k"] | None = None
    steps: StepTable | None = None


class Pairs(NamedTuple):
    """Pairs of responses to one prompt, the better one first, sorted by example.

    Attributes:
      example: row of the table.
      better: column of the better response; in a tie the first of the two.
      worse: column of the other.
      delta: score of the better minus score of the worse, float64.
      length_delta: tokens of the better minus tokens of the worse.
      length_mean: mean tokens of the two.
      weight: weight of the example / its number of pairs.
      tie: labelled as equally good.
      target: probability that `better` wins: 1, .5 in a tie, or the soft label.
      prompts: cluster of the example.
    """

    example: Int[np.ndarray, "n"]
    better: Int[np.ndarray, "n"]
    worse: Int[np.ndarray, "n"]
    delta: Float[np.ndarray, "n"]
    length_delta: Float[np.ndarray, "n"]
    length_mean: Float[np.ndarray, "n"]
    weight: Float[np.ndarray, "n"]
    tie: Bool[np.ndarray, "n"]
    target: Float[np.ndarray, "n"]
    prompts: Int[np.ndarray, "n"]


# Field -> how many of its last axes are responses; of others none.
_RESPONSE_AXES = {
    "scores": 1, "ranks": 1, "lengths": 1, "gold": 1, "members": 1, "covariance": 2,
}  # fmt: skip


def present(table: ScoreTable) -> Bool[np.ndarray, "e k"]:
    """Where a response exists."""
    return table.lengths > 0


def check(table: ScoreTable) -> None:
    """Checks that a table can be evaluated.

    Raises:
      ValueError: it has no example, arrays that do not fit, an example without
        responses, a score that is not finite where a response exists, a score or rank
        where none does, a soft label outside [0, 1] or on an example without exactly
        two responses, or bad weights. Names the example.
    """
    e, k = table.scores.shape
    if e == 0:
        raise ValueError("the table has no example: nothing to evaluate")
    for name, array in table._replace(steps=None)._asdict().items():
        shape = (e, *(k for _ in range(_RESPONSE_AXES.get(name, 0))))
        if array is not None and array.shape[-len(shape) :] != shape:
            raise ValueError(f"{name} has shape {array.shape}, want {shape}")
    exists = present(table)
    finite = np.isfinite(table.scores)
    _refuse(table, ~exists.any(1)[:, None], "lengths", "no response: drop the example")
    _refuse(table, exists & ~finite, "scores", "not finite: look for NaN in the model")
    if table.members is not None and not np.isfinite(table.members[:, exists]).all():
        bad = ~np.isfinite(table.members[:, exists]).all(1)
        raise ValueError(
            f"members {np.flatnonzero(bad).tolist()} have scores not finite"
        )
    _refuse(table, ~exists & finite, "scores", "given, but the response has length 0")
    _refuse(table, ~exists & (table.ranks >= 0), "ranks", "given without a response")
    pair = exists[:, :2].all(1) & (exists.sum(1) == 2) & (k >= 2)
    wrong = ~np.isnan(table.soft) & ~((table.soft >= 0) & (table.soft <= 1) & pair)
    _refuse(table, wrong[:, None], "soft", "want a probability and two responses")
    bad = ~np.isfinite(table.weight) | (table.weight < 0)
    _refuse(table, bad[:, None], "weight", "want a finite number >= 0")
    if not table.weight.any():
        raise ValueError("all weights of the table are 0: nothing to evaluate")


def concat(tables: Sequence[ScoreTable]) -> ScoreTable:
    """One table of several, in order; narrower ones get empty response columns.

    Raises:
      ValueError: no tables, or only some of them have members or a covariance.
    """
    if not tables:
        raise ValueError("no tables to concatenate")
    k = max(t.scores.shape[1] for t in tables)
    steps = _steps_joined([t.steps for t in tables], tables, k)
    bare = [t._replace(steps=None) for t in tables]
    columns = {name: [getattr(t, name) for t in bare] for name in ScoreTable._fields}
    joined = ScoreTable(**{n: _joined(n, parts, k) for n, parts in columns.items()})
    return joined._replace(steps=steps)


def _joined(name: str, parts: list[np.ndarray | None], k: int) -> np.ndarray | None:
    has = [part is not None for part in parts]
    if not all(has):
        if any(has):
            raise ValueError(f"some of the tables have {name}, others have none")
        return None
    fill, axes = {"ranks": -1, "lengths": 0}.get(name, np.nan), _RESPONSE_AXES.get(name)
    wide = [_widen(part, k, axes, fill) for part in parts] if axes else parts
    return np.concatenate(wide, axis=1 if name == "members" else 0)


def take(table: ScoreTable, rows: Bool[np.ndarray, "e"]) -> ScoreTable:
    """The examples where `rows` is true."""
    steps = table.steps and StepTable(*(x[rows] for x in table.steps))
    columns = table._replace(members=None, steps=None)._asdict()
    taken = {n: x if x is None else x[rows] for n, x in columns.items()}
    if table.members is not None:
        taken["members"] = table.members[:, rows]
    return ScoreTable(**taken)._replace(steps=steps)


def pairs(table: ScoreTable) -> Pairs:
    """Every pair of labelled responses, ordered by their ranks.

    Where two responses have a soft label and no ranks, the soft label orders them and
    .5 is a tie.

    Raises:
      ValueError: see `check`.
    """
    check(table)
    order = np.where(table.ranks >= 0, table.ranks.astype(float), np.nan)
    given = ~np.isnan(table.soft)
    if given.any():
        only = given & np.isnan(order).all(1)
        order[only, 0] = table.soft[only] < 0.5
        order[only, 1] = table.soft[only] > 0.5
    out = _pairs(table, order)
    soft = table.soft[out.example]
    soft = np.where(out.better == 0, soft, 1 - soft)
    return out._replace(target=np.where(np.isnan(soft), out.target, soft))


def gold_pairs(table: ScoreTable) -> Pairs:
    """Every pair of responses whose gold utility is known, ordered by it.

    Raises:
      ValueError: see `check`.
    """
    check(table)
    return _pairs(table, np.where(present(table), -table.gold.astype(float), np.nan))


def rescored(found: Pairs, scores: Float[np.ndarray, "e k"]) -> Pairs:
    """The same pairs by other scores of the same responses."""
    of = lambda column: scores[found.example, column].astype(np.float64)
    return found._replace(delta=of(found.better) - of(found.worse))


def select(found: Pairs, keep: Bool[np.ndarray, "n"]) -> Pairs:
    """Some of the pairs, reweighted so that each example left counts once again."""
    if keep.all():
        return found
    before = np.bincount(found.example)
    after = np.bincount(found.example[keep], minlength=len(before))
    kept = Pairs(*(column[keep] for column in found))
    scale = before[kept.example] / after[kept.example]
    return kept._replace(weight=kept.weight * scale)


def untied(found: Pairs) -> Pairs:
    """The pairs that the label orders."""
    return select(found, ~found.tie)


def _pairs(table: ScoreTable, order: Float[np.ndarray, "e k"]) -> Pairs:
    labelled = np.isfinite(order) & (table.weight > 0)[:, None]
    left, right = np.triu_indices(order.shape[1], 1)
    row, column = np.nonzero(labelled[:, left] & labelled[:, right])
    i, j = left[column], right[column]
    swap = order[row, i] > order[row, j]
    better, worse = np.where(swap, j, i), np.where(swap, i, j)
    tie = order[row, i] == order[row, j]
    scores = table.scores.astype(np.float64)
    lengths = table.lengths.astype(np.float64)
    count = np.bincount(row, minlength=len(order))
    return Pairs(
        example=row,
        better=better,
        worse=worse,
        delta=scores[row, better] - scores[row, worse],
        length_delta=lengths[row, better] - lengths[row, worse],
        length_mean=(lengths[row, better] + lengths[row, worse]) / 2,
        weight=table.weight[row].astype(np.float64) / count[row],
        tie=tie,
        target=np.where(tie, 0.5, 1.0),
        prompts=table.prompts[row],
    )


def _refuse(
    table: ScoreTable, wrong: Bool[np.ndarray, "e _"], field: str, why: str
) -> None:
    if not wrong.any():
        return
    row, column = np.argwhere(wrong)[0]
    values = getattr(table, field)
    value = values[row] if values.ndim == 1 else values[row, column]
    where = "" if values.ndim == 1 else f", response {column}"
    raise ValueError(
        f"example {str(table.ids[row])!r}{where}: {field} is {value}: {why} "
        f"({int(wrong.any(1).sum())} such examples)"
    )


def _steps_joined(
    parts: Sequence[StepTable | None], tables: Sequence[ScoreTable], k: int
) -> StepTable | None:
    """The steps of several tables, NaN where one has none."""
    p = max((x.scores.shape[2] for x in parts if x is not None), default=0)
    if not p:
        return None
    out = []
    for own, table in zip(parts, tables, strict=True):
        both = np.full((2, len(table.ids), k, p), np.nan, np.float32)
        if own is not None:
            _, wide, long = own.scores.shape
            both[:, :, :wide, :long] = own
        out.append(both)
    return StepTable(*np.concatenate(out, axis=1))


def _widen(array: np.ndarray, k: int, axes: int, fill: int | float) -> np.ndarray:
    """The last `axes` axes, those of responses, made k long."""
    whole = array.ndim - axes
    missing = [(0, 0)] * whole + [(0, k - array.shape[-1])] * axes
    return np.pad(array, missing, constant_values=fill)
