"""What a config.json says by saying nothing: the defaults of transformers' own classes.

Every table has a config of both dialects, 4.x's and 5's, and each of its words once
missing: read as it stands, and as transformers completes it.
"""

import copy
import json

import backbones
import pytest
import transformers

from rm_jax.models import hf

FOUR = {"rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "factor": 4.0}
FIVE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
TWO = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
}
FULL_ALONE = {
    "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
}
# Words that a config need not have, with other values than their defaults.
LLAMA = {"head_dim": 16, "rms_norm_eps": 1e-4, "tie_word_embeddings": True}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
GEMMA2 = LLAMA | {
    "tie_word_embeddings": False,
    "query_pre_attn_scalar": 10,
    "sliding_window": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "hidden_activation": "gelu",
}
NEOX = {"layer_norm_eps": 1e-4, "use_parallel_residual": False, "attention_bias": False}
MODERN = {"local_attention": 8, "norm_eps": 1e-4, "attention_bias": True}
CONFIGS = {
    "llama": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama 4": ("llama", LLAMA | FOUR),
    "llama 4 scaled": ("llama", FOUR | {"rope_scaling": LINEAR}),
    "llama 4 type": ("llama", FOUR | {"rope_scaling": {"type": "linear", "factor": 2}}),
    "llama 4 llama3": (
        "llama",
        FOUR
        | {
            "rope_scaling": {
                k: v for k, v in backbones.LLAMA3.items() if k[5:] != "theta"
            }
        },
    ),
    "llama 4 yarn": (
        "llama",
        FOUR | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    ),
    "llama 5": ("llama", LLAMA | FIVE),
    "llama 5 and 4": ("llama", FIVE | {"rope_scaling": LINEAR, "rope_theta": 7e4}),
    "llama 5 of 4": (
        "llama",
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e4},
    ),
    "mistral 4": ("mistral", LLAMA | FOUR | {"sliding_window": 8}),
    "mistral 5": ("mistral", FIVE | {"sliding_window": None}),
    "qwen2 4": ("qwen2", FOUR | WINDOWS),
    "qwen2 5": ("qwen2", FIVE | WINDOWS | {"num_hidden_layers": 30}),
    "qwen3 4": ("qwen3", LLAMA | FOUR | WINDOWS),
    "qwen3 5": ("qwen3", LLAMA | FIVE | WINDOWS | {"attention_bias": True}),
    "gemma2 4": ("gemma2", GEMMA2 | FOUR),
    "gemma2 5": ("gemma2", GEMMA2 | FIVE),
    "gemma2 no caps": (
        "gemma2",
        GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3 4": (
        "gemma3_text",
        GEMMA2 | FOUR | {"rope_local_base_freq": 2e4, "sliding_window_pattern": 2},
    ),
    "gemma3 4 scaled": (
        "gemma3_text",
        FOUR | {"rope_scaling": LINEAR, "rope_local_base_freq": 2e4},
    ),
    "gemma3 5": ("gemma3_text", GEMMA2 | TWO),
    "gemma3 5 full": ("gemma3_text", FULL_ALONE),
    "gemma3 5 of 4": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}}
        | FOUR
        | {"rope_local_base_freq": 2e4},
    ),
    "gemma3 flat": (
        "gemma3_text",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "olmo2 4": ("olmo2", FOUR | {"rms_norm_eps": 1e-4, "attention_bias": True}),
    "olmo2 5": ("olmo2", FIVE),
    "gpt_neox 4": ("gpt_neox", NEOX | {"rotary_emb_base": 5e4, "rotary_pct": 0.5}),
    "gpt_neox 4 theta": ("gpt_neox", FOUR),
    "gpt_neox 4 scaled": ("gpt_neox", {"rope_scaling": LINEAR, "rotary_pct": 0.5}),
    "gpt_neox 5": (
        "gpt_neox",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e5,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "gpt_neox 5 of 4": ("gpt_neox", FIVE | {"rotary_pct": 0.5}),
    "gpt2": (
        "gpt2",
        {"n_inner": 40, "layer_norm_epsilon": 1e-4, "activation_function": "relu"},
    ),
    "modernbert 4": (
        "modernbert",
        MODERN
        | {
            "global_rope_theta": 5e5,
            "local_rope_theta": 2e4,
            "global_attn_every_n_layers": 2,
            "mlp_bias": True,
            "norm_bias": True,
        },
    ),
    "modernbert 5": ("modernbert", MODERN | TWO),
    "modernbert 5 full": ("modernbert", FULL_ALONE),
    "bert": ("bert", {"layer_norm_eps": 1e-4, "hidden_act": "relu"}),
    "roberta": ("roberta", {"layer_norm_eps": 1e-4, "pad_token_id": 2}),
    "deberta": ("deberta-v2", {"layer_norm_eps": 1e-4, "hidden_act": "relu"}),
}


def full(name):
    """Sizes of the family, and the words of a case."""
    model_type, words = CONFIGS[name]
    base = next(c for c in backbones.CASES.values() if c["model_type"] == model_type)
    drop = ("rope_parameters", "head_dim", "sliding_window", "query_pre_attn_scalar")
    drop += ("attn_logit_softcapping",)
    base = {k: v for k, v in base.items() if k not in drop}
    layers = {} if "n_layer" in base else {"num_hidden_layers": 4}
    return base | layers | words


def completed(config):
    """As transformers 5 writes it."""
    own = transformers.AutoConfig.for_model(**copy.deepcopy(config))
    return json.loads(json.dumps(own.to_dict()))


def variants(config):
    """The config, and it without each of its words."""
    yield "", config
    for word in config:
        if word != "model_type":
            yield word, {k: v for k, v in config.items() if k != word}


def read(config):
    """Fields, or why there are none."""
    try:
        return hf.arch_fields(config)
    except hf.UnknownModel as error:
        return {"refused": str(error)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_missing_word_is_transformers_own_default(name):
    """Or refused by its name."""
    unlike = {}
    for word, config in variants(full(name)):
        got = read(config)
        if word and f"lacks {word!r}" in got.get("refused", ""):
            continue
        want = read(completed(config))
        keys = [k for k in got | want if got.get(k) != want.get(k)]
        if keys and keys != ["refused"]:
            unlike[word] = [(k, got.get(k), want.get(k)) for k in keys]
    assert not unlike
    assert "d_model" in read(full(name))


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("gemma3 flat", FIVE, "rope_parameters.rope_theta = 500000.0, which tran"),
        ("modernbert 4", {"rope_scaling": LINEAR}, "rope of sliding_attention is sc"),
        ("modernbert 5", {"rope_parameters": LINEAR}, "rope_parameters.factor = 4.0"),
    ],
)
def test_ropes_that_are_not_computed_here(name, words, why):
    assert why in read(full(name) | words)["refused"]
