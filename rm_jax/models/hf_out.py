"""ArchConfig to a config.json that transformers 4.51 and 5 read alike, where they can.

transformers 5 writes `rope_parameters` and `dtype`, of which 4.51 reads nothing and
takes its defaults instead, without a word; so both dialects are written. What 4.51 has
not, or computes otherwise, `versions` says.
"""

import dataclasses
from typing import Any

from rm_jax.models import hf
from rm_jax.models.arch import RUNTIME, ArchConfig, without_head

ORIGINAL = "original_max_position_embeddings"
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # theirs, where it is not our name


class NotExportable(ValueError):
    """A model that no class of transformers computes; says what of it."""


def to_config(arch: ArchConfig, max_length: int) -> dict[str, Any]:
    """The config.json of a trunk, without what is of heads and tokenizers.

    `hf.arch_fields` reads it back as the same arch.

    Args:
      arch: of a causal trunk.
      max_length: tokens of prompt and response.

    Raises:
      NotExportable: nothing there computes it; names the fields.
    """
    trunk = without_head(arch)
    model_type = _model_type(trunk)
    config = {
        "model_type": model_type,
        "vocab_size": trunk.vocab_size,
        **_SPECIFIC.get(model_type, _decoder)(trunk, max_length),
    }
    back = ArchConfig(**hf.arch_fields(config))
    unlike = [
        f.name
        for f in dataclasses.fields(ArchConfig)
        if f.name not in (*RUNTIME, "lm_head", "pooling", "windows")
        and getattr(back, f.name) != getattr(trunk, f.name)
    ]
    # A pattern may be longer than a trunk that was cut.
    unlike += ["windows"] * (_windows(back) != _windows(trunk))
    if unlike:
        values = ", ".join(f"{n} = {getattr(trunk, n)!r:.60}" for n in unlike)
        raise NotExportable(
            f"no {hf.family(config).classifier} of transformers has {values}"
        )
    return config


def versions(arch: ArchConfig) -> str:
    """The transformers that score `to_config` as we do: "4.51 and 5", or "5" alone.

    4.51 has no classifier of Gemma 3 and OLMo 2. It lays a window of Qwen over all
    layers and one of Gemma 2 over every other. YaRN's factor is to it a ratio of two
    whole lengths, and it always rounds the bounds.
    """
    model_type, slides = _model_type(arch), [bool(w) for w in _windows(arch)]
    if model_type == "gemma2":
        same = slides == [i % 2 == 0 for i in range(arch.n_layers)]
    else:
        same = len(set(slides)) == 1 and model_type not in ("gemma3_text", "olmo2")
    scaling = dict(arch.rope_scaling)
    if scaling.get("rule") == "yarn":
        whole = scaling["factor"] * scaling[ORIGINAL]
        same = same and scaling["truncate"] and whole == round(whole)
    return "4.51 and 5" if same else "5"


def check_causal(arch: ArchConfig) -> None:
    """Refuses encoders.

    Raises:
      NotExportable: it is one.
    """
    if arch.attention == "full":
        raise NotExportable(
            "classifiers of encoders in transformers read the first token through a "
            "pooler, not the last one: an encoder cannot be exported to them"
        )


def _model_type(arch: ArchConfig) -> str:
    check_causal(arch)
    if arch.norm == "layer":
        return "gpt2" if arch.positions == "learned" else "gpt_neox"
    if arch.norm == "rms_plus_one":
        return "gemma3_text" if arch.qk_norm == "head" else "gemma2"
    if arch.norm_at == "outputs":
        return "olmo2"
    if arch.qk_norm == "head":
        return "qwen3"
    if arch.biases == ("q", "k", "v"):
        return "qwen2"
    slides = _windows(arch)
    return "mistral" if slides[0] and len(set(slides)) == 1 else "llama"


def _windows(arch: ArchConfig) -> tuple[int, ...]:
    """Of every layer."""
    return tuple(arch.window(i) for i in range(arch.n_layers))


def _sizes(arch: ArchConfig, max_length: int) -> dict[str, Any]:
    scaling = dict(arch.rope_scaling)
    if scaling.get("rule") == "yarn":  # 4.51 takes the factor from this
        max_length = round(scaling["factor"] * scaling[ORIGINAL])
    return {
        "hidden_size": arch.d_model,
        "intermediate_size": arch.d_ff,
        "num_hidden_layers": arch.n_layers,
        "num_attention_heads": arch.n_heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": False,
    }


def _rope(arch: ArchConfig, **more: Any) -> dict[str, Any]:
    """Base and scaling in both dialects; `more` belongs to the parameters."""
    scaling = dict(arch.rope_scaling)
    rule = scaling.pop("rule", "default")
    if ORIGINAL in scaling:
        scaling[ORIGINAL] = int(scaling[ORIGINAL])
    found = {"rope_type": rule, **scaling}
    out = {
        "rope_theta": arch.rope_base,
        "rope_parameters": {**found, "rope_theta": arch.rope_base, **more},
    }
    return out | ({"rope_scaling": found} if scaling else {})


def _decoder(arch: ArchConfig, max_length: int) -> dict[str, Any]:
    """Llama and its relatives."""
    config = _sizes(arch, max_length) | {
        "num_key_value_heads": arch.n_kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": ACTIVATIONS.get(arch.activation, arch.activation),
        "rms_norm_eps": arch.norm_eps,
        "attention_bias": "o" in arch.biases,
        "mlp_bias": "down" in arch.biases,
        **_rope(arch),
    }
    window = max(_windows(arch))
    model_type = _model_type(arch)
    if model_type == "mistral":
        return config | {"sliding_window": window}
    if model_type in ("llama", "olmo2"):
        return config
    kinds = ["sliding_attention" if w else "full_attention" for w in _windows(arch)]
    return config | {
        "layer_types": kinds,
        # Not left out: 4.51 would take 4096, used or not.
        "sliding_window": window or None,
        "use_sliding_window": window > 0,
        "max_window_layers": [*kinds, "sliding_attention"].index("sliding_attention"),
    }


def _gemma(arch: ArchConfig, max_length: int) -> dict[str, Any]:
    config = _decoder(arch, max_length)
    of_act = config.pop("hidden_act")
    if arch.attention_cap:  # the attention that transformers chooses has no cap
        config["_attn_implementation"] = "eager"
    return config | {
        "hidden_activation": of_act,
        "hidden_act": of_act,
        "query_pre_attn_scalar": _scalar(arch),
        "attn_logit_softcapping": arch.attention_cap or None,
        "final_logit_softcapping": arch.logit_cap or None,
        # transformers 5 makes a mask of it even where no layer slides.
        "sliding_window": max(_windows(arch)) or max_length,
    }


def _scalar(arch: ArchConfig) -> float:
    """What `query_scale` is the inverse root of; a whole number where it is one."""
    value = arch.query_scale**-2
    return round(value) if round(value) ** -0.5 == arch.query_scale else value


def _gemma3(arch: ArchConfig, max_length: int) -> dict[str, Any]:
    config = _gemma(arch, max_length)
    whole = config["rope_parameters"]
    local = {"rope_type": "default", "rope_theta": arch.rope_local_base}
    return config | {
        "rope_parameters": {"full_attention": whole, "sliding_attention": local},
        "rope_local_base_freq": arch.rope_local_base,
        "sliding_window_pattern": arch.pattern,
    }


def _gpt_neox(arch: ArchConfig, max_length: int) -> dict[str, Any]:
    share = (arch.rotary_dim or arch.head_dim) / arch.head_dim
    return _sizes(arch, max_length) | {
        "hidden_act": ACTIVATIONS.get(arch.activation, arch.activation),
        "layer_norm_eps": arch.norm_eps,
        "use_parallel_residual": arch.parallel,
        "attention_bias": "q" in arch.biases,
        "rotary_pct": share,
        "rotary_emb_base": arch.rope_base,
        **_rope(arch, partial_rotary_factor=share),
    }


def _gpt2(arch: ArchConfig, max_length: int) -> dict[str, Any]:
    return {
        "n_embd": arch.d_model,
        "n_layer": arch.n_layers,
        "n_head": arch.n_heads,
        "n_inner": arch.d_ff,
        "n_positions": arch.position_rows,
        "activation_function": ACTIVATIONS.get(arch.activation, arch.activation),
        "layer_norm_epsilon": arch.norm_eps,
        "tie_word_embeddings": True,
    }


_SPECIFIC = {
    "gemma2": _gemma,
    "gemma3_text": _gemma3,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
}
