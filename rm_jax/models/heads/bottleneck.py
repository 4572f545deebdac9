"""A score that is read from few noisy numbers (InfoRM, Miao 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled
from rm_jax.models.heads.layers import LOG_STD, affine, dot, start


def _bottleneck_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys, n, d = jax.random.split(key, 3), arch.knob("latent"), arch.d_model
    normal = lambda k: jax.random.normal(k, (d, n), jnp.float32) * d**-0.5
    bias = jnp.full((n,), -1.0, jnp.float32)  # σ = e^-1: the latent says something
    return {
        "mean": normal(keys[0]),
        "log_std": {"kernel": 0.1 * normal(keys[1]), "bias": bias},
        "kernel": start(keys[2], arch, n),
    }


def _bottleneck(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · z, z = μ(h) + ε σ(h), ε ~ N(0, 1) in training, 0 after it (InfoRM)."""
    mean = dot(x.response, params["mean"])
    log_std = jnp.clip(affine(x.response, params["log_std"]), *LOG_STD)
    z = mean
    if key is not None:
        z = mean + jax.random.normal(key, mean.shape) * jnp.exp(log_std)
    return {
        "scores": dot(z, params["kernel"]),
        "latent_mean": mean,
        "latent_log_std": log_std,
    }


def _latent(arch: ArchConfig) -> tuple[int, ...]:
    return (arch.knob("latent"),)


BOTTLENECK = Head(
    _bottleneck_init,
    _bottleneck,
    {"latent_mean": _latent, "latent_log_std": _latent},
    {"latent": 128},
)
