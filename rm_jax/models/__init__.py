"""Backbones and reward models."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rm_jax.models import heads, lora
from rm_jax.models.arch import ArchConfig, decoder, frozen
from rm_jax.models.reward import RewardModel
from rm_jax.types import PackedBatch, RewardOutput

__all__ = [
    "ARCHS",
    "ArchConfig",
    "RewardModel",
    "functions",
    "heads",
    "lora",
    "make_arch",
]

ARCHS = {"decoder": decoder}


def make_arch(
    model: Mapping[str, Any],
    vocab_size: int,
    pooling: str,
    attributes: Sequence[str] = (),
) -> ArchConfig:
    """ArchConfig named by `config.model.arch`, or built by "package.module:function".

    Args:
      model: config.model.
      vocab_size: of the tokenizer.
      pooling: config.contract.pooling.
      attributes: names of the ratings of the training data.

    Raises:
      ValueError: an unknown name of an arch, a head or a knob of it; lists the known
        ones. A head of attributes for data without ratings.
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
    head, knobs = heads.choose(model["head"], attributes)
    init = model["head"]["init"]
    if heads.find(head).steps and pooling != "last":
        raise ValueError(
            f"config.model.head.name = {head!r} scores a step at its last token, but "
            f"config.contract.pooling = {pooling!r}: set it to 'last'"
        )
    adapters = {f"lora_{name}": value for name, value in model["lora"].items()}
    adapters["lora_targets"] = tuple(adapters["lora_targets"])
    of_data = attributes if heads.find(head).of_attributes else ()
    return dataclasses.replace(
        make(model, vocab_size, pooling),
        head=head,
        head_knobs=frozen(knobs),
        attributes=tuple(of_data),
        # What a run that is kept has is not drawn; "reset" draws it as "normal" does.
        head_init="zero" if init == "zero" else "normal",
        **(adapters if adapters["lora_rank"] else {}),
    )


def functions(
    arch: ArchConfig, token_logp: bool = False
) -> tuple[Callable[[jax.Array], Any], Callable[..., RewardOutput]]:
    """The model as two pure functions.

    Args:
      arch: what to build.
      token_logp: whether a training pass also returns log p of the responses.

    Returns:
      init(key) -> params, and apply(params, batch, examples, responses, keys) ->
      RewardOutput, where keys are None, or in training (dropout on) a pair, one for the
      trunk and one for the head.
    """
    model = RewardModel(arch)

    def init(key):
        row = np.zeros((1, 8), np.int32)
        empty = PackedBatch(
            row, row, row, row, row[:, :1], np.full((1, 1, 3), -1, np.int32)
        )
        return model.init(key, empty, 1, 1)["params"]

    def apply(params, batch, examples, responses, keys):
        train = keys is not None
        return model.apply(
            {"params": params},
            batch,
            examples,
            responses,
            train=train,
            token_logp=token_logp and train,
            rngs=dict(zip(("dropout", "head"), keys, strict=True)) if train else None,
        )

    return init, apply
