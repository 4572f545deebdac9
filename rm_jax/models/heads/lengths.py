"""Two parts, of which the one that takes what lengths explain is thrown away."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled, single
from rm_jax.models.heads.layers import affine, dot, hidden, start


def _odin_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    """Two different kernels, or nothing would ever tell them apart."""
    keys = jax.random.split(key)
    normal = lambda k: jax.random.normal(k, (arch.d_model,)) * arch.d_model**-0.5
    return {"quality": normal(keys[0]), "length": normal(keys[1])}


def _odin(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w_Q · h + w_L · h while training, w_Q · h after it (ODIN, Chen 2024)."""
    parts = {name: dot(x.response, params[name]) for name in ("quality", "length")}
    total = parts["quality"] if key is None else parts["quality"] + parts["length"]
    return {"scores": total} | parts


def _expert_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys, n = jax.random.split(key, 3), arch.knob("hidden")
    expert = hidden(keys[1], 2, n) | {"out": jnp.zeros((n,), jnp.float32)}
    return {"kernel": start(keys[0], arch, arch.d_model), "expert": expert}


def _expert(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = w · h + f(length) while training, w · h after it (Shen 2023).

    f is a small MLP of the length in units of 256 tokens and of its logarithm: a
    product of experts, of which the one that knows only lengths takes what they
    explain.
    """
    main, expert = dot(x.response, params["kernel"]), params["expert"]
    l = jnp.stack([x.lengths / 256.0, jnp.log1p(x.lengths) - math.log(257.0)], axis=-1)
    bias = dot(jax.nn.relu(affine(l, expert)), expert["out"])
    scores = main if key is None else main + bias
    return {"scores": scores, "quality": main, "length": bias}


ODIN = Head(_odin_init, _odin, {"quality": single, "length": single}, zero=False)
EXPERT = Head(
    _expert_init, _expert, {"quality": single, "length": single}, {"hidden": 16}
)
