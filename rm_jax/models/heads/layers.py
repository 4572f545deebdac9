"""What heads are made of; all in float32 with the highest matmul precision."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.models.arch import ArchConfig

LOG_STD = (-10.0, 5.0)  # beyond it e^-2σ or e^2σ is no float32 worth having


def dot(x: Float[Array, "*b d"], kernel: Float[Array, "d *n"]) -> Float[Array, "..."]:
    """x · kernel over the last axis of x, in full float32 on every backend."""
    return jnp.tensordot(x, kernel, axes=1, precision=jax.lax.Precision.HIGHEST)


def affine(x: Float[Array, "*b d"], layer: Mapping[str, Array]) -> Float[Array, "..."]:
    """x · kernel + bias."""
    ahead = (None,) * (x.ndim - 1)
    return dot(x, layer["kernel"]) + layer["bias"][ahead]


def start(key: Array, arch: ArchConfig, *shape: int) -> Float[Array, "..."]:
    """A last kernel by arch.head_init: zeros, or N(0, 1/(n + 1)), n its inputs."""
    if arch.head_init == "zero":
        return jnp.zeros(shape, jnp.float32)
    return jax.random.normal(key, shape, jnp.float32) * (shape[0] + 1) ** -0.5


def hidden(key: Array, n: int, m: int) -> dict[str, Array]:
    """A hidden layer: kernel N(0, 2/n) (He 2015, for ReLU), bias 0."""
    kernel = jax.random.normal(key, (n, m), jnp.float32) * math.sqrt(2.0 / n)
    return {"kernel": kernel, "bias": jnp.zeros((m,), jnp.float32)}


def hidden_layers(keys: Array, n: int, sizes: Sequence[int]) -> dict[str, Any]:
    """{"hidden_0": ..., "hidden_1": ...} from n inputs, one a size and a key."""
    inputs = (n, *sizes)
    return {f"hidden_{i}": hidden(keys[i], inputs[i], m) for i, m in enumerate(sizes)}


def through(
    params: Mapping[str, Any],
    x: Float[Array, "*b d"],
    rate: float,
    key: Array | None,
    layers: int,
) -> Float[Array, "*b n"]:
    """relu(W_n ... relu(W_1 x + b_1) ... + b_n), with dropout after each layer.

    Args:
      params: with those of `hidden_layers`.
      x: what the first layer sees.
      rate: of dropout.
      key: of dropout; None in an evaluation, which drops nothing.
      layers: how many.
    """
    for i in range(layers):
        x = jax.nn.relu(affine(x, params[f"hidden_{i}"]))
        x = dropped(x, rate, key, i)
    return x


def dropped(h: Array, rate: float, key: Array | None, i: int) -> Array:
    """Dropout after the i-th layer: 0, or h / (1 - rate); h itself without a key."""
    if key is None or not rate:
        return h
    keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1.0 - rate, h.shape)
    return jnp.where(keep, h / (1.0 - rate), 0.0)
