"""A score of each step of a response, reduced to one of the whole."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from rm_jax.models.arch import ArchConfig
from rm_jax.models.heads.head import Head, Outputs, Pooled, Responses, single
from rm_jax.models.heads.layers import affine, start
from rm_jax.models.stepwise import reduced


def _steps_init(key: Array, arch: ArchConfig) -> dict[str, Array]:
    kernel = start(key, arch, arch.d_model)
    return {"kernel": kernel, "bias": jnp.zeros((), jnp.float32)}


def _steps(params: Any, x: Pooled, arch: ArchConfig, key: Array | None) -> Outputs:
    """s = w · h + b at the end of each step, and of the response."""
    s = affine(x.response, params)
    return {"scores": s, "steps": s, "scored": jnp.ones_like(s)}


def _of_steps(outputs: Outputs, of: Responses, arch: ArchConfig) -> Outputs:
    """r = log p / (1 - p), p the min, prod, last or mean of σ(s) over the steps.

    A response whose steps are not given is one step: r = s at its end.
    """
    steps, scored = outputs["steps"], outputs["scored"] > 0
    r = reduced(arch.knob("reduce"), steps, scored, outputs["scores"])
    return outputs | {"scores": r}


STEPS = Head(
    _steps_init,
    _steps,
    {"steps": single, "scored": single},
    {"reduce": "min"},
    steps=("steps", "scored"),
    combine=_of_steps,
)
