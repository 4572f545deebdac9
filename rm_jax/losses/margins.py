"""Losses on pairs that ask for a gap, or weigh a pair by how strong the preference is.

With Δ = r_w - r_l, the score of the preferred response minus that of the other, and
sp = softplus. A pair with a chance q of being the right way round, a `soft` label or a
tie (q = 1/2), costs q f(Δ) + (1 - q) f(-Δ); an example is the mean over its pairs.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.knobs import Allowed, Needs, Positive
from rm_jax.losses.pairwise import (
    Margin,
    TieKnobs,
    either_way,
    margins,
    mean_of_pairs,
    pairs,
)
from rm_jax.types import Labels, RewardOutput


class MarginKnobs(NamedTuple):
    """Knobs of `margin_bt` and `margin_mse`.

    Attributes:
      margin: m, in units of reward.
      margin_strength: added to the margin for each unit of the label `strength`.
      tie_weight: weight of a tied pair where an ordered pair weighs 1.
    """

    margin: Margin = 1.0
    margin_strength: Annotated[Positive, Needs("strength")] = 0.0
    tie_weight: Positive = 1.0


class ScaledKnobs(NamedTuple):
    """Knobs of `scaled_bt`.

    Attributes:
      scale: weight of a pair for each unit of the label `strength`.
      tie_weight: weight of a tied pair where an ordered pair weighs 1.
    """

    scale: Positive = 1.0
    tie_weight: Positive = 1.0


class HingeKnobs(NamedTuple):
    """Knobs of `hinge`.

    Attributes:
      margin: the gap from which on a pair costs nothing, in units of reward.
      tie_weight: weight of a tied pair where an ordered pair weighs 1.
    """

    margin: Positive = 1.0
    tie_weight: Positive = 1.0


def margin_bt(
    out: RewardOutput, labels: Labels, hparams: MarginKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = sp(m - Δ), m = margin + margin_strength * strength; 0 for a tie.

    Llama 2 grades a preference 0 (negligibly better) to 3 (significantly better): its
    small margins {0, 1/3, 2/3, 1} are margin = 0, margin_strength = 1/3, its large ones
    {0, 1, 2, 3} margin_strength = 1; where grades begin at 1, margin = -1/3 and -1 take
    the first one off again. m = 0 is `bt`. Where strength is not given m is the margin.

    Args:
      out: scores [e k].
      labels: ranks, present, soft, strength.
      hparams: see MarginKnobs.
      key: not used.

    References:
      Touvron 2023 (Llama 2) Eq. 2 and Table 27.
    """
    p = pairs(out, labels)
    m = margins(p, labels, hparams.margin, hparams.margin_strength)
    cost = either_way(p, lambda delta: jax.nn.softplus(m - delta))
    return mean_of_pairs(p, cost, hparams.tie_weight)


def adaptive_margin(
    out: RewardOutput, labels: Labels, hparams: TieKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = sp(μ - Δ), μ the label `strength`: what an ensemble finds r_w - r_l to be.

    μ may be negative, where the ensemble holds the label to be wrong. Where it is not
    given it is 0.

    Args:
      out: scores [e k].
      labels: ranks, present, soft, strength.
      hparams: see TieKnobs.
      key: not used.

    References:
      Wang 2024 (Secrets of RLHF II, 2401.06080).
    """
    p = pairs(out, labels)
    m = margins(p, labels, jnp.zeros(()), jnp.ones(()))
    cost = either_way(p, lambda delta: jax.nn.softplus(m - delta))
    return mean_of_pairs(p, cost, hparams.tie_weight)


def scaled_bt(
    out: RewardOutput, labels: Labels, hparams: ScaledKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = m sp(-Δ), m = scale * strength; a pair of strength 0 costs nothing.

    An example without a strength costs nothing. m = 1 is `bt`. Below 0 a pair would be
    learnt backwards: no run begins with such a strength.

    Args:
      out: scores [e k].
      labels: ranks, present, soft, strength.
      hparams: see ScaledKnobs.
      key: not used.

    References:
      Wang 2024 (HelpSteer2-Preference, 2410.01257).
    """
    p = pairs(out, labels)
    cost = either_way(p, lambda delta: jax.nn.softplus(-delta))
    strength = jnp.where(jnp.isfinite(labels.strength), labels.strength, 0.0)
    return hparams.scale * strength * mean_of_pairs(p, cost, hparams.tie_weight)


def hinge(
    out: RewardOutput, labels: Labels, hparams: HingeKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = max(0, m - Δ), m = margin, 0 for a tie: the margin ranking loss.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see HingeKnobs.
      key: not used.

    References:
      Herbrich 2000 (large margin rank boundaries).
    """
    p = pairs(out, labels)
    m = margins(p, labels, hparams.margin, jnp.zeros(()))
    cost = either_way(p, lambda delta: jax.nn.relu(m - delta))
    return mean_of_pairs(p, cost, hparams.tie_weight)


def margin_mse(
    out: RewardOutput, labels: Labels, hparams: MarginKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = (Δ - m)^2, m = margin + margin_strength * strength; 0 for a tie.

    Where strength is not given m is the margin.

    Args:
      out: scores [e k].
      labels: ranks, present, soft, strength.
      hparams: see MarginKnobs.
      key: not used.

    References:
      Hofstatter 2020 (2010.02666), with the label's margin for the teacher's.
    """
    p = pairs(out, labels)
    m = margins(p, labels, hparams.margin, hparams.margin_strength)
    cost = either_way(p, lambda delta: (delta - m) ** 2)
    return mean_of_pairs(p, cost, hparams.tie_weight)


adaptive_margin.needs = scaled_bt.needs = ("pairs", "strength")
scaled_bt.allows = lambda hparams: {"strength": Allowed(0.0, math.inf)}
margin_bt.needs = hinge.needs = margin_mse.needs = ("pairs",)
