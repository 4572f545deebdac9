"""Losses on the steps of a response, and on whole responses for rewards of steps.

Step labels [e k p] are in [0, 1], negative where there is none: 1 right, 0 wrong, or
the share of rollouts from there that reach the right answer. Steps without a label are
left out; a response without any costs nothing. An example is the mean over its steps,
however many; the papers pool the steps of a batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rm_jax.losses.knobs import Allowed, NoKnobs
from rm_jax.losses.pointwise import mean_of_given, single_rating
from rm_jax.types import Labels, RewardOutput


def prm_bce(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """Mean over steps of -[y log p + (1 - y) log(1 - p)], y = 1 for a label >= ½.

    p = σ of a step's score. A neutral step, ½, counts as right.

    Args:
      out: aux["steps"] [e k p], the scores.
      labels: steps.
      hparams: none.
      key: not used.

    References:
      Lightman 2023 (2305.20050).
    """
    y, given = _steps(labels)
    return _cross_entropy(out, (y >= 0.5).astype(jnp.float32), given)


def prm_hard(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """As `prm_bce`, y = 1 where any rollout from the step was right: label > 0.

    Args:
      out: aux["steps"] [e k p], the scores.
      labels: steps.
      hparams: none.
      key: not used.

    References:
      Wang 2023 (Math-Shepherd, 2312.08935) Eq. 3, hard estimation.
    """
    y, given = _steps(labels)
    return _cross_entropy(out, (y > 0.0).astype(jnp.float32), given)


def prm_soft(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """As `prm_bce`, y the label itself: the share of rollouts that were right.

    Args:
      out: aux["steps"] [e k p], the scores.
      labels: steps.
      hparams: none.
      key: not used.

    References:
      Wang 2023 (Math-Shepherd, 2312.08935) Eq. 4, soft estimation.
    """
    y, given = _steps(labels)
    return _cross_entropy(out, y, given)


def implicit_prm_ce(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """-[y log σ(r) + (1 - y) log σ(-r)], r = β (log π(response) - log π_ref(response)).

    y, between 0 and 1, is the only rating of a response: whether it was right. r is the
    score of the head `implicit`, which has β. A response without a rating is left out.

    Args:
      out: scores [e k], with aux["log_ratio"].
      labels: ratings.
      hparams: none.
      key: not used.

    Raises:
      ValueError: the data have several attributes.

    References:
      Yuan 2024 (2412.01981) Eq. 5.
    """
    y, given = single_rating(labels, "implicit_prm_ce")
    r = jnp.where(given, out.scores.astype(jnp.float32), 0.0)
    return mean_of_given(
        y * jax.nn.softplus(-r) + (1.0 - y) * jax.nn.softplus(r), given
    )


def _steps(labels: Labels) -> tuple[Float[Array, "e k p"], Bool[Array, "e k p"]]:
    y = labels.steps.astype(jnp.float32)
    given = (y >= 0.0) & (labels.present > 0)[..., None]
    return jnp.where(given, y, 0.0), given


def _cross_entropy(out: RewardOutput, y: Array, given: Array) -> Float[Array, "e"]:
    s = jnp.where(given, out.aux["steps"].astype(jnp.float32), 0.0)
    cost = y * jax.nn.softplus(-s) + (1.0 - y) * jax.nn.softplus(s)
    return mean_of_given(cost, given)


prm_bce.needs = ("steps",)
prm_hard.needs = ("steps",)
prm_soft.needs = ("steps",)
implicit_prm_ce.needs = ("ratings", "reference_logp")
implicit_prm_ce.outputs = ("log_ratio",)
implicit_prm_ce.allows = lambda hparams: {"ratings": Allowed(0.0, 1.0)}
prm_bce.outputs = ("steps",)
prm_hard.outputs = ("steps",)
prm_soft.outputs = ("steps",)
