"""A data set through a model: a table of scores beside its labels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rm_jax.data.loader import Loader
from rm_jax.evals import reducers
from rm_jax.evals.steps import StepTable
from rm_jax.evals.table import ScoreTable
from rm_jax.types import Labels, Rows


class Scored(NamedTuple):
    """What a model that scores steps says of a chunk.

    Attributes:
      scores: of the responses.
      steps: of their steps.
      scored: 1 where there is a step.
    """

    scores: Float[np.ndarray, "*m e k"]
    steps: Float[np.ndarray, "*m e k p"]
    scored: Float[np.ndarray, "*m e k p"]


# (batch, labels) of one chunk -> scores on the host: [e k], or with those of steps, or
# [m e k] of m members
ScoreFn = Callable[[Rows, Labels], Float[np.ndarray, "*m e k"] | Scored]


def score_table(
    score_fn: ScoreFn,
    loader: Loader,
    limit: int = 0,
    poll: Callable[[], Any] = lambda: None,
    reducer: str = "mean",
) -> ScoreTable:
    """Scores the first `limit` examples (0 is all), in order.

    Args:
      score_fn: the model on one chunk.
      loader: of the set.
      limit: examples.
      poll: called after every block: where a long evaluation notices a signal.
      reducer: how members become one score; `reducers.parse` says what it may be.

    Raises:
      ValueError: an unknown reducer, before anything is scored.
    """
    reducers.parse(reducer)
    data, scores = loader.data, None
    n = min(limit, len(data)) if limit else len(data)
    steps = None
    for block in loader.in_order(limit):
        for batch, labels in block.chunks:
            found = score_fn(batch, labels)
            got = of_responses(found)
            if scores is None:
                shape = (*got.shape[:-2], n, data.max_responses)
                scores = np.full(shape, np.nan, np.float32)
                if isinstance(found, Scored):
                    steps = _no_steps(shape[-2:], data.meta["max_steps"])
            if steps is not None:
                put_steps(steps, _reduced(found, reducer), labels)
            put(scores, got, labels)
        poll()
    if scores is None:
        raise ValueError("the set has no example: nothing to score")
    if scores.ndim == 2:
        return table_of(data, scores)._replace(steps=steps)
    table = table_of(data, reducers.reduce(reducer, scores))
    return table._replace(members=scores, steps=steps)


def of_responses(found: Float[np.ndarray, "*m e k"] | Scored) -> np.ndarray:
    """The scores of the responses alone."""
    return np.asarray(found.scores if isinstance(found, Scored) else found)


def _reduced(found: Scored, reducer: str) -> Scored:
    """The step scores of members as one; they all score the same steps."""
    if found.steps.ndim == 3:
        return found
    steps = reducers.reduce(reducer, np.asarray(found.steps))
    return found._replace(steps=steps, scored=found.scored[0])


def _no_steps(shape: tuple[int, int], p: int) -> StepTable | None:
    both = (np.full((*shape, p), np.nan, np.float32) for _ in StepTable._fields)
    return StepTable(*both) if p else None


def put_steps(into: StepTable, found: Scored, labels: Labels) -> None:
    """Writes a chunk's step scores and labels to the rows of its examples."""
    real = labels.ids >= 0
    p = min(found.steps.shape[2], into.scores.shape[2])
    scored, given = found.scored[real, :, :p] > 0, labels.steps[real, :, :p] >= 0
    into.scores[labels.ids[real], :, :p] = np.where(
        scored, found.steps[real, :, :p], np.nan
    )
    into.labels[labels.ids[real], :, :p] = np.where(
        given, labels.steps[real, :, :p], np.nan
    )


def put(
    into: Float[np.ndarray, "*m n k"],
    scores: Float[np.ndarray, "*m e k"],
    labels: Labels,
) -> None:
    """Writes a chunk's scores to the rows of its examples."""
    real = labels.ids >= 0
    values = np.where(labels.present[real] > 0, scores[..., real, :], np.nan)
    into[..., labels.ids[real], :] = values


def table_of(data, scores: Float[np.ndarray, "n k"]) -> ScoreTable:
    """The table of the first n examples of a token set, given their scores."""
    n, k = scores.shape
    wide = {name: np.full((n, k), np.nan, np.float32) for name in ("ranks", "gold")}
    lengths = np.zeros((n, k), np.int64)
    for i in range(n):
        count = data.count(i)
        for name, values in wide.items():
            values[i, :count] = data.per_response(name, i)
        lengths[i, :count] = data.lengths(i)
    ranks = np.where(np.isnan(wide["ranks"]), -1, wide["ranks"]).astype(np.int64)
    one = {name: np.asarray(data.arrays[name][:n]) for name in ("weight", "soft")}
    return ScoreTable(
        ids=np.array(data.ids(n)),
        scores=scores,
        ranks=ranks,
        lengths=lengths,
        strength=np.asarray(data.arrays["strength"][:n]),
        prompts=np.asarray(data.arrays["prompt_hash"][:n]),
        gold=wide["gold"],
        source=np.array(data.sources or ("",))[data.arrays["source"][:n]],
        **one,
    )


def reversed_scores(
    score_fn: ScoreFn, loader: Loader, limit: int, reducer: str = "mean"
) -> Float[np.ndarray, "n k"]:
    """Scores of the first `limit` examples, each with its responses in reverse order.

    Packed differently and in other columns, yet returned in the columns of the set:
    `bias.swap_check` compares them with a table's. Members are reduced as there.
    """
    data = loader.data
    n = min(limit, len(data))
    out = np.full((n, data.max_responses), np.nan, np.float32)
    for block in loader.in_order(n, backwards=True):
        for batch, labels in block.chunks:
            scores = of_responses(score_fn(batch, labels))
            if scores.ndim == 3:
                scores = reducers.reduce(reducer, scores)
            for row, i in enumerate(labels.ids):
                if i >= 0:
                    out[i, : data.count(i)] = scores[row, : data.count(i)][::-1]
    return out
