"""Losses for heads that predict a distribution of the rating: quantiles, a Gaussian.

Ratings [e k a] that are not given (NaN) are left out, as in pointwise.py.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rm_jax.losses.knobs import NoKnobs
from rm_jax.losses.pointwise import mean_of_given, ratings
from rm_jax.types import Labels, RewardOutput


def levels(n: int) -> Float[Array, "n"]:
    """The quantile levels τ of n outputs: i / (n + 1), i = 1 ... n."""
    return jnp.arange(1, n + 1, dtype=jnp.float32) / (n + 1)


def quantile(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """Σ_τ ρ_τ(y - q_τ), ρ_τ(u) = u (τ - 1{u < 0}), averaged over an example's ratings.

    Each output is drawn to its quantile of y; `levels` has the τ.

    Args:
      out: aux["quantiles"] [e k a n], q.
      labels: ratings, y.
      hparams: none.
      key: not used.

    References:
      Koenker & Bassett 1978; Dorka 2024 (QRM, 2409.10164).
    """
    y, given = ratings(labels)
    q = jnp.where(given[..., None], out.aux["quantiles"], 0.0)
    u = y[..., None] - q
    tau = levels(q.shape[-1])[None, None, None]
    pinball = u * (tau - (u < 0.0).astype(jnp.float32))
    return mean_of_given(jnp.sum(pinball, axis=-1), given)


def gaussian_mle(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """-log N(y; μ, σ²) = log σ + ((y - μ) / σ)² / 2 + log(2π) / 2.

    Args:
      out: aux["attributes"] [e k a], μ; aux["log_std"] [e k a], log σ.
      labels: ratings, y.
      hparams: none.
      key: not used.

    References:
      Lou 2024 (URM, 2410.00847) Eq. 2.
    """
    y, given = ratings(labels)
    mean, log_std = _gaussian(out, given)
    z = (y - mean) * jnp.exp(-log_std)
    return mean_of_given(log_std + 0.5 * z**2 + 0.5 * math.log(2 * math.pi), given)


def gaussian_reparam(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """(μ + ε σ - y)², ε ~ N(0, 1): a squared error that is sampled.

    Its expectation is (μ - y)² + σ², so that σ goes to 0: it measures no noise.

    Args:
      out: aux["attributes"] [e k a], μ; aux["log_std"] [e k a], log σ.
      labels: ratings, y.
      hparams: none.
      key: of ε.

    References:
      Lou 2024 (URM, 2410.00847) Eq. 3.
    """
    y, given = ratings(labels)
    mean, log_std = _gaussian(out, given)
    noise = jax.random.normal(key, mean.shape, jnp.float32)
    return mean_of_given((mean + noise * jnp.exp(log_std) - y) ** 2, given)


def _gaussian(
    out: RewardOutput, given: Bool[Array, "e k a"]
) -> tuple[Float[Array, "e k a"], Float[Array, "e k a"]]:
    both = out.aux["attributes"], out.aux["log_std"]
    mean, log_std = (jnp.where(given, x, 0.0) for x in both)
    return mean, log_std


quantile.needs = ("ratings",)
gaussian_mle.needs = ("ratings",)
gaussian_reparam.needs = ("ratings",)
quantile.outputs = ("quantiles",)
gaussian_mle.outputs = ("attributes", "log_std")
gaussian_reparam.outputs = ("attributes", "log_std")
