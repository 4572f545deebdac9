"""Whether score differences are log-odds: P(better wins) = σ(Δ / T).

Every pair counts twice, as (P, y) and as (1 - P, 1 - y). A data set lists its better
response first, so y would always be 1 and a confidence bin could only be "too low";
symmetrised, the figures do not depend on which response comes first.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rm_jax.evals.intervals import Sample
from rm_jax.evals.table import Pairs

BINS = 20


class Reliability(NamedTuple):
    """Symmetrised pairs by predicted probability, in equal bins of [0, 1].

    Attributes:
      edges: of the bins.
      confidence: mean predicted probability in each bin; NaN where it is empty.
      share: weighted share of wins in each bin; NaN where it is empty.
      weight: share of the total weight; sums to 1.
      n: number of pair orders.
    """

    edges: Float[np.ndarray, "b+1"]
    confidence: Float[np.ndarray, "b"]
    share: Float[np.ndarray, "b"]
    weight: Float[np.ndarray, "b"]
    n: np.ndarray


def nll(found: Pairs, temperature: float = 1.0) -> Sample:
    """Negative log-likelihood, nats: -y log σ(Δ/T) - (1 - y) log σ(-Δ/T).

    y is 1, .5 for a labelled tie, or the soft label. Exact for any finite Δ. A model
    that knows nothing gets log 2 = .693.

    Raises:
      ValueError: temperature not above 0.
    """
    logit = _logits(found, temperature)
    values = np.logaddexp(0, -logit) + (1 - found.target) * logit
    return Sample(values, found.weight, found.prompts)


def brier(found: Pairs, temperature: float = 1.0) -> Sample:
    """Brier score (σ(Δ/T) - y)²: .25 knows nothing; both orders of a pair are equal.

    Raises:
      ValueError: temperature not above 0.

    Reference: Brier 1950.
    """
    values = (expit(_logits(found, temperature)) - found.target) ** 2
    return Sample(values, found.weight, found.prompts)


def reliability(
    found: Pairs, temperature: float = 1.0, bins: int = BINS
) -> Reliability:
    """Confidence against share of wins over `bins` equal bins of symmetrised pairs.

    Raises:
      ValueError: no pairs, or temperature not above 0.
    """
    if not len(found.delta):
        raise ValueError("no labelled pairs: nothing to calibrate against")
    logit = _logits(found, temperature)
    predicted = np.concatenate([expit(logit), expit(-logit)])
    won = np.concatenate([found.target, 1 - found.target])
    weight = np.concatenate([found.weight, found.weight])
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    total = np.bincount(place, weight, bins)
    safe = np.where(total > 0, total, np.nan)
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        confidence=np.bincount(place, weight * predicted, bins) / safe,
        share=np.bincount(place, weight * won, bins) / safe,
        weight=total / total.sum(),
        n=np.bincount(place, minlength=bins),
    )


def ece(table: Reliability) -> float:
    """Expected calibration error: Σ_b weight_b · |share_b - confidence_b|.

    Reference: Naeini, Cooper and Hauskrecht 2015.
    """
    return float(np.nansum(table.weight * np.abs(table.share - table.confidence)))


def mce(table: Reliability) -> float:
    """Maximum calibration error: max_b |share_b - confidence_b| over filled bins."""
    return float(np.nanmax(np.abs(table.share - table.confidence)))


def fit_temperature(found: Pairs) -> float:
    """The T > 0 that minimises the mean NLL of σ(Δ / T) on these pairs.

    Searched between 1/1000 and 1000 times the root mean square of Δ. Scores that order
    every pair rightly want T = 0 and scores that are wrong on balance want T = ∞: they
    get the lower and the upper end. 1 where all scores are equal (no T matters).

    Raises:
      ValueError: no pairs.

    Reference: Guo et al. 2017, "On calibration of modern neural networks".
    """
    if not len(found.delta):
        raise ValueError("no labelled pairs: no temperature to fit")
    scale = np.abs(found.delta).max()
    if scale == 0:
        return 1.0
    rms = scale * np.sqrt(np.average((found.delta / scale) ** 2, weights=found.weight))
    loss = lambda log_t: nll(found, rms * np.exp(log_t)).mean()
    end = np.log(1000.0)
    fit = minimize_scalar(
        loss, bounds=(-end, end), method="bounded", options={"xatol": 1e-6}
    )
    return float(rms * np.exp(fit.x))


def _logits(found: Pairs, temperature: float) -> Float[np.ndarray, "n"]:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, want a number above 0")
    return found.delta / temperature
