"""The compared pairs of an example, and the likelihood of what people said of them.

`pairs` and `mean_of_pairs` are what every loss on pairs is made of (margins.py,
noise.py, ties.py). All are written for scores [e k] of one model; members are vmapped
by the caller.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rm_jax.losses.knobs import Needs, Positive, Range
from rm_jax.types import Labels, RewardOutput

Margin = Annotated[float, Range(-math.inf, math.inf)]  # below 0 where strength adds


class TieKnobs(NamedTuple):
    """Knobs of a loss on pairs that has none of its own.

    Attributes:
      tie_weight: weight of a tied pair where an ordered pair weighs 1; 0 drops ties.
    """

    tie_weight: Positive = 1.0


class BradleyTerryKnobs(NamedTuple):
    """Knobs of `bradley_terry`; at the defaults it is the plain loss.

    Attributes:
      margin: m, in units of reward.
      margin_strength: added to the margin for each unit of the label `strength`.
      label_smoothing: probability that a stated preference is the wrong way round.
      tie_weight: weight of a tied pair where an ordered pair weighs 1.
    """

    margin: Margin = 0.0
    margin_strength: Annotated[float, Range(0.0, math.inf), Needs("strength")] = 0.0
    label_smoothing: Annotated[float, Range(0.0, 0.5)] = 0.0
    tie_weight: Positive = 1.0


class Pairs(NamedTuple):
    """The compared pairs (i, j), i < j, of each example, in a square of all pairs.

    Attributes:
      compared: whether people compared i and j.
      tied: whether they found them equal.
      chance: probability that i is preferred to j; 1/2 where not compared.
      delta: by how much the model prefers i to j: r_i - r_j, or aux["preference"] of a
        head that compares responses; 0 where not compared.
    """

    compared: Bool[Array, "e k k"]
    tied: Bool[Array, "e k k"]
    chance: Float[Array, "e k k"]
    delta: Float[Array, "e k k"]


def pairs(out: RewardOutput, labels: Labels) -> Pairs:
    """The pairs that the labels compare: both responses exist and are ranked.

    A finite soft label replaces the ranks: then (0, 1) is the example's only pair.
    """
    k = labels.ranks.shape[-1]
    upper = jnp.triu(jnp.ones((k, k), bool), 1)[None]
    first = (jnp.arange(k * k) == 1).reshape(1, k, k)  # the pair (0, 1); none if k = 1
    soft = jnp.isfinite(labels.soft)[:, None, None]
    present = labels.present > 0
    ranked = present & (labels.ranks >= 0)
    left, right = labels.ranks[:, :, None], labels.ranks[:, None, :]
    compared = jnp.where(soft, first & _both(present), upper & _both(ranked))
    tied = compared & ~soft & (left == right)
    hard = jnp.where(left == right, 0.5, jnp.where(left < right, 1.0, 0.0))
    chance = jnp.where(soft, jnp.where(soft, labels.soft[:, None, None], 0.5), hard)
    # A square and sums over its axes, not gathers: their gradient is a scatter-add,
    # whose order, so whose rounding, a GPU does not keep from run to run. The unused
    # differences become 0 before anything that is not linear sees them, so whatever
    # unused scores hold, value and gradient stay finite.
    r = out.scores.astype(jnp.float32)
    delta = out.aux.get("preference", r[:, :, None] - r[:, None, :])
    delta = jnp.where(compared, delta, 0.0)
    return Pairs(compared, tied, jnp.where(compared, chance, 0.5), delta)


def _both(flag: Bool[Array, "e k"]) -> Bool[Array, "e k k"]:
    return flag[:, :, None] & flag[:, None, :]


def bt(
    out: RewardOutput, labels: Labels, hparams: TieKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = sp(-Δ) = -log σ(Δ): Bradley-Terry, `bradley_terry` without its knobs.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see TieKnobs.
      key: not used.

    References:
      Bradley & Terry 1952; Christiano 2017; Stiennon 2020; Ouyang 2022 Eq. 1.
    """
    p = pairs(out, labels)
    cost = either_way(p, lambda delta: jax.nn.softplus(-delta))
    return mean_of_pairs(p, cost, hparams.tie_weight)


def bradley_terry(
    out: RewardOutput, labels: Labels, hparams: BradleyTerryKnobs, key: Array
) -> Float[Array, "e"]:
    """Negative log-likelihood of the preferences, a mean over an example's pairs.

    With Δ = r_i - r_j, sp = softplus, m = margin + margin_strength * strength, q the
    probability that i is preferred (1 or 0 by rank, 1/2 for a tie, `soft` where given)
    and q' = q (1 - ε) + (1 - q) ε, ε = label_smoothing:

      pair(i, j) = q' sp(-(Δ - m)) + (1 - q') sp(Δ + m)     m = 0 for a tie
      loss = Σ w pair / Σ w                                 w = 1, tie_weight for a tie

    Both terms subtract the margin from the side that they call preferred: a flipped
    label asks for the same gap, the other way. An example of ties only weighs
    tie_weight as a whole (a relative weight would cancel); one without a compared pair
    is 0 with gradient 0. Where strength is not given the margin is `margin`.

    Args:
      out: scores [e k].
      labels: ranks, present, soft, strength.
      hparams: see BradleyTerryKnobs.
      key: not used.

    Returns:
      One float32 loss an example.

    References:
      Pairs averaged a prompt: Ouyang 2022 Eq. 1. Margin: Touvron 2023 (Llama 2) Eq. 2.
      Smoothing: Mitchell 2023 (cDPO).
    """
    p = pairs(out, labels)
    m = margins(p, labels, hparams.margin, hparams.margin_strength)
    eps = hparams.label_smoothing
    p = p._replace(chance=p.chance * (1.0 - eps) + (1.0 - p.chance) * eps)
    both = either_way(p, lambda delta: jax.nn.softplus(m - delta))
    return mean_of_pairs(p, both, hparams.tie_weight)


def either_way(p: Pairs, value: Callable[[Array], Array]) -> Float[Array, "e k k"]:
    """q f(Δ) + (1 - q) f(-Δ), q the chance that i is preferred: what a pair costs.

    Args:
      p: of `pairs`.
      value: f, the cost where the preferred response leads by its argument.
    """
    return p.chance * value(p.delta) + (1.0 - p.chance) * value(-p.delta)


def margins(
    p: Pairs, labels: Labels, constant: Array, by_strength: Array
) -> Float[Array, "e k k"]:
    """constant + by_strength * strength of each pair; 0 for a tie.

    Where strength is not given it is the constant.
    """
    strength = jnp.where(jnp.isfinite(labels.strength), labels.strength, 0.0)
    m = constant + by_strength * strength
    return jnp.where(p.tied, 0.0, m[:, None, None])


def mean_of_pairs(
    p: Pairs, values: Float[Array, "e k k"], tie_weight: Array
) -> Float[Array, "e"]:
    """Mean over an example's pairs, tied ones weighing tie_weight; 0 without a pair.

    An example of ties only weighs tie_weight as a whole: a relative weight would
    cancel.
    """
    ordered, tied = _count(p.compared & ~p.tied), _count(p.tied)
    w = jnp.where(p.tied, tie_weight, jnp.where(p.compared, 1.0, 0.0))
    norm = jnp.where(ordered > 0, ordered + tie_weight * tied, tied)
    return jnp.sum(w * values, axis=(1, 2)) / jnp.where(norm > 0, norm, 1.0)


def _count(flags: Bool[Array, "e k k"]) -> Float[Array, "e"]:
    return jnp.sum(flags, axis=(1, 2), dtype=jnp.float32)


bt.needs = bradley_terry.needs = ("pairs",)
