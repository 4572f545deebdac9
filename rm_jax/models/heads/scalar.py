"""One number from the vector of a response: linear, and by hidden layers."""

from typing import Any

import jax
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled
from rm_jax.models.heads.layers import affine, dot, dropped, hidden, start


def _linear_init(key: Array, arch: ArchConfig) -> Array:
    return start(key, arch, arch.d_model)


def _linear(params: Array, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · h, without a bias: no loss on pairs has a gradient for one."""
    return {"scores": dot(x.response, params)}


def _mlp_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys = jax.random.split(key, len(arch.knob("hidden")) + 1)
    layers, n = {}, arch.d_model
    for i, m in enumerate(arch.knob("hidden")):
        layers[f"hidden_{i}"] = hidden(keys[i], n, m)
        n = m
    return layers | {"kernel": start(keys[-1], arch, n)}


def _mlp(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · relu(W_n ... relu(W_1 h + b_1) ... + b_n), dropout after each (GRM)."""
    h = x.response
    for i in range(len(arch.knob("hidden"))):
        layer = params[f"hidden_{i}"]
        h = jax.nn.relu(affine(h, layer))
        h = dropped(h, arch.knob("dropout"), key, i)
    return {"scores": dot(h, params["kernel"])}


LINEAR = Head(_linear_init, _linear)
MLP = Head(_mlp_init, _mlp, knobs={"hidden": (1024,), "dropout": 0.1})
