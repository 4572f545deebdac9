"""Rotary position embedding (Su et al. 2021) and its rules for long contexts.

Facts of the rules: "linear" divides all frequencies (Chen et al. 2023,
arXiv:2306.15595); "yarn" divides those that turn rarely (Peng et al. 2023,
arXiv:2309.00071); "llama3" does so with the smooth step of Llama 3.1's report
(arXiv:2407.21783) as transformers computes it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Frequencies = Float[np.ndarray, "half"]


class Turns(NamedTuple):
    """Cosine and sine of every rotary angle; worked out once for all layers."""

    cos: Float[Array, "b n half"]
    sin: Float[Array, "b n half"]


def turns(
    positions: Int[Array, "b n"],
    dim: int,
    base: float,
    scaling: Mapping[str, Any] | None = None,
) -> Turns:
    """The angles position * base^(-2 i / d), i < d / 2.

    Args:
      positions: of tokens.
      dim: d, features of a head that are rotated.
      base: of the frequencies.
      scaling: {"rule": a name in RULES, its numbers}; none leaves them as they are.
    """
    half = dim // 2
    frequency = base ** (-np.arange(half, dtype=np.float32) / half)
    size = 1.0
    if scaling:
        frequency, size = RULES[scaling["rule"]](frequency, base, scaling)
    angle = (
        positions[..., None].astype(jnp.float32) * jnp.float32(frequency)[None, None]
    )
    return Turns(size * jnp.cos(angle), size * jnp.sin(angle))


def rotate(x: Float[Array, "b n h d"], by: Turns) -> Float[Array, "b n h d"]:
    """Rotary position embedding, halves layout as in Llama.

    Feature i of the first half is turned with feature i of the second half; features
    beyond those that have an angle stay as they are.
    """
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    half = cos.shape[-1]
    y = x.astype(jnp.float32)
    a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
    return turned.astype(x.dtype)


def _linear(frequency: Frequencies, base: float, s: Mapping[str, Any]):
    return frequency / s["factor"], 1.0


def _llama3(frequency: Frequencies, base: float, s: Mapping[str, Any]):
    low, high = s["low_freq_factor"], s["high_freq_factor"]
    turned = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
    kept = np.clip((turned - low) / (high - low), 0, 1)
    return frequency * ((1 - kept) / s["factor"] + kept), 1.0


def _yarn(frequency: Frequencies, base: float, s: Mapping[str, Any]):
    half = len(frequency)
    length = s["original_max_position_embeddings"]
    at = lambda n: half * math.log(length / (n * 2 * math.pi)) / math.log(base)
    low, high = at(s["beta_fast"]), at(s["beta_slow"])
    if s["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    high = high + 0.001 if low == high else high
    divided = np.clip((np.arange(half) - low) / (high - low), 0, 1)
    return frequency * (divided / s["factor"] + 1 - divided), s["attention_factor"]


# name -> (frequencies, base, numbers) -> (frequencies, factor of cosine and sine).
RULES: dict[str, Callable[..., tuple[Frequencies, float]]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
