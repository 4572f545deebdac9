"""What members, or a posterior, say of how sure a score is, and whether that is true.

Δ is the margin of a pair and s its standard deviation: over the members, or by the
covariance of a posterior. A useful s is larger where the model is wrong.
"""

import numpy as np
from jaxtyping import Bool, Float

from rm_jax.evals import best_of_n, calibration
from rm_jax.evals.accuracy import accuracy, credit
from rm_jax.evals.reducers import REDUCERS, reduce
from rm_jax.evals.table import (
    Pairs,
    ScoreTable,
    gold_pairs,
    pairs,
    present,
    rescored,
    untied,
)


def figures(table: ScoreTable, temperature: float = 1.0) -> dict[str, float]:
    """Figures of a table with members or a covariance; {} of one with neither.

    uncertainty/score_std, margin_std: mean s. auroc: how well s tells wrong pairs from
    right ones. aurc: mean error over the pairs of smallest s, from none to all of them
    (a random s has the error itself). accuracy_certain_half: accuracy on the half of
    smallest s. nll, brier, ece: of the corrected probability (`corrected`).

    With members: reducer/NAME/accuracy, nll, gold_accuracy, best_of_N/gold of every
    reducer with its default knob. members/accuracy ...: mean over the members, each
    alone. members/agreement: share of pairs that two members order alike.
    members/error_corr: correlation of the errors of two members; both are means over
    all two of them.

    Args:
      table: scores and labels.
      temperature: T of the model: P = σ(Δ / T).

    Raises:
      ValueError: see `check`.
    """
    if table.members is None and table.covariance is None:
        return {}
    out = _spread(table, temperature)
    if table.members is not None:
        out |= _members(table, temperature)
    return out


def margin_std(table: ScoreTable, found: Pairs) -> Float[np.ndarray, "n"]:
    """Standard deviation s of the margin of each pair, ddof 0 over members.

    Raises:
      ValueError: the table has neither members nor a covariance.
    """
    e, i, j = found.example, found.better, found.worse
    if table.members is not None:
        own = table.members.astype(np.float64)
        return (own[:, e, i] - own[:, e, j]).std(0)
    if table.covariance is None:
        raise ValueError("the table has no members and no covariance: no uncertainty")
    c = table.covariance.astype(np.float64)
    # A difference of nearly equal responses: rounding may leave it below 0.
    return np.sqrt(np.maximum(c[e, i, i] + c[e, j, j] - 2 * c[e, i, j], 0))


def corrected(
    delta: Float[np.ndarray, "n"], std: Float[np.ndarray, "n"], temperature: float = 1.0
) -> Float[np.ndarray, "n"]:
    """Δ / sqrt(1 + π s² / (8 T²)): σ of it, over T, is about E σ((Δ + s ε) / T).

    Reference: MacKay 1992, "The evidence framework applied to classification networks".
    """
    return delta / np.sqrt(1 + np.pi * std**2 / (8 * temperature**2))


def auroc(
    value: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    weight: Float[np.ndarray, "n"],
) -> float:
    """P(value of a positive > value of a negative), ties .5; NaN where one is lacking.

    Args:
      value: what should be larger for positives.
      positive: which are.
      weight: > 0.
    """
    _, place = np.unique(value, return_inverse=True)
    up = np.bincount(place, weight * positive)
    down = np.bincount(place, weight * ~positive, len(up))
    total = up.sum() * down.sum()
    if not total:
        return float("nan")
    return float(np.sum(up * (np.cumsum(down) - down / 2)) / total)


def risk_coverage(
    doubt: Float[np.ndarray, "n"],
    error: Float[np.ndarray, "n"],
    weight: Float[np.ndarray, "n"],
) -> tuple[Float[np.ndarray, "u"], Float[np.ndarray, "u"]]:
    """Mean error of the least doubtful pairs, against the share of weight they are.

    Pairs of equal doubt come in together: one point a value of doubt.

    Returns:
      coverage, rising to 1, and the error at each.

    Reference: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective
    classification".
    """
    _, place = np.unique(doubt, return_inverse=True)
    taken = np.cumsum(np.bincount(place, weight))
    wrong = np.cumsum(np.bincount(place, weight * error))
    return taken / taken[-1], wrong / taken


def _spread(table: ScoreTable, temperature: float) -> dict[str, float]:
    every = pairs(table)
    found = untied(every)
    std, error = margin_std(table, found), 1 - credit(found.delta)
    sure = corrected(every.delta, margin_std(table, every), temperature)
    sure = every._replace(delta=sure)
    out = {
        "score_std": _score_std(table),
        "nll": calibration.nll(sure, temperature).mean(),
        "brier": calibration.brier(sure, temperature).mean(),
        "ece": calibration.ece(calibration.reliability(sure, temperature)),
    }
    if len(std):
        decided = found.delta != 0  # of two equal scores neither is right
        coverage, risk = risk_coverage(std, error, found.weight)
        steps = np.diff(coverage, prepend=0)
        half = np.searchsorted(coverage, 0.5)
        out |= {
            "margin_std": float(np.average(std, weights=found.weight)),
            "auroc": auroc(std[decided], error[decided] > 0, found.weight[decided]),
            "aurc": float(np.sum(steps * risk)),
            "accuracy_certain_half": float(1 - risk[half]),
        }
    return {f"uncertainty/{name}": value for name, value in out.items()}


def _score_std(table: ScoreTable) -> float:
    here = present(table)
    if table.members is not None:
        std = table.members[:, here].astype(np.float64).std(0)
    else:
        std = np.sqrt(np.diagonal(table.covariance, axis1=1, axis2=2)[here])
    weight = np.broadcast_to(table.weight[:, None], here.shape)[here]
    return float(np.average(std, weights=weight))


def _members(table: ScoreTable, temperature: float) -> dict[str, float]:
    single, scores = table._replace(members=None), table.members
    known = pairs(single), gold_pairs(single)
    one = lambda own: _one(single._replace(scores=own), *known, temperature)
    out = {}
    for name in REDUCERS:
        figures = one(reduce(name, scores))
        out |= {f"reducer/{name}/{k}": v for k, v in figures.items()}
    each = [one(own) for own in scores]
    out |= {f"members/{k}": float(np.mean([v[k] for v in each])) for k in each[0]}
    decided = untied(known[0])
    if len(scores) > 1 and len(decided.weight):
        credits = np.array([credit(rescored(decided, own).delta) for own in scores])
        out |= _of_two(credits, decided.weight / decided.weight.sum())
    return out


def _of_two(
    credits: Float[np.ndarray, "m n"], weight: Float[np.ndarray, "n"]
) -> dict[str, float]:
    """Means over all two members; of one without errors there is no correlation."""
    two = np.triu_indices(len(credits), 1)
    same = [credits == value for value in (0.0, 0.5, 1.0)]
    alike = sum((x * weight) @ x.T for x in same)
    away = credits - (credits @ weight)[:, None]
    cov = (away * weight) @ away.T
    std = np.sqrt(np.diag(cov))[two[0]] * np.sqrt(np.diag(cov))[two[1]]
    out = {"members/agreement": float(alike[two].mean())}
    if (std > 0).any():
        out["members/error_corr"] = float((cov[two][std > 0] / std[std > 0]).mean())
    return out


def _one(
    table: ScoreTable, found: Pairs, gold: Pairs, temperature: float
) -> dict[str, float]:
    """The figures that reducers and members are compared by.

    Args:
      table: with the scores of one of them.
      found, gold: its pairs, of any scores.
      temperature: of the model.
    """
    found = rescored(found, table.scores)
    out = {
        "accuracy": accuracy(found).mean(),
        "nll": calibration.nll(found, temperature).mean(),
    }
    if np.isfinite(table.gold).any():
        out["gold_accuracy"] = accuracy(rescored(gold, table.scores)).mean()
    return out | best_of_n.curve(table)
