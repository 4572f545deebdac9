"""Losses on pairs of other shapes: bounded, focused on hard pairs, one side at a time.

Δ = r_w - r_l and sp = softplus; averaging, soft labels and ties as in margins.py.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.knobs import Positive, Range
from rm_jax.losses.pairwise import (
    TieKnobs,
    either_way,
    mean_of_pairs,
    pairs,
)
from rm_jax.types import Labels, RewardOutput


class FocalKnobs(NamedTuple):
    """Knobs of `focal` and `focal_penalty`.

    Attributes:
      gamma: γ, how much pairs that are right already count less; 0 is `bt`.
      tie_weight: weight of a tied pair where an ordered pair weighs 1.
    """

    gamma: Positive = 2.0
    tie_weight: Positive = 1.0


class TemperedKnobs(NamedTuple):
    """Knobs of `tempered_bt`; temperature = t = 1 is `bt`.

    Attributes:
      temperature: T, in units of reward: how large a difference counts as sure.
      t: of the tempered logarithm; below 1 no pair costs more than 1 / (1 - t).
      tie_weight: weight of a tied pair where an ordered pair weighs 1.
    """

    temperature: Annotated[float, Range(1e-3, math.inf)] = 1.0
    t: Annotated[float, Range(0.0, 1.0, closed=True)] = 1.0
    tie_weight: Positive = 1.0


def focal(
    out: RewardOutput, labels: Labels, hparams: FocalKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = (1 - σ(Δ))^γ sp(-Δ).

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see FocalKnobs.
      key: not used.

    References:
      Lin 2017 (1708.02002) Eq. 4; as a reward loss Liu 2024 (Skywork-Reward).
    """

    def cost(delta):
        return jnp.exp(hparams.gamma * jax.nn.log_sigmoid(-delta)) * jax.nn.softplus(
            -delta
        )

    p = pairs(out, labels)
    return mean_of_pairs(p, either_way(p, cost), hparams.tie_weight)


def focal_penalty(
    out: RewardOutput, labels: Labels, hparams: FocalKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = (1 - 2 max(0, σ(Δ) - 1/2))^γ sp(-Δ): as `bt` where the pair is wrong.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see FocalKnobs.
      key: not used.

    References:
      Cai 2024 (InternLM2, 2403.17297).
    """

    def cost(delta):
        # 1 - 2 max(0, σ - 1/2) = min(1, 2 σ(-Δ))
        easy = jnp.minimum(0.0, math.log(2.0) + jax.nn.log_sigmoid(-delta))
        return jnp.exp(hparams.gamma * easy) * jax.nn.softplus(-delta)

    p = pairs(out, labels)
    return mean_of_pairs(p, either_way(p, cost), hparams.tie_weight)


def tempered_bt(
    out: RewardOutput, labels: Labels, hparams: TemperedKnobs, key: Array
) -> Float[Array, "e"]:
    """f(Δ) = -log_t σ(Δ / T), log_t(u) = (u^(1-t) - 1) / (1 - t), log_1 = log.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see TemperedKnobs.
      key: not used.

    References:
      Amid 2019 (bi-tempered logistic loss, 1906.03361).
    """
    u = 1.0 - hparams.t

    def cost(delta):
        logp = jax.nn.log_sigmoid(delta / hparams.temperature)
        bounded = -jnp.expm1(u * logp) / jnp.where(u == 0.0, 1.0, u)
        return jnp.where(u == 0.0, -logp, bounded)

    p = pairs(out, labels)
    return mean_of_pairs(p, either_way(p, cost), hparams.tie_weight)


def ce_pointwise(
    out: RewardOutput, labels: Labels, hparams: TieKnobs, key: Array
) -> Float[Array, "e"]:
    """sp(-r_w) + sp(r_l): is this response a preferred one, asked of each by itself.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see TieKnobs.
      key: not used.

    References:
      Sun 2025 (2411.04991), the classification reward.
    """
    p = pairs(out, labels)
    compared = p.compared | p.compared.transpose(0, 2, 1)
    r = jnp.where(compared.any(2), out.scores.astype(jnp.float32), 0.0)
    first, second = r[:, :, None], r[:, None, :]
    sp = jax.nn.softplus
    won, lost = sp(-first) + sp(second), sp(first) + sp(-second)
    cost = p.chance * won + (1.0 - p.chance) * lost
    return mean_of_pairs(p, jnp.where(p.compared, cost, 0.0), hparams.tie_weight)


focal.needs = focal_penalty.needs = tempered_bt.needs = ce_pointwise.needs = ("pairs",)
