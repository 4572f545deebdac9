"""Ratings of the data and their weighted sum: as numbers, quantiles or Gaussians."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled, by_attribute
from rm_jax.models.heads.layers import LOG_STD, affine, dot, start


def attributes_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    """Parameters of an affine map to the attributes."""
    a = len(arch.attributes)
    return {
        "kernel": start(key, arch, arch.d_model, a),
        "bias": jnp.zeros((a,), jnp.float32),
    }


def _attributes(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """y = W h + b, one a rating of the data; r = Σ weight y, by default the mean."""
    y = affine(x.response, params)
    return {"scores": dot(y, _weights(arch)), "attributes": y}


def _weights(arch: ArchConfig) -> Float[Array, "a"]:
    given = dict(arch.knob("weights"))
    check_names(arch, "weights", given)
    if not given:
        return jnp.full((len(arch.attributes),), 1.0 / len(arch.attributes))
    return jnp.asarray([given.get(name, 0.0) for name in arch.attributes], jnp.float32)


def check_names(arch: ArchConfig, knob: str, names: Iterable[str]) -> None:
    """Refuses names in a knob that are no attributes.

    Raises:
      ValueError: with the unknown ones and the attributes of the training data.
    """
    if unknown := sorted(set(names) - set(arch.attributes)):
        raise ValueError(
            f"config.model.head.{knob} names {unknown}; the training data have the "
            f"attributes {list(arch.attributes)}"
        )


def _quantiles_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    a, n = len(arch.attributes), arch.knob("quantiles")
    kernel = start(key, arch, arch.d_model, a * n).reshape(arch.d_model, a, n)
    return {"kernel": kernel, "bias": jnp.zeros((a, n), jnp.float32)}


def _quantiles(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """q_τ = W_τ h + b_τ for each attribute; r = Σ weight (mean of q over τ) (QRM)."""
    q = affine(x.response, params)
    y = jnp.mean(q, axis=-1)
    return {"scores": dot(y, _weights(arch)), "attributes": y, "quantiles": q}


def _gaussian_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys = jax.random.split(key)
    return {
        n: attributes_init(k, arch)
        for n, k in zip(("mean", "log_std"), keys, strict=True)
    }


def _gaussian(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """μ and log σ of each rating, two affine maps; r = Σ weight μ (URM, Lou 2024)."""
    both = {n: affine(x.response, layer) for n, layer in params.items()}
    scores = dot(both["mean"], _weights(arch))
    log_std = jnp.clip(both["log_std"], *LOG_STD)
    return {"scores": scores, "attributes": both["mean"], "log_std": log_std}


ATTRIBUTES = Head(
    attributes_init,
    _attributes,
    {"attributes": by_attribute},
    {"weights": {}},
    of_attributes=True,
)
QUANTILES = Head(
    _quantiles_init,
    _quantiles,
    {
        "attributes": by_attribute,
        "quantiles": lambda arch: (len(arch.attributes), arch.knob("quantiles")),
    },
    {"quantiles": 19, "weights": {}},
    of_attributes=True,
)
GAUSSIAN = Head(
    _gaussian_init,
    _gaussian,
    {"attributes": by_attribute, "log_std": by_attribute},
    {"weights": {}},
    of_attributes=True,
)
