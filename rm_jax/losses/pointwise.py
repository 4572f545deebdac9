"""Losses on single responses against a rating: regression, levels, good or bad.

They read `ratings` [e k a], which name the attributes a of a response, and leave out
those that are not given (NaN); a response with none costs nothing. An example is the
mean over what it has, so that one with many ratings weighs as much as one with few;
published code often pools the ratings of a batch, the same where all have equally many.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rm_jax.losses.knobs import Allowed, NoKnobs, Positive, Range
from rm_jax.types import Labels, RewardOutput


class OrdinalKnobs(NamedTuple):
    """Knobs of `ordinal`.

    Attributes:
      lowest: the rating that is the lowest level; the next is lowest + 1, and so on.
      levels: how many there are.
      gap: reward between the thresholds of two levels.
    """

    lowest: float = 0.0
    levels: Annotated[float, Range(2.0, 1e4)] = 5.0
    gap: Annotated[float, Range(1e-3, math.inf)] = 1.0


class BinaryKnobs(NamedTuple):
    """Knobs of `binary`.

    Attributes:
      reference: z, the reward at which good and bad are equally likely.
      desirable: weight of a good response.
      undesirable: weight of a bad one.
    """

    reference: float = 0.0
    desirable: Positive = 1.0
    undesirable: Positive = 1.0


def regress(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """Σ (ŷ - y)^2 / n over the n ratings y that an example has.

    Args:
      out: aux["attributes"] [e k a], ŷ.
      labels: ratings.
      hparams: none.
      key: not used.

    References:
      Wang 2023 (SteerLM, 2310.05344; HelpSteer2, 2406.08673).
    """
    y, given = ratings(labels)
    found = jnp.where(given, out.aux["attributes"], 0.0)
    return mean_of_given((found - y) ** 2, given)


def ordinal(
    out: RewardOutput, labels: Labels, hparams: OrdinalKnobs, key: Array
) -> Float[Array, "e"]:
    """-log P(y), P(y = c) = σ(θ_c - s) - σ(θ_{c-1} - s): the proportional odds model.

    s is the attribute, θ_c the thresholds between the levels c and c + 1: `gap` apart
    and centred on 0, θ below the lowest is -∞ and above the highest +∞. A rating that
    is no level, which no run begins with, makes the loss NaN.

    Args:
      out: aux["attributes"] [e k a], s.
      labels: ratings.
      hparams: see OrdinalKnobs.
      key: not used.

    References:
      McCullagh 1980.
    """
    y, given = ratings(labels)
    level, top = y - hparams.lowest, hparams.levels - 1.0
    sound = (level == jnp.round(level)) & (level >= 0.0) & (level <= top)
    threshold = lambda c: hparams.gap * (c - 0.5 * (top - 1.0))
    s = jnp.where(given, out.aux["attributes"], 0.0)
    above = threshold(level) - s  # σ of it: P(at most this level)
    below = threshold(level - 1.0) - s
    # σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b - a)); at an end one of the two is 1 or 0.
    inner = jnp.log(-jnp.expm1(-hparams.gap))
    logp = jnp.where(level >= top, 0.0, jax.nn.log_sigmoid(above))
    logp += jnp.where(level <= 0.0, 0.0, jax.nn.log_sigmoid(-below))
    logp += jnp.where((level > 0.0) & (level < top), inner, 0.0)
    return mean_of_given(jnp.where(sound, -logp, jnp.nan), given)


def binary(
    out: RewardOutput, labels: Labels, hparams: BinaryKnobs, key: Array
) -> Float[Array, "e"]:
    """λ_D y sp(z - r) + λ_U (1 - y) sp(r - z): good (y = 1) or bad, without a rival.

    y is the rating, between 0 and 1, of the only attribute; outside of that there is no
    lower bound, and no run begins.

    Args:
      out: scores [e k].
      labels: ratings.
      hparams: see BinaryKnobs.
      key: not used.

    Raises:
      ValueError: the data have several attributes.

    References:
      Ethayarajh 2024 (KTO, 2402.01306) for unpaired labels and their weights; the
      likelihood is that of a logistic regression.
    """
    y, given = single_rating(labels, "binary")
    r = jnp.where(given, out.scores.astype(jnp.float32), 0.0) - hparams.reference
    good, bad = jax.nn.softplus(-r), jax.nn.softplus(r)
    cost = hparams.desirable * y * good + hparams.undesirable * (1.0 - y) * bad
    return mean_of_given(cost, given)


def single_rating(
    labels: Labels, who: str
) -> tuple[Float[Array, "e k"], Bool[Array, "e k"]]:
    """The only attribute (0 where not given) and where it is given.

    Raises:
      ValueError: there are several.
    """
    if labels.ratings.shape[-1] != 1:
        raise ValueError(
            f"loss {who} takes one rating a response, the data have "
            f"{labels.ratings.shape[-1]} attributes: keep one in data.columns"
        )
    y, given = ratings(labels)
    return y[..., 0], given[..., 0]


def mean_of_given(values: Array, given: Array) -> Float[Array, "e"]:
    """Mean over everything but the first axis, of what is given; 0 where nothing is."""
    axes = tuple(range(1, values.ndim))
    n = jnp.sum(given, axis=axes, dtype=jnp.float32)
    total = jnp.sum(jnp.where(given, values, 0.0), axis=axes)
    return total / jnp.maximum(n, 1.0)


def ratings(labels: Labels) -> tuple[Float[Array, "e k a"], Bool[Array, "e k a"]]:
    """The ratings, 0 where not given, and where they are given."""
    given = jnp.isfinite(labels.ratings) & (labels.present > 0)[..., None]
    return jnp.where(given, labels.ratings, 0.0), given


regress.needs = ("ratings",)
ordinal.needs = ("ratings",)
binary.needs = ("ratings",)
ordinal.allows = lambda hparams: {
    "ratings": Allowed(
        float(hparams.lowest), float(hparams.lowest + hparams.levels - 1), 1.0
    )
}
binary.allows = lambda hparams: {"ratings": Allowed(0.0, 1.0)}
regress.outputs = ("attributes",)
ordinal.outputs = ("attributes",)
