"""Backbones and reward models."""

import importlib
from collections.abc import Mapping
from typing import Any

from rm_jax.models.arch import ArchConfig, decoder, from_json
from rm_jax.models.reward import RewardModel

__all__ = ["ARCHS", "ArchConfig", "RewardModel", "from_json", "make_arch"]

ARCHS = {"decoder": decoder}


def make_arch(model: Mapping[str, Any], vocab_size: int, pooling: str) -> ArchConfig:
    """ArchConfig named by `config.model.arch`, or built by "package.module:function".

    Raises:
      ValueError: an unknown name; lists the known ones.
    """
    name = model["arch"]
    if ":" in name:
        module, _, function = name.partition(":")
        make = getattr(importlib.import_module(module), function)
    elif name in ARCHS:
        make = ARCHS[name]
    else:
        raise ValueError(
            f"config.model.arch = {name!r}; known: {sorted(ARCHS)} or "
            "package.module:function"
        )
    return make(model, vocab_size, pooling)
