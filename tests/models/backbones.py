"""Tiny backbones of every family, with weights that numpy draws, and what they give.

`python tests/models/backbones.py` makes tests/golden/backbones.npz again, from
transformers on PyTorch.
"""

import functools
import json
import pathlib
import zlib

import jax
import numpy as np

from rm_jax import models, pretrained
from rm_jax.manifest import named, nested
from rm_jax.models import hf
from rm_jax.models.arch import ArchConfig
from rm_jax.weights.tensors import Source, Tensor

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "backbones.npz"
VOCAB = 61
LENGTHS = (40, 27, 14, 9)  # of the sequences; the last three are packed together
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3,
}  # fmt: skip
PLAIN = COMMON | {"num_key_value_heads": 4}
ENCODER = {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}
ENCODERS = ("modernbert", "bert", "roberta", "deberta-v2")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
CASES = {
    "llama": COMMON | {"model_type": "llama"},
    "llama_3": COMMON | {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama_linear": COMMON
    | {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    },
    "llama_biases": COMMON
    | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "smollm": COMMON | {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": COMMON | {"model_type": "mistral", "sliding_window": 8},
    "qwen2": COMMON | {"model_type": "qwen2", "rope_parameters": YARN},
    "qwen2_windows": COMMON
    | {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3": COMMON | {"model_type": "qwen3", "head_dim": 16},
    "gemma2": COMMON
    | {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 10,
        "attn_logit_softcapping": 2.0,
        "num_hidden_layers": 5,
    },
    "gemma3": COMMON
    | {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 10,
        "num_hidden_layers": 8,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {
                "rope_type": "linear",
                "rope_theta": 1e4,
                "factor": 8.0,
            },
        },
    },
    "olmo2": COMMON | {"model_type": "olmo2"},
    "gpt_neox": PLAIN | {"model_type": "gpt_neox"},
    "gpt_neox_serial": PLAIN
    | {"model_type": "gpt_neox", "use_parallel_residual": False},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "pad_token_id": 0,
    },  # fmt: skip
    "modernbert": ENCODER
    | {"model_type": "modernbert", "local_attention": 8, "num_hidden_layers": 5},
    "bert": ENCODER | {"model_type": "bert"},
    "roberta": ENCODER
    | {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 66},
    "deberta": ENCODER
    | {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": 32,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}


def sequences() -> list[np.ndarray]:
    """Token ids, none of them a special one."""
    rng = np.random.default_rng(5)
    return [rng.integers(5, VOCAB, n) for n in LENGTHS]


def scored() -> list[np.ndarray]:
    """The sequences, and the second as a prompt of the third and of the fourth."""
    a, b, c, d = sequences()
    return [a, b, c, d, np.concatenate([b, c]), np.concatenate([b, d])]


def head(d: int) -> np.ndarray:
    """Weights of the score."""
    return np.linspace(-1, 1, d, dtype=np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a tensor: as large as trained ones, so that every one matters."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 1:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32) + (
            "norm" in name.lower() or "ln_" in name
        ) * name.endswith("weight")
    scale = 1.0 if "embed" in name or "wte" in name else 1.5 * shape[-1] ** -0.5
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def source(config: dict, shapes: dict[str, tuple[int, ...]]) -> Source:
    """Weights in memory, drawn when they are read."""
    tensors = {
        name: Tensor(tuple(shape), "F32", lambda n=name, s=shape: weight(n, tuple(s)))
        for name, shape in shapes.items()
    }
    return Source("memory", config, tensors, None)


@functools.cache
def golden():
    """Arrays by case, and what they are of."""
    found = dict(np.load(GOLDEN))
    return found, json.loads(found.pop("about").tobytes())


@functools.cache
def ours(case: str) -> tuple[ArchConfig, dict]:
    """Arch and parameters of a case, loaded as from a folder."""
    about = golden()[1][case]
    fields = hf.arch_fields(about["config"]) | {"lm_head": "none"}
    arch = ArchConfig(**fields, attention_block=16)
    return arch, loaded(arch, about["config"], about["tensors"])


def loaded(arch: ArchConfig, config: dict, shapes: dict) -> dict:
    """Parameters of an arch, the lowest layers of what the config says or all."""
    init, _ = models.functions(arch)
    want = named(jax.eval_shape(init, jax.random.key(0)))[0]
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)
        for p, x in want.items()
    }
    arrays = pretrained.load(source(config, shapes), arch, like)
    return nested(arrays | {"head": head(arch.d_model)})


def torch_model(config: dict):
    """transformers' own model with these weights."""
    import torch
    import transformers

    kind = transformers.AutoConfig.for_model(
        **config, num_labels=1, attn_implementation="eager"
    )
    model = transformers.AutoModel.from_config(kind).eval()
    state = {
        name: torch.from_numpy(weight(name, tuple(x.shape)))
        for name, x in model.state_dict().items()
        if x.is_floating_point()
    }
    model.load_state_dict(state, strict=False)
    return model


def torch_hidden(model, rows: list[np.ndarray]) -> np.ndarray:
    """[l b t d]: embeddings and every layer, padded on the right."""
    import torch

    t = max(map(len, rows))
    pad = lambda x, n: np.pad(x, (0, t - len(x)), constant_values=n)
    ids = torch.tensor(np.stack([pad(r, model.config.pad_token_id) for r in rows]))
    mask = torch.tensor(np.stack([pad(np.ones(len(r), int), 0) for r in rows]))
    with torch.no_grad():
        out = model(ids, attention_mask=mask, output_hidden_states=True)
        # The last of them is normed already.
        before, norm = list(out.hidden_states[:-1]), final_norm(model)
        before = [norm(x) for x in before] if norm else before
        return torch.stack([*before, out.hidden_states[-1]]).numpy()


def torch_scores(config: dict, rows: list[np.ndarray], left: bool) -> np.ndarray:
    """Of transformers' own class of scores, padded on one side.

    Positions are given, since those of a table would count the padding on the left.
    """
    import torch
    import transformers

    kind = transformers.AutoConfig.for_model(
        **config, num_labels=1, attn_implementation="eager"
    )
    model = transformers.AutoModelForSequenceClassification.from_config(kind).eval()
    prefix = f"{model.base_model_prefix}."
    state = {
        name: torch.from_numpy(weight(name.removeprefix(prefix), tuple(x.shape)))
        for name, x in model.state_dict().items()
        if x.is_floating_point()
    }
    state["score.weight"] = torch.from_numpy(head(model.score.in_features))[None]
    model.load_state_dict(state, strict=False)
    t = max(map(len, rows))
    side = lambda x: (t - len(x), 0) if left else (0, t - len(x))
    pad = lambda x, n: np.pad(x, side(x), constant_values=n)
    ids = torch.tensor(np.stack([pad(r, kind.pad_token_id) for r in rows]))
    mask = torch.tensor(np.stack([pad(np.ones(len(r), int), 0) for r in rows]))
    at = torch.tensor(np.stack([pad(np.arange(len(r)), 0) for r in rows]))
    with torch.no_grad():
        found = model(ids, attention_mask=mask, position_ids=at).logits
    return found[:, 0].numpy()


def oracle(config: dict, model, rows: list[np.ndarray]) -> np.ndarray:
    """Scores: of the class of scores, or of an encoder from its last hidden states.

    The classes of encoders score another token, through a pooler.
    """
    if config["model_type"] not in ENCODERS:
        return torch_scores(config, rows, left=False)
    hidden = torch_hidden(model, rows)[-1]
    last = np.stack([hidden[i, len(row) - 1] for i, row in enumerate(rows)])
    return last @ head(last.shape[1])


def final_norm(model):
    """The norm after the last layer; None where there is none."""
    for name in ("norm", "final_norm", "final_layer_norm", "ln_f"):
        if hasattr(model, name):
            return getattr(model, name)
    return None


def main() -> None:
    """Writes the goldens: hidden states of a sequence at some tokens, and scores."""
    arrays, about = {}, {}
    for name, config in CASES.items():
        model = torch_model(config)
        state = model.state_dict()
        shapes = {n: list(x.shape) for n, x in state.items() if x.is_floating_point()}
        about[name] = {"config": model.config.to_dict(), "tensors": shapes}
        arrays[name] = torch_hidden(model, sequences()[:1])[:, 0, 3::12]
        arrays[f"{name} scores"] = oracle(config, model, scored())
    text = json.dumps(about, default=str, sort_keys=True).encode()
    np.savez_compressed(GOLDEN, about=np.frombuffer(text, np.uint8), **arrays)


if __name__ == "__main__":
    main()
