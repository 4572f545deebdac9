"""Losses on all responses of a prompt at once, which make the prompt one example.

A finite `soft` label replaces the ranks, as everywhere: responses 0 and 1 are then the
only pair, and cost what `bt` costs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.knobs import NoKnobs
from rm_jax.losses.pairwise import either_way, mean_of_pairs, pairs
from rm_jax.types import Labels, RewardOutput


def bt_kwise(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """1 / n Σ sp(-(r_i - r_j)) over the n pairs i > j that are not tied.

    With K strictly ranked responses n = K (K - 1) / 2. It is `bt` with tie_weight 0.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: none.
      key: not used.

    References:
      Ouyang 2022 (InstructGPT) Eq. 1.
    """
    p = pairs(out, labels)
    cost = either_way(p, lambda delta: jax.nn.softplus(-delta))
    return mean_of_pairs(p, cost, jnp.zeros(()))


def plackett_luce(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """-log P(ranking) = Σ_i [ log Σ_{j = i or worse than i} e^r_j  -  r_i ].

    The best is drawn from all with probability proportional to e^r, the second best
    from the rest, and so on; K = 2 is `bt`. Tied responses do not compete with one
    another: each is drawn from itself and all that are worse. Unranked ones are out.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: none.
      key: not used.

    References:
      Plackett 1975; Zhu 2023 (2301.11270).
    """
    ranked = (labels.present > 0) & (labels.ranks >= 0)
    r = jnp.where(ranked, out.scores.astype(jnp.float32), 0.0)
    worse = labels.ranks[:, None, :] > labels.ranks[:, :, None]
    rivals = ranked[:, :, None] & ranked[:, None, :] & worse
    itself = jnp.eye(r.shape[1], dtype=bool)[None]
    level = jnp.where(rivals | itself, r[:, None, :], -jnp.inf)
    ranking = jnp.sum(jax.nn.logsumexp(level, axis=-1) - r, axis=-1)
    return _unless_soft(ranking, out, labels)


def best_of_k(
    out: RewardOutput, labels: Labels, hparams: NoKnobs, key: Array
) -> Float[Array, "e"]:
    """-log Σ_best softmax(r): the chance that a best response is picked.

    Only the best need be known: all others may share one rank. An example whose
    responses are all best, or that has none, costs nothing.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: none.
      key: not used.

    References:
      Ziegler 2019 (1909.08593) Eq. 1.
    """
    ranked = (labels.present > 0) & (labels.ranks >= 0)
    top = jnp.min(jnp.where(ranked, labels.ranks, jnp.iinfo(jnp.int32).max), axis=1)
    best = ranked & (labels.ranks == top[:, None])
    r = jnp.where(ranked, out.scores.astype(jnp.float32), 0.0)
    known = jnp.any(ranked, axis=1)[:, None]
    # Where nothing is ranked both sums are over everything, and their difference is 0.
    over = lambda kept: jax.nn.logsumexp(jnp.where(kept | ~known, r, -jnp.inf), axis=1)
    return _unless_soft(over(ranked) - over(best), out, labels)


def _unless_soft(
    ranking: Float[Array, "e"], out: RewardOutput, labels: Labels
) -> Float[Array, "e"]:
    """What the ranking of an example costs; its soft label where it has one."""
    p = pairs(out, labels)
    cost = either_way(p, lambda delta: jax.nn.softplus(-delta))
    pair = mean_of_pairs(p, cost, jnp.zeros(()))
    return jnp.where(jnp.isfinite(labels.soft), pair, ranking)


bt_kwise.needs = plackett_luce.needs = best_of_k.needs = ("pairs",)
