"""InfoRM: what a reward may know of a response has a price (Miao 2024, 2402.09345)."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.losses.knobs import Range
from rm_jax.types import Labels, RewardOutput


class VibKnobs(NamedTuple):
    """Knobs of both.

    Attributes:
      weight: β of the paper; its scripts have 1 with `vib_averaged`.
    """

    weight: Annotated[float, Range(0.0, float("inf"))] = 0.1


def vib(
    out: RewardOutput, labels: Labels, hparams: VibKnobs, key: Array
) -> Float[Array, "e"]:
    """KL(q(z | x, y) || N(0, 1)) of the latent, a mean over an example's responses.

      KL = Σ_d (μ_d² + σ_d² - 1) / 2 - log σ_d

    Args:
      out: aux["latent_mean"], aux["latent_log_std"] [e k n], μ and log σ.
      labels: present.
      hparams: weight, multiplied outside.
      key: not used.
    """
    return _mean_of_present(jnp.sum(_kl(*_latent(out, labels)), axis=-1), labels)


def vib_averaged(
    out: RewardOutput, labels: Labels, hparams: VibKnobs, key: Array
) -> Float[Array, "e"]:
    """The KL of the mean of μ and the mean of log σ² over the dimensions.

    That is what the official code computes; μ of opposite signs then cost nothing.

    Args:
      out: aux["latent_mean"], aux["latent_log_std"] [e k n], μ and log σ.
      labels: present.
      hparams: weight, multiplied outside.
      key: not used.
    """
    both = _latent(out, labels)
    return _mean_of_present(_kl(*(jnp.mean(x, axis=-1) for x in both)), labels)


def _latent(out: RewardOutput, labels: Labels) -> tuple[Array, Array]:
    """μ and log σ, 0 where there is no response."""
    present = (labels.present > 0)[..., None]
    both = out.aux["latent_mean"], out.aux["latent_log_std"]
    mean, log_std = (jnp.where(present, x, 0.0) for x in both)
    return mean, log_std


def _kl(mean: Array, log_std: Array) -> Array:
    return 0.5 * (mean**2 + jnp.expm1(2.0 * log_std)) - log_std


def _mean_of_present(kl: Float[Array, "e k"], labels: Labels) -> Float[Array, "e"]:
    present = labels.present > 0
    n = jnp.sum(present, axis=1, dtype=jnp.float32)
    return jnp.sum(jnp.where(present, kl, 0.0), axis=1) / jnp.maximum(n, 1.0)


vib.outputs = vib_averaged.outputs = ("latent_mean", "latent_log_std")
