"""What a person should look at before believing the figures of an evaluation."""

import numpy as np

from rm_jax.evals.accuracy import accuracy
from rm_jax.evals.intervals import Sample
from rm_jax.evals.table import ScoreTable, pairs, present, untied

# From here on σ(Δ) rounds to 1 in float32, and the gradient of a pair is 0.
SATURATED = 17.0


def identical_share(table: ScoreTable) -> float:
    """Share of pairs of responses to one prompt whose scores are exactly equal.

    All pairs of existing responses, labelled or not; NaN where there are none.
    """
    scores = np.where(present(table), table.scores, np.nan)
    left, right = np.triu_indices(scores.shape[1], 1)
    both = np.isfinite(scores[:, left]) & np.isfinite(scores[:, right])
    equal = (scores[:, left] == scores[:, right])[both]
    return float(equal.mean()) if len(equal) else float("nan")


def alarms(
    table: ScoreTable,
    *,
    progress: float = 1.0,
    human: bool = False,
    too_good: float = 0.95,
    early: float = 0.1,
    identical: float = 0.01,
    saturated: float = 0.1,
) -> list[str]:
    """What a person should look at before believing the figures, one sentence each.

    Args:
      table: may hold scores that are not finite; that is the first alarm, and the only
        one then.
      progress: share of the training done.
      human: people labelled this set: `too_good` holds at any time.
      too_good: accuracy above this is suspicious while progress < early.
      early: see too_good.
      identical: share of equal scores within prompts that is too many.
      saturated: share of label-ordered pairs with |Δ| >= 17 that is too many.
    """
    bad = present(table) & ~np.isfinite(table.scores)
    if bad.any():
        first = str(table.ids[int(np.argmax(bad.any(1)))])
        return [f"{int(bad.sum())} scores are not finite, first in example {first!r}"]
    out = []
    same = identical_share(table)
    if same > identical:
        out.append(
            f"identical scores: {same:.1%} of the pairs within prompts (limit "
            f"{identical:.1%}); is the scored token the same, or the head untrained?"
        )
    found = untied(pairs(table))
    right = accuracy(found).mean()
    if right > too_good and (human or progress < early):
        when = "on human labels" if human else f"after {progress:.1%} of training"
        out.append(
            f"too good: accuracy {right:.3f} {when} (limit {too_good}); does a label, "
            "an order or a length leak into the input?"
        )
    far = Sample((np.abs(found.delta) >= SATURATED) * 1.0, found.weight, found.prompts)
    if far.mean() > saturated:
        out.append(
            f"saturated: {far.mean():.1%} of the pairs have |Δ| >= {SATURATED:g} nats "
            f"(limit {saturated:.1%}), no gradient in float32; add centring or decay"
        )
    return out
