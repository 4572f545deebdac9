"""Laplace approximation of the last linear layer of a Bradley-Terry model.

The layer's weights w get the prior N(0, 1/δ) and, around where training left them, the
posterior N(w, (H + δ I)⁻¹) with

    H = Σ_pairs c σ(Δ) (1 - σ(Δ)) φ φᵀ

φ the difference of the two responses' features, Δ = w · φ and c the weight of the pair;
the pairs of an example weigh as much as it weighs in training. With Σ = (H + δ I)⁻¹ the
score of a response of features f has the variance fᵀ Σ f and a margin v = φᵀ Σ φ; a
preference then has the probability σ(Δ / sqrt(1 + π v / 8)), nearly
(evals/uncertainty.py).

δ maximises the evidence of the training pairs; with L their log-likelihood and λ the
eigenvalues of H it is

    L - δ |w|² / 2 + Σ_a log(δ / (λ_a + δ)) / 2

References: MacKay 1992, "A practical Bayesian framework for backpropagation networks"
and "The evidence framework applied to classification networks"; Daxberger 2021
(2106.14806); for reward models Yang 2024 (2402.13210).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.special import expit

# Head -> where in its parameters the layer is that its score is linear in.
LAST = {
    "linear": (),
    "mlp": ("kernel",),
    "odin": ("quality",),
    "length_expert": ("kernel",),
    "bottleneck": ("kernel",),
}
RANGE = 1e8  # δ is looked for this far below and above the mean eigenvalue of H


class Margins(NamedTuple):
    """Some training pairs.

    Attributes:
      features: φ, of the one response minus of the other.
      delta: Δ = w · φ.
      chance: probability, by label, that the one is preferred.
      weight: c > 0.
    """

    features: Float[np.ndarray, "n d"]
    delta: Float[np.ndarray, "n"]
    chance: Float[np.ndarray, "n"]
    weight: Float[np.ndarray, "n"]


class Posterior(NamedTuple):
    """N(w, Σ) of the last layer, Σ = U diag(1 / (λ + δ)) Uᵀ.

    Attributes:
      eigenvalues: λ of H, >= 0.
      eigenvectors: U, columns.
      prior_precision: δ.
      log_evidence: of the training pairs at δ, nats.
    """

    eigenvalues: Float[np.ndarray, "d"]
    eigenvectors: Float[np.ndarray, "d d"]
    prior_precision: float
    log_evidence: float

    def covariance(
        self, features: Float[np.ndarray, "*b k d"]
    ) -> Float[np.ndarray, "*b k k"]:
        """F Σ Fᵀ: of the scores of k responses, given the features of each."""
        root = self.eigenvectors / np.sqrt(self.eigenvalues + self.prior_precision)
        z = features.astype(np.float64) @ root
        return z @ np.swapaxes(z, -1, -2)


def fit(
    blocks: Iterable[Margins],
    weights: Float[np.ndarray, "d"],
    scale: float = 1.0,
) -> Posterior:
    """The posterior, from the training pairs block by block.

    Args:
      blocks: of the training pairs.
      weights: w of the trained model.
      scale: training pairs there are for one that is given, where these are a sample.

    Raises:
      ValueError: no pairs, or no feature that tells two responses apart.
    """
    d = len(weights)
    hessian, likelihood, n = np.zeros((d, d)), 0.0, 0
    for features, delta, chance, weight in blocks:
        x, p = features.astype(np.float64), expit(delta)
        hessian += (x * (weight * p * (1 - p))[:, None]).T @ x
        likelihood -= np.sum(weight * (np.logaddexp(0, -delta) + (1 - chance) * delta))
        n += len(delta)
    values, vectors = np.linalg.eigh(scale * hessian)
    values = np.maximum(values, 0.0)  # of a sum of squares; below is rounding
    if not n or not values.any():
        raise ValueError(
            f"{n} training pairs whose features do not differ, or that the model is "
            "already sure of: no posterior can be fitted"
        )
    square = float(np.sum(weights.astype(np.float64) ** 2))
    evidence = lambda prior: (
        scale * likelihood
        - prior * square / 2
        + np.sum(np.log(prior) - np.log(values + prior)) / 2
    )
    prior = _largest(evidence, values.mean())
    return Posterior(values, vectors, prior, float(evidence(prior)))


def _largest(evidence, around: float) -> float:
    """Where the evidence is largest: on a grid of δ, then between its neighbours."""
    grid = np.linspace(-np.log(RANGE), np.log(RANGE), 200) + np.log(around)
    best = int(np.argmax([evidence(np.exp(x)) for x in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(
        lambda x: -evidence(np.exp(x)), bounds=bounds, method="bounded"
    )
    return float(np.exp(found.x))
