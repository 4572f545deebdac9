"""Losses on pairs for labels that are wrong now and then.

Δ = r_w - r_l and sp = softplus; averaging, soft labels and ties as in margins.py.
"""

from typing import Annotated, NamedTuple

import jax
from jaxtyping import Array, Float

from rm_jax.losses.knobs import Positive, Range
from rm_jax.losses.pairwise import (
    TieKnobs,
    bt,
    either_way,
    mean_of_pairs,
    pairs,
)
from rm_jax.types import Labels, RewardOutput

Flips = Annotated[float, Range(0.0, 0.5)]


class FlipKnobs(NamedTuple):
    """Knobs of `label_smooth` and `robust_bt`.

    Attributes:
      flips: ε, the share of stated preferences that are the wrong way round.
      tie_weight: weight of a tied pair where an ordered pair weighs 1.
    """

    flips: Flips = 0.1
    tie_weight: Positive = 1.0


def label_smooth(
    out: RewardOutput, labels: Labels, hparams: FlipKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = (1 - ε) sp(-Δ) + ε sp(Δ): least where σ(Δ) = 1 - ε.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see FlipKnobs.
      key: not used.

    References:
      Mitchell 2023 (cDPO).
    """
    e = hparams.flips
    p = pairs(out, labels)
    sp = jax.nn.softplus
    cost = either_way(p, lambda delta: (1.0 - e) * sp(-delta) + e * sp(delta))
    return mean_of_pairs(p, cost, hparams.tie_weight)


def robust_bt(
    out: RewardOutput, labels: Labels, hparams: FlipKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = [(1 - ε) sp(-Δ) - ε sp(Δ)] / (1 - 2 ε).

    Its expectation over labels flipped with probability ε is `bt` on the true labels.
    It has no lower bound: as Δ grows it falls by ε / (1 - 2 ε) a unit.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see FlipKnobs.
      key: not used.

    References:
      Natarajan 2013 (Lemma 1); Chowdhury 2024 (robust DPO, 2403.00409).
    """
    e = hparams.flips
    p = pairs(out, labels)
    sp = jax.nn.softplus
    cost = either_way(p, lambda delta: (1.0 - e) * sp(-delta) - e * sp(delta))
    return mean_of_pairs(p, cost, hparams.tie_weight) / (1.0 - 2.0 * e)


def soft_label(
    out: RewardOutput, labels: Labels, hparams: TieKnobs, key: Array
) -> Float[Array, "e"]:
    """p sp(-Δ) + (1 - p) sp(Δ), p the label `soft`; `bt` where it is not given.

    The data set must have soft labels, such as σ(mean strength over an ensemble); that
    is all that sets it apart from `bt`, which takes them where they are.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see TieKnobs.
      key: not used.

    References:
      Wang 2024 (Secrets of RLHF II, 2401.06080).
    """
    return bt(out, labels, hparams, key)


soft_label.needs = ("pairs", "soft")
label_smooth.needs = robust_bt.needs = ("pairs",)
