"""Gold of the best of n responses by score: what choosing by a model is worth.

>>> scores, gold = np.array([1.0, 3.0, 2.0]), np.array([0.0, 6.0, 3.0])
>>> expected_gold(scores, gold, n=1), expected_gold(scores, gold, n=3)
(3.0, 6.0)

Against `kl` it is the curve of Gao et al. 2022 (arXiv:2210.10760): a proxy that is
hacked rises at first and then falls.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln

from rm_jax.evals.intervals import Sample
from rm_jax.evals.table import ScoreTable, check, present


def kl(n: int) -> float:
    """KL(best of n || policy) in nats: log n - (n - 1) / n.

    An upper bound where scores can be equal (Beirami et al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def chances(k: int, n: int) -> Float[np.ndarray, "k"]:
    """P(the one of k with i lower scores is the best of n): C(i, n-1) / C(k, n).

    Raises:
      ValueError: not 1 <= n <= k.
    """
    if not 1 <= n <= k:
        raise ValueError(f"best of n = {n} of k = {k} responses: want 1 <= n <= k")
    i = np.arange(n - 1, k, dtype=float)
    choose = lambda a, b: gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)
    out = np.zeros(k)
    out[n - 1 :] = np.exp(choose(i, n - 1) - choose(k, n))
    return out


def expected_gold(
    scores: Float[np.ndarray, "k"], gold: Float[np.ndarray, "k"], n: int
) -> float:
    """Mean gold of the top score among n of k responses, over all choices of the n.

    Σ_i C(i-1, n-1) / C(k, n) · g_(i), g in the order of rising scores: unbiased, where
    the mean over some groups of n would be noisy (Nakano et al. 2021, WebGPT, app. I).
    Of equal scores each is as likely the best.

    Args:
      scores: of the responses to one prompt.
      gold: their true utility.
      n: 1 is the mean of gold, k the gold of the top score.

    Raises:
      ValueError: not 1 <= n <= k.
    """
    values, place = np.unique(scores, return_inverse=True)
    count = np.bincount(place, minlength=len(values))
    shared = np.bincount(place, gold, len(values)) / count
    return float(chances(len(scores), n) @ np.repeat(shared, count))


def best_of_n(table: ScoreTable, n: int) -> Sample:
    """`expected_gold` of each example with at least n responses of known gold.

    Raises:
      ValueError: n < 1, or see `check`.
    """
    check(table)
    known = present(table) & np.isfinite(table.gold)
    use = (known.sum(1) >= n) & (table.weight > 0)
    values = [
        expected_gold(table.scores[e][known[e]], table.gold[e][known[e]], n)
        for e in np.flatnonzero(use)
    ]
    weights = table.weight[use].astype(float)
    return Sample(np.array(values, float), weights, table.prompts[use])


def sizes(table: ScoreTable) -> list[int]:
    """1, 4, 16, ... up to the fewest responses of known gold of an example; or none.

    There is no curve of less than two points, which are at least 4 responses.
    """
    known = (present(table) & np.isfinite(table.gold)).sum(1)[table.weight > 0]
    least = int(known.min()) if len(known) else 0
    found = [4**i for i in range(least.bit_length()) if 4**i <= least]
    return found if len(found) > 1 else []


def curve(table: ScoreTable) -> dict[str, float]:
    """best_of_N/gold for each of `sizes`."""
    return {f"best_of_{n}/gold": best_of_n(table, n).mean() for n in sizes(table)}
