"""The words of a config.json that several families share, and what they may be."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rm_jax.models import rope as rules
from rm_jax.models.arch import frozen

Config = Mapping[str, Any]


class UnknownModel(ValueError):
    """A config.json that no backbone here computes; says what of it is not known."""


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def need(config: Config, key: str) -> Any:
    """The word, which must be there.

    Raises:
      UnknownModel: it is not.
    """
    if config.get(key) is None:
        raise UnknownModel(f"config.json of {config['model_type']} lacks {key!r}")
    return config[key]


def only(config: Config, **values: Any) -> None:
    """Refuses a value beside the one that is computed here; a missing one is it."""
    for key, value in values.items():
        got = config.get(key)
        if got is not None and got != value:
            raise UnknownModel(
                f"config.json of {config['model_type']}: {key} = {got!r:.80}; only "
                f"{value!r} is computed here"
            )


def activation(config: Config, key: str, default: str) -> str:
    """The activation that a word names, in our own words."""
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise UnknownModel(
            f"config.json: {key} = {name!r:.80}; known: {sorted(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def sizes(config: Config) -> dict[str, Any]:
    """Widths and counts, under the names that most families have."""
    d, heads = need(config, "hidden_size"), need(config, "num_attention_heads")
    return {
        "vocab_size": need(config, "vocab_size"),
        "d_model": d,
        "n_layers": need(config, "num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or d // heads,
        "d_ff": need(config, "intermediate_size"),
    }


def rope(config: Config, base: float) -> dict[str, Any]:
    """Base and scaling, in the dialect of transformers 5 (rope_parameters) or of 4.

    Args:
      config: of a model with one rope.
      base: where neither has one of its own.
    """
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return _rope(config, found, base)


def two_ropes(
    config: Config, base: float, local: float, both_scaled: bool
) -> dict[str, Any]:
    """That of layers which see all, and that of layers with a window.

    Args:
      config: of a model with both.
      base: of the former, where rope_parameters has none.
      local: of the latter, likewise.
      both_scaled: whether rope_scaling, of transformers 4, is of both.

    Raises:
      UnknownModel: a scaled local rope; words for all layers that transformers passes
        over and that say something else than what it takes then.
    """
    found, scaling = config.get("rope_parameters", {}), config.get("rope_scaling", {})
    taken = {"rope_type": "default", "rope_theta": base}
    for key in sorted(set(found) - {"full_attention", "sliding_attention"}):
        if found[key] != taken.get(key):
            raise UnknownModel(
                f"config.json of {config['model_type']}: rope_parameters.{key} = "
                f"{found[key]!r:.80}, which transformers passes over: it reads those "
                "of full_attention and of sliding_attention"
            )
    whole = _rope(config, {**found.get("full_attention", {}), **scaling}, base)
    near = found.get("sliding_attention", {})
    near = _rope(config, {**near, **scaling} if both_scaled else near, local)
    if "rope_scaling" in near:
        raise UnknownModel("config.json: rope of sliding_attention is scaled")
    return whole | {"rope_local_base": near["rope_base"]}


def _rope(config: Config, found: Config, base: float) -> dict[str, Any]:
    rule = found.get("rope_type", found.get("type", "default"))
    base = float(found.get("rope_theta", base))
    if rule == "default":
        return {"rope_base": base}
    if rule not in rules.RULES:
        raise UnknownModel(
            f"config.json: rope_type = {rule!r:.80}; known: {['default', *rules.RULES]}"
        )
    number = lambda key: float(need({**found, "model_type": f"rope {rule}"}, key))
    original = "original_max_position_embeddings"
    if rule == "linear":
        values = {"factor": number("factor")}
    elif rule == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", original)
        values = {key: number(key) for key in keys}
    else:
        values = _yarn(config, found, number)
    return {"rope_base": base, "rope_scaling": frozen({"rule": rule, **values})}


def _yarn(config: Config, found: Config, number: Callable[[str], float]):
    original = found.get("original_max_position_embeddings")
    original = original or need(config, "max_position_embeddings")
    factor = number("factor")
    size = lambda m: 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0
    attention = found.get("attention_factor")
    if attention is None:
        m, of_all = found.get("mscale"), found.get("mscale_all_dim")
        attention = size(m) / size(of_all) if m and of_all else size(1.0)
    return {
        "factor": factor,
        "original_max_position_embeddings": float(original),
        "beta_fast": float(found.get("beta_fast") or 32),
        "beta_slow": float(found.get("beta_slow") or 1),
        "truncate": bool(found.get("truncate", True)),
        "attention_factor": float(attention),
    }


def windows(config: Config, window: int, default: Sequence[str]) -> tuple[int, ...]:
    """The shortest pattern of windows that repeats over the layers."""
    kinds = config.get("layer_types") or default
    known = {"full_attention": 0, "sliding_attention": window}
    if unknown := sorted(set(kinds) - set(known)):
        raise UnknownModel(f"config.json: layer_types has {unknown}")
    if len(kinds) != (layers := need(config, "num_hidden_layers")):
        raise UnknownModel(f"config.json: {len(kinds)} layer_types for {layers} layers")
    each = [known[kind] for kind in kinds]
    for n in range(1, len(each)):
        if all(w == each[i % n] for i, w in enumerate(each)):
            return tuple(each[:n])
    return tuple(each)


def every(config: Config, n: int) -> list[str]:
    """Every n-th layer sees all, the others a window."""
    layers = range(need(config, "num_hidden_layers"))
    kind = lambda i: "sliding_attention" if (i + 1) % n else "full_attention"
    return [kind(i) for i in layers]


def tied(config: Config, default: bool) -> dict[str, Any]:
    """Whether the head of tokens is the embedding."""
    tied = config.get("tie_word_embeddings")
    tied = default if tied is None else tied
    return {"lm_head": "tied" if tied else "untied"}
