"""ODIN: a head for quality and one for length, pulled apart (Chen 2024, 2402.07319).

With the head `odin`, whose score in training is r_Q + r_L and r_Q after it, a loss on
pairs and these two regularisers are the paper's objective:

  loss(r_Q + r_L) + λ_L (|ρ(r_Q, L)| + 1 - ρ(r_L, L)) + λ_O |w_Q · w_L| / (|w_Q| |w_L|)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.knobs import Positive
from rm_jax.losses.regularize import LengthSums, correlation, length_sums
from rm_jax.types import Labels, RewardOutput


class OdinKnobs(NamedTuple):
    """The paper's coefficients are 1.

    Attributes:
      weight: λ.
    """

    weight: Positive = 1.0


class OdinSums(NamedTuple):
    """The sums of both heads with the length of the response."""

    quality: LengthSums
    length: LengthSums


def odin_sums(out: RewardOutput, labels: Labels, hparams: OdinKnobs) -> OdinSums:
    """What `odin` is a function of, over the present responses.

    Args:
      out: aux["quality"], aux["length"] [e k], r_Q and r_L.
      labels: present, lengths, weight.
      hparams: not used here.
    """
    return OdinSums(
        *(
            length_sums(out._replace(scores=out.aux[name]), labels, hparams)
            for name in OdinSums._fields
        )
    )


def odin(sums: OdinSums, hparams: OdinKnobs) -> Float[Array, ""]:
    """|ρ(r_Q, L)| + 1 - ρ(r_L, L), ρ the Pearson correlation over the whole batch.

    A correlation that is not defined (all rewards or all lengths equal) counts as 0 and
    has no gradient. In [0, 3]; 0 where quality ignores length and the other head is it.

    Args:
      sums: of `odin_sums`, added up over everything the step sees.
      hparams: weight, multiplied outside.
    """
    return 1.0 + jnp.abs(correlation(sums.quality)) - correlation(sums.length)


def odin_orthogonal(params: Any, hparams: OdinKnobs) -> Float[Array, ""]:
    """|w_Q · w_L| / (|w_Q| |w_L|), of the two kernels of the head.

    Args:
      params: of the model.
      hparams: weight, multiplied outside.
    """
    q, l = params["head"]["quality"], params["head"]["length"]
    norms = jnp.sqrt(jnp.maximum(jnp.sum(q**2) * jnp.sum(l**2), 1e-30))
    return jnp.abs(jnp.sum(q * l)) / norms


odin_sums.outputs = ("quality", "length")
odin_orthogonal.outputs = ("quality", "length")
