"""The families of backbones: what each model_type is made of.

Sources: configuration_*.py and modeling_*.py of transformers 5 for each model_type.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rm_jax.models import hf_names as names
from rm_jax.models import hf_words as words
from rm_jax.models.hf_names import Rule
from rm_jax.models.hf_words import Config, UnknownModel


class Family(NamedTuple):
    """What a model_type is made of.

    Attributes:
      fields: config -> fields of ArchConfig beside sizes.
      rules: of the tensors, without heads.
      prefix: of the names of tensors in a model with a head.
      lm_head: name of the tensor of logits, whole.
      ignored: regexes of tensors that hold no parameter of the trunk.
      classifier: the class that transformers has for scores.
      defaults: what transformers takes where a word is missing, where null is another
        value: off, or none of its own.
    """

    fields: Callable[[Config], dict[str, Any]]
    rules: tuple[Rule, ...]
    prefix: str
    lm_head: str
    ignored: tuple[str, ...]
    classifier: str
    defaults: Config = {}


def _llama(config: Config) -> dict[str, Any]:
    biases = ()
    if config.get("attention_bias"):
        biases += ("q", "k", "v", "o")
    if config.get("mlp_bias"):
        biases += ("gate", "up", "down")
    return {
        **words.sizes(config),
        **words.rope(config, config.get("rope_theta", 10000.0)),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "activation": words.activation(config, "hidden_act", "silu"),
        "biases": biases,
        **words.tied(config, False),
    }


def _mistral(config: Config) -> dict[str, Any]:
    return _llama(config) | {"windows": (config.get("sliding_window", 0),)}


def _qwen2(config: Config) -> dict[str, Any]:
    window = config.get("sliding_window", 0) * bool(config.get("use_sliding_window"))
    whole = config.get("max_window_layers", 28)
    layers = range(words.need(config, "num_hidden_layers"))
    kinds = [
        "sliding_attention" if window and i >= whole else "full_attention"
        for i in layers
    ]
    fields = _llama(config) | {"windows": words.windows(config, window, kinds)}
    return fields | {"biases": ("q", "k", "v")}


def _qwen3(config: Config) -> dict[str, Any]:
    return _qwen2(config) | {"qk_norm": "head", "biases": _llama(config)["biases"]}


def _gemma2(config: Config) -> dict[str, Any]:
    if config.get("use_bidirectional_attention"):
        raise UnknownModel("config.json: use_bidirectional_attention = True")
    fields = _llama(config) | {
        "activation": words.activation(
            config, "hidden_activation", "gelu_pytorch_tanh"
        ),
        "norm": "rms_plus_one",
        "norm_at": "both",
        "embed_scale": math.sqrt(words.need(config, "hidden_size")),
        "query_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "attention_cap": config.get("attn_logit_softcapping", 0.0),
        "logit_cap": config.get("final_logit_softcapping", 0.0),
        **words.tied(config, True),
    }
    window = config.get("sliding_window", 0)
    return fields | {"windows": words.windows(config, window, words.every(config, 2))}


def _gemma3(config: Config) -> dict[str, Any]:
    every = config.get("sliding_window_pattern") or 6
    config = {
        **config,
        "layer_types": config.get("layer_types") or words.every(config, every),
    }
    bases = (config["rope_theta"], config["rope_local_base_freq"])
    ropes = words.two_ropes(config, *bases, both_scaled=False)
    return _gemma2(config) | {"qk_norm": "head", **ropes}


def _olmo2(config: Config) -> dict[str, Any]:
    fields = _llama(config) | {"norm_at": "outputs", "qk_norm": "all"}
    return fields | {"norm_eps": config.get("rms_norm_eps", 1e-5)}


LAYER_NORM = {"norm": "layer", "gated": False}
EVERYWHERE = ("q", "k", "v", "o", "up", "down", "norm")


def _gpt_neox(config: Config) -> dict[str, Any]:
    sizes = words.sizes(config)
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    share = found.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    biases = EVERYWHERE
    if config.get("attention_bias") is False:
        biases = tuple(n for n in biases if n not in ("q", "k", "v", "o"))
    return {
        **sizes,
        **words.rope(config, config.get("rotary_emb_base", 10000.0)),
        **LAYER_NORM,
        "rotary_dim": int(sizes["head_dim"] * share),
        "norm_eps": config.get("layer_norm_eps", 1e-5),
        "activation": words.activation(config, "hidden_act", "gelu"),
        "parallel": config.get("use_parallel_residual", True),
        "biases": biases,
        **words.tied(config, False),
    }


def _gpt2(config: Config) -> dict[str, Any]:
    words.only(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    d, heads = words.need(config, "n_embd"), words.need(config, "n_head")
    return {
        "vocab_size": words.need(config, "vocab_size"),
        "d_model": d,
        "n_layers": words.need(config, "n_layer"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": d // heads,
        "d_ff": config.get("n_inner") or 4 * d,
        **LAYER_NORM,
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "activation": words.activation(config, "activation_function", "gelu_new"),
        "biases": EVERYWHERE,
        "positions": "learned",
        "position_rows": words.need(config, "n_positions"),
        **words.tied(config, True),
    }


def _modernbert(config: Config) -> dict[str, Any]:
    every = config.get("global_attn_every_n_layers") or 3
    layers = range(words.need(config, "num_hidden_layers"))
    kinds = ["sliding_attention" if i % every else "full_attention" for i in layers]
    base = config["global_rope_theta"]
    bases = (base, config.get("local_rope_theta", base))
    # A window of n tokens reaches n / 2 to either side, the token itself not counted.
    window = config.get("local_attention", 128) // 2 + 1
    biases = ("q", "k", "v", "o") if config.get("attention_bias") else ()
    biases += ("gate", "up", "down") if config.get("mlp_bias") else ()
    biases += ("norm",) if config.get("norm_bias") else ()
    return {
        **words.sizes(config),
        **words.two_ropes(config, *bases, both_scaled=True),
        "windows": words.windows(config, window, kinds),
        "attention": "full",
        "norm": "layer",
        "norm_eps": config.get("norm_eps", 1e-5),
        "first_norm": False,
        "embed_norm": True,
        "activation": words.activation(config, "hidden_activation", "gelu"),
        "biases": biases,
        "lm_head": "none",
    }


def _encoder(config: Config, eps: float) -> dict[str, Any]:
    """What BERT and DeBERTa share."""
    return {
        **LAYER_NORM,
        "attention": "full",
        "norm_at": "after_sum",
        "norm_eps": config.get("layer_norm_eps", eps),
        "final_norm": False,
        "embed_norm": True,
        "activation": words.activation(config, "hidden_act", "gelu"),
        "biases": EVERYWHERE,
        "lm_head": "none",
    }


def _bert(config: Config) -> dict[str, Any]:
    words.only(config, position_embedding_type="absolute", is_decoder=False)
    words.only(config, add_cross_attention=False)
    # The table of RoBERTa begins after the row of its pad token.
    of_pad = config["model_type"] == "roberta"
    ahead = words.need(config, "pad_token_id") + 1 if of_pad else 0
    return {
        **words.sizes(config),
        **_encoder(config, 1e-12),
        "positions": "learned",
        "position_rows": words.need(config, "max_position_embeddings") - ahead,
    }


def _deberta(config: Config) -> dict[str, Any]:
    terms = config.get("pos_att_type") or []
    terms = terms.split("|") if isinstance(terms, str) else terms
    if sorted(terms) != ["c2p", "p2c"]:
        raise UnknownModel(
            f"config.json: pos_att_type = {terms!r:.80}; only c2p and p2c together are "
            "computed here (DeBERTa v3)"
        )
    words.only(config, relative_attention=True, share_att_key=True, type_vocab_size=0)
    words.only(config, position_biased_input=False, norm_rel_ebd="layer_norm")
    words.only(config, conv_kernel_size=0)
    words.only(config, embedding_size=words.need(config, "hidden_size"))
    for key in ("share_att_key", "relative_attention", "norm_rel_ebd"):
        words.need(config, key)
    if config.get("position_biased_input", True):
        raise UnknownModel("config.json: position_biased_input is not false")
    buckets = words.need(config, "position_buckets")
    distance = config.get("max_relative_positions", -1)
    if distance < 1:
        distance = words.need(config, "max_position_embeddings")
    if buckets < 4 or distance <= buckets // 2 + 1:
        raise UnknownModel(
            f"config.json: position_buckets = {buckets} for distances up to {distance}"
        )
    sizes = words.sizes(config)
    return {
        **sizes,
        **_encoder(config, 1e-7),
        "positions": "relative",
        "position_rows": 2 * buckets,
        "relative_distance": distance,
        "query_scale": (3 * sizes["head_dim"]) ** -0.5,
    }


BUFFERS = (r"(^|\.)rotary_emb\.inv_freq$", r"\.attention\.(bias|masked_bias)$")


def _decoder(
    fields: Callable[[Config], dict[str, Any]],
    rules: tuple[Rule, ...],
    name: str,
    **defaults: Any,
) -> Family:
    classifier = f"{name}ForSequenceClassification"
    head, ignored = "lm_head.weight", BUFFERS[:1]
    return Family(fields, rules, "model.", head, ignored, classifier, defaults)


_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096}
_GEMMA = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
FAMILIES: dict[str, Family] = {
    "llama": _decoder(_llama, names.LLAMA, "Llama"),
    "mistral": _decoder(
        _mistral,
        names.LLAMA,
        "Mistral",
        num_key_value_heads=8,
        sliding_window=4096,
    ),
    "qwen2": _decoder(_qwen2, names.LLAMA, "Qwen2", **_QWEN),
    "qwen3": _decoder(_qwen3, names.LLAMA, "Qwen3", **_QWEN, head_dim=128),
    "gemma2": _decoder(
        _gemma2,
        names.GEMMA,
        "Gemma2",
        **_GEMMA,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "gemma3_text": _decoder(
        _gemma3,
        names.GEMMA,
        "Gemma3Text",
        **_GEMMA,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
    ),
    "olmo2": _decoder(_olmo2, names.OLMO2, "Olmo2"),
    "gpt_neox": Family(
        _gpt_neox,
        names.GPT_NEOX,
        "gpt_neox.",
        "embed_out.weight",
        BUFFERS,
        "GPTNeoXForSequenceClassification",
    ),
    "gpt2": Family(
        _gpt2,
        names.GPT2,
        "transformer.",
        "lm_head.weight",
        (r"\.attn\.(bias|masked_bias)$",),
        "GPT2ForSequenceClassification",
    ),
    "modernbert": Family(
        _modernbert,
        names.MODERNBERT,
        "model.",
        "",
        (r"^(head|decoder)\.",),
        "ModernBertForSequenceClassification",
        {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
    ),
    "bert": Family(
        _bert,
        names.BERT_AND_POSITIONS,
        "bert.",
        "",
        (r"(^|\.)pooler\.", r"^cls\.", r"embeddings\.position_ids$"),
        "BertForSequenceClassification",
    ),
    "roberta": Family(
        _bert,
        names.ROBERTA,
        "roberta.",
        "",
        (r"(^|\.)pooler\.", r"^lm_head\.", r"embeddings\.position_ids$"),
        "RobertaForSequenceClassification",
    ),
    "deberta-v2": Family(
        _deberta,
        names.DEBERTA,
        "deberta.",
        "",
        (r"^(pooler|lm_predictions|mask_predictions|cls)\.", r"position_ids$"),
        "DebertaV2ForSequenceClassification",
    ),
}
