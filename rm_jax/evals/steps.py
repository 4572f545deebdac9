"""Figures of step scores where steps are labelled: each step, and the first error.

A step is called right where its score, log-odds, is above 0; labelled right from 1/2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from rm_jax.evals.intervals import Sample


class StepTable(NamedTuple):
    """Steps of the responses of a score table.

    Attributes:
      scores: log-odds that the step is right; NaN where there is none.
      labels: 1 right, 0 wrong; NaN where not given.
    """

    scores: Float[np.ndarray, "e k p"]
    labels: Float[np.ndarray, "e k p"]


def samples(
    steps: StepTable, weight: Float[np.ndarray, "e"], prompts: np.ndarray
) -> dict[str, Sample]:
    """step_accuracy, one a labelled step, and first_error_accuracy, one a response.

    A response is credited with its first error where the first step that is called
    wrong is the first that is labelled wrong, or there is neither; steps without a
    label are passed over. A score of 0 is half right in the one, no error in the other.

    Args:
      steps: scores and labels.
      weight: of each example; 0 counts in nothing.
      prompts: cluster of each example.

    Reference: Zheng et al. 2024, ProcessBench (2412.06559), for the first error.
    """
    use = _labelled(steps, weight)
    right, wrong = steps.labels >= 0.5, steps.scores < 0
    credit = np.where(steps.scores == 0, 0.5, right != wrong)
    first = lambda bad: np.where(bad.any(2), bad.argmax(2), -1)
    found = (first(use & wrong) == first(use & ~right)).astype(float)
    e, _, _ = np.nonzero(use)
    rows, _ = np.nonzero(use.any(2))
    return {
        "step_accuracy": Sample(credit[use], weight[e].astype(float), prompts[e]),
        "first_error_accuracy": Sample(
            found[use.any(2)], weight[rows].astype(float), prompts[rows]
        ),
    }


def figures(steps: StepTable, weight: Float[np.ndarray, "e"]) -> dict[str, float]:
    """n_steps (labelled), step_right_share (what calling all right would get), and
    step_auroc: P(a right step scores above a wrong one), ties half; NaN without both.
    """
    use = _labelled(steps, weight)
    right, ranks = steps.labels[use] >= 0.5, rankdata(steps.scores[use])
    n, good = float(len(right)), float(right.sum())
    auroc = float("nan")
    if 0 < good < n:
        above = ranks[right].sum() - good * (good + 1) / 2
        auroc = float(above / (good * (n - good)))
    share = good / n if n else float("nan")
    return {"n_steps": n, "step_right_share": share, "step_auroc": auroc}


def _labelled(steps: StepTable, weight: np.ndarray) -> np.ndarray:
    both = np.isfinite(steps.scores) & np.isfinite(steps.labels)
    return both & (weight > 0)[:, None, None]
