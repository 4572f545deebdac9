"""GRM: the language model is kept while the reward is learnt (Yang 2024, 2406.10216).

The paper's objective is (1 - α) bt + α term, α = 0.01; here it is bt + weight term, the
same up to a factor for weight = α / (1 - α). The model needs its head of tokens:
config.model.lm_head.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rm_jax.losses.knobs import Positive
from rm_jax.losses.pairwise import mean_of_pairs, pairs
from rm_jax.types import Labels, RewardOutput


class GrmKnobs(NamedTuple):
    """Knobs of both.

    Attributes:
      weight: of the term, α / (1 - α).
      beta: β, reward for each nat of log-probability.
    """

    weight: Positive = 0.01 / 0.99
    beta: Positive = 0.1


def grm_sft(
    out: RewardOutput, labels: Labels, hparams: GrmKnobs, key: Array
) -> Float[Array, "e"]:
    """sp(-β log π(y_w | x)), a mean over the pairs of an example that are no ties.

    The sum of log p over a long response is far below 0: the gradient is then about β,
    whatever the response.

    Args:
      out: token_logp [e k].
      labels: ranks, present, soft: which response of a pair is preferred.
      hparams: see GrmKnobs.
      key: not used.
    """
    present = labels.present > 0
    logp = jnp.where(present, out.token_logp, 0.0)
    return _of_winners(out, labels, hparams, lambda i, j: i, logp, present)


def grm_dpo(
    out: RewardOutput, labels: Labels, hparams: GrmKnobs, key: Array
) -> Float[Array, "e"]:
    """sp(-β (h_w - h_l)), h = log π(y | x) - log π_ref(y | x), a mean over pairs.

    A pair of which a response has no reference_logp is left out.

    Args:
      out: token_logp [e k].
      labels: ranks, present, soft, reference_logp.
      hparams: see GrmKnobs.
      key: not used.
    """
    given = (labels.present > 0) & jnp.isfinite(labels.reference_logp)
    ours, theirs = (
        jnp.where(given, x, 0.0) for x in (out.token_logp, labels.reference_logp)
    )
    lead = lambda i, j: i - j
    return _of_winners(out, labels, hparams, lead, ours - theirs, given)


def _of_winners(
    out: RewardOutput,
    labels: Labels,
    hparams: GrmKnobs,
    lead: Callable[[Array, Array], Array],
    h: Float[Array, "e k"],
    given: Bool[Array, "e k"],
) -> Float[Array, "e"]:
    """Mean over pairs of sp(-β lead(h of the winner, h of the loser))."""
    p = pairs(out, labels)
    p = p._replace(compared=p.compared & given[:, :, None] & given[:, None, :])
    i, j = h[:, :, None], h[:, None, :]
    cost = lambda x: jax.nn.softplus(-hparams.beta * x)
    both = p.chance * cost(lead(i, j)) + (1.0 - p.chance) * cost(lead(j, i))
    return mean_of_pairs(p, both, jnp.zeros(()))


grm_sft.needs = ("pairs", "token_logp")
grm_dpo.needs = ("pairs", "token_logp", "reference_logp")
