"""What the words of a config.json may be, before anything is made of them."""

from collections.abc import Callable, Mapping
from typing import Any

from rm_jax.models.hf_words import Config, UnknownModel

COUNT = 2**31 - 1  # the most that a whole number may be: that of int32
LAYERS = 10_000
LARGEST = 1e30  # of other numbers: float32 holds it
HEAD_DIM = 2**16  # rotary frequencies of a head are computed when a model is made
COUNTS = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "max_position_embeddings", "n_embd", "n_head",
    "n_inner", "n_positions", "position_buckets", "local_attention",
    "global_attn_every_n_layers", "sliding_window_pattern",
)  # fmt: skip
OR_ZERO = ("sliding_window", "max_window_layers", "type_vocab_size")
NUMBERS = (
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta",
    "rotary_emb_base", "global_rope_theta", "local_rope_theta", "rope_local_base_freq",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "rotary_pct", "partial_rotary_factor",
)  # fmt: skip
FLAGS = (
    "attention_bias", "mlp_bias", "norm_bias", "tie_word_embeddings",
    "use_sliding_window", "use_bidirectional_attention", "use_parallel_residual",
)  # fmt: skip
TEXTS = ("model_type", "hidden_act", "hidden_activation", "activation_function")
# Of rope_parameters and rope_scaling.
ROPE_NUMBERS = (
    "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast",
    "beta_slow", "original_max_position_embeddings", "attention_factor", "mscale",
    "mscale_all_dim", "partial_rotary_factor",
)  # fmt: skip


def _whole(least: int, most: int = COUNT) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and least <= x <= most


def _positive(x: Any) -> bool:
    return type(x) in (int, float) and 0 < x < LARGEST


def _texts(x: Any) -> bool:
    return isinstance(x, list | tuple) and all(isinstance(t, str) for t in x)


_is_text = lambda x: isinstance(x, str)
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(COUNTS, (_whole(1), f"a whole number from 1 to {COUNT}")),
    **dict.fromkeys(OR_ZERO, (_whole(0), f"a whole number from 0 to {COUNT}")),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer"),
        (_whole(1, LAYERS), f"a whole number from 1 to {LAYERS}"),
    ),
    "pad_token_id": (_whole(-1), "a whole number, or null"),
    "max_relative_positions": (_whole(-1), "a whole number, -1 or more"),
    **dict.fromkeys(NUMBERS, (_positive, "a positive number")),
    **dict.fromkeys(FLAGS, (lambda x: isinstance(x, bool), "true or false")),
    **dict.fromkeys(TEXTS, (_is_text, "a name")),
    "layer_types": (_texts, "a list of names"),
    "pos_att_type": (lambda x: _is_text(x) or _texts(x), "a list of names"),
}
_OF_ROPE: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(ROPE_NUMBERS, (_positive, "a positive number")),
    **dict.fromkeys(("rope_type", "type"), (_is_text, "a name")),
    "truncate": (lambda x: isinstance(x, bool), "true or false"),
}


def checked(config: Config, defaults: Config) -> dict[str, Any]:
    """The config with the defaults of missing words, without words that are null.

    So null is off where a missing word is not.

    Args:
      config: as it is read.
      defaults: of its family, those that are not nothing.

    Raises:
      UnknownModel: a word that is not of its kind; names it and the kind.
    """
    out = {k: v for k, v in {**defaults, **config}.items() if v is not None}
    for key, value in out.items():
        if key in _KINDS:
            _check(key, value, *_KINDS[key])
            out[key] = float(value) if key in NUMBERS else value
    for key in ("rope_parameters", "rope_scaling"):
        if key in out:
            out[key] = _rope(key, out[key])
    return out


def _check(key: str, value: Any, fits: Callable[[Any], bool], kind: str) -> None:
    if not fits(value):
        raise UnknownModel(f"config.json: {key} = {value!r:.80}: want {kind}")


def _rope(key: str, found: Any) -> dict[str, Any]:
    """Of all layers, or of each kind of layers an object of its own."""
    _check(key, found, lambda x: isinstance(x, Mapping), "an object")
    out = {name: value for name, value in found.items() if value is not None}
    for name, value in out.items():
        if name in _OF_ROPE:
            _check(f"{key}.{name}", value, *_OF_ROPE[name])
        elif name in ("full_attention", "sliding_attention"):
            out[name] = _rope(f"{key}.{name}", value)
    return out


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuses sizes that do not go together.

    Args:
      fields: of ArchConfig.

    Raises:
      UnknownModel: says which.
    """
    heads, kv = fields["n_heads"], fields["n_kv_heads"]
    if heads % kv:
        raise UnknownModel(
            f"config.json: {heads} query heads are no multiple of {kv} key and value "
            "heads"
        )
    n, positions = fields["head_dim"], fields.get("positions", "rotary")
    turned = fields.get("rotary_dim") or n
    if not 1 <= n <= HEAD_DIM or (positions == "rotary" and turned % 2):
        raise UnknownModel(
            f"config.json: {n} features a head, {turned} of them rotated: want 1 to "
            f"{HEAD_DIM}, and pairs"
        )
    if fields.get("position_rows", 1) < 1:
        raise UnknownModel(
            f"config.json: {fields['position_rows']} positions: want at least 1"
        )
