"""Regularisers: terms added to a loss, each times its knob `weight`.

Three kinds: one value an example; a function of the parameters; or sums over examples
(`stats`), which the step adds up over all chunks and hosts, and a function of those
sums (`value`), so that a correlation is the one of the whole batch under any layout.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.knobs import Positive
from rm_jax.losses.pairwise import pairs
from rm_jax.types import Labels, RewardOutput

LENGTH_UNIT = 256.0  # tokens; see length_sums
NOISE = (
    1e-5  # relative: a float32 variance below this share of the mean square is noise
)


class Regularizer(NamedTuple):
    """One kind of regulariser: set `per_example`, or `params`, or `stats` and `value`.

    Attributes:
      per_example: (out, labels, hparams, key) -> [e].
      params: (params, hparams) -> scalar.
      stats: (out, labels, hparams) -> pytree of sums over examples.
      value: (sums, hparams) -> scalar.
      across_members: whether `params` gets the parameters of all members at once, what
        they own with its leading axis m (1 for a single model).
    """

    per_example: Callable[..., Array] | None = None
    params: Callable[..., Array] | None = None
    stats: Callable[..., object] | None = None
    value: Callable[..., Array] | None = None
    across_members: bool = False


class WeightKnobs(NamedTuple):
    """The knob that every regulariser must have: what its term is multiplied with."""

    weight: Positive = 0.01


class SquareKnobs(NamedTuple):
    """The knob of `score_l2`, .001 in Open-Assistant's code and Coste's config."""

    weight: Positive = 0.001


class LengthSums(NamedTuple):
    """Weighted sums over responses; l is (length - 256) / 256.

    A variance is a difference of two of these sums, and loses the digits that they
    have in common: many where the mean is large against the spread. So lengths are
    counted from a constant amid those of usual responses; a correlation does not change
    with origin or unit. Rewards are left as they are; `center` keeps them near 0.
    """

    n: Float[Array, ""]
    r: Float[Array, ""]
    l: Float[Array, ""]
    rr: Float[Array, ""]
    ll: Float[Array, ""]
    rl: Float[Array, ""]


def center(
    out: RewardOutput, labels: Labels, hparams: WeightKnobs, key: Array
) -> Float[Array, "e"]:
    """Mean of (r_i + r_j)² over the pairs compared in an example; 0 without one.

    Pairwise losses leave the origin of the reward free; this fixes it.

    Args:
      out: scores [e k].
      labels: ranks, present, soft: which pairs are compared.
      hparams: weight, 0.01 in the paper.
      key: not used.

    References:
      Eisenstein 2023 (2312.09244) Eq. 2.
    """
    compared = pairs(out, labels).compared
    r = out.scores.astype(jnp.float32)
    square = jnp.where(compared, r[:, :, None] + r[:, None, :], 0.0) ** 2
    n = jnp.sum(compared, axis=(1, 2), dtype=jnp.float32)
    return jnp.sum(square, axis=(1, 2)) / jnp.maximum(n, 1.0)


def score_l2(
    out: RewardOutput, labels: Labels, hparams: SquareKnobs, key: Array
) -> Float[Array, "e"]:
    """Mean of r² over the responses of an example, ranked or not.

    Args:
      out: scores [e k].
      labels: present.
      hparams: weight.
      key: not used.

    References:
      Köpf 2023 (Open-Assistant), by which Coste 2023 (2310.02743) trains.
    """
    present = labels.present > 0
    r = jnp.where(present, out.scores.astype(jnp.float32), 0.0)
    n = jnp.sum(present, axis=1, dtype=jnp.float32)
    return jnp.sum(r**2, axis=1) / jnp.maximum(n, 1.0)


def length_sums(out: RewardOutput, labels: Labels, hparams: WeightKnobs) -> LengthSums:
    """The sums that `length_correlation` is made of, over the present responses.

    Args:
      out: scores [e k].
      labels: present, lengths, weight.
      hparams: not used here.
    """
    present = labels.present > 0
    w = jnp.where(present, labels.weight.astype(jnp.float32)[:, None], 0.0)
    r = jnp.where(present, out.scores.astype(jnp.float32), 0.0)
    l = (labels.lengths.astype(jnp.float32) - LENGTH_UNIT) / LENGTH_UNIT
    terms = (w, w * r, w * l, w * r * r, w * l * l, w * r * l)
    return LengthSums(*(jnp.sum(t) for t in terms))


class WinnerSums(NamedTuple):
    """Weighted sums over examples: of the mean reward of their winners, and of 1."""

    n: Float[Array, ""]
    r: Float[Array, ""]


def winner_sums(out: RewardOutput, labels: Labels, hparams: WeightKnobs) -> WinnerSums:
    """What `pos_reg` is a function of: a winner a pair that is no tie.

    Args:
      out: scores [e k].
      labels: ranks, present, soft, weight.
      hparams: not used here.
    """
    p = pairs(out, labels)
    ordered = (p.compared & ~p.tied).astype(jnp.float32)
    r = out.scores.astype(jnp.float32)
    r = jnp.where(labels.present > 0, r, 0.0)
    winner = p.chance * r[:, :, None] + (1.0 - p.chance) * r[:, None, :]
    n = jnp.sum(ordered, axis=(1, 2))
    mean = jnp.sum(ordered * winner, axis=(1, 2)) / jnp.maximum(n, 1.0)
    w = jnp.where(n > 0, labels.weight.astype(jnp.float32), 0.0)
    return WinnerSums(jnp.sum(w), jnp.sum(w * mean))


def pos_reg(sums: WinnerSums, hparams: WeightKnobs) -> Float[Array, ""]:
    """sp(-r̄_w), r̄_w the mean reward of the preferred responses of the whole batch.

    Args:
      sums: of `winner_sums`, added up over everything the step sees.
      hparams: weight, λ; the sources name no value.

    References:
      Yang 2024 (GRM, 2406.10216), a baseline of its code; Pang 2024 in DPO.
    """
    return jax.nn.softplus(-sums.r / jnp.maximum(sums.n, 1e-30))


def length_correlation(sums: LengthSums, hparams: WeightKnobs) -> Float[Array, ""]:
    """|ρ|, the Pearson correlation of reward and response length over a whole batch.

    Args:
      sums: of `length_sums`, added up over everything the step sees.
      hparams: weight, multiplied outside; 1 in ODIN, .01 is no paper's.

    References:
      Chen 2024 (ODIN), the length term, with the correlation over the global batch.
    """
    return jnp.abs(correlation(sums))


def correlation(sums: LengthSums) -> Float[Array, ""]:
    """ρ = cov(r, l) / sqrt(var(r) var(l)), Pearson's.

    0 with gradient 0 where either variance is 0 up to rounding (1e-5 of the mean
    square): all rewards equal, all lengths equal, or fewer than two responses. So it is
    where the mean reward is more than 316 standard deviations from 0: `center` or
    `score_l2` keeps it near.
    """
    n = jnp.where(sums.n > 0, sums.n, 1.0)
    mr, ml, rr, ll = sums.r / n, sums.l / n, sums.rr / n, sums.ll / n
    var_r, var_l = rr - mr * mr, ll - ml * ml
    ok = (var_r > NOISE * rr) & (var_l > NOISE * ll)
    # The inner where keeps the square root's gradient finite in the branch not taken.
    scale = jnp.sqrt(jnp.where(ok, var_r, 1.0)) * jnp.sqrt(jnp.where(ok, var_l, 1.0))
    return jnp.where(ok, (sums.rl / n - mr * ml) / scale, 0.0)


center.needs = winner_sums.needs = ("pairs",)
