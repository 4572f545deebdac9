"""One number from the vector of a response: linear, and by hidden layers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled
from rm_jax.models.heads.layers import affine, dot, hidden_layers, start, through


def _linear_init(key: Array, arch: ArchConfig) -> Array:
    return start(key, arch, arch.d_model)


def _linear(params: Array, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · h, without a bias: no loss on pairs has a gradient for one."""
    return {"scores": dot(x.response, params)}


def _affine_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    kernel = start(key, arch, arch.d_model)
    return {"kernel": kernel, "bias": jnp.zeros((), jnp.float32)}


def _affine(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · h + b, for losses on single responses, whose level means something."""
    return {"scores": affine(x.response, params)}


def _mlp_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    sizes = arch.knob("hidden")
    keys = jax.random.split(key, len(sizes) + 1)
    layers = hidden_layers(keys, arch.d_model, sizes)
    return layers | {"kernel": start(keys[-1], arch, (arch.d_model, *sizes)[-1])}


def _mlp(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · relu(W_n ... relu(W_1 h + b_1) ... + b_n), dropout after each (GRM)."""
    rate, layers = arch.knob("dropout"), len(arch.knob("hidden"))
    h = through(params, x.response, rate, key, layers)
    return {"scores": dot(h, params["kernel"])}


LINEAR = Head(_linear_init, _linear)
AFFINE = Head(_affine_init, _affine, intercept=True)
MLP = Head(_mlp_init, _mlp, knobs={"hidden": (1024,), "dropout": 0.1})
