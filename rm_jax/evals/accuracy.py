"""Agreement with the labels, beside what response length alone would get.

Functions return a `Sample`: one credit a pair (or example). `.mean()` is the figure,
`intervals` gives its interval.
"""

import numpy as np
from jaxtyping import Float

from rm_jax.evals.intervals import Sample
from rm_jax.evals.table import Pairs, ScoreTable, check, pairs, present, select, untied


def credit(delta: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """1 where the better response has the higher score, .5 where equal, else 0."""
    return 0.5 * (1 + np.sign(delta))


def accuracy(found: Pairs) -> Sample:
    """Share of label-ordered pairs that the scores order the same way; a tie is .5.

    Args:
      found: pairs by label (`pairs`) or by gold (`gold_pairs`); label ties don't count.
    """
    return _credits(untied(found))


def tie_rate(found: Pairs) -> Sample:
    """Share of label-ordered pairs whose two scores are exactly equal."""
    kept = untied(found)
    return Sample((kept.delta == 0).astype(float), kept.weight, kept.prompts)


def length_baseline(found: Pairs) -> float:
    """Accuracy of the better of two rules that read nothing: longer wins, shorter wins.

    max(a, 1 - a) with a the accuracy of the length as a score, ties .5. NaN without
    label-ordered pairs. Never below .5, and chosen on these very pairs, so it is what a
    content-blind model could reach at best.
    """
    kept = untied(found)
    longer = Sample(credit(kept.length_delta), kept.weight, kept.prompts).mean()
    return float(np.maximum(longer, 1 - longer))


def length_matched(found: Pairs, tolerance: float = 0.1) -> Sample:
    """Accuracy over pairs of nearly equal length: |ΔL| <= tolerance · mean length."""
    near = np.abs(found.length_delta) <= tolerance * found.length_mean
    return _credits(select(found, near & ~found.tie))


def longer_chosen(found: Pairs) -> Sample:
    """Accuracy over pairs whose better response is the longer one."""
    return _credits(select(found, (found.length_delta > 0) & ~found.tie))


def shorter_chosen(found: Pairs) -> Sample:
    """Accuracy over pairs whose better response is the shorter one."""
    return _credits(select(found, (found.length_delta < 0) & ~found.tie))


def best_of_k(table: ScoreTable) -> Sample:
    """Whether the top score is on a best-ranked response; one value an example.

    credit = |top ∩ best| / |top|, top being the ranked responses that share the highest
    score. Counts examples with at least 3 ranked responses, not all of them best.

    Raises:
      ValueError: see `check`.

    Reference: Malik et al. 2025, RewardBench 2 (credit 1/#tied).
    """
    check(table)
    ranked = present(table) & (table.ranks >= 0)
    scores = np.where(ranked, table.scores, -np.inf)
    ranks = np.where(ranked, table.ranks, np.iinfo(np.int64).max)
    top = ranked & (scores == scores.max(1, keepdims=True))
    best = ranked & (ranks == ranks.min(1, keepdims=True))
    count = ranked.sum(1)
    use = (count >= 3) & (best.sum(1) < count) & (table.weight > 0)
    hits = (top & best).sum(1)[use] / top.sum(1)[use]
    return Sample(hits, table.weight[use].astype(float), table.prompts[use])


def kendall_tau(table: ScoreTable) -> Sample:
    """Kendall's τ_b of scores and ranks; one value an example.

    τ_b = (concordant - discordant) / sqrt((n - label ties)(n - score ties)) over the n
    pairs of an example, and 0 where all its scores are equal. Counts examples with at
    least 3 ranked responses, not all of them tied.

    Raises:
      ValueError: see `check`.

    Reference: Kendall 1945, "The treatment of ties in ranking problems".
    """
    found = pairs(table)
    e = len(table.ids)
    count = lambda mask: np.bincount(found.example, mask, e)
    n = count(np.ones(len(found.example)))
    agree = count(np.where(found.tie, 0, np.sign(found.delta)))
    spread = (n - count(found.tie)) * (n - count(found.delta == 0))
    use = (n >= 3) & (n > count(found.tie))
    tau = np.where(spread > 0, agree / np.sqrt(np.maximum(spread, 1)), 0.0)
    return Sample(tau[use], table.weight[use].astype(float), table.prompts[use])


def _credits(kept: Pairs) -> Sample:
    return Sample(credit(kept.delta), kept.weight, kept.prompts)
