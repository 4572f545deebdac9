"""Ratings, weighed by a gate that reads the prompt."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled, by_attribute
from rm_jax.models.heads.layers import affine, dot, hidden
from rm_jax.models.heads.ratings import attributes_init


def _gated_init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    keys, a, n = jax.random.split(key, 3), len(arch.attributes), arch.knob("hidden")
    return {
        "attributes": attributes_init(keys[0], arch),
        "hidden": hidden(keys[1], arch.d_model, n),
        "gate": jnp.zeros((n, a), jnp.float32),  # all attributes alike at the start
    }


def _gated(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = Σ g(prompt)_a (y_a - λ_a y_verbosity), g a softmax: ArmoRM (Wang 2024).

    λ_a, `debias`, is the share of the verbosity attribute taken off each other one.
    """
    y = affine(x.response, params["attributes"])
    h = jax.nn.relu(affine(x.prompt, params["hidden"]))
    gate = jax.nn.softmax(dot(h, params["gate"]), axis=-1)
    out = {"attributes": y, "gate": gate}
    if verbosity := arch.knob("verbosity"):
        if verbosity not in arch.attributes:
            raise ValueError(
                f"config.model.head.verbosity = {verbosity!r}; the training data have "
                f"the attributes {list(arch.attributes)}"
            )
        at = arch.attributes.index(verbosity)
        other = (jnp.arange(len(arch.attributes)) != at)[None, None]
        y = y - arch.knob("debias") * jnp.where(other, y[..., at : at + 1], 0.0)
    return out | {"scores": jnp.sum(gate * y, axis=-1)}


GATED = Head(
    _gated_init,
    _gated,
    {"attributes": by_attribute, "gate": by_attribute},
    {"hidden": 1024, "verbosity": "", "debias": 0.0},
    prompt=True,
    of_attributes=True,
)
