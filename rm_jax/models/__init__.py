"""Backbones and reward models."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rm_jax.models import given, heads, lora
from rm_jax.models.arch import ArchConfig, decoder, frozen
from rm_jax.models.given import of_init
from rm_jax.models.reward import RewardModel, score
from rm_jax.types import FeatureBatch, PackedBatch, RewardOutput

__all__ = [
    "ARCHS",
    "ArchConfig",
    "RewardModel",
    "functions",
    "head_functions",
    "heads",
    "lora",
    "make_arch",
]

ARCHS = {"decoder": decoder, "init": of_init}


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
    make = check(model, pooling)
    head, knobs = heads.choose(model["head"], attributes)
    init = model["head"]["init"]
    adapters = {f"lora_{name}": value for name, value in model["lora"].items()}
    trunk = make(model, vocab_size, pooling)
    adapters["lora_targets"] = lora.targets(adapters["lora_targets"], trunk)
    of_data = attributes if heads.find(head).of_attributes else ()
    return dataclasses.replace(
        trunk,
        head=head,
        head_knobs=frozen(knobs),
        attributes=tuple(of_data),
        # What a run that is kept has is not drawn; "reset" draws it as "normal" does.
        head_init="zero" if init == "zero" else "normal",
        **(adapters if adapters["lora_rank"] else {}),
    )


def check(model: Mapping[str, Any], pooling: str) -> Callable[..., ArchConfig]:
    """What makes the arch of `config.model`, which is found sound; needs no data.

    Raises:
      ValueError: an unknown name of an arch, a head or a knob of it; lists the known
        ones. A head that cannot have this pooling, or lacks the head of tokens.
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
    starts = given.named(model) if "init" in model else []
    if name != "init" and any(map(given.is_foreign, starts)):
        raise ValueError(
            f"config.model.init = {model['init']!r} are weights with a trunk of their "
            f"own, but config.model.arch = {name!r}: set it to 'init'"
        )
    head = heads.check(model["head"])
    where = f"config.model.head.name = {model['head']['name']!r}"
    if head.steps and pooling != "last":
        raise ValueError(
            f"{where} scores a step at its last token, but config.contract.pooling = "
            f"{pooling!r}: set it to 'last'"
        )
    if head.of_logp and model["lm_head"] == "none":
        raise ValueError(
            f"{where} scores by log p(token), but config.model.lm_head is 'none': set "
            "it to 'tied' or 'untied'"
        )
    return make


def functions(
    arch: ArchConfig, token_logp: bool = False
) -> tuple[Callable[[jax.Array], Any], Callable[..., RewardOutput]]:
    """The model as two pure functions.

    Args:
      arch: what to build.
      token_logp: whether a training pass also returns log p of the responses.

    Returns:
      init(key) -> params, and apply(params, batch, examples, responses, keys,
      reference_logp=None) -> RewardOutput, where keys are None, or in training (dropout
      on) a pair, one for the trunk and one for the head.
    """
    model = RewardModel(arch)

    def init(key):
        row = np.zeros((1, 8), np.int32)
        empty = PackedBatch(
            row, row, row, row, row[:, :1], np.full((1, 1, 3), -1, np.int32)
        )
        none = np.zeros((1, 1), np.float32)
        return model.init(key, empty, 1, 1, reference_logp=none)["params"]

    def apply(params, batch, examples, responses, keys, reference_logp=None):
        train = keys is not None
        return model.apply(
            {"params": params},
            batch,
            examples,
            responses,
            train=train,
            token_logp=token_logp and train,
            reference_logp=reference_logp,
            rngs=dict(zip(("dropout", "head"), keys, strict=True)) if train else None,
        )

    return init, apply


def head_functions(
    arch: ArchConfig,
) -> tuple[Callable[[jax.Array], Any], Callable[..., RewardOutput]]:
    """The head of a model as two pure functions; it reads features, not tokens.

    As `functions`: the head that init gives is that of the whole model of the same key;
    apply takes a FeatureBatch, and draws other numbers for the head's dropout.
    """
    whole, _ = functions(arch)
    # What is not used of the whole model is traced only.
    init = lambda key: {"head": whole(key)["head"]}

    def apply(params, batch: FeatureBatch, examples, responses, keys,
              reference_logp=None):  # fmt: skip
        prompts = batch.prompts if batch.prompts.shape[-1] else None
        pooled = heads.Pooled(batch.responses, prompts, batch.lengths)
        key = None if keys is None else keys[1]
        size = examples, responses
        return score(
            params["head"], pooled, batch, *size, arch, key, None, reference_logp
        )

    return init, apply
