"""Backbones in the words of Hugging Face: config.json to ArchConfig, names of tensors.

`arch_fields` reads a config.json; `rules` says which of their tensors are which of our
parameters (hf_names.py). Nothing here reads a file.

Sources: configuration_*.py and modeling_*.py of transformers 5 for each model_type.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax.models import hf_names as names
from rm_jax.models import rope
from rm_jax.models.arch import ArchConfig, frozen
from rm_jax.models.hf_names import Rule

Config = Mapping[str, Any]


class UnknownModel(ValueError):
    """A config.json that no backbone here computes; says what of it is not known."""


class Family(NamedTuple):
    """What a model_type is made of.

    Attributes:
      fields: config -> fields of ArchConfig beside sizes.
      rules: of the tensors, without heads.
      prefix: of the names of tensors in a model with a head.
      lm_head: name of the tensor of logits, whole.
      ignored: regexes of tensors that hold no parameter of the trunk.
      classifier: the class that transformers has for scores.
    """

    fields: Callable[[Config], dict[str, Any]]
    rules: tuple[Rule, ...]
    prefix: str
    lm_head: str
    ignored: tuple[str, ...]
    classifier: str


def arch_fields(config: Config) -> dict[str, Any]:
    """Fields of ArchConfig that a config.json decides.

    Raises:
      UnknownModel: a model_type or a value that is not computed here; names it.
    """
    fields = family(config).fields(config)
    if fields["n_heads"] % fields["n_kv_heads"]:
        raise UnknownModel(
            f"config.json: {fields['n_heads']} query heads are no multiple of "
            f"{fields['n_kv_heads']} key and value heads"
        )
    return fields


def family(config: Config) -> Family:
    """What the model_type of a config.json is made of.

    Raises:
      UnknownModel: not one of FAMILIES.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise UnknownModel(
            f"config.json: model_type = {name!r:.80}; known: {sorted(FAMILIES)}"
        )
    return FAMILIES[name]


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _need(config: Config, key: str) -> Any:
    if config.get(key) is None:
        raise UnknownModel(f"config.json of {config['model_type']} lacks {key!r}")
    return config[key]


def _only(config: Config, **values: Any) -> None:
    """Refuses a value beside the one that is computed here; a missing one is it."""
    for key, value in values.items():
        got = config.get(key)
        if got is not None and got != value:
            raise UnknownModel(
                f"config.json of {config['model_type']}: {key} = {got!r:.80}; only "
                f"{value!r} is computed here"
            )


def _activation(config: Config, key: str, default: str) -> str:
    name = config.get(key) or default
    if name not in ACTIVATIONS:
        raise UnknownModel(
            f"config.json: {key} = {name!r:.80}; known: {sorted(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _sizes(config: Config) -> dict[str, Any]:
    """Widths and counts, under the names that most families have."""
    d, heads = _need(config, "hidden_size"), _need(config, "num_attention_heads")
    return {
        "vocab_size": _need(config, "vocab_size"),
        "d_model": d,
        "n_layers": _need(config, "num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or d // heads,
        "d_ff": _need(config, "intermediate_size"),
    }


def _rope(config: Config, kind: str = "") -> dict[str, Any]:
    """Base and scaling, in the dialect of transformers 5 (rope_parameters) or of 4."""
    found = config.get("rope_parameters")
    if found is None:
        scaling = config.get("rope_scaling") or {}
        kind_of = scaling.get("rope_type", scaling.get("type", "default"))
        theta = config.get("rope_theta", config.get("rotary_emb_base", 10000.0))
        found = {**scaling, "rope_type": kind_of, "rope_theta": theta}
    elif kind and kind in found:
        found = found[kind]
    rule = found.get("rope_type", "default")
    base = float(found.get("rope_theta", 10000.0))
    if rule == "default":
        return {"rope_base": base}
    if rule not in rope.RULES:
        raise UnknownModel(
            f"config.json: rope_type = {rule!r:.80}; known: {['default', *rope.RULES]}"
        )
    number = lambda key: float(_need({**found, "model_type": f"rope {rule}"}, key))
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
    original = original or _need(config, "max_position_embeddings")
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


def _windows(config: Config, window: int, default: Sequence[str]) -> tuple[int, ...]:
    """The shortest pattern of windows that repeats over the layers."""
    kinds = config.get("layer_types") or default
    known = {"full_attention": 0, "sliding_attention": window}
    if unknown := sorted(set(kinds) - set(known)):
        raise UnknownModel(f"config.json: layer_types has {unknown}")
    if len(kinds) != config["num_hidden_layers"]:
        raise UnknownModel(
            f"config.json: {len(kinds)} layer_types for "
            f"{config['num_hidden_layers']} layers"
        )
    each = [known[kind] for kind in kinds]
    for n in range(1, len(each)):
        if all(w == each[i % n] for i, w in enumerate(each)):
            return tuple(each[:n])
    return tuple(each)


def _every(config: Config, n: int) -> list[str]:
    """Every n-th layer sees all, the others a window."""
    layers = range(config["num_hidden_layers"])
    kind = lambda i: "sliding_attention" if (i + 1) % n else "full_attention"
    return [kind(i) for i in layers]


def _llama(config: Config) -> dict[str, Any]:
    biases = ()
    if config.get("attention_bias"):
        biases += ("q", "k", "v", "o")
    if config.get("mlp_bias"):
        biases += ("gate", "up", "down")
    _only(config, pretraining_tp=1)
    return {
        **_sizes(config),
        **_rope(config),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "activation": _activation(config, "hidden_act", "silu"),
        "biases": biases,
        **_tied(config, False),
    }


def _tied(config: Config, default: bool) -> dict[str, Any]:
    tied = config.get("tie_word_embeddings")
    tied = default if tied is None else tied
    return {"lm_head": "tied" if tied else "untied"}


def _mistral(config: Config) -> dict[str, Any]:
    return _llama(config) | {"windows": (config.get("sliding_window") or 0,)}


def _qwen2(config: Config) -> dict[str, Any]:
    window = (config.get("sliding_window") or 0) * bool(
        config.get("use_sliding_window")
    )
    whole = config.get("max_window_layers", 28)
    layers = range(_need(config, "num_hidden_layers"))
    kinds = [
        "sliding_attention" if window and i >= whole else "full_attention"
        for i in layers
    ]
    fields = _llama(config) | {"windows": _windows(config, window, kinds)}
    return fields | {"biases": ("q", "k", "v")}


def _qwen3(config: Config) -> dict[str, Any]:
    return _qwen2(config) | {"qk_norm": "head", "biases": _llama(config)["biases"]}


def _gemma2(config: Config) -> dict[str, Any]:
    if config.get("use_bidirectional_attention"):
        raise UnknownModel("config.json: use_bidirectional_attention = True")
    fields = _llama(config) | {
        "activation": _activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        "norm": "rms_plus_one",
        "norm_at": "both",
        "embed_scale": math.sqrt(config["hidden_size"]),
        "query_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "attention_cap": float(config.get("attn_logit_softcapping") or 0.0),
        "logit_cap": float(config.get("final_logit_softcapping") or 0.0),
        **_tied(config, True),
    }
    window = config.get("sliding_window") or 0
    return fields | {"windows": _windows(config, window, _every(config, 2))}


def _gemma3(config: Config) -> dict[str, Any]:
    every = config.get("sliding_window_pattern") or 6
    config = {
        **config,
        "layer_types": config.get("layer_types") or _every(config, every),
    }
    if "rope_parameters" in config:
        local = _rope(config, "sliding_attention")
        if "rope_scaling" in local:
            raise UnknownModel("config.json: rope of sliding_attention is scaled")
        whole, local = _rope(config, "full_attention"), local["rope_base"]
    else:
        whole = _rope({"rope_theta": 1e6, **config})
        local = float(config.get("rope_local_base_freq", 10000.0))
    fields = _gemma2({**config, "rope_parameters": {"rope_type": "default"}})
    return fields | {"qk_norm": "head", **whole, "rope_local_base": local}


def _olmo2(config: Config) -> dict[str, Any]:
    fields = _llama(config) | {"norm_at": "outputs", "qk_norm": "all"}
    return fields | {"norm_eps": config.get("rms_norm_eps", 1e-5)}


LAYER_NORM = {"norm": "layer", "gated": False}
EVERYWHERE = ("q", "k", "v", "o", "up", "down", "norm")


def _gpt_neox(config: Config) -> dict[str, Any]:
    sizes = _sizes(config)
    found = config.get("rope_parameters") or {}
    share = found.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    biases = EVERYWHERE
    if config.get("attention_bias") is False:
        biases = tuple(n for n in biases if n not in ("q", "k", "v", "o"))
    return {
        **sizes,
        **_rope(config),
        **LAYER_NORM,
        "rotary_dim": int(sizes["head_dim"] * share),
        "norm_eps": config.get("layer_norm_eps", 1e-5),
        "activation": _activation(config, "hidden_act", "gelu"),
        "parallel": config.get("use_parallel_residual", True),
        "biases": biases,
        **_tied(config, False),
    }


def _gpt2(config: Config) -> dict[str, Any]:
    _only(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    d, heads = _need(config, "n_embd"), _need(config, "n_head")
    return {
        "vocab_size": _need(config, "vocab_size"),
        "d_model": d,
        "n_layers": _need(config, "n_layer"),
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": d // heads,
        "d_ff": config.get("n_inner") or 4 * d,
        **LAYER_NORM,
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "activation": _activation(config, "activation_function", "gelu_new"),
        "biases": EVERYWHERE,
        "positions": "learned",
        "position_rows": _need(config, "n_positions"),
        **_tied(config, True),
    }


def _modernbert(config: Config) -> dict[str, Any]:
    every = config.get("global_attn_every_n_layers") or 3
    layers = range(_need(config, "num_hidden_layers"))
    kinds = ["sliding_attention" if i % every else "full_attention" for i in layers]
    if "rope_parameters" in config:
        whole = _rope(config, "full_attention")
        local = _rope(config, "sliding_attention")
        if "rope_scaling" in local:
            raise UnknownModel("config.json: rope of sliding_attention is scaled")
        local = local["rope_base"]
    else:
        whole = {"rope_base": float(config.get("global_rope_theta", 160000.0))}
        local = float(config.get("local_rope_theta") or whole["rope_base"])
    # A window of n tokens reaches n / 2 to either side, the token itself not counted.
    window = config.get("local_attention", 128) // 2 + 1
    biases = ("q", "k", "v", "o") if config.get("attention_bias") else ()
    biases += ("gate", "up", "down") if config.get("mlp_bias") else ()
    biases += ("norm",) if config.get("norm_bias") else ()
    return {
        **_sizes(config),
        **whole,
        "rope_local_base": local,
        "windows": _windows(config, window, kinds),
        "attention": "full",
        "norm": "layer",
        "norm_eps": config.get("norm_eps", 1e-5),
        "first_norm": False,
        "embed_norm": True,
        "activation": _activation(config, "hidden_activation", "gelu"),
        "biases": biases,
        "lm_head": "none",
    }


def _bert(config: Config) -> dict[str, Any]:
    _only(config, position_embedding_type="absolute", is_decoder=False)
    _only(config, add_cross_attention=False)
    # The table of RoBERTa begins after the row of its pad token.
    ahead = (
        _need(config, "pad_token_id") + 1 if config["model_type"] == "roberta" else 0
    )
    return {
        **_sizes(config),
        **LAYER_NORM,
        "attention": "full",
        "norm_at": "after_sum",
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "final_norm": False,
        "embed_norm": True,
        "activation": _activation(config, "hidden_act", "gelu"),
        "biases": EVERYWHERE,
        "positions": "learned",
        "position_rows": _need(config, "max_position_embeddings") - ahead,
        "lm_head": "none",
    }


def _deberta(config: Config) -> dict[str, Any]:
    terms = config.get("pos_att_type") or []
    terms = terms.split("|") if isinstance(terms, str) else terms
    if sorted(terms) != ["c2p", "p2c"]:
        raise UnknownModel(
            f"config.json: pos_att_type = {terms!r:.80}; only c2p and p2c together are "
            "computed here (DeBERTa v3)"
        )
    _only(config, relative_attention=True, share_att_key=True, type_vocab_size=0)
    _only(config, position_biased_input=False, norm_rel_ebd="layer_norm")
    _only(config, conv_kernel_size=0, embedding_size=config["hidden_size"])
    for key in ("share_att_key", "relative_attention", "norm_rel_ebd"):
        _need(config, key)
    if config.get("position_biased_input", True):
        raise UnknownModel("config.json: position_biased_input is not false")
    buckets = _need(config, "position_buckets")
    distance = config.get("max_relative_positions", -1)
    if distance < 1:
        distance = _need(config, "max_position_embeddings")
    if buckets < 4 or distance <= buckets // 2 + 1:
        raise UnknownModel(
            f"config.json: position_buckets = {buckets} for distances up to {distance}"
        )
    sizes = _sizes(config)
    return {
        **sizes,
        **LAYER_NORM,
        "attention": "full",
        "norm_at": "after_sum",
        "norm_eps": config.get("layer_norm_eps", 1e-7),
        "final_norm": False,
        "embed_norm": True,
        "activation": _activation(config, "hidden_act", "gelu"),
        "biases": EVERYWHERE,
        "positions": "relative",
        "position_rows": 2 * buckets,
        "relative_distance": distance,
        "query_scale": (3 * sizes["head_dim"]) ** -0.5,
        "lm_head": "none",
    }


BUFFERS = (r"(^|\.)rotary_emb\.inv_freq$", r"\.attention\.(bias|masked_bias)$")


def _decoder(
    fields: Callable[[Config], dict[str, Any]], rules: tuple[Rule, ...], name: str
) -> Family:
    classifier = f"{name}ForSequenceClassification"
    return Family(fields, rules, "model.", "lm_head.weight", BUFFERS[:1], classifier)


FAMILIES: dict[str, Family] = {
    "llama": _decoder(_llama, names.LLAMA, "Llama"),
    "mistral": _decoder(_mistral, names.LLAMA, "Mistral"),
    "qwen2": _decoder(_qwen2, names.LLAMA, "Qwen2"),
    "qwen3": _decoder(_qwen3, names.LLAMA, "Qwen3"),
    "gemma2": _decoder(_gemma2, names.GEMMA, "Gemma2"),
    "gemma3_text": _decoder(_gemma3, names.GEMMA, "Gemma3Text"),
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


def rules(config: Config, arch: ArchConfig, ours: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of a model, one a layer where they are about layers.

    Args:
      config: config.json.
      arch: what `arch_fields` made of it.
      ours: names of the model's parameters; a rule about others is left out, as that
        of a bias that the model has not.
    """
    have, out = set(ours), []
    for rule in family(config).rules:
        of_layers = any("{i}" in name for name in rule.theirs)
        for i in range(arch.n_layers if of_layers else 1):
            put = lambda names, i=i: tuple(n.replace("{i}", str(i)) for n in names)
            one = Rule(put(rule.theirs), put(rule.ours), rule.turn)
            if have.issuperset(one.ours):
                out.append(one)
    return tuple(out)


def layers_beyond(config: Config, arch: ArchConfig) -> set[str]:
    """Tensors of the layers that `arch`, the lowest layers of a model, leaves out."""
    whole = family(config).fields(config)["n_layers"]
    return {
        name.replace("{i}", str(i))
        for rule in family(config).rules
        for name in rule.theirs
        for i in range(arch.n_layers, whole)
        if "{i}" in name
    }


def is_ignored(config: Config, name: str) -> bool:
    """Whether a tensor of theirs holds no parameter of a trunk."""
    return any(re.search(pattern, name) for pattern in family(config).ignored)
