"""The trunk that config.model.init brings with it, not one that is described."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rm_jax import store
from rm_jax.limits import FOREIGN
from rm_jax.models import hf
from rm_jax.models.arch import RUNTIME, ArchConfig, from_json, without_head
from rm_jax.models.hf_words import UnknownModel
from rm_jax.weights.source import open_source


def of_init(model: Mapping[str, Any], vocab_size: int, pooling: str) -> ArchConfig:
    """The trunk of what `config.model.init` names: another's weights, or a run.

    Only RUNTIME and lm_head are read of config.model's own description of a trunk;
    with config.model.features it is the trunk up to that layer.

    Raises:
      ValueError: nothing is named; it has fewer tokens than the tokenizer, fewer layers
        than config.model.features, or another head of tokens.
      WeightsError: weights that cannot be taken.
      UnknownModel: a trunk that is not computed here.
    """
    init = named(model)[0]
    if init == "scratch":
        raise ValueError(
            "config.model.arch = 'init' is the trunk of what config.model.init names, "
            "which is 'scratch': name weights, or set arch to 'decoder'"
        )
    if is_foreign(init):
        source = open_source(init)
        try:
            trunk = ArchConfig(**hf.arch_fields(source.config))
        except UnknownModel as error:
            raise UnknownModel(f"{source.where}: {error}") from error
    else:
        path = store.join(init, "arch.json")
        trunk = without_head(from_json(store.read_json(path)))
    if trunk.vocab_size < vocab_size:
        raise ValueError(
            f"config.model.init = {init!r} embeds {trunk.vocab_size} tokens, the "
            f"tokenizer has {vocab_size}: set config.contract.tokenizer = 'init'"
        )
    wanted = model["lm_head"]
    if wanted not in ("none", trunk.lm_head):
        raise ValueError(
            f"config.model.lm_head = {wanted!r}, but that of config.model.init = "
            f"{init!r} is {trunk.lm_head!r}: set it to that, or to 'none'"
        )
    own = {name: model[name] for name in RUNTIME}
    if model["features"] > trunk.n_layers:
        raise ValueError(
            f"config.model.features = {model['features']}, but the trunk of "
            f"config.model.init = {init!r} has {trunk.n_layers} layers"
        )
    if model["features"]:
        own["n_layers"] = model["features"]
    return dataclasses.replace(trunk, pooling=pooling, lm_head=wanted, **own)


def context(model: Mapping[str, Any]) -> int:
    """Tokens that the weights of others were made for; 0 where nobody says."""
    init = named(model)[0]
    if model["arch"] != "init" or not is_foreign(init):
        return 0
    return open_source(init).config.get("max_position_embeddings") or 0


def named(model: Mapping[str, Any]) -> list[str]:
    """What config.model.init names: one start, or several that members take."""
    return [model["init"]] if isinstance(model["init"], str) else list(model["init"])


def is_foreign(init: str) -> bool:
    """Whether a start is weights that others wrote, not a run."""
    return init.startswith(FOREIGN)
