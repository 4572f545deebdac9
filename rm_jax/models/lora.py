"""Low-rank adapters (LoRA, Hu 2021): y = x W + (alpha / rank) (x A) B, W frozen.

With rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) alpha / sqrt(rank) takes the place of
alpha / rank, so that larger ranks do not learn more slowly.

A is uniform in ±1/sqrt(n), n the inputs (the Kaiming initialisation that peft uses),
and B is 0, so a model starts as the one without adapters. The product is taken in the
layer, never added to W: members with adapters of their own share one W.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from rm_jax import masks
from rm_jax.models.arch import ArchConfig

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
# What trains beside adapters: names of parameters as masks know them.
FROZEN = r"^(?!head(/|$))(?!.*/lora/)"


class Linear(nn.Module):
    """x W, a bias where arch.biases has its name, and its adapter where there is one.

    Attributes:
      features: outputs.
      arch: of the model.
      scale: of the variance of W's initialisation, 1/n by default.
    """

    features: int
    arch: ArchConfig
    scale: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b n"], train: bool = False
    ) -> Float[Array, "*b m"]:
        """Over the last axis, in arch.dtype; training drops inputs of the adapter."""
        a, n = self.arch, x.shape[-1]
        init = nn.initializers.variance_scaling(
            self.scale, "fan_in", "truncated_normal"
        )
        kernel = self.param("kernel", init, (n, self.features), jnp.float32)
        x = x.astype(a.dtype)
        y = jnp.dot(x, kernel.astype(a.dtype))
        if self.name in a.biases:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), jnp.float32)
            y = y + bias.astype(a.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        if self.name not in a.lora_targets:
            return y
        own = self.param("lora", _init, n, self.features, a.lora_rank)
        x = nn.Dropout(a.lora_dropout, name="drop")(x, deterministic=not train)
        low = jnp.dot(x, own["a"].astype(a.dtype))
        return y + a.lora_scale * jnp.dot(low, own["b"].astype(a.dtype))


def targets(patterns: Sequence[str], arch: ArchConfig) -> tuple[str, ...]:
    """Kernels with an adapter: those of TARGETS whose whole name a regex matches.

    Raises:
      ValueError: a regex that no kernel of this arch has.
    """
    have = [name for name in TARGETS if arch.gated or name != "gate"]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in have):
            raise ValueError(
                f"config.model.lora.targets: {pattern!r} is none of {have}, which the "
                "model has"
            )
    return tuple(n for n in have if any(re.fullmatch(p, n) for p in patterns))


def _init(key: Array, n: int, m: int, rank: int) -> dict[str, Array]:
    bound = n**-0.5
    a = jax.random.uniform(key, (n, rank), jnp.float32, -bound, bound)
    return {"a": a, "b": jnp.zeros((rank, m), jnp.float32)}


def check_multipliers(rules: masks.Rules, params: Any, arch: ArchConfig) -> None:
    """Refuses rules about nothing but what adapters leave frozen.

    Args:
      rules: config.optim.lr_multipliers.
      params: of one model, or their shapes.
      arch: of it.

    Raises:
      ValueError: naming the first such rule and what it is about.
    """
    shapes = {p: x.shape for p, x in flatten_dict(dict(params), sep="/").items()}
    each = masks.parameter_names(shapes, arch.pattern)
    names = [name for own in each.values() for name in own]
    for pattern, _ in masks.checked("optim.lr_multipliers", rules):
        found = [n for n in names if re.search(pattern, n)]
        if found and all(re.search(FROZEN, n) for n in found):
            raise ValueError(
                f"config.optim.lr_multipliers: {pattern!r} is about {found[:5]}, which "
                f"config.model.lora.rank = {arch.lora_rank} freezes: leave it out, or "
                "set the rank to 0"
            )


def merge(params: Any, arch: ArchConfig) -> tuple[Any, ArchConfig]:
    """The same model without adapters: W + scale A B in place of each W.

    Args:
      params: of one model.
      arch: of it.

    Returns:
      parameters and their arch, which give the same scores up to rounding.
    """
    flat = flatten_dict(dict(params), sep="/")
    out = {path: x for path, x in flat.items() if "/lora/" not in path}
    for path in flat:
        if path.endswith("/lora/a"):
            above = path.removesuffix("/lora/a")
            a, b = flat[path], flat[f"{above}/lora/b"]
            change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            out[f"{above}/kernel"] = flat[f"{above}/kernel"] + arch.lora_scale * change
    return unflatten_dict(out, sep="/"), without(arch)


def without(arch: ArchConfig) -> ArchConfig:
    """The arch of the same model without adapters."""
    of_adapters = [f for f in dataclasses.fields(arch) if f.name.startswith("lora_")]
    return dataclasses.replace(arch, **{f.name: f.default for f in of_adapters})
