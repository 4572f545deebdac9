"""Models of three outcomes: the first wins, the second wins, a tie.

Their probabilities sum to one, unlike a tie taken for half a win of each. A `soft`
label is a chance of winning and none of a tie.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.knobs import Range
from rm_jax.losses.pairwise import Pairs, mean_of_pairs, pairs
from rm_jax.types import Labels, RewardOutput

LEAST = 1e-3  # of a knob: with 0 a tie would have no probability at all


class RaoKupperKnobs(NamedTuple):
    """Knobs of `rao_kupper`.

    Attributes:
      threshold: η, the difference of rewards that people do not notice.
    """

    threshold: Annotated[float, Range(LEAST, 20.0)] = 0.5


class DavidsonKnobs(NamedTuple):
    """Knobs of `davidson`.

    Attributes:
      ties: ν, the odds of a tie against a given side winning, where Δ = 0.
    """

    ties: Annotated[float, Range(LEAST, 1e6)] = 1.0


def rao_kupper_logp(
    delta: Float[Array, "*n"], threshold: Array
) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """log P of (first wins, second wins, tie).

      P(first) = σ(Δ - η), P(second) = σ(-Δ - η), P(tie) = (e^2η - 1) P(first) P(second)

    References:
      Rao & Kupper 1967.
    """
    first = jax.nn.log_sigmoid(delta - threshold)
    second = jax.nn.log_sigmoid(-delta - threshold)
    return first, second, first + second + jnp.log(jnp.expm1(2.0 * threshold))


def davidson_logp(
    delta: Float[Array, "*n"], ties: Array
) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """log P of (first wins, second wins, tie): softmax of (Δ/2, -Δ/2, log ν).

    References:
      Davidson 1970.
    """
    half = 0.5 * delta
    tie = jnp.broadcast_to(jnp.log(ties), half.shape)
    logits = jnp.stack([half, -half, tie])
    first, second, tied = jax.nn.log_softmax(logits, axis=0)
    return first, second, tied


def rao_kupper(
    out: RewardOutput, labels: Labels, hparams: RaoKupperKnobs, key: Array
) -> Float[Array, "e"]:
    """-log P of what people said of a pair, P of `rao_kupper_logp`.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see RaoKupperKnobs.
      key: not used.

    References:
      Rao & Kupper 1967; for reward models Liu 2024 (2410.05328).
    """
    p = pairs(out, labels)
    return _outcome(p, *rao_kupper_logp(p.delta, hparams.threshold))


def davidson(
    out: RewardOutput, labels: Labels, hparams: DavidsonKnobs, key: Array
) -> Float[Array, "e"]:
    """-log P of what people said of a pair, P of `davidson_logp`.

    Args:
      out: scores [e k].
      labels: ranks, present, soft.
      hparams: see DavidsonKnobs.
      key: not used.

    References:
      Davidson 1970.
    """
    p = pairs(out, labels)
    return _outcome(p, *davidson_logp(p.delta, hparams.ties))


def _outcome(p: Pairs, first: Array, second: Array, tied: Array) -> Float[Array, "e"]:
    won = p.chance * first + (1.0 - p.chance) * second
    cost = -jnp.where(p.tied, tied, won)
    return mean_of_pairs(p, cost, jnp.ones(()))


rao_kupper.needs = davidson.needs = ("pairs",)
