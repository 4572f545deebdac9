"""Ratings, weighed by a gate that reads the prompt (ArmoRM, Wang 2024, 2406.12845)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled, by_attribute
from rm_jax.models.heads.layers import affine, dot, hidden_layers, through
from rm_jax.models.heads.ratings import attributes_init, check_names


def _init(key: Array, arch: ArchConfig) -> dict[str, Any]:
    sizes, a = arch.knob("hidden"), len(arch.attributes)
    keys = jax.random.split(key, len(sizes) + 2)
    width = (arch.d_model, *sizes)[-1]
    return {
        "attributes": attributes_init(keys[0], arch),
        **hidden_layers(keys[1:-1], arch.d_model, sizes),
        "gate": jnp.zeros((width, a), jnp.float32),  # all attributes alike at the start
    }


def _apply(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """r = Σ_a g_a (y_a - λ_a y_verbosity), g = softmax(W m(prompt) / T).

    y = V h + b are the ratings. m is an MLP: a ReLU and dropout after each layer. T,
    `temperature`, keeps the gate near the mean of the attributes: the higher, the
    nearer. λ_a, `debias`, is the share of the verbosity attribute taken off rating a,
    from 0 to 1; it is 1 for the verbosity attribute itself, of which nothing is left.
    """
    y = affine(x.response, params["attributes"])
    h = through(params, x.prompt, arch.knob("dropout"), key, len(arch.knob("hidden")))
    gate = jax.nn.softmax(dot(h, params["gate"]) / arch.knob("temperature"), axis=-1)
    out = {"attributes": y, "gate": gate}
    if verbosity := arch.knob("verbosity"):
        check_names(arch, "verbosity", [verbosity])
        at = arch.attributes.index(verbosity)
        y = y - _shares(arch, verbosity)[None, None] * y[..., at : at + 1]
    elif arch.knob("debias"):
        raise ValueError(
            f"config.model.head.debias = {_debias(arch)!r} is of no attribute: name it "
            f"in config.model.head.verbosity, one of {list(arch.attributes)}"
        )
    return out | {"scores": jnp.sum(gate * y, axis=-1)}


def _shares(arch: ArchConfig, verbosity: str) -> Float[Array, "a"]:
    """λ of each attribute; those that a mapping does not name have 0."""
    given = _debias(arch)
    if not isinstance(given, dict):
        given = {name: given for name in arch.attributes if name != verbosity}
    check_names(arch, "debias", given)
    if given.get(verbosity, 1.0) != 1.0:
        raise ValueError(
            f"config.model.head.debias[{verbosity!r}] = {given[verbosity]!r}: all of "
            "the attribute that is taken off the others goes: leave it out"
        )
    given = {**given, verbosity: 1.0}
    return jnp.asarray([given.get(name, 0.0) for name in arch.attributes], jnp.float32)


def _debias(arch: ArchConfig) -> float | dict[str, float]:
    value = arch.knob("debias")  # mappings are kept as pairs
    return dict(value) if isinstance(value, tuple) else value


GATED = Head(
    _init,
    _apply,
    {"attributes": by_attribute, "gate": by_attribute},
    {
        "hidden": (1024, 1024, 1024),
        "dropout": 0.2,
        "temperature": 10.0,
        "verbosity": "",
        "debias": 0.0,
    },
    prompt=True,
    of_attributes=True,
    one_each=("debias",),
    limits={"debias": (0.0, 1.0)},
)
