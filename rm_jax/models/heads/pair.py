"""Preferences between the responses of an example, which may be cyclic."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled, Responses
from rm_jax.models.heads.layers import dot


def _pair_init(key: Array, arch: ArchConfig) -> Array:
    n = arch.knob("planes")
    normal = jax.random.normal(key, (arch.d_model, n, 2), jnp.float32)
    return normal * (arch.d_model + 1) ** -0.5


def _pair(params: Array, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    v = dot(x.response, params)
    return {"scores": jnp.zeros(v.shape[:2]), "embedding": v}


def _against(outputs: Outputs, of: Responses, arch: ArchConfig) -> Outputs:
    """Δ(i, j) = Σ_p (u_ip v_jp - v_ip u_jp): antisymmetric, and may be cyclic.

    (u_p, v_p) are the coordinates of a response in the plane p. r_i = Σ_j Δ(i, j) / n
    over the n responses that the example has: for two of them r_0 - r_1 = Δ(0, 1), for
    more it is the mean preference over the others. Zhang 2024 (GPM, 2410.02197).
    """
    present = of.present
    v = outputs["embedding"]
    u, w = v[..., 0], v[..., 1]
    one = lambda a, b: jnp.einsum(
        "eip,ejp->eij", a, b, precision=jax.lax.Precision.HIGHEST
    )
    both = (present[:, :, None] & present[:, None, :]).astype(jnp.float32)
    delta = (one(u, w) - one(w, u)) * both
    n = jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1)
    return outputs | {"scores": jnp.sum(delta, axis=2) / n, "preference": delta}


PAIR = Head(
    _pair_init,
    _pair,
    {"embedding": lambda arch: (arch.knob("planes"), 2)},
    {"planes": 3},
    combine=_against,
    zero=False,
    rivals=True,
)
