"""From the scores of the steps of a response to one score of the response.

A step's score is the log-odds of its being right. The reducers are of probabilities;
what they give is turned into log-odds again, so that min and last are those of the
scores themselves and a product of many steps keeps its digits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LEAST = 1e-30  # 1 - p of a product that float32 holds to be 1


def _min(s: Float[Array, "e k p"], scored: Bool[Array, "e k p"]) -> Array:
    return jnp.min(jnp.where(scored, s, jnp.finfo(s.dtype).max), axis=-1)


def _last(s: Float[Array, "e k p"], scored: Bool[Array, "e k p"]) -> Array:
    upto = jnp.cumsum(scored, axis=-1)
    return jnp.sum(jnp.where(scored & (upto == upto[..., -1:]), s, 0.0), axis=-1)


def _prod(s: Float[Array, "e k p"], scored: Bool[Array, "e k p"]) -> Array:
    logp = jnp.sum(jnp.where(scored, jax.nn.log_sigmoid(s), 0.0), axis=-1)
    logp = jnp.minimum(logp, -LEAST)
    return logp - jnp.log(-jnp.expm1(logp))


def _mean(s: Float[Array, "e k p"], scored: Bool[Array, "e k p"]) -> Array:
    use = scored | ~jnp.any(scored, axis=-1, keepdims=True)
    total = lambda x: jax.nn.logsumexp(jnp.where(use, x, -jnp.inf), axis=-1)
    return total(jax.nn.log_sigmoid(s)) - total(jax.nn.log_sigmoid(-s))


REDUCE: dict[str, Callable[[Array, Array], Array]] = {
    "min": _min,  # Wang 2023 (Math-Shepherd)
    "prod": _prod,  # Lightman 2023
    "last": _last,
    "mean": _mean,
}


def check_reduce(how: str) -> None:
    """Refuses a reduction that is not known.

    Raises:
      ValueError: with the known ones.
    """
    if how not in REDUCE:
        raise ValueError(f"config.model.head.reduce = {how!r}; known: {sorted(REDUCE)}")


def reduced(
    how: str,
    steps: Float[Array, "e k p"],
    scored: Bool[Array, "e k p"],
    end: Float[Array, "e k"],
) -> Float[Array, "e k"]:
    """log p / (1 - p), p the `how` of the probabilities σ(steps).

    Args:
      how: a name in REDUCE.
      steps: scores.
      scored: where there is a step.
      end: of a response without steps: the score at its end.
    """
    return jnp.where(jnp.any(scored, axis=-1), REDUCE[how](steps, scored), end)
